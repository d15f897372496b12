"""From a folder of scans to slices on disk, in the layout that manifest.py describes.

A scan's folder is written under another name and then moved into place, so that it is there whole or not at
all; what is there, and whole, is not made again. Prepared folders on one grid can be joined in one
SliceDataset.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from madad_lite.errors import RunError, ScanError, one_line
from madad_lite.files import (
    new_folder,
    nifti_files,
    read_json,
    refuse_foreign,
    remove_leftovers,
    safe_name,
    write_json,
    writing,
)
from madad_lite.scans.contrast import LIKE, contrast_seen
from madad_lite.scans.dicom import convert_people, holds_dicom
from madad_lite.scans.find import ScanFiles, find_scans, is_simulated
from madad_lite.scans.grid import Grid
from madad_lite.scans.prepare import prepare_volume
from madad_lite.scans.tissues import check_normalisation
from madad_lite.slices.manifest import ARRAYS, ENTRY, Manifest, contradiction, write_arrays
from madad_lite.slices.splits import assign_splits, read_splits

log = logging.getLogger(__name__)
SCAN_FILES = ["scan.json", *(f"{name}.npy" for name in ARRAYS)]


def _state(scan: ScanFiles) -> list:
    """Size and time of the files of a scan: when one changes, the scan is prepared again. None: not there."""

    def of(file: Path | None) -> list[int] | None:
        try:
            found = None if file is None else file.stat()
        except (OSError, ValueError):  # a name that is too long, or holds a zero
            return None
        return found and [found.st_size, found.st_mtime_ns]

    return [of(scan.image), of(scan.brain), of(scan.lesion), scan.channel]


def _prepared(scan: ScanFiles, manifest: Manifest, checksums: bool = True) -> dict | None:
    """The entry of a scan that is done already, and whole, else None."""
    folder = manifest.folder / "scans" / scan.scan_id
    try:
        stored = read_json(folder / "scan.json", {"entry": ENTRY, "state": [None]})
        entry = stored["entry"]
        told = entry["scan_id"], entry["source"], stored["state"]
        if told != (scan.scan_id, str(scan.image), _state(scan)):
            return None
        manifest.check_arrays(entry, checksums=checksums)
    except ScanError:  # damaged: it is made again
        return None
    return None if contradiction(entry, manifest.to_dict()) else entry


def _prepare_scan(
    scan: ScanFiles, folder: Path, grid: Grid, register: bool | str, normalise: str
) -> tuple[str, str] | None:
    """Prepare one scan into folder/SCAN_ID. Returns (file, reason) if it cannot be used. Runs in a worker
    process.
    """
    state, target = _state(scan), folder / scan.scan_id
    try:
        refuse_foreign(target, SCAN_FILES, "a prepared scan")
        prepared = prepare_volume(
            scan.image,
            brain=scan.brain,
            lesion=scan.lesion,
            channel=scan.channel,
            grid=grid,
            register=register,
            normalise=normalise,
            contrast=scan.contrast,
        )
    except ImportError as error:  # registration is not installed: no scan's fault, and the same for all
        raise ScanError(f"{scan.image}: {error}") from None
    except Exception as error:  # whatever is wrong with one scan, the others are still done
        kind = "" if isinstance(error, (ScanError, RunError)) else f"{type(error).__name__}: "
        return str(scan.image), kind + one_line(error)
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
        "contrast_seen": contrast_seen(prepared) if normalise == "median" else None,
        "lesion": prepared.lesion is not None,
        "lesion_pixels": []
        if prepared.lesion is None
        else [int(n) for n in arrays["lesion"].sum(axis=(1, 2))],
    }
    # replaced: damaged, or made from files that have changed since
    with new_folder(target, replace=True, ours=SCAN_FILES) as part:
        entry["crc32"] = write_arrays(part, arrays)
        write_json(part / "scan.json", {"entry": entry, "state": state})
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
    series: str | None = None,
    grid: Grid | None = None,
    register: bool | str = "auto",
    normalise: str | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    splits: Mapping[str, Sequence[str]] | str | Path | None = None,
    patients_in_train: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Prepare the scans of a folder as slices on one grid. Returns the manifest; its `.skipped` says what was
    unusable.

    A folder without NIfTI files that holds DICOM files has one examination in each subfolder, or is one: they are
    converted to `out/nifti` first, see scans.dicom.
    splits: which subject goes where, as a mapping or a JSON file {"train": [...], "val": [...], "test":
        [...]}; subjects in none are left out. Without it a hash of each subject's name decides (see
        splits.split_subjects; of the simulated cohort, split_by_count): normal subjects by `fractions`, patients
        to val and test, half each, or, with `patients_in_train`, by `fractions` too (SliceDataset then trains
        only on their slices without lesion).
    series: of DICOM folders, the number or description that all of them have; None: see scans.dicom.choose.
    grid: by default Grid().  register, normalise: see `scans.prepare.prepare_volume`.
    workers: processes, by default one a core.

    Called again, it goes on where it was interrupted, prepares what is new or has changed in `source` and what
    is damaged in `out`, and leaves alone what is done. Every subject that was ever seen keeps its split, also
    one whose scans could not be used at first; a scan keeps its id. A scan that cannot be used, or a folder that
    may not be read, stops no other; one that looks like another contrast is prepared, and warned of. Raises ScanError
    when `out` was made with other settings or holds something else.
    """
    source, out, grid = Path(source).resolve(), Path(out), grid or Grid()
    splits = None if splits is None else read_splits(splits)
    normalise = normalise or "median"
    check_normalisation(normalise, contrast)
    dicom = source.is_dir() and not nifti_files(source, lambda error: None) and holds_dicom(source)
    if series is not None and not dicom:
        raise ScanError(f"{source}: --series chooses within DICOM folders, and this is none")
    settings = json.loads(
        json.dumps(
            {
                "source": str(source),
                "contrast": contrast,
                "grid": grid.to_dict(),
                "register": register,
                "normalise": normalise,
                "fractions": [float(f) for f in fractions],
                "seed": seed,
                "splits": splits,
                "patients_in_train": patients_in_train,
            }
        )
    )
    unusable: list[tuple[str, str]] = []
    if dicom:
        settings["series"] = series
        if (out / "manifest.json").exists():
            _open(out, settings)  # before a scan of other settings is replaced
        converted = (out / "nifti").resolve()
        unusable = _converted(source, converted, contrast, series)
        scans = find_scans(converted, contrast, "plain")
    else:
        scans = find_scans(source, contrast, layout)
    # who is where is known before anything is written, so that wrong fractions leave no folder behind
    options = {"splits": splits, "patients_in_train": patients_in_train, "by_count": is_simulated(source)}
    assign_splits(scans, fractions, seed, **options)
    manifest = _open(out, settings)
    scans = _with_their_ids(scans, source, manifest)
    chosen = assign_splits(scans, fractions, seed, **options, assigned=manifest.subjects)
    closed: list[OSError] = []
    nifti_files(source, closed.append)
    skipped = unusable + [
        (str(e.filename), f"{e.filename}: cannot be read ({e.strerror}); nothing in it was prepared")
        for e in closed
    ]
    missing = [] if splits is None else {s for v in splits.values() for s in v} - {s.subject for s in scans}
    skipped += [
        (subject, f"{subject}: named in the splits, but has no {contrast} scan in {source}")
        for subject in sorted(missing)
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
    remove_leftovers(folder)
    manifest.subjects = dict(sorted((manifest.subjects | chosen).items()))
    done = {scan.scan_id: _prepared(scan, manifest) for scan in usable}
    tasks = [(scan, folder, grid, register, normalise) for scan in usable if done[scan.scan_id] is None]
    if tasks:
        manifest.complete = False  # until it fits the files again
        manifest.save()
        results = _in_parallel(tasks, workers)
        bar = tqdm(results, desc=f"preparing {contrast}", total=len(tasks), unit="scan", disable=not progress)
        skipped += sorted(result for result in bar if result)
    entries = [(s, done[s.scan_id] or _prepared(s, manifest, checksums=False)) for s in usable]
    # of an entry, split and group depend on the other scans and on tables: they are known now
    manifest.entries = [e | {"split": chosen[s.subject], "group": s.group} for s, e in entries if e]
    manifest.skipped, manifest.complete = skipped, True
    manifest.save()
    for e in manifest.entries:
        if (seen := e.get("contrast_seen")) not in (None, LIKE[contrast]):
            log.warning(
                f"{e['source']}: prepared as {contrast.upper()}, and looks like {seen.upper()}; leave it out?"
            )
    return manifest


def _converted(source: Path, out: Path, contrast: str, series: str | None) -> list[tuple[str, str]]:
    """DICOM examinations as NIfTI files in `out`. Says which series were taken, returns what had none."""
    with writing(out):
        said, unusable = convert_people(source, out, contrast, series)
    for line in said:
        tqdm.write(line)
    return unusable


def _with_their_ids(scans: list[ScanFiles], source: Path, manifest: Manifest) -> list[ScanFiles]:
    """Scans that were prepared before keep the id that they had, also when others of their name have come."""
    known = {e["source"]: e["scan_id"] for e in manifest.entries}
    taken = {i.lower() for i in known.values()}
    times = Counter(scan.image for scan in scans)  # channels of one file have ids of their own
    result = []
    for scan in scans:
        name = scan.scan_id
        if str(scan.image) in known:
            name = known[str(scan.image)] if times[scan.image] == 1 else name
        elif name.lower() in taken:
            name = safe_name(f"./{os.path.relpath(scan.image, source)}")
        result.append(replace(scan, scan_id=name))
    return sorted(result, key=lambda s: s.scan_id)


def _open(out: Path, settings: dict) -> Manifest:
    """The manifest in `out`, checked against the settings, or a new one, which is saved as incomplete."""
    if (out / "manifest.json").exists():
        manifest = Manifest.load(out, unfinished=True)
        if manifest.recoloured:
            raise ScanError(
                f"{out}: holds slices that were recoloured from {manifest.settings['recoloured_from']}; "
                "choose another folder"
            )
        own = {
            "contrast": manifest.contrast,
            "grid": manifest.grid.to_dict(),
            "normalise": manifest.normalise,
        }
        stored = manifest.settings | own
        if changed := sorted(k for k in settings if stored.get(k) != settings[k]):
            k = changed[0]
            raise ScanError(
                f"{out}: was prepared with {k}={stored.get(k)!r}, now it is {settings[k]!r}; "
                "choose another folder, or remove this one"
            )
        return manifest
    if out.exists() and (not out.is_dir() or any(p.name != "nifti" for p in out.iterdir())):
        raise ScanError(f"{out}: exists and is not a prepared folder; choose another one")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    content = {"contrast": settings["contrast"], "grid": settings["grid"], "settings": settings}
    manifest = Manifest(out, content | {"complete": False, "scans": [], "skipped": []})
    manifest.save()  # before there is anything else: interrupted here, it is still known as ours
    with writing(out):
        (out / "scans").mkdir(exist_ok=True)
    return manifest
