"""NIfTI files: reading with every check, masks that must lie on their scan, the way back from slices,
writing.
"""

from __future__ import annotations

import gzip
import math
import os
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from nibabel.volumeutils import apply_read_scaling
from scipy import ndimage

from madad_lite.errors import ScanError
from madad_lite.files import new_file
from madad_lite.scans.dicom import is_dicom
from madad_lite.scans.grid import Geometry, PreparedScan

LARGEST_VOXELS = 1000**3
BYTES_A_VOXEL = 24  # what reading and preparing a scan needs at its most
LARGEST_VOXEL_MM = 15
FIELD_OF_VIEW_MM = 50, 1000
SPACES = range(6)  # what a qform's or sform's code may be
OUTLIER = 1e4  # a voxel of so many times the 99.9th percentile is no measurement; vessels reach 10
FEWEST_VALUES = 6  # that a scan has; masks and segmentations have fewer


def _check_file(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ScanError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be read
        raise ScanError(f"{path}: cannot be opened ({getattr(error, 'strerror', error)})") from None
    if stat.S_ISDIR(mode):
        raise ScanError(f"{path}: is a folder; give a NIfTI file")
    if not stat.S_ISREG(mode):
        raise ScanError(f"{path}: is not a regular file but a pipe or device; give a NIfTI file")
    if os.path.getsize(path) == 0:
        raise ScanError(f"{path}: the file is empty")
    if is_dicom(path):
        raise ScanError(f"{path}: is a DICOM file, one of many; give their folder")


def _check_as_stored(path: Path, image: nib.Nifti1Pair) -> None:
    """What nibabel sets right without a word when it reads a header, so that the numbers would be wrong."""
    file = image.file_map.get("header", image.file_map["image"])
    with file.get_prepare_fileobj("rb") as f:
        header = type(image.header).from_fileobj(f, check=False)
    if isinstance(image, nib.Nifti1Image) and bytes(header["magic"]).startswith(b"ni"):
        raise ScanError(f"{path}: says that its voxels are in another file (.img); save both as one .nii")
    if header["sizeof_hdr"] != header.sizeof_hdr:
        raise ScanError(
            f"{path}: its header says that it is {header['sizeof_hdr']} bytes long, and it has {header.sizeof_hdr}: it "
            "is damaged; export the scan again"
        )
    for name in (
        "qform_code",
        "sform_code",
    ):  # nibabel would leave that affine out, and place the scan by another
        if int(header[name]) not in SPACES:
            raise ScanError(
                f"{path}: its {name} is {header[name]}, and NIfTI knows 0 to 5; repair the header"
            )
    if np.isinf(header["scl_slope"]):
        raise ScanError(f"{path}: its scl_slope is infinite, so that no voxel has a value; repair the header")


def _check_header(path: Path, image: nib.Nifti1Pair, channel: int | None, max_voxels: int | None) -> None:
    """Whatever can be told from the header, before its numbers are believed and memory taken."""
    if not isinstance(image, nib.Nifti1Pair):  # of Nifti2 too
        raise ScanError(f"{path}: is {type(image).__name__.removesuffix('Image')}, not NIfTI; convert it")
    _check_as_stored(path, image)
    shape = image.shape[:3] if image.shape[3:] == (1,) else image.shape
    if len(shape) == 4 and channel is None:
        raise ScanError(f"{path}: holds {shape[3]} volumes where one is meant; say which one (--channel)")
    if len(shape) == 4 and not 0 <= channel < shape[3]:
        raise ScanError(f"{path}: has no channel {channel}, only 0 to {shape[3] - 1}")
    if len(shape) not in (3, 4) or min(shape[:3]) < 2:
        raise ScanError(f"{path}: must be a 3-D volume, its shape is {tuple(shape)}")
    if image.get_data_dtype().kind not in "iuf":
        raise ScanError(f"{path}: must hold one real number a voxel, holds {image.get_data_dtype()}")
    if len(shape) == 3 and channel:
        raise ScanError(f"{path}: has no channel {channel}, it holds one volume; leave the channel out")
    voxels = math.prod(shape[:3])
    most = max_voxels or min(LARGEST_VOXELS, psutil.virtual_memory().available // BYTES_A_VOXEL)
    if voxels > most:
        raise ScanError(
            f"{path}: {voxels / 1e6:,.0f} million voxels, more than the {most / 1e6:,.0f} that are allowed here "
            "or fit into the free memory; resample it to 1 mm, or raise max_voxels"
        )
    affine = image.affine
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    # of a tilted gantry the determinant is 0.8 and more of the product of the voxel's sides
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 0.1 * voxel.prod() > 0:
        raise ScanError(f"{path}: its affine has no volume, so that nothing can be placed in space")
    sides = voxel * shape[:3]
    if voxel.max() > LARGEST_VOXEL_MM:
        raise ScanError(
            f"{path}: its voxels are {voxel.max():.4g} mm large, more than {LARGEST_VOXEL_MM} mm; is the header "
            "right, in mm?"
        )
    if sides.min() < FIELD_OF_VIEW_MM[0] or sides.max() > FIELD_OF_VIEW_MM[1]:
        raise ScanError(
            f"{path}: its field of view is {' x '.join(f'{s:.4g}' for s in sides)} mm, and no scan of a head has "
            f"less than {FIELD_OF_VIEW_MM[0]} or more than {FIELD_OF_VIEW_MM[1]}; is the header right, in mm?"
        )


def _check_content(path: Path, image: nib.Nifti1Pair) -> None:
    """Is there as much as the header says? A gzip stream is read to its end, where its checksum is, which nibabel
    never reaches; nothing of it is kept.
    """
    file = Path(image.file_map["image"].filename or path)
    promised = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    with open(file, "rb") as f:
        zipped = f.read(2) == b"\x1f\x8b"
    there = 0
    if zipped:
        with gzip.open(file) as stream:
            while there <= promised + 2**20 and (block := stream.read(2**20)):
                there += len(block)
    else:
        there = file.stat().st_size
    if there < promised:
        raise ScanError(f"{path}: truncated, it holds {there:,} of the {promised:,} bytes of its header")
    if zipped and there > promised + 2**20:
        raise ScanError(f"{path}: holds more than the {promised:,} bytes of its header; is it a NIfTI file?")


def _scaled(proxy: nib.arrayproxy.ArrayProxy) -> np.ndarray:
    """np.asarray(proxy) as float32. What nibabel would scale as a whole, in double precision, is scaled plane by
    plane: a quarter of the memory, the same numbers.
    """
    raw = proxy.get_unscaled()
    if (proxy.slope, proxy.inter) == (1, 0):
        return raw
    values = np.empty(raw.shape, np.float32, order="F")
    for k in range(raw.shape[2]):
        values[:, :, k] = apply_read_scaling(raw[:, :, k], np.asarray(proxy.slope), np.asarray(proxy.inter))
    return values


def load_volume(
    path: str | os.PathLike, channel: int | None = None, max_voxels: int | None = None
) -> nib.Nifti1Image:
    """A checked 3-D float32 volume, all of it in memory.

    channel: picks one volume of a 4-D file.  max_voxels: of that volume; None: 1000^3, or as many as fit into the
    free memory. ScanError, one line that names the file, for whatever cannot be used: no NIfTI, damaged (the
    checksum of a .nii.gz is tested), larger than that, voxels above 15 mm, sides below 5 cm or above 1 m, NaN.
    """
    path = Path(path)
    _check_file(path)
    try:
        with nib.imageglobals.LoggingOutputSuppressor():  # what is wrong is said once, by the error
            image = nib.load(path, mmap=False)  # a mapped file that is cut meanwhile would end the process
        for part in {Path(p.filename) for p in image.file_map.values() if p.filename} - {path}:  # of a pair
            _check_file(part)
        _check_header(path, image, channel, max_voxels)
        _check_content(path, image)
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite
            # indexing the proxy applies the header's scaling and reads no more than is asked for
            if len(image.shape) == 4 and image.shape[3] > 1:
                data = image.dataobj[..., channel]
            else:
                data = _scaled(image.dataobj).reshape(image.shape[:3], order="F")
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
    return nib.Nifti1Image(data, image.affine)


def check_intensities(path: Path, data: np.ndarray) -> None:
    """ScanError for what is no scan: the same value everywhere, a handful of values, or one so far from all others
    that it was never measured, as a flipped bit leaves it.
    """
    low, high = float(data.min()), float(data.max())
    if low == high:
        raise ScanError(f"{path}: all its voxels have the same value")
    step = max(1, round((data.size / 1e6) ** (1 / 3)))  # a million voxels will do
    some = np.abs(data[::step, ::step, ::step])
    if (n := len(np.unique(some))) < FEWEST_VALUES:
        raise ScanError(f"{path}: has {n} different values: a mask or a segmentation, not a scan")
    usual = float(np.percentile(some[some > 0], 99.9, method="lower")) if some.any() else 0.0
    if (largest := max(-low, high)) > OUTLIER * usual:
        raise ScanError(
            f"{path}: holds a value of {largest if largest == high else low:.4g}, and nearly all others lie within "
            f"{usual:.4g}: it is damaged; repair it (say with numpy.clip), save it again"
        )


def resample(data: np.ndarray, voxel: np.ndarray, shape: tuple[int, ...], order: int = 1) -> np.ndarray:
    """data, float32 or bool, at the places that `voxel` (4, 4) maps the target's voxels to, float32; 0 outside.

    Of an order above 1, data is float32 and is overwritten: a copy of a scan of 0.5 mm is large.
    """
    if order > 1:
        ndimage.spline_filter(data, order, output=data)
    part = dict(order=order, prefilter=False)
    return ndimage.affine_transform(data, voxel[:3, :3], voxel[:3, 3], shape, np.float32, **part)


def load_mask(
    path: str | os.PathLike, name: str, scan: nib.Nifti1Image, max_voxels: int | None = None
) -> np.ndarray:
    """A mask file of a scan, bool, any value above 0. name: the scan's, for the ScanError where they do not fit."""
    mask = load_volume(path, max_voxels=max_voxels)
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


def on_slices(mask: nib.Nifti1Image, geometry: Geometry) -> np.ndarray:
    """A mask, 0 and 1, of the scan's own grid on the kept slices: (n, H, W) bool."""
    to_scan = np.linalg.inv(geometry.to_mni @ geometry.scan_affine) @ geometry.grid.affine
    volume = resample(np.asarray(mask.dataobj).astype(bool), to_scan, geometry.grid.shape) > 0.5
    return volume.transpose(2, 1, 0)[list(geometry.slice_index), ::-1]


def brain_image(prepared: PreparedScan) -> nib.Nifti1Image:
    """The brain mask that a scan was prepared with, uint8 0/1, on the scan's own grid with its exact affine."""
    image = nib.Nifti1Image(prepared.brain_in_scan.astype(np.uint8), prepared.geometry.scan_affine)
    image.header.set_xyzt_units("mm")
    return image


def save_nifti(image: nib.Nifti1Image, path: str | os.PathLike, force: bool = False) -> None:
    """Write a NIfTI file, whole or not at all. ScanError when it exists, unless `force`."""
    path = Path(path)
    if path.exists() and not force:
        raise ScanError(f"{path}: exists already; choose another name, or force to overwrite it")
    with new_file(path) as part:
        nib.save(image, part)
