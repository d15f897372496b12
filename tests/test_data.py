"""Preparation of folders, slice datasets, PNG export. Tiny brains: 4 mm scans, 8 mm slices."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from madad_lite.authors.png_export import export_png
from madad_lite.errors import ScanError
from madad_lite.files import safe_name
from madad_lite.scans.find import find_scans
from madad_lite.scans.grid import Geometry, Grid
from madad_lite.simulation.cohort import write_cohort
from madad_lite.simulation.recolour import recolour_folder
from madad_lite.slices import folder
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.folder import Manifest, prepare_folder

GRID = Grid(spacing=8.0, size=24)
AFFINE = np.array([[4.0, 0, 0, -78], [0, 4.0, 0, -112], [0, 0, 4.0, -70], [0, 0, 0, 1]])


def brain_volume(seed=0):
    """A noisy ellipsoid where MNI152 has the brain, background 0; and a lesion mask in it."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.arange(n) for n in (40, 48, 40)), indexing="ij")
    brain = ((i - 19.5) / 17) ** 2 + ((j - 23) / 21) ** 2 + ((k - 20) / 16) ** 2 < 1
    values = np.where(brain, rng.normal(100, 10, brain.shape).clip(20), 0).astype(np.float32)
    lesion = (i - 25) ** 2 + (j - 25) ** 2 + (k - 22) ** 2 < 16
    return values, lesion


def write(path, values, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def ixi_folder(folder, n=4):
    for s in range(n):
        write(folder / f"IXI{s:03d}-Guys-{700 + s:04d}-T1.nii.gz", brain_volume(s)[0])
    return folder


def cohort_folder(folder, normal=3, patients=2):
    for s in range(normal + patients):
        values, lesion = brain_volume(s)
        anat = folder / f"sub-{s:04d}" / "anat"
        write(anat / f"sub-{s:04d}_T1w.nii.gz", np.where(lesion & (s >= normal), values * 0.5, values))
        write(anat / f"sub-{s:04d}_desc-brain_mask.nii.gz", (values > 0).astype(np.uint8))
        if s >= normal:
            write(anat / f"sub-{s:04d}_label-lesion_mask.nii.gz", lesion.astype(np.uint8))
    return folder


def prepare(source, out, **options):
    return prepare_folder(
        source, out, **{"grid": GRID, "register": False, "workers": 1, "progress": False} | options
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return cohort_folder(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def prepared(cohort, tmp_path_factory):
    return prepare(cohort, tmp_path_factory.mktemp("prepared") / "set")


# ------------------------------------------------------------------------------------------------ preparation


def test_prepared_folder(prepared, cohort):
    assert prepared.complete and prepared.skipped == [] and len(prepared.scans()) == 5
    assert prepared.grid == GRID and prepared.contrast == "t1"
    assert sorted(s["split"] for s in prepared.scans() if s["group"] == "patient") == ["test", "val"]
    assert sorted(s["split"] for s in prepared.scans() if s["group"] == "normal") == ["test", "train", "val"]
    for scan in prepared.scans():
        image, brain = prepared.array(scan, "image"), prepared.array(scan, "brain")
        assert image.dtype == np.float16 and image.shape == (scan["n_slices"], 24, 24) == brain.shape
        assert np.all(image[~brain] == -1) and abs(np.median(image[brain])) < 0.05
        assert scan["lesion"] == (scan["group"] == "patient")
        assert Path(scan["source"]).is_relative_to(cohort)
        geometry = Geometry.from_dict(scan["geometry"])
        assert geometry.scan_shape == (40, 48, 40) and len(geometry.slice_index) == scan["n_slices"]
        if scan["lesion"]:
            lesion = prepared.array(scan, "lesion")
            assert lesion.any() and scan["lesion_pixels"] == lesion.sum(axis=(1, 2)).tolist()
            assert image[lesion & brain].mean() < -0.2  # the mask lies where the scan was made darker


def test_manifest_on_disk(prepared):
    content = json.loads((prepared.folder / "manifest.json").read_text())
    assert content["version"] == 1 and content["contrast"] == "t1" and Grid.from_dict(content["grid"]) == GRID
    assert Manifest.load(prepared.folder).to_dict() == prepared.to_dict() == content
    assert not list(prepared.folder.rglob("*.part"))


def where(manifest):
    return {s["subject"]: s["split"] for s in manifest.scans()}


def times(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_preparing_again_does_nothing(cohort, prepared, monkeypatch):
    before = times(prepared.folder)
    monkeypatch.setattr(folder, "prepare_volume", None)  # would raise when called
    again = prepare(cohort, prepared.folder)
    assert times(prepared.folder) == before and again.to_dict() == prepared.to_dict()


def test_new_and_changed_scans(tmp_path):
    out = tmp_path / "out"
    source = ixi_folder(tmp_path / "in", 4)
    first = prepare(source, out)
    before = times(out / "scans")
    changed = write(source / "IXI001-Guys-0701-T1.nii.gz", brain_volume(9)[0])
    os.utime(changed, ns=(1, 1))
    write(source / "IXI077-HH-0001-T1.nii.gz", brain_volume(7)[0])
    second = prepare(source, out)
    assert where(first).items() <= where(second).items()
    after = times(out / "scans")
    touched = {p.parent.name for p in after if p.suffix == ".npy" and after[p] != before.get(p)}
    assert touched == {"IXI001-Guys-0701-T1", "IXI077-HH-0001-T1"}


@pytest.mark.parametrize(
    "option",
    [{"seed": 1}, {"grid": Grid(spacing=4.0, size=48)}, {"register": True}, {"fractions": (0.5, 0.25, 0.25)}],
)
def test_other_settings_are_refused(cohort, prepared, option):
    before = times(prepared.folder)
    with pytest.raises(ScanError, match=f"was prepared with {next(iter(option))}="):
        prepare(cohort, prepared.folder, **option)
    assert times(prepared.folder) == before


def test_other_source_is_refused(prepared, tmp_path):
    with pytest.raises(ScanError, match="was prepared with source="):
        prepare(ixi_folder(tmp_path, 1), prepared.folder)


def test_a_folder_of_other_things_is_refused(cohort, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ScanError, match="is not a prepared folder"):
        prepare(cohort, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_interrupted_run_leaves_no_half_scan_and_goes_on(tmp_path, monkeypatch):
    source, out = ixi_folder(tmp_path / "in", 3), tmp_path / "out"
    save, calls = np.save, []

    def failing_save(path, array):
        calls.append(path)
        if len(calls) == 4:  # the second scan's second file
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(np, "save", failing_save)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, out)
    monkeypatch.undo()
    done = [p for p in (out / "scans").iterdir() if p.suffix != ".part"]
    assert [p.name for p in done] == ["IXI000-Guys-0700-T1"] and (done[0] / "scan.json").exists()
    with pytest.raises(ScanError, match="was interrupted; run the same"):
        Manifest.load(out)
    with pytest.raises(ScanError, match="was prepared with seed="):
        prepare(source, out, seed=5)
    before = times(done[0])
    manifest = prepare(source, out)
    assert len(manifest.scans()) == 3 and times(done[0]) == before and not list(out.rglob("*.part"))
    assert manifest.to_dict()["scans"] == prepare(source, tmp_path / "fresh").to_dict()["scans"]


def test_bad_scans_are_skipped_with_a_reason(tmp_path):
    source, out = ixi_folder(tmp_path / "in", 2), tmp_path / "out"
    (source / "IXI100-HH-1-T1.nii.gz").write_bytes(b"not a scan")
    whole = (source / "IXI000-Guys-0700-T1.nii.gz").read_bytes()
    (source / "IXI101-HH-1-T1.nii.gz").write_bytes(whole[: len(whole) // 2])
    write(source / "IXI102-HH-1-T1.nii.gz", np.full((40, 48, 40), 7, np.float32))
    write(source / "IXI103-HH-1-T1.nii.gz", brain_volume()[0][:, :, 20])
    manifest = prepare(source, out, workers=2)
    assert [s["subject"] for s in manifest.scans()] == ["IXI000", "IXI001"]
    assert [Path(f).name[:6] for f, _ in manifest.skipped] == ["IXI100", "IXI101", "IXI102", "IXI103"]
    assert all(Path(f).name in reason and "\n" not in reason for f, reason in manifest.skipped)
    assert Manifest.load(out).skipped == manifest.skipped
    write(source / "IXI102-HH-1-T1.nii.gz", brain_volume(5)[0])  # repaired: done the next time
    assert "IXI102" in [s["subject"] for s in prepare(source, out).scans()]


def test_a_preparation_interrupted_before_its_manifest_begins_again(tmp_path, monkeypatch):
    write_cohort(tmp_path / "in", normal=3, patients=0, spacing=8.0, progress=False)
    options = dict(grid=Grid(spacing=8.0, size=24), workers=1, progress=False)
    save = Manifest.save

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_folder(tmp_path / "in", tmp_path / "out", **options)
    monkeypatch.setattr(Manifest, "save", save)
    assert prepare_folder(tmp_path / "in", tmp_path / "out", **options).complete


def test_an_interrupted_second_preparation_is_unfinished(tmp_path, monkeypatch):
    source, out = ixi_folder(tmp_path / "in", 2), tmp_path / "out"
    prepare(source, out)
    write(source / "IXI000-Guys-0700-T1.nii.gz", brain_volume(5)[0])  # changed since

    def stops(image, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "prepare_volume", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, out)
    monkeypatch.undo()
    with pytest.raises(ScanError, match="was interrupted; run the same"):
        Manifest.load(out)
    assert prepare(source, out).complete and len(Manifest.load(out).scans()) == 2


def test_an_unexpected_error_skips_one_scan_only(tmp_path, monkeypatch):
    prepare_volume = folder.prepare_volume

    def broken(image, **options):
        if "IXI001" in image.name:
            raise RuntimeError("two\nlines")
        return prepare_volume(image, **options)

    monkeypatch.setattr(folder, "prepare_volume", broken)
    manifest = prepare(ixi_folder(tmp_path / "in", 3), tmp_path / "out")
    assert [s["subject"] for s in manifest.scans()] == ["IXI000", "IXI002"]
    assert manifest.skipped[0][1] == "RuntimeError: two lines"


def test_a_missing_library_stops_everything(cohort, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)  # as if it were not installed
    with pytest.raises(ScanError, match="registration needs SimpleITK"):
        prepare(cohort, tmp_path / "out", register=True)
    assert list((tmp_path / "out/scans").iterdir()) == []


def test_parallel_gives_the_same_and_works_without_a_main_guard(cohort, prepared, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom madad_lite.scans.grid import Grid\nfrom madad_lite.slices.folder import prepare_folder\n"
        f"m = prepare_folder({str(cohort)!r}, {str(tmp_path / 'set')!r}, grid=Grid(spacing=8.0, size=24),\n"
        "                   register=False, workers=2, progress=False)\n"
        "print(len(m.scans()), 'torch' in sys.modules)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(folder.__file__).parents[2])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["5", "False"]
    parallel = Manifest.load(tmp_path / "set")
    assert parallel.to_dict() == prepared.to_dict()
    for scan in prepared.scans():
        for name in ("image", "brain"):
            assert np.array_equal(parallel.array(scan, name), prepared.array(scan, name))


def test_a_killed_worker_is_explained(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("joblib.delayed", lambda task: lambda *args: (os._exit, (1,), {}))
    with pytest.raises(ScanError, match="out: a worker process was ended .* fewer workers"):
        prepare(cohort, tmp_path / "out", workers=2)


def test_explicit_splits(cohort, tmp_path):
    splits = {"train": ["sub-0000"], "val": ["sub-0003"], "test": ["sub-0004", "sub-9999"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    manifest = prepare(cohort, tmp_path / "out", splits=tmp_path / "splits.json")
    assert where(manifest) == {"sub-0000": "train", "sub-0003": "val", "sub-0004": "test"}
    assert manifest.skipped[0][0] == "sub-9999" and "no t1 scan" in manifest.skipped[0][1]
    assert (
        prepare(cohort, tmp_path / "out", splits=splits).to_dict() == manifest.to_dict()
    )  # a mapping says the same
    with pytest.raises(ScanError, match="was prepared with splits="):
        prepare(cohort, tmp_path / "out", splits={"train": ["sub-0001"]})


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["a"], "test": ["a"]}, "a is in two splits"),
        ({"training": ["a"]}, "must be"),
        ({"train": "a"}, "must be"),
    ],
)
def test_wrong_splits_are_refused(cohort, tmp_path, splits, message):
    with pytest.raises(ScanError, match=message):
        prepare(cohort, tmp_path / "out", splits=splits)


def test_unreadable_splits_file_is_refused(cohort, tmp_path):
    with pytest.raises(ScanError, match=r"none.json: cannot be read"):
        prepare(cohort, tmp_path / "out", splits=tmp_path / "none.json")


def test_patients_in_train(tmp_path):
    source = cohort_folder(tmp_path / "in", normal=1, patients=3)
    manifest = prepare(source, tmp_path / "out", patients_in_train=True)
    assert sorted(s["split"] for s in manifest.scans() if s["lesion"]) == ["test", "train", "val"]
    (patient,) = [s for s in manifest.scans("train") if s["lesion"]]
    normal = sum(s["n_slices"] for s in manifest.scans("train") if not s["lesion"])
    train = SliceDataset(manifest, "train")
    assert len(train) == normal + sum(n == 0 for n in patient["lesion_pixels"]) < normal + patient["n_slices"]
    assert not any(item["lesion"].any() for item in train)


def test_a_subject_whose_lesion_mask_comes_later_leaves_training(tmp_path):
    source = cohort_folder(tmp_path / "in", normal=1, patients=0)
    assert prepare(source, tmp_path / "out").scans("train")
    mask = brain_volume()[1].astype(np.uint8)
    write(source / "sub-0000/anat/sub-0000_label-lesion_mask.nii.gz", mask)
    (scan,) = prepare(source, tmp_path / "out").scans()
    assert (scan["split"], scan["group"], scan["lesion"]) == ("test", "patient", True)


def test_patients_without_mask_are_skipped(tmp_path):
    source = cohort_folder(tmp_path / "in", normal=1, patients=1)
    (source / "participants.tsv").write_text("participant_id\tgroup\nsub-0000\tnormal\nsub-0001\tpatient\n")
    next(source.rglob("*lesion_mask.nii.gz")).unlink()
    manifest = prepare(source, tmp_path / "out")
    assert len(manifest.scans()) == 1 and "without lesion mask" in manifest.skipped[0][1]


def test_decathlon_channel_is_prepared(tmp_path):
    values, lesion = brain_volume()
    scan = write(
        tmp_path / "in/imagesTr/BRATS_001.nii.gz", np.stack([values, values[::-1], values, values], axis=3)
    )
    write(tmp_path / "in/labelsTr/BRATS_001.nii.gz", lesion.astype(np.uint8))
    pair = {"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}
    (tmp_path / "in/dataset.json").write_text(json.dumps({"modality": {"1": "T1w"}, "training": [pair]}))
    manifest = prepare(tmp_path / "in", tmp_path / "out")
    write(tmp_path / "one" / scan.name, np.ascontiguousarray(values[::-1]))
    alone = prepare(tmp_path / "one", tmp_path / "out-one")
    assert np.array_equal(
        manifest.array(manifest.scans()[0], "image"), alone.array(alone.scans()[0], "image")
    )


def test_damaged_or_missing_manifest(tmp_path):
    with pytest.raises(ScanError, match="no manifest.json there"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 1')
    with pytest.raises(ScanError, match="manifest.json: damaged"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 99}')
    with pytest.raises(ScanError, match="has version 99"):
        Manifest.load(tmp_path)


def test_manifest_knows_its_splits(prepared):
    with pytest.raises(ValueError, match="'testing' is not a split"):
        prepared.scans("testing")


# ------------------------------------------------------------------------------------------- names that stay


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_every_scan_has_an_id_of_its_own(tmp_path):
    names = ["一", "二", "a b", "a-b", "a+b", "A-B", "a.b", "x/a b", "x/a-b", "x-a b", "-", "x" * 240]
    found = find_scans(touched(tmp_path, *(f"{n}.nii.gz" for n in names)))
    ids = [s.scan_id.lower() for s in found]  # as where capitals do not count
    assert len(set(ids)) == len(names) and all(safe_name(i) == i for i in ids)
    assert next(s.scan_id for s in found if s.image.name == "a.b.nii.gz") == "a.b"  # plain names stay
    assert {s.image: s.scan_id for s in found} == {s.image: s.scan_id for s in find_scans(tmp_path)}
    (tmp_path / "三.nii.gz").touch()  # ids that came from cleaning do not depend on the others
    again = {s.image: s.scan_id for s in find_scans(tmp_path)}
    assert all(again[s.image] == s.scan_id for s in found)


def test_two_contrasts_alike_of_one_file_are_two_scans(tmp_path):
    touched(tmp_path, "imagesTr/B1.nii.gz", "labelsTr/B1.nii.gz")
    pair = {"image": "imagesTr/B1.nii.gz", "label": "labelsTr/B1.nii.gz"}
    described = {"modality": {"0": "T1", "1": "T1w"}, "training": [pair]}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    assert len({s.scan_id for s in find_scans(tmp_path)}) == 2


def test_a_scan_keeps_its_id_when_another_of_its_name_comes(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write(source / "site1/x.nii.gz", brain_volume(1)[0])
    assert [s["scan_id"] for s in prepare(source, out).scans()] == ["x"]
    before = times(out / "scans/x")
    write(source / "site2/x.nii.gz", brain_volume(2)[0])
    both = prepare(source, out)
    assert len({s["scan_id"] for s in both.scans()}) == 2 and times(out / "scans/x") == before
    values = {s["source"]: np.asarray(both.array(s, "image")) for s in both.scans()}
    fresh = prepare(source, tmp_path / "fresh")
    assert all(np.array_equal(fresh.array(s, "image"), values[s["source"]]) for s in fresh.scans())


def test_a_subject_keeps_its_split_also_while_its_scan_cannot_be_used(tmp_path):
    source, out = ixi_folder(tmp_path / "in", 3), tmp_path / "out"
    splits = where(prepare(source, out))
    victim = next(s for s, split in splits.items() if split == "test")
    (file,) = source.glob(f"{victim}*")
    whole = file.read_bytes()
    file.write_bytes(b"broken")
    for n in range(3):  # who comes now would have taken its place
        write(source / f"IXI{100 + n}-HH-1-T1.nii.gz", brain_volume(7)[0])
    broken = prepare(source, out)
    assert victim not in where(broken) and broken.subjects[victim] == "test"
    file.unlink()
    prepare(source, out)
    file.write_bytes(whole)
    last = where(prepare(source, out))
    assert splits.items() <= last.items() and where(broken).items() <= last.items()


def test_subjects_of_an_earlier_version_keep_their_splits(prepared, cohort, tmp_path):
    out = Path(shutil.copytree(prepared.folder, tmp_path / "old"))
    content = prepared.to_dict()
    del content["subjects"]
    content["scans"] = [{k: v for k, v in s.items() if k != "crc32"} for s in content["scans"]]
    (out / "manifest.json").write_text(json.dumps(content))
    for file in out.glob("scans/*/scan.json"):
        stored = json.loads(file.read_text())
        del stored["entry"]["crc32"]
        file.write_text(json.dumps(stored))
    assert Manifest.load(out).subjects == where(prepared)
    Manifest.load(out).verify()
    before = times(out / "scans")
    assert where(prepare(cohort, out)) == where(prepared) and times(out / "scans") == before


# ------------------------------------------------------------------------------------------- damage is mended


def float32(file):
    np.save(file, np.load(file).astype(np.float32))


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1000] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name, damage",
    [
        ("image.npy", lambda f: f.write_bytes(f.read_bytes()[:-64])),
        ("image.npy", float32),
        ("image.npy", lambda f: f.write_text("not an array")),
        ("image.npy", flip_a_bit),
        ("brain.npy", Path.unlink),
        ("scan.json", lambda f: f.write_text("{")),
        ("scan.json", lambda f: f.write_text('{"entry": null, "state": []}')),
    ],
    ids=["cut", "float32", "text", "a bit", "missing", "cut json", "null"],
)
def test_damage_is_mended_by_preparing_again(tmp_path, name, damage):
    source, out = ixi_folder(tmp_path / "in", 1), tmp_path / "out"
    (scan,) = prepare(source, out).scans()
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    damage(out / "scans" / scan["scan_id"] / name)
    prepare(source, out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == files


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    manifest = prepare(ixi_folder(tmp_path / "in", 1), tmp_path / "out")
    dataset = SliceDataset(manifest, "train")
    file = manifest.scan_folder(manifest.scans()[0]) / "image.npy"
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(ScanError, match=r"image.npy: has become shorter"):
        dataset[len(dataset) - 1]
    file.unlink()
    with pytest.raises(ScanError, match=r"image.npy: can no longer be read \(No such file"):
        dataset[0]


def test_a_recoloured_folder_is_not_prepared_into(prepared, cohort, tmp_path):
    out = tmp_path / "flair"
    recoloured = recolour_folder(prepared.folder, out, progress=False)
    recoloured.verify()
    before = times(out)
    for contrast in ("t1", "flair"):
        if contrast == "flair":  # so that there is one to prepare
            cohort = Path(shutil.copytree(cohort, tmp_path / "cohort"))
            shutil.copy(*(cohort / f"sub-0000/anat/sub-0000_{e}.nii.gz" for e in ("T1w", "FLAIR")))
        with pytest.raises(ScanError, match="flair: holds slices that were recoloured from"):
            prepare(cohort, out, contrast=contrast)
    assert times(out) == before


# ------------------------------------------------------------------------------- one bad file stops no other


def test_names_that_no_file_can_have_are_skipped(tmp_path):
    """Not UTF-8, longer than 255 bytes, with a zero: the others are done, and the manifest is written and read."""
    values, lesion = brain_volume()
    names = [
        "imagesTr/good.nii.gz",
        "imagesTr/\udcff.nii.gz",
        f"imagesTr/{'x' * 300}.nii.gz",
        "imagesTr/a\0.nii.gz",
    ]
    write(tmp_path / "in" / names[0], np.stack([values] * 4, axis=3))
    write(tmp_path / "in/labelsTr/good.nii.gz", lesion.astype(np.uint8))
    pairs = [{"image": n, "label": n.replace("imagesTr", "labelsTr")} for n in names]
    (tmp_path / "in/dataset.json").write_text(json.dumps({"training": pairs}))
    manifest = prepare(tmp_path / "in", tmp_path / "out")
    assert [s["subject"] for s in manifest.scans()] == ["good"] and len(manifest.skipped) == 3
    assert Manifest.load(tmp_path / "out").to_dict() == manifest.to_dict()
    assert len(manifest.subjects) == 4
    with pytest.raises(UnicodeEncodeError):
        "".join(f for f, _ in manifest.skipped).encode()  # else this test would say nothing
    json.dumps(manifest.to_dict()).encode()


def test_a_folder_that_cannot_be_read_is_named_and_stops_nothing(tmp_path):
    source = ixi_folder(tmp_path / "in", 1)
    place = os.open(source, os.O_RDONLY)
    for _ in range(20):  # deeper than a path may be long: not even root can list it
        os.mkdir("d" * 250, dir_fd=place)
        place, above = os.open("d" * 250, os.O_RDONLY, dir_fd=place), place
        os.close(above)
    os.close(place)
    manifest = prepare(source, tmp_path / "out")
    assert len(manifest.scans()) == 1
    assert ["cannot be read" in reason and path in reason for path, reason in manifest.skipped] == [True]


# ---------------------------------------------------------------------------------------------------- dataset


def test_dataset_items(prepared):
    dataset = SliceDataset(prepared.folder, "test", lesion_free=False)
    scans = prepared.scans("test")
    assert dataset.scan_ids == [s["scan_id"] for s in scans] and dataset.subjects == [
        s["subject"] for s in scans
    ]
    assert len(dataset) == sum(s["n_slices"] for s in scans)
    for item in dataset:
        scan = scans[item["scan"]]
        assert item["image"].dtype == torch.float32 and item["image"].shape == (1, 24, 24)
        assert item["brain"].dtype == item["lesion"].dtype == torch.bool
        for name in ("image", "brain") + (("lesion",) if scan["lesion"] else ()):
            assert np.array_equal(item[name][0].numpy(), prepared.array(scan, name)[item["index"]])
        if not scan["lesion"]:
            assert not item["lesion"].any()


def test_lesion_free(prepared):
    with_lesions, without = (SliceDataset(prepared, "val", lesion_free=free) for free in (False, True))
    assert sum(bool(i["lesion"].any()) for i in with_lesions) == len(with_lesions) - len(without) > 0
    assert len(SliceDataset(prepared, "val")) == len(with_lesions)  # the default differs for training only
    assert SliceDataset(prepared).lesion_free and not SliceDataset(prepared, "test").lesion_free


def test_dataset_of_several_folders(prepared, tmp_path):
    other = prepare(ixi_folder(tmp_path / "in", 3), tmp_path / "out")
    joined = SliceDataset([prepared.folder, other], "train")
    assert joined.scan_ids == [s["scan_id"] for m in (prepared, other) for s in m.scans("train")]
    assert len(joined) == len(SliceDataset(prepared)) + len(SliceDataset(other))
    assert joined[len(joined) - 1]["scan"] == len(joined.scan_ids) - 1
    coarse = prepare(tmp_path / "in", tmp_path / "coarse", grid=Grid(spacing=16.0, size=16))
    with pytest.raises(ScanError, match="different grids"):
        SliceDataset([prepared, coarse])


def test_empty_split_is_refused(cohort, tmp_path):
    manifest = prepare(cohort, tmp_path / "out", splits={"test": ["sub-0000"]})
    with pytest.raises(ScanError, match="no slices in the split 'train'"):
        SliceDataset(manifest)


def test_dataset_pickles_small_and_works_in_workers(prepared):
    dataset = SliceDataset(prepared, "test")
    dataset[0]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 10_000  # names and numbers, no pixels
    assert torch.equal(pickle.loads(pickled)[3]["image"], dataset[3]["image"])
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=2))
    assert torch.equal(torch.cat([b["image"] for b in batches]), torch.stack([i["image"] for i in dataset]))


# ------------------------------------------------------------------------------------------------- PNG export


def test_png_export(prepared, tmp_path):
    out = export_png(prepared, tmp_path / "png")
    for split in ("train", "val", "test"):
        expected = SliceDataset(prepared, split, lesion_free=split != "test")
        images, masks = (
            sorted((out / split).glob("brain_scan_*_T1.png")),
            sorted((out / split).glob("*_brainmask.png")),
        )
        assert len(images) == len(masks) == len(expected)
        assert [p.name.replace("T1", "brainmask") for p in images] == [p.name for p in masks]
        assert len(list((out / split).glob("*_segmentation.png"))) == (
            len(expected) if split == "test" else 0
        )
    scan = next(s for s in prepared.scans("test") if s["lesion"])
    k = int(np.argmax(scan["lesion_pixels"]))
    name = f"brain_scan_{scan['subject']}_slice_{Geometry.from_dict(scan['geometry']).slice_index[k]:03d}"
    image, mask = (np.array(Image.open(out / "test" / f"{name}_{e}.png")) for e in ("T1", "segmentation"))
    assert (
        image.dtype == np.uint8 and np.abs(image / 127.5 - 1 - prepared.array(scan, "image")[k]).max() < 0.005
    )
    assert np.array_equal(mask, prepared.array(scan, "lesion")[k] * np.uint8(255))
    before = times(out / "test")
    export_png(prepared, out)
    assert times(out / "test") == before


def test_png_export_refuses_a_folder_of_other_things(prepared, tmp_path):
    (tmp_path / "holiday.png").touch()
    with pytest.raises(ScanError, match="holds something else"):
        export_png(prepared, tmp_path)


def test_png_names_are_free_of_the_contrast(tmp_path):
    """The authors' code finds the masks by replacing the contrast's name in the path: it may be there once
    only.
    """
    write(tmp_path / "in" / "personT1x.nii.gz", brain_volume()[0])
    export_png(prepare(tmp_path / "in", tmp_path / "out"), tmp_path / "png")
    names = [p.name for p in (tmp_path / "png" / "train").glob("*_T1.png")]
    assert names and all(n.count("T1") == 1 and "personx" in n for n in names)


def test_png_names_are_names_and_never_shared(prepared, tmp_path):
    names = ["../../x", "aT1", "a", "TT11", "a-2"]
    content = json.loads(json.dumps(prepared.to_dict()))
    for scan, name in zip(content["scans"], names):
        scan["subject"], scan["split"] = name, "test"
    folder = Path(shutil.copytree(prepared.folder / "scans", tmp_path / "set" / "scans")).parent
    export_png(Manifest(folder, content), tmp_path / "png")
    images = list((tmp_path / "png").rglob("*_T1.png"))
    assert {p.parent for p in images} == {tmp_path / "png" / "test"}
    assert len(images) == sum(s["n_slices"] for s in content["scans"])
    assert all(p.name.count("T1") == 1 for p in images)
