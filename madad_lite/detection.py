"""Anomaly maps of many scans, as files: what `madad detect` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from madad_lite.pipeline import MadAdPipeline
from madad_lite.volumes import ScanError, save_nifti


def scan_name(path: str | Path) -> str:
    """sub-01_T1w.nii.gz -> sub-01_T1w."""
    name = Path(path).name
    return name[: -len(".nii.gz")] if name.endswith(".nii.gz") else Path(name).stem


def outputs(scan: str | Path, out: str | Path) -> dict[str, Path]:
    """The three files that are written for a scan."""
    stem = Path(out) / scan_name(scan)
    endings = {"anomaly": "_anomaly.nii.gz", "healed": "_healed.nii.gz", "report": "_report.png"}
    return {k: stem.with_name(stem.name + v) for k, v in endings.items()}


def detect(
    scans: Sequence[str | Path],
    out: str | Path,
    *,
    weights: str | Path | MadAdPipeline = "t1",
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    progress: bool = True,
    **options,  # of MadAdPipeline.__call__
) -> list[tuple[Path, str]]:
    """Write `<name>_anomaly.nii.gz` (float32 in [0, 1], the scan's own grid), `<name>_healed.nii.gz`, `<name>_report.png`.

    One bad scan does not stop the others. Returns the scans that failed, each with its reason. Nothing is overwritten without
    `force`. Every scan starts from the same seed, so that its map does not depend on the scans before it.
    """
    from madad_lite.plotting import scan_report

    pipe = weights if isinstance(weights, MadAdPipeline) else MadAdPipeline.from_pretrained(weights)
    pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    Path(out).mkdir(parents=True, exist_ok=True)
    failed: list[tuple[Path, str]] = []
    taken: dict[Path, Path] = {}
    bar = tqdm(scans, desc="scans", disable=not progress or len(scans) == 1)
    for scan in map(Path, bar):
        files = outputs(scan, out)
        try:
            if files["anomaly"] in taken:
                raise ScanError(f"{scan}: has the same name as {taken[files['anomaly']]}; give it another --out folder")
            taken[files["anomaly"]] = scan
            if not force and (there := [f for f in files.values() if f.exists()]):
                raise ScanError(f"{there[0]}: exists already; add --force to overwrite it")
            output = pipe(str(scan), generator=torch.Generator().manual_seed(seed), progress=progress, **options)
            save_nifti(output.to_nifti("anomaly_map"), files["anomaly"], force=force)
            save_nifti(output.to_nifti("healed"), files["healed"], force=force)
            part = files["report"].with_name(f".{files['report'].name}")
            scan_report(output, scan_name(scan)).savefig(part, format="png")
            part.replace(files["report"])
            tqdm.write(f"{scan.name}: {files['anomaly']}")
        except (ScanError, OSError) as error:
            failed.append((scan, str(error)))
            tqdm.write(str(error), file=sys.stderr)
    if failed and len(scans) > 1:
        print(f"{len(scans) - len(failed)} of {len(scans)} scans done, {len(failed)} failed:", file=sys.stderr)
        for scan, reason in failed:
            print(f"  {reason if str(scan.name) in reason else f'{scan}: {reason}'}", file=sys.stderr)
    return failed
