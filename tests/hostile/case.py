"""Hostile cases are data: how a folder is made, what is called on it, what must be said. One runner for all.

A case passes when the call is refused in one short line that names the file and says what the case wants, and when
nothing in the folder, and nothing beside it, is another than before.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from madad_lite.errors import Refused, RunError, ScanError, UnsafeFile

# json.JSONDecodeError is a ValueError too: the kind must be one that is meant for the user
KINDS = (ScanError, RunError, Refused, UnsafeFile, ValueError, FileNotFoundError, FileExistsError)
LONGEST = 700  # characters of what is said, of which a path may be 300


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Path], Any]  # fills an empty folder
    call: Callable[[Path], Any]  # on that folder
    says: str  # a pattern
    file: str = ""  # the file that must be named


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else "folder" if p.is_dir() else "other"
        for p in sorted(folder.rglob("*"))
    }


def check(case: Case, folder: Path) -> None:
    inside = folder / "inside"  # so that what is written to ../ is seen
    inside.mkdir()
    case.make(inside)
    before = contents(folder)
    with pytest.raises((ValueError, OSError)) as caught:
        case.call(inside)
    said = str(caught.value)
    assert type(caught.value) in KINDS, repr(caught.value)
    assert "\n" not in said and len(said) < LONGEST, said
    assert case.file in said and re.search(case.says, said), said
    assert contents(folder) == before
