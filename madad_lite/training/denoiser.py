"""The two trainings: the autoencoder (reconstruction + KL) and the masked denoiser (latent loss + mask
loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import denoising_losses, make_scheduler, masked_forward
from madad_lite.masking import random_patch_mask
from madad_lite.slices.dataset import SliceDataset
from madad_lite.training.latent_cache import LatentDataset, encode_latents, fingerprint
from madad_lite.training.loop import step_generator, train_model
from madad_lite.training.processes import processes
from madad_lite.training.run_folder import Run, described, spread
from madad_lite.training.settings import DenoiserConfig


def train_denoiser(
    data: str | Path | Sequence[str | Path],
    autoencoder: str | Path | AutoencoderKL,
    out: str | Path,
    config: DenoiserConfig = DenoiserConfig(),
    *,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train the masked denoiser on the latents of prepared folders; returns the run's folder (`best/`,
    `last/`: Denoiser).

    `autoencoder` is a folder of train_autoencoder (its `best/`) or a loaded model. Loss: MSE(z0_hat, z0) +
    lambda * mask loss. Validation adds `val_masked`, the MSE on the noised cells alone: 1.0 would be no
    better than guessing the mean.
    """
    out = Path(out)
    if not isinstance(autoencoder, AutoencoderKL):
        autoencoder = AutoencoderKL.from_pretrained(autoencoder)
    autoencoder.requires_grad_(False).eval().to(processes().device if torch.cuda.is_available() else "cpu")
    inputs = described(data, SliceDataset(data, "train", lesion_free=True)) | {
        "encoder": fingerprint(autoencoder)
    }
    Run(
        out, config, resume=resume, inputs=inputs
    )  # refused before the latents of the run that is there are touched
    with processes().main_process_first():  # the others find it done
        cache = encode_latents(data, autoencoder, out / "latents", config, progress=progress)
    train, held_out = LatentDataset(cache, "train"), LatentDataset(cache, "val")
    scheduler = make_scheduler()
    torch.manual_seed(config.seed)
    model = Denoiser.of_size(
        config.size, latent_channels=autoencoder.config.latent_channels, dropout=config.dropout
    )

    def draw(batch, generator):
        mean, std = batch["mean"], batch["std"]
        n, _, h, w = mean.shape
        z0 = mean + std * torch.randn(mean.shape, generator=generator)  # a sample of the posterior
        mask = random_patch_mask(
            n, (h, w), brain=batch["brain"], max_ratio=config.max_ratio, generator=generator
        )
        noise = torch.randn(mean.shape, generator=generator)
        last = scheduler.config.num_train_timesteps - 1
        t = torch.randint(last + 1, (n,), generator=generator)
        if config.last_step_share > 0:
            t = torch.where(torch.rand(n, generator=generator) < config.last_step_share, last, t)
        z_t = masked_forward(z0, noise, mask, t, scheduler)
        if config.corruption_share > 0:
            # a region of foreign tissue arrives clean, as a lesion does, or noised to any step up to t, as
            # later steps see it
            chosen = torch.rand(n, 1, 1, 1, generator=generator) < config.corruption_share
            earlier = (torch.rand(n, generator=generator) * (t + 2)).long() - 1  # -1: not noised
            foreign = batch["corrupted"] + std * torch.randn(mean.shape, generator=generator)
            noised = scheduler.add_noise(foreign, noise, earlier.clamp_min(0))
            region = torch.where((earlier < 0).view(n, 1, 1, 1) | ~batch["changed"], foreign, noised)
            patches = mask.bool() & ~batch["changed"] & (torch.rand(n, 1, 1, 1, generator=generator) < 0.5)
            z_t = torch.where(chosen, torch.where(patches, z_t, region), z_t)
            mask = torch.where(chosen, (batch["changed"] | patches).float(), mask)
        return {"z0": z0, "mask": mask, "z_t": z_t, "t": t}

    def masked_step(model, batch):
        z0, mask = batch["z0"], batch["mask"]
        prediction, logits = model(batch["z_t"], batch["t"])  # (N, C, h, w), (N, 1, h, w)
        losses = denoising_losses(
            prediction.float(),
            logits.float(),
            z0,
            mask,
            mask_loss=config.mask_loss,
            mask_weight=config.mask_weight,
        )
        return [x.mean() for x in losses], ((prediction - z0).square() * mask).sum() / (
            mask.sum() * z0.shape[1]
        ).clamp_min(1)

    def loss_of(model, batch, generator):
        (latent_loss, mask_loss, total), _ = masked_step(model, batch)
        return {"loss": total, "latent": latent_loss, "mask": mask_loss}

    def validate(model, device):
        items = [held_out[i] for i in spread(len(held_out), 256)]
        batches = [
            {k: torch.stack([x[k] for x in items[i : i + 32]]) for k in items[0]}
            for i in range(0, len(items), 32)
        ]
        drawn = [draw(b, step_generator(12345, i)) for i, b in enumerate(batches)]
        with torch.no_grad():
            parts = [masked_step(model, {k: v.to(device) for k, v in b.items()}) for b in drawn]
        rows = np.array([[x.item() for x in (*losses, masked)] for losses, masked in parts]).mean(0)
        return dict(zip(("val_latent", "val_mask", "val_loss", "val_masked"), rows.tolist()))

    return train_model(
        model, train, out, config, loss_of, validate, inputs, resume, progress, "denoiser", draw
    )
