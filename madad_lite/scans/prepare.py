"""From a scan to its slices: brain, registration to MNI152, normalisation, cutting."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np

from madad_lite.errors import ScanError
from madad_lite.scans.bias import without_bias
from madad_lite.scans.brain import (
    LARGEST_GIVEN_ML,
    LARGEST_ML,
    SMALLEST_ML,
    SMALLEST_PART_ML,
    box_of,
    find_brain,
    template_brain,
    volume_ml,
    whole_brain_ml,
)
from madad_lite.scans.grid import Geometry, Grid, PreparedScan
from madad_lite.scans.nifti import check_intensities, load_mask, load_volume, resample
from madad_lite.scans.registration import register_to_mni, smoothed, template
from madad_lite.scans.tissues import check_normalisation, normalised

ALREADY_THERE = 0.9  # Dice of the brain masks above which a scan counts as lying in MNI space already
REGISTERED = (
    0.6  # Dice below which a registration has failed; good ones reach 0.9, a scan that is cut off 0.8
)


@lru_cache(maxsize=2)
def _template_brain_on(grid: Grid) -> np.ndarray:
    """The template's brain on a grid, bool."""
    reference = template("brain")
    voxel = np.linalg.inv(reference.affine) @ grid.affine
    return resample(np.asarray(reference.dataobj), voxel, grid.shape) > 0.5


def mask_overlap(brain: np.ndarray, affine: np.ndarray, to_mni: np.ndarray, grid: Grid = Grid()) -> float:
    """Dice coefficient of a scan's brain mask with the template's, on the grid: the default one holds the
    whole brain.
    """
    theirs = _template_brain_on(grid)
    ours = resample(brain, np.linalg.inv(to_mni @ affine) @ grid.affine, grid.shape) > 0.5
    return float(2 * (theirs & ours).sum() / max(1, theirs.sum() + ours.sum()))


def _to_slices(volume: np.ndarray) -> np.ndarray:
    """(x, y, z) RAS -> (z, rows from anterior to posterior, columns from left to right)."""
    return np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1])


def _register(path: Path, scan: nib.Nifti1Image, mask: np.ndarray | None) -> np.ndarray:
    """(4, 4) scan mm -> MNI mm, tested. mask: None for a whole head."""
    try:
        to_mni = register_to_mni(scan, mask)
        if mask is None:  # the template's brain has to lie where the head is
            data = np.asarray(scan.dataobj)
            mask = template_brain(scan.shape, scan.affine, to_mni) & (data > 0.1 * np.percentile(data, 99))
        if (overlap := mask_overlap(mask, scan.affine, to_mni)) < REGISTERED:
            raise RuntimeError(f"the brains overlap by a Dice of {overlap:.2f} only")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ScanError(
            f"{path}: cannot be registered to MNI152 ({reason}); register it by hand and use register=False "
            "(--register no)"
        ) from None
    return to_mni


def prepare_volume(
    image: str | os.PathLike,
    *,
    brain: str | os.PathLike | None = "auto",
    lesion: str | os.PathLike | None = None,
    channel: int | None = None,
    grid: Grid = Grid(),
    register: bool | str = "auto",
    min_brain: float = 0.05,
    bias_correction: bool = False,
    normalise: str = "median",
    contrast: str = "t1",
    max_voxels: int | None = None,
) -> PreparedScan:
    """A scan's slices: stripped, registered to MNI152, normalised, cut.

    brain: a mask file, any value above 0; "deepbet", its network; "template", the template's brain after
        registration; "auto" (and None): where a constant background ends in a stripped scan, else deepbet, or
        without it, with a warning, the template. `PreparedScan.brain_source` says which it was.
    register: True; False (the scan's affine is trusted to be MNI152 already); "auto": only where the brain
        mask does not yet overlap the template's with a Dice of at least 0.9.
    lesion: a mask file, any value above 0.  channel: which volume of a 4-D file.
    min_brain: slices with a smaller share of brain pixels are left out.
    bias_correction: even out slow changes of brightness first (`bias.without_bias`, about two seconds).
    normalise: "median", or "tissue": CSF, grey and white matter of a `contrast` at fixed places (tissues.PLACES).
    max_voxels: as of `nifti.load_volume`.
    ScanError, one line that names the file, for whatever cannot be used: also where registration makes the
    whole brain smaller than 0.8 or larger than 2.1 litres (2.5 with a mask that was given).

    Intensities: x = clip(v / median - 1, -1, 1) with the median inside the brain, so that a lesion of any
    size or brightness hardly moves the scale. Scans with negative values inside the brain (z-scored ones) are
    first shifted by their 0.5 percentile, where that is negative.
    """
    if register not in (True, False, "auto"):
        raise ValueError(f'register is True, False or "auto", not {register!r}')
    check_normalisation(normalise, contrast)
    path = Path(image)
    scan = load_volume(path, channel, max_voxels=max_voxels)
    data, affine = np.asarray(scan.dataobj), scan.affine
    check_intensities(path, data)
    lesions = None if lesion is None else load_mask(lesion, path.name, scan, max_voxels=max_voxels)
    mask, source = find_brain(path, scan, brain or "auto", max_voxels=max_voxels)
    if mask is not None and volume_ml(mask, affine) < SMALLEST_PART_ML:
        raise ScanError(
            f"{path}: no brain found in it (less than {SMALLEST_PART_ML} mL by {source}); give a brain mask"
        )
    to_mni = np.eye(4)
    if register == "auto":
        register = mask is None or mask_overlap(mask, affine, to_mni) < ALREADY_THERE
    if register:
        to_mni = _register(path, scan, mask)
        largest = LARGEST_GIVEN_ML if source == "file" else LARGEST_ML
        if not SMALLEST_ML <= (whole := whole_brain_ml(to_mni)) <= largest:
            raise ScanError(
                f"{path}: its brain would have {whole / 1000:.2f} litres, and brains have "
                f"{SMALLEST_ML / 1000:.1f} to {largest / 1000:.1f}: what was taken for it ({source}) is not "
                "the brain alone; give a mask of it (brain=, --brain)"
            )
    if mask is None:
        mask = template_brain(data.shape, affine, to_mni)
        if not mask.any():
            raise ScanError(f"{path}: no brain found in it; give a brain mask")
    if bias_correction:
        data = without_bias(data, mask, affine)
    # under the 0.5 percentile: a few negative voxels from earlier interpolation do not make a z-scored scan
    offset = min(0.0, float(np.percentile(data[mask], 0.5)))
    median = float(np.median(data[mask])) - offset
    if median <= 0:
        raise ScanError(f"{path}: no brain found in it (the median inside the mask is not above 0)")
    box = box_of(mask)
    corner = affine @ nib.affines.from_matvec(
        np.eye(3), [s.start for s in box]
    )  # the box's voxels -> scan mm
    # mostly a view: a scan of 0.5 mm is large, and from here on nobody needs it as it was
    values = np.require(data[box], requirements="W")
    values -= offset
    values /= median
    np.clip(values, 0, 2, out=values)
    values *= mask[box]
    shape = scan.shape
    # cubic, because linear interpolation takes a third of the finest detail from a scan at the grid's own
    # resolution
    pixels = resample(
        smoothed(values, affine, grid.spacing, out=values),
        np.linalg.inv(to_mni @ corner) @ grid.affine,
        grid.shape,
        3,
    )
    to_scan = np.linalg.inv(to_mni @ affine) @ grid.affine  # grid voxel -> scan voxel
    inside = _to_slices(resample(mask, to_scan, grid.shape) > 0.5)
    kept = np.flatnonzero(inside.mean((1, 2)) >= min_brain)
    if not len(kept):
        raise ScanError(
            f"{path}: no slices left: no brain inside the grid; is the scan in MNI152 "
            "space? register=True (--register yes)"
        )
    slices = np.where(inside, np.clip(_to_slices(pixels) - 1, -1, 1), -1).astype(np.float32)
    if lesions is not None:
        lesions = _to_slices(resample(lesions, to_scan, grid.shape) > 0.5)[kept]
    geometry = Geometry(shape, affine, to_mni, grid, tuple(int(k) for k in kept), (offset, median))
    prepared = PreparedScan(
        slices[kept], inside[kept], lesions, geometry, source, volume_ml(mask, affine), mask
    )
    return normalised(prepared, normalise, contrast, path)
