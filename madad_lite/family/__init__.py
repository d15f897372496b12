"""What MAD-AD is compared with. Each method is one function: (pipeline, images, brain) -> anomaly map (N, 1,
H, W).
"""

from madad_lite.family.intensity import intensity_threshold
from madad_lite.family.reconstruction import reconstruction_error

BASELINES = {"intensity": intensity_threshold, "reconstruction": reconstruction_error}

__all__ = ["BASELINES", "intensity_threshold", "reconstruction_error"]
