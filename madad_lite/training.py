"""The two trainings: the autoencoder (reconstruction + KL) and the masked denoiser (latent loss + mask loss).

Every random draw of step k comes from a generator seeded with (seed, k), and the order of the data from (seed, epoch), so
that a resumed run goes on exactly as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
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
from madad_lite.masking import brain_cells, random_patch_mask
from madad_lite.model import Denoiser
from madad_lite.runs import BatchOrder, Run, save_model, write_json


@dataclass(frozen=True)
class TrainingConfig:
    """What both trainings share."""

    steps: int = 2000  # optimiser steps; `epochs` overrides it
    epochs: float | None = None
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    schedule: str = "cosine"  # to zero at the end; "constant": the paper names no schedule
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999  # approached gradually; the averaged weights are the ones that are kept
    mixed_precision: str = "auto"  # bf16 on GPUs that have it, else fp16; none on a CPU, where it is no gain
    validate_every: int = 200
    checkpoint_every: int = 200
    seed: int = 0


@dataclass(frozen=True)
class AutoencoderConfig(TrainingConfig):
    size: str = "nano"
    latent_channels: int = 4
    learning_rate: float = 2e-3
    batch_size: int = 8  # small: in minutes on a CPU, more steps beat larger batches
    kl_weight: float = 1e-4  # on the mean KL per latent value: weak, so that latents stay sharp
    gradient_weight: float = 0.5  # L1 on the image's differences: sharper edges than plain L1
    contrast_share: float = 0.3  # share of the slices given an arbitrary contrast, see augmentation.random_contrast


@dataclass(frozen=True)
class DenoiserConfig(TrainingConfig):
    size: str = "nano"
    mask_loss: str = "bce"  # the paper's; "mse": the authors' code
    mask_weight: float = 0.1  # lambda
    dropout: float = 0.0
    max_ratio: float = 0.4  # at most this share of the patches is noised
    brain_fraction: float = 0.5  # a cell counts as brain, and may be noised, when this share of its pixels is; paper: 0.9
    brain_block: int = 1  # counted over blocks of so many cells; the authors' code: 2
    variants: int = 4  # latents cached of each slice: the plain one and 3 augmented ones


# The paper's settings (section 4.1) as one name, beside this repository's own for two CPU cores.
RECIPES = {
    "lite": (AutoencoderConfig(), DenoiserConfig()),
    "paper": (
        AutoencoderConfig(
            size="paper", learning_rate=1e-4, batch_size=16, epochs=100, contrast_share=0.0, kl_weight=1e-6
        ),
        DenoiserConfig(
            size="L", epochs=300, batch_size=96, learning_rate=5e-4, schedule="constant", warmup_steps=0,
            mask_weight=1.0, brain_fraction=0.9, brain_block=2, variants=1, validate_every=1000, checkpoint_every=1000,
        ),
    ),
}  # fmt: skip


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


def _learning_rate(config: TrainingConfig, steps: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
        return warm * (0.5 * (1 + math.cos(math.pi * step / steps)) if config.schedule == "cosine" else 1.0)

    return factor


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


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
    steps = config.steps if config.epochs is None else round(config.epochs * (len(dataset) // batch_size))
    torch.manual_seed(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _learning_rate(config, steps))
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
                losses = loss_of(model, batch, _generator(config.seed, step))
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


class LatentDataset(Dataset):
    """Cached latents of one split, memory-mapped: {"mean", "std" (C, h, w) float32, "brain" (1, h, w) bool cells}."""

    def __init__(self, folder: str | Path, split: str):
        files = [Path(folder) / f"{split}-{k}.npy" for k in ("mean", "std", "brain")]
        self.mean, self.std, self.brain = (np.load(f, mmap_mode="r") for f in files)

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        mean, std = (torch.from_numpy(np.array(a[i], dtype=np.float32)) for a in (self.mean, self.std))
        return {"mean": mean, "std": std, "brain": torch.from_numpy(np.array(self.brain[i]))}


@torch.no_grad()
def encode_latents(
    data: str | Path | Sequence[str | Path],
    autoencoder: AutoencoderKL,
    folder: str | Path,
    config: DenoiserConfig = DenoiserConfig(),
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> Path:
    """Encode every lesion-free slice once: the scaled mean and standard deviation of its posterior, and its brain cells.

    Variant 0 is the slice itself; the training split gets `config.variants` - 1 augmented ones beside it. Done already for the
    same data, weights and settings: nothing is done again.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {s: SliceDataset(data, s, lesion_free=True) for s in ("train", "val")}
    weights = hashlib.sha256(b"".join(p.cpu().float().numpy().tobytes() for p in autoencoder.parameters())).hexdigest()
    described = {
        "autoencoder": weights, "scans": {s: list(d.scan_ids) for s, d in splits.items()},
        "slices": {s: len(d) for s, d in splits.items()}, "variants": config.variants,
        "brain": [config.brain_fraction, config.brain_block], "seed": config.seed,
    }  # fmt: skip
    stamp = folder / "latents.json"
    if stamp.exists() and json.loads(stamp.read_text()) == described:
        return folder
    stamp.unlink(missing_ok=True)
    device, f = autoencoder.device, latent.downsampling(autoencoder)
    channels, scale = autoencoder.config.latent_channels, autoencoder.config.scaling_factor
    for split, dataset in splits.items():
        variants = config.variants if split == "train" else 1
        side = [s // f for s in dataset[0]["image"].shape[-2:]]
        shapes = {"mean": (channels, *side), "std": (channels, *side), "brain": (1, *side)}
        stored = {
            k: np.lib.format.open_memmap(
                folder / f"{split}-{k}.npy.part",
                "w+",
                dtype=bool if k == "brain" else np.float16,
                shape=(variants * len(dataset), *shape),
            )
            for k, shape in shapes.items()
        }
        at = 0
        bar = tqdm(total=variants * len(dataset), desc=f"latents ({split})", disable=not progress)
        for variant in range(variants):
            for number, batch in enumerate(DataLoader(dataset, batch_size=batch_size)):
                images, brain = batch["image"], batch["brain"]
                if variant:
                    generator = _generator(config.seed, variant * 1_000_000 + number)
                    images, brain = augmentation.move(images, brain, generator)
                    images = augmentation.vary_intensity(images, brain, generator)
                distribution = latent.posterior(autoencoder, images.to(device))
                rows = slice(at, at + len(images))
                stored["mean"][rows] = (distribution.mean * scale).float().cpu().numpy()
                stored["std"][rows] = (distribution.std * scale).float().cpu().numpy()
                stored["brain"][rows] = brain_cells(brain, tuple(side), config.brain_fraction, config.brain_block).numpy()
                at += len(images)
                bar.update(len(images))
        bar.close()
        for k, array in stored.items():
            array.flush()
            os.replace(folder / f"{split}-{k}.npy.part", folder / f"{split}-{k}.npy")
    write_json(stamp, described)
    return folder


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
        mean, std, brain = (batch[k].cpu() for k in ("mean", "std", "brain"))
        n, _, h, w = mean.shape
        z0 = mean + std * torch.randn(mean.shape, generator=generator)  # a sample of the posterior
        mask = random_patch_mask(n, (h, w), brain=brain, max_ratio=config.max_ratio, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        t = torch.randint(scheduler.config.num_train_timesteps, (n,), generator=generator)
        z_t = masked_forward(z0, noise, mask, t, scheduler)
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
            parts = [masked_step(model, b, _generator(12345, i), device) for i, b in enumerate(batches)]
        rows = np.array([[x.item() for x in (*losses, masked)] for losses, masked in parts]).mean(0)
        return dict(zip(("val_latent", "val_mask", "val_loss", "val_masked"), rows.tolist()))

    inputs = {"data": [str(d) for d in ([data] if isinstance(data, (str, Path)) else data)]}
    return _train(model, train, out, config, loss_of, validate, inputs, resume, progress, "denoiser")


def configured(config: TrainingConfig, **changes) -> TrainingConfig:
    """The same settings with some changed; ValueError for a name that does not exist."""
    unknown = set(changes) - {f.name for f in fields(config)}
    if unknown:
        raise ValueError(f"no such training setting: {', '.join(sorted(unknown))}")
    return type(config)(**{**asdict(config), **{k: v for k, v in changes.items() if v is not None}})
