"""The race of the family at toy size: rows land one after another, and what is done is not done again."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from madad_lite.autoencoder import make_autoencoder
from madad_lite.slices.folder import Manifest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import family as race  # noqa: E402
import family_page  # noqa: E402


@pytest.fixture(scope="module")
def words(prepared_cohort, tmp_path_factory):
    """A race's arguments, but for its folder, methods and budget."""
    torch.manual_seed(0)
    encoder = tmp_path_factory.mktemp("ae")
    make_autoencoder().save_pretrained(encoder)
    given = ["--train", str(prepared_cohort), "--test", str(prepared_cohort), "--autoencoder", str(encoder)]
    return [*given, "--size", "tiny", "--batch-size", "4", "--resamples", "20", "--seeds", "0"]


def rows_of(folder):
    with open(folder / "rows.csv", newline="") as file:
        return list(csv.DictReader(file))


def start(folder, *more):
    race.main([*more, "--out", str(folder), "--rows", str(folder / "rows.csv")])


def test_rows_land_and_are_kept(words, prepared_cohort, tmp_path, capsys, monkeypatch):
    words = [*words, "--steps", "2", "--against", "dae", "--methods", "intensity", "dae"]
    start(tmp_path, *words)
    told = capsys.readouterr().out
    dae, intensity = rows_of(tmp_path)  # the one that the others are compared with comes first
    assert dae["method"] == "dae" and dae["steps"] == "2" and dae["minus_low"] == ""
    assert float(intensity["minus_low"]) <= float(intensity["minus_high"]) and intensity["steps"] == "0"
    assert float(dae["max_dice_low"]) <= float(dae["max_dice"]) <= float(dae["max_dice_high"])
    assert "| DAE | 2 |" in told and "| intensity | 0 |" in told and "range of seeds" in told
    assert list((tmp_path / "maps").rglob("dae-0.npy"))
    monkeypatch.setattr(race, "row", None)  # would fail if anything were done again
    start(tmp_path, *words)
    assert capsys.readouterr().out == told
    start(tmp_path, *words[:-2], "intensity", "--seeds", "0", "1")  # without networks every seed is the same
    with pytest.raises(TypeError):
        start(tmp_path, *words, "--every", "2")  # another race


def test_settings_are_chosen_on_validation_with_the_first_seed_only(words, tmp_path, monkeypatch):
    kind = race.method_class("deco_diff")
    asked, scored = [], race.raw_maps
    monkeypatch.setattr(
        race, "raw_maps", lambda m, s, *a: asked.append(m.config.steps_back) or scored(m, s, *a)
    )
    words = [*words, "--steps", "2", "--methods", "deco_diff", "--seeds", "0", "1"]
    start(tmp_path, *words)
    tried = [choice.get("steps_back", 5) for choice in kind.tried]
    chosen = json.loads(rows_of(tmp_path)[0]["settings"]).get("steps_back", 5)
    assert asked == [*tried, chosen, chosen, chosen]  # validation, test; validation and test of seed 1
    assert len({r["settings"] for r in rows_of(tmp_path)}) == 1


def test_the_same_seconds_and_the_weight(words, tmp_path, monkeypatch):
    clock = iter(np.arange(0, 1e6, 1.0))
    monkeypatch.setattr(race.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(race.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(race, "TRIAL", 1)
    offered = []
    monkeypatch.setattr(race, "configured", lambda a, **c: offered.append(c) or configured(a, **c))
    from madad_lite.training.settings import configured

    start(tmp_path, *words, "--seconds", "1e-3", "--weighted", "--methods", "dae")
    assert rows_of(tmp_path)[0]["steps"] == "1" and rows_of(tmp_path)[0]["race"].startswith("seconds 0.001")
    assert json.loads((tmp_path / "steps/dae.json").read_text()) == {"steps": 1}
    assert {c["weight"] for c in offered if "weight" in c} == {0.0, race.WEIGHTED}
    assert not (tmp_path / "trial").exists()


def test_thinned_folders_hold_every_so_many_th_slice(prepared_cohort, tmp_path):
    whole, thin = (Manifest.load(f) for f in (prepared_cohort, race.thinned(prepared_cohort, 3, tmp_path)))
    thin.verify()
    assert len(thin.scans()) == len(whole.scans())
    for a, b in zip(whole.scans(), thin.scans()):
        np.testing.assert_array_equal(whole.array(a, "image")[1::3], thin.array(b, "image"))
        assert b["lesion_pixels"] == a["lesion_pixels"][1::3]
    assert race.thinned(prepared_cohort, 1, tmp_path) == prepared_cohort


def test_latents_are_encoded_once_for_all_that_want_the_same(words, tmp_path):
    start(tmp_path, *words, "--steps", "1", "--methods", "reflect", "deco_diff", "mad_ad")
    caches = {p.name for p in (tmp_path / "latents").iterdir()}
    assert len(caches) == 2  # with and without lesion-like regions
    runs = tmp_path / "runs/1/0"
    assert (runs / "reflect/latents").resolve() == (runs / "deco_diff/latents").resolve()


def test_the_page_counts_the_seeds_that_show_something():
    ends = ((0.1, 0.2), (-0.3, -0.1), (-0.1, 0.1), (0.0, 0.2))
    rows = [{"minus_low": f"{a}", "minus_high": f"{b}"} for a, b in ends]
    assert family_page.apart(rows) == "1, 1 of 4"
    assert family_page.apart([{"minus_low": "", "minus_high": ""}]) == "-"
    assert family_page.share([{"found_in_healthy": ""}]) == "-"  # a set of patients only
    assert family_page.share([{"found_in_healthy": "0.01"}, {"found_in_healthy": "0.03"}]) == "2.0 %"


def test_the_page_gets_the_tables(words, tmp_path):
    start(tmp_path, *words, "--steps", "1", "--methods", "intensity")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{family_page.BEGIN}\nstale words\n{family_page.END}\nafter\n")
    race.main(["--page", str(page), "--rows", str(tmp_path / "rows.csv")])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale words" not in text
    assert "| intensity | 0 |" in text
    with pytest.raises(SystemExit):
        race.main(["--out", str(tmp_path)])
