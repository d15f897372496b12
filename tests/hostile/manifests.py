"""Manifests that are no manifests, that lack something, or that contradict themselves."""

import json
import os
from pathlib import Path

from case import Case
from prepared import GRID, MISSING, SIZE, damaged, entry, prepared

from madad_lite.authors.png_export import export_png
from madad_lite.scans.find import find_scans
from madad_lite.simulation.recolour import recolour_folder
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.manifest import Manifest


def text(content: str | bytes):
    def make(folder: Path) -> None:
        prepared(folder)
        (folder / "manifest.json").write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def a_folder(folder: Path) -> None:
    (folder / "manifest.json").mkdir()


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "manifest.json")


FILES = [  # what the file holds, what is said
    ("empty", text(""), "damaged"),
    ("cut off", text('{"version": 1, "contr'), "damaged"),
    ("no JSON", text("version: 1"), "damaged"),
    ("not UTF-8", text(b'{"version": 1, "contrast": "\xff"}'), "damaged .*utf-8"),
    ("null", text("null"), "is null, not an object"),
    ("a list", text("[1, 2]"), "is a list of 2, not an object"),
    ("a number", text("1"), "is 1, not an object"),
    ("no version", text("{}"), "version is missing"),
    ("version alone", text('{"version": 1}'), "contrast is missing"),
    ("version of another", text('{"version": 2}'), "has version 2, not 1"),
    ("version as text", text('{"version": "1"}'), "version is .*not a whole number"),
    ("version true", text('{"version": true}'), "version is true"),
    ("version infinite", text('{"version": 1e999}'), "version is Infinity"),
    ("deep lists", text("[" * 100_000), "damaged"),
    ("a long number", text('{"version": ' + "1" * 5000 + "}"), "damaged|has version"),
    ("a folder", a_folder, "cannot be read .*not a file"),
    ("a pipe", a_pipe, "cannot be read .*not a file"),
]

NAME = "not a name of letters"
VALUES = [  # place, value, what is said
    ("contrast", None, "contrast is null"),
    ("contrast", "pd", "not one of flair, t1, t1ce, t2"),
    ("contrast", "t2", "is t1, the folder t2"),
    ("grid", MISSING, "grid is missing"),
    ("grid", None, "grid is null, not an object"),
    ("grid.size", MISSING, "grid.size is missing"),
    ("grid.size", 0, "grid.size is 0"),
    ("grid.size", -96, "grid.size is -96"),
    ("grid.size", 96.5, "grid.size is 96.5"),
    ("grid.size", "96", "not a whole number"),
    ("grid.size", True, "grid.size is true"),
    ("grid.size", 10**12, "grid.size is 1000000000000"),
    ("grid.size", SIZE + 8, "another grid"),
    ("grid.size", 4096, "4096"),
    ("grid.spacing", 1e3, "1000"),
    ("grid.spacing", 0, "grid.spacing is 0"),
    ("grid.spacing", float("nan"), "grid.spacing is NaN"),
    ("grid.spacing", float("inf"), "grid.spacing is Infinity"),
    ("grid.spacing", 1e-9, "grid.spacing is 1e-09"),
    ("grid.z_range", [0.0], "grid.z_range is a list of 1, not a list of 2"),
    ("grid.z_range", "ab", "grid.z_range is .ab"),
    ("grid.z_range", [0.0, None], r"grid.z_range\[1\] is null"),
    ("grid.z_spacing", 0, "grid.z_spacing is 0"),
    ("settings", None, "settings is null"),
    ("settings", [], "settings is a list"),
    ("complete", "yes", "complete is .yes"),
    ("complete", False, "was interrupted"),
    ("scans", None, "scans is null, not a list"),
    ("scans", {}, "scans is an object, not a list"),
    ("scans.0", None, r"scans\[0\] is null"),
    ("scans.0.subject", 5, r"scans\[0\].subject is 5"),
    ("scans.0.subject", "B", "subject .B. is in two splits"),
    ("scans.1.split", "training", r"scans\[1\].split is .training"),
    ("scans.1.split", MISSING, r"scans\[1\].split is missing"),
    ("scans.1.split", [], r"scans\[1\].split is a list of 0"),
    ("scans.0.group", "healthy", "group is .healthy"),
    ("scans.0.contrast", "flair", "is flair, the folder t1"),
    ("scans.0.n_slices", 0, "n_slices is 0"),
    ("scans.0.n_slices", 1.5, "n_slices is 1.5"),
    ("scans.0.n_slices", "3", "n_slices is .3"),
    ("scans.0.n_slices", 2, "a has 2 slices, at 3 places"),
    ("scans.0.n_slices", 4, "a has 4 slices, at 3 places"),
    ("scans.0.n_slices", 10**30, "n_slices is 1000000"),
    ("scans.0.geometry", None, "geometry is null"),
    ("scans.0.geometry.scan_affine", [[1, 0, 0, 0]] * 3, "scan_affine is a list of 3, not a list of 4"),
    ("scans.0.geometry.to_mni.1.2", float("nan"), r"to_mni\[1\]\[2\] is NaN"),
    ("scans.0.geometry.to_mni.1.2", "0", r"to_mni\[1\]\[2\] is .0"),
    ("scans.0.geometry.grid.size", 8, "another grid"),
    ("scans.0.geometry.slice_index", [2, 3], "at 2 places"),
    ("scans.0.geometry.slice_index", [4, 3, 2], "do not fit"),
    ("scans.0.geometry.slice_index", [2, 3, 3], "do not fit"),
    ("scans.0.geometry.slice_index", [2, 3, -1], "slice_index.2. is -1"),
    ("scans.0.geometry.slice_index", [2, 3, GRID.shape[2]], "do not fit"),
    ("scans.0.geometry.intensity", [0.0], "intensity is a list of 1"),
    ("scans.2.lesion", "no", "lesion is .no"),
    ("scans.2.lesion", False, "lesion pixels of 3"),
    ("scans.0.lesion", True, "lesion pixels of 0"),
    ("scans.2.lesion_pixels", [4, 4], "lesion pixels of 2"),
    ("scans.2.lesion_pixels", [4, 4, -1], r"lesion_pixels\[2\] is -1"),
    ("scans.2.lesion_pixels", [4, 4, SIZE**2 + 1], "do not fit"),
    ("scans.0.crc32", "x", "crc32 is .x"),
    ("scans.0.crc32.image", -1, "crc32.image is -1"),
    ("scans.1", entry("a", "B", "val", False), "the scan a is there twice"),
    ("skipped", [["one"]], r"skipped\[0\] is a list of 1"),
    ("subjects", {"A": "all"}, "subjects.A is .all"),
    ("subjects", {"A\nB": "all"}, r"subjects.\"A\\nB\" is .all"),
    ("scans.0.scan_id", MISSING, "scan_id is missing"),
    ("scans.0.scan_id", None, "scan_id is null, " + NAME),
    ("scans.0.scan_id", 5, "scan_id is 5, " + NAME),
    ("scans.0.scan_id", ["a"], "scan_id is a list of 1, " + NAME),
    ("scans.0.scan_id", "", "scan_id is .., " + NAME),
    ("scans.0.scan_id", ".", NAME),
    ("scans.0.scan_id", "..", r'scan_id is "\.\.", ' + NAME),
    ("scans.0.scan_id", "../../etc/brain", "etc/brain.*" + NAME),
    ("scans.0.scan_id", "/etc", "/etc.*" + NAME),
    ("scans.0.scan_id", "a/b", NAME),
    ("scans.0.scan_id", "a\\b", NAME),
    ("scans.0.scan_id", "-", NAME),
    ("scans.0.scan_id", "--", NAME),
    ("scans.0.scan_id", ".a", NAME),
    ("scans.0.scan_id", "a\0b", NAME),
    ("scans.0.scan_id", "a\nb", NAME),
    ("scans.0.scan_id", "\ud800", NAME),
    ("scans.0.scan_id", "x" * 5000, NAME),
]

PAIR = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
DATASETS = [  # what dataset.json of a Decathlon task holds, what is said
    ("{", "damaged"),
    ("null", "is null, not an object"),
    (b"\xff", "damaged .*utf-8"),
    ("{}", "training is missing"),
    ('{"training": null}', "training is null"),
    ('{"training": [5]}', r"training\[0\] is 5"),
    ('{"training": [{"image": "a"}]}', r"training\[0\].label is missing"),
    ('{"training": [{"image": 5, "label": "b"}]}', r"training\[0\].image is 5"),
    (json.dumps({"training": [PAIR], "modality": {"first": "T1w"}}), "not contrasts by number"),
    (json.dumps({"training": [PAIR], "modality": {"0": None}}), "not contrasts by number"),
    (json.dumps({"training": [PAIR], "modality": "MRI"}), "not contrasts by number"),
]


def decathlon(content: str | bytes):
    def make(folder: Path) -> None:
        (folder / "imagesTr").mkdir()
        (folder / "imagesTr/a.nii.gz").touch()
        (folder / "dataset.json").write_bytes(content.encode() if isinstance(content, str) else content)

    return make


CALLS = [  # everything that makes a path from an id
    ("dataset", lambda f: SliceDataset(f)),
    ("recolour", lambda f: recolour_folder(f, f / "out", progress=False)),
    ("png", lambda f: export_png(f, f / "out")),
]

CASES = [
    *(Case(f"manifest {name}", make, Manifest.load, says, "manifest.json") for name, make, says in FILES),
    *(
        Case(
            f"manifest {place} {'missing' if value is MISSING else ascii(json.dumps(value))[:30]}",
            damaged(place, value),
            Manifest.load,
            says,
            "" if place == "complete" else "manifest.json",
        )
        for place, value, says in VALUES
    ),
    *(
        Case(f"dataset.json {number}", decathlon(content), find_scans, says, "dataset.json")
        for number, (content, says) in enumerate(DATASETS)
    ),
    *(
        Case(f"{call_name} of id {value}", damaged("scans.0.scan_id", value), call, NAME, "manifest.json")
        for call_name, call in CALLS
        for value in ("../outside", "/tmp/outside")
    ),
]
