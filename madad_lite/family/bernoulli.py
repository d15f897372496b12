"""Masked Bernoulli diffusion (Wolleb et al. 2024, arXiv 2403.11667), on binary latents (Wang et al. 2023).

1. An autoencoder whose latents b are bits: sigmoid, a Bernoulli sample, gradients straight through.
2. Forward process: each bit drifts towards a coin's toss, q(b_t | b_0) = Bernoulli(k_t b_0 + (1 - k_t) / 2). The
   network sees b_t and predicts which bits have flipped, with binary cross-entropy.
3. At test the bits are noised to L = 200 of 1000. At each step a bit whose chance of having flipped exceeds P = 0.5
   joins a mask, for good; only masked bits follow the model, all others are set to the scan's own.

Score: squared difference of the decoded slices (there median-filtered over 5 x 5 pixels: see postprocess.py).

The posterior is the published one; it assumes that bits flip as often from 0 to 1 as from 1 to 0:

    q(b_s = 1 | b_t, b_0) = u / (u + v),  u = [r b_t + (1 - r)/2] [k_s b_0 + (1 - k_s)/2],  r = k_t / k_s,

and v the same with 1 - b_t and 1 - b_0; in the place of b_0 stands |b_t - p|, p the predicted chance of a flip.

Ours: the autoencoder's shape (folded 4 x 4, 16 bits a cell, MSE); k_t of the cosine schedule; strided steps; half of
the training for each network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from madad_lite.family.frame import FULL, FamilyConfig, Method, Rng, Stage, knob
from madad_lite.family.parts import SIZES, T, abar, make_unet, mean_over, uniform

FOLD = 4


class BinaryAutoencoder(ModelMixin, ConfigMixin):
    """Slices (N, 1, H, W) -> chances of bits (N, bits, H/4, W/4) -> slices."""

    @register_to_config
    def __init__(self, bits: int = 16, width: int = 64) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]

        self.down = nn.Sequential(
            *block(FOLD**2, width), *block(width, width), nn.Conv2d(width, bits, 3, padding=1)
        )
        self.up = nn.Sequential(
            *block(bits, width), *block(width, width), nn.Conv2d(width, FOLD**2, 3, padding=1)
        )

    def chances(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.pixel_unshuffle(x, FOLD)).sigmoid()

    def decode(self, bits: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.up(bits), FOLD)


def drifted(b: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
    """q(b_t = 1 | b_0) = k_t b_0 + (1 - k_t) / 2."""
    k = abar(t, b)
    return k * b + (1 - k) / 2


def posterior(b_t: torch.Tensor, b_0: torch.Tensor, t: int, s: int) -> torch.Tensor:
    """q(b_s = 1 | b_t, b_0), s < t; b_0 may be a chance. See above."""
    k_s = abar(s, b_t)
    r = abar(t, b_t) / k_s
    u = (r * b_t + (1 - r) / 2) * (k_s * b_0 + (1 - k_s) / 2)
    v = (r * (1 - b_t) + (1 - r) / 2) * (k_s * (1 - b_0) + (1 - k_s) / 2)
    return u / (u + v)


class Bernoulli(Method):
    title = "masked Bernoulli diffusion"
    kinds = {"codec": BinaryAutoencoder, "unet": UNet2DModel}
    # 1000 steps as published; sizes and lengths are ours, not checked against the paper
    paper = dict(size="latents-L", epochs=1000, batch_size=32, learning_rate=1e-4, steps_back=200)
    tried = ({}, {"start": 400})

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        bits: int = knob(16, (1, 256))  # of a cell
        start: int = knob(200, (1, T - 1))  # L
        steps_back: int = knob(20, (1, T - 1))  # from L to 0
        flipped: float = knob(0.5, (0, 1))  # P

    @property
    def divisor(self):
        return FOLD * 2 ** (len(SIZES[self.config.size].widths) - 1)

    def build(self):
        bits = self.config.bits
        return {"codec": BinaryAutoencoder(bits), "unet": make_unet(bits, bits, self.config.size)}

    def stages(self):
        return [
            Stage("codec", ["codec"], self.draw_codec, self.loss_codec, 0.5),
            Stage("denoiser", ["unet"], self.draw, self.loss, 0.5),
        ]

    def draw_codec(self, x, brain, generator):
        shape = (len(x), self.config.bits, x.shape[2] // FOLD, x.shape[3] // FOLD)
        return {"x": x, "brain": brain, "toss": torch.rand(shape, generator=generator)}

    def loss_codec(self, drawn):
        chances = self.codec.chances(drawn["x"])
        bits = (drawn["toss"] < chances).to(chances)
        bits = bits + chances - chances.detach()  # straight through
        error = (self.codec.decode(bits) - drawn["x"]).square()
        return error.mean() + mean_over(error, drawn["brain"])

    def draw(self, x, brain, generator):
        shape = (len(x), self.config.bits, x.shape[2] // FOLD, x.shape[3] // FOLD)
        t = torch.randint(T, (len(x),), generator=generator)
        return {"x": x, "t": t, "toss": torch.rand(shape, generator=generator)}

    def loss(self, drawn):
        b_0 = self.bits(drawn["x"])
        b_t = (drawn["toss"] < drifted(b_0, drawn["t"])).to(b_0)
        return F.binary_cross_entropy_with_logits(self.flip_logits(b_t, drawn["t"]), (b_t - b_0).abs())

    def bits(self, x: torch.Tensor) -> torch.Tensor:
        """The more likely ones, (N, bits, h, w) of 0 and 1."""
        return (self.codec.chances(x) > 0.5).float()

    def flip_logits(self, b_t: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
        t = torch.as_tensor(t, device=b_t.device).expand(len(b_t))
        return self.unet(2 * b_t - 1, t).sample.float()

    def heal(self, b_0: torch.Tensor, rng: Rng) -> tuple[torch.Tensor, torch.Tensor]:
        """(healed bits, mask), both (N, bits, h, w)."""
        c = self.config
        times = torch.linspace(c.start, 0, c.steps_back + 1).round().long().unique().flip(0).tolist()

        def tossed(chance: torch.Tensor) -> torch.Tensor:
            return (uniform(rng, chance.shape[1:]).to(chance) < chance).to(chance)

        b_t, mask = tossed(drifted(b_0, c.start)), torch.zeros_like(b_0, dtype=torch.bool)
        for t, later in zip(times, [*times[1:-1], -1]):
            flip = self.flip_logits(b_t, t).sigmoid()
            mask = mask | (flip > c.flipped)
            model = tossed(posterior(b_t, (b_t - flip).abs(), t, later))
            b_t = torch.where(mask, model, b_0)
        return b_t, mask

    def score(self, x, brain, rng):
        healed, _ = self.heal(self.bits(x), rng)
        return (self.codec.decode(healed).clamp(-1, 1) - x).square() / FULL**2
