"""The command line, end to end on small simulated scans."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from madad_lite.cli import main


@pytest.fixture(scope="module")
def detected(patient_scan, tmp_path_factory):
    out = tmp_path_factory.mktemp("detect")
    assert main(["detect", patient_scan["image"], "--out", str(out)]) == 0
    return out


def test_detect_writes_its_five_files(detected, patient_scan):
    name = Path(patient_scan["image"]).name.removesuffix(".nii.gz")
    assert {p.name for p in detected.iterdir()} == {
        f"{name}_anomaly.nii.gz",
        f"{name}_healed.nii.gz",
        f"{name}_report.png",
        f"{name}_lesions.csv",
        f"{name}.json",
    }
    scan, anomaly = nib.load(patient_scan["image"]), nib.load(detected / f"{name}_anomaly.nii.gz")
    assert anomaly.shape == scan.shape and np.array_equal(anomaly.affine, scan.affine)
    assert anomaly.get_data_dtype() == np.float32
    values = anomaly.get_fdata()
    assert values.min() >= 0 and 0 < values.max() <= 1


def test_detect_never_overwrites_without_force(detected, patient_scan, capsys):
    before = {p: p.read_bytes() for p in detected.iterdir()}
    assert main(["detect", patient_scan["image"], "--out", str(detected)]) == 1
    assert "--force" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in detected.iterdir()}
    assert main(["detect", patient_scan["image"], "--out", str(detected), "--force"]) == 0
    maps = [p for p in before if p.name.endswith((".nii.gz", ".csv", ".json"))]
    assert all(p.read_bytes() == before[p] for p in maps)  # and the same seed gives the same bytes


def test_one_bad_scan_does_not_stop_the_others(patient_scan, tmp_path, capsys):
    bad = tmp_path / "broken.nii.gz"
    bad.write_bytes(b"no NIfTI at all")
    out = tmp_path / "out"
    assert main(["detect", str(bad), patient_scan["image"], "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "broken.nii.gz" in said and "1 of 2 scans done" in said
    assert len(list(out.glob("*_anomaly.nii.gz"))) == 1 and not list(out.glob("broken*"))


def test_unusable_requests_are_refused_in_one_line(tmp_path, capsys):
    for words in (
        ["detect", str(tmp_path), "--out", str(tmp_path / "o")],
        ["detect", "x.nii.gz", "--out", str(tmp_path / "o"), "--weights", "nothing"],
        ["train", "denoiser", "--data", str(tmp_path), "--out", str(tmp_path / "r")],
        ["prepare", str(tmp_path / "nowhere"), "--out", str(tmp_path / "p")],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith(f"madad {words[0]}: ") and "\n" not in said


def test_simulate_prepare_train_assemble_evaluate(tmp_path, capsys):
    """The main job as a user types it, as small as it can be."""
    cohort, data = tmp_path / "cohort", tmp_path / "data"
    assert main(["phantom", "--out", str(cohort), "--normal", "3", "--patients", "2", "--spacing", "4"]) == 0
    assert (
        main(["prepare", str(cohort), "--out", str(data), "--spacing", "4", "--size", "48", "--workers", "1"])
        == 0
    )
    brief = ["--data", str(data), "--set", "steps=2", "batch_size=2"]
    assert main(["train", "autoencoder", "--out", str(tmp_path / "ae"), *brief]) == 0
    best = str(tmp_path / "ae" / "best")
    assert (
        main(
            ["train", "denoiser", "--out", str(tmp_path / "dn"), "--autoencoder", best, *brief, "variants=1"]
        )
        == 0
    )
    joined = ["--autoencoder", best, "--denoiser", str(tmp_path / "dn" / "best"), "--data", str(data)]
    model = str(tmp_path / "model")
    assert main(["assemble", *joined, "--out", model, "--set", "sigma=1.0"]) == 0
    assert main(["assemble", *joined, "--out", model]) == 2  # there already
    results = tmp_path / "results.json"
    capsys.readouterr()
    assert (
        main(["evaluate", "--data", str(data), "--weights", model, "--steps", "2", "--out", str(results)])
        == 0
    )
    printed = capsys.readouterr().out
    numbers = json.loads(results.read_text())
    assert set(numbers["methods"]) == {"MAD-AD", "intensity", "reconstruction"} and "MAD-AD" in printed
    assert all("threshold" in m and "test" in m and "val" in m for m in numbers["methods"].values())
