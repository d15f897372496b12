"""Where the brain is in a scan: inside a stripped scan's background, by deepbet's network, or where the template's
brain lies after registration.

deepbet (Fisch et al. 2024, doi 10.1016/j.compbiomed.2024.108845; extra `prep`) is imported only when a head has to
be stripped. Its wheel carries the weights: nothing is downloaded.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from madad_lite.errors import ScanError
from madad_lite.scans.nifti import load_mask, resample
from madad_lite.scans.registration import template

WAYS = ("auto", "template", "deepbet")
LARGEST_ML, SMALLEST_ML = 2100, 800  # of a whole brain; 1.0 to 1.9 L was seen where all went well
LARGEST_GIVEN_ML = (
    2500  # where a mask was given: 2.14 L was seen with a good one, of a large simulated subject
)
SMALLEST_PART_ML = 100  # of the brain that is in the scan
SKULL = (
    0.85  # `skull_valley`: 0.26 to 0.77 in heads of brain size, 0.90 and more in stripped T1, T2 and FLAIR
)


def box_of(mask: np.ndarray, margin: int = 4) -> tuple[slice, ...]:
    """The mask's bounding box, `margin` voxels wider, to compute on less."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(slice(max(0, s.start - margin), s.stop + margin) for s in box)


def volume_ml(mask: np.ndarray, affine: np.ndarray) -> float:
    return float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected component, holes filled: specks go."""
    parts, n = ndimage.label(mask)
    if n > 1:
        sizes = sum(np.bincount(plane.ravel(), minlength=n + 1) for plane in parts)
        mask = parts == 1 + sizes[1:].argmax()
    return ndimage.binary_fill_holes(mask)


def skull_valley(data: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> float:
    """How dark the skull is: below 1 where shells of the mask get darker inwards, and brighter again.

    Medians of shells 2 mm thick, to 26 mm below the mask's surface, above the darkest values. In a head the scalp
    is bright, the skull behind it dark, then comes the brain. From a stripped brain's rim to its inside they
    mostly rise (T1, FLAIR) or fall (T2). Returns the lowest ratio of a shell to the brightest one outside of it,
    the outermost left aside, or inside of it where that is darker.
    """
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    steps = [max(1, round(2 / v)) for v in voxel]  # 2 mm will do
    part = tuple(slice(s.start, s.stop, n) for s, n in zip(box_of(mask, margin=2 * max(steps)), steps))
    data, mask = data[part], mask[part]
    inside = np.pad(mask, 1, mode="edge")  # where the scan ends is no surface
    depth = ndimage.distance_transform_edt(inside, voxel * steps)[1:-1, 1:-1, 1:-1][mask]
    values = data[mask] - np.percentile(data[mask], 0.5)
    shells = [values[(depth > d) & (depth <= d + 2)] for d in range(0, 26, 2)]
    profile = np.array([np.median(s) for s in shells if len(s)])
    ratios = [
        profile[i] / max(1e-9, min(profile[1:i].max(), profile[i + 1 :].max()))
        for i in range(2, len(profile) - 1)
    ]
    return float(min(ratios, default=1.0))


def stripped_brain(data: np.ndarray, affine: np.ndarray) -> np.ndarray | None:
    """Where a constant background ends, bool; None for a scan that still has its skull: no such background, more
    than a brain inside of it, or a skull (`skull_valley`).
    """
    values, counts = np.unique(data[np.ix_(*[[0, -1]] * 3)], return_counts=True)
    background = values[counts.argmax()]
    # in place, because a scan of 0.5 mm is large; `away` is in another order after the percentile
    away = data - background
    np.abs(away, out=away)
    most = np.percentile(away.ravel(order="K"), 99, overwrite_input=True)
    np.abs(np.subtract(data, background, out=away), out=away)
    # earlier interpolation may have left ripples in the background
    inside = away > 1e-3 * most
    del away
    if inside.mean() > 0.9:  # no constant background: air with noise
        return None
    if volume_ml(inside, affine) < SMALLEST_PART_ML:
        return inside
    mask = np.zeros_like(inside)
    box = box_of(inside, margin=0)
    mask[box] = _largest_part(inside[box])
    if volume_ml(mask, affine) > LARGEST_ML or skull_valley(data, mask, affine) < SKULL:
        return None
    return mask


def deepbet_brain(path: str | os.PathLike, scan: nib.Nifti1Image) -> np.ndarray:
    """The brain mask, bool, that deepbet's network finds in a scan with its skull, on the scan's grid.

    On the CPU in as many threads as torch has, about ten seconds. path: what errors name. ImportError without
    deepbet; ScanError where it finds no brain.
    """
    try:
        from deepbet import BrainExtraction
    except ImportError:
        raise ImportError(
            'brain extraction needs deepbet: pip install "madad-lite[prep]"; or use the template\'s brain '
            '(brain="template", --brain template) or a mask'
        ) from None
    try:
        _, mask, _ = BrainExtraction(no_gpu=True).run(scan)  # a new one each time: it remembers its last scan
    except Exception as error:  # it asserts, and torch and numpy raise their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ScanError(
            f"{path}: deepbet finds no brain in it ({reason}); give a mask of its brain"
        ) from None
    return np.asarray(mask.dataobj) > 0


def template_brain(shape: tuple[int, ...], affine: np.ndarray, to_mni: np.ndarray) -> np.ndarray:
    """The template's brain, bool, in a scan of this shape and affine. to_mni: (4, 4), scan mm -> MNI mm."""
    reference = template("brain")
    to_template = np.linalg.inv(reference.affine) @ to_mni @ affine
    return resample(np.asarray(reference.dataobj), to_template, shape) > 0.5


def whole_brain_ml(to_mni: np.ndarray) -> float:
    """Volume of the whole brain by its registration, also where the scan holds a part of it: the template's, by
    how much a registration (4, 4), scan mm -> MNI mm, enlarges.
    """
    reference = template("brain")
    return volume_ml(np.asarray(reference.dataobj), reference.affine) / abs(np.linalg.det(to_mni[:3, :3]))


def find_brain(
    path: str | os.PathLike,
    scan: nib.Nifti1Image,
    brain: str | os.PathLike = "auto",
    max_voxels: int | None = None,
) -> tuple[np.ndarray | None, str]:
    """(bool mask on the scan's grid, how it was found): "file", "background", "deepbet", or "template" with no
    mask: the template's brain, once the scan is registered.

    brain: a mask file, any value above 0; "deepbet"; "template"; "auto": the background of a stripped scan, else
    deepbet, else, with a warning, the template. A file of such a name is meant by "./auto".
    """
    path = Path(path)
    if brain not in WAYS:
        return load_mask(brain, path.name, scan, max_voxels), "file"
    if brain == "auto":
        mask = stripped_brain(np.asarray(scan.dataobj), scan.affine)
        if mask is not None:
            return mask, "background"
    if brain == "template":
        return None, "template"
    try:
        return deepbet_brain(path, scan), "deepbet"
    except ImportError:
        if brain == "deepbet":
            raise
    logging.getLogger(__name__).warning(
        '%s: has its skull, and without deepbet (pip install "madad-lite[prep]") it gets the template\'s brain, '
        "which fits T1 heads only",
        path,
    )
    return None, "template"
