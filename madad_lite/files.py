"""Files: NIfTI files in a folder, names, and the one way in which anything is written: whole, or not at
all.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import logging
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import psutil
from safetensors import SafetensorError

from madad_lite.errors import Refused, RunError

HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:32] or "host"
_number = itertools.count()


def stem(path: str | Path) -> str:
    """sub-01_T1w.nii.gz -> sub-01_T1w."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(path).name, flags=re.IGNORECASE)


def is_nifti(path: str | Path) -> bool:
    """By its name. Names with a leading dot are other systems' leftovers."""
    return re.search(r"^[^.].*\.nii(\.gz)?$", Path(path).name, flags=re.IGNORECASE) is not None


def _unreadable(error: OSError) -> None:
    logging.getLogger("madad_lite").warning(
        "%s: a folder that cannot be read (%s), left out", error.filename, error.strerror
    )


def nifti_files(folder: Path, unreadable: Callable[[OSError], None] = _unreadable) -> list[Path]:
    """All NIfTI files below the folder, sorted. `unreadable` is called for each folder that cannot be read;
    by default it logs a warning.
    """
    return sorted(
        Path(place, name)
        for place, _, names in os.walk(folder, onerror=unreadable)
        for name in names
        if is_nifti(name)
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors while `path` is written become one line that says what to do."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = (
            error.__context__ if isinstance(error, RuntimeError) else error
        )  # torch.save may hide an OSError in one
        if not isinstance(cause, (OSError, SafetensorError)):
            raise
        reason = getattr(cause, "strerror", None) or str(cause).partition("\n")[0]
        raise RunError(
            f"{path}: cannot be written ({reason}); make room on the disk or choose a folder that can be "
            f"written to, then run it "
            "again, with --resume where there is one; what was saved before is kept"
        ) from error


def _part(path: Path) -> Path:
    """A name beside `path`, with its ending, that no other process or thread uses."""
    ending = re.search(r"(\.nii)?(\.[A-Za-z0-9]{1,11})?$", path.name, flags=re.IGNORECASE)[0]
    return path.with_name(f".part-{HOST}-{os.getpid()}-{next(_number)}{ending}")


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that were killed left half-written in the folder."""
    for part in folder.glob(f".part-{HOST}-*"):
        if (m := re.match(rf"\.part-{HOST}-(\d+)-", part.name)) and not psutil.pid_exists(int(m[1])):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _to_disk(file: Path) -> None:
    """Else a power cut could leave the new name with nothing behind it."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name to write to. When the block ends without an error what was written there takes the place of
    `path`, whole; else `path` stays as it was, and nothing is left. RunError when it cannot be written.
    """
    part = _part(path)
    with writing(path):
        try:
            yield part
            _to_disk(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder to write to, which takes the place of `path` when the block ends without an error, as
    `new_file`.

    replace: a folder that is there already is removed as a whole (whoever asks for it has seen that it is
    ours); without it RunError. Its name never holds a mixture: where the system can (Linux, macOS) the two
    are exchanged in one step; elsewhere the old one is set aside as `.old-NAME` for a moment, and put back by
    the next call if that moment was interrupted.
    """
    part, old = _part(path), path.with_name(f".old-{path.name}")
    with writing(path):
        if old.exists():
            shutil.rmtree(old) if path.exists() else os.rename(old, path)
        if path.exists() and not (replace and path.is_dir()):
            raise RunError(f"{path}: exists already; choose another folder")
        try:
            part.mkdir(parents=True)
            yield part
            for file in part.rglob("*"):
                if file.is_file():
                    _to_disk(file)
            if not path.exists():
                os.rename(part, path)
            elif not _exchange(part, path):
                os.rename(path, old)
                os.rename(part, path)
                shutil.rmtree(old)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step. False where that is not possible."""
    names = os.fsencode(a), os.fsencode(b)
    try:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return libc.renamex_np(*names, 2) == 0  # RENAME_SWAP
        return libc.renameat2(-100, names[0], -100, names[1], 2) == 0  # AT_FDCWD, RENAME_EXCHANGE
    except (AttributeError, OSError):
        return False


def write_json(path: Path, content: object) -> None:
    replace_file(path, json.dumps(content, indent=1) + "\n")


def check_json_output(path: Path, field: str) -> None:
    """Refused unless results may be written to `path`: a .json file that is new, or an earlier result, which
    has `field`.
    """
    if path.suffix.lower() != ".json":
        raise Refused(f"{path}: results are written as JSON; give a name that ends in .json")
    if path.exists():
        try:
            ours = field in json.loads(path.read_text())
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise Refused(f"{path}: exists and is not an earlier result; choose another name")


def replace_file(path: Path, content: str | Callable[[BinaryIO], None]) -> None:
    """A file's new content, a text or what a function writes, is there whole or not at all."""
    with new_file(path) as part:
        if isinstance(content, str):
            part.write_text(content)
        else:
            with open(part, "wb") as f:
                content(f)


def save_model(model, folder: Path) -> None:
    """save_pretrained into the folder; a model that is there already is replaced as a whole."""
    with new_folder(folder, replace=True) as part:
        model.save_pretrained(part)
