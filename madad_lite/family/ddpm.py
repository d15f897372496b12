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

Simplified: latents in place of images and their distance in place of LPIPS; ten steps of DDIM (eta = 0) in
place of every step; AnoDDPM's simplex noise is fractal value noise with as many octaves as the latent can
hold; AutoDDPM stitches in two passes of five steps, with a mask where latents moved by a mean square above
0.1. The schedule is the cosine one, theirs is
linear: their t = 200, 250, 350 have the noise of 393, 481, 639 here, and AutoDDPM's 50 that of 103.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

from madad_lite.scoring import image_difference
from madad_lite.training.latent_cache import CHANGED, LatentDataset, latents_fingerprint
from madad_lite.training.loop import step_generator, train_model
from madad_lite.training.settings import TrainingConfig


def make_unet(channels: int) -> UNet2DModel:
    """Like the trunk of MAD-AD's nano denoiser: depth, widths and where it attends; 2.7 M parameters as
    well.
    """
    return UNet2DModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=24,
    )


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", clip_sample=False)


def gaussian_noise(shape, generator) -> torch.Tensor:
    return randn_tensor(tuple(shape), generator=generator)


def fractal_noise(shape, generator, *, octaves: int = 4, persistence: float = 0.8) -> torch.Tensor:
    """Smooth noise of unit spread: lattices of 3, 6, 12, 24 knots, each finer one weighted 0.8 of the one
    before.
    """
    total = torch.zeros(shape)
    for octave in range(octaves):
        knots = 3 * 2**octave
        lattice = randn_tensor((*shape[:2], knots, knots), generator=generator)
        total = total + persistence**octave * F.interpolate(
            lattice, size=shape[2:], mode="bicubic", align_corners=True
        )
    return total / total.flatten(1).std(1).view(-1, 1, 1, 1)


NOISES: dict[str, Callable] = {"gaussian": gaussian_noise, "fractal": fractal_noise}


def train_ddpm(
    latents: str | Path,
    out: str | Path,
    config: TrainingConfig,
    *,
    noise: str = "gaussian",
    resume=False,
    progress=True,
) -> Path:
    """Train on cached latents (latent_cache.encode_latents); returns the run's folder. Loss: MSE of the noise."""
    train, held_out = LatentDataset(latents, "train"), LatentDataset(latents, "val")
    scheduler = make_scheduler()
    torch.manual_seed(config.seed)

    def step(model, batch, generator, device):
        mean, std = batch["mean"].cpu(), batch["std"].cpu()
        z0 = mean + std * torch.randn(mean.shape, generator=generator)
        eps = NOISES[noise](z0.shape, generator)
        t = torch.randint(1000, (len(z0),), generator=generator)
        z_t = scheduler.add_noise(z0, eps, t)
        return F.mse_loss(model(z_t.to(device), t.to(device)).sample.float(), eps.to(device))

    def validate(model, device):
        items = [held_out[i] for i in range(0, len(held_out), max(1, len(held_out) // 128))]
        batches = [
            {k: torch.stack([x[k] for x in items[i : i + 32]]) for k in items[0]}
            for i in range(0, len(items), 32)
        ]
        with torch.no_grad():
            losses = [step(model, b, step_generator(12345, i), device).item() for i, b in enumerate(batches)]
        return {"val_loss": sum(losses) / len(losses)}

    def losses_of(model, batch, generator):
        return {"loss": step(model, batch, generator, batch["mean"].device)}

    model = make_unet(train[0]["mean"].shape[0])
    return train_model(
        model,
        train,
        out,
        config,
        losses_of=losses_of,
        validate=validate,
        inputs={"latents": str(latents), "fingerprint": latents_fingerprint(latents), "noise": noise},
        resume=resume,
        progress=progress,
        title=f"DDPM ({noise})",
    )


@dataclass
class Diffusion:
    """One of the three methods with a trained network: called with (pipeline, images, brain), it gives the
    anomaly map.
    """

    model: UNet2DModel
    method: str = "anoddpm"  # "anoddpm", "autoddpm", "thor"
    noise: str = "gaussian"
    start: int = 480  # t that the scan is noised to, of 1000
    steps: int = 10  # of DDIM, from start to 0
    sigma: float = 0.7  # of the differences, pixels
    seed: int = 0

    @classmethod
    def load(cls, folder: str | Path, **settings) -> Diffusion:
        return cls(UNet2DModel.from_pretrained(folder).eval(), **settings)

    @torch.no_grad()
    def __call__(self, pipeline, images: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        z0 = pipeline.encode(images).float()
        healed = [torch.cat(parts) for parts in zip(*(self.heal(z, generator) for z in z0.split(64)))]
        reconstruction, *healed = (torch.where(brain, pipeline.decode(z), -1.0) for z in (z0, *healed))
        scored = dict(gamma=0.6, squared=False, sigma=self.sigma, brain=brain)
        maps = torch.stack([image_difference(x, reconstruction, **scored) for x in healed])
        if self.method == "thor":
            maps = 1 / maps.clamp_min(1e-6).reciprocal().mean(0, keepdim=True)
        return torch.where(brain, maps.prod(0), 0.0).clamp(max=1)

    def heal(self, z0: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
        """The healed latents that the score looks at, the last one of the method first."""
        times = torch.linspace(self.start, 0, self.steps + 1).round().long().tolist()
        eps = NOISES[self.noise](z0.shape, generator)
        z = make_scheduler().add_noise(z0, eps, torch.tensor([self.start]))
        if self.method != "thor":
            first = self._back(z, times)
            return [first] if self.method == "anoddpm" else [self._stitched(z0, first, generator), first]
        seen: list[torch.Tensor] = []
        mixed_at = {times[round(share * self.steps)] for share in (0.1, 0.6, 0.8)}

        def guide(t: int, estimate: torch.Tensor) -> torch.Tensor | None:
            if t not in mixed_at:
                return None
            seen.append(estimate)
            return self._agreement(z0, estimate)

        return [self._back(z, times, guide, generator), *seen]

    def _back(self, z, times, guide=None, generator=None, known=None) -> torch.Tensor:
        """DDIM from times[0] to 0. guide(t, estimate): None, or a latent that is noised anew to go on from.
        known: (mask, z0, noise), to hold z0 outside the mask."""
        abar = make_scheduler().alphas_cumprod
        for t, later in zip(times, times[1:]):
            eps = self.model(z, t).sample
            estimate = (z - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            mixed = guide(t, estimate) if guide is not None and later > 0 else None
            if mixed is not None:
                estimate, eps = mixed, gaussian_noise(z.shape, generator)
            z = abar[later].sqrt() * estimate + (1 - abar[later]).sqrt() * eps if later > 0 else estimate
            if known is not None:
                mask, z0, noise = known
                z = torch.where(
                    mask, z, abar[later].sqrt() * z0 + (1 - abar[later]).sqrt() * noise if later > 0 else z0
                )
        return z

    @staticmethod
    def _agreement(z0, estimate) -> torch.Tensor:
        """THOR: the anomaly map of this moment, in 0..1 and widened by a cell, mixes estimate and scan."""
        difference = F.avg_pool2d((estimate - z0).square().mean(1, keepdim=True).sqrt(), 3, 1, 1)
        share = (difference / difference.flatten(1).quantile(0.98, dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
        share = F.max_pool2d(share, 3, 1, 1)
        return share * estimate + (1 - share) * z0

    def _stitched(self, z0, estimate, generator, *, low: int = 103, repeats: int = 2) -> torch.Tensor:
        """AutoDDPM: cells that changed much keep the estimate, the others the scan; noised to `low` and
        denoised together.
        """
        difference = F.avg_pool2d((estimate - z0).square().mean(1, keepdim=True), 3, 1, 1)
        mask = F.max_pool2d((difference > CHANGED).float(), 3, 1, 1).bool()
        current, scheduler = torch.where(mask, estimate, z0), make_scheduler()
        for _ in range(repeats):
            noise = gaussian_noise(z0.shape, generator)
            z = scheduler.add_noise(current, noise, torch.tensor([low]))
            current = self._back(
                z, torch.linspace(low, 0, 6).round().long().tolist(), known=(mask, z0, noise)
            )
        return current
