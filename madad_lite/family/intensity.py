"""Plain intensity: the darker (T1) or the brighter (T1CE, T2, FLAIR) a voxel, the more suspicious.

The simplest detector there is; Meissen et al. 2022 ("Challenging current semi-supervised anomaly segmentation
methods for brain MRI") showed that on FLAIR it beats many learnt ones.
"""

from __future__ import annotations

import torch

from madad_lite.extensions.intensity_weight import BRIGHT_LESIONS
from madad_lite.family.frame import Method


def suspicion(images: torch.Tensor, contrast: str) -> torch.Tensor:
    """images (N, 1, H, W) in [-1, 1] -> (N, 1, H, W) in [0, 1]."""
    score = (images + 1) / 2
    return score if BRIGHT_LESIONS[contrast] else 1 - score


def intensity_threshold(pipeline, images: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """images (N, 1, H, W) in [-1, 1] -> score (N, 1, H, W) in [0, 1]; 0 outside the brain."""
    return torch.where(brain, suspicion(images, pipeline.config.contrast), 0.0)


class Intensity(Method):
    title = "intensity"
    kinds = {}

    def score(self, x, brain, rng):
        return suspicion(x, self.contrast)
