"""From a folder of scans to slices on disk and a torch dataset of them.

A prepared folder:

    manifest.json                    what is in it: settings, grid, one entry a scan, what was skipped and why
    scans/SCAN_ID/image.npy          (n, H, W) float16 in [-1, 1], background -1
    scans/SCAN_ID/brain.npy          (n, H, W) bool
    scans/SCAN_ID/lesion.npy         (n, H, W) bool, for scans with a lesion mask
    scans/SCAN_ID/scan.json          this scan's entry, and the state of the files it was made from

A scan's folder is written under another name and then moved into place, so that it is there whole or not at
all; what is there is not made again. Prepared folders on one grid can be joined in one SliceDataset.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from madad_lite.errors import ScanError
from madad_lite.files import replace_file
from madad_lite.scans.find import ScanFiles, find_scans
from madad_lite.scans.grid import Grid
from madad_lite.scans.prepare import prepare_volume
from madad_lite.slices.splits import SPLITS, assign_splits, read_splits

VERSION = 1


class Manifest:
    """What a prepared folder holds. `.scans(split)` are dictionaries with the keys

    scan_id, subject, split, group ("normal" or "patient"), contrast, source (the scan's file), n_slices,
    geometry (for `Geometry.from_dict`), lesion (is there a mask), lesion_pixels (a number a slice; [] without
    mask).
    """

    def __init__(self, folder: str | Path, content: dict):
        self.folder = Path(folder)
        self.contrast: str = content["contrast"]
        self.grid = Grid.from_dict(content["grid"])
        self.settings: dict = content["settings"]
        self.complete: bool = content["complete"]
        self.entries: list[dict] = content["scans"]
        self.skipped: list[tuple[str, str]] = [tuple(s) for s in content["skipped"]]

    @classmethod
    def load(cls, folder: str | Path, *, unfinished: bool = False) -> Manifest:
        """Read folder/manifest.json. ScanError when there is none, or when the preparation stopped before its
        end.
        """
        path = Path(folder) / "manifest.json"
        try:
            content = json.loads(path.read_text())
            if content["version"] != VERSION:
                raise ScanError(
                    f"{path}: has version {content['version']}, not {VERSION}; prepare the scans again"
                )
            manifest = cls(folder, content)
        except FileNotFoundError:
            raise ScanError(f"{folder}: no manifest.json there; run `madad prepare` first") from None
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ScanError(
                f"{path}: damaged ({error!r}); remove the folder and prepare the scans again"
            ) from None
        if not (manifest.complete or unfinished):
            raise ScanError(f"{folder}: its preparation was interrupted; run the same `madad prepare` again")
        return manifest

    def scans(self, split: str | None = None) -> list[dict]:
        """The scans of a split, or all of them."""
        if split is not None and split not in SPLITS:
            raise ValueError(f"{split!r} is not a split; choose one of {', '.join(SPLITS)}")
        return [s for s in self.entries if split in (None, s["split"])]

    def array(self, scan: dict, name: str) -> np.ndarray:
        """A scan's "image", "brain" or "lesion", (n, H, W), memory-mapped: only what is indexed is read."""
        return np.load(self.folder / "scans" / scan["scan_id"] / f"{name}.npy", mmap_mode="r")

    def to_dict(self) -> dict:
        return {
            "version": VERSION,
            "contrast": self.contrast,
            "grid": self.grid.to_dict(),
            "settings": self.settings,
            "complete": self.complete,
            "scans": self.entries,
            "skipped": [list(s) for s in self.skipped],
        }

    def save(self) -> None:
        """Write manifest.json, atomically, and only if that changes it."""
        path, text = self.folder / "manifest.json", json.dumps(self.to_dict(), indent=1) + "\n"
        if path.exists() and path.read_text() == text:
            return
        replace_file(path, text)


def _state(scan: ScanFiles) -> list:
    """Size and time of the files of a scan: when one changes, the scan is prepared again. None: not there."""
    files = [f.stat() if f and f.exists() else None for f in (scan.image, scan.brain, scan.lesion)]
    return [[f.st_size, f.st_mtime_ns] if f else None for f in files] + [scan.channel]


def _prepared(scan: ScanFiles, folder: Path) -> dict | None:
    """The entry of a scan that is done already, else None."""
    path = folder / scan.scan_id / "scan.json"
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    return (
        stored["entry"]
        if stored["state"] == _state(scan) and stored["entry"]["source"] == str(scan.image)
        else None
    )


def _prepare_scan(scan: ScanFiles, folder: Path, grid: Grid, register: bool | str) -> tuple[str, str] | None:
    """Prepare one scan into folder/SCAN_ID. Returns (file, reason) if it cannot be used. Runs in a worker
    process.
    """
    state = _state(scan)
    try:
        prepared = prepare_volume(
            scan.image,
            brain=scan.brain,
            lesion=scan.lesion,
            channel=scan.channel,
            grid=grid,
            register=register,
        )
    except ImportError as error:  # registration is not installed: no scan's fault, and the same for all
        raise ScanError(f"{scan.image}: {error}") from None
    except Exception as error:  # whatever is wrong with one scan, the others are still done
        kind = "" if isinstance(error, ScanError) else f"{type(error).__name__}: "
        return str(scan.image), " ".join(f"{kind}{error}".split())
    arrays = {"image": prepared.image.astype(np.float16), "brain": prepared.brain.astype(bool)}
    if prepared.lesion is not None:
        arrays["lesion"] = prepared.lesion.astype(bool)
    entry = {
        "scan_id": scan.scan_id,
        "subject": scan.subject,
        "group": scan.group,
        "contrast": scan.contrast,
        "source": str(scan.image),
        "n_slices": len(prepared.image),
        "geometry": prepared.geometry.to_dict(),
        "lesion": prepared.lesion is not None,
        "lesion_pixels": []
        if prepared.lesion is None
        else [int(n) for n in arrays["lesion"].sum(axis=(1, 2))],
    }
    part, done = folder / f"{scan.scan_id}.part", folder / scan.scan_id
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(part / f"{name}.npy", np.ascontiguousarray(array))  # a slice is one piece of the file
    (part / "scan.json").write_text(json.dumps({"entry": entry, "state": state}))
    shutil.rmtree(done, ignore_errors=True)  # made from files that have changed since
    os.replace(part, done)
    return None


def _in_parallel(tasks: list[tuple], workers: int | None) -> Iterator[tuple[str, str] | None]:
    """_prepare_scan of each task, in processes that import neither the caller's script nor torch; as they
    come.
    """
    import joblib

    workers = min(workers or joblib.cpu_count(), len(tasks))
    if workers <= 1:
        yield from (_prepare_scan(*task) for task in tasks)
        return
    # as many threads as cores in all: SimpleITK and BLAS would otherwise start that many in each process
    threads = max(1, joblib.cpu_count() // workers)
    with joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=threads):
        try:
            yield from joblib.Parallel(return_as="generator_unordered")(
                joblib.delayed(_prepare_scan)(*task) for task in tasks
            )
        except joblib.externals.loky.process_executor.TerminatedWorkerError:
            raise ScanError(
                f"{tasks[0][1].parent}: a worker process was ended by the system, most likely for lack of memory; "
                "run it again with fewer workers, what is done is kept"
            ) from None


def prepare_folder(
    source: str | Path,
    out: str | Path,
    *,
    contrast: str = "t1",
    layout: str = "auto",
    grid: Grid | None = None,
    register: bool | str = "auto",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    splits: Mapping[str, Sequence[str]] | str | Path | None = None,
    patients_in_train: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Prepare the scans of a folder as slices on one grid. Returns the manifest; its `.skipped` says what was
    unusable.

    splits: which subject goes where, as a mapping or a JSON file {"train": [...], "val": [...], "test":
        [...]}; subjects in none are left out. Without it a random split by subject: normal subjects by
        `fractions`, patients to val and test, half each, or, with `patients_in_train`, by `fractions` too
        (SliceDataset then trains only on their slices without lesion).
    grid: by default Grid().  register: see `scans.prepare.prepare_volume`.
    workers: processes, by default one a core.

    Called again, it goes on where it was interrupted, prepares what is new or has changed in `source`, and
    leaves alone what is done; subjects keep their split. Raises ScanError when `out` was made with other
    settings or holds something else.
    """
    source, out, grid = Path(source).resolve(), Path(out), grid or Grid()
    splits = None if splits is None else read_splits(splits)
    scans = find_scans(source, contrast, layout)
    settings = json.loads(
        json.dumps(
            {
                "source": str(source),
                "contrast": contrast,
                "grid": grid.to_dict(),
                "register": register,
                "fractions": [float(f) for f in fractions],
                "seed": seed,
                "splits": splits,
                "patients_in_train": patients_in_train,
            }
        )
    )
    manifest = _open(out, settings)
    assigned = {s["subject"]: s["split"] for s in manifest.entries}
    chosen = assign_splits(
        scans, fractions, seed, splits=splits, patients_in_train=patients_in_train, assigned=assigned
    )
    missing = (
        [] if splits is None else sorted({s for v in splits.values() for s in v} - {s.subject for s in scans})
    )
    skipped = [
        (subject, f"{subject}: named in the splits, but has no {contrast} scan in {source}")
        for subject in missing
    ]
    usable = []
    for scan in scans:
        if scan.subject not in chosen:
            continue
        if scan.group == "patient" and scan.lesion is None:
            skipped.append(
                (str(scan.image), f"{scan.image}: a patient's scan without lesion mask; add the mask")
            )
        else:
            usable.append(scan)

    folder = out / "scans"
    for leftover in folder.glob("*.part"):
        shutil.rmtree(leftover)
    tasks = [(scan, folder, grid, register) for scan in usable if _prepared(scan, folder) is None]
    if tasks:
        if manifest.complete:  # until it fits the files again
            manifest.complete = False
            manifest.save()
        results = _in_parallel(tasks, workers)
        bar = tqdm(results, desc=f"preparing {contrast}", total=len(tasks), unit="scan", disable=not progress)
        skipped += sorted(result for result in bar if result)
    entries = [(scan, _prepared(scan, folder)) for scan in usable]
    # of an entry, split and group depend on the other scans and on tables: they are known now
    manifest.entries = [e | {"split": chosen[s.subject], "group": s.group} for s, e in entries if e]
    manifest.skipped, manifest.complete = skipped, True
    manifest.save()
    return manifest


def _open(out: Path, settings: dict) -> Manifest:
    """The manifest in `out`, checked against the settings, or a new one, which is saved as incomplete."""
    if (out / "manifest.json").exists():
        manifest = Manifest.load(out, unfinished=True)
        if changed := sorted(k for k in settings if manifest.settings.get(k) != settings[k]):
            k = changed[0]
            raise ScanError(
                f"{out}: was prepared with {k}={manifest.settings.get(k)!r}, now it is {settings[k]!r}; "
                "choose another folder, or remove this one"
            )
        return manifest
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ScanError(f"{out}: exists and is not a prepared folder; choose another one")
    (out / "scans").mkdir(parents=True, exist_ok=True)
    content = {"contrast": settings["contrast"], "grid": settings["grid"], "settings": settings}
    manifest = Manifest(out, content | {"complete": False, "scans": [], "skipped": []})
    manifest.save()
    return manifest
