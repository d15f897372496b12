"""NIfTI files that lie, break off, grow, or hold what no scan does; and names that a file may have."""

import gzip
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from command import Command
from world import AFFINE, volume

PLACES = {  # of a field in the header: its first byte, how it is packed
    "sizeof_hdr": (0, "<i"),
    "dim": (40, "<8h"),
    "intent_code": (68, "<h"),
    "datatype": (70, "<h"),
    "bitpix": (72, "<h"),
    "pixdim": (76, "<8f"),
    "vox_offset": (108, "<f"),
    "scl_slope": (112, "<f"),
    "scl_inter": (116, "<f"),
    "codes": (252, "<2h"),
    "quatern": (256, "<3f"),
    "qoffset": (268, "<3f"),
    "srow_x": (280, "<4f"),
    "srow": (280, "<12f"),
    "magic": (344, "<4s"),
}
NAN, INF = float("nan"), float("inf")


def whole(array: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> bytes:
    """A .nii file, as bytes."""
    return nib.Nifti1Image(volume() if array is None else array, affine).to_bytes()


def put(name: str, content: bytes):
    """A file below scans/; packed where its name ends so."""

    def make(folder: Path) -> None:
        packed = gzip.compress(content, 1) if name.lower().endswith(".gz") else content
        (folder / "scans" / name).write_bytes(packed)

    return make


def raw(name: str, content: bytes):
    return lambda folder: (folder / "scans" / name).write_bytes(content)


def header(name: str = "bad.nii", **fields):
    """A good file with other values in its header."""

    def make(folder: Path) -> None:
        content = bytearray(whole())
        for field, values in fields.items():
            place, form = PLACES[field]
            struct.pack_into(form, content, place, *values)
        put(name, bytes(content))(folder)

    return make


def flipped(at: float, *, level: int):
    """One bit of the packed file, at this share of its length, is another; level 0: stored, not packed."""

    def make(folder: Path) -> None:
        content = bytearray(gzip.compress(whole(), level))
        content[int(at * (len(content) - 1))] ^= 4
        (folder / "scans" / "bad.nii.gz").write_bytes(content)

    return make


def with_voxel(value: float):
    array = volume()
    array[10, 12, 10] = value
    return put("bad.nii.gz", whole(array))


def link(target: str):
    return lambda folder: (folder / "scans" / "bad.nii").symlink_to(target)


SHORT, DIM = gzip.compress(whole(), 1), lambda *n: (n + (1,) * 8)[:8]
FILES = [  # what is wrong, how it is made, what is said
    ("empty", raw("bad.nii", b""), "is empty"),
    ("empty and packed", put("bad.nii.gz", b""), "truncated|NIfTI"),
    ("text", raw("bad.nii", b"a scan\n" * 200), "NIfTI"),
    ("a picture", raw("bad.nii.gz", b"\x89PNG\r\n\x1a\n" + bytes(500)), "NIfTI"),
    ("a header alone", raw("bad.nii", whole()[:348]), "truncated"),
    ("half a header", raw("bad.nii", whole()[:200]), "NIfTI|truncated"),
    ("one byte short", raw("bad.nii", whole()[:-1]), "truncated, it holds"),
    ("half", raw("bad.nii", whole()[:20_000]), "truncated, it holds"),
    ("packed, half", raw("bad.nii.gz", SHORT[: len(SHORT) // 2]), "truncated"),
    ("packed, without its last byte", raw("bad.nii.gz", SHORT[:-1]), "truncated|cannot be read"),
    ("packed, without its checksum", raw("bad.nii.gz", SHORT[:-8]), "truncated|cannot be read"),
    ("packed, other bytes behind", raw("bad.nii.gz", SHORT + b"more"), "cannot be read"),
    ("packed, its length is another", raw("bad.nii.gz", SHORT[:-1] + b"\x7f"), "cannot be read"),
    ("packed, its checksum is another", raw("bad.nii.gz", SHORT[:-8] + bytes(4) + SHORT[-4:]), "CRC"),
    ("packed twice", put("bad.nii.gz", SHORT), "NIfTI"),
    ("named as packed, and is not", raw("bad.nii.gz", whole()), "cannot be read"),
    *((f"a bit at {at:.0%}", flipped(at, level=0), "CRC|cannot be read") for at in (0.3, 0.5, 0.7, 0.9, 1)),
    *((f"a packed bit at {at:.0%}", flipped(at, level=6), "") for at in (0.2, 0.4, 0.6, 0.8)),
    ("a bomb of 9 GB", header(dim=DIM(3, 2000, 1100, 1000)), "million voxels|truncated"),
    ("a packed bomb of 9 GB", header("bad.nii.gz", dim=DIM(3, 2000, 1100, 1000)), "million voxels|truncated"),
    ("as large as can be said", header(dim=DIM(3, 32767, 32767, 32767)), "million voxels"),
    ("a packed file that grows", put("bad.nii.gz", whole() + bytes(4_000_000)), "holds more than"),
    ("7 dimensions", header(dim=(7, 20, 24, 20, 2, 2, 2, 2)), "3-D"),
    ("8 dimensions", header(dim=(8, 20, 24, 20, 1, 1, 1, 1)), ""),
    ("no dimension", header(dim=(0,) * 8), ""),
    ("2 dimensions", header(dim=DIM(2, 20, 24)), "3-D"),
    ("a side of 0", header(dim=DIM(3, 20, 0, 20)), "3-D"),
    ("a side of 1", header(dim=DIM(3, 20, 24, 1)), "3-D"),
    ("a side below 0", header(dim=DIM(3, 20, -24, 20)), ""),
    ("16 volumes that are not there", header(dim=DIM(4, 20, 24, 20, 16)), "16 volumes"),
    ("30,000 volumes", header(dim=DIM(4, 20, 24, 20, 30_000)), "30000 volumes"),
    ("no magic", header(magic=(b"\0\0\0\0",)), ""),
    ("of no type", header(datatype=(0,)), ""),
    ("of an unknown type", header(datatype=(999,)), ""),
    ("complex", put("bad.nii", whole(volume().astype(np.complex64))), "one real number"),
    ("coloured", header(datatype=(128,), bitpix=(24,)), "one real number"),
    ("of 16 bytes a voxel", header(datatype=(1536,), bitpix=(128,)), ""),
    ("begins after its end", header(vox_offset=(1e9,)), "truncated"),
    ("begins nowhere", header(vox_offset=(NAN,)), ""),
    ("begins below 0", header(vox_offset=(-352,)), ""),
    ("its scale is too large", header(scl_slope=(1e38,), scl_inter=(0,)), "infinite"),
    ("its scale is infinite", header(scl_slope=(INF,), scl_inter=(0,)), "scl_slope is infinite"),
    ("packed, its scale is -infinite", header("bad.nii.gz", scl_slope=(-INF,)), "scl_slope is infinite"),
    ("the header of a pair", header(magic=(b"ni1\0",)), "in another file"),
    ("packed, the header of a pair", header("bad.nii.gz", magic=(b"ni1\0",)), "in another file"),
    ("its offset is NaN", header(scl_slope=(1,), scl_inter=(NAN,)), ""),
    ("an affine of NaN", header(srow=(NAN,) * 12), "affine has no volume"),
    ("an affine with an infinity", header(srow_x=(INF, 0, 0, 0)), "affine has no volume"),
    ("an affine of 0", header(srow=(0,) * 12), "affine has no volume"),
    ("an affine without one axis", header(srow_x=(0, 0, 0, -80)), "affine has no volume"),
    ("two axes are one", header(srow=(8, 0, 0, 0, 8, 0, 0, 0, 0, 0, 8, 0)), "affine has no volume"),
    ("voxels of 50 mm", header(srow_x=(50, 0, 0, -80)), "50 mm large"),
    ("a field of view of 3 cm", header(srow_x=(1.5, 0, 0, -80)), "field of view"),
    ("voxels in metres", header(srow=(0.008, 0, 0, 0, 0, 0.008, 0, 0, 0, 0, 0.008, 0)), ""),
    ("voxels of 1e30 mm", header(srow_x=(1e30, 0, 0, 0)), "mm large"),
    ("far away", header(srow_x=(8, 0, 0, 1e6)), "no slices left"),
    ("a pixdim of 0", header(pixdim=(1,) + (0,) * 7, codes=(0, 0)), ""),
    ("a pixdim of NaN", header(pixdim=(NAN,) * 8, codes=(1, 0)), ""),
    ("constant", put("bad.nii.gz", whole(np.full((20, 24, 20), 7, np.float32))), "the same value"),
    ("of zeros", put("bad.nii.gz", whole(np.zeros((20, 24, 20), np.uint8))), "the same value"),
    ("a NaN", with_voxel(NAN), "NaN or infinite"),
    ("an infinity", with_voxel(-INF), "NaN or infinite"),
    ("of NaN alone", put("bad.nii.gz", whole(np.full((20, 24, 20), NAN, np.float32))), "NaN or infinite"),
    ("a pipe", lambda f: os.mkfifo(f / "scans" / "bad.nii"), "a pipe or device"),
    ("a link to nothing", link("nowhere.nii"), "no such file"),
    ("a link to itself", link("bad.nii"), "cannot be opened|no such file"),
    ("a link to a device", link("/dev/zero"), "a pipe or device"),
]
NAMES = [  # names of files that cannot be used; each has to be said
    b"\xff\xfe.nii",
    "头部扫描.nii.gz".encode(),
    b"a$_$b.nii.gz",
    b" .nii",
    b"-x.nii",
    b"{name}.nii",
    b"%s%n.nii",
    b"a;rm -rf b.nii",
]


def shown(name: bytes) -> str:
    """As it stands in a message."""
    return os.fsdecode(name).encode("utf-8", "backslashreplace").decode()


def named(name: bytes):
    return lambda folder: (folder / "scans" / os.fsdecode(name)).write_bytes(b"not a scan" * 50)


BRIEF = "--weights model --register no"
CASES = [
    *(
        Command(
            f"scan: {name}", ["detect", "scans/BAD", "--out", "out", *BRIEF.split()], says, "bad.nii", make, 1
        )
        for name, make, says in FILES
    ),
    *(
        Command(
            f"scan of name {ascii(name)[:30]}",
            ["detect", b"scans/" + name, "--out", "out", *BRIEF.split()],
            "NIfTI",
            shown(name),
            named(name),
            1,
        )
        for name in NAMES
    ),
    *(
        Command(
            f"mask: {name}",
            ["detect", "scans/good.nii.gz", "--out", "out", "--brain", "scans/BAD", *BRIEF.split()],
            says,
            "bad.nii",
            make,
            1,
        )
        for name, make, says in [
            ("cut", raw("bad.nii", whole()[:20_000]), "truncated"),
            ("of another shape", put("bad.nii.gz", whole(volume((18, 24, 20)))), "shape"),
            ("mirrored", put("bad.nii.gz", whole(affine=np.diag([-8.0, 8, 8, 1]))), "mm away"),
            ("of NaN", with_voxel(NAN), "NaN"),
            ("a pipe", lambda f: os.mkfifo(f / "scans" / "bad.nii"), "a pipe or device"),
        ]
    ),
]
