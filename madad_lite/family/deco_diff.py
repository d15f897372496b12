"""DeCo-Diff (Beizaee et al. 2025, CVPR, arXiv 2503.19357): MAD-AD's authors' next step, in latents as well.

Random patches of a normal latent are corrupted, by noise or by shuffled patches of the same latent, and the network
predicts the deviation z_t - z_0 itself: 0 where nothing is wrong, so that what is normal stays as it is without any
mask. At test the scan's latent is corrected in five deterministic steps; nothing is noised. Score: the root of image
difference times latent difference.

    hidden: patches of sides 1, 2, 4, 8, 16 (p .3, .25, .2, .15, .1), a share U(0, .7) of them
    predicted: the deviation, with MSE

Ours: T = 10 and the cosine schedule, as MAD-AD's; half of the samples shuffled, half noised; in a step the deviation
shrinks as sqrt(1 - abar_t) does, z_s = z_t - (1 - c_s / c_t) delta. The authors' published script mixes noise and
shuffled patches within a sample (up to 0.3 of the patches are noise), and has these five sides for images of 512 pixels
only: for 256 it has 1, 2, 4, 8 with p .4, .3, .2, .1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from madad_lite.diffusion import make_scheduler
from madad_lite.family.frame import FamilyConfig, Method, difference, knob
from madad_lite.family.parts import make_unet
from madad_lite.masking import random_patch_mask

SIDES, CHANCES = (1, 2, 4, 8, 16), (0.3, 0.25, 0.2, 0.15, 0.1)
STEPS = 10  # T


def shuffled(z: torch.Tensor, generator: torch.Generator, side: int = 2) -> torch.Tensor:
    """Latents (N, C, h, w) with their patches of `side` cells in another order; h and w divisible by it."""
    n, c, h, w = z.shape
    patches = F.unfold(z, side, stride=side)  # (N, C * side * side, K)
    order = torch.rand(n, 1, patches.shape[2], generator=generator).argsort(-1).expand_as(patches)
    return F.fold(patches.gather(2, order), (h, w), side, stride=side)


def apart(a: torch.Tensor, b: torch.Tensor, size) -> torch.Tensor:
    """The distance of two latents (N, C, h, w), in 0..1, as (N, 1, H, W)."""
    moved = 1 - (-(a - b).square().mean(1, keepdim=True)).exp()  # (N, 1, h, w)
    return F.interpolate(moved, size=tuple(size), mode="bilinear", align_corners=False)


class DecoDiff(Method):
    title = "DeCo-Diff"
    latent = True
    # length, batch and rate of the authors' published script; their L is MAD-AD's
    paper = dict(size="latents-L", epochs=800, batch_size=128, learning_rate=1e-4, variants=1)
    tried = ({}, {"steps_back": 1})

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        steps_back: int = knob(5, (1, STEPS))
        max_ratio: float = knob(0.7, (0, 1))
        shuffle_share: float = knob(0.5, (0, 1))  # of the samples; the others are noised

    def build(self):
        channels = self.autoencoder.config.latent_channels
        return {"unet": make_unet(channels, channels, self.config.size)}

    def draw(self, z0, brain, generator):
        n, size = len(z0), tuple(z0.shape[-2:])
        mask = random_patch_mask(
            n,
            size,
            brain=brain,
            generator=generator,
            sides=SIDES,
            side_probabilities=CHANCES,
            max_ratio=self.config.max_ratio,
        ).bool()
        t = torch.randint(STEPS, (n,), generator=generator)
        foreign = torch.randn(z0.shape, generator=generator)
        others = torch.rand(n, 1, 1, 1, generator=generator) < self.config.shuffle_share
        foreign = torch.where(others, shuffled(z0, generator), foreign)
        z_t = torch.where(mask, make_scheduler(STEPS).add_noise(z0, foreign, t), z0)
        return {"z_t": z_t, "t": t, "deviation": z_t - z0}

    def loss(self, drawn):
        return F.mse_loss(self.deviation(drawn["z_t"], drawn["t"]), drawn["deviation"])

    def deviation(self, z_t: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
        return self.unet(z_t, torch.as_tensor(t, device=z_t.device).expand(len(z_t))).sample.float()

    def corrected(self, z: torch.Tensor) -> torch.Tensor:
        """The latent (N, C, h, w) after all steps."""
        c = (1 - make_scheduler(STEPS).alphas_cumprod).sqrt()
        times = [round(STEPS * (i + 1) / self.config.steps_back) - 1 for i in range(self.config.steps_back)]
        times = times[::-1]
        for t, later in zip(times, [*times[1:], -1]):
            left = c[later] / c[t] if later >= 0 else 0.0
            z = z - (1 - left) * self.deviation(z, t)
        return z

    def score(self, x, brain, rng):
        z0 = self.encode(x)
        z = self.corrected(z0)
        image = difference(self.decode(z, brain), self.decode(z0, brain))
        return (image * apart(z, z0, x.shape[2:])).sqrt()
