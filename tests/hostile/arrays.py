"""Arrays of a prepared folder that are not what the manifest says."""

from pathlib import Path

import numpy as np
from case import Case
from prepared import SIZE, SLICES, prepared

from madad_lite.authors.png_export import export_png
from madad_lite.simulation.recolour import recolour_folder
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.manifest import Manifest
from madad_lite.training.run_folder import data_fingerprint

SHAPE = SLICES, SIZE, SIZE
MAGIC = b"\x93NUMPY\x01\x00\x76\x00"  # how an .npy file begins: version 1.0, a header of 118 bytes


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-64])


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + bytes(64))


def flipped(file: Path) -> None:
    """One bit of one pixel."""
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)


def same_size(header: bytes):
    """As long as it should be, but with another header."""

    def damage(file: Path) -> None:
        file.write_bytes(header.ljust(128, b"\n") + file.read_bytes()[128:])

    return damage


def stored(array: np.ndarray):
    return lambda file: np.save(file, array)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


SEEN_ON_OPENING = [  # array, how it is damaged, what is said
    ("image", "cut by 64 bytes", cut, "has 1600 bytes, not 1664"),
    ("image", "longer by 64 bytes", longer, "has 1728 bytes, not 1664"),
    ("image", "empty", lambda f: f.write_bytes(b""), "has 0 bytes"),
    ("image", "text", lambda f: f.write_text("not an array"), "has 12 bytes"),
    ("image", "missing", Path.unlink, "damaged or missing"),
    ("image", "a folder", a_folder, "damaged"),
    ("image", "float32", stored(np.zeros(SHAPE, np.float32)), "has 3200 bytes"),
    ("image", "int16 of the same size", stored(np.zeros(SHAPE, np.int16)), "holds int16"),
    ("image", "of the other byte order", stored(np.zeros(SHAPE, ">f2")), "holds >f2"),
    ("image", "by columns", stored(np.zeros(SHAPE, np.float16, order="F")), "damaged"),
    ("image", "of another shape", stored(np.zeros((SIZE, SLICES, SIZE), np.float16)), r"\(16, 3, 16\)"),
    ("image", "text of the same size", lambda f: f.write_bytes(b"x" * 1664), "damaged"),
    ("image", "a header without end", same_size(MAGIC + b"{'descr': ("), "damaged"),
    ("image", "a header of code", same_size(MAGIC + b"__import__('os')"), "damaged"),
    (
        "image",
        "objects",
        same_size(MAGIC + b"{'descr': '|O', 'fortran_order': False, 'shape': (3,)}"),
        "damaged",
    ),
    ("brain", "cut by 64 bytes", cut, "has 832 bytes, not 896"),
    ("brain", "uint8", stored(np.full(SHAPE, 7, np.uint8)), "holds uint8"),
    ("brain", "missing", Path.unlink, "damaged or missing"),
]
SEEN_IN_THE_CHECKSUM = [("image", flipped), ("brain", flipped)]


def make(scan: str, name: str, damage):
    def damaged(folder: Path) -> None:
        prepared(folder)
        damage(folder / "scans" / scan / f"{name}.npy")

    return damaged


CASES = [
    *(
        Case(f"{name} {how}", make("a", name, damage), SliceDataset, says, f"a/{name}.npy")
        for name, how, damage, says in SEEN_ON_OPENING
    ),
    Case(
        "lesion missing",
        make("c", "lesion", Path.unlink),
        lambda f: SliceDataset(f, "test"),
        "again",
        "lesion.npy",
    ),
    Case("lesion cut", make("c", "lesion", cut), lambda f: Manifest.load(f).verify(), "again", "lesion.npy"),
    *(
        Case(
            f"{name} with a flipped bit, {call_name}",
            make("a", name, damage),
            call,
            "checksum",
            f"a/{name}.npy",
        )
        for name, damage in SEEN_IN_THE_CHECKSUM
        for call_name, call in [
            ("train", data_fingerprint),
            ("verify", lambda f: Manifest.load(f).verify()),
            ("recolour", lambda f: recolour_folder(f, f.parent / "out", progress=False)),
            ("png", lambda f: export_png(f, f.parent / "out")),
        ]
    ),
]
