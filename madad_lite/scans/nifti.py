"""NIfTI files: reading with every check, masks that must lie on their scan, the way back from slices,
writing.
"""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from madad_lite.errors import ScanError
from madad_lite.files import new_file
from madad_lite.scans.grid import Geometry


def load_volume(path: str | os.PathLike, channel: int | None = None) -> nib.Nifti1Image:
    """A checked 3-D float32 volume. `channel` picks one volume of a 4-D file. ScanError for whatever cannot
    be used.
    """
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
        raise ScanError(
            f"{path}: holds NaN or infinite values; repair them (say with numpy.nan_to_num), save it again"
        )
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise ScanError(f"{path}: its affine has no volume, so that nothing can be placed in space")
    return nib.Nifti1Image(data, image.affine)


def resample(data: np.ndarray, voxel: np.ndarray, shape: tuple[int, ...], order: int = 1) -> np.ndarray:
    """data at the places that `voxel` (4, 4) maps the target's voxels to; 0 outside."""
    return ndimage.affine_transform(data, voxel[:3, :3], voxel[:3, 3], shape, order=order)


def load_mask(path: str | os.PathLike, name: str, scan: nib.Nifti1Image) -> np.ndarray:
    mask = load_volume(path)
    if mask.shape != scan.shape:
        raise ScanError(f"{path}: the mask's shape {mask.shape} is not the shape {scan.shape} of {name}")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(scan.shape) - 1)
    apart = nib.affines.apply_affine(mask.affine, corners) - nib.affines.apply_affine(scan.affine, corners)
    if (
        distance := np.linalg.norm(apart, axis=1).max()
    ) > 2:  # a mirrored mask fits as well, and would be wrong
        raise ScanError(
            f"{path}: the mask lies up to {distance:.0f} mm away from {name}; save it with the scan's own affine"
        )
    return np.asarray(mask.dataobj) > 0


def return_to_scan(slices: np.ndarray, geometry: Geometry, order: int = 1) -> nib.Nifti1Image:
    """Slices (n, H, W) on the scan's own grid, float32, with the scan's exact affine; 0 outside the kept
    slices.
    """
    slices = np.asarray(slices, dtype=np.float32)
    if slices.shape != (len(geometry.slice_index), geometry.grid.size, geometry.grid.size):
        raise ValueError(
            f"slices {slices.shape} do not fit the {len(geometry.slice_index)} slices of the scan's geometry"
        )
    stack = np.zeros(geometry.grid.shape[::-1], np.float32)
    stack[list(geometry.slice_index)] = slices
    volume = stack[:, ::-1].transpose(2, 1, 0)
    to_grid = np.linalg.inv(geometry.grid.affine) @ geometry.to_mni @ geometry.scan_affine
    result = nib.Nifti1Image(
        resample(volume, to_grid, tuple(geometry.scan_shape), order), geometry.scan_affine
    )
    result.header.set_xyzt_units("mm")
    return result


def save_nifti(image: nib.Nifti1Image, path: str | os.PathLike, force: bool = False) -> None:
    """Write a NIfTI file, whole or not at all. ScanError when it exists, unless `force`."""
    path = Path(path)
    if path.exists() and not force:
        raise ScanError(f"{path}: exists already; choose another name, or force to overwrite it")
    with new_file(path) as part:
        nib.save(image, part)
