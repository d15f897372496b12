"""The training of the latent encoder: reconstruction and a weak KL divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from madad_lite.autoencoder import decode, downsampling, encode, make_autoencoder, measure_scaling, posterior
from madad_lite.files import save_model
from madad_lite.slices import augment
from madad_lite.slices.dataset import SliceDataset
from madad_lite.training.loop import train_model
from madad_lite.training.processes import processes
from madad_lite.training.run_folder import described, spread
from madad_lite.training.settings import AutoencoderConfig


def psnr(images: torch.Tensor, reference: torch.Tensor, brain: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB inside the brain; slices span [-1, 1], so the peak is 2."""
    error = (images.clamp(-1, 1) - reference)[brain].square().mean().item()
    return 10 * math.log10(4 / max(error, 1e-12))


def train_autoencoder(
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    config: AutoencoderConfig = AutoencoderConfig(),
    *,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train the latent encoder on prepared folders; returns the run's folder (`best/`, `last/`: diffusers
    AutoencoderKL).

    Loss: L1 + gradient_weight * L1 of the image differences + kl_weight * KL per latent value. The scaling
    1/std is measured on training slices with the final weights and written into the configs.
    """
    out = Path(out)
    train, held_out = (
        SliceDataset(data, "train", lesion_free=True),
        SliceDataset(data, "val", lesion_free=True),
    )
    torch.manual_seed(config.seed)
    model = make_autoencoder(config.size, config.latent_channels)
    shown = [held_out[i] for i in spread(len(held_out), 96)]
    val_images, val_brain = (torch.stack([s[k] for s in shown]) for k in ("image", "brain"))

    def draw(batch, generator):
        images, brain = augment.move(batch["image"], batch["brain"], generator)
        images = augment.vary_intensity(images, brain, generator)
        images = augment.random_contrast(images, brain, generator, config.contrast_share)
        n, _, h, w = images.shape
        f = downsampling(model)
        again = torch.Generator().manual_seed(generator.initial_seed())
        return {
            "images": images,
            "noise": torch.randn(n, config.latent_channels, h // f, w // f, generator=again),
        }

    def loss_of(model, batch, generator):
        return _autoencoder_losses(model, batch["images"], config, batch["noise"])

    def validate(model, device):
        with torch.no_grad():
            parts = [
                (_autoencoder_losses(model, x.to(device), config), decode(model, encode(model, x.to(device))))
                for x in val_images.split(16)
            ]
        losses = {f"val_{k}": float(np.mean([p[0][k].item() for p in parts])) for k in parts[0][0]}
        return {**losses, "val_psnr": psnr(torch.cat([p[1].cpu() for p in parts]), val_images, val_brain)}

    inputs = described(data, train)
    train_model(model, train, out, config, loss_of, validate, inputs, resume, progress, "autoencoder", draw)
    some = [train[i]["image"] for i in spread(len(train), 256)]
    with processes().main_process_first():  # the others find it measured
        for name in ("best", "last"):
            trained = AutoencoderKL.from_pretrained(out / name)
            if trained.config.scaling_factor == 1.0:  # not measured yet
                trained.register_to_config(
                    scaling_factor=measure_scaling(trained, torch.stack(some).split(32))
                )
                save_model(trained, out / name)
    return out


def _autoencoder_losses(
    model, images: torch.Tensor, config: AutoencoderConfig, noise: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    distribution = posterior(model, images)
    z = distribution.mode() if noise is None else distribution.mean + distribution.std * noise
    error = decode(model, z) - images  # the scaling is 1 while it trains
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    reconstruction = error.abs().mean() + config.gradient_weight * edges
    kl = distribution.kl().mean() / z[0].numel()
    return {"loss": reconstruction + config.kl_weight * kl, "reconstruction": reconstruction, "kl": kl}
