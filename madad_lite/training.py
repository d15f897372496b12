"""The two trainings: the autoencoder (reconstruction + KL) and the masked denoiser (latent loss + mask loss).

Every random draw of step k comes from a generator seeded with (seed, k), and the order of the data from (seed, epoch), so
that a resumed run goes on exactly as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from madad_lite import augmentation, latent
from madad_lite.data import SliceDataset
from madad_lite.diffusion import denoising_losses, make_scheduler, masked_forward
from madad_lite.latents import LatentDataset, encode_latents, step_generator
from madad_lite.masking import random_patch_mask
from madad_lite.model import Denoiser
from madad_lite.recipes import AutoencoderConfig, DenoiserConfig, TrainingConfig
from madad_lite.runs import BatchOrder, Run, save_model


def _accelerator(config: TrainingConfig) -> Accelerator:
    precision = config.mixed_precision
    if precision == "auto":
        cuda = torch.cuda.is_available()
        precision = ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16") if cuda else "no"
    return Accelerator(
        mixed_precision=precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        step_scheduler_with_optimizer=False,
    )


def _learning_rate(config: TrainingConfig, steps: int, warmup: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, warmup))
        return warm * (0.5 * (1 + math.cos(math.pi * step / steps)) if config.schedule == "cosine" else 1.0)

    return factor


def _train(
    model: torch.nn.Module,
    dataset: Dataset,
    out: Path,
    config: TrainingConfig,
    loss_of: Callable[[torch.nn.Module, dict, torch.Generator], dict[str, torch.Tensor]],
    validate: Callable[[torch.nn.Module, torch.device], dict[str, float]],
    inputs: dict,
    resume: bool,
    progress: bool,
    title: str,
) -> Path:
    """The loop that both trainings run. `loss_of` returns {"loss": ..., parts}; `validate` returns {"val_loss": ..., ...}."""
    accelerator = _accelerator(config)
    run = Run(out, config, resume=resume, is_main=accelerator.is_main_process, inputs=inputs)
    batch_size = min(config.batch_size, len(dataset))
    per_epoch = len(dataset) // batch_size
    steps = config.steps if config.epochs is None else round(config.epochs * per_epoch)
    warmup = config.warmup_steps if config.warmup_epochs is None else round(config.warmup_epochs * per_epoch)
    torch.manual_seed(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _learning_rate(config, steps, warmup))
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    done, best = 0, math.inf
    if (state := run.load()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        ema.load_state_dict(state["ema"])
        done, best = state["step"], state["best"]
    order = BatchOrder(len(dataset), batch_size, config.seed, done, steps)
    loader = DataLoader(dataset, batch_sampler=order)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    ema.to(accelerator.device)
    plain = accelerator.unwrap_model(model)

    def averaged(action: Callable[[], dict | None]) -> dict | None:
        """Do something with the averaged weights in place of the current ones."""
        ema.store(plain.parameters())
        ema.copy_to(plain.parameters())
        plain.eval()
        result = action()
        plain.train()
        ema.restore(plain.parameters())
        return result

    model.train()
    bar = tqdm(total=steps, initial=done, desc=title, disable=not (progress and accelerator.is_main_process), mininterval=1.0)
    if done < steps:
        for step, batch in enumerate(loader, start=done + 1):
            torch.manual_seed(config.seed * 1_000_003 + step)  # dropout, posterior samples
            with accelerator.autocast():
                losses = loss_of(model, batch, step_generator(config.seed, step))
            accelerator.backward(losses["loss"])
            accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ema.step(plain.parameters())
            bar.update()
            last = step == steps
            if step % 10 == 0 or step == 1 or last:  # reading a loss waits for the device: not at every step
                shown = {k: v.item() for k, v in losses.items()}
                if not math.isfinite(shown["loss"]):
                    raise FloatingPointError(f"{out}: the loss is {shown['loss']} at step {step}; try a lower learning rate")
                bar.set_postfix({k: f"{v:.4f}" for k, v in shown.items()})
                line = {
                    "step": step,
                    "epoch": round(step / order.per_epoch, 3),
                    "lr": schedule.get_last_lr()[0],
                    **shown,
                }
                if accelerator.is_main_process and (step % config.validate_every == 0 or last):
                    measured = averaged(lambda: validate(plain, accelerator.device))
                    line.update(measured)
                    if measured["val_loss"] < best:
                        best = measured["val_loss"]
                        averaged(lambda: save_model(plain, run.folder / "best"))
                run.log(**line)
            if accelerator.is_main_process and (step % config.checkpoint_every == 0 or last):
                run.save(
                    {"step": step, "best": best, "model": plain.state_dict(), "optimizer": optimizer.state_dict(),
                     "schedule": schedule.state_dict(), "ema": ema.state_dict()}
                )  # fmt: skip
    bar.close()
    if accelerator.is_main_process:
        averaged(lambda: save_model(plain, run.folder / "last"))
    accelerator.wait_for_everyone()
    return run.folder


def _spread(n: int, most: int) -> list[int]:
    """At most `most` of n indices, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


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
    """Train the latent encoder on prepared folders; returns the run's folder (`best/`, `last/`: diffusers AutoencoderKL).

    Loss: L1 + gradient_weight * L1 of the image differences + kl_weight * KL per latent value. The scaling 1/std is measured
    on training slices with the final weights and written into the configs.
    """
    out = Path(out)
    train, held_out = SliceDataset(data, "train", lesion_free=True), SliceDataset(data, "val", lesion_free=True)
    torch.manual_seed(config.seed)
    model = latent.make_autoencoder(config.size, config.latent_channels)
    shown = [held_out[i] for i in _spread(len(held_out), 96)]
    val_images, val_brain = (torch.stack([s[k] for s in shown]) for k in ("image", "brain"))

    def loss_of(model, batch, generator):
        images, brain = augmentation.move(batch["image"].cpu(), batch["brain"].cpu(), generator)
        images = augmentation.vary_intensity(images, brain, generator)
        images = augmentation.random_contrast(images, brain, generator, config.contrast_share)
        images = images.to(batch["image"].device)
        return _autoencoder_losses(model, images, config, sample=True)

    def validate(model, device):
        with torch.no_grad():
            parts = [
                (
                    _autoencoder_losses(model, x.to(device), config, sample=False),
                    latent.decode(model, latent.encode(model, x.to(device))),
                )
                for x in val_images.split(16)
            ]
        losses = {f"val_{k}": float(np.mean([p[0][k].item() for p in parts])) for k in parts[0][0]}
        return {**losses, "val_psnr": psnr(torch.cat([p[1].cpu() for p in parts]), val_images, val_brain)}

    inputs = {"data": [str(d) for d in ([data] if isinstance(data, (str, Path)) else data)]}
    _train(model, train, out, config, loss_of, validate, inputs, resume, progress, "autoencoder")
    some = [train[i]["image"] for i in _spread(len(train), 256)]
    for name in ("best", "last"):
        trained = AutoencoderKL.from_pretrained(out / name)
        if trained.config.scaling_factor == 1.0:  # not measured yet
            trained.register_to_config(scaling_factor=latent.measure_scaling(trained, torch.stack(some).split(32)))
            save_model(trained, out / name)
    return out


def _autoencoder_losses(model, images: torch.Tensor, config: AutoencoderConfig, *, sample: bool) -> dict[str, torch.Tensor]:
    distribution = latent.posterior(model, images)
    z = distribution.sample() if sample else distribution.mode()
    error = latent.decode(model, z) - images  # the scaling is 1 while it trains
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    reconstruction = error.abs().mean() + config.gradient_weight * edges
    kl = distribution.kl().mean() / z[0].numel()
    return {"loss": reconstruction + config.kl_weight * kl, "reconstruction": reconstruction, "kl": kl}


def train_denoiser(
    data: str | Path | Sequence[str | Path],
    autoencoder: str | Path | AutoencoderKL,
    out: str | Path,
    config: DenoiserConfig = DenoiserConfig(),
    *,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train the masked denoiser on the latents of prepared folders; returns the run's folder (`best/`, `last/`: Denoiser).

    `autoencoder` is a folder of train_autoencoder (its `best/`) or a loaded model. Loss: MSE(z0_hat, z0) + lambda * mask loss.
    Validation adds `val_masked`, the MSE on the noised cells alone: 1.0 would be no better than guessing the mean.
    """
    out = Path(out)
    if not isinstance(autoencoder, AutoencoderKL):
        autoencoder = AutoencoderKL.from_pretrained(autoencoder)
    autoencoder.requires_grad_(False).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    cache = encode_latents(data, autoencoder, out / "latents", config, progress=progress)
    train, held_out = LatentDataset(cache, "train"), LatentDataset(cache, "val")
    scheduler = make_scheduler()
    torch.manual_seed(config.seed)
    model = Denoiser.of_size(config.size, latent_channels=autoencoder.config.latent_channels, dropout=config.dropout)

    def masked_step(model, batch, generator, device):
        batch = {k: v.cpu() for k, v in batch.items()}
        mean, std = batch["mean"], batch["std"]
        n, _, h, w = mean.shape
        z0 = mean + std * torch.randn(mean.shape, generator=generator)  # a sample of the posterior
        mask = random_patch_mask(n, (h, w), brain=batch["brain"], max_ratio=config.max_ratio, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        last = scheduler.config.num_train_timesteps - 1
        t = torch.randint(last + 1, (n,), generator=generator)
        if config.last_step_share > 0:
            t = torch.where(torch.rand(n, generator=generator) < config.last_step_share, last, t)
        z_t = masked_forward(z0, noise, mask, t, scheduler)
        if config.corruption_share > 0:
            # a region of foreign tissue arrives clean, as a lesion does, or noised to any step up to t, as later steps see it
            chosen = torch.rand(n, 1, 1, 1, generator=generator) < config.corruption_share
            earlier = (torch.rand(n, generator=generator) * (t + 2)).long() - 1  # -1: not noised
            foreign = batch["corrupted"] + std * torch.randn(mean.shape, generator=generator)
            noised = scheduler.add_noise(foreign, noise, earlier.clamp_min(0))
            region = torch.where((earlier < 0).view(n, 1, 1, 1) | ~batch["changed"], foreign, noised)
            patches = mask.bool() & ~batch["changed"] & (torch.rand(n, 1, 1, 1, generator=generator) < 0.5)
            z_t = torch.where(chosen, torch.where(patches, z_t, region), z_t)
            mask = torch.where(chosen, (batch["changed"] | patches).float(), mask)
        z0, mask, z_t, t = (x.to(device) for x in (z0, mask, z_t, t))
        prediction, logits = model(z_t, t)  # (N, C, h, w), (N, 1, h, w)
        losses = denoising_losses(
            prediction.float(), logits.float(), z0, mask, mask_loss=config.mask_loss, mask_weight=config.mask_weight
        )
        return [x.mean() for x in losses], ((prediction - z0).square() * mask).sum() / (mask.sum() * z0.shape[1]).clamp_min(1)

    def loss_of(model, batch, generator):
        (latent_loss, mask_loss, total), _ = masked_step(model, batch, generator, batch["mean"].device)
        return {"loss": total, "latent": latent_loss, "mask": mask_loss}

    def validate(model, device):
        items = [held_out[i] for i in _spread(len(held_out), 256)]
        batches = [{k: torch.stack([x[k] for x in items[i : i + 32]]) for k in items[0]} for i in range(0, len(items), 32)]
        with torch.no_grad():
            parts = [masked_step(model, b, step_generator(12345, i), device) for i, b in enumerate(batches)]
        rows = np.array([[x.item() for x in (*losses, masked)] for losses, masked in parts]).mean(0)
        return dict(zip(("val_latent", "val_mask", "val_loss", "val_masked"), rows.tolist()))

    inputs = {"data": [str(d) for d in ([data] if isinstance(data, (str, Path)) else data)]}
    return _train(model, train, out, config, loss_of, validate, inputs, resume, progress, "denoiser")
