"""Pictures, with matplotlib; nilearn draws the three planes of a volume. What counts as found, and the Dice, are those
of `evaluation.counts`.

Every function takes arrays or tensors (or the output of the pipeline) and returns a matplotlib Figure. A
figure is never registered with pyplot's list of open figures: nothing leaks, and a notebook shows it once, as
the value of the cell. Slices are (H, W) with anterior at the top and the patient's left on the left. Brains
are grey from -1 to 1, anomaly maps magma, latents and network outputs viridis; a true lesion has a cyan
outline, noised cells are orange.
"""

from .charts import (
    compare_methods,
    dice_by_size,
    dice_curve,
    intensity_histogram,
    patient_figure,
    precision_recall,
    read_log,
    schedule,
    training_curves,
)
from .process import forward_process, healing_film, latent_channels, mask_examples, reverse_step, trajectory
from .scans import (
    detection_figure,
    healing_figure,
    overlay,
    scan_report,
    slice_grid,
    slice_names,
    threshold_figure,
    volume_view,
)
from .schematic import method

__all__ = [
    "compare_methods",
    "detection_figure",
    "dice_by_size",
    "dice_curve",
    "forward_process",
    "healing_figure",
    "healing_film",
    "intensity_histogram",
    "latent_channels",
    "mask_examples",
    "method",
    "overlay",
    "patient_figure",
    "precision_recall",
    "read_log",
    "reverse_step",
    "scan_report",
    "schedule",
    "slice_grid",
    "slice_names",
    "threshold_figure",
    "training_curves",
    "trajectory",
    "volume_view",
]
