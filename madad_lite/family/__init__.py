"""What MAD-AD is compared with: the methods beside it, before it and after it, in one frame (see frame.py).

BASELINES are the two that need no training, as functions: (pipeline, images, brain) -> anomaly map (N, 1, H, W).
"""

from madad_lite.family.registry import FAMILY, method_class

__all__ = ["BASELINES", "FAMILY", "method_class"]


def __getattr__(name: str):
    if name == "BASELINES":  # made when asked for: the names above need no torch
        from madad_lite.family.intensity import intensity_threshold
        from madad_lite.family.reconstruction import reconstruction_error

        return {"intensity": intensity_threshold, "reconstruction": reconstruction_error}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
