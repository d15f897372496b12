"""Files: NIfTI files in a folder, names, and the one way in which anything is written: whole, or not at
all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from madad_lite.errors import RunError


def stem(path: str | Path) -> str:
    """sub-01_T1w.nii.gz -> sub-01_T1w."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(path).name, flags=re.IGNORECASE)


def is_nifti(path: str | Path) -> bool:
    """By its name. Names with a leading dot are other systems' leftovers."""
    return re.search(r"^[^.].*\.nii(\.gz)?$", Path(path).name, flags=re.IGNORECASE) is not None


def nifti_files(folder: Path) -> list[Path]:
    """All NIfTI files below the folder, sorted."""
    return sorted(p for p in folder.rglob("*") if is_nifti(p))


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


def write_json(path: Path, content: object) -> None:
    replace_file(path, json.dumps(content, indent=1) + "\n")


def replace_file(path: Path, content: str | Callable[[BinaryIO], None]) -> None:
    """A file's new content, a text or what a function writes, is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        try:
            if isinstance(content, str):
                part.write_text(content)
            else:
                with open(part, "wb") as f:
                    content(f)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def save_model(model, folder: Path) -> None:
    """save_pretrained into a temporary folder, whose files then take the place of the old ones: a model is
    always there.
    """
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
