"""The benchmark of a training with noise alone: it goes on where it stopped, and its table keeps what it has."""

import csv
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import noise_alone  # noqa: E402
from madad_lite.pipeline import MadAdPipeline  # noqa: E402


def test_a_training_goes_on_from_its_checkpoint(prepared_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(noise_alone, "BATCH", 2)
    monkeypatch.setattr(noise_alone, "judged", lambda parts, model, slices: [{"way": "authors"}])
    parts = MadAdPipeline.from_pretrained("t1")

    def rows(folder, *steps):
        folder.mkdir(exist_ok=True)
        return list(noise_alone.train("noise", prepared_cohort, folder, parts, None, steps))

    at_once = rows(tmp_path / "a", 2, 4)
    assert [row["step"] for row in at_once] == [2, 4]
    assert rows(tmp_path / "b", 2) == at_once[:1]
    assert rows(tmp_path / "b", 2, 4) == at_once[1:]  # step 2 is not done again
    assert at_once[0]["val_masked"] != at_once[1]["val_masked"]


def test_a_row_takes_the_place_of_an_older_one_and_the_others_stay(tmp_path):
    table = tmp_path / "table.csv"
    blank = dict.fromkeys(noise_alone.COLUMNS, 0)
    for training, step, way, dice in (
        ("shipped", 9000, "authors", 0.6),
        ("noise", 400, "authors", 0.3),
        ("noise", 50, "shipped", 0.1),
        ("noise", 400, "authors", 0.5),
    ):
        noise_alone.write(table, {**blank, "training": training, "step": step, "way": way, "dice": dice})
    with open(table, newline="") as file:
        rows = [(r["training"], r["step"], r["dice"]) for r in csv.DictReader(file)]
    assert rows == [("noise", "50", "0.1"), ("noise", "400", "0.5"), ("shipped", "9000", "0.6")]


@pytest.mark.parametrize("ending", ["", "_flair"])
def test_the_table_has_each_row_once(ending):
    with open(noise_alone.TABLE.with_stem(f"noise_alone{ending}"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == noise_alone.COLUMNS
    keys = [(r["training"], int(r["step"]), r["way"]) for r in rows]
    assert len(set(keys)) == len(keys)
    assert {way for *_, way in keys} == {"authors", "shipped"}


@pytest.mark.parametrize("contrast", ["t1", "flair"])
def test_patients_are_of_the_contrast_and_healed_as_its_weights_heal(contrast, tmp_path, monkeypatch):
    monkeypatch.setattr(noise_alone, "PATIENTS", (9101,))
    parts = MadAdPipeline.from_pretrained(contrast)
    image, brain, lesion, subjects = noise_alone.patients(parts, tmp_path)
    assert (image[lesion].mean() > image[brain].mean()) == (
        contrast == "flair"
    )  # a stroke is dark, a tumour bright
    assert set(subjects) == {9101} and lesion.sum() > 0
    shipped = noise_alone.ways(parts.config)["shipped"]
    assert shipped["mask_threshold"] == 0.2 and shipped["neighbour_sigma"] == 0
    assert shipped["mask_floor"] == parts.config.mask_floor


@pytest.mark.parametrize("contrast, name", [("t1", "noise_alone"), ("flair", "noise_alone_flair")])
def test_each_contrast_has_its_own_work_folder_and_table(contrast, name, tmp_path, monkeypatch):
    """So that one contrast's training never goes on from the other's."""
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(
        noise_alone, "write_cohort", lambda folder, **about: seen.append((folder, about["contrasts"]))
    )
    monkeypatch.setattr(noise_alone, "prepare_folder", lambda *a, **k: None)
    monkeypatch.setattr(noise_alone, "patients", lambda parts, work: None)
    monkeypatch.setattr(noise_alone, "train", lambda *a: [{"step": 1}])
    monkeypatch.setattr(noise_alone, "write", lambda table, row: seen.append(table.name))
    noise_alone.main(["--contrast", contrast, "--only", "noise"])
    assert seen == [(Path("work") / name / "cohort", (contrast,)), f"{name}.csv"]


def test_an_unknown_training_is_refused():
    with pytest.raises(SystemExit):
        noise_alone.main(["--only", "nothing"])
