"""FLAIR-like, T2-like and T1ce-like slices from T1: the order of the tissues, the normalisation, the folder."""

import numpy as np
import pytest
from scipy import ndimage

from madad_lite.errors import ScanError
from madad_lite.scans.grid import Grid
from madad_lite.simulation.cohort import write_cohort
from madad_lite.simulation.recolour import recolour_folder, tissue_levels, to_flair, to_t1ce, to_t2
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.folder import Manifest, prepare_folder


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    """Normal simulated subjects in three contrasts, and slices of them."""
    root = tmp_path_factory.mktemp("recolour")
    cohort = write_cohort(
        root / "cohort", normal=3, patients=0, contrasts=("t1", "flair", "t2"), seed=4, progress=False
    )
    for contrast in ("t1", "flair", "t2"):
        prepare_folder(cohort, root / contrast, contrast=contrast, grid=Grid(), workers=1, progress=False)
    return root


def test_tissue_levels_are_those_of_the_contrast(normal):
    manifest = Manifest.load(normal / "t1")
    scan = manifest.scans()[0]
    image, brain = (np.asarray(manifest.array(scan, k)) for k in ("image", "brain"))
    grey, white = tissue_levels(image[brain].astype(np.float32) + 1)
    assert 0.6 < grey < 1 < white < 1.6


@pytest.mark.parametrize("contrast", ["flair", "t2"])
def test_recoloured_slices_look_like_the_contrast(normal, tmp_path, contrast):
    new = recolour_folder(normal / "t1", tmp_path / "new", contrast, progress=False)
    real, t1 = Manifest.load(normal / contrast), Manifest.load(normal / "t1")
    assert new.contrast == contrast and [s["subject"] for s in new.scans()] == [
        s["subject"] for s in t1.scans()
    ]
    for scan, own, source in zip(new.scans(), real.scans(), t1.scans()):
        image, brain = (np.asarray(new.array(scan, k)).astype(np.float32) for k in ("image", "brain"))
        inside = brain > 0
        assert (image[~inside] == -1).all() and image.min() >= -1 and image.max() <= 1
        assert abs(np.median(image[inside])) < 0.02  # the same normalisation as a prepared scan's
        simulated = np.asarray(real.array(own, "image")).astype(np.float32)
        before = np.asarray(t1.array(source, "image")).astype(np.float32)
        alike = [np.corrcoef(a[inside], simulated[inside])[0, 1] for a in (image, before)]
        assert alike[0] > alike[1] + 0.1  # nearer to the subject's own scan than its T1 is
    assert len(SliceDataset(tmp_path / "new", "train")) > 0


@pytest.mark.parametrize("recolour", [to_flair, to_t2, to_t1ce])
def test_levels_differ_between_subjects_and_repeat(normal, recolour):
    manifest = Manifest.load(normal / "t1")
    image, brain = (np.asarray(manifest.array(manifest.scans()[0], k)) for k in ("image", "brain"))
    a, b, c = (recolour(image, brain, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(a, b) and np.abs(a - c).mean() > 0.01


def test_tissues_have_the_order_of_t2(normal):
    """Of the T1 scan's own darkest, middle and brightest voxels: CSF above grey above white matter."""
    manifest = Manifest.load(normal / "t1")
    image, brain = (np.asarray(manifest.array(manifest.scans()[0], k)) for k in ("image", "brain"))
    inside = brain > 0
    new, v = to_t2(image, brain, np.random.default_rng(5))[inside], image[inside].astype(np.float32) + 1
    grey, white = tissue_levels(v)
    levels = [np.median(new[np.abs(v - at) < 0.05]) for at in (0.4 * grey, grey, white)]
    assert levels[0] > levels[1] + 0.3 and levels[1] > levels[2] + 0.1


def test_contrast_agent_shows_at_the_rim_and_in_fluid_and_keeps_the_order_of_t1(normal):
    manifest = Manifest.load(normal / "t1")
    image, brain = (np.asarray(manifest.array(manifest.scans()[0], k)) for k in ("image", "brain"))
    v, inside = image.astype(np.float32) + 1, brain > 0
    grey, white = tissue_levels(v[inside])
    depth, deep_bright = ndimage.distance_transform_edt(inside), []
    for seed in range(6):
        new = to_t1ce(image, brain, np.random.default_rng(seed)) + 1
        assert abs(np.median(new[inside]) - 1) < 0.05
        levels = [np.median(new[inside & (np.abs(v - at) < 0.05)]) for at in (0.4 * grey, grey, white)]
        assert levels[0] < levels[1] - 0.2 and levels[1] < levels[2]
        bright = inside & (new > v + 0.3) & (new > 1.35)
        assert 0.0005 < bright[inside].mean() < 0.05
        tissue = (depth > 5) & (ndimage.minimum_filter(v, 3) > 0.8 * grey)  # away from rim and fluid
        assert not (bright & tissue).any()
        deep_bright.append((bright & (depth > 10)).sum())
    assert max(deep_bright) > 0  # the choroid plexus, vessels at the base


def test_what_cannot_be_recoloured_is_refused(normal, tmp_path):
    with pytest.raises(ValueError, match="no contrast 'pd' .* flair, t2, t1ce"):
        recolour_folder(normal / "t1", tmp_path / "x", "pd")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ScanError, match="only t1"):
        recolour_folder(normal / "flair", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ScanError, match="not empty"):
        recolour_folder(normal / "t1", tmp_path / "full")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
