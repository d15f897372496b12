"""Where CSF, grey and white matter lie in a scan's intensities, and how to bring them to the same places in all."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from madad_lite.errors import Refused, ScanError
from madad_lite.scans.grid import Grid, PreparedScan
from madad_lite.scans.nifti import resample
from madad_lite.scans.registration import template

NORMALISATIONS = ("median", "tissue")
ENOUGH_ML = 1.0  # of each tissue
# From dark to bright, and where each belongs, the brain's median being 1: the mean over training subjects of IXI. In T1
# five (over all 116 CSF is at 0.67). In FLAIR all, recoloured; there grey and white matter are too alike for two.
PLACES = {
    "t1": {("csf",): 0.70, ("grey",): 1.02, ("white",): 1.29},
    "flair": {("csf",): 0.74, ("grey", "white"): 1.02},
}
PLACES["t1ce"] = PLACES["t1"]


@lru_cache(maxsize=4)
def _tissues(grid: Grid) -> dict[str, np.ndarray]:
    """Where the template surely has a tissue, on the grid: (n, H, W) bool."""

    def on_grid(kind: str) -> np.ndarray:
        image = template(kind)
        to_template = np.linalg.inv(image.affine) @ grid.affine
        values = resample(np.asarray(image.dataobj), to_template, grid.shape)
        return values.transpose(2, 1, 0)[:, ::-1]  # as slices

    # the brain first: its template is still in memory
    brain, grey, white = on_grid("brain"), on_grid("gm"), on_grid("wm")  # 0..1, 0..255, 0..255
    return {"grey": grey > 180, "white": white > 230, "csf": (brain > 0.5) & (grey < 25) & (white < 25)}


def tissue_medians(scan: PreparedScan) -> dict[str, float] | None:
    """Median intensity of "grey", "white" and "csf" by the median of the brain (0..2). None where slices hold
    too little of one of them.
    """
    grid, slices = scan.geometry.grid, list(scan.geometry.slice_index)
    medians = {}
    for name, where in _tissues(grid).items():
        inside = where[slices] & scan.brain
        if inside.sum() * grid.spacing**2 * grid.step < ENOUGH_ML * 1000:
            return None
        medians[name] = float(np.median(scan.image[inside])) + 1
    return medians


def check_normalisation(how: object, contrast: str) -> None:
    """Refused: no such normalisation, or none for this contrast."""
    if how not in NORMALISATIONS:
        raise Refused(f"normalise is {' or '.join(NORMALISATIONS)}, not {how!r}")
    if how == "tissue" and contrast not in PLACES:
        raise Refused(f"normalise tissue: its places are known for {', '.join(PLACES)}, not for {contrast}")


def normalised(scan: PreparedScan, how: str, contrast: str, name: object) -> PreparedScan:
    """A scan that is normalised by the brain's median, as it is ("median") or with its tissues at PLACES ("tissue").

    Linear from 0 over the tissues' medians, beyond the brightest with the same slope; `geometry.levels` knows the way
    back. ScanError, naming the scan `name`: too few slices, or tissues in another order.
    """
    check_normalisation(how, contrast)
    if how == "median":
        return scan
    medians, places = tissue_medians(scan), PLACES[contrast]
    hint = "scale by the brain's median (--normalise median)"
    if medians is None:
        raise ScanError(
            f"{name}: holds too little of CSF, grey or white matter to find their intensities; {hint}"
        )
    own = [0.0, *(float(np.mean([medians[t] for t in tissues])) for tissues in places)]
    if min(np.diff(own)) <= 0:
        found = ", ".join(f"{t} {medians[t]:.2f}" for t in ("csf", "grey", "white"))
        raise ScanError(
            f"{name}: its tissues do not lie in the order of {contrast.upper()} ({found}); {hint}"
        )
    theirs = [0.0, *places.values()]
    slope = (theirs[-1] - theirs[-2]) / (own[-1] - own[-2])
    levels = (*own, own[-1] + (2 - theirs[-1]) / slope), (*theirs, 2.0)
    image = np.where(scan.brain, np.interp(scan.image + 1, *levels) - 1, -1).astype(np.float32)
    return replace(scan, image=image, geometry=replace(scan.geometry, levels=levels))
