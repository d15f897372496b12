"""Every check accepts the solution, and refuses a stub and plausible wrong answers, with a hint."""

import importlib.util
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks = load(NOTEBOOKS / "checks.py")
ABAR = checks.ABAR


def stub(*_):
    raise NotImplementedError


def darker(d):
    return d.abs().clamp(max=0.25) / 0.25


WRONG = {
    "check_00_eta": [0.5, 1],
    "check_00_dice": [
        lambda f, t: (f & t).sum() / (f | t).sum(),
        lambda f, t: (f & t).sum() / (f.sum() + t.sum()),
    ],
    "check_01_abar": [0.0, 1.0],
    "check_01_eps_from_v": [
        lambda x, v, t: ABAR[t].sqrt() * x - (1 - ABAR[t]).sqrt() * v,  # that is x0
        lambda x, v, t: ABAR[t].sqrt() * x + (1 - ABAR[t]).sqrt() * v,
    ],
    "check_01_forward_step": [
        lambda x, t, e: ABAR[t].sqrt() * x + (1 - ABAR[t]).sqrt() * e,  # all the way from level 0
        lambda x, t, e: x + (1 - ABAR[t] / ABAR[t - 1]).sqrt() * e,
        lambda x, t, e: (
            (ABAR[t] / ABAR[t - 1]).sqrt() * x + (1 - ABAR[t] / ABAR[t - 1]).sqrt() * e
        ),  # not at t = 0
    ],
    "check_02_split": [0, 5],
    "check_02_voxel_of": [
        lambda a, p: np.rint(a @ [*p, 1])[:3].astype(int),
        lambda a, p: (np.linalg.inv(a) @ [*p, 1])[:3].astype(int),
    ],
    "check_02_normalised": [
        lambda v, b: np.clip(v / v[b].mean() - 1, -1, 1),
        lambda v, b: np.clip(v / np.median(v) - 1, -1, 1),
        lambda v, b: v / np.median(v[b]) - 1,
    ],
    "check_03_pairs": [4, 2],
    "check_03_scale": [2.5, 0.18215],
    "check_03_kl": [
        lambda m, s: 0.5 * (m**2 + s**2 - 1 - s.log()),
        lambda m, s: 0.5 * (m**2 + s**2 - 2 * s.log()),
    ],
    "check_04_sure": ["z0_hat", "noise"],
    "check_04_authors_map": [
        lambda h, d, b: (h - d).abs().clamp(max=0.25) * b,
        lambda h, d, b: darker(h - d) * b,  # not smoothed
    ],
    "check_04_ddim_step": [lambda z, g, t: g, lambda z, g, t: z],
    "check_08_score": [
        lambda h, d, b: (h - d).square().clamp(max=0.2) / 0.2 * b,
        lambda h, d, b: darker(h - d),
    ],
    "check_08_crossing": [0.25, 0.8],
    "check_08_gap": [21.9, 8.7],
    "check_10_lazy": [0.0, 0.25],
    "check_10_stitch": [
        lambda r, b, x: (r * b).sum(0),
        lambda r, b, x: (r * b).sum(0) / b.sum(0),
        lambda r, b, x: torch.where(b.any(0), r.mean(0), x),
    ],
}
CHECKS = sorted(
    name for name, _ in inspect.getmembers(checks, inspect.isfunction) if name.startswith("check_")
)
OURS = [name for name in CHECKS if name in WRONG]  # those of lessons 05 to 07 and 09 have files of their own
LESSONS = sorted(NOTEBOOKS.glob("[0-9]*.py"))


@pytest.mark.parametrize("name", OURS)
def test_an_untouched_exercise_is_not_done_and_wrong_answers_are_refused(name, capsys):
    check = getattr(checks, name)
    number = name.removeprefix("check_")
    for untouched in (None, *([stub] if callable(WRONG[name][0]) else [])):
        checks.run(check, untouched)
        assert capsys.readouterr().out == f"Exercise {number}: not done yet\n"
    assert len(WRONG[name]) >= 2
    for answer in WRONG[name]:
        with pytest.raises(AssertionError, match=r"\w+ \w+"):  # with a hint
            checks.run(check, answer)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("solutions/[0-9]*.py")), ids=lambda p: p.stem)
def test_the_solutions_are_accepted(path, monkeypatch, capsys):
    """Each solution calls the checks of its notebook, all of them."""
    monkeypatch.chdir(path.parent)
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    load(path)
    said = capsys.readouterr().out
    wanted = [name.removeprefix("check_") for name in OURS if name.startswith(f"check_{path.name[:2]}_")]
    right = sorted(n for n in re.findall(r"Exercise (\w+): right", said) if f"check_{n}" in OURS)
    assert right == wanted


def test_every_check_is_used_in_its_lesson_and_has_a_solution():
    for name in OURS:
        number = name.split("_")[1]
        (lesson,) = NOTEBOOKS.glob(f"{number}_*.py")
        assert f"checks.{name}" in lesson.read_text(encoding="utf-8")
        assert f"checks.{name}" in (NOTEBOOKS / "solutions" / lesson.name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_each_lesson_has_three_kinds_of_exercises(path):
    """Predict, code, investigate; each to be coded has a stub, graded hints and a figure to compare with."""
    text = path.read_text(encoding="utf-8")
    exercises = re.split(r"^# ### Exercise \d+ ", text, flags=re.MULTILINE)[1:]
    kinds = [re.match(r"\((\w+)\)", exercise)[1] for exercise in exercises]
    assert {"predict", "code", "investigate"} == set(kinds) and len(kinds) >= 3
    for exercise in (e for kind, e in zip(kinds, exercises) if kind == "code"):
        title = exercise.splitlines()[0]
        assert "raise NotImplementedError" in exercise and "checks.run(" in exercise, title
        assert exercise.count("<summary>Hint ") >= 2, f"{title}: graded hints"
        assert "*What you should see*" in exercise, title


def test_answers_of_another_shape_are_told_apart():
    with pytest.raises(AssertionError, match="shape"):
        checks.close(torch.zeros(2), torch.zeros(3), "")


def test_who_is_behind_is_counted_by_the_intervals_of_every_seed(capsys):
    ends = {"a": ("-0.1", "-0.2"), "b": ("-0.01",), "c": ("-0.1", "0.2"), "d": ("0.2",), "mad_ad": ("", "")}
    rows = [{"test": "cohort_t1", "method": m, "minus_high": h} for m, highs in ends.items() for h in highs]
    rows += [{"test": "ixi_t1", "method": "d", "minus_high": "-0.5"}]
    checks.run(checks.check_10_behind, 2, rows)
    checks.run(checks.check_10_behind, None, rows)
    assert capsys.readouterr().out == "Exercise 10_behind: right\nExercise 10_behind: not done yet\n"
    for wrong, why in ((3, "first seed alone"), (4, "not all of them"), (1, "count the methods")):
        with pytest.raises(AssertionError, match=why):
            checks.check_10_behind(wrong, rows)
