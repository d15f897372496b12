"""FLAIR-like slices from T1 ones: real anatomy in a contrast of which there is no healthy cohort.

In T1, grey values order the tissues: CSF < grey matter < white matter. So a curve over the grey value is a
curve over tissue:
CSF becomes dark, grey matter a little brighter than white matter. The levels are drawn for each subject. What
a T1 scan does not show, and FLAIR does (caps of the ventricles, flow, the bright cortex of the temporal
pole), is not there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy.interpolate import PchipInterpolator
from sklearn.cluster import KMeans
from tqdm.auto import tqdm

from madad_lite.errors import ScanError
from madad_lite.files import new_folder
from madad_lite.slices.manifest import Manifest, write_arrays


def tissue_levels(values: np.ndarray) -> tuple[float, float]:
    """(grey, white matter): levels of a T1 scan's brain voxels, given relative to the brain's median."""
    tissue = np.random.default_rng(0).permutation(values[values > 0.6])[:20_000, None]
    grey, white = np.sort(
        KMeans(2, init=np.percentile(tissue, [20, 80])[:, None], n_init=1).fit(tissue).cluster_centers_[:, 0]
    )
    return float(grey), float(white)


def to_flair(images: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One subject's T1 slices (n, H, W) in [-1, 1] -> FLAIR-like ones of the same shape and normalisation."""
    v = np.asarray(images, np.float32) + 1  # 0..2, the brain's median is 1
    grey, white = tissue_levels(v[brain])
    if not 0 < grey < white < 2.4:
        raise ValueError("grey and white matter cannot be told apart in it")
    csf = grey * rng.uniform(0.42, 0.62)  # T1: where pure CSF ends
    bright = rng.uniform(1.05, 1.35)  # grey matter over white matter
    dark = np.sort(rng.uniform([0.0, 0.1], [0.2, 0.4]))
    x = [0, csf, (csf + grey) / 2, grey, white, white * 1.25, 3]
    y = [dark[0], dark[1], rng.uniform(0.55, 0.85) * bright, bright, 1.0, rng.uniform(0.85, 1.05), 0.9]
    new = PchipInterpolator(x, y)(v)
    new = new / np.median(new[brain])
    return np.where(brain, np.clip(new - 1, -1, 1), -1).astype(np.float32)


def recolour_folder(source: str | Path, out: str | Path, *, seed: int = 0, progress: bool = True) -> Manifest:
    """A prepared T1 folder of normal subjects -> a prepared FLAIR-like one, same subjects and splits.

    Raises ScanError when `source` holds another contrast or is damaged, and when `out` is not empty; then `out`
    is left as it was.
    """
    manifest, out = Manifest.load(source), Path(out)
    if manifest.contrast != "t1":
        raise ScanError(f"{source}: holds {manifest.contrast} slices; only t1 can be turned into FLAIR")
    manifest.verify()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ScanError(f"{out}: is not empty; choose another folder")
    content = json.loads(json.dumps(manifest.to_dict()))
    content["contrast"] = "flair"
    content["settings"] |= {"recoloured_from": str(source), "recolour_seed": seed, "normalise": "median"}
    content["scans"] = [s | {"contrast": "flair"} for s in content["scans"] if not s["lesion"]]
    with new_folder(out, replace=True) as part:
        for number, scan in enumerate(tqdm(content["scans"], desc="FLAIR from T1", disable=not progress)):
            image, brain = (np.asarray(manifest.array(scan, k)) for k in ("image", "brain"))
            try:
                flair = to_flair(image, brain, np.random.default_rng([seed, number]))
            except ValueError as error:  # KMeans has its own, for too few voxels
                raise ScanError(
                    f"{manifest.scan_folder(scan)}: {error}; prepare the folder without it"
                ) from None
            folder = part / "scans" / scan["scan_id"]
            folder.mkdir(parents=True)
            scan["crc32"] = write_arrays(folder, {"image": flair.astype(np.float16), "brain": brain})
        Manifest(part, content).save()
    return Manifest.load(out)
