"""Voxels as lesions of the contrast mostly are, bright on FLAIR, dark on T1, count more. This repository's
extension.
"""

from __future__ import annotations

import torch

BRIGHT_LESIONS = {
    "t1": False,
    "t1ce": True,
    "t2": True,
    "flair": True,
}  # most of them; some old strokes are dark on FLAIR


def weigh_by_intensity(
    anomaly_map: torch.Tensor, image: torch.Tensor, weight: float, *, contrast: str
) -> torch.Tensor:
    """A map in which voxels as lesions of the contrast mostly are, bright on FLAIR, dark on T1, count more.
    Not in the paper.

    a (1 + weight s) / (1 + weight): s is 0 at the brain's median and on the side where lesions mostly are
    not, and 1 at the other end of the range. So a finding on the wrong side is weakened, not lost.

    Args:
        anomaly_map: (N, 1, H, W) in [0, 1].
        image: (N, 1, H, W) in [-1, 1], the scan; 0 is the brain's median.
        weight: 0 or more; 0 changes nothing.
        contrast: "t1", "t1ce", "t2" or "flair".
    """
    if image.shape != anomaly_map.shape:
        raise ValueError(
            f"the image {tuple(image.shape)} and its map {tuple(anomaly_map.shape)} differ in shape"
        )
    if weight < 0:
        raise ValueError(f"the weight of intensity is not negative, not {weight}")
    side = (image if BRIGHT_LESIONS[contrast] else -image).clamp(0, 1)
    return anomaly_map * (1 + weight * side) / (1 + weight)
