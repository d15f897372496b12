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
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError


class RunError(ValueError):
    """A run's folder cannot be used; the message is one line that names it."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors while `path` is written become one line that says what to do."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save may hide an OSError in one
        if not isinstance(cause, (OSError, SafetensorError)):
            raise
        reason = getattr(cause, "strerror", None) or str(cause).partition("\n")[0]
        raise RunError(
            f"{path}: cannot be written ({reason}); make room on the disk or choose a folder that can be written to, then run it "
            "again, with --resume where there is one; what was saved before is kept"
        ) from error


def write_json(path: Path, content: object) -> None:
    _replace(path, json.dumps(content, indent=1) + "\n")


def _replace(path: Path, content: str | dict) -> None:
    """A file's new content, text or a state for torch.save, is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        try:
            if isinstance(content, str):
                part.write_text(content)
            else:
                with open(part, "wb") as f:
                    torch.save(content, f)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def save_model(model, folder: Path) -> None:
    """save_pretrained into a temporary folder, whose files then take the place of the old ones: a model is always there."""
    part = folder.with_name(folder.name + ".part")
    with writing(folder):
        try:
            shutil.rmtree(part, ignore_errors=True)
            model.save_pretrained(part)
            if not folder.exists():
                os.replace(part, folder)
            else:
                for file in part.iterdir():
                    os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)


class Run:
    """One training run. Only the main process writes."""

    def __init__(self, folder: str | Path, config, *, resume: bool, is_main: bool = True, inputs: dict | None = None):
        self.folder, self.is_main = Path(folder), is_main
        self.checkpoint, self._log = self.folder / "checkpoint.pt", self.folder / "log.jsonl"
        self.settings = json.loads(json.dumps({**asdict(config), **(inputs or {})}))  # tuples become lists, as on disk
        path = self.folder / "config.json"
        if path.exists():
            if not resume:
                raise RunError(f"{self.folder}: holds a training run already; resume it or choose another folder")
            stored = {**asdict(type(config)()), **json.loads(path.read_text())}  # what is newer than the run had its default
            changed = sorted(k for k in self.settings.keys() | stored.keys() if self.settings.get(k) != stored.get(k))
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
            write_json(self.folder / "config.json", self.settings)

    def load(self) -> dict | None:
        """The checkpoint, or None. Log lines after it are dropped: those steps are done again."""
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True) if self.checkpoint.exists() else None
        if self.is_main:
            kept = [text for step, text in self._logged() if state is not None and step <= state["step"]]
            _replace(self._log, "".join(text + "\n" for text in kept))
        return state

    def _logged(self) -> Iterator[tuple[int, str]]:
        """(step, line) of the log; of a line that was being written when the run was killed nothing is kept."""
        for text in self._log.read_text().splitlines() if self._log.exists() else []:
            try:
                yield json.loads(text)["step"], text
            except json.JSONDecodeError:
                return

    def save(self, state: dict) -> None:
        _replace(self.checkpoint, state)

    def log(self, **values) -> None:
        if self.is_main:
            line = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()})
            with writing(self._log), open(self._log, "a") as f:
                f.write(line + "\n")


class BatchOrder:
    """The batches from step `start` to step `stop`: each epoch a fresh permutation that depends on seed and epoch only.

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
                order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed * 7919 + epoch))
            i = step % self.per_epoch
            yield order[i * self.batch_size : (i + 1) * self.batch_size].tolist()
