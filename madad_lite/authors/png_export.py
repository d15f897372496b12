"""Prepared slices as the PNG files that the authors' own code reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from madad_lite.errors import ScanError
from madad_lite.files import new_file
from madad_lite.scans.grid import Geometry
from madad_lite.slices.folder import Manifest


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
    out, marker = (
        Path(out),
        json.dumps({"prepared": str(manifest.folder.resolve()), "settings": manifest.settings}),
    )
    described = out / "export.json"
    if out.exists() and any(out.iterdir()) and not (described.exists() and described.read_text() == marker):
        raise ScanError(
            f"{out}: holds something else than an export of {manifest.folder}; choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    described.write_text(marker)
    name, seen = manifest.contrast.upper(), {}
    for scan in manifest.scans():
        folder = out / scan["split"]
        folder.mkdir(exist_ok=True)
        subject = scan["subject"].replace(name, "")
        seen[subject] = seen.get(subject, 0) + 1
        subject += f"-{seen[subject]}" if seen[subject] > 1 else ""
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
                path = folder / f"brain_scan_{subject}_slice_{place:03d}_{ending}.png"
                if not path.exists():
                    with new_file(path) as part:
                        Image.fromarray(values[k].astype(np.uint8)).save(part, format="PNG")
    return out
