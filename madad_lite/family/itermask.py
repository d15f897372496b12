"""IterMask2 (Liang et al. 2024, MICCAI, arXiv 2406.02422): a mask that shrinks to what cannot be rebuilt.

1. Network `whole` rebuilds the slice from its frequencies outside a radius alone (phase and amplitude; radius 15 at 128
   pixels): edges, but no brightness.
2. Network `masked` rebuilds it from the slice with a region filled with noise, and the same edges.
3. At test the worst 60 % of the first network's error inside the brain are the first mask. Then: fill it with noise,
   rebuild, keep what of it is off by more than a threshold, until the mask shrinks by less than 1 %. The mask is the
   result. The threshold is the 80th percentile of the error on healthy validation slices.

    hidden: low frequencies; a shrinking region      predicted: the slice, with MSE

Ours: training masks are smooth noise above a threshold, 5 to 80 % of the brain; the threshold is measured with masks of
60 %; ten rounds at most; half of the training for each network; within the mask the map is 1/2 + half the last error,
so that parts of it can be told apart (a threshold of 1/2 gives the paper's mask); the folded U-Net.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from madad_lite.family.frame import FamilyConfig, Method, Rng, Stage, difference, knob
from madad_lite.family.parts import SIZES, gaussian_noise, make_unet, uniform

RADIUS = 15 / 128  # of the slice's side


def edges(x: torch.Tensor) -> torch.Tensor:
    """Slices (N, 1, H, W) without the frequencies inside the radius."""
    ky, kx = (torch.fft.fftfreq(n, device=x.device) for n in x.shape[2:])  # cycles a pixel
    outside = ky[:, None] ** 2 + kx[None] ** 2 > RADIUS**2
    return torch.fft.ifft2(torch.fft.fft2(x) * outside).real


def worst(error: torch.Tensor, where: torch.Tensor, share: float) -> torch.Tensor:
    """(N, 1, H, W) bool: the share of each slice's pixels in `where` with the largest error."""
    inside = torch.where(where, error, -1.0).flatten(1)
    kept = (where.flatten(1).sum(1) * share).long()
    order = inside.argsort(dim=1, descending=True, stable=True).argsort(1)
    return (order < kept[:, None]).view_as(error) & where


class IterMask(Method):
    title = "IterMask2"
    kinds = {"whole": UNet2DModel, "masked": UNet2DModel}
    # of the authors' published configuration, for slices of 128 pixels; their 150,000 steps are of each network
    paper = dict(size="itermask", steps=300_000, batch_size=32, learning_rate=1e-4, ema_decay=0.9999)
    tried = ({}, {"first": 0.3})

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        first: float = knob(0.6, (0, 1))  # share of the brain in the first mask
        percentile: float = knob(0.8, (0, 1))  # of the healthy error
        shrinks: float = knob(0.01, (0, 1))  # stops when the mask shrinks by less
        rounds: int = knob(10, (1, 1000))  # at most

    def build(self):
        size, c = self.config.size, SIZES[self.config.size].fold ** 2
        return {"whole": make_unet(c, c, size), "masked": make_unet(2 * c, c, size)}

    def stages(self):
        return [
            Stage("whole", ["whole"], self.draw_whole, self.loss_whole, 0.5),
            Stage("masked", ["masked"], self.draw, self.loss, 0.5),
        ]

    def draw_whole(self, x, brain, generator):
        return {"x": x, "edges": edges(x)}

    def loss_whole(self, drawn):
        return F.mse_loss(self.answer(self.whole, drawn["edges"]), drawn["x"])

    def draw(self, x, brain, generator):
        coarse = torch.randn(len(x), 1, 8, 8, generator=generator)
        smooth = F.interpolate(coarse, size=x.shape[2:], mode="bicubic", align_corners=True)
        share = 0.05 + 0.75 * torch.rand(len(x), generator=generator)
        mask = torch.cat([worst(s[None], b[None], p.item()) for s, b, p in zip(smooth, brain, share)])
        filled = torch.where(mask, torch.randn(x.shape, generator=generator), x)
        return {"x": x, "filled": filled, "edges": edges(x)}

    def loss(self, drawn):
        return F.mse_loss(self.answer(self.masked, drawn["filled"], drawn["edges"]), drawn["x"])

    def answer(self, network: UNet2DModel, *slices: torch.Tensor) -> torch.Tensor:
        """A slice (N, 1, H, W) from one or several."""
        fold = SIZES[self.config.size].fold
        folded = torch.cat([F.pixel_unshuffle(x, fold) for x in slices], 1)
        time = torch.zeros(len(folded), device=folded.device)
        return F.pixel_shuffle(network(folded, time).sample, fold).float()

    def rebuilt(self, x: torch.Tensor, mask: torch.Tensor, rng: Rng) -> torch.Tensor:
        """By the second network, from the slice outside the mask and the edges."""
        noise = gaussian_noise(x.shape, rng).to(x)
        return self.answer(self.masked, torch.where(mask, noise, x), edges(x)).clamp(-1, 1)

    def first_mask(self, x: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        error = difference(self.answer(self.whole, edges(x)).clamp(-1, 1), x)
        return worst(error, brain, self.config.first)

    def measure(self, x, brain, rng):
        mask = torch.cat(
            [
                worst(uniform([g], (1, *x.shape[2:])).to(x), b[None], self.config.first)
                for g, b in zip(rng, brain)
            ]
        )
        error = difference(self.rebuilt(x, mask, rng), x)[mask]
        return {"threshold": error.quantile(self.config.percentile).item() if len(error) else 0.0}

    def shrunk(self, x, brain, rng) -> tuple[torch.Tensor, torch.Tensor]:
        """(the last mask, the last error), both (N, 1, H, W)."""
        mask, c = self.first_mask(x, brain), self.config
        error = torch.zeros_like(x)
        going = torch.ones(len(x), 1, 1, 1, dtype=torch.bool, device=x.device)  # each slice stops for itself
        for _ in range(c.rounds):
            now = difference(self.rebuilt(x, mask, rng), x)
            smaller = mask & (now > self.measured.get("threshold", 0.0))
            error = torch.where(going, now, error)
            before, after = (m.flatten(1).sum(1).view(-1, 1, 1, 1) for m in (mask, smaller))
            mask = torch.where(going, smaller, mask)
            going = going & (before - after >= c.shrinks * before.clamp_min(1)) & (after > 0)
            if not going.any():
                break
        return mask, error

    def score(self, x, brain, rng):
        mask, error = self.shrunk(x, brain, rng)
        return torch.where(mask, (1 + error) / 2, 0.0)
