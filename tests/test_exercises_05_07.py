"""Exercises of lessons 05 to 07: a stub is not done, plausible wrong answers are refused, the solutions are right."""

import csv
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))
import checks  # noqa: E402

from madad_lite.evaluation.compare import load_split  # noqa: E402

LESSONS = ("05_training", "06_mask_visualization", "07_evaluation")
CHECKS = {name for name in vars(checks) if re.match(r"check_0[567]_", name)}
ROWS = [{"m_hat_lesion": 0.5, "m_hat_healthy": 0.5}, {"m_hat_lesion": 0.4, "m_hat_healthy": 0.1}]


def stub(*_):
    raise NotImplementedError


def step(z, z0_hat, M_hat, t, abar, threshold, *, at_end=1.0, keep=True):
    before = abar[t - 1] if t > 0 else torch.as_tensor(at_end)
    eps_hat = (z - abar[t].sqrt() * z0_hat) / (1 - abar[t]).sqrt()
    new = before.sqrt() * z0_hat + (1 - before).sqrt() * eps_hat
    return torch.where(M_hat > threshold, new, z) if keep else new


def forward(z0, eps, M, abar_t, *, inverted=False, rooted=True):
    a = abar_t.view(-1, 1, 1, 1)
    noised = a.sqrt() * z0 + (1 - a).sqrt() * eps if rooted else a * z0 + (1 - a) * eps
    return torch.where(M.bool() ^ inverted, noised, z0)


WRONG = {  # check: (answers that one may well give, what comes after the answer)
    "check_05_steps_in_total": ([1000, 1270], ()),
    "check_05_forward": ([lambda *a: forward(*a, inverted=True), lambda *a: forward(*a, rooted=False)], ()),
    "check_05_with_region": (
        [
            lambda z, M, f, c: (torch.where(c, f, z), M),  # not marked
            lambda z, M, f, c: (torch.where(c, f, z), c.float()),  # the patches are forgotten
        ],
        (),
    ),
    "check_05_doubt": ([[1.0, 0.25], [1.0]], (ROWS,)),
    "check_06_share_left": ([0.0, 0.157], ()),
    "check_06_reverse_step": ([lambda *a: step(*a, keep=False), lambda *a: step(*a, at_end=a[4][-1])], ()),
    "check_06_score": (
        [
            lambda h, s, w, b, g: w * (h - s) ** 2 * b,
            lambda h, s, w, b, g: w * ((h - s) ** 2).clamp(max=g) * b,
            lambda h, s, w, b, g: w * (h - s).abs().clamp(max=g) / g * b,
        ],
        (),
    ),
    "check_06_smallest": ([{1: 1.0, 2: 1.0, 4: 1.0}, {1: 0.5, 2: 0.3, 4: 0.1}], ()),
    "check_07_pooled": ([2 * 132 / 285, 0.48], ()),
    "check_07_dice": (
        [
            lambda f, m: (f & m).sum() / max(1, (f | m).sum()),  # the Jaccard index
            lambda f, m: 2 * (f & m).sum() / max(1, f.sum() + m.sum()),  # nothing to find: 0
        ],
        (),
    ),
    "check_07_strict": ([lambda s, limit: np.quantile(s, limit), lambda s, limit: 1 - limit], ()),
    "check_07_draw": (
        [
            lambda s, rng: rng.integers(0, len(s), len(s)),  # slices, not subjects
            lambda s, rng: np.flatnonzero(np.isin(s, rng.choice(np.unique(s), 3))),  # each once
        ],
        (),
    ),
    "check_07_rare": ([{n: (0.5, 0.5) for n in (1, 10, 100)}, {1: (0.96, 0.96)}], ()),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_refused(name, capsys):
    answers, more = WRONG[name]
    check = getattr(checks, name)
    assert len(answers) >= 2
    for answer in answers:
        with pytest.raises(AssertionError) as refused:
            checks.run(check, answer, *more)
        assert len(str(refused.value).splitlines()[0]) > 10  # a hint
    assert "right" not in capsys.readouterr().out


@pytest.mark.parametrize("name", WRONG)
def test_an_untouched_exercise_is_not_done(name, capsys):
    answers, more = WRONG[name]
    checks.run(getattr(checks, name), stub if callable(answers[0]) else None, *more)
    assert capsys.readouterr().out == f"Exercise {name.removeprefix('check_')}: not done yet\n"


def test_the_capstone_is_won_only_when_the_whole_interval_is_above_the_other(capsys):
    rng = np.random.default_rng(0)
    lesion = torch.from_numpy(rng.random((12, 1, 8, 8)) < 0.1)
    test = SimpleNamespace(
        lesion=lesion, brain=torch.ones_like(lesion), subjects=np.repeat(list("abcdef"), 2)
    )
    noise = torch.from_numpy(rng.random((12, 1, 8, 8)).astype("float32"))
    good = (0.7 * lesion + 0.3 * noise).float()
    checks.check_07_capstone(good, noise, test)
    assert "yours                  pooled max Dice 1.000" in capsys.readouterr().out
    for yours, other in ((noise, good), (good, good), (good[:3], noise)):
        with pytest.raises(AssertionError):
            checks.check_07_capstone(yours, other, test)


def test_the_capstone_s_opponent_can_be_trained_as_the_lesson_says(prepared_cohort, tmp_path, capsys):
    text = (NOTEBOOKS / "07_evaluation.py").read_text(encoding="utf-8")
    (block,) = re.findall(r"^# ```python\n(.*?)^# ```\n", text, re.MULTILINE | re.DOTALL)
    code = "\n".join(line[2:] for line in block.splitlines())
    smaller = {
        'STUDENT.parent / "05_200_steps" / "prepared"': repr(str(prepared_cohort)),
        "steps=600, batch_size=16": "steps=2, batch_size=2",
    }
    for stands, instead in smaller.items():
        assert stands in code
        code = code.replace(stands, instead)
    slices = load_split(prepared_cohort, "test")
    space = {"test": slices, "STUDENT": tmp_path / "student"}
    exec(code, space)
    assert space["dae_maps"].shape == slices.image.shape and space["dae_maps"].max() <= 1
    checks.run(checks.check_07_capstone, slices.lesion.float(), space["dae_maps"], slices)
    assert "Exercise 07_capstone: right" in capsys.readouterr().out


def test_every_check_is_tested_and_used():
    assert CHECKS == {*WRONG, "check_07_capstone"}
    used = {
        c
        for name in LESSONS
        for c in re.findall(r"checks\.(check_\w+)", (NOTEBOOKS / f"{name}.py").read_text())
    }
    assert used == CHECKS


@pytest.mark.parametrize("name", LESSONS)
def test_solutions_are_right(name, capsys, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS / "solutions")  # where a notebook's kernel works
    runpy.run_path(str(NOTEBOOKS / "solutions" / f"{name}.py"))
    out = capsys.readouterr().out
    exercises = len(re.findall(r"^# ### Exercise", (NOTEBOOKS / f"{name}.py").read_text(), re.MULTILINE))
    assert out.count(": right\n") == exercises and "not done yet" not in out


def test_the_lesson_shows_the_benchmarks_rows():
    with open(ROOT / "benchmarks" / "noise_alone.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["way"] == "authors"]
    text = (NOTEBOOKS / "05_training.py").read_text()
    shown = list(csv.DictReader(text.split('LONGER = """\n')[1].split('"""')[0].splitlines()))
    assert [row | more for row, more in zip(rows, shown, strict=True)] == rows  # the columns it has are equal
