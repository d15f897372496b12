"""A whole prepared folder, written by hand in a few milliseconds, and ways to damage it."""

import copy
import json
from pathlib import Path

import numpy as np

from madad_lite.scans.grid import Geometry, Grid
from madad_lite.slices.manifest import write_arrays

SIZE, SLICES = 16, 3
GRID = Grid(spacing=12.0, size=SIZE)


def entry(name: str, subject: str, split: str, lesion: bool) -> dict:
    geometry = Geometry((9, 9, 9), np.eye(4), np.eye(4), GRID, tuple(range(2, 2 + SLICES)), (0.0, 100.0))
    return {
        "scan_id": name,
        "subject": subject,
        "split": split,
        "group": "patient" if lesion else "normal",
        "contrast": "t1",
        "source": f"/scans/{name}.nii.gz",
        "n_slices": SLICES,
        "geometry": geometry.to_dict(),
        "lesion": lesion,
        "lesion_pixels": [4] * SLICES if lesion else [],
    }


def prepared(folder: Path) -> dict:
    """Scans a (train), b (val) and c (test, with a lesion). Returns the manifest's content."""
    scans = [entry("a", "A", "train", False), entry("b", "B", "val", False), entry("c", "C", "test", True)]
    brain = np.zeros((SLICES, SIZE, SIZE), bool)
    brain[:, 4:12, 4:12] = True
    lesion = np.zeros_like(brain)
    lesion[:, 5:7, 5:7] = True
    for scan in scans:
        image = np.where(brain, 0.1, -1).astype(np.float16)
        arrays = {"image": image, "brain": brain} | ({"lesion": lesion} if scan["lesion"] else {})
        place = folder / "scans" / scan["scan_id"]
        place.mkdir(parents=True)
        scan["crc32"] = write_arrays(place, arrays)
    content = {
        "version": 1,
        "contrast": "t1",
        "grid": GRID.to_dict(),
        "settings": {"source": "/scans"},
        "complete": True,
        "subjects": {"A": "train", "B": "val", "C": "test"},
        "scans": scans,
        "skipped": [],
    }
    (folder / "manifest.json").write_text(json.dumps(content))
    return content


MISSING = object()


def damaged(place: str, value: object):
    """A folder in whose manifest the value at a place, such as "scans.0.n_slices", is another, or missing."""

    def make(folder: Path) -> None:
        content = copy.deepcopy(prepared(folder))
        *way, last = [int(k) if k.isdigit() else k for k in place.split(".")]
        at = content
        for key in way:
            at = at[key]
        if value is MISSING:
            del at[last]
        else:
            at[last] = value
        (folder / "manifest.json").write_text(json.dumps(content))

    return make
