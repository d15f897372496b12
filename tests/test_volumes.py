"""NIfTI in and out: any orientation, size and type gives the same slices; maps come back; bad files are refused."""

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy import ndimage

from madad_lite.volumes import (
    Geometry,
    Grid,
    ScanError,
    load_volume,
    mask_overlap,
    prepare_volume,
    return_to_scan,
    save_nifti,
    template,
)

GRID = Grid(spacing=6.0, size=32)


@pytest.fixture(scope="module")
def brain():
    """The template, stripped, at 4 mm: an array and its affine, in MNI space."""
    reference = template("t1")
    data = ndimage.gaussian_filter(np.asarray(reference.dataobj), 1.5)[::4, ::4, ::4]
    data = np.where(np.asarray(template("brain").dataobj)[::4, ::4, ::4] > 0, data, 0)
    return data.astype(np.float32), reference.affine @ np.diag([4, 4, 4, 1.0])


def written(path, data, affine):
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def oriented(data, affine, codes):
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return nib.orientations.apply_orientation(data, turn), affine @ inv_ornt_aff(turn, data.shape)


@pytest.fixture(scope="module")
def expected(brain, tmp_path_factory):
    return prepare_volume(written(tmp_path_factory.mktemp("v") / "ras.nii.gz", *brain), grid=GRID)


def test_slices_are_upright_normalised_and_in_order(expected):
    image, inside = expected.image, expected.brain
    assert image.shape == inside.shape == (len(expected.geometry.slice_index), 32, 32)
    assert image.dtype == np.float32 and (image[~inside] == -1).all() and image.min() >= -1 and image.max() <= 1
    assert abs(np.median(image[inside])) < 0.06  # the median of the brain lies at 0
    assert list(expected.geometry.slice_index) == sorted(expected.geometry.slice_index)
    # the cerebellum is low and posterior, that is in the lower half of the lowest slices
    rows = inside[1].any(1).nonzero()[0]
    assert rows.mean() > 16
    assert (inside.mean((1, 2)) >= 0.05).all()


@pytest.mark.parametrize("codes", ["".join(c) for p in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*p)])
def test_every_orientation_gives_the_same_slices(brain, expected, tmp_path, codes):
    prepared = prepare_volume(written(tmp_path / "scan.nii", *oriented(*brain, codes)), grid=GRID)
    np.testing.assert_allclose(prepared.image, expected.image, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_every_type_and_scale_gives_the_same_slices(brain, expected, tmp_path, dtype):
    data, affine = brain
    image = nib.Nifti1Image(np.round(data).astype(dtype), affine)
    if dtype == np.int16:
        image.header.set_slope_inter(0.5, 0)  # stored values are twice the real ones
        image = nib.Nifti1Image(np.round(data).astype(np.int16), affine)
    nib.save(image, tmp_path / "scan.nii.gz")
    prepared = prepare_volume(tmp_path / "scan.nii.gz", grid=GRID)
    np.testing.assert_allclose(prepared.image, expected.image, atol=0.02)
    bright = prepare_volume(written(tmp_path / "bright.nii.gz", (data * 37).astype(np.float32), affine), grid=GRID)
    np.testing.assert_allclose(bright.image, expected.image, atol=1e-3)


def test_header_scaling_is_applied(brain, tmp_path):
    data, affine = brain
    image = nib.Nifti1Image(np.round(data).astype(np.int16), affine)
    image.header.set_slope_inter(2.0, 10.0)
    nib.save(image, tmp_path / "scaled.nii")
    loaded = np.asarray(load_volume(tmp_path / "scaled.nii").dataobj)
    raw = np.asarray(nib.load(tmp_path / "scaled.nii").dataobj)
    np.testing.assert_allclose(loaded, raw)


def test_z_scored_scans_with_negative_values(brain, expected, tmp_path):
    data, affine = brain
    inside = data > 0
    scored = np.where(inside, (data - data[inside].mean()) / data[inside].std(), 0).astype(np.float32)
    prepared = prepare_volume(written(tmp_path / "z.nii.gz", scored, affine), grid=GRID)
    assert np.corrcoef(prepared.image[expected.brain], expected.image[expected.brain])[0, 1] > 0.95
    assert prepared.geometry.intensity[0] < 0


def test_a_given_brain_mask_is_used(brain, tmp_path):
    data, affine = brain
    half = (data > 0) & (np.arange(data.shape[0]) < data.shape[0] // 2)[:, None, None]
    scan, mask = written(tmp_path / "s.nii", data, affine), written(tmp_path / "m.nii", half.astype(np.uint8), affine)
    prepared = prepare_volume(scan, brain=mask, grid=GRID, register=False)
    assert prepared.brain[:, :, 18:].sum() == 0 and prepared.brain[:, :, :14].any()


def test_lesion_mask_lies_where_the_lesion_is(brain, tmp_path):
    data, affine = brain
    lesion = np.zeros(data.shape, np.uint8)
    lesion[14:18, 30:34, 22:26] = 1
    dark = np.where(lesion > 0, 5, data).astype(np.float32)
    prepared = prepare_volume(
        written(tmp_path / "s.nii", dark, affine), lesion=written(tmp_path / "l.nii", lesion, affine), grid=GRID
    )
    assert prepared.lesion.any() and prepared.image[prepared.lesion].mean() < prepared.image[prepared.brain].mean() - 0.3


def test_maps_return_to_the_scans_own_grid(brain, tmp_path):
    data, affine = brain
    turn = np.eye(4)
    turn[:3, :3] = [[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1]]  # oblique
    scan, moved = oriented(data, affine, "PIR")
    path = written(tmp_path / "s.nii.gz", scan, turn @ moved)
    prepared = prepare_volume(path, grid=Grid(spacing=4.0, size=48), register=False)
    centre = ndimage.center_of_mass(scan > 0)
    blob = sum((a - c) ** 2 for a, c in zip(np.ogrid[tuple(slice(n) for n in scan.shape)], centre)) < 6**2
    lesion = written(tmp_path / "l.nii.gz", blob.astype(np.uint8), turn @ moved)
    there = prepare_volume(path, lesion=lesion, grid=Grid(spacing=4.0, size=48), register=False).lesion
    back = return_to_scan(there.astype(np.float32), prepared.geometry)
    assert back.shape == scan.shape and np.array_equal(back.affine, nib.load(path).affine)
    found = np.asarray(back.dataobj) > 0.5
    assert 2 * (found & blob).sum() / (found.sum() + blob.sum()) > 0.9
    again = Geometry.from_dict(prepared.geometry.to_dict())
    assert np.array_equal(np.asarray(return_to_scan(there, again).dataobj), np.asarray(back.dataobj))


def test_registration_is_skipped_where_it_is_not_needed(expected):
    assert np.array_equal(expected.geometry.to_mni, np.eye(4))


def test_registration_brings_a_displaced_brain_back(brain, tmp_path):
    data, affine = brain
    move = np.eye(4)
    move[:3, :3] *= 0.9
    move[:3, 3] = 25, -15, 30
    prepared = prepare_volume(written(tmp_path / "far.nii.gz", data, move @ affine), grid=GRID)
    found = prepared.geometry.to_mni @ move
    points = np.array([[0, 0, 0, 1], [40, -40, 20, 1], [-30, 30, 40, 1]]).T
    assert np.abs((found @ points - points)[:3]).max() < 8  # mm, at a resolution of 4 mm
    assert mask_overlap(data > 0, move @ affine, prepared.geometry.to_mni) > 0.9


def bad(kind, folder, brain):
    data, affine = brain
    path = folder / f"{kind}.nii.gz"
    if kind == "truncated":
        raw = gzip.compress(nib.Nifti1Image(data, affine).to_bytes())
        path.write_bytes(raw[: len(raw) // 2])
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind != "absent":
        values = {
            "constant": np.full_like(data, 3), "nan": np.where(data > 100, np.nan, data), "flat": data[:, :, 20],
            "series": np.stack([data, data], -1), "tiny": np.where(np.indices(data.shape).sum(0) < 3, data + 1, 0),
        }[kind]  # fmt: skip
        written(path, values.astype(np.float32), affine)
    return path


@pytest.mark.parametrize("kind", ["absent", "nothing", "text", "truncated", "constant", "nan", "flat", "series", "tiny"])
def test_bad_files_are_refused_in_one_line_that_names_them(kind, tmp_path, brain):
    path = bad(kind, tmp_path, brain)
    with pytest.raises(ScanError) as error:
        prepare_volume(path, grid=GRID)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_masks_of_another_shape_and_far_away_scans_are_refused(brain, tmp_path):
    data, affine = brain
    scan, small = written(tmp_path / "s.nii", data, affine), written(tmp_path / "small.nii", (data[:-2] > 0).astype(np.uint8), affine)
    for which in ("brain", "lesion"):
        with pytest.raises(ScanError, match="small.nii"):
            prepare_volume(scan, grid=GRID, **{which: small})
    far = affine.copy()
    far[:3, 3] += 1000
    with pytest.raises(ScanError, match="no slices"):
        prepare_volume(written(tmp_path / "far.nii", data, far), grid=GRID, register=False)


def test_a_channel_of_a_series(brain, tmp_path):
    data, affine = brain
    path = written(tmp_path / "s.nii", np.stack([data, 2 * data], -1), affine)
    np.testing.assert_allclose(load_volume(path, 1).dataobj, 2 * data)
    with pytest.raises(ScanError, match="channel"):
        load_volume(path, 2)
    assert load_volume(written(tmp_path / "one.nii", data[..., None], affine)).shape == data.shape


def test_saving_is_whole_or_not_at_all(brain, tmp_path):
    image = nib.Nifti1Image(*brain)
    save_nifti(image, tmp_path / "map.nii.gz")
    before = (tmp_path / "map.nii.gz").read_bytes()
    with pytest.raises(ScanError, match="exists"):
        save_nifti(image, tmp_path / "map.nii.gz")
    assert (tmp_path / "map.nii.gz").read_bytes() == before
    save_nifti(image, tmp_path / "map.nii.gz", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["map.nii.gz"]
