"""Denoising autoencoder with coarse noise (Kascenas, Pugeault, O'Neil 2022, MIDL).

Smooth Gaussian noise of a low resolution (16 x 16 over the slice, bilinear, at a random offset, spread 0.2 of
the range) is added to normal slices, and a U-Net learns to remove it. A lesion is such a coarse deviation.
Score: |x_hat - x|.

There the score is median-filtered over 5 x 5 pixels and the brain eroded: both are in postprocess.py here, for all
methods. Ours: in the sizes "nano" and "tiny" the slice is folded 4 x 4 into channels, so that the U-Net works at the
resolution of MAD-AD's latents, with its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from madad_lite.family.frame import FamilyConfig, Method, difference, knob
from madad_lite.family.parts import SIZES, make_unet, mean_over, run


def coarse_noise(
    shape, generator: torch.Generator, resolution: int = 16, spread: float = 0.4
) -> torch.Tensor:
    """(N, 1, H, W); 0.4 is 0.2 of the range of our slices, 2."""
    n, _, h, w = shape
    noise = torch.randn(n, 1, resolution, resolution, generator=generator)
    noise = F.interpolate(noise, size=(h, w), mode="bilinear", align_corners=False) * spread
    shift = torch.randint(0, min(h, w), (2,), generator=generator).tolist()
    return noise.roll(shift, (-2, -1))


class DAE(Method):
    title = "DAE"
    # 67,200 steps of 16 slices of 128 pixels at 1e-4, as the authors' published script; there Adam, and the cosine
    # comes back every 6,400 steps
    paper = dict(size="dae", steps=67_200, batch_size=16, learning_rate=1e-4, variants=1)

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        resolution: int = knob(16, (1, 1024))  # of the noise, cells along a side
        spread: float = knob(0.4, (0, 10))  # of the noise; the slices' range is 2

    def build(self):
        channels = SIZES[self.config.size].fold ** 2
        return {"unet": make_unet(channels, channels, self.config.size)}

    def draw(self, x, brain, generator):
        noise = coarse_noise(x.shape, generator, self.config.resolution, self.config.spread)
        return {"x": x, "brain": brain, "noised": torch.where(brain, x + noise, x)}

    def loss(self, drawn):
        error = run(self.unet, drawn["noised"], 0) - drawn["x"]  # (N, 1, H, W)
        return mean_over(error.square(), drawn["brain"])

    def score(self, x, brain, rng):
        return difference(run(self.unet, x, 0).clamp(-1, 1), x)
