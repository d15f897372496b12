"""Outputs that would take the place of something else, and inputs beside scans and weights: splits, tables, prepared
slices, a run's files.
"""

import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
from command import Command
from commands import ASSEMBLE, FRESH, REPRODUCE, TRAIN, a_folder, a_pipe, text, words

EVALUATE = "evaluate --data data --weights model"
PREPARE = "prepare scans --out out --splits splits.json"
TABLE = "sub-1_T1w.nii.gz"


def also(*makes):
    return lambda folder: [make(folder) for make in makes]


def renamed(old: str, new: str):
    return lambda folder: shutil.move(folder / old, folder / new)


def link(file: str, target: str):
    def make(folder: Path) -> None:
        (folder / file).symlink_to(target)

    return make


def of(folder: str, *names: str):
    """A folder with such files."""

    def make(place: Path) -> None:
        for name in names:
            (place / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (place / folder / name).write_text('{"mine": 1}')

    return make


def pipe(file: str):
    return lambda folder: os.mkfifo(folder / file)


def array(name: str, change, scan: str = "a"):
    """A prepared scan's array changed, and its checksum with it."""

    def make(folder: Path) -> None:
        path = folder / "data/scans" / scan / f"{name}.npy"
        values = np.load(path)
        change(values)
        np.save(path, values)
        known(folder, path, scan, name)

    return make


def known(folder: Path, path: Path, scan: str, name: str) -> None:
    manifest = folder / "data/manifest.json"
    content = json.loads(manifest.read_text())
    entry = next(s for s in content["scans"] if s["scan_id"] == scan)
    entry["crc32"][name] = zlib.crc32(path.read_bytes())
    manifest.write_text(json.dumps(content))


def raw_array(content: bytes):
    """The bytes behind the header of a's brain mask, repeated."""

    def make(folder: Path) -> None:
        path = folder / "data/scans/a/brain.npy"
        head, size = path.read_bytes()[:128], path.stat().st_size - 128
        path.write_bytes(head + (content * size)[:size])
        known(folder, path, "a", "brain")

    return make


def put_at(place, value):
    return lambda values: values.__setitem__(place, value)


def sick(folder: Path) -> None:
    """A scan to train on with a lesion, of which the manifest knows nothing."""
    manifest, scans = folder / "data/manifest.json", folder / "data/scans"
    lesion = np.load(scans / "c/lesion.npy")
    np.save(scans / "a/lesion.npy", lesion)
    content = json.loads(manifest.read_text())
    entry = next(s for s in content["scans"] if s["scan_id"] == "a")
    entry |= {"lesion": True, "lesion_pixels": [0] * len(lesion)}
    manifest.write_text(json.dumps(content))
    known(folder, scans / "a/lesion.npy", "a", "lesion")


def table(content: str | bytes):
    """A folder of subjects as BIDS has them."""

    def make(folder: Path) -> None:
        anat = folder / "bids/sub-1/anat"
        anat.mkdir(parents=True)
        shutil.copy(folder / "scans/good.nii.gz", anat / TABLE)
        text("bids/participants.tsv", content)(folder)

    return make


def task(content: object):
    """A Decathlon task with one image."""

    def make(folder: Path) -> None:
        for part in ("imagesTr", "labelsTr"):
            (folder / "task" / part).mkdir(parents=True)
            shutil.copy(folder / "scans/good.nii.gz", folder / "task" / part / "a.nii.gz")
        (folder / "task/dataset.json").write_text(
            content if isinstance(content, str) else json.dumps(content)
        )

    return make


PAIR = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
TASK = "prepare task --out out"
DEEP = "[" * 100_000
CHANGED = [  # what is there, the command, what is named, what is said
    # folders that would be replaced as a whole
    (
        "a model with notes",
        of("model", "notes.txt"),
        ASSEMBLE.replace("--out out", "--out model --force"),
        "notes.txt",
        "something else",
    ),
    (
        "a model with a folder",
        of("model", "mine/a.npy"),
        ASSEMBLE.replace("--out out", "--out model --force"),
        "mine/a.npy",
        "",
    ),
    (
        "a model with a link",
        link("model/mine", "../data"),
        ASSEMBLE.replace("--out out", "--out model --force"),
        "mine",
        "",
    ),
    (
        "another's pipeline",
        text("model/model_index.json", '{"_class_name": "FluxPipeline"}'),
        ASSEMBLE.replace("--out out", "--out model --force"),
        "model_index.json",
        "_class_name",
    ),
    (
        "someone's settings.json",
        of("mine", "settings.json", "thesis.txt"),
        "export-onnx model --out mine --force",
        "mine",
        "",
    ),
    (
        "settings.json alone",
        of("mine", "settings.json"),
        "export-onnx model --out mine --force",
        "settings.json",
        "not of an export",
    ),
    ("someone's demo.json", of("mine", "demo.json", "thesis.txt"), "demo --out mine", "mine", "earlier demo"),
    (
        "a demo with notes",
        also(
            of("mine", "thesis.txt"), lambda f: (f / "mine/demo.json").write_text('{"made_by": "madad demo"}')
        ),
        "demo --out mine",
        "thesis.txt",
        "earlier demo",
    ),
    (
        "someone's comparison",
        of("mine", "comparison.md"),
        "compare --data data --methods dae --out mine --set steps=2",
        "comparison.md",
        "not an earlier",
    ),
    (
        "someone's picture",
        of("mine", "comparison.png"),
        "compare --data data --methods dae --out mine --set steps=2",
        "comparison.png",
        "not an earlier",
    ),
    (
        "someone's numbers",
        of("mine", "comparison.json"),
        "compare --data data --methods dae --out mine --set steps=2",
        "comparison.json",
        "not an earlier",
    ),
    # files that would be replaced
    *(
        (f"a result that is {n}", make, f"{EVALUATE} --out out.json", "out.json", "not an earlier result")
        for n, make in (
            ("a text", text("out.json", '"methods"')),
            ("a list", text("out.json", '["methods"]')),
            ("nested", text("out.json", DEEP)),
            ("a pipe", pipe("out.json")),
            ("a device", link("out.json", "/dev/zero")),
            ("a link to nothing", link("out.json", "nowhere")),
            ("bytes", text("out.json", b"\xff\xfe")),
            ("twice", text("out.json", '{"methods": 1, "methods": 2}')),
        )
    ),
    # a run's files
    ("a checkpoint that is a pipe", a_pipe("ae/checkpoint.pt"), TRAIN, "checkpoint.pt", "not a file"),
    ("a checkpoint that is a folder", a_folder("ae/checkpoint.pt"), TRAIN, "checkpoint.pt", "not a file"),
    ("a log that is a pipe", a_pipe("ae/log.jsonl"), TRAIN, "log.jsonl", "not a file"),
    ("a log that is a folder", a_folder("ae/log.jsonl"), TRAIN, "log.jsonl", "not a file"),
    # prepared slices
    ("slices with a NaN", array("image", put_at((1, 5, 5), np.nan)), FRESH, "a/image.npy", "NaN"),
    ("slices with an infinity", array("image", put_at((0, 5, 5), -np.inf)), FRESH, "a/image.npy", "NaN"),
    ("slices beyond 1", array("image", put_at((2, 5, 5), 1.5)), FRESH, "a/image.npy", "outside of -1 to 1"),
    ("a mask of sevens", raw_array(b"\x07"), FRESH, "a/brain.npy", "true and false"),
    ("an unknown lesion", sick, FRESH, "a/lesion.npy", "other lesion pixels"),
    (
        "slices to recolour with a NaN",
        array("image", put_at((1, 5, 5), np.nan)),
        "recolour data --out out",
        "a/image.npy",
        "NaN",
    ),
    (
        "slices to train a method with a NaN",
        array("image", put_at((1, 5, 5), np.nan)),
        "train dae --data data --out out --set steps=2 size=tiny",
        "a/image.npy",
        "NaN",
    ),
    ("slices to test with a NaN", array("image", put_at((1, 5, 5), np.nan), "c"), EVALUATE, "", "finite|NaN"),
    ("slices of one tissue", lambda f: None, "recolour data --out out", "scans/a", "cannot be told apart"),
    # splits
    *(
        (f"splits {n}", text("splits.json", content), PREPARE, "splits.json", said)
        for n, content, said in (
            ("of objects", '{"train": {"good": 1}}', "must be"),
            ("of null", '{"train": [null]}', "must be"),
            ("of lists", '{"train": [["good"]]}', "must be"),
            ("of truth", '{"train": [true]}', "must be"),
            ("of words", '{"train": "good"}', "must be"),
            ("of a number", '{"train": 3}', "must be"),
            ("of another name", '{"training": ["good"]}', "must be"),
            ("a list", '["good"]', "must be"),
            ("twice", '{"train": ["good"], "train": []}', "there twice"),
            ("nested", DEEP, "damaged"),
            ("in two", '{"train": ["good"], "val": ["good"]}', "in two splits"),
            ("empty", "", "damaged"),
            ("of bytes", b"\xff", "damaged"),
        )
    ),
    ("splits that are a pipe", pipe("splits.json"), PREPARE, "splits.json", "not a file"),
    # tables and tasks
    (
        "a table of one long field",
        table("participant_id\tgroup\nsub-1\t" + "x" * 200_000),
        "prepare bids --out out",
        "participants.tsv",
        "no table",
    ),
    *(
        (f"a task {n}", task(content), TASK, "dataset.json", said)
        for n, content, said in (
            (
                "with a file above",
                {"training": [PAIR | {"image": "../scans/good.nii.gz"}]},
                r"training\[0\].image",
            ),
            (
                "with a file elsewhere",
                {"training": [PAIR | {"label": "/etc/passwd"}]},
                r"training\[0\].label",
            ),
            ("with an image twice", {"training": [PAIR, PAIR]}, "in it twice"),
            (
                "with a channel of many digits",
                {"training": [PAIR], "modality": {"9" * 5000: "T1"}},
                "by number",
            ),
            ("with a channel of other digits", {"training": [PAIR], "modality": {"٣": "T1"}}, "by number"),
            ("with its images twice", '{"training": [], "training": []}', "there twice"),
        )
    ),
]
USE = [  # the words, what is named, what is said
    ("import-official notes.txt notes.txt --out out", "", ""),
    ("import-official notes.txt --out out --size 97", "", ""),
    ("import-official notes.txt --out out --spacing nan", "", ""),
    ("import-official notes.txt --out notes.txt", "notes.txt", "is a file"),
    ("recolour data --out data/scans", "data/scans", "is not empty"),
    ("recolour scans --out out", "scans", "no manifest"),
    ("phantom --out out --contrast pd", "", "invalid choice"),
    ("phantom --out out --normal 99999999999999999999", "", "whole number"),
    ("phantom --out model --force", "model", "is not empty"),
    ("detect scans/good.nii.gz --out out --weights model --seed 1.5", "", "invalid"),
    ("detect scans/good.nii.gz --out out --weights model --z-range 1", "", "expected 2"),
    ("detect scans/good.nii.gz --out out --weights model --z-range 0 inf", "", "outside of"),
    ("detect scans/good.nii.gz --out out --weights model --series 1", "", "DICOM"),
    ("detect scans/good.nii.gz --out scans/good.nii.gz/x --weights model", "good.nii.gz", ""),
    ("detect scans/good.nii.gz --out /proc/madad --weights model", "/proc/madad", "cannot be written"),
    ("prepare scans --out /proc/madad", "/proc/madad", "cannot be written"),
    ("train autoencoder --data data --out /proc/madad", "/proc/madad", "cannot be written"),
    (EVALUATE + " --out /proc/madad/x.json", "/proc/madad", ""),
    (EVALUATE + " --out notes.txt/x.json", "notes.txt", ""),
    ("prepare scans --out scans/good.nii.gz", "good.nii.gz", "is a file"),
    ("prepare scans --out out --series 1", "scans", "DICOM"),
    ("evaluate --data data/scans --weights model", "data/scans", "no manifest"),
    ("evaluate --data data --weights model --steps 99", "", "between 1 and"),
    ("evaluate --data data --weights model --eta nan", "", "eta"),
    ("reproduce S1 --train data --test data --out data", "data", "other files"),
    ("reproduce S1 --train data --test nowhere --out out", "nowhere", "no manifest"),
    (REPRODUCE + " --set denoiser.steps=nan", "", "steps="),
    (REPRODUCE + " --set detection.eta=7", "", "eta"),
    (FRESH + " --set steps=" + "1" * 5000, "", "steps="),
    (FRESH + " --set steps=" + "[" * 20_000, "", "steps="),
    (FRESH + ' --set seed={"a":1,"a":2}', "", "seed="),
    (FRESH + " --set seed=-1", "", "seed="),
    (FRESH + " --set size=[]", "", "size="),
    (FRESH + " --set learning_rate=1e-400", "", "learning_rate="),
    (FRESH + " --set epochs=nan", "", "epochs="),
    (ASSEMBLE + " --set decision_threshold=NaN", "", "from 0 to 1"),
    (ASSEMBLE + " --set decision_threshold=true", "", "from 0 to 1"),
    (ASSEMBLE + " --set sigma=Infinity", "", "sigma"),
    (ASSEMBLE + " --set evil=1", "", "no such setting"),
]
CASES = [
    *(Command(f"there: {n}", words(line), says, file, make) for n, make, line, file, says in CHANGED),
    *(Command(f"also {line[:120]}", words(line), says, file) for line, file, says in USE),
]
