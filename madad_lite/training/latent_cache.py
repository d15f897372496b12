"""The latent cache: every slice is encoded once, before the denoiser is trained.

What is kept is the posterior's mean and standard deviation, so that a training still draws a fresh sample at
every step. Augmentation happens on slices, that is before the encoder; so a number of augmented variants of
each slice are kept.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from madad_lite.autoencoder import downsampling, encode, posterior
from madad_lite.errors import RunError
from madad_lite.extensions.lesion_like import corrupt
from madad_lite.files import new_file, number, read_json, remove_leftovers, write_json, writing
from madad_lite.masking import brain_cells
from madad_lite.slices.augment import AUGMENTATIONS
from madad_lite.slices.dataset import SliceDataset
from madad_lite.training.loader import Batch, drawn_ahead, to_device
from madad_lite.training.loop import step_generator
from madad_lite.training.run_folder import data_fingerprint, refuse_others
from madad_lite.training.settings import DenoiserConfig

STAMP = "latents.json"  # what was encoded; marks the folder as ours
ARRAYS = ("mean", "std", "brain", "corrupted", "changed")
# a cell counts as corrupted when its latent moved by more than this, mean square over the channels
CHANGED = 0.1
VARIANT = 1_000_000  # the batches of variant v are numbered from v times this on
log = logging.getLogger(__name__)


class LatentDataset(Dataset):
    """Cached latents of one split ("train" or "val"), memory-mapped.

    item: {"mean", "std": (C, h, w) float32, "brain": (1, h, w) bool cells}; with corrupted variants also
    "corrupted" (C, h, w) float32, the mean for the slice with lesion-like regions, and "changed" (1, h, w)
    bool, the cells that moved. `.variants`: how many times every slice is there.

    Raises RunError when a file is damaged.
    """

    def __init__(self, folder: str | Path, split: str):
        folder = Path(folder)
        advice = f"remove {folder} and the latents are encoded again"
        schema = {"corrupted": bool, "variants": number(1, 1000, whole=True)}
        stamp = read_json(folder / STAMP, schema, error=RunError, hint=advice)
        self.variants = stamp["variants"] if split == "train" else 1
        self.arrays: dict[str, np.ndarray] = {}
        for name in ARRAYS if stamp["corrupted"] else ARRAYS[:3]:
            path = folder / f"{split}-{name}.npy"
            try:
                if not path.is_file():  # a pipe would be waited for
                    raise OSError("no such file")
                self.arrays[name] = np.load(path, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                raise RunError(f"{path}: damaged ({error}); {advice}") from None
        if len({len(a) for a in self.arrays.values()}) > 1 or len(self) % self.variants:
            raise RunError(f"{folder}: its files do not fit each other; {advice}")

    def __len__(self) -> int:
        return len(self.arrays["mean"])

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        item = {k: torch.from_numpy(np.array(a[i])) for k, a in self.arrays.items()}
        return {k: v.float() if v.is_floating_point() else v for k, v in item.items()}


def fingerprint(model: torch.nn.Module) -> str:
    """Of its weights: another one for other weights, and for an encoder whose scale has not been measured yet."""
    held = [p.detach().cpu().float().numpy().tobytes() for p in model.parameters()]
    unscaled = getattr(getattr(model, "config", None), "scaling_factor", None) == 1.0
    return hashlib.sha256(b"".join([*held, b"unscaled" * unscaled])).hexdigest()


def latents_fingerprint(folder: str | Path) -> str:
    """Of what a folder of latents was encoded from: another one for other slices, weights or settings."""
    return hashlib.sha256((Path(folder) / STAMP).read_bytes()).hexdigest()


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
    brain cells. Returns the folder, for LatentDataset.

    Variant 0 is the slice itself; the training split gets `config.variants` - 1 augmented ones beside it, and
    each a corrupted twin when `config.corruption_share` is above 0. Done already for the same data, weights
    and settings: nothing is done again. Raises RunError for a folder that holds anything but latents.
    """
    folder = Path(folder)
    remove_leftovers(folder)
    stamp = folder / STAMP
    if stamp.exists():
        hint = f"remove {folder} and run it again, or choose another folder"
        earlier = read_json(stamp, {}, error=RunError, hint=hint)
    else:
        earlier = None
        refuse_others(folder, set())
    splits = {s: SliceDataset(data, s, lesion_free=True) for s in ("train", "val")}
    described = {
        "autoencoder": fingerprint(autoencoder),
        "data": data_fingerprint(data),
        "scans": {s: list(d.scan_ids) for s, d in splits.items()},
        "slices": {s: len(d) for s, d in splits.items()},
        "variants": config.variants,
        "augmentation": config.augmentation,
        "corrupted": config.corruption_share > 0,
        "brain": [config.brain_fraction, config.brain_block],
        "seed": config.seed,
    }
    if earlier == described:
        log.info("%s: encoded already", folder)
        return folder
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(stamp, {"unfinished": True})
        for name in (f"{split}-{array}.npy" for split in splits for array in ARRAYS):
            (folder / name).unlink(missing_ok=True)
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
        parts = {}
        for k, f in files.items():
            part = opened.enter_context(new_file(f))
            with writing(f):
                parts[k] = opened.enter_context(open(part, "wb", buffering=0))
                described = {
                    "descr": dtypes[k].str,
                    "fortran_order": False,
                    "shape": (variants * len(dataset), *shapes[k]),
                }
                np.lib.format.write_array_header_1_0(parts[k], described)

        def draw(batch: Batch, number: int) -> Batch:
            images, brain = batch["image"], batch["brain"]
            generator = step_generator(config.seed, number)
            if number >= VARIANT:
                images, brain = augment(images, brain, generator)
            drawn = {
                "images": images,
                "cells": brain_cells(brain, (h, w), config.brain_fraction, config.brain_block),
            }
            return drawn | (
                {"sick": corrupt(images, brain, generator)} if config.corruption_share > 0 else {}
            )

        rows = [range(i, min(i + batch_size, len(dataset))) for i in range(0, len(dataset), batch_size)]
        order = [(v * VARIANT + number, some) for v in range(variants) for number, some in enumerate(rows)]
        for batch in drawn_ahead(dataset, order, draw, device):
            drawn = to_device(batch, device)
            distribution = posterior(autoencoder, drawn["images"])
            new = {
                "mean": distribution.mean * scale,
                "std": distribution.std * scale,
                "brain": batch["cells"],
            }
            if config.corruption_share > 0:
                new["corrupted"] = encode(autoencoder, drawn["sick"])
                new["changed"] = (new["corrupted"] - new["mean"]).square().mean(1, keepdim=True) > CHANGED
            for k, values in new.items():
                left = memoryview(values.float().cpu().numpy().astype(dtypes[k]).tobytes())
                with writing(files[k]):
                    while left:
                        left = left[parts[k].write(left) :]  # of one that falls short, the next one says why
            bar.update(len(batch["images"]))
