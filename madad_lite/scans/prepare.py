"""From a scan to its slices: brain, registration to MNI152, normalisation, cutting."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from madad_lite.errors import ScanError
from madad_lite.scans.grid import Geometry, Grid, PreparedScan
from madad_lite.scans.nifti import load_mask, load_volume, resample
from madad_lite.scans.registration import register_to_mni, smoothed, template

ALREADY_THERE = 0.9  # Dice of the brain masks above which a scan counts as lying in MNI space already
REGISTERED = (
    0.6  # Dice below which a registration has failed; good ones reach 0.9, a scan that is cut off 0.8
)
LARGEST_BRAIN_ML = 2500  # more than that inside the background's edge is a head, not a stripped brain
SMALLEST_BRAIN_ML = 100


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected component, holes filled: specks go."""
    parts, n = ndimage.label(mask)
    if n > 1:
        mask = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return ndimage.binary_fill_holes(mask)


def _stripped_brain(data: np.ndarray, affine: np.ndarray) -> np.ndarray | None:
    """Where a constant background ends; None for a scan that still has its skull."""
    values, counts = np.unique(data[np.ix_(*[[0, -1]] * 3)], return_counts=True)
    away = np.abs(data - values[counts.argmax()])
    inside = away > 1e-3 * np.percentile(
        away, 99
    )  # earlier interpolation may have left ripples in the background
    if inside.mean() > 0.9:  # no constant background: air with noise
        return None
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    if inside.sum() * voxel_ml < SMALLEST_BRAIN_ML:
        return inside
    mask = np.zeros_like(inside)
    box = _box(inside, margin=0)
    mask[box] = _largest_part(inside[box])
    return None if mask.sum() * voxel_ml > LARGEST_BRAIN_ML else mask


def _box(mask: np.ndarray, margin: int = 4) -> tuple[slice, ...]:
    """The mask's bounding box, `margin` voxels wider, to compute on less."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(slice(max(0, s.start - margin), s.stop + margin) for s in box)


def mask_overlap(brain: np.ndarray, affine: np.ndarray, to_mni: np.ndarray, grid: Grid = Grid()) -> float:
    """Dice coefficient of a scan's brain mask with the template's, on the grid: the default one holds the
    whole brain.
    """
    reference = template("brain")
    theirs = (
        resample(np.asarray(reference.dataobj), np.linalg.inv(reference.affine) @ grid.affine, grid.shape)
        > 0.5
    )
    ours = resample(brain.astype(np.float32), np.linalg.inv(to_mni @ affine) @ grid.affine, grid.shape) > 0.5
    return float(2 * (theirs & ours).sum() / max(1, theirs.sum() + ours.sum()))


def _to_slices(volume: np.ndarray) -> np.ndarray:
    """(x, y, z) RAS -> (z, rows from anterior to posterior, columns from left to right)."""
    return np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1])


def _register(path: Path, scan: nib.Nifti1Image, mask: np.ndarray | None) -> np.ndarray:
    try:
        to_mni = register_to_mni(scan, mask)
        if mask is not None and (overlap := mask_overlap(mask, scan.affine, to_mni)) < REGISTERED:
            raise RuntimeError(f"the brains overlap by a Dice of {overlap:.2f} only")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ScanError(
            f"{path}: cannot be registered to MNI152 ({reason}); register it by hand and use register=False"
        ) from None
    return to_mni


def prepare_volume(
    image: str | os.PathLike,
    *,
    brain: str | os.PathLike | None = None,
    lesion: str | os.PathLike | None = None,
    channel: int | None = None,
    grid: Grid = Grid(),
    register: bool | str = "auto",
    min_brain: float = 0.05,
) -> PreparedScan:
    """A scan's slices: registered to MNI152, stripped, normalised, cut.

    brain: a mask file, any value above 0. Without one the brain is where a constant background ends; a scan
        with its skull gets the template's brain after registration.
    register: True; False (the scan's affine is trusted to be MNI152 already); "auto": only where the brain
        mask does not yet overlap the template's with a Dice of at least 0.9.
    lesion: a mask file, any value above 0.  channel: which volume of a 4-D file.
    min_brain: slices with a smaller share of brain pixels are left out.
    ScanError, one line that names the file, for whatever cannot be used.

    Intensities: x = clip(v / median - 1, -1, 1) with the median inside the brain, so that a lesion of any
    size or brightness hardly moves the scale. Scans with negative values inside the brain (z-scored ones) are
    first shifted by their 0.5 percentile, where that is negative.
    """
    if register not in (True, False, "auto"):
        raise ValueError(f'register is True, False or "auto", not {register!r}')
    path = Path(image)
    scan = load_volume(path, channel)
    data, affine = np.asarray(scan.dataobj), scan.affine
    if data.min() == data.max():
        raise ScanError(f"{path}: all its voxels have the same value")
    mask = load_mask(brain, path.name, scan) if brain is not None else _stripped_brain(data, affine)
    lesions = None if lesion is None else load_mask(lesion, path.name, scan)
    if mask is not None and mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000 < SMALLEST_BRAIN_ML:
        raise ScanError(
            f"{path}: no brain found in it (less than {SMALLEST_BRAIN_ML} mL inside the mask or the background)"
        )
    to_mni = np.eye(4)
    if register == "auto":
        register = mask is None or mask_overlap(mask, affine, to_mni) < ALREADY_THERE
    if register:
        to_mni = _register(path, scan, mask)
    if mask is None:
        reference = template("brain")
        to_template = np.linalg.inv(reference.affine) @ to_mni @ affine
        mask = resample(np.asarray(reference.dataobj), to_template, data.shape) > 0.5
        if not mask.any():
            raise ScanError(f"{path}: no brain found in it; give a brain mask")
    # under the 0.5 percentile: a few negative voxels from earlier interpolation do not make a z-scored scan
    offset = min(0.0, float(np.percentile(data[mask], 0.5)))
    median = float(np.median(data[mask])) - offset
    if median <= 0:
        raise ScanError(f"{path}: no brain found in it (the median inside the mask is not above 0)")
    box = _box(mask)
    corner = affine @ nib.affines.from_matvec(
        np.eye(3), [s.start for s in box]
    )  # the box's voxels -> scan mm
    values = np.where(mask[box], np.clip((data[box] - offset) / median, 0, 2), 0)
    # cubic, because linear interpolation takes a third of the finest detail from a scan at the grid's own
    # resolution
    pixels = resample(
        smoothed(values, affine, grid.spacing), np.linalg.inv(to_mni @ corner) @ grid.affine, grid.shape, 3
    )
    to_scan = np.linalg.inv(to_mni @ affine) @ grid.affine  # grid voxel -> scan voxel
    inside = _to_slices(resample(mask.astype(np.float32), to_scan, grid.shape) > 0.5)
    kept = np.flatnonzero(inside.mean((1, 2)) >= min_brain)
    if not len(kept):
        raise ScanError(
            f"{path}: no slices left: no brain inside the grid; is the scan in MNI152 space? (register=True)"
        )
    slices = np.where(inside, np.clip(_to_slices(pixels) - 1, -1, 1), -1).astype(np.float32)
    if lesions is not None:
        lesions = _to_slices(resample(lesions.astype(np.float32), to_scan, grid.shape) > 0.5)[kept]
    geometry = Geometry(scan.shape, affine, to_mni, grid, tuple(int(k) for k in kept), (offset, median))
    return PreparedScan(slices[kept], inside[kept], lesions, geometry)
