"""The ablation: what each row changes, what is trained once, and that nothing is measured twice."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from madad_lite.autoencoder import make_autoencoder
from madad_lite.evaluation.compare import load_split
from madad_lite.training.settings import RECIPES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import ablation  # noqa: E402
from family_page import BEGIN, END  # noqa: E402


def test_published_is_the_papers_and_all_is_ours():
    paper, ours = RECIPES["paper"], RECIPES["lite"]
    for settings, recipe in (("published", paper), ("all", ours)):
        for name, value in ablation.settings_of(settings, "").items():
            part = recipe.denoiser if name in ablation.TRAINED else recipe.detection
            if not (recipe is paper and name == "sigma"):  # 5 pixels of 256 are 2 of 96
                assert getattr(part, name) == value, name


@pytest.mark.parametrize("base", ["published", "all"])
def test_a_row_changes_one_setting_of_its_base(base):
    of_base = ablation.settings_of(base, "")
    assert len(of_base) == len(ablation.CHANGES)
    for change, (setting, *_) in ablation.CHANGES.items():
        row = ablation.settings_of(base, change)
        assert [k for k in row if row[k] != of_base[k]] == [setting]


def test_the_middle_of_each_scan(prepared_cohort):
    s = load_split(prepared_cohort, "test")
    some = ablation.middle(s, 3)
    for scan in set(s.scans):
        own = np.flatnonzero(np.asarray(s.scans) == scan)
        kept = np.flatnonzero(np.asarray(some.scans) == scan)
        start = (len(own) - 3) // 2
        assert len(kept) == 3 and torch.equal(some.image[kept], s.image[own[start : start + 3]])


def test_rows_land_once_and_fill_the_page(prepared_cohort, tmp_path, monkeypatch):
    changes = {k: ablation.CHANGES[k] for k in ("more samples of pure noise", "mask threshold 0.2")}
    monkeypatch.setattr(ablation, "CHANGES", changes | {"rest": ("corruption_share", 0.0, 0.0)})
    monkeypatch.setattr(ablation, "TRAINED", ("last_step_share", "corruption_share"))
    monkeypatch.setattr(ablation, "MIDDLE", 2)
    trainings = []
    train = ablation.train_denoiser
    monkeypatch.setattr(
        ablation, "train_denoiser", lambda *a, **k: trainings.append(a[2].name) or train(*a, **k)
    )
    torch.manual_seed(0)
    make_autoencoder().save_pretrained(tmp_path / "ae")
    rows, folders = tmp_path / "rows.csv", [str(prepared_cohort)]
    words = ["--data", *folders, "--test", *folders, "--autoencoder", str(tmp_path / "ae"), "--seeds", "0"]
    words += ["--out", str(tmp_path / "out"), "--rows", str(rows), "--steps", "2", "--every", "4"]
    ablation.main([*words, "--resamples", "3"])
    with open(rows, newline="") as f:
        landed = list(csv.DictReader(f))
    assert [(r["base"], r["change"]) for r in landed] == [
        (base, change) for base in ("published", "all") for change in ("", *ablation.CHANGES)
    ]
    assert trainings == ["0-2-0-0", "0-2-0.3-0"]  # the others share them
    assert all(r["minus_low"] == "" for r in landed if not r["change"])
    same = [r for r in landed if r["change"] == "rest"]  # which changes nothing
    assert len(same) == 2 and all(float(r["minus_low"]) == 0 == float(r["minus_high"]) for r in same)
    before = rows.read_bytes()
    ablation.main(words)
    assert rows.read_bytes() == before and len(trainings) == 2
    page = tmp_path / "page.md"
    page.write_text(f"head\n{BEGIN}\nstale words\n{END}\nfoot\n")
    ablation.main(["--page", str(page), "--rows", str(rows)])
    text = page.read_text()
    assert text.startswith("head\n") and text.endswith("\nfoot\n") and "stale" not in text
    assert "| published + mask threshold 0.2 |" in text and "| all - mask threshold 0.2 |" in text


def test_what_it_needs(capsys):
    with pytest.raises(SystemExit):
        ablation.main(["--steps", "3"])
    assert "--data" in capsys.readouterr().err
