"""DICOM folders: the right series, converted so that it lies where the scanner said; the others told by name."""

import builtins
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series

from madad_lite.cli import main
from madad_lite.detection.many_scans import ENDINGS, scans_in
from madad_lite.errors import ScanError
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.dicom import Series, choose, convert_all, dicom_to_nifti, holds_dicom
from madad_lite.slices.folder import prepare_folder
from madad_lite.weights import WEIGHTS

SHAPE = (40, 48, 40)  # slices, rows, columns


@pytest.fixture(scope="module")
def slices():
    """No two voxels alike in any direction, so that a turned or mixed-up volume is seen."""
    z, y, x = np.indices(SHAPE)
    return 1 + x + 41 * (y % 7) + 300 * (z % 13)


@pytest.fixture(scope="module")
def examination(slices, tmp_path_factory):
    """A localiser, a T1, a shorter FLAIR, a FLAIR of thick slices, maps computed from images."""
    folder = tmp_path_factory.mktemp("dicom") / "ANNA"
    kinds = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(folder / "a", slices[:3], description="scan", spacing=(4, 20), ImageType=kinds)
    write_series(folder / "b", slices, number=2, description="t1_mprage_sag", rle=True)
    write_series(folder / "c", slices[:12], number=3, description="T2 FLAIR short", spacing=(2, 8))
    write_series(folder / "d", slices[:20], number=4, description="T2 FLAIR", spacing=(2, 6))
    derived = ["DERIVED", "SECONDARY", "MPR"]
    finer = np.tile(slices, (2, 2, 2))
    write_series(folder, finer, number=5, description="t1 recon", ImageType=derived, spacing=(1, 1))
    (folder / "notes.txt").write_text("no DICOM")
    return folder


def voxels(slices):
    """As a NIfTI volume: x to the right, y to the front, z up."""
    return slices[:, ::-1, ::-1].transpose(2, 1, 0)


def converted(folder, tmp_path, contrasts=("t1",), series=None):
    chosen, said = dicom_to_nifti(folder, tmp_path / "scan.nii.gz", contrasts, series)
    return nib.as_closest_canonical(nib.load(tmp_path / "scan.nii.gz")), chosen, said


def test_the_series_of_the_contrast_is_taken_and_the_others_are_named(examination, slices, tmp_path):
    image, chosen, said = converted(examination, tmp_path)
    assert (chosen.number, chosen.contrast, chosen.file) == (2, "t1", tmp_path / "scan.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), voxels(slices))  # compressed, without loss
    assert np.allclose(image.affine, [[2, 0, 0, -39], [0, 2, 0, -47], [0, 0, 2, -39], [0, 0, 0, 1]])
    assert "series 2 't1_mprage_sag' (40 x 48 x 40 of 2 x 2 x 2 mm) taken" in said
    assert "1 'scan' (a localiser)" in said and "3 'T2 FLAIR short' (12 slices, fewer than 15)" in said
    assert "4 'T2 FLAIR' (flair)" in said and "--series" in said


def test_another_contrast_or_series_by_number_or_description(examination, tmp_path):
    assert converted(examination, tmp_path, ["flair"])[1].number == 4
    assert converted(examination, tmp_path, ["flair", "t1"])[1].number == 2  # the finer one
    for wanted, number in (("4", 4), ("t1 RECON", 5), ("mprage", 2), ("t2 flair", 4)):
        assert converted(examination, tmp_path, series=wanted)[1].number == number


@pytest.mark.parametrize(
    "contrasts, series, message",
    [
        (["t2"], None, "no series in it that can be used is named as T2; choose one with --series"),
        (["t1"], "9", "no series '9' in it"),
        (["t1"], "flair s", "series 3 'T2 FLAIR short' .* cannot be used: 12 slices"),
        (["t1"], "t", "several series 't' in it"),
        (["t1"], " ", "no series ' ' in it"),
    ],
)
def test_what_cannot_be_chosen(contrasts, series, message, examination, tmp_path):
    with pytest.raises(ScanError, match=f"ANNA: {message}") as caught:
        dicom_to_nifti(examination, tmp_path / "x.nii.gz", contrasts, series)
    assert "\n" not in str(caught.value) and not (tmp_path / "x.nii.gz").exists()


def test_the_order_of_the_files_does_not_matter(slices, tmp_path):
    names = np.random.default_rng(0).permutation(len(slices)).tolist()
    write_series(tmp_path / "in", slices, names=names)
    assert np.array_equal(np.asarray(converted(tmp_path / "in", tmp_path)[0].dataobj), voxels(slices))


def test_a_folder_whose_name_looks_like_an_option(slices, tmp_path, monkeypatch):
    write_series(tmp_path / "-h", slices)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(np.asarray(converted(Path("-h"), tmp_path)[0].dataobj), voxels(slices))


@pytest.mark.parametrize("left_out", [(10,), (10, 11, 25)])
def test_missing_slices_are_refused(left_out, slices, tmp_path):
    write_series(tmp_path / "in", slices, left_out=left_out, spacing=(2, 3))
    fault = f"cannot be used: {len(left_out)} of its slices missing"
    with pytest.raises(ScanError, match=fault):
        converted(tmp_path / "in", tmp_path, series="1")
    with pytest.raises(ScanError, match=r"no series .* 1 't1_mprage' \(\d of its slices missing\)"):
        converted(tmp_path / "in", tmp_path)
    write_series(tmp_path / "in", slices, number=7, description="t1_se")  # another one that is whole
    assert converted(tmp_path / "in", tmp_path)[1].number == 7


def test_a_single_series_without_a_name_is_taken_and_of_two_neither(slices, tmp_path):
    write_series(tmp_path / "in", slices, description="brain")
    assert converted(tmp_path / "in", tmp_path)[1].number == 1
    write_series(tmp_path / "in", slices, number=2, description="another")
    with pytest.raises(ScanError, match="contrast not named"):
        converted(tmp_path / "in", tmp_path)


def test_other_modalities_and_several_volumes_are_no_scans(slices, tmp_path):
    write_series(tmp_path / "in", slices, description="t1", Modality="CT")
    for first, time in ((1, "120001"), (41, "120002")):  # the same places twice
        times = dict(AcquisitionTime=time, ContentTime=time)
        write_series(tmp_path / "in" / time, slices, number=2, description="t1", first=first, **times)
    faults = [s.fault for s in convert_all(tmp_path / "in", tmp_path)]
    assert faults == ["CT, not MR", "2 volumes"]


def test_a_series_that_was_copied_twice_is_one(slices, tmp_path):
    for copy in ("a", "b"):
        write_series(tmp_path / "in" / copy, slices)
    assert np.array_equal(np.asarray(converted(tmp_path / "in", tmp_path)[0].dataobj), voxels(slices))


def test_two_examinations_are_refused(slices, tmp_path):
    write_series(tmp_path / "in" / "a", slices, study="one")
    write_series(tmp_path / "in" / "b", slices, study="two")
    with pytest.raises(ScanError, match="holds 2 examinations"):
        converted(tmp_path / "in", tmp_path)


def test_files_that_only_look_like_dicom(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IM1").write_bytes(b"\0" * 128 + b"DICM" + b"\7" * 1000)
    assert holds_dicom(tmp_path / "in") and not holds_dicom(tmp_path / "nowhere")
    with pytest.raises(ScanError, match="in: dcm2niix made no image"):
        converted(tmp_path / "in", tmp_path)


def test_the_same_files_give_the_same_bytes_and_nothing_about_the_person(slices, tmp_path):
    write_series(tmp_path / "in", slices, ImageComments="a comment")
    for name in ("a.nii.gz", "b.nii.gz"):
        dicom_to_nifti(tmp_path / "in", tmp_path / name, ["t1"])
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    header = nib.load(tmp_path / "a.nii.gz").header
    assert not header["descrip"].item() and not header["aux_file"].item()


@pytest.mark.parametrize(
    "description, contrast",
    [
        ("t1_mprage_sag_p2_iso", "t1"),
        ("MPRAGE", "t1"),
        ("Sag FSPGR BRAVO", "t1"),
        ("Ax T1 FLAIR", "t1"),
        ("t1_tse_tra post KM", "t1ce"),
        ("AX T1 +C", "t1ce"),
        ("eT1W_3D_TFE Gd", "t1ce"),
        ("AX T1 POST", "t1ce"),
        ("T1 pre and post contrast", "t1ce"),
        ("AX T1 PRE CONTRAST", "t1"),
        ("AX T1 W/O CONTRAST", "t1"),
        ("AX T1 WO IV CONTRAST", "t1"),
        ("T1 without contrast", "t1"),
        ("T1 non-contrast", "t1"),
        ("T1 ohne KM", "t1"),
        ("AX T2 FLAIR FS", "flair"),
        ("t2_spc_da-fl_dark-fluid", "flair"),
        ("t2_tirm_tra_dark-fluid", "flair"),
        ("T2W_TSE", "t2"),
        ("t2*_gre", None),
        ("AX T2 STAR", None),
        ("ep2d_diff_b1000", None),
        ("", None),
    ],
)
def test_contrast_from_the_description(description, contrast):
    assert Series(1, description, None, (), (), True).contrast == contrast


def test_a_series_of_one_number_in_two_files_is_one(tmp_path):
    """As of two echoes."""
    both = [
        Series(3, "t1", tmp_path / k, (40,) * 3, v, True) for k, v in (("a", (2.0,) * 3), ("b", (1.0,) * 3))
    ]
    assert choose(tmp_path, both, ["t1"], "3").file.name == "b"


def test_without_dcm2niix_one_line_says_how_to_get_it(examination, tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "dcm2niix":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    for words in (["detect"], ["prepare"]):
        assert main([*words, str(examination), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert 'pip install "madad-lite[dicom]"' in said and said.count("\n") == 1


# ------------------------------------------------------------------------------------------- the two commands


@pytest.fixture(scope="module")
def brain_slices(patient_scan):
    """A simulated patient's T1, as a scanner stores it, and where it lies."""
    image = nib.as_closest_canonical(nib.load(patient_scan["image"]))
    data = np.asarray(image.dataobj)
    data = np.clip(data / np.percentile(data, 99.9) * 3000, 0, 4095).astype(int)
    centre = nib.affines.apply_affine(image.affine, (np.array(data.shape) - 1) / 2)
    return {"slices": data.transpose(2, 1, 0)[:, ::-1, ::-1], "centre": tuple(centre)}


def test_detect_finds_the_same_in_a_dicom_folder_as_in_its_nifti_file(brain_slices, tmp_path, capsys):
    folder = write_series(tmp_path / "ANNA", **brain_slices, number=3)
    write_series(folder, brain_slices["slices"][:3], number=1, description="localizer", spacing=(4, 20))
    brief = ["--steps", "2", "--z-range", "0", "4"]
    assert scans_in([folder]) == [folder]
    assert main(["detect", str(folder), "--out", str(tmp_path / "out"), *brief]) == 0
    said = capsys.readouterr().out
    assert f"{folder}: series 3 't1_mprage'" in said and "1 'localizer' (a localiser)" in said
    kinds = ("record", "anomaly", "lesions", "healed", "report", "scan")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"ANNA{ENDINGS[k]}" for k in kinds}
    record = json.loads((tmp_path / "out" / "ANNA.json").read_text())
    assert record["scan"]["series"].startswith("3 't1_mprage'") and record["scan"]["file"] == str(folder)

    again = ["detect", str(tmp_path / "out" / "ANNA.nii.gz"), "--out", str(tmp_path / "nifti"), *brief]
    assert main(again) == 0
    maps = [(tmp_path / out / "ANNA_anomaly.nii.gz").read_bytes() for out in ("out", "nifti")]
    assert maps[0] == maps[1]

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert main(["detect", str(folder), "--out", str(tmp_path / "out"), *brief, "--resume"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    assert main(["detect", str(folder), "--out", str(tmp_path / "out"), *brief]) == 1
    assert "exists already" in capsys.readouterr().err


def test_what_is_wrong_with_a_dicom_folder_names_the_folder(slices, tmp_path, capsys):
    folder = write_series(tmp_path / "ANNA", np.full(SHAPE, 7))
    assert main(["detect", str(folder), "--out", str(tmp_path / "out"), "--series", "1"]) == 1
    assert f"{folder}: all its voxels have the same value" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_series_without_a_dicom_folder_is_refused(patient_scan, tmp_path, capsys):
    assert main(["detect", patient_scan["image"], "--out", str(tmp_path / "out"), "--series", "1"]) == 2
    assert "--series chooses within a DICOM folder" in capsys.readouterr().err


def test_a_folder_with_nifti_files_is_no_dicom_folder(examination, tmp_path):
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)), tmp_path / f"{name}.nii.gz")
    write_series(tmp_path / "beside", np.ones((3, 8, 8), int))
    assert [p.name for p in scans_in([tmp_path])] == ["a.nii.gz", "b.nii.gz"]


def test_one_dicom_file_alone_is_told_to_be_one(examination):
    file = next((examination / "b").iterdir())
    with pytest.raises(ScanError, match="a DICOM file, one of many; give their folder"):
        MadAdPipeline.from_pretrained(WEIGHTS / "t1").prepare(file)


def test_prepare_takes_a_folder_a_person(brain_slices, tmp_path, capsys):
    for name in ("ANNA", "BERT"):
        write_series(tmp_path / "in" / name / "s", **brain_slices, number=2, study=name)
    write_series(tmp_path / "in" / "CARL", **brain_slices, description="t2_tse", study="CARL")
    options = dict(workers=1, progress=False, fractions=(0.5, 0.5, 0.0))
    manifest = prepare_folder(tmp_path / "in", tmp_path / "out", **options)
    assert [s["scan_id"] for s in manifest.scans()] == ["ANNA_t1", "BERT_t1"]
    assert [s["subject"] for s in manifest.scans()] == ["ANNA", "BERT"]
    ((file, reason),) = manifest.skipped
    assert file.endswith("CARL") and "no series in it that can be used is named as T1" in reason
    assert "ANNA: series 2 't1_mprage'" in capsys.readouterr().out

    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "nifti").iterdir()}
    prepare_folder(tmp_path / "in", tmp_path / "out", **options)  # nothing is converted again
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "nifti").iterdir()} == times
    with pytest.raises(ScanError, match="was prepared with series=None, now it is '2'"):
        prepare_folder(tmp_path / "in", tmp_path / "out", series="2", **options)
    with pytest.raises(ScanError, match="no series in it that can be used is named as T1"):
        prepare_folder(tmp_path / "in" / "CARL", tmp_path / "carl", **options)
