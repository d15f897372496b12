"""The folder of a training run: its settings, its log and its checkpoint.

config.json      the settings, for a resume to be checked against
log.jsonl        one line a logged step: losses, learning rate, validation
checkpoint.pt    everything that an exact resume needs; replaced atomically
best/  last/     weights in the diffusers layout (safetensors)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch


class RunError(ValueError):
    """A run's folder cannot be used; the message is one line that names it."""


def write_json(path: Path, content: object) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def save_model(model, folder: Path) -> None:
    """save_pretrained into a temporary folder that then takes the place of the old one."""
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    model.save_pretrained(part)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


class Run:
    """One training run. Only the main process writes."""

    def __init__(self, folder: str | Path, config, *, resume: bool, is_main: bool = True, inputs: dict | None = None):
        self.folder, self.is_main = Path(folder), is_main
        self.checkpoint = self.folder / "checkpoint.pt"
        settings = json.loads(json.dumps({**asdict(config), **(inputs or {})}))  # tuples become lists, as on disk
        path = self.folder / "config.json"
        if path.exists():
            if not resume:
                raise RunError(f"{self.folder}: holds a training run already; resume it or choose another folder")
            stored = json.loads(path.read_text())
            changed = sorted(k for k in settings.keys() | stored.keys() if settings.get(k) != stored.get(k))
            if changed:
                k = changed[0]
                raise RunError(
                    f"{self.folder}: was started with {k}={stored.get(k)!r}, not {settings.get(k)!r}; "
                    "an exact resume needs the same settings"
                )
        if is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, settings)

    def load(self) -> dict | None:
        """The checkpoint, or None. Log lines after it are dropped: those steps are done again."""
        if not self.checkpoint.exists():
            if self.is_main:
                (self.folder / "log.jsonl").unlink(missing_ok=True)
            return None
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if self.is_main:
            log = self.folder / "log.jsonl"
            kept = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= state["step"]]
            part = log.with_name("log.jsonl.part")
            part.write_text("".join(line + "\n" for line in kept))
            os.replace(part, log)
        return state

    def save(self, state: dict) -> None:
        part = self.checkpoint.with_name("checkpoint.pt.part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def log(self, **values) -> None:
        if self.is_main:
            with open(self.folder / "log.jsonl", "a") as f:
                f.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}) + "\n")


class BatchOrder:
    """The batches from step `start` to step `stop`: each epoch a fresh permutation that depends on seed and epoch only.

    A resumed run gets exactly the batches that were left.
    """

    drop_last = True

    def __init__(self, n: int, batch_size: int, seed: int, start: int, stop: int):
        if n < 1:
            raise ValueError("nothing to train on")
        self.n, self.batch_size, self.seed, self.start, self.stop = n, min(batch_size, n), seed, start, stop

    @property
    def per_epoch(self) -> int:
        return self.n // self.batch_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, None
        for step in range(self.start, self.stop):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed * 7919 + epoch))
            i = step % self.per_epoch
            yield order[i * self.batch_size : (i + 1) * self.batch_size].tolist()
