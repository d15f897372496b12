"""Diffusion models of normal brains without masks: AnoDDPM, AutoDDPM and THOR, on the same latents as MAD-AD.

One network serves all three: a plain denoising diffusion model (Ho et al. 2020) of normal latents, T = 1000,
which predicts the noise. They differ in how a scan is noised and brought back.

    AnoDDPM   Wyatt et al. 2022 (CVPR workshops). Noise the scan to t < T only, then denoise; the noise may be
              coarse.
    AutoDDPM  Bercea et al. 2023 (arXiv 2305.19643). What AnoDDPM changed much is a mask; inside it the healed
              scan, outside it the scan itself are noised a little and denoised together, so that the two fit.
              Score: the first difference times the second.
    THOR      Bercea et al. 2024 (arXiv 2403.08464). Three times on the way back: where the scan and its
              estimate agree, go on from the scan, elsewhere from the estimate. Score: harmonic mean of the
              differences seen on the way.

Ours: latents in place of images and their distance in place of LPIPS; ten steps of DDIM (eta = 0) in place of every
step; AnoDDPM's simplex noise is fractal value noise with as many octaves as the latent can hold; AutoDDPM stitches in
two passes of five steps, with a mask where latents moved by a mean square above 0.1. The schedule is the cosine one,
theirs is linear: their t = 200, 250, 350 have the noise of 393, 481, 639 here, and AutoDDPM's 50 that of 103.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from madad_lite.family.frame import FamilyConfig, Method, Rng, difference, knob
from madad_lite.family.parts import T, abar, fractal_noise, gaussian_noise, make_unet, noised
from madad_lite.training.latent_cache import CHANGED

NOISES = {"gaussian": gaussian_noise, "fractal": fractal_noise}


class AnoDDPM(Method):
    title = "AnoDDPM"
    latent = True
    # 3,000 epochs at 1e-4, one slice of 256 pixels a step, in the authors' published configuration; here latents, and
    # as many slices in larger batches
    paper = dict(size="latents-L", epochs=3000, batch_size=64, learning_rate=1e-4, noise="fractal")
    tried = ({}, {"start": 300})

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        noise: str = knob("gaussian", NOISES)
        start: int = knob(480, (1, T - 1))  # t that the scan is noised to
        ddim_steps: int = knob(10, (1, T - 1))  # from start to 0

    def build(self):
        channels = self.autoencoder.config.latent_channels
        return {"unet": make_unet(channels, channels, self.config.size)}

    def draw(self, z0, brain, generator):
        eps = NOISES[self.config.noise](z0.shape, generator)
        t = torch.randint(T, (len(z0),), generator=generator)
        return {"z_t": noised(z0, eps, t), "eps": eps, "t": t}

    def loss(self, drawn):
        return F.mse_loss(self.eps(drawn["z_t"], drawn["t"]), drawn["eps"])

    def eps(self, z: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
        """The network's guess of the noise in latents z (N, C, h, w)."""
        return self.unet(z, torch.as_tensor(t, device=z.device).expand(len(z))).sample.float()

    def score(self, x, brain, rng):
        z0 = self.encode(x)
        scan = self.decode(z0, brain)
        return self.joined([difference(self.decode(z, brain), scan) for z in self.heal(z0, rng)])

    def joined(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(maps).prod(0)

    def heal(self, z0: torch.Tensor, rng: Rng) -> list[torch.Tensor]:
        """The healed latents that the score looks at, the last one of the method first."""
        return [self.back(self.start_from(z0, rng), self.times())]

    def times(self) -> list[int]:
        c = self.config
        return torch.linspace(c.start, 0, c.ddim_steps + 1).round().long().tolist()

    def start_from(self, z0: torch.Tensor, rng: Rng) -> torch.Tensor:
        eps = NOISES[self.config.noise](z0.shape, rng).to(z0)
        return noised(z0, eps, self.config.start)

    def back(self, z, times, guide=None, rng=None, known=None) -> torch.Tensor:
        """DDIM from times[0] to 0. guide(t, estimate): None, or a latent that is noised anew to go on from.
        known: (mask, z0, noise), to hold z0 outside the mask."""
        for t, later in zip(times, times[1:]):
            eps, a = self.eps(z, t), abar(t, z)
            estimate = (z - (1 - a).sqrt() * eps) / a.sqrt()
            mixed = guide(t, estimate) if guide is not None and later > 0 else None
            if mixed is not None:
                estimate, eps = mixed, gaussian_noise(z.shape, rng).to(z)
            z = noised(estimate, eps, later) if later > 0 else estimate
            if known is not None:
                mask, z0, noise = known
                z = torch.where(mask, z, noised(z0, noise, later) if later > 0 else z0)
        return z


class AutoDDPM(AnoDDPM):
    title = "AutoDDPM"
    trained_as = "anoddpm"

    def heal(self, z0, rng):
        first = self.back(self.start_from(z0, rng), self.times())
        return [self.stitched(z0, first, rng), first]

    def stitched(self, z0, estimate, rng, *, low: int = 103, repeats: int = 2) -> torch.Tensor:
        """Cells that changed much keep the estimate, the others the scan; noised to `low` and denoised together."""
        moved = F.avg_pool2d((estimate - z0).square().mean(1, keepdim=True), 3, 1, 1)
        mask = F.max_pool2d((moved > CHANGED).float(), 3, 1, 1).bool()
        current, times = torch.where(mask, estimate, z0), torch.linspace(low, 0, 6).round().long().tolist()
        for _ in range(repeats):
            noise = gaussian_noise(z0.shape, rng).to(z0)
            current = self.back(noised(current, noise, low), times, known=(mask, z0, noise))
        return current


class THOR(AnoDDPM):
    title = "THOR"
    trained_as = "anoddpm"

    def heal(self, z0, rng):
        seen: list[torch.Tensor] = []
        times = self.times()
        mixed_at = {times[round(share * self.config.ddim_steps)] for share in (0.1, 0.6, 0.8)}

        def guide(t: int, estimate: torch.Tensor) -> torch.Tensor | None:
            if t not in mixed_at:
                return None
            seen.append(estimate)
            return self.agreement(z0, estimate)

        return [self.back(self.start_from(z0, rng), times, guide, rng), *seen]

    def joined(self, maps):
        return 1 / torch.stack(maps).clamp_min(1e-6).reciprocal().mean(0)

    @staticmethod
    def agreement(z0: torch.Tensor, estimate: torch.Tensor) -> torch.Tensor:
        """The anomaly map of this moment, in 0..1 and widened by a cell, mixes estimate and scan."""
        moved = F.avg_pool2d((estimate - z0).square().mean(1, keepdim=True).sqrt(), 3, 1, 1)
        share = (moved / moved.flatten(1).quantile(0.98, dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
        share = F.max_pool2d(share, 3, 1, 1)
        return share * estimate + (1 - share) * z0
