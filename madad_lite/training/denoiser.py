"""The training of the masked denoiser on cached latents: latent loss + mask loss (MAD-AD, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler

from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import denoising_losses, make_scheduler, masked_forward
from madad_lite.errors import RunError
from madad_lite.extensions.lesion_like import with_regions
from madad_lite.masking import random_patch_mask
from madad_lite.slices.dataset import SliceDataset
from madad_lite.training.autoencoder import load_autoencoder
from madad_lite.training.latent_cache import LatentDataset, encode_latents, fingerprint
from madad_lite.training.loop import Batch, step_generator, train_model
from madad_lite.training.processes import processes
from madad_lite.training.run_folder import Run, described, spread
from madad_lite.training.settings import DenoiserConfig


def masked_draw(
    latents: Batch,
    scheduler: DDIMScheduler,
    generator: torch.Generator | None = None,
    *,
    max_ratio: float = 0.4,
    last_step_share: float = 0.0,
) -> Batch:
    """What a training step draws (MAD-AD, section 3.1): {"z0", "M", "eps", "t", "z_t"}.

    z_t = M * (sqrt(abar_t) z_0 + sqrt(1 - abar_t) epsilon) + (1 - M) * z_0.

    latents: a batch of LatentDataset, "mean", "std" (N, C, h, w), "brain" (N, 1, h, w).
    last_step_share: ours, 0 in the paper: in this share of the samples t is T - 1, pure noise.
    """
    mean, std, n = latents["mean"], latents["std"], len(latents["mean"])
    z0 = mean + std * torch.randn(mean.shape, generator=generator)  # (N, C, h, w), a posterior sample
    size = tuple(z0.shape[-2:])  # (h, w)
    M = random_patch_mask(n, size, brain=latents["brain"], max_ratio=max_ratio, generator=generator)
    eps = torch.randn(z0.shape, generator=generator)  # (N, C, h, w); M is (N, 1, h, w), 1 = noised
    T = scheduler.config.num_train_timesteps
    t = torch.randint(T, (n,), generator=generator)  # (N,), every sample its own noise level
    if last_step_share > 0:
        t = torch.where(torch.rand(n, generator=generator) < last_step_share, T - 1, t)
    z_t = masked_forward(z0, eps, M, t, scheduler)  # (N, C, h, w)
    return {"z0": z0, "M": M, "eps": eps, "t": t, "z_t": z_t}


def masked_step(
    model: torch.nn.Module, drawn: Batch, config: DenoiserConfig
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """({"loss", "latent", "mask"}: L = latent + lambda * mask, its mean over the samples and those of its two
    parts; the mean squared error of z0_hat on the noised cells alone).
    """
    z0, M = drawn["z0"], drawn["M"]  # (N, C, h, w), (N, 1, h, w)
    z0_hat, logits = model(drawn["z_t"], drawn["t"])  # (N, C, h, w), (N, 1, h, w)
    if z0_hat.shape != z0.shape or logits.shape != M.shape:
        raise RunError(
            f"{type(model).__name__}: answers {tuple(z0_hat.shape)} and {tuple(logits.shape)}; a denoiser answers "
            f"z0_hat, here {tuple(z0.shape)}, and mask logits, here {tuple(M.shape)}"
        )
    losses = denoising_losses(
        z0_hat.float(), logits.float(), z0, M, mask_loss=config.mask_loss, mask_weight=config.mask_weight
    )  # three of (N,)
    noised = M.sum() * z0.shape[1]  # values
    masked = ((z0_hat - z0).square() * M).sum() / noised.clamp_min(1)
    latent, mask, total = (x.mean() for x in losses)
    return {"loss": total, "latent": latent, "mask": mask}, masked


def train_denoiser(
    data: str | Path | Sequence[str | Path],
    autoencoder: str | Path | AutoencoderKL,
    out: str | Path,
    config: DenoiserConfig = DenoiserConfig(),
    *,
    model: torch.nn.Module | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train the masked denoiser on the latents of prepared folders; returns the run's folder (`best/`,
    `last/`: Denoiser).

    Loss: MSE(z0_hat, z0) + lambda * mask loss (MAD-AD, section 3.1). Validation adds `val_masked`, the MSE on
    the noised cells alone: guessing the mean brain cell scores the spread of those, 0.4 with the shipped autoencoder.

    autoencoder: a folder of train_autoencoder (its `best/`), or a loaded model.
    model: your own network in place of a Denoiser of config.size and config.dropout; it is trained in place.
        model(z_t, t) with z_t (N, C, h, w) and t (N,) long, 0 .. T-1, returns z0_hat (N, C, h, w) and mask
        logits (N, 1, h, w), positive where it takes a cell for noised. Saved by its save_pretrained, or, if it
        has none, as model.safetensors.

    Raises RunError for a folder that cannot be used, before anything in it is touched, and for an answer of
    another shape; ScanError for data that cannot be used.
    """
    out = Path(out)
    if isinstance(autoencoder, (str, Path)):
        autoencoder = load_autoencoder(autoencoder)
    autoencoder.requires_grad_(False).eval().to(processes().device if torch.cuda.is_available() else "cpu")
    inputs = described(data, SliceDataset(data, "train", lesion_free=True), model)
    inputs["encoder"] = fingerprint(autoencoder)
    Run(out, config, resume=resume, inputs=inputs)  # refused before latents are touched
    with processes().main_process_first():  # the others find it done
        cache = encode_latents(data, autoencoder, out / "latents", config, progress=progress)
    train, held_out = LatentDataset(cache, "train"), LatentDataset(cache, "val")
    scheduler = make_scheduler()
    torch.manual_seed(config.seed)
    if model is None:
        channels = autoencoder.config.latent_channels
        model = Denoiser.of_size(config.size, latent_channels=channels, dropout=config.dropout)

    def draw(latents: Batch, generator: torch.Generator) -> Batch:
        shares = dict(max_ratio=config.max_ratio, last_step_share=config.last_step_share)
        drawn = masked_draw(latents, scheduler, generator, **shares)
        if config.corruption_share > 0:
            drawn = with_regions(drawn, latents, config.corruption_share, scheduler, generator)
        return {k: drawn[k] for k in ("z0", "M", "t", "z_t")}

    def losses_of(model: torch.nn.Module, drawn: Batch, generator: torch.Generator) -> Batch:
        return masked_step(model, drawn, config)[0]

    items = [held_out[i] for i in spread(len(held_out), 256)]

    def validate(model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        rows = []
        for i in range(0, len(items), 32):
            latents = {k: torch.stack([x[k] for x in items[i : i + 32]]) for k in items[0]}
            drawn = draw(latents, step_generator(12345, i // 32))  # the same at every validation
            with torch.no_grad():
                losses, masked = masked_step(model, {k: v.to(device) for k, v in drawn.items()}, config)
            rows.append([x.item() for x in (losses["latent"], losses["mask"], losses["loss"], masked)])
        means = np.array(rows).mean(0).tolist()
        return dict(zip(("val_latent", "val_mask", "val_loss", "val_masked"), means))

    return train_model(
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
        title="denoiser",
    )
