"""The race of the family at toy size: rows land one after another, and what is done is not done again."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from madad_lite.autoencoder import make_autoencoder

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "family.py"


@pytest.fixture(scope="module")
def race():
    spec = importlib.util.spec_from_file_location("family_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_land_and_are_kept(race, prepared_cohort, tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    make_autoencoder().save_pretrained(tmp_path / "ae")
    words = ["--train", str(prepared_cohort), "--test", str(prepared_cohort), "--out", str(tmp_path / "r")]
    words += ["--autoencoder", str(tmp_path / "ae"), "--size", "tiny", "--steps", "2", "--batch-size", "4"]
    words += ["--seeds", "0", "--against", "dae", "--resamples", "20", "--methods", "intensity", "dae"]
    race.main(words)
    told = capsys.readouterr().out
    row = json.loads((tmp_path / "r/rows/dae-0.json").read_text())
    assert row["steps"] == 2 and len(row["validation"]) == len(race.AFTER)
    assert row["after"] == max(row["validation"], key=row["validation"].get)
    assert "| dae | 2 | 0.39 M |" in told and "| intensity | 0 | 0.00 M |" in told
    assert (tmp_path / "r/maps" / prepared_cohort.name / "dae-0.npy").exists()
    monkeypatch.setattr(race, "row", None)  # would fail if anything were done again
    race.main(words)
    again = capsys.readouterr().out
    assert again == told and "[" in again  # the interval of the difference
