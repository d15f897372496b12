"""What is done to a finished map, the same choice for every method: papers differ in it more than they say.

The steps in their order; 0 leaves one out.

    erode      the outermost pixels of each slice's brain count as 0: edges and partial volume
    median     a median filter in the slice, of so many pixels a side (odd)
    sigma      Gaussian smoothing in the slice, pixels
    through    Gaussian smoothing through the slices of a volume, slices
    smallest   bright parts of fewer voxels (of a volume; of a slice, where volumes are not named) sink to what is
               around them: an area opening, at 24 levels, so that no threshold is needed
    weight     of intensity, see extensions.intensity_weight
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage

from madad_lite.extensions.intensity_weight import weigh_by_intensity
from madad_lite.extensions.neighbouring_slices import slice_groups
from madad_lite.training.settings import Between, check

LEVELS = np.geomspace(0.004, 1, 24)


def _knob(default, high):
    return field(default=default, metadata={"allowed": Between(0, high)})


@dataclass(frozen=True)
class Postprocessing:
    """Refused: a setting that is not allowed."""

    erode: int = _knob(0, 100)
    median: int = _knob(0, 101)
    sigma: float = _knob(0.0, 100)
    through: float = _knob(0.0, 100)
    smallest: int = _knob(0, 10**9)
    weight: float = _knob(0.0, 1e6)

    def __post_init__(self) -> None:
        check(self)

    def __str__(self) -> str:
        used = {k: v for k, v in vars(self).items() if v}
        return ", ".join(f"{k} {v:g}" for k, v in used.items()) or "as it is"

    def __call__(
        self,
        maps: torch.Tensor,
        slices: torch.Tensor,
        brain: torch.Tensor,
        volumes: Sequence | None = None,
        *,
        contrast: str = "t1",
    ) -> torch.Tensor:
        """maps (N, 1, H, W) in [0, 1] of slices (N, 1, H, W) -> the same in [0, 1], 0 outside the brain.

        volumes: (N,) the volume of each slice, those of one beside each other; None: each slice is its own.
        """
        if volumes is None:
            volumes = np.arange(len(maps))
        brain, done = brain.bool(), torch.empty_like(maps)
        for rows in slice_groups(len(maps), volumes, len(maps)):
            values, inside = maps[rows, 0].numpy(), brain[rows, 0].numpy()  # (S, H, W)
            if self.erode:
                cross = ndimage.generate_binary_structure(2, 1)[None]
                values = np.where(ndimage.binary_erosion(inside, cross, self.erode), values, 0)
            if self.median:
                values = ndimage.median_filter(values, (1, self.median, self.median))
            if self.sigma or self.through:
                values = ndimage.gaussian_filter(
                    values, (self.through, self.sigma, self.sigma), mode="constant"
                )
            if self.smallest:
                values = without_small_parts(np.where(inside, values, 0), self.smallest)
            done[rows, 0] = torch.from_numpy(values)
        if self.weight:
            done = weigh_by_intensity(done, slices, self.weight, contrast=contrast)
        return torch.where(brain, done, 0.0)


def without_small_parts(values: np.ndarray, smallest: int) -> np.ndarray:
    """(S, H, W) >= 0 -> the same; what rises above a level in a part of fewer than `smallest` voxels is cut there."""
    result = np.minimum(values, LEVELS[0])
    for low, high in zip(LEVELS, [*LEVELS[1:], np.inf]):
        labels, _ = ndimage.label(values > low)
        large = np.bincount(labels.ravel()) >= smallest
        large[0] = False  # what is not above the level
        result = np.where(large[labels], np.minimum(values, high), result)
    return result.astype(values.dtype)
