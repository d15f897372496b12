"""NIfTI in and out: a scan's axial slices on one grid in MNI152 space, and maps back onto the scan's own grid.

Coordinates are carried by affines from end to end, so that orientation and voxel size need no special cases:

    scan voxel --scan_affine--> scan mm --to_mni--> MNI152 mm --inverse of grid.affine--> grid voxel

and each direction interpolates once. Slices: (n, H, W), inferior to superior; rows from anterior to posterior, columns from
the patient's left to right; float32 in [-1, 1], background exactly -1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from madad_lite.registration import register_to_mni, smoothed, template

ALREADY_THERE = 0.9  # Dice of the brain masks above which a scan counts as lying in MNI space already
REGISTERED = 0.6  # Dice below which a registration has failed; good ones reach 0.9, a scan that is cut off 0.8
LARGEST_BRAIN_ML = 2500  # more than that inside the background's edge is a head, not a stripped brain
SMALLEST_BRAIN_ML = 100


class ScanError(ValueError):
    """A file that cannot be used. The message is one line that begins with the file's name."""


@dataclass(frozen=True)
class Grid:
    """The grid of the slices, in MNI152 mm. In plane it is centred on x = 0, y = -18."""

    spacing: float = 2.0  # mm
    size: int = 96  # pixels along both sides of a slice
    z_range: tuple[float, float] = (-62.0, 80.0)  # mm, of the lowest and the highest slice
    z_spacing: float | None = None  # mm from slice to slice; None: as in plane

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size, self.size, int((self.z_range[1] - self.z_range[0]) / self.step + 1e-6) + 1

    @property
    def step(self) -> float:
        """mm from slice to slice."""
        return self.z_spacing or self.spacing

    @property
    def affine(self) -> np.ndarray:
        """(4, 4): voxel of the RAS grid -> MNI mm."""
        affine = np.diag([self.spacing, self.spacing, self.step, 1.0])
        half = (self.size - 1) / 2 * self.spacing
        affine[:3, 3] = -half, -18.0 - half, self.z_range[0]
        return affine

    def to_dict(self) -> dict:
        content = {"spacing": self.spacing, "size": self.size, "z_range": list(self.z_range)}
        return content if self.z_spacing is None else content | {"z_spacing": self.z_spacing}

    @classmethod
    def from_dict(cls, values: dict) -> Grid:
        z_range = tuple(float(z) for z in values["z_range"])
        return cls(float(values["spacing"]), int(values["size"]), z_range, values.get("z_spacing"))


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Geometry:
    """Everything that is needed to go back from slices to the scan. As JSON (`to_dict`) it keeps every bit."""

    scan_shape: tuple[int, int, int]
    scan_affine: np.ndarray  # (4, 4) scan voxel -> scan mm
    to_mni: np.ndarray  # (4, 4) scan mm -> MNI mm
    grid: Grid
    slice_index: tuple[int, ...]  # z of each kept slice in the grid
    intensity: tuple[float, float] = (0.0, 1.0)  # (offset, median): value = offset + median * (x + 1)

    def to_intensity(self, slices: np.ndarray) -> np.ndarray:
        """Slices in [-1, 1] in the scan's own intensities."""
        offset, median = self.intensity
        return offset + median * (np.asarray(slices) + 1)

    def to_dict(self) -> dict:
        return {
            "scan_shape": [int(n) for n in self.scan_shape], "scan_affine": np.asarray(self.scan_affine).tolist(),
            "to_mni": np.asarray(self.to_mni).tolist(), "grid": self.grid.to_dict(),
            "slice_index": [int(k) for k in self.slice_index], "intensity": [float(v) for v in self.intensity],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict) -> Geometry:
        return cls(
            tuple(values["scan_shape"]), np.array(values["scan_affine"]), np.array(values["to_mni"]),
            Grid.from_dict(values["grid"]), tuple(values["slice_index"]), tuple(values["intensity"]),
        )  # fmt: skip


@dataclass
class PreparedScan:
    """A scan's n kept slices on its grid: H = W = grid.size, from inferior to superior."""

    image: np.ndarray  # (n, H, W) float32 in [-1, 1]
    brain: np.ndarray  # (n, H, W) bool
    lesion: np.ndarray | None  # (n, H, W) bool
    geometry: Geometry


def load_volume(path: str | os.PathLike, channel: int | None = None) -> nib.Nifti1Image:
    """A checked 3-D float32 volume. `channel` picks one volume of a 4-D file. ScanError for whatever cannot be used."""
    path = Path(path)
    if not path.is_file():
        raise ScanError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ScanError(f"{path}: the file is empty")
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):  # of Nifti2 too
            raise ScanError(f"{path}: is {type(image).__name__.removesuffix('Image')}, not NIfTI; convert it")
        shape = image.shape[:3] if image.shape[3:] == (1,) else image.shape
        if len(shape) == 4 and channel is None:
            raise ScanError(f"{path}: holds {shape[3]} volumes where one is meant; say which one (--channel)")
        if len(shape) == 4 and not 0 <= channel < shape[3]:
            raise ScanError(f"{path}: has no channel {channel}, only 0 to {shape[3] - 1}")
        if len(shape) not in (3, 4) or min(shape[:3]) < 2:
            raise ScanError(f"{path}: must be a 3-D volume, its shape is {tuple(shape)}")
        if image.get_data_dtype().kind not in "iuf":
            raise ScanError(f"{path}: must hold one real number a voxel, holds {image.get_data_dtype()}")
        # indexing the proxy applies the header's scaling and reads no more than is asked for
        data = image.dataobj[..., channel] if len(shape) == 4 else np.asarray(image.dataobj).reshape(shape)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            data = np.asarray(data, dtype=np.float32)
    except ScanError:
        raise
    except Exception as error:  # nibabel, gzip and zlib each have their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ScanError(f"{path}: cannot be read as NIfTI, not such a file or truncated ({reason})") from None
    if not np.isfinite(data).all():
        raise ScanError(f"{path}: holds NaN or infinite values; repair them (say with numpy.nan_to_num), save it again")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise ScanError(f"{path}: its affine has no volume, so that nothing can be placed in space")
    return nib.Nifti1Image(data, image.affine)


def _resample(data: np.ndarray, voxel: np.ndarray, shape: tuple[int, ...], order: int = 1) -> np.ndarray:
    """data at the places that `voxel` (4, 4) maps the target's voxels to; 0 outside."""
    return ndimage.affine_transform(data, voxel[:3, :3], voxel[:3, 3], shape, order=order)


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
    inside = away > 1e-3 * np.percentile(away, 99)  # earlier interpolation may have left ripples in the background
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
    """Dice coefficient of a scan's brain mask with the template's, on the grid: the default one holds the whole brain."""
    reference = template("brain")
    theirs = _resample(np.asarray(reference.dataobj), np.linalg.inv(reference.affine) @ grid.affine, grid.shape) > 0.5
    ours = _resample(brain.astype(np.float32), np.linalg.inv(to_mni @ affine) @ grid.affine, grid.shape) > 0.5
    return float(2 * (theirs & ours).sum() / max(1, theirs.sum() + ours.sum()))


def _load_mask(path: str | os.PathLike, name: str, scan: nib.Nifti1Image) -> np.ndarray:
    mask = load_volume(path)
    if mask.shape != scan.shape:
        raise ScanError(f"{path}: the mask's shape {mask.shape} is not the shape {scan.shape} of {name}")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(scan.shape) - 1)
    apart = nib.affines.apply_affine(mask.affine, corners) - nib.affines.apply_affine(scan.affine, corners)
    if (distance := np.linalg.norm(apart, axis=1).max()) > 2:  # a mirrored mask fits as well, and would be wrong
        raise ScanError(
            f"{path}: the mask lies up to {distance:.0f} mm away from {name}; save it with the scan's own affine"
        )
    return np.asarray(mask.dataobj) > 0


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

    brain: a mask file, any value above 0. Without one the brain is where a constant background ends; a scan with its
        skull gets the template's brain after registration.
    register: True; False (the scan's affine is trusted to be MNI152 already); "auto": only where the brain mask does not yet
        overlap the template's with a Dice of at least 0.9.
    lesion: a mask file, any value above 0.  channel: which volume of a 4-D file.
    min_brain: slices with a smaller share of brain pixels are left out.
    ScanError, one line that names the file, for whatever cannot be used.

    Intensities: x = clip(v / median - 1, -1, 1) with the median inside the brain, so that a lesion of any size or brightness
    hardly moves the scale. Scans with negative values inside the brain (z-scored ones) are first shifted by their 0.5
    percentile, where that is negative.
    """
    if register not in (True, False, "auto"):
        raise ValueError(f'register is True, False or "auto", not {register!r}')
    path = Path(image)
    scan = load_volume(path, channel)
    data, affine = np.asarray(scan.dataobj), scan.affine
    if data.min() == data.max():
        raise ScanError(f"{path}: all its voxels have the same value")
    mask = _load_mask(brain, path.name, scan) if brain is not None else _stripped_brain(data, affine)
    lesions = None if lesion is None else _load_mask(lesion, path.name, scan)
    if mask is not None and mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000 < SMALLEST_BRAIN_ML:
        raise ScanError(f"{path}: no brain found in it (less than {SMALLEST_BRAIN_ML} mL inside the mask or the background)")
    to_mni = np.eye(4)
    if register == "auto":
        register = mask is None or mask_overlap(mask, affine, to_mni) < ALREADY_THERE
    if register:
        to_mni = _register(path, scan, mask)
    if mask is None:
        reference = template("brain")
        to_template = np.linalg.inv(reference.affine) @ to_mni @ affine
        mask = _resample(np.asarray(reference.dataobj), to_template, data.shape) > 0.5
        if not mask.any():
            raise ScanError(f"{path}: no brain found in it; give a brain mask")
    # under the 0.5 percentile: a few negative voxels from earlier interpolation do not make a z-scored scan
    offset = min(0.0, float(np.percentile(data[mask], 0.5)))
    median = float(np.median(data[mask])) - offset
    if median <= 0:
        raise ScanError(f"{path}: no brain found in it (the median inside the mask is not above 0)")
    box = _box(mask)
    corner = affine @ nib.affines.from_matvec(np.eye(3), [s.start for s in box])  # the box's voxels -> scan mm
    values = np.where(mask[box], np.clip((data[box] - offset) / median, 0, 2), 0)
    # cubic, because linear interpolation takes a third of the finest detail from a scan at the grid's own resolution
    pixels = _resample(smoothed(values, affine, grid.spacing), np.linalg.inv(to_mni @ corner) @ grid.affine, grid.shape, 3)
    to_scan = np.linalg.inv(to_mni @ affine) @ grid.affine  # grid voxel -> scan voxel
    inside = _to_slices(_resample(mask.astype(np.float32), to_scan, grid.shape) > 0.5)
    kept = np.flatnonzero(inside.mean((1, 2)) >= min_brain)
    if not len(kept):
        raise ScanError(f"{path}: no slices left: no brain inside the grid; is the scan in MNI152 space? (register=True)")
    slices = np.where(inside, np.clip(_to_slices(pixels) - 1, -1, 1), -1).astype(np.float32)
    if lesions is not None:
        lesions = _to_slices(_resample(lesions.astype(np.float32), to_scan, grid.shape) > 0.5)[kept]
    geometry = Geometry(scan.shape, affine, to_mni, grid, tuple(int(k) for k in kept), (offset, median))
    return PreparedScan(slices[kept], inside[kept], lesions, geometry)


def return_to_scan(slices: np.ndarray, geometry: Geometry, order: int = 1) -> nib.Nifti1Image:
    """Slices (n, H, W) on the scan's own grid, float32, with the scan's exact affine; 0 outside the kept slices."""
    slices = np.asarray(slices, dtype=np.float32)
    if slices.shape != (len(geometry.slice_index), geometry.grid.size, geometry.grid.size):
        raise ValueError(f"slices {slices.shape} do not fit the {len(geometry.slice_index)} slices of the scan's geometry")
    stack = np.zeros(geometry.grid.shape[::-1], np.float32)
    stack[list(geometry.slice_index)] = slices
    volume = stack[:, ::-1].transpose(2, 1, 0)
    to_grid = np.linalg.inv(geometry.grid.affine) @ geometry.to_mni @ geometry.scan_affine
    result = nib.Nifti1Image(_resample(volume, to_grid, tuple(geometry.scan_shape), order), geometry.scan_affine)
    result.header.set_xyzt_units("mm")
    return result


def save_nifti(image: nib.Nifti1Image, path: str | os.PathLike, force: bool = False) -> None:
    """Write a NIfTI file, whole or not at all. ScanError when it exists, unless `force`."""
    path = Path(path)
    if path.exists() and not force:
        raise ScanError(f"{path}: exists already; choose another name, or force to overwrite it")
    part = path.with_name(f".part-{path.name}")  # the ending tells nibabel how to write
    try:
        nib.save(image, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
