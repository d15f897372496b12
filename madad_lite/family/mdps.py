"""Masked diffusion posterior sampling (MDPS; Wu et al. 2024, arXiv 2404.17900).

A plain diffusion model of normal slices. At test the scan y is a measurement of the normal slice that is looked for:

1. y is noised to t = 200 of 1000 and brought back by ancestral steps whose noise estimate is guided,
   eps + sqrt(1 - abar_t) w grad_x |x0_hat - y|. Where |x0_hat - y| is large at the end, is the mask.
2. Once more from noise, guided more strongly, but outside the mask the scan's own noised pixels (one fixed noise) take
   their place before every step, so that only what is masked is made anew.

The mean of several samples. Score: distance of features plus distance of pixels.

    hidden: nothing; a little noise on all      predicted: the noise, with MSE

Ours: the autoencoder's latents as features (theirs are a WideResNet's); the mask where the distance exceeds `masked`;
a number of strided steps in the place of all 200; the folded U-Net. Each map is scaled by fixed numbers. Theirs are
scaled by the smallest and largest value of the whole test set and cut at a threshold of each category: whoever does so
has used the answers, for the range of the test maps tells how much of what is shown is sick.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from madad_lite.family.frame import FamilyConfig, Method, Rng, difference, knob
from madad_lite.family.parts import SIZES, T, abar, gaussian_noise, make_unet, noised, run


class MDPS(Method):
    title = "MDPS"
    encoder = True
    # an ADM-like U-Net for 256 pixels; sizes and lengths are ours, not checked against the paper
    paper = dict(size="pixels-256", epochs=1000, batch_size=16, learning_rate=1e-4, steps_back=200, samples=8)
    tried = ({"samples": 1},)  # one sample; another would cost as much again

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        start: int = knob(200, (1, T - 1))  # t that the scan is noised to
        steps_back: int = knob(10, (1, T - 1))  # from start to 0, in each of the two passes
        guidance: float = knob(1.0, (0, 1e3))  # w of the first pass
        stronger: float = knob(3.0, (0, 1e3))  # w of the second pass
        masked: float = knob(0.2, (0, 2))  # a pixel is masked where |x0_hat - y|, smoothed, is above
        samples: int = knob(2, (1, 100))
        features: float = knob(0.5, (0, 1))  # share of the distance of features in the score

    def build(self):
        channels = SIZES[self.config.size].fold ** 2
        return {"unet": make_unet(channels, channels, self.config.size)}

    def draw(self, x, brain, generator):
        eps = torch.randn(x.shape, generator=generator)
        t = torch.randint(T, (len(x),), generator=generator)
        return {"x_t": noised(x, eps, t), "eps": eps, "t": t}

    def loss(self, drawn):
        return F.mse_loss(self.eps(drawn["x_t"], drawn["t"]), drawn["eps"])

    def eps(self, x_t: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
        """The network's guess of the noise, (N, 1, H, W)."""
        return run(self.unet, x_t, t)

    def guided(self, x_t: torch.Tensor, t: int, y: torch.Tensor, weight: float) -> torch.Tensor:
        """eps + sqrt(1 - abar_t) w grad |x0_hat - y|, the norm taken over each slice."""
        a = abar(t, x_t)
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            eps = self.eps(x_t, t)
            x0_hat = (x_t - (1 - a).sqrt() * eps) / a.sqrt()
            distance = (x0_hat - y).flatten(1).norm(dim=1).sum()
            (gradient,) = torch.autograd.grad(distance, x_t)
        return eps.detach() + (1 - a).sqrt() * weight * gradient

    def back(
        self, y: torch.Tensor, weight: float, rng: Rng, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """From y noised to `start`, guided, to x0_hat; outside the mask, if there is one, y's own pixels."""
        c, fixed = self.config, gaussian_noise(y.shape, rng).to(y)
        times = torch.linspace(c.start, 0, c.steps_back + 1).round().long().unique().flip(0).tolist()
        x_t = noised(y, fixed, c.start)
        for t, later in zip(times, [*times[1:-1], -1]):
            if mask is not None:
                x_t = torch.where(mask, x_t, noised(y, fixed, t))
            eps, a, b = self.guided(x_t, t, y, weight), abar(t, y), abar(later, y)
            x0_hat = ((x_t - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
            variance = (1 - b) / (1 - a) * (1 - a / b)  # of an ancestral step; 0 at the last
            x_t = b.sqrt() * x0_hat + (1 - b - variance).clamp_min(0).sqrt() * eps
            x_t = x_t + variance.sqrt() * gaussian_noise(y.shape, rng).to(y)
        return x_t if mask is None else torch.where(mask, x_t, y)

    def score(self, x, brain, rng):
        c, healed = self.config, []
        for _ in range(c.samples):
            first = self.back(x, c.guidance, rng)
            mask = F.avg_pool2d((first - x).abs(), 3, 1, 1) > c.masked
            healed.append(self.back(x, c.stronger, rng, F.max_pool2d(mask.float(), 3, 1, 1).bool()))
        healed = torch.where(brain, torch.stack(healed).mean(0), x)
        moved = (self.encode(healed) - self.encode(x)).square().mean(1, keepdim=True)  # (N, 1, h, w)
        features = F.interpolate(1 - (-moved).exp(), size=x.shape[2:], mode="bilinear")
        return c.features * features + (1 - c.features) * difference(healed, x)
