"""Files: NIfTI files in a folder, names, and the one way in which anything is written: whole, or not at
all.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import itertools
import json
import logging
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from safetensors import SafetensorError

from madad_lite.errors import Refused, RunError, ScanError

HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:32] or "host"
_number = itertools.count()
# the files of a model or a pipeline, as patterns
MODEL = [
    "model_index.json",
    "README.md",
    "healthy.json",
    "*config.json",
    "*diffusion_pytorch_model*",
    "*model.safetensors",
]


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


def refuse_foreign(folder: Path, ours: Collection[str], what: str) -> None:
    """RunError where a folder that is to be replaced as a whole holds anything but `what`: a file, link or the like
    whose name below it fits none of the patterns `ours` (in which * stands for any characters). Hidden ones do not
    count.
    """
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if (file.is_dir() and not file.is_symlink()) or "/." in f"/{name}":
            continue
        if not any(fnmatch(name, pattern) for pattern in ours):
            raise RunError(
                f"{folder}: holds something else than {what} ({name[:100]}); move it away, or choose another folder"
            )


@contextmanager
def new_folder(path: Path, *, replace: bool = False, ours: Collection[str] = ()) -> Iterator[Path]:
    """An empty folder to write to, which takes the place of `path` when the block ends without an error, as
    `new_file`.

    replace: a folder that is there already is removed as a whole, if it holds nothing but what the new one has too,
    or what `ours` names (see `refuse_foreign`); without it RunError. Its name never holds a mixture: where the
    system can (Linux, macOS) the two are exchanged in one step; elsewhere the old one is set aside as `.old-NAME`
    for a moment, and put back by the next call if that moment was interrupted.
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
                return
            written = [file.relative_to(part).as_posix() for file in part.rglob("*")]
            refuse_foreign(path, [*ours, *map(glob.escape, written)], "what is replaced")
            if not _exchange(part, path):
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
    if os.path.lexists(path):
        try:
            read_json(path, {field: None})
        except ScanError:
            raise Refused(f"{path}: exists and is not an earlier result; choose another name") from None


def replace_file(path: Path, content: str | Callable[[BinaryIO], None]) -> None:
    """A file's new content, a text or what a function writes, is there whole or not at all."""
    with new_file(path) as part:
        if isinstance(content, str):
            part.write_text(content, encoding="utf-8")
        else:
            with open(part, "wb") as f:
                content(f)


def save_model(model, folder: Path) -> None:
    """save_pretrained into the folder; a model that is there already is replaced as a whole. RunError when the
    folder holds other files than a model's.
    """
    with new_folder(folder, replace=True, ours=MODEL) as part:
        model.save_pretrained(part)


def safe_name(text: str) -> str:
    """`text` as the name of one file or folder: itself where it is one, else cleaned, with eight digits of its
    hash behind, so that different texts have different names. `safe_name(text) == text` says that it is one.

    That is 1 to 200 characters of A-Z a-z 0-9 . _ -, a letter or digit among them, and no dot in front, by which
    half-written files are known.
    """
    if re.fullmatch(r"(?!\.)(?=.*[A-Za-z0-9])[A-Za-z0-9._-]{1,200}", text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:180].strip("-.")
    return f"{plain}-{digest}".lstrip("-")


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
        if fits:
            return None
        shown = "an object" if isinstance(value, dict) else json.dumps(value)[:60]
        shown = f"a list of {len(value)}" if isinstance(value, list) else shown
        return f"{at or 'the content'} is {shown}, not {what}"
    return next((m for v, s, place in parts if (m := misfit(v, s, place))), None)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different: of a double one nobody knows which value is meant."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{json.dumps(next(n for n in names if names.count(n) > 1))[:60]} is there twice")
    return content


def parse_json(text: str) -> Any:
    """ValueError, in one line: no JSON, a name twice in one object, lists within lists without end, a number of
    thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("lists within lists without end") from None


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
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror or cause}); {hint}") from None
    except ValueError as cause:  # no JSON, no UTF-8, a number of 5,000 digits
        if isinstance(cause, error):
            raise
        raise error(f"{path}: damaged ({cause}); {hint}") from None
    if wrong := misfit(content, schema):
        raise error(f"{path}: damaged ({wrong}); {hint}")
    return content
