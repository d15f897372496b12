"""The embedded cohort: repeatable, anatomical, with exact lesions that look as lesions do."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from madad_lite.errors import ScanError
from madad_lite.scans.prepare import mask_overlap
from madad_lite.simulation.cohort import implant_lesion, simulate_subject, write_cohort

COARSE = dict(spacing=4.0)


def arrays(subject, contrast):
    data = np.asarray(subject.images[contrast].dataobj, dtype=float)
    return data, np.asarray(subject.brain.dataobj) > 0, np.asarray(subject.lesion.dataobj) > 0


def surroundings(lesion, brain):
    return ndimage.binary_dilation(lesion, iterations=3) & brain & ~ndimage.binary_dilation(lesion)


def test_same_seed_same_bytes_and_other_seed_other_subject(tmp_path):
    one, two = (
        write_cohort(tmp_path / n, normal=1, patients=1, seed=3, progress=False, **COARSE) for n in "ab"
    )
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert len(files) == 7 and all((one / f).read_bytes() == (two / f).read_bytes() for f in files)
    a, b = (simulate_subject(seed, **COARSE) for seed in (1, 2))
    assert not np.array_equal(a.images["t1"].dataobj, b.images["t1"].dataobj)
    assert not np.array_equal(a.brain.dataobj, b.brain.dataobj)  # shape and size differ too


def test_cohort_is_bids_like_and_says_that_it_is_simulated(tmp_path):
    folder = write_cohort(
        tmp_path / "c", normal=1, patients=2, contrasts=("t1", "flair", "t1ce"), progress=False, **COARSE
    )
    rows = [line.split("\t") for line in (folder / "participants.tsv").read_text().splitlines()]
    assert rows[0][:4] == ["participant_id", "group", "lesion", "volume_ml"]
    assert [r[1] for r in rows[1:]] == ["normal", "patient", "patient"]
    names = {p.name for p in (folder / "sub-0002" / "anat").iterdir()}
    endings = ("T1w", "FLAIR", "ce-gadolinium_T1w", "desc-brain_mask", "label-lesion_mask")
    assert names == {f"sub-0002_{e}.nii.gz" for e in endings}
    assert not list((folder / "sub-0001").rglob("*lesion*"))
    assert "simulated" in json.dumps(json.loads((folder / "dataset_description.json").read_text())).lower()
    mask = nib.load(folder / "sub-0002" / "anat" / "sub-0002_label-lesion_mask.nii.gz")
    assert np.asarray(mask.dataobj).sum() * 64 / 1000 == pytest.approx(float(rows[2][3]), abs=1e-3)


def test_nothing_is_overwritten(tmp_path):
    folder = write_cohort(tmp_path / "c", normal=1, patients=0, progress=False, **COARSE)
    with pytest.raises(ScanError, match="not empty"):
        write_cohort(folder, normal=1, patients=0, progress=False, **COARSE)
    write_cohort(folder, normal=2, patients=0, force=True, progress=False, **COARSE)
    assert (folder / "sub-0002").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ScanError):
        write_cohort(tmp_path / "mine", force=True, progress=False, **COARSE)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_it_is_a_brain():
    subject = simulate_subject(1, contrasts=("t1", "t2", "flair"), **COARSE)
    brain = np.asarray(subject.brain.dataobj) > 0
    assert mask_overlap(brain, subject.brain.affine, np.eye(4)) > 0.8
    assert 1200 < brain.sum() * 64 / 1000 < 2400  # mL
    for contrast, image in subject.images.items():
        data = np.asarray(image.dataobj)
        assert (data[~brain] == 0).all() and (data[brain] > 0).all(), contrast


@pytest.mark.parametrize(
    "contrast, order",
    [("t1", ("csf", "grey", "white")), ("t2", ("white", "grey", "csf")), ("flair", ("csf", "white", "grey"))],
)
def test_tissues_have_the_contrasts_order(contrast, order):
    from madad_lite.scans.registration import template

    subject = simulate_subject(4, contrasts=(contrast,), spacing=2.0)
    data, brain, _ = arrays(subject, contrast)
    # in the middle of the template's tissues, which small deformations do not leave
    index = np.stack(np.meshgrid(*map(np.arange, data.shape), indexing="ij"), -1)
    voxel = nib.affines.apply_affine(np.linalg.inv(template("gm").affine) @ subject.brain.affine, index)
    sure = {}
    for name, kind in (("grey", "gm"), ("white", "wm")):
        share = ndimage.gaussian_filter(np.asarray(template(kind).dataobj) / 255, 2)
        sure[name] = ndimage.map_coordinates(share, voxel.reshape(-1, 3).T, order=1).reshape(data.shape)
    deep = ndimage.distance_transform_edt(brain) > 12
    levels = {
        "white": np.median(data[sure["white"] > 0.9]),
        "grey": np.median(data[(sure["grey"] > 0.75) & brain]),
        "csf": np.percentile(data[deep], 0.5 if contrast != "t2" else 99.5),  # the ventricles' extreme
    }
    assert levels[order[0]] < levels[order[1]] < levels[order[2]]


@pytest.mark.parametrize(
    "kind, contrast, sign",
    [
        ("stroke", "t1", -1),
        ("glioma", "t1", -1),
        ("glioma", "flair", 1),
        ("glioma", "t2", 1),
        ("wml", "t1", -1),
        ("wml", "flair", 1),
    ],
)
def test_lesions_are_darker_or_brighter_than_their_surroundings(kind, contrast, sign):
    data, brain, lesion = arrays(
        simulate_subject(7, contrasts=(contrast,), lesion=kind, spacing=3.0, volume_ml=20.0), contrast
    )
    inside, around = np.median(data[lesion]), np.median(data[surroundings(lesion, brain)])
    assert sign * (inside - around) > 0.08 * around


def test_a_glioma_enhances_only_with_contrast_agent():
    subject = simulate_subject(8, contrasts=("t1", "t1ce"), lesion="glioma", volume_ml=40.0, spacing=2.0)
    bright = {}
    for contrast in ("t1", "t1ce"):
        data, brain, lesion = arrays(subject, contrast)
        bright[contrast] = np.percentile(data[lesion], 97) / np.median(data[brain & ~lesion])
    assert bright["t1ce"] > bright["t1"] + 0.2


@pytest.mark.parametrize("kind", ["stroke", "glioma", "wml"])
@pytest.mark.parametrize("volume", [1.0, 10.0, 40.0])
def test_volume_is_the_one_asked_for_and_lies_in_the_brain(kind, volume):
    _, brain, lesion = arrays(simulate_subject(9, lesion=kind, volume_ml=volume), "t1")
    assert lesion.sum() * 8 / 1000 == pytest.approx(volume, rel=0.12)
    assert not (lesion & ~brain).any()


def test_volumes_are_spread_over_the_fields_range():
    from madad_lite.simulation.lesions import draw_volume

    volumes = np.log([draw_volume("stroke", np.random.default_rng(i)) for i in range(400)])
    assert volumes.min() > np.log(0.1) and volumes.max() < np.log(60)
    assert abs(np.mean(volumes) - np.mean(np.log([0.1, 60]))) < 0.3  # log-uniform


def test_mass_effect_displaces_tissue():
    """Outside the tumour too, the patient differs from the same subject without the tumour; a stroke
    displaces nothing.
    """
    changed = {}
    for kind in ("glioma", "stroke"):
        subject = simulate_subject(10, lesion=kind, volume_ml=40.0, **COARSE)
        healthy = simulate_subject(10, **COARSE)
        masks = [np.asarray(s.brain.dataobj) > 0 for s in (subject, healthy)]
        near = ndimage.binary_dilation(np.asarray(subject.lesion.dataobj) > 0, iterations=4)
        changed[kind] = (masks[0] ^ masks[1]).sum() + 0 * near.sum()
    assert changed["stroke"] == 0 and changed["glioma"] > 0


def test_lesion_can_be_implanted_into_a_scans_own_anatomy():
    host = simulate_subject(11, spacing=3.0)
    image, lesion = implant_lesion(host.images["t1"], host.brain, seed=1, volume_ml=15.0)
    before, after = np.asarray(host.images["t1"].dataobj, float), np.asarray(image.dataobj)
    mask, brain = np.asarray(lesion.dataobj) > 0, np.asarray(host.brain.dataobj) > 0
    assert np.array_equal(before[~mask], after[~mask]) and np.array_equal(image.affine, host.brain.affine)
    assert mask.sum() * 27 / 1000 == pytest.approx(15.0, rel=0.05) and not (mask & ~brain).any()
    assert np.median(after[mask]) < 0.7 * np.median(before[mask])


def test_an_implanted_glioma_is_bright_only_with_contrast_agent():
    host = simulate_subject(3, **COARSE)
    plain, bright = (
        implant_lesion(host.images["t1"], host.brain, 1, "glioma", 30.0, enhancing=e) for e in (False, True)
    )
    lesion = np.asarray(plain[1].dataobj) > 0
    assert np.array_equal(lesion, np.asarray(bright[1].dataobj) > 0)
    without, with_agent = (np.asarray(image.dataobj)[lesion] for image, _ in (plain, bright))
    assert np.percentile(with_agent, 90) > 1.3 * np.percentile(without, 90)
    assert np.array_equal(np.asarray(plain[0].dataobj)[~lesion], np.asarray(bright[0].dataobj)[~lesion])


def test_what_does_not_exist_is_refused():
    for wrong in (dict(contrasts=("pd",)), dict(lesion="cyst")):
        with pytest.raises(ValueError, match="choose from"):
            simulate_subject(1, **wrong)
