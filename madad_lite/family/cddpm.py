"""Conditioned diffusion (cDDPM; Behrendt et al. 2023, arXiv 2312.04215).

The whole slice is noised, and the denoiser is told one thing about the clean one: a vector, made by an encoder and
added to the time's embedding. It is too small to carry a lesion, but says how bright this brain is. The encoder learns
first by masked autoencoding (65 % of the patches hidden), then together with the denoiser. At test: the mean of the
one-pass reconstructions at t = 250, 500 and 750. Score: |x_hat - x|.

    hidden: everything but a vector      predicted: x_0, with L1      noise: smooth, as pDDPM's

Ours: a small convolutional encoder in the place of a ResNet; patches of 8 pixels, filled with 0; a quarter of the steps
for the encoder's own lesson; fractal value noise in the place of simplex noise; the folded U-Net.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from madad_lite.family.frame import FamilyConfig, Method, Stage, difference, knob
from madad_lite.family.parts import SIZES, T, fractal_noise, make_unet, mean_over, noised, run
from madad_lite.family.pddpm import OCTAVES

T_TEST, PATCH = (250, 500, 750), 8


class VectorEncoder(ModelMixin, ConfigMixin):
    """Slices (N, 1, H, W) -> features (N, width, H/16, W/16), whose mean over the slice is the vector; and, for its
    first lesson, back to slices. H and W divisible by 16.
    """

    @register_to_config
    def __init__(self, width: int = 128) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU()
            )

        self.body = nn.Sequential(
            block(16, 64, 1),
            block(64, 64, 2),
            block(64, 128, 1),
            block(128, 128, 2),
            nn.Conv2d(128, width, 1),
        )
        self.back = nn.Conv2d(width, 16**2, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(F.pixel_unshuffle(x, 4))  # (N, width, H/16, W/16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x).mean((2, 3))  # (N, width)

    def rebuild(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.back(self.features(x)), 16)  # (N, 1, H, W)


class CDDPM(Method):
    title = "cDDPM"
    kinds = {"unet": UNet2DModel, "vector": VectorEncoder}
    # widths and length of the authors' published configuration; batch and rate were not found there
    paper = dict(size="pixels-96", batch_size=32, learning_rate=1e-5, epochs=1200, schedule="constant")

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        hidden: float = knob(0.65, (0, 1))  # share of the patches, in the encoder's own lesson
        lesson: float = knob(0.25, (0.01, 0.99))  # share of the steps for it

    @property
    def divisor(self):
        return max(16, super().divisor)

    def build(self):
        size = SIZES[self.config.size]
        unet = make_unet(size.fold**2, size.fold**2, self.config.size, vector=True)
        return {"unet": unet, "vector": VectorEncoder(4 * size.widths[0])}

    def stages(self):
        share = self.config.lesson
        return [
            Stage("encoder", ["vector"], self.draw_hidden, self.loss_hidden, share),
            Stage("denoiser", ["unet", "vector"], self.draw, self.loss, 1 - share),
        ]

    def draw_hidden(self, x, brain, generator):
        n, _, h, w = x.shape
        cells = torch.rand(n, 1, h // PATCH, w // PATCH, generator=generator) < self.config.hidden
        hidden = F.interpolate(cells.float(), scale_factor=PATCH).bool()  # (N, 1, H, W)
        return {"x": x, "hidden": hidden}

    def loss_hidden(self, drawn):
        x, hidden = drawn["x"], drawn["hidden"]
        return mean_over((self.vector.rebuild(torch.where(hidden, 0.0, x)) - x).square(), hidden)

    def draw(self, x, brain, generator):
        t = torch.randint(T, (len(x),), generator=generator)
        eps = fractal_noise((1, *x.shape[1:]), generator, octaves=OCTAVES)
        return {"x": x, "x_t": noised(x, eps, t), "t": t}

    def loss(self, drawn):
        return (self.rebuild(drawn["x_t"], drawn["t"], drawn["x"]) - drawn["x"]).abs().mean()

    def rebuild(self, x_t: torch.Tensor, t: torch.Tensor | int, x: torch.Tensor) -> torch.Tensor:
        """x0_hat (N, 1, H, W) of noised slices and what the vector of the clean ones says."""
        return run(self.unet, x_t, t, class_labels=self.vector(x))

    def score(self, x, brain, rng):
        eps = fractal_noise(x.shape, rng, octaves=OCTAVES).to(x)
        rebuilt = torch.stack([self.rebuild(noised(x, eps, t), t, x) for t in T_TEST]).mean(0)
        return difference(rebuilt.clamp(-1, 1), x)
