"""Denoising autoencoder with coarse noise (Kascenas, Pugeault, O'Neil 2022, MIDL).

Smooth Gaussian noise of a low resolution (16 x 16 over the slice, bilinear, at a random offset, spread 0.2 of
the range) is added to normal slices, and a U-Net learns to remove it. A lesion is such a coarse deviation.
Score: |x_hat - x|.

The score may be median-filtered over 5 x 5 pixels, as there. Simplified: the brain is not eroded; the slice
is folded 4 x 4 into channels, so that the U-Net works at the resolution of MAD-AD's latents, with its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from scipy import ndimage

from madad_lite.family.ddpm import make_unet
from madad_lite.scoring import image_difference
from madad_lite.slices.augment import AUGMENTATIONS
from madad_lite.slices.dataset import SliceDataset
from madad_lite.training.loop import step_generator, train_model
from madad_lite.training.run_folder import described
from madad_lite.training.settings import TrainingConfig

FOLD = 4


def coarse_noise(
    shape, generator: torch.Generator, resolution: int = 16, spread: float = 0.4
) -> torch.Tensor:
    """(N, 1, H, W); 0.4 is 0.2 of the range of our slices, 2."""
    n, _, h, w = shape
    noise = torch.randn(n, 1, resolution, resolution, generator=generator)
    noise = F.interpolate(noise, size=(h, w), mode="bilinear", align_corners=False) * spread
    shift = torch.randint(0, min(h, w), (2,), generator=generator).tolist()
    return noise.roll(shift, (-2, -1))


def restore(model: UNet2DModel, images: torch.Tensor) -> torch.Tensor:
    """The network's answer to slices (N, 1, H, W), of the same shape; H and W divisible by 16."""
    folded = F.pixel_unshuffle(images, FOLD)  # (N, 16, H/4, W/4)
    answer = model(folded, torch.zeros(len(images), device=images.device)).sample  # (N, 16, H/4, W/4)
    return F.pixel_shuffle(answer, FOLD)  # (N, 1, H, W)


def train_dae(
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    config: TrainingConfig,
    *,
    resume=False,
    progress=True,
) -> Path:
    """Train on the lesion-free slices of prepared folders; returns the run's folder. Loss: MSE inside the
    brain.
    """
    train, held_out = (
        SliceDataset(data, "train", lesion_free=True),
        SliceDataset(data, "val", lesion_free=True),
    )
    torch.manual_seed(config.seed)

    def step(model, images, brain, generator, device):
        noised = torch.where(brain, images + coarse_noise(images.shape, generator), images)
        error = (restore(model, noised.to(device)).float() - images.to(device)).square()
        return (error * brain.to(device)).sum() / brain.sum().clamp_min(1)

    def losses_of(model, batch, generator):
        images, brain = AUGMENTATIONS["lite"](batch["image"].cpu(), batch["brain"].cpu(), generator)
        return {"loss": step(model, images, brain, generator, batch["image"].device)}

    def validate(model, device):
        items = [held_out[i] for i in range(0, len(held_out), max(1, len(held_out) // 96))]
        images, brain = (torch.stack([x[k] for x in items]) for k in ("image", "brain"))
        parts = zip(images.split(32), brain.split(32))
        with torch.no_grad():
            losses = [
                step(model, x, b, step_generator(12345, i), device).item() for i, (x, b) in enumerate(parts)
            ]
        return {"val_loss": sum(losses) / len(losses)}

    return train_model(
        make_unet(FOLD**2),
        train,
        out,
        config,
        losses_of=losses_of,
        validate=validate,
        inputs=described(data, train),
        resume=resume,
        progress=progress,
        title="DAE",
    )


@dataclass
class DenoisingAutoencoder:
    """Called with (pipeline, images, brain), it gives the anomaly map."""

    model: UNet2DModel
    sigma: float = 0.7  # of the score, pixels
    median: int = 0  # width of a median filter, pixels

    @classmethod
    def load(cls, folder: str | Path, **settings) -> DenoisingAutoencoder:
        return cls(UNet2DModel.from_pretrained(folder).eval(), **settings)

    @torch.no_grad()
    def __call__(self, pipeline, images: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        restored = torch.cat([restore(self.model, x) for x in images.split(64)]).clamp(-1, 1)
        restored = torch.where(brain, restored, -1.0)
        score = image_difference(restored, images, gamma=0.6, squared=False, sigma=self.sigma, brain=brain)
        if self.median:
            score = torch.from_numpy(ndimage.median_filter(score.numpy(), (1, 1, self.median, self.median)))
        return torch.where(brain, score, 0.0)
