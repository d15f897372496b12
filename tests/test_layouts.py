"""Which scans a folder holds, by their names, and who gets into which split."""

import json
import os

import pytest

from madad_lite.errors import ScanError
from madad_lite.scans.find import contrast_of, find_scans, is_mask
from madad_lite.slices.splits import SPLITS, split_by_count, split_subjects


def touch(folder, *names):
    """Empty files: finding scans goes by names only."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


# ---------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("files", "subjects", "warned"),
    [
        (["P01/scan", "P02/scan", "P03/scan"], {"P01", "P02", "P03"}, False),
        (
            ["P01/visit1_T1", "P01/visit2_T1", "P02/visit1_T1", "P02/visit3_T1", "P03/visit2_T1"],
            {"P01", "P02", "P03"},
            False,
        ),
        (["a/P01", "a/P02", "a/P03", "b/P01", "b/P02", "b/P03"], {"P01", "P02", "P03"}, True),
        (["t1/P01", "flair/P01"], {"P01"}, False),
        (["P01_T1", "P02_T1"], {"P01", "P02"}, False),
        (["x/sub-1_T1", "y/sub-1_T1"], {"sub-1"}, False),
    ],
)
def test_people_by_their_folders_where_names_repeat(files, subjects, warned, tmp_path, caplog):
    for name in files:
        path = tmp_path / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert {scan.subject for scan in find_scans(tmp_path, "t1", "plain")} == subjects
    assert bool(caplog.messages) == warned


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("IXI002-Guys-0828-T1", "t1"),
        ("sub-0001_ce-gadolinium_T1w", "t1ce"),
        ("BraTS2021_00000_t1ce", "t1ce"),
        ("pat0001_t1c", "t1ce"),
        ("patient19_t1post", "t1ce"),
        ("T1w", "t1"),
        ("t1gd", "t1ce"),
        ("x_t1_ce", "t1ce"),
        ("T1_post_contrast", "t1ce"),
        ("T1_KM", "t1ce"),
        ("T1_no_contrast", "t1"),
        ("post_op_T1", "t1"),
        ("T1_postop", "t1"),
        ("sub-CE01_T1w", "t1"),
        ("sub-km_T1w", "t1"),
        ("KM01_t1", "t1"),
        ("sub-1_ses-post_T1w", "t1"),
        ("t1_posterior_fossa", "t1"),
        ("sub-1_ce-none_T1w", "t1"),
        ("T1_pre_contrast", "t1"),
        ("T1_noncontrast", "t1"),
        ("AX_T1_POST", "t1ce"),
        ("T1_axial_postGd", "t1ce"),
        ("T1_MPRAGE_C+", "t1ce"),
        ("sag_T1+C", "t1ce"),
        ("t1gad", "t1ce"),
        ("mprage_gd", "t1ce"),
        ("sag_mprage", "t1"),
        ("sub-1_FLAIR", "flair"),
        ("x_T2w", "t2"),
        ("BRATS_001", None),
        ("BraTS-GLI-00000-000-t2f", "flair"),
    ],
)
def test_contrast_from_name(name, contrast):
    assert contrast_of(name) == contrast


def test_ixi(tmp_path):
    touch(
        tmp_path, "IXI002-Guys-0828-T1.nii.gz", "IXI012-HH-1211_T1_brain.nii.gz", "IXI002-Guys-0828-T2.nii.gz"
    )
    scans = find_scans(tmp_path)
    assert [(s.scan_id, s.subject, s.group, s.lesion) for s in scans] == [
        ("IXI002-Guys-0828-T1", "IXI002", "normal", None),
        ("IXI012-HH-1211_T1_brain", "IXI012", "normal", None),
    ]
    assert [s.scan_id for s in find_scans(tmp_path, "t2")] == ["IXI002-Guys-0828-T2"]


def test_atlas(tmp_path):
    for subject in ("sub-r001s001", "sub-r001s002"):
        stem = f"{subject}_ses-1_space-MNI152NLin2009aSym"
        names = f"{stem}_T1w.nii.gz", f"{stem}_label-L_desc-T1lesion_mask.nii.gz"
        touch(tmp_path / "Training/R001" / subject / "ses-1/anat", *names)
    touch(
        tmp_path,
        "Testing/R001/sub-r099s001/ses-1/anat/sub-r099s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz",
    )
    scans = find_scans(tmp_path)
    assert [(s.subject, s.group, s.lesion is not None) for s in scans] == [
        ("sub-r001s001", "patient", True),
        ("sub-r001s002", "patient", True),
        ("sub-r099s001", "patient", False),
    ]
    assert (
        scans[0].lesion.name
        == "sub-r001s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz"
    )
    assert scans[0].brain is None


def test_bids_masks_stay_in_their_session(tmp_path):
    for ses in ("ses-1", "ses-2"):
        touch(tmp_path, f"sub-1/anat/sub-1_{ses}_T1w.nii.gz")
    touch(
        tmp_path, "sub-1/anat/sub-1_ses-2_label-lesion_mask.nii.gz", "sub-1/anat/sub-1_desc-brain_mask.nii.gz"
    )
    first, second = find_scans(tmp_path)
    assert first.lesion is None and second.lesion.name == "sub-1_ses-2_label-lesion_mask.nii.gz"
    assert first.brain == second.brain and first.subject == second.subject == "sub-1"


def test_brats(tmp_path):
    names = [f"BraTS2021_00000/BraTS2021_00000_{c}.nii.gz" for c in ("t1", "t1ce", "t2", "flair", "seg")]
    touch(tmp_path, *names)
    for contrast, ending in (("t1", "t1"), ("t1ce", "t1ce"), ("t2", "t2"), ("flair", "flair")):
        (scan,) = find_scans(tmp_path, contrast)
        assert scan.image.name == f"BraTS2021_00000_{ending}.nii.gz"
        assert (scan.subject, scan.group) == ("BraTS2021_00000", "patient")
        assert scan.lesion.name == "BraTS2021_00000_seg.nii.gz"


def test_brats_visits_of_one_person(tmp_path):
    for visit in ("000", "001"):
        touch(
            tmp_path,
            *(f"BraTS-GLI-00005-{visit}/BraTS-GLI-00005-{visit}-{c}.nii.gz" for c in ("t1n", "t1c", "seg")),
        )
    scans = find_scans(tmp_path)
    assert [s.subject for s in scans] == ["BraTS-GLI-00005"] * 2 and all(s.lesion for s in scans)
    assert find_scans(tmp_path, "t1ce")[0].image.name == "BraTS-GLI-00005-000-t1c.nii.gz"


def test_glioma_and_ms(tmp_path):
    visit = "brats_2013_pat0001_1"
    touch(tmp_path / "glioma" / visit, *(f"{visit}_{c}.nii.gz" for c in ("flair", "t1c", "seg")))
    touch(
        tmp_path / "ms/patient07", *(f"patient07_{c}.nii.gz" for c in ("t1", "t1post", "t2", "flair", "seg"))
    )
    (glioma,), (ms,) = find_scans(tmp_path / "glioma", "flair"), find_scans(tmp_path / "ms", "t1ce")
    assert (glioma.subject, glioma.lesion.name) == ("brats_2013_pat0001", "brats_2013_pat0001_1_seg.nii.gz")
    assert (ms.subject, ms.image.name) == ("patient07", "patient07_t1post.nii.gz")
    assert ms.lesion.name == "patient07_seg.nii.gz"
    with pytest.raises(ScanError, match="no t1 scan in the layout 'glioma'; there is: flair, t1ce"):
        find_scans(tmp_path / "glioma", "t1")


def test_msd(tmp_path):
    touch(tmp_path, "imagesTr/BRATS_001.nii.gz", "imagesTr/._BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz")
    touch(tmp_path, "imagesTs/BRATS_009.nii.gz")
    described = {
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "training": [{"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    for channel, contrast in enumerate(("flair", "t1", "t1ce", "t2")):
        (scan,) = find_scans(tmp_path, contrast)
        assert (scan.channel, scan.image.name, scan.lesion.parent.name) == (
            channel,
            "BRATS_001.nii.gz",
            "labelsTr",
        )
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ScanError, match="dataset.json: does not describe"):
        find_scans(tmp_path)


def test_plain(tmp_path):
    touch(tmp_path, "anna.nii.gz", "anna_brain_mask.nii.gz", "deep/T1.nii.gz")
    touch(tmp_path, "bert_T1.nii", "bert_FLAIR.nii", "bert_T1_lesion.nii")
    scans = {s.subject: s for s in find_scans(tmp_path)}
    assert set(scans) == {"anna", "bert", "deep"}
    assert scans["anna"].brain.name == "anna_brain_mask.nii.gz" and scans["anna"].group == "normal"
    assert scans["bert"].lesion.name == "bert_T1_lesion.nii" and scans["bert"].group == "patient"


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("x_segmentation.nii.gz", True),
        ("x_seg.NII.GZ", True),
        ("BraTS-GLI-00005-000-seg.nii.gz", True),
        ("sub-1_label-L_desc-T1lesion_mask.nii.gz", True),
        ("sub-1_space-T1w_dseg.nii", True),
        ("x_T1_lesion.nii", True),
        ("x_labels.nii.gz", True),
        ("brainmask.nii.gz", True),
        ("mask.nii", True),
        ("x_roi.nii.gz", True),
        ("x_nolesion.nii.gz", False),
        ("segmented_T1.nii.gz", False),
        ("Elroi.nii.gz", False),
        ("sub-1_T1w.nii.gz", False),
    ],
)
def test_masks_by_name(name, mask, tmp_path):
    """Also where no scan of that name lies beside them."""
    assert is_mask(tmp_path / name) == mask
    touch(tmp_path, name, "other.nii.gz")
    assert [s.image.name for s in find_scans(tmp_path, layout="plain")] == sorted(
        ["other.nii.gz"] + [name] * (not mask)
    )


def test_capital_endings(tmp_path):
    touch(
        tmp_path, "a/anna_T1.NII.GZ", "a/anna_T1_brain_mask.NII.GZ", "a/bert_T1.NII", "a/bert_T1_seg.nii.gz"
    )
    anna, bert = find_scans(tmp_path / "a")
    assert anna.brain.name == "anna_T1_brain_mask.NII.GZ" and bert.lesion.name == "bert_T1_seg.nii.gz"
    touch(tmp_path, "p07/p07_t1.NII.GZ", "p07/p07_seg.NII.GZ")
    (scan,) = find_scans(tmp_path / "p07", layout="ms")
    assert scan.lesion.name == "p07_seg.NII.GZ"


def test_bids_masks_say_what_they_are(tmp_path):
    """After the subject's name, which may say anything."""
    touch(tmp_path, *(f"sub-brain1/anat/sub-brain1_{e}.nii.gz" for e in ("T1w", "label-lesion_mask", "dseg")))
    touch(
        tmp_path,
        *(f"sub-2/anat/sub-2_{e}.nii.gz" for e in ("T1w", "space-T1w_desc-brain_mask", "label-GM_mask")),
    )
    one, two = sorted(find_scans(tmp_path), key=lambda s: s.subject, reverse=True)
    assert (one.brain, one.lesion.name) == (None, "sub-brain1_label-lesion_mask.nii.gz")
    assert (two.brain.name, two.lesion) == ("sub-2_space-T1w_desc-brain_mask.nii.gz", None)


def test_a_name_that_is_no_utf8_stops_nothing(tmp_path):
    touch(tmp_path, "a_T1.nii.gz", os.fsdecode(b"b\xff_T1.nii.gz"))
    scans = find_scans(tmp_path)
    assert len(scans) == 2 and all(s.scan_id.isascii() for s in scans)


def test_participants_in_another_encoding(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_bytes(
        "participant_id\tgroup\tcity\nsub-1\tpatient\tKöln\n".encode("latin-1")
    )
    assert [s.group for s in find_scans(tmp_path)] == ["patient"]


def test_plain_same_names_get_different_ids(tmp_path):
    touch(tmp_path, "a/T1.nii.gz", "b/T1.nii.gz")
    assert [(s.scan_id, s.subject) for s in find_scans(tmp_path)] == [
        ("a-T1.nii.gz", "a"),
        ("b-T1.nii.gz", "b"),
    ]


def test_group_from_participants_table(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-1\tnormal\nsub-2\tpatient\n")
    assert [s.group for s in find_scans(tmp_path)] == ["normal", "patient"]


@pytest.mark.parametrize(
    ("contrast", "layout", "message"),
    [("t9", "auto", "not a contrast"), ("t1", "xyz", "not a layout"), ("t1", "auto", "no NIfTI file")],
)
def test_find_scans_refuses(tmp_path, contrast, layout, message):
    with pytest.raises(ScanError, match=message):
        find_scans(tmp_path, contrast, layout)


def test_find_scans_needs_a_folder(tmp_path):
    with pytest.raises(ScanError, match="nowhere: no such folder"):
        find_scans(tmp_path / "nowhere")


# ----------------------------------------------------------------------------------------------------- splits


WAYS = pytest.mark.parametrize("divided", [split_subjects, split_by_count])


def counts(split: dict[str, str]) -> list[int]:
    return [list(split.values()).count(s) for s in SPLITS]


@WAYS
def test_the_order_of_names_does_not_matter_and_the_seed_does(divided):
    subjects = [f"s{i}" for i in range(20)]
    split = divided(subjects, (0.8, 0.1, 0.1), seed=3)
    assert split == divided(reversed(subjects), (0.8, 0.1, 0.1), seed=3)
    assert split != divided(subjects, (0.8, 0.1, 0.1), seed=4)


def test_split_counts():
    assert counts(split_by_count(f"s{i}" for i in range(20))) == [16, 2, 2]
    assert counts(split_subjects(f"s{i}" for i in range(2000))) == [1580, 214, 206]


@WAYS
@pytest.mark.parametrize(("n", "expected"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1])])
def test_small_splits(divided, n, expected):
    for first in range(20):
        assert counts(divided(str(i) for i in range(first, first + n))) == expected


@WAYS
def test_one_patient_is_for_testing(divided):
    for name in range(20):
        assert divided([str(name)], (0, 0.5, 0.5)) == {str(name): "test"}


@WAYS
def test_split_keeps_what_is_assigned(divided):
    before = split_by_count(map(str, range(10)))
    after = divided(map(str, range(20)), assigned=before)
    assert all(after[s] == before[s] for s in before)
    assert divided is split_subjects or counts(after) == [16, 2, 2]


def test_new_subjects_never_move_old_ones():
    names = [f"sub-{i:03d}" for i in range(200)]
    everyone = split_subjects(names)
    for some in (names[:60], names[100:], names[::2]):
        assert split_subjects(some) == {s: everyone[s] for s in some}
    few = split_subjects(names[:12])  # one is moved, so that no split is empty
    assert min(counts(few)) > 0 and sum(few[s] != everyone[s] for s in few) <= 2


def test_a_larger_share_for_training_moves_others_only_into_it():
    names = [f"sub-{i:03d}" for i in range(200)]
    before, after = split_subjects(names, (0.6, 0.2, 0.2)), split_subjects(names, (0.8, 0.1, 0.1))
    assert all(after[s] == "train" for s in names if before[s] == "train")
    assert 20 < sum(before[s] != after[s] for s in names) < 80


@WAYS
@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (1.0, 0.0), (float("nan"),) * 3, (1.5, -0.5, 0)])
def test_split_refuses_wrong_fractions(divided, fractions):
    with pytest.raises(ValueError, match="add up to 1"):
        divided(["a"], fractions)
