"""CSF, grey and white matter at fixed places: what changes in a scan, who is refused, and who has to know of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import tiny  # noqa: F401 (a fixture)

from madad_lite.autoencoder import make_autoencoder
from madad_lite.cli import main
from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import make_scheduler
from madad_lite.errors import Refused, ScanError
from madad_lite.evaluation import compare
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.grid import Geometry, Grid
from madad_lite.scans.nifti import load_volume, save_nifti
from madad_lite.scans.prepare import prepare_volume
from madad_lite.scans.tissues import PLACES, normalised, tissue_medians
from madad_lite.simulation.cohort import simulate_subject
from madad_lite.slices import folder
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.folder import prepare_folder

GRID = Grid(spacing=4.0, size=48)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """{contrast: file} of a healthy subject, on another scanner than usual: bright is brighter, dark darker."""
    where = tmp_path_factory.mktemp("tissues")
    images = simulate_subject(3, contrasts=("t1", "flair"), spacing=4.0).images
    files = {contrast: where / f"person_{contrast}.nii.gz" for contrast in images}
    for contrast, image in images.items():
        data = np.asarray(image.dataobj, np.float32)
        save_nifti(type(image)((data / data.max()) ** 1.5 * 500, image.affine), files[contrast])
    return files


def slices(file, **options):
    return prepare_volume(file, grid=GRID, register=False, **options)


@pytest.mark.parametrize("contrast", ["t1", "flair"])
def test_the_tissues_come_to_their_places_and_back(scans, contrast):
    plain = slices(scans[contrast])
    scan = slices(scans[contrast], normalise="tissue", contrast=contrast)
    medians, before = tissue_medians(scan), tissue_medians(plain)
    for tissues, place in PLACES[contrast].items():
        assert abs(np.mean([medians[t] for t in tissues]) - place) < 0.02
    assert abs(before["csf"] - PLACES[contrast]["csf",]) > 0.05
    assert np.array_equal(scan.brain, plain.brain) and (scan.image[~scan.brain] == -1).all()
    assert scan.image.min() >= -1 and scan.image.max() <= 1
    order = np.argsort(plain.image[plain.brain], kind="stable")
    assert (np.diff(scan.image[plain.brain][order]) >= 0).all()  # darker stays darker
    geometry = Geometry.from_dict(json.loads(json.dumps(scan.geometry.to_dict())))
    assert geometry.levels == scan.geometry.levels
    below = (scan.image < 1) & scan.brain  # what is cut off at the top does not come back
    back, own = geometry.to_intensity(scan.image), plain.geometry.to_intensity(plain.image)
    assert np.abs(back - own)[below].max() < 1e-3 * own.max()


def test_who_is_refused(scans):
    flair = slices(scans["flair"])
    with pytest.raises(ScanError, match="mine: its tissues do not lie in the order of T1 .*normalise median"):
        normalised(flair, "tissue", "t1", "mine")
    top = replace(flair.geometry, slice_index=flair.geometry.slice_index[-2:])
    few = replace(flair, image=flair.image[-2:], brain=flair.brain[-2:], geometry=top)
    with pytest.raises(ScanError, match="too little of CSF"):
        normalised(few, "tissue", "flair", "mine")
    for how, contrast in (("tissue", "t2"), ("mean", "t1"), (None, "t1"), (["tissue"], "t1")):
        with pytest.raises(Refused, match="^normalise"):
            slices(scans["t1"], normalise=how, contrast=contrast)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{normalisation: untrained weights}."""
    where, parts = tmp_path_factory.mktemp("models"), (make_autoencoder("tiny"), Denoiser.of_size("tiny"))
    for how in ("median", "tissue"):
        pipe = MadAdPipeline(
            *parts, make_scheduler(), grid=GRID.to_dict(), normalise=how, decision_threshold=0.4
        )
        pipe.save_pretrained(where / how)
    return {how: where / how for how in ("median", "tissue")}


def test_detection_scales_as_the_weights_were_trained_unless_told_otherwise(scans, models, tmp_path):
    brief = ["--steps", "1", "--register", "no"]
    levels = {}
    for own, told in (("median", None), ("tissue", None), ("median", "tissue"), ("tissue", "median")):
        out = tmp_path / f"{own}-{told}"
        words = ["detect", str(scans["t1"]), "--out", str(out), "--weights", str(models[own]), *brief]
        assert main(words + (["--normalise", told] if told else [])) == 0
        record = json.loads((out / "person_t1.json").read_text())
        assert record["normalise"] == (told or own) and record["contrast_seen"] == "t1"
        healed = np.asarray(load_volume(out / "person_t1_healed.nii.gz").dataobj)
        levels[own, told] = healed
    pipe = MadAdPipeline.from_pretrained(models["tissue"])
    assert pipe.prepare(scans["t1"], register=False).geometry.levels is not None
    assert pipe.prepare(scans["t1"], register=False, normalise="median").geometry.levels is None
    # the weights are the same, so that only the scaling decides
    assert np.array_equal(levels["median", "tissue"], levels["tissue", None])
    assert not np.array_equal(levels["median", None], levels["tissue", None])


def test_no_results_of_another_scaling_are_resumed(scans, models, tmp_path, capsys):
    words = ["detect", str(scans["t1"]), "--out", str(tmp_path), "--weights", str(models["median"])]
    words += ["--steps", "1", "--register", "no"]
    assert main(words) == 0
    assert main([*words, "--resume", "--normalise", "tissue"]) == 1
    assert "normalise: not given, now: 'tissue'" in capsys.readouterr().err


def test_weights_for_a_contrast_without_places_are_refused():
    parts = make_autoencoder("tiny"), Denoiser.of_size("tiny"), make_scheduler()
    with pytest.raises(Refused, match="not for t2"):
        MadAdPipeline(*parts, contrast="t2", normalise="tissue")


def test_prepared_folders_know_it_and_pass_it_on(cohort, prepared_cohort, models, tmp_path):
    options = dict(grid=GRID, workers=1, progress=False)
    manifest = prepare_folder(cohort, tmp_path / "tissue", normalise="tissue", **options)
    assert manifest.normalise == "tissue" and not manifest.skipped
    assert all(s["geometry"]["levels"] for s in manifest.scans())
    again = folder.Manifest.load(tmp_path / "tissue")  # passes the reader's checks
    assert again.to_dict() == manifest.to_dict()
    with pytest.raises(ScanError, match="was prepared with normalise='tissue', now it is 'median'"):
        prepare_folder(cohort, tmp_path / "tissue", **options)
    with pytest.raises(ScanError, match="normalise median and tissue; use one for all"):
        SliceDataset([prepared_cohort, tmp_path / "tissue"])
    with pytest.raises(ValueError, match="prepared with --normalise tissue, and the weights want median"):
        compare.evaluate_weights(MadAdPipeline.from_pretrained(models["median"]), tmp_path / "tissue")
    words = [
        "--autoencoder",
        str(models["median"] / "autoencoder"),
        "--denoiser",
        str(models["median"] / "denoiser"),
    ]
    words += ["--data", str(tmp_path / "tissue"), "--out", str(tmp_path / "model")]
    assert main(["assemble", *words]) == 0
    assert MadAdPipeline.from_pretrained(tmp_path / "model").config.normalise == "tissue"


def test_folders_of_earlier_versions_were_scaled_by_the_median(prepared_cohort):
    content = folder.Manifest.load(prepared_cohort).to_dict()
    del content["settings"]["normalise"]
    assert folder.Manifest(prepared_cohort, content).normalise == "median"
