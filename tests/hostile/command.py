"""A command that has to be refused: how its world is changed, its words, what must be said. One runner for all.

It passes when the command ends with the exit code that is wanted, says so in one line that names the file, and
leaves everything as it was, but for a folder `out` that may have come to be.
"""

import contextlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from case import LONGEST, contents
from world import world

from madad_lite.cli import main

BAR = re.compile(r"\d+%\||/s\]|^\s*$")  # progress bars


@dataclass(frozen=True)
class Command:
    name: str
    words: list[str | bytes]  # in a world's folder; BAD is the file that begins with "bad"
    says: str  # a pattern
    file: str = ""  # what must be named
    make: Callable[[Path], Any] = lambda folder: None  # changes a world
    code: int = 2  # 2: refused; 1: of several scans, this one failed


def run(words: list[str]) -> tuple[int, str]:
    """(exit code, error output without progress bars)."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(words)
        except SystemExit as end:  # argparse
            code = end.code
    lines = said.getvalue().replace("\r", "\n").splitlines()
    return code, "\n".join(line for line in lines if not BAR.search(line))


def check_command(case: Command, folder: Path) -> None:
    """In the current folder, which is `folder`."""
    world(folder)
    case.make(folder)
    bad = next((p.name for p in (folder / "scans").iterdir() if p.name.startswith("bad")), "")
    words = [os.fsdecode(w).replace("BAD", bad) for w in case.words]
    before = contents(folder)
    code, said = run(words)
    assert code == case.code, (code, said)
    assert said and "\n" not in said and len(said) < LONGEST and "Traceback" not in said, said
    assert case.file in said and re.search(case.says, said), said
    assert "unexpected" not in said, said
    after = contents(folder)
    new = after.keys() - before.keys()
    assert {k: after.get(k) for k in before} == before
    assert new <= {"out"} and not (folder / "out").is_file(), new
