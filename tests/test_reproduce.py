"""The paper's settings S1 and S2 by one command each, on IXI, ATLAS and BraTS folders made of simulated
subjects; the recipes.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from madad_lite.cli import main
from madad_lite.evaluation import metrics
from madad_lite.evaluation.compare import LabelledSlices, Split, load_split
from madad_lite.evaluation.race import check_settings, maps_of
from madad_lite.evaluation.reproduce import OTHERS
from madad_lite.family.frame import load
from madad_lite.family.postprocess import Postprocessing
from madad_lite.family.registry import FAMILY, method_class, recipe_settings
from madad_lite.pipeline import MadAdPipeline
from madad_lite.simulation.cohort import write_cohort
from madad_lite.training.settings import RECIPES

GRID = ["--spacing", "4", "--size", "48", "--workers", "1"]
BRIEF = [
    *(
        f"autoencoder.{x}"
        for x in ("size=nano", "epochs=null", "steps=20", "batch_size=4", "validate_every=20")
    ),
    *(
        f"denoiser.{x}"
        for x in ("size=nano", "epochs=null", "steps=20", "batch_size=4", "validate_every=20", "variants=1")
    ),
    "denoiser.warmup_epochs=null",
    "detection.mask_threshold=0.0",
    "detection.sigma=1.0",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Prepared folders from scans that are named as the three data sets name theirs."""
    root = tmp_path_factory.mktemp("settings")
    cohort = write_cohort(
        root / "cohort", normal=4, patients=4, contrasts=("t1", "flair"), spacing=4.0, seed=3, progress=False
    )
    scans = sorted((p / "anat", p.name) for p in cohort.glob("sub-*"))
    for k, (anat, name) in enumerate(scans):
        if k < 4:
            copies = [(f"{name}_T1w", f"ixi/IXI{k:03d}-Guys-0{k}00-T1")]
        else:
            atlas = f"atlas/sub-r{k:03d}s001/ses-1/anat/sub-r{k:03d}s001_ses-1_space-MNI152NLin2009aSym"
            brats = f"brats/BraTS2021_{k:05d}/BraTS2021_{k:05d}"
            copies = [
                (f"{name}_T1w", f"{atlas}_T1w"),
                (f"{name}_label-lesion_mask", f"{atlas}_label-L_desc-T1lesion_mask"),
                (f"{name}_T1w", f"{brats}_t1"),
                (f"{name}_FLAIR", f"{brats}_flair"),
                (f"{name}_label-lesion_mask", f"{brats}_seg"),
            ]
        for source, target in copies:
            path = root / f"{target}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(anat / f"{source}.nii.gz", path)
    prepared = {
        "ixi": root / "p_ixi",
        "atlas": root / "p_atlas",
        "flair": root / "p_flair",
        "t1": root / "p_t1",
    }
    for name, out in prepared.items():
        source, contrast = ("brats", name) if name in ("flair", "t1") else (name, "t1")
        more = ["--patients-in-train"] if source == "brats" else []
        words = ["prepare", str(root / source), "--out", str(out), "--layout", source, "--contrast", contrast]
        assert main([*words, *more, *GRID]) == 0
    return prepared


def test_s1_by_one_command(folders, tmp_path, capsys):
    words = [
        "reproduce",
        "S1",
        "--train",
        str(folders["ixi"]),
        "--test",
        str(folders["atlas"]),
        "--out",
        str(tmp_path),
    ]
    words += ["--seed", "3"]
    assert main([*words, "--set", *BRIEF]) == 0
    for part in ("autoencoder", "denoiser"):
        assert json.loads((tmp_path / "t1" / part / "config.json").read_text())["seed"] == 3
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["setting"] == "S1" and report["paper"] == {"t1": 51.6} and "51.6" in said
    methods = report["results"]["t1"]
    assert {"MAD-AD", "intensity", "reconstruction"} == methods.keys()
    found = methods["MAD-AD"]["test"]
    assert f"{100 * found['pooled_max_dice']:.1f} | {100 * found['per_lesion_image_max_dice']:.1f}" in said
    assert set(found["by_size"]) == {"small", "medium", "large"}
    assert found["slices"] == len(load_split(folders["atlas"], "test").image)
    pipe = MadAdPipeline.from_pretrained(tmp_path / "t1" / "pipeline")
    assert pipe.config.decision_threshold == methods["MAD-AD"]["threshold"] == found["validation_threshold"]
    log = (tmp_path / "t1" / "denoiser" / "log.jsonl").read_text()
    assert main([*words, "--set", *BRIEF]) == 0  # again: nothing is trained twice
    assert (tmp_path / "t1" / "denoiser" / "log.jsonl").read_text() == log
    assert json.loads((tmp_path / "metrics.json").read_text()) == report


def test_other_methods_of_the_family_beside_it(folders, tmp_path, capsys):
    words = ["S2", "--test", str(folders["flair"]), "--out", str(tmp_path), "--methods", "dae, thor"]
    small = ["family.steps=2", "family.batch_size=2", "family.size=tiny", "family.variants=1"]
    assert main(["reproduce", *words, "--set", *BRIEF, *small]) == 0
    methods = json.loads((tmp_path / "metrics.json").read_text())["results"]["flair"]
    assert list(methods) == ["MAD-AD", "intensity", "reconstruction", "DAE", "THOR"]
    assert len({m["test"]["slices"] for m in methods.values()}) == 1  # the largest lesion of each patient
    assert "| flair | THOR |" in capsys.readouterr().out
    family = tmp_path / "flair" / "family"
    assert {p.name for p in family.iterdir()} == {"dae", "anoddpm"}  # THOR's network is AnoDDPM's
    method = load(family / "anoddpm", name="thor")
    encoder = MadAdPipeline.from_pretrained(tmp_path / "flair" / "pipeline").autoencoder
    assert all(torch.equal(a, b) for a, b in zip(method.autoencoder.parameters(), encoder.parameters()))
    found = [
        maps_of(method, s, Postprocessing(sigma=1.0)) for s in Split(folders["flair"], "test", largest=True)
    ]
    truth = LabelledSlices.joined(Split(folders["flair"], "test", largest=True))
    best, _ = metrics.pooled_max_dice(torch.cat(found), truth.lesion, truth.brain)
    assert methods["THOR"]["test"]["pooled_max_dice"] == pytest.approx(best, abs=2e-3)  # counted in bins


def test_of_the_family_what_has_a_recipe_and_no_row_yet():
    assert OTHERS == [n for n in FAMILY if method_class(n).paper and not n.startswith("mad_ad")]
    for name in OTHERS:
        check_settings([name], {"seed": 0}, "paper")
    assert recipe_settings("dae", "lite") == {} and recipe_settings("dae", "paper")["steps"] == 67_200


def test_s2_by_one_command(folders, tmp_path, capsys):
    words = ["reproduce", "S2", "--test", str(folders["flair"]), str(folders["t1"]), "--out", str(tmp_path)]
    assert main([*words, "--recipe", "authors", "--set", *BRIEF]) == 0
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert list(report["results"]) == ["flair", "t1"] and report["recipe"] == "authors"
    for contrast, methods in report["results"].items():
        test = load_split(folders[contrast], "test")
        assert methods["MAD-AD"]["test"]["slices"] == len(set(test.subjects))  # one slice a patient
        config = json.loads((tmp_path / contrast / "denoiser" / "config.json").read_text())
        assert config["mask_loss"] == "mse" and config["augmentation"] == "authors"
    rows = [line.split("|")[1:6] for line in capsys.readouterr().out.splitlines() if "MAD-AD" in line]
    shown = {cells[0].strip(): float(cells[2]) for cells in rows}
    assert shown["mean"] == pytest.approx((shown["flair"] + shown["t1"]) / 2, abs=0.1)


def test_the_largest_lesion_of_each_patient(folders):
    slices = load_split(folders["flair"], "test")
    chosen = LabelledSlices.joined(Split(folders["flair"], "test", largest=True))
    assert len(set(chosen.subjects)) == len(chosen.subjects)
    area = slices.lesion.flatten(1).sum(1)
    for i, subject in enumerate(chosen.subjects):
        rows = torch.from_numpy(np.flatnonzero(slices.subjects == subject))
        assert chosen.lesion[i].sum() == area[rows].max() > 0


def test_wrong_requests_are_refused_before_any_training(folders, tmp_path, capsys):
    ixi, atlas, flair = (str(folders[k]) for k in ("ixi", "atlas", "flair"))
    for words, said in (
        (["S1", "--test", atlas], "--train"),
        (["S1", "--train", ixi, "--test", ixi], "no lesion"),
        (["S2", "--train", ixi, "--test", flair], "one folder a contrast"),
        (["S2", "--test", flair, flair], "one folder a contrast"),
        (["S2", "--test", flair, "--set", "steps=5"], "denoiser.NAME"),
        (["S2", "--test", flair, "--set", "decoder.steps=5"], "decoder"),
        (["S2", "--test", flair, "--set", "denoiser.stepz=5"], "stepz"),
        (["S2", "--test", flair, "--methods", "dea"], "no such method: 'dea'"),
        (["S2", "--test", flair, "--methods", "intensity"], "among the rows already"),
        (["S2", "--test", flair, "--methods", "dae", "--recipe", "authors"], "has no recipe 'authors'"),
        (["S2", "--test", flair, "--methods", "dae", "--set", "family.steps=0"], "steps=0"),
        (["S2", "--test", flair, "--methods", "dae", "--set", "family.stepz=5"], "stepz"),
        (["S2", "--test", flair, "--set", "family.steps=5"], "no method"),
    ):
        assert main(["reproduce", *words, "--out", str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err.strip()
        assert said in message and "\n" not in message
    assert not (tmp_path / "out").exists()


def test_recipes_differ_where_paper_and_code_do():
    lite, paper, authors = (RECIPES[name] for name in ("lite", "paper", "authors"))
    assert (paper.denoiser.mask_loss, authors.denoiser.mask_loss, authors.denoiser.mask_weight) == (
        "bce",
        "mse",
        1e-3,
    )
    assert (paper.denoiser.learning_rate, authors.denoiser.learning_rate) == (5e-4, 4e-5)
    assert (paper.denoiser.epochs, authors.denoiser.epochs, authors.denoiser.warmup_epochs) == (300, 200, 10)
    assert (paper.denoiser.schedule, authors.denoiser.schedule) == ("constant", "cosine")
    assert paper.denoiser.batch_size == authors.denoiser.batch_size == 96
    assert (paper.denoiser.dropout, authors.denoiser.dropout, authors.denoiser.weight_decay) == (
        0.0,
        0.4,
        1e-4,
    )
    for recipe in (paper, authors):
        assert (recipe.denoiser.size, recipe.denoiser.brain_fraction, recipe.denoiser.brain_block) == (
            "L",
            0.9,
            2,
        )
        assert (recipe.spacing, recipe.slice_size, recipe.autoencoder.size) == (1.0, 256, "paper")
    assert (paper.detection.squared, paper.detection.gamma, paper.detection.reference) == (True, 0.2, "input")
    assert (authors.detection.squared, authors.detection.gamma, authors.detection.reference) == (
        False,
        0.25,
        "reconstruction",
    )
    assert authors.detection.eta == 0.5 and authors.detection.sigma == 5.0
    assert authors.denoiser.augmentation == "authors" and lite.denoiser.augmentation == "lite"
    assert lite.denoiser.size == lite.autoencoder.size == "nano"
