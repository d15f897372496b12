"""Anomaly maps of many scans, as files: what `madad detect` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from madad_lite.errors import ScanError
from madad_lite.files import writing
from madad_lite.pipeline import MadAdOutput, MadAdPipeline
from madad_lite.scans.nifti import save_nifti
from madad_lite.training.processes import processes

ENDINGS = {"healed": "_healed.nii.gz", "report": "_report.png", "anomaly": "_anomaly.nii.gz"}
MASKS = ("mask", "seg", "lesion", "label")  # a file of a folder whose name ends so is no scan


def scan_name(path: str | Path) -> str:
    """sub-01_T1w.nii.gz -> sub-01_T1w."""
    name = Path(path).name
    return name[: -len(".nii.gz")] if name.endswith(".nii.gz") else Path(name).stem


def outputs(scan: str | Path, out: str | Path) -> dict[str, Path]:
    """The three files that are written for a scan."""
    return {k: Path(out) / f"{scan_name(scan)}{ending}" for k, ending in ENDINGS.items()}


def scans_in(paths: Sequence[str | Path]) -> list[Path]:
    """Files as they are given; of a folder all .nii and .nii.gz in it, sorted, but for masks and what an
    earlier run wrote.
    """

    def is_scan(name: str) -> bool:
        stem = name.partition(".nii")[0]
        left_out = (
            name.startswith(".") or stem.lower().endswith(MASKS) or name.endswith(tuple(ENDINGS.values()))
        )
        return name.endswith((".nii", ".nii.gz")) and not left_out

    found: list[Path] = []
    for path in map(Path, paths):
        found += sorted(p for p in path.rglob("*") if is_scan(p.name)) if path.is_dir() else [path]
    return found


def detect(
    scans: Sequence[str | Path],
    out: str | Path,
    *,
    weights: str | Path | MadAdPipeline = "t1",
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    resume: bool = False,
    progress: bool = True,
    **options,  # of MadAdPipeline.__call__
) -> list[tuple[Path, str]]:
    """Write `<name>_anomaly.nii.gz` (float32 in [0, 1], the scan's own grid), `<name>_healed.nii.gz`,
    `<name>_report.png`.

    One bad scan does not stop the others. Returns the scans that failed, each with its reason. Where results
    exist already, `resume` leaves out what is finished, `force` overwrites it, and without either the scan
    fails. Several processes share the scans. Every scan starts from the same seed, so that its map does not
    depend on the others.
    """
    state, scans = processes(), list(dict.fromkeys(map(Path, scans)))
    shown = progress and state.is_main_process
    pipe = weights if isinstance(weights, MadAdPipeline) else MadAdPipeline.from_pretrained(weights)
    pipe.to(device or (state.device if state.device.type == "cuda" else "cpu"))
    with writing(Path(out)):
        Path(out).mkdir(parents=True, exist_ok=True)
    named = {scan_name(scan): scan for scan in reversed(scans)}  # the first of a name has it
    failed = [
        (scan, f"{scan}: has the same name as {named[scan_name(scan)]}; give it another --out folder")
        for scan in scans
        if named[scan_name(scan)] != scan
    ]
    left = [
        scan for scan in scans if named[scan_name(scan)] == scan and not (resume and _finished(scan, out))
    ]
    state.wait_for_everyone()  # all have seen what is finished before one goes on
    failed, left = (
        failed[state.process_index :: state.num_processes],
        left[state.process_index :: state.num_processes],
    )
    for scan in tqdm(left, desc="scans", disable=not shown or len(scans) == 1):
        try:
            if not (force or resume) and (there := [f for f in outputs(scan, out).values() if f.exists()]):
                raise ScanError(
                    f"{there[0]}: exists already; --resume leaves out what is finished, --force overwrites it"
                )
            output = pipe(str(scan), generator=torch.Generator().manual_seed(seed), progress=shown, **options)
            _write(output, scan, out)
            tqdm.write(f"{scan.name}: {outputs(scan, out)['anomaly']}")
        except Exception as error:  # whatever is wrong with one scan, the others are still done
            kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())
            failed.append((scan, reason if scan.name in reason else f"{scan}: {reason}"))
            tqdm.write(failed[-1][1], file=sys.stderr)
    failed = sorted(gather_object(failed))
    if failed and len(scans) > 1 and state.is_main_process:
        print(
            f"{len(scans) - len(failed)} of {len(scans)} scans done, {len(failed)} failed:", file=sys.stderr
        )
        for _, reason in failed:
            print(f"  {reason}", file=sys.stderr)
    state.wait_for_everyone()  # a launcher ends all processes when the first of them reports a failure
    return failed


def _finished(scan: Path, out: str | Path) -> bool:
    return all(f.exists() for f in outputs(scan, out).values())


def _write(output: MadAdOutput, scan: Path, out: str | Path) -> None:
    """All three are there before one takes the place of an earlier run's; where an anomaly map is, they are
    of the same run.
    """
    from madad_lite.plotting import scan_report

    files = outputs(scan, out)
    parts = {k: f.with_name(f".part-{f.name}") for k, f in files.items()}
    with writing(files["anomaly"]):
        try:
            save_nifti(output.to_nifti("healed"), parts["healed"], force=True)
            scan_report(output, scan_name(scan)).savefig(parts["report"], format="png")
            save_nifti(output.to_nifti("anomaly_map"), parts["anomaly"], force=True)
            files["anomaly"].unlink(missing_ok=True)
            for k, part in parts.items():
                part.replace(files[k])
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)
