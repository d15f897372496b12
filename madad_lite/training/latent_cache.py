"""The latent cache: every slice is encoded once, before the denoiser is trained.

What is kept is the posterior's mean and standard deviation, so that a training still draws a fresh sample at
every step. Augmentation happens on slices, that is before the encoder; so a number of augmented variants of
each slice are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from madad_lite.autoencoder import downsampling, encode, posterior
from madad_lite.extensions.lesion_like import corrupt
from madad_lite.files import write_json, writing
from madad_lite.masking import brain_cells
from madad_lite.slices.augment import AUGMENTATIONS
from madad_lite.slices.dataset import SliceDataset
from madad_lite.training.loop import step_generator
from madad_lite.training.settings import DenoiserConfig

CHANGED = (
    0.1  # a cell counts as corrupted when its latent moved by more than this, mean square over the channels
)


class LatentDataset(Dataset):
    """Cached latents of one split, memory-mapped.

    item: {"mean", "std": (C, h, w) float32, "brain": (1, h, w) bool cells}; with corrupted variants also
    "corrupted" (C, h, w) float32, the mean for the slice with lesion-like regions, and "changed" (1, h, w)
    bool, the cells that moved.
    """

    def __init__(self, folder: str | Path, split: str):
        files = {
            k: Path(folder) / f"{split}-{k}.npy" for k in ("mean", "std", "brain", "corrupted", "changed")
        }
        self.arrays = {k: np.load(f, mmap_mode="r") for k, f in files.items() if f.exists()}
        # of the training split, every slice is there so many times
        self.variants = (
            json.loads((Path(folder) / "latents.json").read_text())["variants"] if split == "train" else 1
        )

    def __len__(self) -> int:
        return len(self.arrays["mean"])

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        item = {k: torch.from_numpy(np.array(a[i])) for k, a in self.arrays.items()}
        return {k: v.float() if v.is_floating_point() else v for k, v in item.items()}


def fingerprint(model: torch.nn.Module) -> str:
    """Of its weights: another one for other weights."""
    return hashlib.sha256(
        b"".join(p.detach().cpu().float().numpy().tobytes() for p in model.parameters())
    ).hexdigest()


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
    """Encode every lesion-free slice once: the scaled mean and standard deviation of its posterior, and its
    brain cells.

    Variant 0 is the slice itself; the training split gets `config.variants` - 1 augmented ones beside it, and
    each a corrupted twin when `config.corruption_share` is above 0. Done already for the same data, weights
    and settings: nothing is done again.
    """
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    splits = {s: SliceDataset(data, s, lesion_free=True) for s in ("train", "val")}
    described = {
        "autoencoder": fingerprint(autoencoder),
        "scans": {s: list(d.scan_ids) for s, d in splits.items()},
        "slices": {s: len(d) for s, d in splits.items()},
        "variants": config.variants,
        "augmentation": config.augmentation,
        "corrupted": config.corruption_share > 0,
        "brain": [config.brain_fraction, config.brain_block],
        "seed": config.seed,
    }
    stamp = folder / "latents.json"
    if stamp.exists() and json.loads(stamp.read_text()) == described:
        return folder
    with writing(folder):
        stamp.unlink(missing_ok=True)
        for old in folder.glob("*.npy"):
            old.unlink()
    for split, dataset in splits.items():
        _encode_split(split, dataset, autoencoder, folder, config, batch_size, progress)
    write_json(stamp, described)
    return folder


def _encode_split(
    split, dataset, autoencoder, folder: Path, config: DenoiserConfig, batch_size: int, progress: bool
) -> None:
    device, f = autoencoder.device, downsampling(autoencoder)
    channels, scale = autoencoder.config.latent_channels, autoencoder.config.scaling_factor
    augment = AUGMENTATIONS[config.augmentation]
    variants = config.variants if split == "train" else 1
    h, w = (s // f for s in dataset[0]["image"].shape[-2:])
    shapes = {"mean": (channels, h, w), "std": (channels, h, w), "brain": (1, h, w)}
    if config.corruption_share > 0:
        shapes |= {"corrupted": (channels, h, w), "changed": (1, h, w)}
    files = {k: folder / f"{split}-{k}.npy" for k in shapes}
    dtypes = {k: np.dtype(bool if k in ("brain", "changed") else np.float16) for k in shapes}
    with (
        ExitStack() as opened,
        tqdm(total=variants * len(dataset), desc=f"latents ({split})", disable=not progress) as bar,
    ):
        # written row by row, not through a memory map: there, a full disk would end the process without a
        # word
        with writing(folder):
            parts = {
                k: opened.enter_context(open(f.with_name(f.name + ".part"), "wb", buffering=0))
                for k, f in files.items()
            }
            for k, part in parts.items():
                described = {
                    "descr": dtypes[k].str,
                    "fortran_order": False,
                    "shape": (variants * len(dataset), *shapes[k]),
                }
                np.lib.format.write_array_header_1_0(part, described)
        for variant in range(variants):
            for number, batch in enumerate(DataLoader(dataset, batch_size=batch_size)):
                images, brain = batch["image"], batch["brain"]
                generator = step_generator(config.seed, variant * 1_000_000 + number)
                if variant:
                    images, brain = augment(images, brain, generator)
                distribution = posterior(autoencoder, images.to(device))
                new = {"mean": distribution.mean * scale, "std": distribution.std * scale}
                new["brain"] = brain_cells(brain, (h, w), config.brain_fraction, config.brain_block)
                if config.corruption_share > 0:
                    sick = corrupt(images, brain, generator)
                    new["corrupted"] = encode(autoencoder, sick.to(device))
                    new["changed"] = (new["corrupted"] - new["mean"]).square().mean(1, keepdim=True) > CHANGED
                for k, values in new.items():
                    left = memoryview(values.float().cpu().numpy().astype(dtypes[k]).tobytes())
                    with writing(files[k]):
                        while left:
                            left = left[
                                parts[k].write(left) :
                            ]  # of one that falls short, the next one says why
                bar.update(len(images))
    with writing(folder):
        for f in files.values():
            os.replace(f.with_name(f.name + ".part"), f)
