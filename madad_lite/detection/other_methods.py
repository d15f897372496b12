"""Anomaly maps of scans by a trained method of the family: what `madad detect --method FOLDER` does."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from madad_lite.detection import record
from madad_lite.detection.many_scans import check_outputs, outputs, refuse_another_contrast
from madad_lite.errors import Refused, ScanError, one_line
from madad_lite.family.frame import Method, load
from madad_lite.files import new_file, stem, write_json, writing
from madad_lite.scans.contrast import contrast_seen
from madad_lite.scans.find import brain_beside
from madad_lite.scans.given import quick_look
from madad_lite.scans.grid import Grid
from madad_lite.scans.nifti import return_to_scan
from madad_lite.scans.prepare import prepare_volume


def detect_by(
    method: str | Path | Method,
    scans: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    brain: str | Path | None = None,
    channel: int | None = None,
    register: bool | str = "auto",
    z_range: tuple[float, float] | None = None,
    z_spacing: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | None = None,
    force: bool = False,
    force_contrast: bool = False,
) -> list[tuple[Path, str]]:
    """Write for each scan, on its own grid, `<name>_anomaly.nii.gz` (float32 in [0, 1]) and `<name>.json`.

    method: its folder, or one that is loaded. brain: a mask for one scan, None: one beside the scan, else found. The
    others as of many_scans.detect. One bad scan does not stop the others; returns those that failed, with the reason.
    """
    scans = [scans] if isinstance(scans, (str, os.PathLike)) else scans
    scans, out = [Path(s) for s in scans], Path(out)
    if len({stem(s) for s in scans}) < len(scans):
        raise Refused("two scans of the same name; give them different --out folders")
    if brain is not None and len(scans) > 1:
        raise Refused(
            "with --method a brain mask is for one scan; without it the masks beside the scans are taken"
        )
    name = str(method) if not isinstance(method, Method) else method.name
    method = method if isinstance(method, Method) else load(method)
    method.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    grid = quick_look(Grid.from_dict(method.grid), z_range, z_spacing)
    masks = {scan: Path(brain) if brain is not None else brain_beside(scan) for scan in scans}
    check_outputs(scans, masks, out, ("record", "anomaly"))
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    options = {
        "seed": seed,
        "register": register,
        "channel": channel,
        "z_range": z_range,
        "z_spacing": z_spacing,
    }

    def one(scan: Path) -> Path:
        files = outputs(scan, out, ("record", "anomaly"))
        if scan.is_dir():
            raise ScanError(f"{scan}: a folder; convert DICOM files to NIfTI first, or leave --method out")
        old = record.of_earlier_run(files, force=force, resume=False)
        if others := sorted(set(old["files"] if old else ()) - {f.name for f in files.values()}):
            raise ScanError(f"{out / others[0]}: a result of weights; choose another --out folder")
        mask = masks[scan]
        preparing = {"grid": grid, "channel": channel, "register": register}
        preparing |= {"normalise": method.normalise, "contrast": method.contrast}
        prepared = prepare_volume(str(scan), brain=None if mask is None else str(mask), **preparing)
        if not force_contrast:
            instead = "choose another method's folder, or use this one"
            refuse_another_contrast(scan, contrast_seen(prepared), method.contrast, instead)
        x, inside = (torch.from_numpy(np.asarray(a))[:, None] for a in (prepared.image, prepared.brain))
        generator = torch.Generator().manual_seed(seed)
        maps = method(x, inside, [0] * len(x), generator, batch_size=batch_size or 32)
        image = return_to_scan(maps[:, 0].numpy(), prepared.geometry)
        now = record.made_of(scan, scan, mask, options) | {"method": {"name": method.name, "folder": name}}
        with new_file(files["anomaly"]) as part:
            nib.save(image, part)
        write_json(files["record"], now | {"files": sorted(f.name for f in files.values())})
        return files["anomaly"]

    failed = []
    for scan in scans:
        try:
            print(f"{scan.name}: {one(scan)}")
        except Exception as error:  # whatever is wrong with one scan, the others are still done
            reason = one_line(error)
            failed.append((scan, reason if scan.name in reason else f"{scan}: {reason}"))
            print(failed[-1][1], file=sys.stderr)
    return failed
