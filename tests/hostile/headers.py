"""More NIfTI files: headers that nibabel sets right without a word, extensions, pairs, packing, values that no scan
has. The first part is nifti.py.
"""

import bz2
import gzip
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from command import Command
from nifti import BRIEF, DIM, INF, NAN, PLACES, header, put, raw, whole
from world import AFFINE, volume


def values(array: np.ndarray, name: str = "bad.nii.gz"):
    return put(name, whole(array))


def with_voxels(value: float, at=((10, 12, 10),), dtype=np.float32):
    array = volume().astype(dtype)
    for place in at:
        array[place] = value
    return values(array)


def a_flipped_bit(bit: int):
    """Of one voxel of a .nii file, which has no checksum."""

    def make(folder: Path) -> None:
        content = bytearray(whole())
        content[352 + 4 * (10 + 20 * (12 + 24 * 10)) + 3] ^= bit
        (folder / "scans" / "bad.nii").write_bytes(content)

    return make


def extended(size: int, flag: bytes = b"\1\0\0\0", room: int = 16):
    """A header extension that says that it has `size` bytes."""

    def make(folder: Path) -> None:
        content = bytearray(whole())
        struct.pack_into(PLACES["vox_offset"][1], content, PLACES["vox_offset"][0], 352 + room)
        extension = struct.pack("<2i", size, 6) + bytes(room - 8)
        (folder / "scans" / "bad.nii").write_bytes(content[:348] + flag + extension + content[352:])

    return make


def pair(change=lambda head, image: None, name: str = "bad"):
    """bad.hdr and bad.img, one of which is changed."""

    def make(folder: Path) -> None:
        scan = nib.Nifti1Pair(volume(), AFFINE)
        head, image = folder / "scans" / f"{name}.hdr", folder / "scans" / f"{name}.img"
        nib.save(scan, head)
        change(head, image)

    return make


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def analyze(folder: Path) -> None:
    image = nib.Spm2AnalyzeImage(volume(), AFFINE)
    nib.save(image, folder / "scans" / "bad.hdr")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("scan.nii", whole())
    return buffer.getvalue()


def in_an_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("scan.nii")
        member.size = len(whole())
        archive.addfile(member, io.BytesIO(whole()))
    return buffer.getvalue()


def in_big_endian(field: str, *numbers):
    """A scan of the other byte order with another value in its header."""

    def make(folder: Path) -> None:
        image = nib.Nifti1Image(volume(), AFFINE, nib.Nifti1Header(endianness=">"))
        content = bytearray(image.to_bytes())
        place, form = PLACES[field]
        struct.pack_into(form.replace("<", ">"), content, place, *numbers)
        (folder / "scans" / "bad.nii").write_bytes(content)

    return make


def nifti2(**fields):
    """A NIfTI-2 file with other values in its header."""

    def make(folder: Path) -> None:
        image = nib.Nifti2Image(volume(), AFFINE)
        content = bytearray(image.to_bytes())
        head = nib.Nifti2Header(bytes(content[:540]), check=False)
        for name, value in fields.items():
            head[name] = value
        content[:540] = head.binaryblock
        (folder / "scans" / "bad.nii").write_bytes(content)

    return make


def parts(*contents: bytes) -> bytes:
    """Members of one gzip file."""
    return b"".join(gzip.compress(c, 1) for c in contents)


WHOLE = whole()
ONE = np.zeros((20, 24, 20), np.uint8)
ONE[10, 12, 10] = 1
LABELS = (volume() > 0).astype(np.uint8) + (volume() > 100).astype(np.uint8)
FILES = [  # what is wrong, how it is made, what is said
    # what nibabel would set right
    *(
        (f"a header of {n} bytes", header(sizeof_hdr=(n,)), "bytes long")
        for n in (0, -1, 349, 540, 1543569408)
    ),
    ("big-endian, a header of 0 bytes", in_big_endian("sizeof_hdr", 0), "bytes long"),
    ("NIfTI-2, a header of 348 bytes", nifti2(sizeof_hdr=348), ""),
    ("in a space of number 99", header(codes=(1, 99)), "sform_code is 99"),
    ("in a space below 0", header(codes=(-3, 1)), "qform_code is -3"),
    ("big-endian, in a space of number 9", in_big_endian("codes", 1, 9), "sform_code is 9"),
    ("NIfTI-2, in a space of number 1000", nifti2(sform_code=1000), "sform_code is 1000"),
    # places
    ("turned by no quaternion", header(codes=(1, 0), quatern=(1, 1, 1)), ""),
    ("turned by NaN", header(codes=(1, 0), quatern=(NAN, 0, 0)), ""),
    ("placed at infinity", header(codes=(1, 0), qoffset=(INF, 0, 0)), ""),
    ("placed at NaN", header(codes=(1, 0), qoffset=(0, NAN, 0)), ""),
    ("sheared flat", header(srow=(8, 8, 0, -80, 0, 0.01, 0, -110, 0, 0, 8, -70)), "affine has no volume"),
    ("NIfTI-2, without volume", nifti2(srow_x=[0, 0, 0, 0]), "affine has no volume"),
    ("voxels of 1e-30 mm", header(srow=(1e-30, 0, 0, 0, 0, 1e-30, 0, 0, 0, 0, 1e-30, 0)), "affine|field"),
    # sizes and types
    ("a vector at each voxel", header(dim=(5, 20, 24, 20, 1, 3, 1, 1)), "3-D"),
    ("0 volumes", header(dim=DIM(4, 20, 24, 20, 0)), "0 volumes|3-D|truncated"),
    ("1 dimension", header(dim=DIM(1, 9600)), "3-D"),
    ("a line of voxels", header(dim=DIM(3, 9600, 1, 1)), "3-D"),
    ("-3 dimensions", header(dim=(-3, 20, 24, 20, 1, 1, 1, 1)), ""),
    ("NIfTI-2 of 2^60 voxels", nifti2(dim=[3, 2**20, 2**20, 2**20, 1, 1, 1, 1]), "million voxels"),
    ("NIfTI-2, a side below 0", nifti2(dim=[3, 20, -24, 20, 1, 1, 1, 1]), ""),
    ("of four colours", header(datatype=(2304,), bitpix=(32,)), "one real number"),
    ("of one bit a voxel", header(datatype=(1,), bitpix=(1,)), ""),
    ("of complex numbers of 16 bytes", header(datatype=(1792,), bitpix=(128,)), "one real number|truncated"),
    ("of whole numbers of 8 bytes", header(datatype=(1024,), bitpix=(64,)), "truncated"),
    ("begins in its header", header(vox_offset=(100,)), ""),
    ("begins 4 bytes late", header(vox_offset=(356,)), "truncated"),
    ("begins at infinity", header(vox_offset=(INF,)), ""),
    ("its offset hides all", header(scl_slope=(1,), scl_inter=(1e30,)), "the same value"),
    ("its offset is infinite", header(scl_slope=(1,), scl_inter=(INF,)), ""),
    # extensions
    *((f"an extension of {n} bytes", extended(n), "") for n in (-16, 17, 2**31 - 1)),
    ("an extension beyond the voxels", extended(2**20), ""),
    # values
    *(
        (f"a voxel of {v:g}", with_voxels(v), "was never|nearly all others")
        for v in (1e30, -1e30, 3e38, 1e9, -5e6)
    ),
    ("three voxels of 1e20", with_voxels(1e20, ((1, 1, 1), (2, 2, 2), (10, 12, 10))), "nearly all others"),
    ("a voxel of 1e100, of 8 bytes", with_voxels(1e100, dtype=np.float64), "infinite"),
    ("a voxel of 1e30, of 8 bytes", with_voxels(1e30, dtype=np.float64), "nearly all others"),
    ("a flipped bit, unpacked", a_flipped_bit(0x20), "nearly all others|infinite"),
    ("a flipped sign and exponent", a_flipped_bit(0xA0), "nearly all others|infinite"),
    ("a mask", values((volume() > 0).astype(np.uint8)), "a mask or a segmentation"),
    ("a segmentation", values(LABELS), "a mask or a segmentation"),
    ("a mask of 1 and 1000", values(np.where(volume() > 0, 1000, 1).astype(np.int16)), "a mask|no brain"),
    # packing
    ("named as packed, zipped", raw("bad.nii.gz", zipped()), ""),
    ("named as packed, by bzip2", raw("bad.nii.gz", bz2.compress(WHOLE)), ""),
    ("packed, but not named so", raw("bad.nii", parts(WHOLE)), "NIfTI|cannot be read"),
    ("a packed archive", raw("bad.nii.gz", in_an_archive()), "NIfTI"),
    ("in two packs, the second cut", raw("bad.nii.gz", parts(WHOLE[:9000], WHOLE[9000:])[:-30]), ""),
    ("in two packs, the second missing", raw("bad.nii.gz", parts(WHOLE[:9000])), "truncated"),
    ("in two packs, text between", raw("bad.nii.gz", parts(WHOLE[:9000]) + b"no" + parts(WHOLE[9000:])), ""),
    ("packed, text behind", raw("bad.nii.gz", parts(WHOLE) + b"\n"), "cannot be read"),
    ("the head of a pack", raw("bad.nii.gz", parts(WHOLE)[:10]), ""),
    ("packed, nothing in it", raw("bad.nii.gz", parts(b"")), ""),
]
PAIRS = [
    ("without its voxels", pair(lambda head, image: image.unlink()), "img"),
    ("whose voxels are a pipe", pair(lambda head, image: a_pipe(image)), "a pipe or device"),
    ("whose voxels are cut", pair(lambda head, image: os.truncate(image, 5000)), "truncated"),
    ("whose voxels are empty", pair(lambda head, image: os.truncate(image, 0)), "empty"),
    ("whose header is cut", pair(lambda head, image: os.truncate(head, 100)), ""),
    ("of Analyze", analyze, "not NIfTI|NIfTI"),
]
MASKS = [
    ("of zeros", values(np.zeros((20, 24, 20), np.uint8)), "no brain"),
    ("of one voxel", values(ONE), "no brain found"),
    ("of complex numbers", values(volume().astype(np.complex64)), "one real number"),
    ("of two volumes", values(np.stack([volume()] * 2, -1)), "2 volumes"),
    ("a header alone", raw("bad.nii", WHOLE[:352]), "truncated"),
    ("in a space of number 99", header(codes=(1, 99)), "sform_code is 99"),
]


def detect(file: str, *more: str) -> list[str]:
    return ["detect", file, "--out", "out", *BRIEF.split(), *more]


CASES = [
    *(Command(f"scan: {n}", detect("scans/BAD"), says, "bad.nii", make, 1) for n, make, says in FILES),
    *(Command(f"pair: {n}", detect("scans/bad.hdr"), says, "bad.", make, 1) for n, make, says in PAIRS),
    *(
        Command(
            f"a brain mask {n}",
            detect("scans/good.nii.gz", "--brain", "scans/BAD"),
            says,
            "good.nii" if n in ("of zeros", "of one voxel") else "bad.nii",
            make,
            1,
        )
        for n, make, says in MASKS
    ),
    Command(
        "a channel of one volume",
        detect("scans/good.nii.gz", "--channel", "3"),
        "no channel 3",
        "good.nii",
        code=1,
    ),
]
