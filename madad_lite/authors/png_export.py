"""Prepared slices as the PNG files that the authors' own code reads."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np

from madad_lite.errors import ScanError
from madad_lite.files import read_json, replace_file, safe_name
from madad_lite.scans.grid import Geometry
from madad_lite.slices.manifest import Manifest


def check_png_output(out: Path, others: Collection[str]) -> None:
    """ScanError, before any work, where PNG files cannot be written to `out`: `others` are folders that are used for
    something else.
    """
    inside = out.is_dir() and any(out.iterdir()) and not (out / "export.json").exists()
    if inside or out.resolve() in {Path(other).resolve() for other in others}:
        raise ScanError(f"{out}: holds, or will hold, something else than PNG files; choose another folder")


def export_png(manifest: Manifest | str | Path, out: str | Path) -> Path:
    """Write a prepared set as the 8-bit PNG files that the authors' own code reads; returns the folder.

        train/brain_scan_SUBJECT_slice_043_T1.png, ..._brainmask.png     lesion-free slices only, as in val/
        test/...                                        also ..._segmentation.png, for every slice

    An image is round((x + 1) * 127.5), masks are 0 and 255; the number is the slice's place on the grid. That
    code finds the masks by replacing the contrast's name in the whole path: keep T1, T2, FLAIR, T1CE out of
    yours.
    Raises ScanError when `out` holds anything but an earlier export of the same set; files that are there are
    kept.
    """
    from PIL import Image

    manifest = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    manifest.verify()
    out, marker = (
        Path(out),
        json.dumps({"prepared": str(manifest.folder.resolve()), "settings": manifest.settings}),
    )
    described = out / "export.json"
    if out.exists() and any(out.iterdir()) and _content(described) != json.loads(marker):
        raise ScanError(
            f"{out}: holds something else than an export of {manifest.folder}; choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    replace_file(described, marker)
    name, taken = manifest.contrast.upper(), set()
    for scan in manifest.scans():
        folder = out / scan["split"]
        folder.mkdir(exist_ok=True)
        person = subject = _without(name, scan["subject"])
        while (
            person.lower() in taken
        ):  # a second session, or another subject whose name differs in `name` only
            number = int(person.removeprefix(subject + "-")) + 1 if person != subject else 2
            person = f"{subject}-{number}"
        taken.add(person.lower())
        arrays = {
            name: np.rint((manifest.array(scan, "image").astype(np.float32) + 1) * 127.5),
            "brainmask": manifest.array(scan, "brain") * 255,
        }
        if scan["split"] == "test":
            mask = (
                manifest.array(scan, "lesion")
                if scan["lesion"]
                else np.zeros_like(manifest.array(scan, "brain"))
            )
            arrays["segmentation"] = mask * 255
        for k, place in enumerate(Geometry.from_dict(scan["geometry"]).slice_index):
            if scan["split"] != "test" and scan["lesion"] and scan["lesion_pixels"][k]:
                continue
            for ending, values in arrays.items():
                path = folder / f"brain_scan_{person}_slice_{place:03d}_{ending}.png"
                if not path.exists():
                    image = Image.fromarray(values[k].astype(np.uint8))
                    replace_file(path, partial(image.save, format="PNG"))
    return out


def _content(file: Path) -> object:
    """Of a JSON file; None where it is none."""
    try:
        return read_json(file)
    except ScanError:
        return None


def _without(contrast: str, subject: str) -> str:
    """A subject's name as part of a file's name, free of the contrast's."""
    while contrast in subject:
        subject = subject.replace(contrast, "")
    return safe_name(subject)
