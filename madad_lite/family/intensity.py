"""Plain intensity: the darker (T1) or the brighter (T1CE, T2, FLAIR) a voxel, the more suspicious.

The simplest detector there is; Meissen et al. 2022 ("Challenging current semi-supervised anomaly segmentation
methods for brain MRI") showed that on FLAIR it beats many learnt ones.
"""

from __future__ import annotations

import torch

from madad_lite.extensions.intensity_weight import BRIGHT_LESIONS


def intensity_threshold(pipeline, images: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """images (N, 1, H, W) in [-1, 1] -> score (N, 1, H, W) in [0, 1]; 0 outside the brain."""
    score = (images + 1) / 2
    if not BRIGHT_LESIONS[pipeline.config.contrast]:
        score = 1 - score
    return torch.where(brain, score, 0.0)
