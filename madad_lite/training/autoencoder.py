"""The training of the latent encoder: reconstruction and a weak KL divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ModelMixin

from madad_lite.autoencoder import decode, downsampling, encode, make_autoencoder, measure_scaling, posterior
from madad_lite.errors import RunError
from madad_lite.files import read_json, save_model
from madad_lite.slices import augment
from madad_lite.slices.dataset import SliceDataset
from madad_lite.training.loop import Batch, train_model
from madad_lite.training.processes import processes
from madad_lite.training.run_folder import described, spread
from madad_lite.training.settings import AutoencoderConfig
from madad_lite.weights.folder import autoencoder_folder, find_folder, read_model


def psnr(images: torch.Tensor, reference: torch.Tensor, brain: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB inside the brain; slices span [-1, 1], so the peak is 2.

    images, reference: (N, 1, H, W). brain: (N, 1, H, W) bool.
    """
    error = (images.clamp(-1, 1) - reference)[brain].square().mean().item()
    return 10 * math.log10(4 / max(error, 1e-12))


def load_autoencoder(folder: str | Path) -> AutoencoderKL:
    """A trained latent encoder from its folder. RunError: it holds none; WeightsError: it is damaged."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise RunError(f"{folder}: no trained autoencoder there; give the best/ or last/ of its training")
    config = read_json(folder / "config.json", {}, error=RunError, hint="train the autoencoder again")
    if (kind := config.get("_class_name")) != AutoencoderKL.__name__:
        raise RunError(f"{folder}: holds {kind}, not an autoencoder; give the best/ or last/ of its training")
    return read_model(AutoencoderKL, folder)


def as_autoencoder(given: str | Path | AutoencoderKL | None) -> AutoencoderKL | None:
    """A loaded one; that of a folder of its training; that of a pipeline, by its folder or shipped name."""
    if given is None or isinstance(given, AutoencoderKL):
        return given
    if (Path(given) / "config.json").is_file():
        return load_autoencoder(given)
    return read_model(AutoencoderKL, autoencoder_folder(find_folder(given)))


def train_autoencoder(
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    config: AutoencoderConfig = AutoencoderConfig(),
    *,
    model: ModelMixin | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train the latent encoder on prepared folders; returns the run's folder (`best/`, `last/`: diffusers
    AutoencoderKL).

    Loss: L1 + gradient_weight * L1 of the image differences + kl_weight * KL per latent value (Rombach et al.
    2022, section 3.1, without perceptual and adversarial losses). The scaling 1/std is measured on training
    slices with the final weights and written into the configs.

    model: your own network in place of one of config.size and config.latent_channels; it is trained in place.
        A diffusers model (ModelMixin and ConfigMixin) that answers as AutoencoderKL does:
        encode(x).latent_dist, with mean and std (N, C, h, w), mode() and kl(); decode(z).sample; in its
        config in_channels, latent_channels, block_out_channels (f is 2 to the power of their number - 1) and
        scaling_factor, 1.0.

    Raises RunError for a folder that cannot be used, before anything in it is touched; ScanError for data
    that cannot be used.
    """
    out = Path(out)
    train, held_out = (SliceDataset(data, split, lesion_free=True) for split in ("train", "val"))
    inputs = described(data, train, model)
    torch.manual_seed(config.seed)
    if model is None:
        model = make_autoencoder(config.size, config.latent_channels)
    shown = [held_out[i] for i in spread(len(held_out), 96)]
    val_images, val_brain = (torch.stack([s[k] for s in shown]) for k in ("image", "brain"))

    def draw(batch: Batch, generator: torch.Generator) -> Batch:
        images, brain = augment.move(batch["image"], batch["brain"], generator)  # (N, 1, H, W) twice
        images = augment.vary_intensity(images, brain, generator)
        images = augment.random_contrast(images, brain, generator, config.contrast_share)
        n, _, h, w = images.shape
        f = downsampling(model)
        again = torch.Generator().manual_seed(generator.initial_seed())
        noise = torch.randn(n, model.config.latent_channels, h // f, w // f, generator=again)  # (N, C, h, w)
        return {"images": images, "noise": noise}

    def losses_of(model: ModelMixin, batch: Batch, generator: torch.Generator) -> Batch:
        return _losses(model, batch["images"], config, batch["noise"])

    def validate(model: ModelMixin, device: torch.device) -> dict[str, float]:
        with torch.no_grad():
            parts = [
                (_losses(model, x.to(device), config), decode(model, encode(model, x.to(device))))
                for x in val_images.split(16)
            ]
        losses = {f"val_{k}": float(np.mean([p[0][k].item() for p in parts])) for k in parts[0][0]}
        return {**losses, "val_psnr": psnr(torch.cat([p[1].cpu() for p in parts]), val_images, val_brain)}

    train_model(
        model,
        train,
        out,
        config,
        losses_of=losses_of,
        validate=validate,
        draw=draw,
        inputs=inputs,
        resume=resume,
        progress=progress,
        title="autoencoder",
    )
    some = [train[i]["image"] for i in spread(len(train), 256)]
    with processes().main_process_first():  # the others find it measured
        for name in ("best", "last"):
            trained = type(model).from_pretrained(out / name)
            if trained.config.scaling_factor == 1.0:  # not measured yet
                scaling = measure_scaling(trained, torch.stack(some).split(32))
                trained.register_to_config(scaling_factor=scaling)
                save_model(trained, out / name)
    return out


def _losses(
    model: ModelMixin, images: torch.Tensor, config: AutoencoderConfig, noise: torch.Tensor | None = None
) -> Batch:
    """{"loss", "reconstruction", "kl"}. images: (N, 1, H, W). noise: (N, C, h, w), None: the mode is decoded."""
    distribution = posterior(model, images)
    z = distribution.mode() if noise is None else distribution.mean + distribution.std * noise  # (N, C, h, w)
    error = decode(model, z) - images  # (N, 1, H, W); the scaling is 1 while it trains
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    reconstruction = error.abs().mean() + config.gradient_weight * edges
    kl = distribution.kl().mean() / z[0].numel()  # per latent value
    return {"loss": reconstruction + config.kl_weight * kl, "reconstruction": reconstruction, "kl": kl}
