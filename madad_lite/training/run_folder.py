"""The folder of a training run: its settings, its log and its checkpoint.

config.json      the settings, for a resume to be checked against
log.jsonl        one line a logged step: losses, learning rate, validation
checkpoint.pt    everything that an exact resume needs; replaced atomically
best/  last/     weights in the diffusers layout (safetensors)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from madad_lite.errors import RunError
from madad_lite.files import remove_leftovers, replace_file, write_json, writing


def described(data, train) -> dict:
    """What a resumed training must find again."""
    folders = [data] if isinstance(data, (str, Path)) else data
    return {"data": [str(d) for d in folders], "slices": len(train)}


def spread(n: int, most: int) -> list[int]:
    """At most `most` of n indices, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


class Run:
    """One training run. Only the main process writes."""

    def __init__(
        self, folder: str | Path, config, *, resume: bool, is_main: bool = True, inputs: dict | None = None
    ):
        self.folder, self.is_main = Path(folder), is_main
        self.checkpoint, self._log = self.folder / "checkpoint.pt", self.folder / "log.jsonl"
        self.settings = json.loads(
            json.dumps({**asdict(config), **(inputs or {})})
        )  # tuples become lists, as on disk
        path = self.folder / "config.json"
        if path.exists():
            if not resume:
                raise RunError(
                    f"{self.folder}: holds a training run already; resume it or choose another folder"
                )
            stored = {
                **asdict(type(config)()),
                **json.loads(path.read_text()),
            }  # what is newer than the run had its default
            changed = sorted(
                k for k in self.settings.keys() | stored.keys() if self.settings.get(k) != stored.get(k)
            )
            if changed:
                k = changed[0]
                raise RunError(
                    f"{self.folder}: was started with {k}={stored.get(k)!r}, not {self.settings.get(k)!r}; "
                    "an exact resume needs the same settings"
                )

    def begin(self) -> None:
        if self.is_main:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self.folder)
            write_json(self.folder / "config.json", self.settings)

    def load(self) -> dict | None:
        """The checkpoint, or None. Log lines after it are dropped: those steps are done again."""
        state = (
            torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            if self.checkpoint.exists()
            else None
        )
        if self.is_main:
            kept = [text for step, text in self._logged() if state is not None and step <= state["step"]]
            replace_file(self._log, "".join(text + "\n" for text in kept))
        return state

    def _logged(self) -> Iterator[tuple[int, str]]:
        """(step, line) of the log; of a line that was being written when the run was killed nothing is
        kept.
        """
        for text in self._log.read_text().splitlines() if self._log.exists() else []:
            try:
                yield json.loads(text)["step"], text
            except json.JSONDecodeError:
                return

    def save(self, state: dict) -> None:
        replace_file(self.checkpoint, lambda f: torch.save(state, f))

    def log(self, **values) -> None:
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
