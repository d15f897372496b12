"""The folder of a training run: its settings, its log and its checkpoint.

config.json      the settings and what was trained on, for a resume to be checked against
log.jsonl        one line a logged step: losses, learning rate, validation
checkpoint.pt    everything that an exact resume needs; replaced atomically
best/  last/     weights in the diffusers layout (safetensors)
latents/         of a denoiser: the latents it is trained on
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from madad_lite.errors import RunError
from madad_lite.files import read_json, remove_leftovers, replace_file, save_model, write_json, writing
from madad_lite.slices.folder import Manifest
from madad_lite.training.settings import TrainingConfig

CONFIG = {"steps": int, "learning_rate": float, "seed": int}  # of config.json at least, see files.misfit
CHECKPOINT = {"step": int, "best": float, "model": dict, "optimizer": dict, "schedule": dict, "ema": dict}


def data_fingerprint(data: str | Path | Sequence[str | Path]) -> str:
    """Of what prepared folders hold to train and validate on (the grid, the scans and their slices, not where
    they came from): another one for other slices. ScanError for slices that are damaged: each byte is read once.
    """
    held = hashlib.sha256()
    for folder in [data] if isinstance(data, (str, Path)) else data:
        manifest = Manifest.load(folder)
        for split in ("train", "val"):
            manifest.verify(split)
        scans = [
            {k: v for k, v in scan.items() if k not in ("source", "contrast_seen")}
            for split in ("train", "val")
            for scan in manifest.scans(split)
        ]
        held.update(json.dumps([manifest.grid.to_dict(), scans], sort_keys=True).encode())
    return held.hexdigest()


def described(
    data: str | Path | Sequence[str | Path], train: Sequence, model: torch.nn.Module | None = None
) -> dict:
    """What a resumed training must find again; `model` is a user's own network."""
    folders = [data] if isinstance(data, (str, Path)) else data
    return {
        "data": [str(d) for d in folders],
        "slices": len(train),
        "fingerprint": data_fingerprint(data),
        "model": None if model is None else type(model).__name__,
    }


def spread(n: int, most: int) -> list[int]:
    """At most `most` of n indices, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


def refuse_others(folder: Path, ours: set[str]) -> None:
    """RunError for a folder that holds other files than ours; hidden ones do not count."""
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if others := [name for name in names if name not in ours and name[0] != "."]:
        raise RunError(f"{folder}: holds other files than ours ({others[0]}); choose another folder")


class Weights:
    """save_pretrained for a network that has none: its tensors in model.safetensors."""

    def __init__(self, model: torch.nn.Module):
        self.model = model

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(self.model, str(folder / "model.safetensors"))


class Run:
    """One training run. Only the main process writes.

    folder: a new or empty one, or, with `resume`, one that holds a run with the same settings and inputs. One
    that holds anything else is refused with a RunError, before anything in it is touched.
    """

    def __init__(
        self,
        folder: str | Path,
        config: TrainingConfig,
        *,
        resume: bool,
        is_main: bool = True,
        inputs: dict | None = None,
    ):
        self.folder, self.is_main = Path(folder), is_main
        self.checkpoint, self._log = self.folder / "checkpoint.pt", self.folder / "log.jsonl"
        # as on disk, where tuples are lists
        self.settings = json.loads(json.dumps({**asdict(config), **(inputs or {})}))
        path = self.folder / "config.json"
        if path.exists():
            self._compare(path, asdict(type(config)()), resume)
        else:
            refuse_others(self.folder, {"latents"})  # there when it was stopped early

    def _compare(self, path: Path, defaults: dict, resume: bool) -> None:
        hint = "not of a training run? choose another folder, or remove this one to train again"
        stored = read_json(path, CONFIG, error=RunError, hint=hint)
        if not resume:
            raise RunError(f"{self.folder}: holds a training run already; resume it or choose another folder")
        # a setting newer than the run had its default; an input that it did not note is not compared
        stored = {**self.settings, **defaults, **stored}
        if stored.get("fingerprint") == self.settings.get("fingerprint") is not None:
            stored["data"] = self.settings.get("data")  # the same slices, wherever they lie
        for k in sorted(stored):
            if self.settings.get(k) != stored[k]:
                raise RunError(
                    f"{self.folder}: was started with {k}={stored[k]!r}, not {self.settings.get(k)!r}; "
                    "an exact resume needs the same settings and data"
                )

    def begin(self) -> None:
        """Make the folder ours."""
        if self.is_main:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self.folder)
            write_json(self.folder / "config.json", self.settings)

    def load(self, restore: Callable[[dict], None]) -> tuple[int, float]:
        """(step, best validation loss) of the checkpoint, whose state `restore` has been given; (0, inf)
        without one. Log lines after it are dropped: those steps are done again.
        """
        step, best = 0, float("inf")
        for file in (self.checkpoint, self._log):
            if file.exists() and not file.is_file():
                raise RunError(f"{file}: is not a file; remove it, or choose another folder")
        if self.checkpoint.exists():
            try:
                state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
                if bad := [k for k, kind in CHECKPOINT.items() if not isinstance(state[k], kind)]:
                    raise TypeError(f"{bad[0]} is no {CHECKPOINT[bad[0]].__name__}")
                restore(state)
            except Exception as error:  # pickle, torch and zip raise whatever they like
                reason = (
                    f"{type(error).__name__}: {error}"
                    if isinstance(error, TypeError)
                    else type(error).__name__
                )
                raise RunError(
                    f"{self.checkpoint}: damaged, or of another training ({reason}); "
                    "remove it to train from the first step again, or choose another folder"
                ) from None
            step, best = state["step"], state["best"]
        kept = [text for at, text in self._logged() if at <= step]
        if self.is_main:
            replace_file(self._log, "".join(text + "\n" for text in kept))
        return step, best

    def _logged(self) -> Iterator[tuple[int, str]]:
        """(step, line) of the log; a last line that was being written when the run was killed is left out."""
        if not self._log.exists():
            return
        *lines, last = self._log.read_text(errors="replace").split("\n")
        for number, text in enumerate(lines, start=1):
            try:
                step = json.loads(text)["step"]
                if not isinstance(step, int):
                    raise TypeError
            except (ValueError, TypeError, KeyError, RecursionError):
                raise RunError(
                    f"{self._log}: damaged in line {number}; remove that line, or the file: "
                    "only the curves are lost"
                ) from None
            yield step, text

    def save(self, state: dict) -> None:
        """Replace the checkpoint."""
        replace_file(self.checkpoint, lambda f: torch.save(state, f))

    def save_weights(self, model: torch.nn.Module, name: str) -> None:
        """As folder `name` ("best" or "last"): by the network's save_pretrained, if it has one."""
        save_model(model if hasattr(model, "save_pretrained") else Weights(model), self.folder / name)

    def log(self, **values) -> None:
        """Add a line to the log."""
        if self.is_main:
            line = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()})
            with writing(self._log), open(self._log, "a") as f:
                f.write(line + "\n")


class BatchOrder:
    """The batches from step `start` to step `stop`: each epoch a fresh permutation that depends on seed and
    epoch only.

    A resumed run gets exactly the batches that were left.
    """

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
                order = torch.randperm(
                    self.n, generator=torch.Generator().manual_seed(self.seed * 7919 + epoch)
                )
            i = step % self.per_epoch
            yield order[i * self.batch_size : (i + 1) * self.batch_size].tolist()
