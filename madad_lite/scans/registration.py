"""The MNI152 template and the affine registration of a scan to it.

SimpleITK does the work (extra `prep`) and is imported only when a scan has to be registered.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

SCALES = 0.5, 2.0  # what a registration may do to a brain's size
ANISOTROPY = 1.6  # largest scale by smallest; real heads need up to 1.25


@lru_cache(maxsize=2)  # 35 MB each
def template(kind: str = "t1") -> nib.Nifti1Image:
    """The MNI152 2009a template that nilearn ships, 1 mm: "t1" (brain only), "gm", "wm" (0..255) or "brain"
    (0/1).
    """
    # nilearn's file without nilearn, whose import takes longer than reading a scan
    name = f"mni_icbm152_{'t1' if kind == 'brain' else kind}_tal_nlin_sym_09a_converted.nii.gz"
    image = nib.load(Path(find_spec("nilearn").origin).parent / "datasets" / "data" / name)
    data = np.asarray(image.dataobj).astype(np.float32)
    if kind == "brain":
        return nib.Nifti1Image((data > 0).astype(np.float32), image.affine)
    data /= data.max()  # nilearn's scale, 0..1
    return nib.Nifti1Image(data * np.float32(255), image.affine)


def smoothed(
    data: np.ndarray, affine: np.ndarray, spacing: float, out: np.ndarray | None = None
) -> np.ndarray:
    """Volume smoothed to what a grid of `spacing` mm can hold, along the axes that are finer; the others stay
    sharp. out: takes the result, and may be `data` itself.

    The factor is chosen by measurement: a scan of 1 mm becomes as sharp as one that was taken at 2 mm,
    without aliasing.
    """
    ratio = spacing / np.linalg.norm(affine[:3, :3], axis=0)
    sigma = np.where(ratio > 1.05, 0.38 * np.sqrt(np.maximum(ratio**2 - 1, 0)), 0)  # voxels
    return ndimage.gaussian_filter(data, sigma, output=out) if sigma.any() else data


def _coarse(
    data: np.ndarray, affine: np.ndarray, spacing: float, brain: np.ndarray | None = None
) -> nib.Nifti1Image:
    """The volume (float32, which is smoothed in place) at `spacing` mm, its axes along the world's (RAS).
    brain: bool; outside of it the volume is 0.
    """
    from nibabel.processing import resample_to_output

    part = data
    if brain is not None:  # smoothing reaches four sigma far
        reach = 1 + int(1.6 * spacing / np.linalg.norm(affine[:3, :3], axis=0).min())
        (box,) = ndimage.find_objects(brain.view(np.uint8))
        part = data[tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)]
    smoothed(part, affine, spacing, out=part)
    return resample_to_output(nib.Nifti1Image(data, affine), spacing, order=1)


def _itk(coarse: nib.Nifti1Image):
    """As a SimpleITK image; its axes are the world's, so that no direction matrix is needed."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.asarray(coarse.dataobj, np.float32).transpose(2, 1, 0))
    image.SetSpacing([float(v) for v in np.diag(coarse.affine)[:3]])
    image.SetOrigin([float(v) for v in coarse.affine[:3, 3]])
    return image


def simpleitk(need: str, instead: str):
    """The module. ImportError, one line that says what needs it and what to do instead, where it is not there."""
    try:
        import SimpleITK as sitk
    except ImportError:
        raise ImportError(f'{need} needs SimpleITK: pip install "madad-lite[prep]"; or {instead}') from None
    return sitk


@contextmanager
def one_thread():
    """Several threads would add in another order each time, and change the last digits. ITK has one setting
    for all.
    """
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@lru_cache(maxsize=4)
def _itk_template(kind: str, spacing: float):
    reference = template(kind)
    data = np.array(reference.dataobj)
    return _itk(_coarse(data, reference.affine, spacing, data > 0))


def _optimise(transform, moving: nib.Nifti1Image, margin: int) -> float:
    """One stage of the registration; changes `transform`, returns the metric (lower is better).

    All voxels of the template's brain and `margin` more around it count: nothing is random.
    """
    import SimpleITK as sitk

    spacing = float(moving.affine[0, 0])
    inside = _itk_template("brain", spacing) > 0.5
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetMetricFixedMask(sitk.BinaryDilate(inside, [margin] * 3) if margin else inside)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-2, numberOfIterations=100, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(_itk_template("t1", spacing), _itk(moving))
    return method.GetMetricValue()


def _centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass in mm."""
    return nib.affines.apply_affine(affine, ndimage.center_of_mass(mask))


@lru_cache(maxsize=1)
def _template_centre() -> list[float]:
    """The centre of the template's brain, MNI mm."""
    reference = template("brain")
    return [float(v) for v in _centre(np.asarray(reference.dataobj), reference.affine)]


def _starts(moving: nib.Nifti1Image, whole_head: bool) -> list[np.ndarray]:
    """Guesses of the brain's centre in the scan, mm."""
    data, affine = np.asarray(moving.dataobj), moving.affine
    if not whole_head:
        return [_centre(data > 0, affine)]
    # The brain hangs from the top of the head; how far below, and how far in front of the neck, has to be
    # tried.
    head = data > 0.15 * data.max()
    levels = np.flatnonzero(head.sum((0, 1)) >= 10)
    if not len(levels):
        raise RuntimeError("there is no head in it")
    top = levels.max()
    below = max(0, top - int(120 / affine[2, 2]))
    x, y, _ = _centre(head[:, :, below : top + 1], affine)
    z = affine[2, 3] + top * affine[2, 2]
    return [np.array([x, y + dy, z - dz]) for dz in (65, 85) for dy in (-10, 10)]


def register_to_mni(image: nib.Nifti1Image, brain: np.ndarray | None = None) -> np.ndarray:
    """Affine registration to the MNI152 template: (4, 4), scan mm -> MNI mm. About a second.

    brain: bool, of the image's shape; without it the image is a whole head. Mattes mutual information, so
    that the contrast does not matter; first position, angle and size at 8 mm, then all twelve parameters at 4
    mm, so that a brain that is cut off is not stretched to fill the template. Deterministic.
    ImportError without SimpleITK; RuntimeError if it does not succeed.
    """
    sitk = simpleitk("registration", "turn it off with register=False (--register no)")
    data = np.asarray(image.dataobj, np.float32)
    low, high = np.percentile(data if brain is None else data[brain], [0.5, 99.5])
    if brain is not None:
        low = min(
            low, 0
        )  # as in the normalisation: background below the brain, also in scans with negative values

    def clipped() -> np.ndarray:
        """0 to high - low, 0 outside the brain; plane by plane, because a scan of 0.5 mm is large."""
        values = np.empty_like(data)
        for k in range(data.shape[2]):
            plane = np.clip(data[..., k] - low, 0, high - low)
            values[..., k] = plane if brain is None else np.where(brain[..., k], plane, 0)
        return values

    coarse = {spacing: _coarse(clipped(), image.affine, spacing, brain) for spacing in (8.0, 4.0)}
    # the margin shows where a stripped brain ends; in a whole head it would compare skull with nothing
    margin = 0 if brain is None else 1

    centre = _template_centre()
    with one_thread():
        tried = []
        for start in _starts(coarse[8.0], whole_head=brain is None):
            similarity = sitk.Similarity3DTransform()
            similarity.SetCenter(centre)
            similarity.SetTranslation([float(v) for v in start - centre])
            tried.append((_optimise(similarity, coarse[8.0], margin), similarity))
        best = min(tried, key=lambda pair: pair[0])[1]
        transform = sitk.AffineTransform(best.GetMatrix(), best.GetTranslation(), centre)
        _optimise(transform, coarse[4.0], 2 * margin)

    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    scales = np.linalg.svd(matrix, compute_uv=False)
    if not (SCALES[0] < scales[2] and scales[0] < SCALES[1] and scales[0] < ANISOTROPY * scales[2]):
        raise RuntimeError(f"the template would be scaled by {scales[2]:.2f} to {scales[0]:.2f}")
    to_scan = np.eye(4)  # MNI mm -> scan mm: matrix (x - centre) + centre + translation
    to_scan[:3, :3] = matrix
    to_scan[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return np.linalg.inv(to_scan)
