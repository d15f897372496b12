"""Prepared folders scan by scan: the same numbers as with all slices in memory, and volumes that stay apart."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from test_metrics import POOLED, flat
from tiny_models import tiny  # noqa: F401

from madad_lite.autoencoder import make_autoencoder
from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import make_scheduler
from madad_lite.errors import ScanError
from madad_lite.evaluation import metrics
from madad_lite.evaluation.compare import (
    Split,
    evaluate_methods,
    evaluate_scans,
    evaluate_weights,
    load_split,
    methods_of,
)
from madad_lite.pipeline import MadAdPipeline
from madad_lite.slices.folder import Manifest

STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe(tiny):  # noqa: F811
    """Untrained, random in the reverse process, with slices that decide together."""
    torch.manual_seed(0)
    parts = make_autoencoder("tiny"), Denoiser.of_size("tiny"), make_scheduler()
    return MadAdPipeline(*parts, neighbour_sigma=4.0, mask_threshold=0.45)


def test_a_split_is_read_scan_by_scan(prepared_cohort, tmp_path):
    manifest, second = Manifest.load(prepared_cohort), tmp_path / "second"
    shutil.copytree(prepared_cohort, second)
    entries, split = manifest.scans("test"), Split([prepared_cohort, second], "test")
    assert len(split) == 2 * len(entries)  # a subject's second scan is a volume of its own
    for entry, s in zip(entries * 2, split, strict=True):
        assert set(s.scans) == {entry["scan_id"]} and set(s.subjects) == {entry["subject"]}
        image = torch.from_numpy(np.array(manifest.array(entry, "image"))).float()[:, None]
        assert torch.equal(s.image, image) and s.spacing == pytest.approx(4.0)
        assert s.lesion.flatten(1).sum(1).tolist() == (entry["lesion_pixels"] or [0] * entry["n_slices"])


def test_the_largest_slices_come_in_small_batches_without_reading_the_others(prepared_cohort, monkeypatch):
    whole = load_split(prepared_cohort, "test")
    area = whole.lesion.flatten(1).sum(1)
    expected = {x: area[torch.from_numpy(whole.subjects == x)].max() for x in set(whole.subjects)}
    split = Split(prepared_cohort, "test", largest=True)
    read = []
    monkeypatch.setattr(split, "dataset", Watched(split.dataset, read))
    found = {x: n for s in split for x, n in zip(s.subjects, s.lesion.flatten(1).sum(1))}
    assert found == {x: n for x, n in expected.items() if n} and len(read) == len(found) > 0


class Watched:
    """A dataset that writes down which items are read."""

    def __init__(self, dataset, read: list):
        self.dataset, self.read = dataset, read
        self.subjects, self.scan_ids = dataset.subjects, dataset.scan_ids

    def __getitem__(self, i):
        self.read.append(i)
        return self.dataset[i]


def test_an_empty_split_and_one_without_lesion_are_refused(pipe, prepared_cohort, tmp_path):
    content = Manifest.load(prepared_cohort).to_dict()
    for keep, error, said in (
        ("normal", ValueError, "no lesion in the test"),
        ("no", ScanError, "no slices"),
    ):
        folder = tmp_path / keep
        folder.mkdir()
        (folder / "scans").symlink_to(prepared_cohort / "scans")
        scans = [s | {"split": "test"} for s in content["scans"] if s["group"] == keep]
        scans += [s | {"split": "val"} for s in content["scans"] if s["group"] == "patient"]
        Manifest(folder, content | {"scans": scans}).save()
        with pytest.raises(error, match=said):
            evaluate_weights(pipe, folder, progress=False)


def test_evaluating_scan_by_scan_gives_what_evaluating_in_memory_gives(pipe, prepared_cohort):
    seen = []

    def methods():
        found = methods_of(pipe, seed=3, **STEPS)
        return {name: partial(watched, method) for name, method in found.items()}

    def watched(method, s):
        seen.append(len(s.image))
        return method(s)

    splits = {k: Split(prepared_cohort, k) for k in ("val", "test")}
    streamed = evaluate_scans(methods, splits, seed=1, progress=False)
    assert max(seen) == max(s["n_slices"] for s in Manifest.load(prepared_cohort).scans())

    whole = {k: load_split(prepared_cohort, k) for k in splits}
    scores = {}
    for k, s in whole.items():
        for name, method in methods_of(pipe, seed=3, **STEPS).items():
            scores.setdefault(name, {})[k] = method(s)  # all scans in one call, each a volume
    exact = evaluate_methods(scores, whole, seed=1)
    assert streamed.keys() == exact.keys() == {"MAD-AD", "intensity", "reconstruction"}
    for name, result in streamed.items():
        assert result["threshold"] == pytest.approx(exact[name]["threshold"], abs=2e-3)
        # the same threshold for both, so that what is counted at it can be compared
        test, about = whole["test"], {"threshold": result["threshold"], "seed": 1}
        about |= {"brain": test.brain, "subjects": test.subjects, "spacing": test.spacing}
        expected = flat(metrics.evaluate(scores[name]["test"], test.lesion, **about))
        found = flat(result["test"])
        assert found.keys() == expected.keys() and ".by_size.small.n" in found and ".ap_interval.0" in found
        for key, value in found.items():
            if "best_threshold" in key:
                continue
            pooled = any(f".{kind}" in key for kind in POOLED)
            binned = 2e-4 if "by_size" in key else 1e-4  # an untrained network's scores lie close together
            error = 5e-3 if pooled and "interval" in key else binned if pooled else 1e-6
            assert value == pytest.approx(expected[key], abs=error), (name, key)
        for kind in POOLED:
            assert result["val"][kind] == pytest.approx(exact[name]["val"][kind], abs=1e-4)
