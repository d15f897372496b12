"""Which contrast a scan has, from the order of its tissues' intensities: weights of another contrast would
draw a convincing map of nothing.

    T1 (with contrast agent or not)   white matter brighter than grey
    T2                                CSF brighter than both
    FLAIR                             white matter not brighter than grey, CSF darker than both

Where the tissues lie is taken from the template. In each of them the median counts, so that lesions hardly
matter. What is not clear is left open: a large tumour, or a scan that is cut off, can make T1 and FLAIR alike.
"""

from __future__ import annotations

from madad_lite.scans.grid import PreparedScan
from madad_lite.scans.tissues import tissue_medians

LIKE = {"t1": "t1", "t1ce": "t1", "t2": "t2", "flair": "flair"}  # contrasts with the same order
# Measured on real scans, most of them with lesions: white by grey matter is 1.09 and more in T1 (a cut-off one
# with a large tumour: 1.05), 0.92 to 1.03 in FLAIR; CSF by the brighter of the two is 1.5 and more in T2
# (simulated at 4 mm: 1.3), up to 1.0 in all others.
CSF_BRIGHT, CSF_DARK = 1.2, 0.9  # CSF by the brighter of the two: T2 above, FLAIR below
WHITE_BRIGHT, WHITE_DARK = 1.08, 1.04  # white by grey matter: T1 above, FLAIR below


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
