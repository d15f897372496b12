"""Dice over training time: points are measured once, in the order of training, and an ended race is not done again."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from madad_lite.autoencoder import make_autoencoder
from madad_lite.evaluation.compare import load_split
from madad_lite.family.registry import method_class
from madad_lite.slices.manifest import Manifest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import time_to_quality as benchmark  # noqa: E402


def rows_of(file):
    with open(file, newline="") as f:
        return list(csv.DictReader(f))


def test_a_training_is_measured_as_it_goes(prepared_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "POINTS", (5,))
    torch.manual_seed(0)
    make_autoencoder().save_pretrained(tmp_path / "ae")
    rows, seen = tmp_path / "rows.csv", []

    def judged(name, run, manifest, settings, encoder, s):
        seen.append((run / "best" / "unet" / "config.json").is_file())
        assert set(s.subjects) and (s.lesion & s.brain).any()
        return dict(max_dice=0.5, ap=0.4, small=0.1, after="nothing")

    monkeypatch.setattr(benchmark, "judged", judged)
    monkeypatch.setattr(
        benchmark,
        "settings_of",
        lambda args: dict(steps=args.steps, batch_size=1, size="tiny", validate_every=5),
    )
    words = [
        "--data",
        str(prepared_cohort),
        "--autoencoder",
        str(tmp_path / "ae"),
        "--test",
        str(prepared_cohort),
    ]
    words += ["--methods", "dae", "--steps", "6", "--out", str(tmp_path / "out"), "--rows", str(rows)]
    benchmark.main(words)
    (row,) = rows_of(rows)
    assert seen == [True] and row["step"] == "5" and float(row["seconds"]) > 0 and float(row["val_loss"]) > 0
    benchmark.main(words)
    assert rows_of(rows) == [row] and seen == [True]
    clock = tmp_path / "out" / "dae_seconds.txt"  # of a training that goes on
    assert float(clock.read_text()) >= float(row["seconds"]) > 0
    clock.write_text("1000")
    benchmark.main([*words, "--rows", str(tmp_path / "again.csv")])
    assert float(rows_of(tmp_path / "again.csv")[0]["seconds"]) > 1000
    assert seen == [True, True]
    benchmark.main(["--rows", str(rows), "--picture", str(tmp_path / "picture.png")])
    assert (tmp_path / "picture.png").stat().st_size > 1000
    (tmp_path / "page.md").write_text("Before.\n\n<!-- begin: tables -->\n<!-- end: tables -->\n")
    benchmark.main(["--rows", str(rows), "--page", str(tmp_path / "page.md")])
    assert "\n| DAE | prepared | 5 | - | 0.500 (0.10), 0 min |\n" in (tmp_path / "page.md").read_text()
    monkeypatch.setattr(benchmark, "SHORT", 5)
    benchmark.main(["--rows", str(rows), "--page", str(tmp_path / "page.md")])
    assert "\n| 5 | 0.500 (0.10), 0 min |\n" in (tmp_path / "page.md").read_text()
    benchmark.main([*words, "--set", "steps=5", "--called", "DAE, short"])
    assert [(r["method"], r["step"]) for r in rows_of(rows)] == [("dae", "5"), ("DAE, short", "5")]
    benchmark.main(["--rows", str(rows), "--page", str(tmp_path / "page.md")])
    assert "| DAE, short, " in (tmp_path / "page.md").read_text()
    for wrong in (["--out", str(tmp_path)], [*words, "--set", "steps=5"]):
        with pytest.raises(SystemExit):
            benchmark.main(wrong)


def test_settings_given_take_the_place_of_the_usual_ones():
    args = benchmark.argparse.Namespace(steps=9000, set=["variants=1", "size=fine"])
    given = benchmark.settings_of(args)
    assert given["variants"] == 1 and given["size"] == "fine" and given["steps"] == 9000


def test_the_table_has_each_point_once():
    rows = rows_of(benchmark.TABLE)
    assert tuple(rows[0]) == benchmark.COLUMNS
    keys = [(r["data"], r["method"], int(r["step"])) for r in rows]
    assert len(set(keys)) == len(keys)
    for one in {(r["data"], r["method"]) for r in rows}:
        of_one = [r for r in rows if (r["data"], r["method"]) == one]
        seconds = [float(r["seconds"]) for r in sorted(of_one, key=lambda r: int(r["step"]))]
        assert seconds == sorted(seconds)


def test_weights_of_a_run_that_goes_on_are_judged(prepared_cohort, tmp_path):
    """Random weights: at some threshold no worse than calling the whole brain lesion."""
    dae = method_class("dae")
    dae(dae.Config(size="tiny")).networks["unet"].save_pretrained(tmp_path / "best" / "unet")
    s, manifest = load_split(prepared_cohort, "test"), Manifest.load(prepared_cohort)
    found = benchmark.judged("dae", tmp_path, manifest, {"size": "tiny"}, None, s)
    lesion = float((s.lesion & s.brain).sum())
    assert 2 * lesion / (lesion + float(s.brain.sum())) <= found["max_dice"] <= 1 and 0 <= found["ap"] <= 1
