"""Exercises of lesson 09: a stub is not done, wrong answers are refused, the lesson's own solutions are right."""

import sys
from pathlib import Path
from textwrap import dedent

import nibabel as nib
import numpy as np
import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))
import checks  # noqa: E402

LESSON = (NOTEBOOKS / "09_own_scan.py").read_text(encoding="utf-8")


def stub(_part):
    raise NotImplementedError


def solutions():
    """The code of the lesson's answers, one after the other."""
    parts = [part.split("</details>")[0] for part in LESSON.split("<summary>Solution</summary>")[1:]]
    return [
        dedent("\n".join(line[2:] for line in part.splitlines() if line.startswith("#     ")))
        for part in parts
    ]


SIDE = next(code for code in solutions() if "def side" in code)
THICK = next(code for code in solutions() if "thick_ml" in code)


def side(part):
    space = {}
    exec(SIDE, space)
    return space["side"](part)


def scan(layers=12, height=2.0, from_z=-20.0):
    affine = np.diag([2.0, 2.0, height, 1.0])
    affine[2, 3] = from_z
    return nib.Nifti1Image(np.zeros((4, 4, layers), np.float32), affine)


def thick():
    """What the lesson's solution makes of scan()."""
    space = {"image": scan(), "np": np}
    lines = THICK.splitlines()
    exec("\n".join(lines[: next(i for i, line in enumerate(lines) if "save_nifti" in line)]), space)
    return nib.Nifti1Image(space["thick"], space["affine"])


WRONG = {  # check: (answers that one may well give, what comes after the answer)
    "check_09_border": ([("less",), ("the same",), ("larger",)], (60.0, 40.0)),
    "check_09_side": (
        [
            (lambda part: "left" if part.centre[0] > 5 else "right" if part.centre[0] < -5 else "middle",),
            (lambda part: "right" if part.centre[0] > 0 else "left",),  # nothing is in the middle
            (lambda part: "right" if part.centre[1] > 0 else "left",),  # the wrong axis
        ],
        (),
    ),
    "check_09_thick": ([(30.0, thick()), (40.0, scan()), (40.0, scan(4, 6.0, -20.0 - 30))], (scan(), 40.0)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_refused(name, capsys):
    answers, more = WRONG[name]
    assert len(answers) >= 2
    for answer in answers:
        with pytest.raises(AssertionError, match=r"\w+ \w+"):  # with a hint
            checks.run(getattr(checks, name), *answer, *more)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", WRONG)
def test_an_untouched_exercise_is_not_done(name, capsys):
    answers, more = WRONG[name]
    untouched = stub if callable(answers[0][0]) else None
    checks.run(getattr(checks, name), untouched, *answers[0][1:], *more)
    assert capsys.readouterr().out == f"Exercise {name.removeprefix('check_')}: not done yet\n"


def test_the_right_answers_are_accepted(capsys):
    checks.run(checks.check_09_border, "more", 60.0, 40.0)
    checks.run(checks.check_09_border, "the same", 41.0, 40.0)
    checks.run(checks.check_09_side, side)
    checks.run(checks.check_09_thick, 40.5, thick(), scan(), 40.0)
    assert capsys.readouterr().out.count(": right\n") == 4


def test_every_check_is_tested_and_used():
    ours = {name for name in vars(checks) if name.startswith("check_09_")}
    assert ours == set(WRONG)
    assert all(f"checks.{name}" in LESSON for name in ours)
