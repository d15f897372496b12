"""Settings of the two trainings, and three named sets of these and of detection's: lite, paper, authors."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

from madad_lite.autoencoder import AUTOENCODERS
from madad_lite.denoiser import SIZES
from madad_lite.errors import Refused
from madad_lite.settings import AUTHORS, PAPER, DetectionSettings, as_float
from madad_lite.slices.augment import AUGMENTATIONS


class Between(NamedTuple):
    """Numbers that a setting may have, the limits among them."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        low, high = (f"{x:.12g}" for x in self)
        return f"from {low} to {high}" if self.high < math.inf else f"{low} or more"


COUNT, SHARE, NOT_NEGATIVE, POSITIVE = Between(1, 10**9), Between(0, 1), Between(0), Between(1e-12)

# What a setting may be: one of some words, or a number in a range. Its type is that of the field.
ALLOWED: dict[str, Collection[str] | Between] = {
    "steps": COUNT,
    "epochs": Between(1e-6, 1e6),
    "batch_size": COUNT,
    "gradient_accumulation": COUNT,
    "learning_rate": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "warmup_steps": Between(0, 10**9),
    "warmup_epochs": Between(0, 1e6),
    "schedule": ("cosine", "constant"),
    "max_grad_norm": POSITIVE,
    "ema_decay": SHARE,
    "mixed_precision": ("auto", "no", "fp16", "bf16"),
    "validate_every": COUNT,
    "checkpoint_every": COUNT,
    "seed": Between(0, 2**32 - 1),
    "AutoencoderConfig.size": AUTOENCODERS,
    "latent_channels": Between(1, 256),
    "kl_weight": NOT_NEGATIVE,
    "gradient_weight": NOT_NEGATIVE,
    "contrast_share": SHARE,
    "DenoiserConfig.size": SIZES,
    "mask_loss": ("bce", "mse"),
    "mask_weight": NOT_NEGATIVE,
    "dropout": SHARE,
    "max_ratio": SHARE,
    "brain_fraction": SHARE,
    "brain_block": Between(1, 1024),
    "variants": Between(1, 1000),
    "augmentation": AUGMENTATIONS,
    "corruption_share": SHARE,
    "last_step_share": SHARE,
}


def _checked(config, name: str, kind: str, allowed: Collection[str] | Between | None):
    """The setting's value as its type, `kind` as the class writes it; Refused for one that is not allowed."""
    value = getattr(config, name)
    allowed = allowed or ALLOWED.get(f"{type(config).__name__}.{name}", ALLOWED.get(name))
    kind, _, optional = kind.partition(" | ")
    if value is None and optional == "None":
        return None
    if kind == "bool":
        good, wanted = isinstance(value, bool), "true or false"
    elif kind == "str":
        good = isinstance(value, str) and (allowed is None or value in allowed)
        wanted = f"one of {', '.join(allowed)}" if allowed else "a word"
    else:
        good = math.isfinite(as_float(value))
        if good and kind == "int":
            good = value == int(value)  # 1e3 is a whole number as well
        good = good and (allowed is None or allowed.low <= value <= allowed.high)
        wanted = f"a {'whole ' if kind == 'int' else ''}number" + (f", {allowed}" if allowed else "")
    if not good:
        raise Refused(f"{name}={value!r}: must be {wanted}{' or null' if optional else ''}")
    return {"bool": bool, "str": str, "int": int, "float": float}[kind](value)


def check(config) -> None:
    """Make every setting the type of its field (1e3 steps are 1000); Refused for what is not allowed: by the field's
    own "allowed" in its metadata, else by ALLOWED.
    """
    for f in fields(config):
        value = _checked(config, f.name, f.type, f.metadata.get("allowed"))
        object.__setattr__(config, f.name, value)  # the class is frozen


@dataclass(frozen=True)
class TrainingConfig:
    """What both trainings share."""

    def __post_init__(self):
        check(self)

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
        0.5  # a cell counts as brain, and may be noised, from this share of its pixels on; authors: 0.9
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
    # for two CPU cores; the shipped t1 weights score so, and were trained longer
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
    """The same settings with some changed; Refused for a name that does not exist or a value that is not
    allowed.
    """
    names = [f.name for f in fields(config)]
    if unknown := sorted(set(changes) - set(names)):
        raise Refused(f"no such setting: {', '.join(unknown)}; choose from {', '.join(names)}")
    config = replace(config, **changes)
    check(config)
    return config


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
