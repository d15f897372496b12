"""Settings of the two trainings, and three named sets of these and of detection's: lite, paper, authors."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from madad_lite.settings import AUTHORS, PAPER, DetectionSettings


@dataclass(frozen=True)
class TrainingConfig:
    """What both trainings share."""

    steps: int = 2000  # optimiser steps; `epochs` overrides it
    epochs: float | None = None
    batch_size: int = 32
    gradient_accumulation: int = (
        1  # a process works on its share of a batch in so many parts: less memory, the same result
    )
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50  # linear; `warmup_epochs` overrides it
    warmup_epochs: float | None = None
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
    contrast_share: float = (
        0.3  # share of the slices given an arbitrary contrast, see slices.augment.random_contrast
    )


@dataclass(frozen=True)
class DenoiserConfig(TrainingConfig):
    size: str = "nano"
    mask_loss: str = "bce"  # the paper's; "mse": the authors' code
    mask_weight: float = 0.1  # lambda
    dropout: float = 0.0
    max_ratio: float = 0.4  # at most this share of the patches is noised
    brain_fraction: float = (
        0.5  # a cell counts as brain, and may be noised, when this share of its pixels is; paper: 0.9
    )
    brain_block: int = 1  # counted over blocks of so many cells; the authors' code: 2
    variants: int = 4  # latents cached of each slice: the plain one and 3 augmented ones
    augmentation: str = (
        "lite"  # what the variants get; "authors": as in the authors' code, see slices.augment.AUGMENTATIONS
    )
    corruption_share: float = (
        0.0  # share of the samples with lesion-like regions beside the noise, see extensions/lesion_like.py
    )
    last_step_share: float = 0.0  # share of the samples at t = T-1, pure noise, beside those of a uniform t


@dataclass(frozen=True)
class Recipe:
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    spacing: float = 2.0  # of the slices, mm
    slice_size: int = 96  # pixels


_PAPER_SLICES = dict(spacing=1.0, slice_size=256)
# Neither text nor code says how the encoder was trained; these are Rombach et al.'s settings for f = 8 (2022,
# table 12).
_PAPER_ENCODER = AutoencoderConfig(
    size="paper",
    epochs=100,
    batch_size=16,
    learning_rate=1e-4,
    contrast_share=0.0,
    gradient_weight=0.0,
    kl_weight=1e-6,
)

RECIPES = {
    # for two CPU cores; the shipped weights'
    "lite": Recipe(
        denoiser=DenoiserConfig(corruption_share=0.5, last_step_share=0.3),
        detection=DetectionSettings(
            mask_threshold=0.2, sigma=0.7, reference="input", weighted=True, neighbour_sigma=3.0
        ),
    ),
    # section 4.1 of the paper, and its equations
    "paper": Recipe(
        _PAPER_ENCODER,
        DenoiserConfig(
            size="L",
            epochs=300,
            batch_size=96,
            learning_rate=5e-4,
            weight_decay=1e-2,
            schedule="constant",
            warmup_steps=0,
            mask_loss="bce",
            mask_weight=1.0,
            brain_fraction=0.9,
            brain_block=2,
            variants=1,
            validate_every=1000,
            checkpoint_every=1000,
        ),
        DetectionSettings(eta=0.0, sigma=5.0, reference="input", **PAPER),
        **_PAPER_SLICES,
    ),
    # what the authors' published code does where it differs
    "authors": Recipe(
        _PAPER_ENCODER,
        DenoiserConfig(
            size="L",
            epochs=200,
            batch_size=96,
            learning_rate=4e-5,
            weight_decay=1e-4,
            schedule="cosine",
            warmup_epochs=10,
            mask_loss="mse",
            mask_weight=1e-3,
            dropout=0.4,
            brain_fraction=0.9,
            brain_block=2,
            variants=8,
            augmentation="authors",
            validate_every=1000,
            checkpoint_every=1000,
        ),
        DetectionSettings(eta=0.5, reference="reconstruction", **AUTHORS),
        **_PAPER_SLICES,
    ),
}


def configured(config, **changes):
    """The same settings with some changed; ValueError for a name that does not exist."""
    unknown = set(changes) - {f.name for f in fields(config)}
    if unknown:
        raise ValueError(f"no such setting: {', '.join(sorted(unknown))}")
    return replace(config, **changes)


def table() -> str:
    """The recipes beside each other, as Markdown."""

    def row(recipe: Recipe) -> list[str]:
        d, s = recipe.denoiser, recipe.detection
        length = f"{d.steps} steps" if d.epochs is None else f"{d.epochs:g} epochs"
        warmup = f"{d.warmup_steps} steps" if d.warmup_epochs is None else f"{d.warmup_epochs:g} epochs"
        reference = {"input": "the scan", "reconstruction": "the decoded, unhealed latent"}[s.reference]
        return [
            f"{recipe.slice_size} x {recipe.slice_size} at {recipe.spacing:g} mm",
            {"nano": "f = 4, 1.2 M", "paper": "f = 8, 83.6 M"}[recipe.autoencoder.size],
            d.size,
            f"{length}, batch {d.batch_size}",
            f"{d.learning_rate:g}, {d.schedule}, warm-up {warmup}",
            f"{d.weight_decay:g}; {d.dropout:g}",
            f"{d.mask_loss.upper()}, weight {d.mask_weight:g}",
            f"{d.brain_fraction:.0%} of {d.brain_block} x {d.brain_block} cells",
            f"{d.corruption_share:.0%} of the slices" if d.corruption_share else "none",
            f"uniform, {d.last_step_share:.0%} more at T - 1" if d.last_step_share else "uniform",
            f"{d.augmentation}, {d.variants} cached variants" if d.variants > 1 else "none",
            f"eta {s.eta:g}, replaced above {s.mask_threshold:g}",
            f"{'squared' if s.squared else 'absolute'}, clipped at {s.gamma:g}, sigma {s.sigma:g} pixels"
            + (", weighted by the predicted mask" if s.weighted else ""),
            f"together, sigma {s.neighbour_sigma:g} mm" if s.neighbour_sigma else "each alone",
            reference,
        ]

    titles = [
        "slices",
        "encoder",
        "denoiser",
        "length",
        "learning rate",
        "weight decay; dropout",
        "mask loss",
        "a cell may be noised when brain covers",
        "lesion-like regions beside the noise",
        "noise level t",
        "augmentation",
        "reverse process",
        "score: difference",
        "the slices of a volume decide",
        "the healed slice is compared with",
    ]
    columns = [row(r) for r in RECIPES.values()]
    lines = ["| | " + " | ".join(RECIPES) + " |", "|---" * (len(RECIPES) + 1) + "|"]
    lines += [f"| {title} | " + " | ".join(cells) + " |" for title, *cells in zip(titles, *columns)]
    return "\n".join(lines)
