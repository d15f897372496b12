"""Files: NIfTI files in a folder, names, and the one way in which anything is written: whole, or not at
all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from madad_lite.errors import RunError, ScanError


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


def safe_name(text: str) -> str:
    """`text` as the name of one file or folder: itself where it is one, else cleaned, with eight digits of its
    hash behind, so that different texts have different names. `safe_name(text) == text` says that it is one.

    That is 1 to 200 characters of A-Z a-z 0-9 . _ -, a letter or digit among them, no dot in front, and no
    ".part" at the end, by which half-written files are known.
    """
    if re.fullmatch(r"(?!\.)(?=.*[A-Za-z0-9])[A-Za-z0-9._-]{1,200}(?<!\.part)", text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:180].strip("-.")
    return f"{plain}-{digest}".lstrip("-")


def unreadable_folders(folder: Path) -> list[tuple[str, str]]:
    """(folder, reason) of what lies below `folder` and may not be looked into."""
    found: list[tuple[str, str]] = []
    for _ in os.walk(folder, onerror=lambda e: found.append((str(e.filename), e.strerror or str(e)))):
        pass
    return sorted(found)


# ------------------------------------------------------------------------------------------------ reading JSON


@dataclass(frozen=True)
class Rule:
    """Part of a schema: a test, and what it wants in words."""

    test: Callable[[Any], bool]
    wanted: str


def number(low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> Rule:
    """A finite number, `whole` or not, from `low` to `high`."""

    def test(value) -> bool:
        kind = int if whole else (int, float)
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        return is_number and abs(value) <= sys.float_info.max and low <= value <= high

    wanted = "a whole number" if whole else "a number"
    if math.isfinite(low):
        wanted += f" from {low}" + (f" to {high}" if math.isfinite(high) else "")
    return Rule(test, wanted)


def _leaf(value: Any, schema: Any) -> tuple[bool, str]:
    """(does the value fit, what is wanted in words) for a schema without parts, or a value of another kind."""
    if isinstance(schema, Rule):
        return schema.test(value), schema.wanted
    if isinstance(schema, set):
        fits = any(type(value) is type(s) and value == s for s in schema)
        return fits, f"one of {', '.join(sorted(map(str, schema)))}"
    if isinstance(schema, list):
        return False, "a list" + (f" of {len(schema)}" if len(schema) > 1 else "")
    if isinstance(schema, dict):
        return False, "an object"
    if schema in (int, float):
        rule = number(whole=schema is int)
        return rule.test(value), rule.wanted
    return schema is None or type(value) is schema, {str: "text", bool: "true or false"}.get(schema, "")


def misfit(value: Any, schema: Any, at: str = "") -> str | None:
    """In words, where a JSON value does not fit a schema; None when it fits.

    schema: None, anything; str, bool, int or float (finite), that type; a Rule; a set, one of its values; a
    tuple, any of its schemas; [s], a list of s; [s, t, ..], a list of just these; {"a": s, "b?": t}, an object
    with at least "a", and of kind t where "b" is there; {str: s}, an object of any names.
    """
    if isinstance(schema, tuple):
        tried = [misfit(value, s, at) for s in schema]
        return None if None in tried else tried[-1]
    parts: list[tuple[Any, Any, str]] = []
    if isinstance(schema, dict) and isinstance(value, dict):
        wanted = {k: schema[str] for k in value} if str in schema else schema
        for key, part in wanted.items():
            name = key if str in schema else key.removesuffix("?")
            place = f"{at}.{name if safe_name(name) == name else json.dumps(name)[:60]}".lstrip(".")
            if name in value:
                parts.append((value[name], part, place))
            elif name == key:
                return f"{place} is missing"
    elif isinstance(schema, list) and isinstance(value, list) and len(schema) in (1, len(value)):
        kinds = schema if len(schema) > 1 else schema * len(value)
        parts = [(v, s, f"{at}[{i}]") for i, (v, s) in enumerate(zip(value, kinds))]
    else:
        fits, what = _leaf(value, schema)
        shown = "an object" if isinstance(value, dict) else json.dumps(value)[:60]
        shown = f"a list of {len(value)}" if isinstance(value, list) else shown
        return None if fits else f"{at or 'the content'} is {shown}, not {what}"
    return next((m for v, s, place in parts if (m := misfit(v, s, place))), None)


def read_json(
    path: str | Path, schema: Any = None, *, error: type[Exception] = ScanError, hint: str = "make it again"
) -> Any:
    """The content of a JSON file, checked against a schema (see `misfit`).

    Whatever is wrong becomes one `error` that names the file, the place in it, and the `hint` what to do.
    """
    path = Path(path)
    try:
        if not path.is_file():  # a pipe or device would be read without end
            reason = "it is not a file" if path.exists() else "no such file"
            raise error(f"{path}: cannot be read ({reason}); {hint}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror or cause}); {hint}") from None
    except RecursionError:
        raise error(f"{path}: damaged (lists within lists without end); {hint}") from None
    except ValueError as cause:  # no JSON, no UTF-8, a number of 5,000 digits
        if isinstance(cause, error):
            raise
        raise error(f"{path}: damaged ({cause}); {hint}") from None
    if wrong := misfit(content, schema):
        raise error(f"{path}: damaged ({wrong}); {hint}")
    return content
