"""The quality benchmark: disjoint subjects, maps that are kept, and pages that show what was measured."""

import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import quality  # noqa: E402
import quality_page  # noqa: E402
import sets  # noqa: E402

from madad_lite.autoencoder import make_autoencoder  # noqa: E402
from madad_lite.denoiser import Denoiser  # noqa: E402
from madad_lite.diffusion import make_scheduler  # noqa: E402
from madad_lite.evaluation.compare import LabelledSlices  # noqa: E402
from madad_lite.pipeline import MadAdPipeline  # noqa: E402


def test_subjects_for_training_choosing_and_testing_are_disjoint():
    train, val, test = (set(sets.SPLITS["ixi"][k]) for k in ("train", "val", "test"))
    assert train and val and test
    assert not (train & val or train & test or val & test)


def test_maps_are_kept_for_the_same_weights_and_slices_only(tmp_path):
    weights, calls = tmp_path / "weights", []
    weights.mkdir()
    (weights / "config.json").write_text("{}")

    def method(pipe, images, brain, scans):
        calls.append(len(images))
        return images / 2

    def run(label="method", n=4, value=1.0):
        kept = quality.keeping(tmp_path / "maps", [weights], method, label)
        images = torch.full((n, 1, 8, 8), value)
        return kept(None, images, images > 0, np.array(["a"] * n))

    assert torch.equal(run(), run()) and calls == [4]
    run(label="another"), run(n=3), run(value=0.5)
    assert calls == [4, 4, 3, 4]
    (weights / "config.json").write_text('{"gamma": 0.1}')
    run()
    assert calls == [4, 4, 3, 4, 4]


def test_smoothing_goes_through_the_slices_of_a_scan_and_stays_in_the_brain():
    score = torch.zeros(6, 1, 4, 4)
    score[2] = 1
    brain = torch.ones(6, 1, 4, 4, dtype=torch.bool)
    brain[1, 0, 0, 0] = False
    run = quality.helped(lambda pipe, images, brain, scans: score.clone(), 0, 1.2, 0)
    result = run(None, None, brain, np.array(["a"] * 3 + ["b"] * 3))
    assert 0 < result[1, 0, 1, 1] < result[2, 0, 1, 1] < 1
    assert result[1, 0, 0, 0] == 0 and not result[3:].any()


def test_other_methods_are_weighed_by_intensity_where_the_weights_are(tmp_path):
    def settings(intensity_weight):
        pipe = MadAdPipeline(
            make_autoencoder("nano"),
            Denoiser.of_size("nano"),
            make_scheduler(),
            "flair",
            intensity_weight=intensity_weight,
        )
        return pipe, quality.candidates(pipe, tmp_path, None, False, tmp_path / "maps")

    _, without = settings(0.0)
    pipe, found = settings(2.0)
    assert "MAD-AD, not weighed by intensity" in found and "MAD-AD, not weighed by intensity" not in without
    assert not any("weight" in s for s in [*without["reconstruction error"], *found["intensity"]])
    images, scans = torch.rand(2, 1, 32, 32) * 2 - 1, np.array(["a", "a"])
    plain, weighed = (
        found["reconstruction error"][s](pipe, images, images > -2, scans) for s in ("", "intensity weight 2")
    )
    torch.testing.assert_close(weighed, plain * (1 + 2 * images.clamp(0, 1)) / 3)


def test_patients_and_others_are_told_apart_by_their_lesions():
    lesion = torch.zeros(4, 1, 4, 4, dtype=torch.bool)
    lesion[1, 0, 0] = True
    brain = torch.ones_like(lesion)
    names = np.array(["sick", "sick", "well", "well"])
    slices = LabelledSlices(torch.zeros(4, 1, 4, 4), brain, lesion, names, names, 2.0)
    sick, well = quality.patients_only(slices)
    assert set(sick.subjects) == {"sick"} and len(sick.image) == 2 and set(well.subjects) == {"well"}


def test_the_summary_marks_the_highest_and_what_cannot_be_told_apart():
    own, other, near = (
        {"pooled_max_dice": 0.75},
        {"pooled_max_dice": 0.8, "mad_ad_minus_this": [-0.1, -0.02]},
        {"pooled_max_dice": 0.7, "mad_ad_minus_this": [-0.01, 0.1]},
    )
    sets = {"ms_t1": {"MAD-AD": own, "far": other, "near": near}, "cohort_t1": {"MAD-AD": own, "near": near}}
    table = quality_page.summary(sets)
    rows = {
        cells[1].strip(): [c.strip() for c in cells[2:4]]
        for cells in (line.split("|") for line in table.splitlines()[2:])
    }
    assert rows == {
        "MAD-AD": ["**0.750**", "0.750"],
        "far": ["-", "**0.800**"],
        "near": ["0.700 ≈", "0.700 ≈"],
    }
    assert list(rows) == ["MAD-AD", "far", "near"]  # in the order of the set that has most of them


def test_the_results_page_shows_the_benchmarks_table():
    table = (ROOT / "benchmarks" / "QUALITY.md").read_text().split("\n|", 1)[1].split("\n\n")[0]
    assert "|" + table in (ROOT / "docs" / "results.md").read_text()


def test_one_of_so_many_validation_patients_two_and_two(monkeypatch):
    names = np.array([f"{i}" for i in range(7)])
    image = torch.zeros(7, 1, 8, 8)
    lesion = torch.zeros(7, 1, 8, 8, dtype=torch.bool)
    lesion[:6, 0, 0, 0] = True  # the last one is healthy
    s = LabelledSlices(image, torch.ones_like(lesion), lesion, names, names, 2.0)
    monkeypatch.setattr(quality, "load_split", lambda folder, split: s)
    assert list(quality.validation_patients(Path("any"), 2).subjects) == ["0", "1", "4", "5"]
    assert list(quality.validation_patients(Path("any"), 1).subjects) == list("012345")
