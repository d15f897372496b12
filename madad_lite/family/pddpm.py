"""Patched diffusion (pDDPM; Behrendt et al. 2023, MIDL, arXiv 2303.03758).

Of a slice only one box of half its side is noised, the rest stays clean and tells the network what belongs into the
box. Trained for each of the four boxes of a grid; loss inside the box only. At test every box is noised to t = 500 of
1000, rebuilt in ONE forward pass, and the four are stitched. Score: |x_hat - x|.

    hidden: a box      predicted: x_0, with L1      noise: one smooth map a batch, 6 octaves, persistence 0.8

Ours: fractal value noise in the place of simplex noise; at test each slice draws its own map; the folded U-Net.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from madad_lite.family.frame import FamilyConfig, Method, Rng, difference, knob
from madad_lite.family.parts import SIZES, T, boxes, fractal_noise, make_unet, mean_over, noised, run

OCTAVES = 6


class PDDPM(Method):
    title = "pDDPM"
    # widths, box, t and length of the authors' published configuration, for slices of 96 pixels; batch and rate were
    # not found there
    paper = dict(size="pixels-96", batch_size=32, learning_rate=1e-5, epochs=1600, schedule="constant")
    tried = ({}, {"t_test": 300})

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        t_test: int = knob(500, (0, T - 1))  # what a box is noised to at test
        side: float = knob(0.5, (0.1, 1))  # of a box, of the slice's
        stride: float = knob(0.5, (0.1, 1))  # from box to box, of the slice's side

    def build(self):
        channels = SIZES[self.config.size].fold ** 2
        return {"unet": make_unet(channels, channels, self.config.size)}

    def boxes(self, x: torch.Tensor) -> torch.Tensor:
        """(K, 1, H, W) bool."""
        return boxes(x.shape[2:], self.config.side, self.config.stride).to(x.device)

    def context(self, x, brain, generator) -> torch.Tensor:
        """What the network sees around the box in training: the clean slice."""
        return x

    def draw(self, x, brain, generator):
        every = self.boxes(x)
        box = every[torch.randint(len(every), (len(x),), generator=generator)]  # (N, 1, H, W)
        t = torch.randint(T, (len(x),), generator=generator)
        eps = fractal_noise((1, *x.shape[1:]), generator, octaves=OCTAVES)  # one map a batch
        seen = torch.where(box, noised(x, eps, t), self.context(x, brain, generator))
        return {"x": x, "box": box, "x_t": seen, "t": t}

    def loss(self, drawn):
        rebuilt = self.rebuild(drawn["x_t"], drawn["t"], drawn["box"])
        return mean_over((rebuilt - drawn["x"]).abs(), drawn["box"])

    def rebuild(self, x_t: torch.Tensor, t: torch.Tensor | int, box: torch.Tensor) -> torch.Tensor:
        """x0_hat (N, 1, H, W) of slices with a noised box, (N, 1, H, W) or one for all."""
        return run(self.unet, x_t, t)

    def stitched(self, x: torch.Tensor, rng: Rng) -> torch.Tensor:
        """Each box rebuilt from the rest; the mean where boxes overlap."""
        eps = fractal_noise(x.shape, rng, octaves=OCTAVES).to(x)
        x_t = noised(x, eps, self.config.t_test)  # (N, 1, H, W)
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for box in self.boxes(x)[:, None]:  # (1, 1, H, W)
            total += self.rebuild(torch.where(box, x_t, x), self.config.t_test, box) * box
            count += box
        return total / count

    def score(self, x, brain, rng):
        return difference(self.stitched(x, rng).clamp(-1, 1), x)
