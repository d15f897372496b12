"""Options of the commands that no other test needs, each on the smallest input that shows what it does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from madad_lite.autoencoder import make_autoencoder
from madad_lite.cli import main
from madad_lite.denoiser import Denoiser
from madad_lite.pipeline import MadAdPipeline
from madad_lite.slices.folder import Manifest


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of an untrained encoder and denoiser."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parts")
    make_autoencoder().save_pretrained(folder / "autoencoder")
    Denoiser.of_size("nano").save_pretrained(folder / "denoiser")
    return folder


@pytest.fixture(scope="module")
def assemble(parts, prepared_cohort):
    """assemble(out, more words): the exit code."""
    words = ["--autoencoder", str(parts / "autoencoder"), "--denoiser", str(parts / "denoiser")]

    def run(out: Path, *more: str) -> int:
        return main(["assemble", *words, "--data", str(prepared_cohort), "--out", str(out), *more])

    return run


@pytest.fixture(scope="module")
def scan(cohort):
    """Of a patient, 4 mm."""
    return str(next(cohort.glob("sub-0004/anat/*_T1w.nii.gz")))


@pytest.fixture(scope="module")
def model(assemble, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "model"
    assert assemble(out) == 0
    return str(out)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def one_line(capsys) -> str:
    said = capsys.readouterr().err.strip()
    assert said and "\n" not in said
    return said


# prepare, recolour


def test_prepare_with_given_splits_and_png_files(cohort, tmp_path):
    splits = {"train": ["sub-0002"], "val": ["sub-0004"], "test": ["sub-0005"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    words = ["--spacing", "4", "--size", "48", "--workers", "1"]
    words += ["--splits", str(tmp_path / "splits.json"), "--png", str(tmp_path / "png")]
    assert main(["prepare", str(cohort), "--out", str(tmp_path / "out"), *words]) == 0
    manifest = Manifest.load(tmp_path / "out")
    assert {k: [s["subject"] for s in manifest.scans(k)] for k in splits} == splits
    written = {k: [p.name for p in (tmp_path / "png" / k).iterdir()] for k in splits}
    assert all("sub-0005" in name for name in written["test"])
    assert (
        sum(name.endswith("_segmentation.png") for name in written["test"])
        == manifest.scans("test")[0]["n_slices"]
    )
    assert (
        sum(name.endswith("_T1.png") for name in written["train"]) == manifest.scans("train")[0]["n_slices"]
    )


def test_recolour(prepared_cohort, tmp_path, capsys):
    assert main(["recolour", str(prepared_cohort), "--out", str(tmp_path / "flair")]) == 0
    assert "scans in FLAIR contrast" in capsys.readouterr().out
    new, old = Manifest.load(tmp_path / "flair"), Manifest.load(prepared_cohort)
    assert new.contrast == "flair" and len(new.scans()) == sum(not s["lesion"] for s in old.scans()) == 3
    assert main(["recolour", str(prepared_cohort), "--out", str(tmp_path / "flair")]) == 2
    assert "not empty" in one_line(capsys)
    assert main(["recolour", str(prepared_cohort), "--out", str(tmp_path / "t2"), "--contrast", "t2"]) == 0
    assert "scans in T2 contrast" in capsys.readouterr().out
    assert Manifest.load(tmp_path / "t2").contrast == "t2"


# detect


@pytest.fixture(scope="module")
def detect(model, tmp_path_factory):
    """detect(scan, more words): the anomaly map."""

    def run(scan: str, *more: str) -> np.ndarray:
        out = tmp_path_factory.mktemp("detect")
        words = ["--weights", model, "--steps", "2", "--register", "no", "--force-contrast", *more]
        assert main(["detect", scan, "--out", str(out), *words]) == 0
        return nib.load(next(out.glob("*_anomaly.nii.gz"))).get_fdata(dtype=np.float32)

    return run


@pytest.fixture(scope="module")
def usual(detect, scan):
    """The map without further options."""
    return detect(scan)


def test_detect_takes_the_volume_that_is_asked_for(detect, scan, usual, tmp_path):
    image = nib.load(scan)
    data = np.asarray(image.dataobj)
    both = np.stack([np.where(data > 0, data.max() - data + 1, 0), data], -1)
    nib.save(nib.Nifti1Image(both, image.affine), tmp_path / "both.nii.gz")
    words = ["--brain", scan.replace("_T1w", "_desc-brain_mask")]  # which lies beside the scan itself
    assert np.array_equal(detect(str(tmp_path / "both.nii.gz"), "--channel", "1", *words), usual)
    assert not np.array_equal(detect(str(tmp_path / "both.nii.gz"), "--channel", "0", *words), usual)


def test_detect_looks_only_inside_a_given_brain(detect, scan, usual, tmp_path):
    image = nib.load(scan)
    half = np.asarray(image.dataobj) > 0
    half[: half.shape[0] // 2] = False
    nib.save(nib.Nifti1Image(half.astype(np.uint8), image.affine), tmp_path / "half.nii.gz")
    found = detect(scan, "--brain", str(tmp_path / "half.nii.gz"), "--device", "cpu")
    outside = np.s_[: half.shape[0] // 2 - 2]
    assert usual[outside].any() and not found[outside].any() and found.any()


def test_detect_looks_at_fewer_slices_when_told(detect, scan, usual):
    coarse = detect(scan, "--z-spacing", "16")
    assert coarse.shape == usual.shape and not np.array_equal(coarse, usual)
    inside = usual > 0
    assert np.corrcoef(coarse[inside], usual[inside])[0, 1] > 0.3  # interpolated in between


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_one_line(device, scan, model, tmp_path, capsys):
    words = ["--weights", model, "--device", device]
    assert main(["detect", scan, "--out", str(tmp_path / "out"), *words]) == 2
    assert f"--device {device}: cannot be used here" in one_line(capsys) and not (tmp_path / "out").exists()


def test_resume_and_force_together_are_refused(scan, tmp_path, capsys):
    assert main(["detect", scan, "--out", str(tmp_path / "out"), "--resume", "--force"]) == 2
    assert "choose one" in one_line(capsys)


# assemble


def test_half_precision_is_half_as_large_and_read_as_single(assemble, model, tmp_path):
    assert assemble(tmp_path / "half", "--half", "--set", "decision_threshold=0.3", "sigma=1.5") == 0
    for part in ("autoencoder", "denoiser"):
        file = next((tmp_path / "half" / part).glob("*.safetensors"))
        assert {t.dtype for t in load_file(file).values()} == {torch.float16}
        whole = next((Path(model) / part).glob("*.safetensors"))
        assert file.stat().st_size < 0.6 * whole.stat().st_size
    pipe = MadAdPipeline.from_pretrained(str(tmp_path / "half"))
    assert pipe.denoiser.dtype == torch.float32
    assert (pipe.config.decision_threshold, pipe.config.sigma, pipe.config.contrast) == (0.3, 1.5, "t1")


def test_a_pipeline_is_replaced_only_by_force_and_as_a_whole(assemble, model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    shutil.copytree(model, out)
    before = content(out)
    assert assemble(out, "--set", "sigma=1.5") == 2
    assert "--force" in one_line(capsys) and content(out) == before
    save = MadAdPipeline.save_pretrained

    def half_of_it(pipe, folder):
        save(pipe, folder)
        shutil.rmtree(Path(folder) / "denoiser")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MadAdPipeline, "save_pretrained", half_of_it)
        assert assemble(out, "--force", "--set", "sigma=1.5") == 2
    assert "No space left" in one_line(capsys)
    assert content(out) == before and [p.name for p in tmp_path.iterdir()] == ["out"]
    assert assemble(out, "--force", "--set", "sigma=1.5") == 0
    changed = {k for k, v in content(out).items() if before.get(k) != v}
    assert changed == {"model_index.json"} and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "mode=sweep"], "mode"),
        (["--set", "decision_threshold=2"], "from 0 to 1"),
        (["--set", "decision_threshold=NaN"], "from 0 to 1"),
        (["--set", "decision_threshold=high"], "from 0 to 1"),
        (["--set", "sigma"], "name=value"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(words, said, assemble, tmp_path, capsys):
    assert assemble(tmp_path / "out", *words) == 2
    assert said in one_line(capsys) and not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_never_replaced(assemble, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert assemble(tmp_path, "--force") == 2
    assert "something else" in one_line(capsys) and content(tmp_path) == {"notes.txt": b"mine"}


# evaluate


@pytest.mark.parametrize(("name", "text"), [("scan.nii.gz", "x"), ("a.json", '{"mine": 1}'), ("b.json", "[")])
def test_results_take_the_place_of_nothing_but_results(name, text, prepared_cohort, model, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    words = ["evaluate", "--data", str(prepared_cohort), "--weights", model, "--out", str(tmp_path / name)]
    assert main(words) == 2
    assert name in one_line(capsys) and (tmp_path / name).read_text() == text


@pytest.mark.parametrize("steps", ["0", "-5", "11"])
def test_steps_that_are_not_possible_are_one_line(steps, prepared_cohort, model, capfd):
    assert main(["evaluate", "--data", str(prepared_cohort), "--weights", model, "--steps", steps]) == 2
    last = capfd.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("madad evaluate: ") and "steps" in last


# train


def test_two_processes_train_as_accelerate_launches_them(parts, prepared_cohort, tmp_path):
    launch = "--num_processes 2 --num_machines 1 --multi_gpu --mixed_precision no --dynamo_backend no"
    words = [
        "--data",
        str(prepared_cohort),
        "--autoencoder",
        str(parts / "autoencoder"),
        "--out",
        str(tmp_path / "run"),
    ]
    brief = ["--set", "steps=2", "batch_size=2", "variants=1", "validate_every=2"]
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "accelerate.commands.launch",
                *launch.split(),
                "--main_process_port",
                "0",
            ),
            *("-m", "madad_lite", "train", "denoiser", *words, *brief),
        ],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]  # logged once, not by each process
    assert Denoiser.from_pretrained(tmp_path / "run" / "best").dtype == torch.float32
