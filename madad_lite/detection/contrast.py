"""Which contrast a scan has, from the order of its tissues' intensities: weights of another contrast would
draw a convincing map of nothing.

    T1 (with contrast agent or not)   white matter brighter than grey
    T2                                CSF brighter than both
    FLAIR                             white matter not brighter than grey, CSF darker than both

Where the tissues lie is taken from the template. In each of them the median counts, so that lesions hardly
matter. What is not clear is left open: a large tumour, or a scan that is cut off, can make T1 and FLAIR alike.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from madad_lite.scans.grid import Grid, PreparedScan
from madad_lite.scans.nifti import resample
from madad_lite.scans.registration import template

LIKE = {"t1": "t1", "t1ce": "t1", "t2": "t2", "flair": "flair"}  # contrasts with the same order
# Measured on real scans, most of them with lesions: white by grey matter is 1.09 and more in T1 (a cut-off one
# with a large tumour: 1.05), 0.92 to 1.03 in FLAIR; CSF by the brighter of the two is 1.5 and more in T2
# (simulated at 4 mm: 1.3), up to 1.0 in all others.
CSF_BRIGHT, CSF_DARK = 1.2, 0.9  # CSF by the brighter of the two: T2 above, FLAIR below
WHITE_BRIGHT, WHITE_DARK = 1.08, 1.04  # white by grey matter: T1 above, FLAIR below
ENOUGH_ML = 1.0  # of each tissue


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


def contrast_seen(scan: PreparedScan) -> str | None:
    """ "t1" (also for T1 with contrast agent), "flair" or "t2"; None where it is not clear."""
    medians = tissue_medians(scan)
    if medians is None or min(medians["grey"], medians["white"]) <= 0:
        return None
    white, csf = medians["white"] / medians["grey"], medians["csf"] / max(medians["grey"], medians["white"])
    if csf >= CSF_BRIGHT:
        return "t2"
    if white >= WHITE_BRIGHT:
        return "t1"
    return "flair" if white <= WHITE_DARK and csf <= CSF_DARK else None
