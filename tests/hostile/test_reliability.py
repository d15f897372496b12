"""The page docs/reliability.md and the judgement of scripts/soak.py; the long runs themselves are `make soak`."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def soak():
    spec = importlib.util.spec_from_file_location("soak", ROOT / "scripts" / "soak.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_test_that_the_page_names_is_there():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:hostile/)?\w+\.py)`", page)
    assert len(named) > 20 and [n for n in named if not (ROOT / "tests" / n).is_file()] == []


def test_what_grows_after_the_warm_up_leaks():
    leaks, warm_up = soak().leaks, [100, 300, 500]
    assert not leaks([*warm_up, *[800, 801, 799] * 3], [*[9, 10, 12], *[12] * 9])
    assert leaks([*warm_up, *range(800, 890, 10)], [12] * 12)
    assert leaks([*warm_up, *[800] * 9], [*[12] * 11, 13])
