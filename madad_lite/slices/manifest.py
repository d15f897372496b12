"""What a prepared folder holds: the manifest, and the arrays it speaks of. Both are checked, never believed.

manifest.json                    settings, grid, splits, one entry a scan, what was skipped and why
scans/SCAN_ID/image.npy          (n, H, W) float16 in [-1, 1], background -1
scans/SCAN_ID/brain.npy          (n, H, W) bool
scans/SCAN_ID/lesion.npy         (n, H, W) bool, for scans with a lesion mask
scans/SCAN_ID/scan.json          this scan's entry, and the state of the files it was made from
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from madad_lite.errors import ScanError
from madad_lite.files import Rule, misfit, number, read_json, replace_file, safe_name
from madad_lite.scans.find import CONTRASTS
from madad_lite.scans.grid import Grid
from madad_lite.slices.splits import SPLITS

VERSION = 1
ARRAYS = {"image": np.dtype(np.float16), "brain": np.dtype(bool), "lesion": np.dtype(bool)}
HEADER = 128  # bytes of an .npy file before the pixels

# Schemas, see files.misfit
COUNT = number(0, 10**9, whole=True)
GRID = {
    "spacing": number(1e-3, 1e3),
    "size": number(1, 10_000, whole=True),
    "z_range": [float, float],
    "z_spacing?": ({None}, number(1e-3, 1e3)),
}
GEOMETRY = {
    "scan_shape": [COUNT] * 3,
    "scan_affine": [[float] * 4] * 4,
    "to_mni": [[float] * 4] * 4,
    "grid": GRID,
    "slice_index": [COUNT],
    "intensity": [float] * 2,
    "levels?": [[float], [float]],
}
ENTRY = {
    "scan_id": Rule(
        lambda v: isinstance(v, str) and safe_name(v) == v, "a name of letters, digits, dots, _ and -"
    ),
    "subject": str,
    "group": {"normal", "patient"},
    "contrast": set(CONTRASTS),
    "contrast_seen?": {None, *CONTRASTS},
    "source": str,
    "n_slices": number(1, 10_000, whole=True),
    "geometry": GEOMETRY,
    "lesion": bool,
    "lesion_pixels": [COUNT],
    "crc32?": {name + "?": number(0, 2**32 - 1, whole=True) for name in ARRAYS},
}
MANIFEST = {
    "contrast": set(CONTRASTS),
    "grid": GRID,
    "settings": {str: None},
    "complete": bool,
    "scans": [ENTRY | {"split": set(SPLITS)}],
    "skipped": [[str, str]],
    "subjects?": {str: set(SPLITS)},
}


def contradiction(entry: dict, content: dict) -> str | None:
    """In words, what of a scan's entry cannot be true together, or with the grid and contrast of the folder."""
    geometry, n, grid = entry["geometry"], entry["n_slices"], content["grid"]
    places, pixels = geometry["slice_index"], entry["lesion_pixels"]
    if entry["contrast"] != content["contrast"]:
        return f"is {entry['contrast']}, the folder {content['contrast']}"
    if geometry["grid"] != grid:
        return "lies on another grid than the folder"
    if len(places) != n or places != sorted(set(places)) or places[-1] >= Grid.from_dict(grid).shape[2]:
        return f"has {n} slices, at {len(places)} places that do not fit them"
    if len(pixels) != n * entry["lesion"] or (pixels and max(pixels) > grid["size"] ** 2):
        return f"has {n} slices, and lesion pixels of {len(pixels)} that do not fit them"
    return None


def checksum(path: Path) -> int:
    """CRC-32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """A scan's arrays, (n, H, W) each, as .npy files. Returns their checksums, an entry's "crc32"."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array))  # a slice is one piece of the file
    return {name: checksum(folder / f"{name}.npy") for name in arrays}


def open_array(path: Path, shape: tuple[int, int, int], dtype: np.dtype) -> np.memmap:
    """An .npy file, memory-mapped. ScanError unless its size, type and shape are the expected ones."""
    expected = HEADER + int(np.prod(shape)) * dtype.itemsize
    try:
        size = path.stat().st_size
        if not path.is_file() or size != expected:
            raise ScanError(f"{path}: damaged (has {size} bytes, not {expected})")
        array = np.lib.format.open_memmap(path, mode="r")
    except ScanError:
        raise
    except Exception as error:  # a header that is none: numpy's errors are of many kinds
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:100]
        raise ScanError(f"{path}: damaged or missing ({reason})") from None
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous or array.offset != HEADER:
        raise ScanError(f"{path}: damaged (holds {array.dtype} {array.shape}, not {dtype} {shape})")
    return array


class Manifest:
    """What a prepared folder holds. `.scans(split)` are dictionaries with the keys

    scan_id, subject, split, group ("normal" or "patient"), contrast, source (the scan's file), n_slices,
    geometry (for `Geometry.from_dict`), lesion (is there a mask), lesion_pixels (a number a slice; [] without
    mask), crc32 (of each array's file; missing in folders of earlier versions).

    `.subjects`: {subject: split} of everyone who was ever seen in the source, also of those whose scans could
    not be used. Raises ScanError for content that is damaged, or that contradicts itself.
    """

    def __init__(self, folder: str | Path, content: dict):
        self.folder = Path(folder)
        wrong = misfit(content, MANIFEST)
        try:
            self.grid = Grid.from_dict({} if wrong else content["grid"])
        except (ValueError, KeyError) as error:
            wrong = wrong or f"grid: {error}"
        splits: dict[str, str] = {}
        ids: set[str] = set()
        for entry in [] if wrong else content["scans"]:
            name, subject = entry["scan_id"], entry["subject"]
            if name in ids:
                wrong = f"the scan {name} is there twice"
            elif splits.setdefault(subject, entry["split"]) != entry["split"]:
                wrong = f"subject {json.dumps(subject)} is in two splits"
            elif reason := contradiction(entry, content):
                wrong = f"the scan {name} {reason}"
            ids.add(name)
        if wrong:
            raise ScanError(f"{self.path}: damaged ({wrong}); remove the folder and prepare the scans again")
        self.contrast: str = content["contrast"]
        self.settings: dict = content["settings"]
        self.complete: bool = content["complete"]
        self.entries: list[dict] = content["scans"]
        self.skipped: list[tuple[str, str]] = [tuple(s) for s in content["skipped"]]
        self.subjects: dict[str, str] = content.get("subjects") or splits

    @property
    def path(self) -> Path:
        return self.folder / "manifest.json"

    @classmethod
    def load(cls, folder: str | Path, *, unfinished: bool = False) -> Manifest:
        """Read folder/manifest.json. ScanError when there is none, when it is damaged, or, unless `unfinished`,
        when the preparation stopped before its end.
        """
        path = Path(folder) / "manifest.json"
        if not path.exists():
            raise ScanError(f"{folder}: no manifest.json there; run `madad prepare` first")
        content = read_json(path, {"version": int}, hint="remove the folder and prepare the scans again")
        if content["version"] != VERSION:
            raise ScanError(
                f"{path}: has version {content['version']}, not {VERSION}; prepare the scans again"
            )
        manifest = cls(folder, content)
        if not (manifest.complete or unfinished):
            raise ScanError(f"{folder}: its preparation was interrupted; run the same `madad prepare` again")
        return manifest

    def scans(self, split: str | None = None) -> list[dict]:
        """The scans of a split, or all of them."""
        if split is not None and split not in SPLITS:
            raise ValueError(f"{split!r} is not a split; choose one of {', '.join(SPLITS)}")
        return [s for s in self.entries if split in (None, s["split"])]

    def scan_folder(self, scan: dict) -> Path:
        """Where a scan's arrays are. ScanError for an id that is no name of a folder in this one."""
        name = scan["scan_id"]
        if safe_name(name) != name:
            raise ScanError(f"{self.folder}: {name!r} is no id of a scan")
        return self.folder / "scans" / name

    def array(self, scan: dict, name: str) -> np.ndarray:
        """A scan's "image", "brain" or "lesion", (n, H, W), memory-mapped: only what is indexed is read.
        ScanError when the file is missing, or has another size, type or shape than it should.
        """
        if name not in ARRAYS:
            raise ValueError(f"{name!r} is not an array; choose one of {', '.join(ARRAYS)}")
        shape = (scan["n_slices"], self.grid.size, self.grid.size)
        return open_array(self.scan_folder(scan) / f"{name}.npy", shape, ARRAYS[name])

    def check_arrays(self, scan: dict, *, checksums: bool = False) -> None:
        """ScanError for a scan's array that is missing or has another size, type, shape or, where it is asked for
        and known, checksum.
        """
        for name in ARRAYS if scan["lesion"] else ("image", "brain"):
            self.array(scan, name)
            path, known = self.scan_folder(scan) / f"{name}.npy", scan.get("crc32", {}).get(name)
            if checksums and known is not None and checksum(path) != known:
                raise ScanError(f"{path}: damaged (its checksum is another one)")
            if checksums and (wrong := self._wrong(scan, name)):
                raise ScanError(f"{path}: damaged ({wrong})")

    def _wrong(self, scan: dict, name: str) -> str | None:
        """In words, what a scan's array holds and must not, whatever its checksum says."""
        values = self.array(scan, name)
        if name == "image":
            bits = (
                np.asarray(values).view(np.uint16) & 0x7FFF
            )  # a float16 without its sign; from 0x3C00, 1.0, on
            return "holds values outside of -1 to 1, or NaN" if (bits > 0x3C00).any() else None
        if (values.view(np.uint8) > 1).any():
            return "holds other values than true and false"
        if name == "lesion" and values.sum((1, 2)).tolist() != scan["lesion_pixels"]:
            return "holds other lesion pixels than the manifest says"
        return None

    def verify(self, split: str | None = None, *, checksums: bool = True) -> None:
        """ScanError when a scan's arrays are not those that were prepared.

        With `checksums` every byte is read, about 1 GB a second; without them only sizes and headers are.
        """
        for scan in self.scans(split):
            try:
                self.check_arrays(scan, checksums=checksums)
            except ScanError as error:
                again = (
                    "remove the folder and recolour again"
                    if self.recoloured
                    else "run the same `madad prepare` again"
                )
                raise ScanError(f"{error}; {again}") from None

    @property
    def normalise(self) -> str:
        """How its scans were scaled, see scans.prepare. Folders of earlier versions do not say it."""
        return self.settings.get("normalise", "median")

    @property
    def recoloured(self) -> bool:
        """Made from another prepared folder, not from scans."""
        return "recoloured_from" in self.settings

    def to_dict(self) -> dict:
        return {
            "version": VERSION,
            "contrast": self.contrast,
            "grid": self.grid.to_dict(),
            "settings": self.settings,
            "complete": self.complete,
            "subjects": self.subjects,
            "scans": self.entries,
            "skipped": [list(s) for s in self.skipped],
        }

    def save(self) -> None:
        """Write manifest.json, atomically, and only if that changes it."""
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        if not (self.path.exists() and self.path.read_text() == text):
            replace_file(self.path, text)
