"""FLAIR-like, T2-like and T1ce-like slices from T1 ones: real anatomy in a contrast of which there is no healthy
cohort.

In T1, grey values order the tissues: CSF < grey matter < white matter. So a curve over the grey value is a
curve over tissue. FLAIR: CSF dark, grey matter a little brighter than white matter. T2: CSF far brighter than
both, grey matter brighter than white. T1 with contrast agent (t1ce): grey matter nearer white, and bright what the
agent reaches in health, vessels, dura and choroid plexus, at random places of their kind. The levels are drawn for
each subject. What a T1 scan does not show, and these do (caps of the ventricles, flow, dark iron in the deep grey
matter, the true course of vessels), is not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.interpolate import PchipInterpolator
from sklearn.cluster import KMeans
from tqdm.auto import tqdm

from madad_lite.errors import ScanError
from madad_lite.files import new_folder
from madad_lite.simulation.lesions import smooth_noise
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

    def levels() -> list[float]:
        bright = rng.uniform(1.05, 1.35)  # grey matter over white matter
        dark = np.sort(rng.uniform([0.0, 0.1], [0.2, 0.4]))
        mixed = rng.uniform(0.55, 0.85) * bright
        return [dark[0], dark[1], mixed, bright, 1.0, rng.uniform(0.85, 1.05), 0.9]

    return _by_curve(images, brain, rng, levels)


def to_t2(images: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same, T2-like. What is above twice the brain's median, most of the CSF, is cut off there, as in scans."""

    def levels() -> list[float]:
        bright = rng.uniform(1.2, 1.6)  # grey matter over white matter
        water = rng.uniform(1.9, 3.0)
        mixed = bright + rng.uniform(0.1, 0.35) * (water - bright)
        return [rng.uniform(0.85, 1.0) * water, water, mixed, bright, 1.0, rng.uniform(0.8, 1.0), 0.8]

    return _by_curve(images, brain, rng, levels)


def to_t1ce(images: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same, as T1 with contrast agent in a healthy brain. Slices of about 2 mm, every way."""

    def levels() -> list[float]:
        grey, csf = rng.uniform(0.76, 0.93), rng.uniform(0.3, 0.5)  # by white matter
        return [0.0, csf, rng.uniform(0.4, 0.7) * (grey - csf) + csf, grey, 1.0, 1.2, 2.4]

    v = _by_curve(images, brain, rng, levels) + 1  # 0..2, the brain's median is 1
    depth = ndimage.distance_transform_edt(brain)  # in voxels
    first, second, third = (smooth_noise(v.shape, scale, rng) for scale in (6.0, 6.0, 5.0))
    fluid = ndimage.gaussian_filter(v, 0.7) < 0.6
    # two smooth fields are zero together along curves: vessels, in the outer 8 mm and the cisterns; one field above a
    # level: patches
    vessels = np.exp(-((first**2 + second**2) / rng.uniform(0.1, 0.3) ** 2)) * (fluid | (depth <= 4))
    dura = np.clip(third - rng.uniform(0.7, 1.8), 0, 1) * (depth <= rng.uniform(1.2, 2.6))
    plexus = np.clip(first - rng.uniform(0.6, 1.4), 0, 1) * (fluid & (depth > 10))
    share = ndimage.gaussian_filter(np.clip(vessels + 2 * dura + 2 * plexus, 0, 1), 0.35)
    bright = v + share * (rng.uniform(1.4, 2.4) - v)
    return np.where(brain, np.clip(bright - 1, -1, 1), -1).astype(np.float32)


def _by_curve(images, brain, rng: np.random.Generator, levels: Callable[[], list[float]]) -> np.ndarray:
    """T1 slices through a curve from grey value to grey value. levels: what becomes of nothing, of pure
    CSF, CSF mixed with grey matter, grey matter, white matter, and of what is brighter still.
    """
    v = np.asarray(images, np.float32) + 1  # 0..2, the brain's median is 1
    grey, white = tissue_levels(v[brain])
    if not 0 < grey < white < 2.4:
        raise ValueError("grey and white matter cannot be told apart in it")
    csf = grey * rng.uniform(0.42, 0.62)  # T1: where pure CSF ends
    new = PchipInterpolator([0, csf, (csf + grey) / 2, grey, white, white * 1.25, 3], levels())(v)
    new = new / np.median(new[brain])
    return np.where(brain, np.clip(new - 1, -1, 1), -1).astype(np.float32)


RECOLOUR = {"flair": to_flair, "t2": to_t2, "t1ce": to_t1ce}


def recolour_folder(
    source: str | Path, out: str | Path, contrast: str = "flair", *, seed: int = 0, progress: bool = True
) -> Manifest:
    """A prepared T1 folder of normal subjects -> a prepared one of another contrast, same subjects and splits.

    contrast: "flair", "t2" or "t1ce"; ValueError for another. Raises ScanError when `source` holds another contrast or
    is damaged, and when `out` is not empty; then `out` is left as it was.
    """
    if contrast not in RECOLOUR:
        raise ValueError(f"no contrast {contrast!r} to turn T1 into: choose from {', '.join(RECOLOUR)}")
    manifest, out = Manifest.load(source), Path(out)
    if manifest.contrast != "t1":
        raise ScanError(
            f"{source}: holds {manifest.contrast} slices; only t1 can be turned into {contrast.upper()}"
        )
    manifest.verify()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ScanError(f"{out}: is not empty; choose another folder")
    content = json.loads(json.dumps(manifest.to_dict()))
    content["contrast"] = contrast
    content["settings"] |= {"recoloured_from": str(source), "recolour_seed": seed, "normalise": "median"}
    content["scans"] = [
        s | {"contrast": contrast, "contrast_seen": None} for s in content["scans"] if not s["lesion"]
    ]
    with new_folder(out, replace=True) as part:
        for number, scan in enumerate(
            tqdm(content["scans"], desc=f"{contrast.upper()} from T1", disable=not progress)
        ):
            image, brain = (np.asarray(manifest.array(scan, k)) for k in ("image", "brain"))
            try:
                new = RECOLOUR[contrast](image, brain, np.random.default_rng([seed, number]))
            except ValueError as error:  # KMeans has its own, for too few voxels
                raise ScanError(
                    f"{manifest.scan_folder(scan)}: {error}; prepare the folder without it"
                ) from None
            folder = part / "scans" / scan["scan_id"]
            folder.mkdir(parents=True)
            scan["crc32"] = write_arrays(folder, {"image": new.astype(np.float16), "brain": brain})
        Manifest(part, content).save()
    return Manifest.load(out)
