"""Reading, orienting, registering, normalising and cutting scans, and the way back."""

import gzip
import itertools
import json
import os
import struct
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from madad_lite.errors import Refused, RunError, ScanError
from madad_lite.scans import prepare
from madad_lite.scans.bias import without_bias
from madad_lite.scans.brain import LARGEST_ML, deepbet_brain, skull_valley, whole_brain_ml
from madad_lite.scans.grid import Geometry, Grid
from madad_lite.scans.nifti import brain_image, load_volume, return_to_scan, save_nifti
from madad_lite.scans.prepare import prepare_volume
from madad_lite.scans.registration import register_to_mni, template

GRID = Grid(spacing=4.0, size=48)
STRAIGHT = np.eye(4)
TILTED = nib.affines.from_matvec(Rotation.from_euler("xyz", [12, -9, 17], degrees=True).as_matrix())


def sampled(affine, shape, source=None, order=1):
    """`source` (default: the template) on another grid."""
    source = source or template("t1")
    matrix = np.linalg.inv(source.affine) @ affine
    data = np.asarray(source.dataobj, np.float32)
    return nib.Nifti1Image(
        ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], shape, order=order), affine
    )


def covering(voxel=(4.0, 4.0, 4.0), turn=STRAIGHT):
    """Affine and shape of a grid of such voxels around the whole template, turned about its middle."""
    shape = np.ceil(np.array([220, 260, 230]) / voxel).astype(int)
    middle = nib.affines.from_matvec(np.eye(3), [0, -18, 9])
    return middle @ turn @ nib.affines.from_matvec(np.diag(voxel), -(shape - 1) / 2 * voxel), tuple(shape)


def blob(scan, centre=(-28.0, -20.0, 22.0), radius=14.0):
    """A ball of `radius` mm in the scan's own grid."""
    voxels = np.moveaxis(np.indices(scan.shape), 0, -1)
    away = np.linalg.norm(nib.affines.apply_affine(scan.affine, voxels) - centre, axis=-1)
    return nib.Nifti1Image((away < radius).astype(np.uint8), scan.affine)


def ball_map(geometry, centre=(-28.0, -20.0, 22.0), radius=14.0):
    """The same ball as slices, 0.5 at its edge."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in geometry.grid.shape), indexing="ij")
    places = nib.affines.apply_affine(geometry.grid.affine, np.stack([x, y, z], -1))
    values = np.clip(0.5 + (radius - np.linalg.norm(places - centre, axis=-1)) / 4, 0, 1)
    return values.transpose(2, 1, 0)[list(geometry.slice_index), ::-1]


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def on_grid():
    """The template exactly on the test grid, so that preparing it interpolates nothing."""
    return sampled(GRID.affine, GRID.shape)


@pytest.fixture
def saved(tmp_path):
    """Function: image -> path of the file."""
    count = itertools.count()

    def save(image, name=None):
        path = tmp_path / (name or f"scan{next(count)}.nii.gz")
        nib.save(image, path)
        return path

    return save


@pytest.fixture(scope="module")
def reference(on_grid, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "scan.nii"
    nib.save(on_grid, path)
    return prepare_volume(path, grid=GRID, register=False)


# --- slices


def test_slices_lie_as_promised(on_grid, saved):
    """Index k upward, rows from anterior to posterior, columns from left to right: a mark in each
    direction.
    """
    for axis, side in itertools.product(range(3), (-1, 1)):
        place = np.array([0.0, -18.0, 9.0])
        place[axis] += side * 36
        out = prepare_volume(
            saved(on_grid), lesion=saved(blob(on_grid, place, 8.0)), grid=GRID, register=False, min_brain=1e-6
        )
        k, row, column = ndimage.center_of_mass(out.lesion)
        voxel = np.linalg.inv(GRID.affine) @ [*place, 1]
        assert np.allclose(
            [out.geometry.slice_index[0] + k, GRID.size - 1 - row, column], voxel[[2, 1, 0]], atol=0.6
        )


def test_default_grid():
    grid = Grid()
    assert grid.shape == (96, 96, 72)
    corners = nib.affines.apply_affine(grid.affine, [[0, 0, 0], [95, 95, 71]])
    assert np.allclose(corners.mean(0), [0, -18, 9]) and np.allclose(corners[1] - corners[0], [190, 190, 142])
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


def test_prepared_scan(reference):
    image, brain = reference.image, reference.brain
    assert image.shape == brain.shape == (len(reference.geometry.slice_index), 48, 48)
    assert image.dtype == np.float32 and brain.dtype == bool and reference.lesion is None
    assert image.min() == -1 and image.max() <= 1 and (image[~brain] == -1).all()
    assert (brain.mean((1, 2)) >= 0.05).all()
    assert list(reference.geometry.slice_index) == sorted(set(reference.geometry.slice_index))


def test_slices_with_little_brain_are_left_out(on_grid, saved):
    few = prepare_volume(saved(on_grid), grid=GRID, register=False, min_brain=0.3)
    every = prepare_volume(saved(on_grid), grid=GRID, register=False, min_brain=0.0)
    assert (few.brain.mean((1, 2)) >= 0.3).all()
    assert len(every.image) == GRID.shape[2] > len(few.image) > 5
    assert np.array_equal(every.image[list(few.geometry.slice_index)], few.image)


ORIENTATIONS = [
    "".join(c) for axes in itertools.permutations(["RL", "AP", "SI"]) for c in itertools.product(*axes)
]


def test_every_orientation_gives_the_same_slices(on_grid, reference, tmp_path):
    assert len(ORIENTATIONS) == 48
    for codes in ORIENTATIONS:
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(on_grid.affine), nib.orientations.axcodes2ornt(codes)
        )
        image = on_grid.as_reoriented(turn)
        assert "".join(nib.aff2axcodes(image.affine)) == codes
        nib.save(image, tmp_path / f"{codes}.nii")
        out = prepare_volume(tmp_path / f"{codes}.nii", grid=GRID, register=False)
        assert out.geometry.slice_index == reference.geometry.slice_index, codes
        assert np.allclose(out.image, reference.image, atol=1e-4), codes
        assert np.array_equal(out.brain, reference.brain), codes


@pytest.mark.parametrize(
    "voxel, turn",
    [((2, 2, 2), STRAIGHT), ((1.5, 2, 5), STRAIGHT), ((2.5, 2, 3), TILTED)],
    ids=["2 mm", "anisotropic", "oblique"],
)
def test_voxel_size_and_oblique_axes(voxel, turn, reference, saved):
    out = prepare_volume(
        saved(sampled(*covering(np.array(voxel, float), turn))), grid=GRID, register=False, min_brain=0
    )
    kept = list(reference.geometry.slice_index)
    assert dice(out.brain[kept], reference.brain) > 0.96
    both = out.brain[kept] & reference.brain
    assert np.corrcoef(out.image[kept][both], reference.image[both])[0, 1] > 0.8
    assert abs(np.median(out.image[kept][both] - reference.image[both])) < 0.05


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_every_dtype_gives_the_same_slices(dtype, on_grid, reference, saved):
    data = np.rint(np.asarray(on_grid.dataobj)).astype(dtype)
    out = prepare_volume(saved(nib.Nifti1Image(data, on_grid.affine)), grid=GRID, register=False)
    assert np.abs(out.image - reference.image).max() < 0.02


def test_header_scaling_is_applied(on_grid, reference, saved):
    stored = np.rint((np.asarray(on_grid.dataobj) - 100) / 0.01).astype(np.int16)  # not what is meant
    path = saved(nib.Nifti1Image(stored, on_grid.affine), "scaled.nii")
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<ff", 0.01, 100)  # scl_slope, scl_inter
    path.write_bytes(content)
    assert np.abs(prepare_volume(path, grid=GRID, register=False).image - reference.image).max() < 0.01


def test_finer_scans_do_not_alias(saved):
    """A pattern too fine for the grid turns grey instead of into a false pattern."""
    affine, shape = covering((2.0, 2.0, 2.0))
    scan = sampled(affine, shape)
    brain = np.asarray(scan.dataobj) > 0
    stripes = np.where(brain, 100 + 40 * (-1.0) ** np.indices(shape)[0], 0).astype(np.float32)
    stripes += brain * np.random.default_rng(0).normal(0, 0.1, shape)  # two values alone are no scan
    affine[0, 3] += 0.3  # the grid's voxels meet the stripes off their middle
    out = prepare_volume(saved(nib.Nifti1Image(stripes, affine)), grid=GRID, register=False)
    inner = ndimage.binary_erosion(out.brain, iterations=3)
    assert out.image[inner].std() < 0.08  # 0.4 in the scan


def test_a_scan_at_the_grids_resolution_stays_sharp(saved):
    """Half a voxel off, waves of three voxels keep most of their height; linear interpolation would halve
    it.
    """
    affine = GRID.affine
    brain = np.asarray(sampled(affine, GRID.shape).dataobj) > 0
    waves = np.where(brain, 100 + 40 * np.cos(2 * np.pi / 3 * np.indices(GRID.shape)[0]), 0).astype(
        np.float32
    )
    waves += brain * np.random.default_rng(0).normal(0, 0.1, GRID.shape)  # three values alone are no scan
    affine[0, 3] += GRID.spacing / 2
    mask = saved(nib.Nifti1Image(brain.astype(np.uint8), affine))
    out = prepare_volume(saved(nib.Nifti1Image(waves, affine)), brain=mask, grid=GRID, register=False)
    inner = ndimage.binary_erosion(out.brain, iterations=3)
    there = waves[ndimage.binary_erosion(brain, iterations=3)] / np.median(waves[brain])
    assert out.image[inner].std() > 0.8 * there.std()


# --- intensities


def expected(data, brain, offset=0.0):
    median = np.median(data[brain]) - offset
    return np.where(brain, np.clip((data - offset) / median - 1, -1, 1), -1)


def on_whole_grid(out):
    full = np.full(GRID.shape[::-1], -1, np.float32)
    full[list(out.geometry.slice_index)] = out.image
    return full[:, ::-1].transpose(2, 1, 0)


def test_normalisation(on_grid, saved):
    """The brain's median becomes 0, twice the median and more 1."""
    data = np.asarray(on_grid.dataobj).copy()
    brain = data > 0
    data[20:24, 20:24, 16:20] *= 5
    out = prepare_volume(saved(nib.Nifti1Image(data, on_grid.affine)), grid=GRID, register=False, min_brain=0)
    inner = ndimage.binary_erosion(brain)
    assert np.abs(on_whole_grid(out) - expected(data, brain))[inner].max() < 1e-4
    assert out.image.max() == 1
    assert abs(np.median(out.image[out.brain])) < 0.02


@pytest.mark.parametrize("factor", [0.003, 4000.0])
def test_the_scale_does_not_matter(factor, on_grid, reference, saved):
    image = nib.Nifti1Image(np.asarray(on_grid.dataobj) * np.float32(factor), on_grid.affine)
    assert np.allclose(
        prepare_volume(saved(image), grid=GRID, register=False).image, reference.image, atol=1e-4
    )


@pytest.mark.parametrize("background", [0.0, -5.0])
def test_z_scored_scan(background, on_grid, saved):
    """Negative values in the brain: shifted by the brain's 0.5 percentile first."""
    data = np.asarray(on_grid.dataobj)
    brain = ndimage.binary_fill_holes(data > 0)
    z = np.where(brain, (data - data[brain].mean()) / data[brain].std(), background).astype(np.float32)
    out = prepare_volume(saved(nib.Nifti1Image(z, on_grid.affine)), grid=GRID, register=False, min_brain=0)
    right = expected(z, brain, np.percentile(z[brain], 0.5))
    inner = ndimage.binary_erosion(brain)
    assert np.abs(on_whole_grid(out) - right)[inner].max() < 1e-3
    assert out.image[out.brain].std() > 0.1
    back = out.geometry.to_intensity(on_whole_grid(out))
    plain = inner & (np.abs(right) < 0.99)
    assert np.abs(back - z)[plain].max() < 5e-3


def test_a_few_negative_voxels_do_not_shift_the_scale(on_grid, reference, saved):
    data = np.asarray(on_grid.dataobj).copy()
    data[22:24, 22, 16:18] = -3
    out = prepare_volume(saved(nib.Nifti1Image(data, on_grid.affine)), grid=GRID, register=False)
    assert out.geometry.intensity[0] == 0
    assert np.median(np.abs(out.image - reference.image)) < 1e-3


# --- the brain


def test_background_specks_and_holes(on_grid, reference, saved):
    """Specks beside the brain are no brain, a ventricle that is exactly 0 is."""
    data = np.asarray(on_grid.dataobj).copy()
    data[1:3, 1:3, 15:17] = 200
    data[22:25, 22:25, 17:19] = 0
    out = prepare_volume(saved(nib.Nifti1Image(data, on_grid.affine)), grid=GRID, register=False)
    assert np.array_equal(out.brain, reference.brain)


def test_background_with_ripples_of_an_earlier_interpolation(on_grid, reference, saved):
    data = np.asarray(on_grid.dataobj).copy()
    data[data == 0] = (0.05 * np.sin(np.arange((data == 0).sum()))).astype(np.float32)
    data[[0, 0, -1], [0, -1, 0], 0] = 0
    out = prepare_volume(saved(nib.Nifti1Image(data, on_grid.affine)), grid=GRID, register=False)
    assert dice(out.brain, reference.brain) > 0.99


def test_given_brain_mask(on_grid, saved):
    brain = ndimage.binary_erosion(np.asarray(on_grid.dataobj) > 0, iterations=2)
    mask = saved(nib.Nifti1Image(brain.astype(np.uint8) * 255, on_grid.affine))
    out = prepare_volume(saved(on_grid), brain=mask, grid=GRID, register=False, min_brain=0)
    assert np.array_equal(on_whole_grid(out) > -1, brain & (on_whole_grid(out) > -1))
    assert np.array_equal(out.brain[:, ::-1].transpose(2, 1, 0), brain)


def test_lesion_mask(on_grid, saved):
    """Any label above 0 is lesion."""
    ball = np.asarray(blob(on_grid).dataobj) > 0
    labels = np.where(ball, 1 + np.indices(ball.shape)[0] % 4, 0).astype(np.int16)
    mask = saved(nib.Nifti1Image(labels, on_grid.affine))
    out = prepare_volume(saved(on_grid), lesion=mask, grid=GRID, register=False, min_brain=0)
    assert out.lesion.dtype == bool and np.array_equal(out.lesion[:, ::-1].transpose(2, 1, 0), ball)
    empty = saved(nib.Nifti1Image(np.zeros(ball.shape, np.uint8), on_grid.affine))
    assert not prepare_volume(saved(on_grid), lesion=empty, grid=GRID, register=False).lesion.any()


# --- 4-D


def test_channels(on_grid, reference, saved):
    data = np.asarray(on_grid.dataobj)
    four = saved(nib.Nifti1Image(np.stack([data[::-1], data], axis=3), on_grid.affine))
    assert np.allclose(
        prepare_volume(four, channel=1, grid=GRID, register=False).image, reference.image, atol=1e-5
    )
    assert np.allclose(load_volume(four, channel=0).dataobj, data[::-1])
    single = saved(nib.Nifti1Image(data[..., None], on_grid.affine))
    assert load_volume(single).shape == data.shape


# --- bad input


def bad_files(folder, on_grid):
    """name -> keyword arguments of prepare_volume, and what the message must contain."""
    data, affine = np.asarray(on_grid.dataobj), on_grid.affine

    def save(name, values, place=affine, kind=nib.Nifti1Image):
        nib.save(kind(values, place), folder / name)
        return folder / name

    good = save("good.nii.gz", data)
    (folder / "text.nii.gz").write_text("not a scan")
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "cut.nii.gz").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    whole = save("whole.nii", data)
    (folder / "cut.nii").write_bytes(whole.read_bytes()[:50_000])
    (folder / "folder.nii").mkdir()
    os.mkfifo(folder / "pipe.nii")
    flipped = bytearray(gzip.compress(whole.read_bytes(), compresslevel=0))
    flipped[len(flipped) // 2] ^= 1  # stored, not deflated: only the checksum tells
    (folder / "flipped.nii.gz").write_bytes(flipped)
    (folder / "more.nii.gz").write_bytes(gzip.compress(whole.read_bytes() + bytes(2**21)))
    header = nib.Nifti1Header()
    header.set_data_shape((10_000, 10_000, 3_000))
    header.set_data_dtype(np.float64)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header.set_sform(np.diag([0.09, 0.09, 0.3, 1]), 2)
    lies = header.binaryblock + bytes(4)
    (folder / "lies.nii").write_bytes(lies)
    (folder / "bomb.nii").write_bytes(lies)
    (folder / "lies.nii.gz").write_bytes(gzip.compress(lies))
    nan, infinite = data.copy(), data.copy()
    nan[20, 20, 20], infinite[20, 20, 20] = np.nan, np.inf
    small = np.where(np.asarray(blob(on_grid, radius=10.0).dataobj) > 0, data, 0)
    far = nib.affines.from_matvec(np.eye(3), [0, 0, 400]) @ affine
    colour = np.zeros(data.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return {
        "missing.nii.gz": ({}, "no such file"),
        "folder.nii": ({}, "is a folder"),
        "n" * 300 + ".nii": ({}, "cannot be opened"),
        "pipe.nii": ({}, "not a regular file"),
        "flipped.nii.gz": ({}, "CRC"),
        "more.nii.gz": ({}, "holds more than"),
        "lies.nii": ({"max_voxels": 10**12}, "truncated, it holds 352 of the 2,400,000,000,352"),
        "lies.nii.gz": ({"max_voxels": 10**12}, "truncated, it holds 352 of the 2,400,000,000,352"),
        "bomb.nii": ({}, "300,000 million voxels"),
        "text.nii.gz": ({}, "NIfTI"),
        "empty.nii.gz": ({}, "empty"),
        "cut.nii.gz": ({}, "truncated"),
        "cut.nii": ({}, "truncated"),
        save("other.mgz", data, kind=nib.MGHImage).name: ({}, "not NIfTI"),
        save("constant.nii.gz", np.full(data.shape, 7.0, np.float32)).name: ({}, "same value"),
        save("nan.nii.gz", nan).name: ({}, "NaN"),
        save("infinite.nii.gz", infinite).name: ({}, "infinite"),
        save("huge.nii.gz", data.astype(np.float64) * 1e300).name: ({}, "infinite"),
        save("flat.nii.gz", data[:, :, 20]).name: ({}, "3-D"),
        save("four.nii.gz", np.stack([data] * 3, 3)).name: ({}, "3 volumes"),
        save("few.nii.gz", np.stack([data] * 2, 3)).name: ({"channel": 2}, "no channel 2"),
        save("complex.nii.gz", data.astype(np.complex64)).name: ({}, "one real number"),
        save("colour.nii.gz", colour).name: ({}, "one real number"),
        save("many.nii.gz", data).name: ({"max_voxels": 10_000}, "more than the 0 that"),
        save("coarse.nii.gz", data, np.diag([25.0, 4, 4, 1])).name: ({}, "25 mm large"),
        save("metres.nii.gz", np.resize(data, (80, 48, 20)), np.diag([14.0, 5, 5, 1])).name: (
            {},
            "view is 1120 x 240 x 100",
        ),
        save("tiny.nii.gz", data, np.diag([4.0, 4, 0.4, 1])).name: ({}, "field of view"),
        save("blob.nii.gz", small).name: ({}, "no brain"),
        save("far.nii.gz", data, far).name: ({"register": False}, "no slices left"),
    }


NAMES = (
    "missing.nii.gz folder.nii text.nii.gz empty.nii.gz cut.nii.gz cut.nii other.mgz constant.nii.gz nan.nii.gz "
    "infinite.nii.gz huge.nii.gz flat.nii.gz four.nii.gz few.nii.gz complex.nii.gz colour.nii.gz blob.nii.gz "
    "far.nii.gz pipe.nii flipped.nii.gz more.nii.gz lies.nii lies.nii.gz bomb.nii many.nii.gz "
    "coarse.nii.gz metres.nii.gz tiny.nii.gz " + "n" * 300 + ".nii"
).split()


@pytest.fixture(scope="module")
def bad(on_grid, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    return folder, bad_files(folder, on_grid)


@pytest.mark.parametrize("name", NAMES)
def test_bad_scan(name, bad):
    folder, files = bad
    assert set(files) == set(NAMES)
    options, reason = files[name]
    with pytest.raises(ScanError, match=reason) as error:
        prepare_volume(folder / name, grid=GRID, **options)
    message = str(error.value)
    assert message.startswith(f"{folder / name}: ") and "\n" not in message


def test_bad_masks(on_grid, saved):
    scan, data = saved(on_grid), np.asarray(on_grid.dataobj)
    smaller = saved(nib.Nifti1Image(data[:-1], on_grid.affine))
    mirrored = saved(nib.Nifti1Image(data, np.diag([-1.0, 1, 1, 1]) @ on_grid.affine))
    for mask, reason in (
        (smaller, "shape"),
        (mirrored, "mm away"),
        (scan.with_name("no.nii.gz"), "no such file"),
    ):
        for role in ("brain", "lesion"):
            with pytest.raises(ScanError, match=reason) as error:
                prepare_volume(scan, **{role: mask}, grid=GRID, register=False)
            assert str(error.value).startswith(f"{mask}: ") and "\n" not in str(error.value)
    nothing = saved(nib.Nifti1Image(np.zeros(data.shape, np.uint8), on_grid.affine))
    with pytest.raises(ScanError, match="no brain"):
        prepare_volume(scan, brain=nothing, grid=GRID, register=False)


# --- registration

MOVED = nib.affines.from_matvec(
    Rotation.from_euler("xyz", [8, -6, 11], degrees=True).as_matrix() @ np.diag([1.08, 0.95, 1.03]),
    [14, -22, 9],
)  # scan mm -> MNI mm


def moved_scan(voxel=(3.0, 3.0, 3.0), source=None):
    """The template seen by a scanner that knows nothing of MNI space."""
    affine, shape = covering(voxel)
    scan = sampled(MOVED @ affine, shape, source)
    return nib.Nifti1Image(np.asarray(scan.dataobj), affine)


def registration_error(found):
    """Mean distance in mm over the brain."""
    brain = template("brain")
    points = nib.affines.apply_affine(brain.affine, np.argwhere(np.asarray(brain.dataobj) > 0)[::5000])
    there = nib.affines.apply_affine(found @ np.linalg.inv(MOVED), points)
    return np.linalg.norm(there - points, axis=1).mean()


@pytest.mark.parametrize("contrast", ["same", "inverted", "z-scored"])
def test_registration_recovers_a_known_affine(contrast):
    scan = moved_scan()
    data = np.asarray(scan.dataobj)
    brain = data > 0
    if contrast == "inverted":
        data = np.where(brain, 260 - data, 0)
    elif contrast == "z-scored":
        data = np.where(brain, (data - data[brain].mean()) / data[brain].std(), 0)
    found = register_to_mni(nib.Nifti1Image(data.astype(np.float32), scan.affine), brain)
    assert registration_error(found) < 2  # mm, half a voxel of its finer stage


def test_registration_repeats_exactly():
    """Whatever the number of threads, which is the process's again afterwards."""
    from SimpleITK import ProcessObject as sitk

    scan = moved_scan((4.0, 4.0, 4.0))
    brain, before, found = np.asarray(scan.dataobj) > 0, sitk.GetGlobalDefaultNumberOfThreads(), []
    try:
        for threads in (1, 2, 4):
            sitk.SetGlobalDefaultNumberOfThreads(threads)
            found.append(register_to_mni(scan, brain))
            assert sitk.GetGlobalDefaultNumberOfThreads() == threads
    finally:
        sitk.SetGlobalDefaultNumberOfThreads(before)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_a_brain_that_is_cut_off_is_not_stretched():
    scan = moved_scan()
    data = np.asarray(scan.dataobj).copy()
    data[:, : int(0.3 * data.shape[1])] = 0  # part of the occipital lobes
    found = register_to_mni(nib.Nifti1Image(data, scan.affine), data > 0)
    assert registration_error(found) < 5


def head_of(source):
    """A head around a stripped brain: dark skull, bright scalp, a neck, noise everywhere."""
    data = np.asarray(source.dataobj)
    spacing = np.linalg.norm(source.affine[:3, 0])
    brain = ndimage.binary_closing(data > 0, iterations=2)
    away = ndimage.distance_transform_edt(~brain) * spacing
    x, y, z = np.moveaxis(
        nib.affines.apply_affine(source.affine, np.moveaxis(np.indices(data.shape), 0, -1)), -1, 0
    )
    head = np.where((away > 3) & (away <= 9), 20.0, 0.0)
    head[(away > 9) & (away <= 16) & (z > -60)] = 220
    head[(x**2 + (y + 30) ** 2 < 55**2) & (z < -30) & (away > 6)] = 110
    head = np.where(data > 0, data, head)
    noise = np.random.default_rng(0).normal(0, 6, (2, *data.shape))
    return nib.Nifti1Image(np.hypot(head + noise[0], noise[1]).astype(np.float32), source.affine)


@pytest.fixture(scope="module")
def head():
    """A head whose brain is known, and that brain."""
    scan = moved_scan((4.0, 4.0, 4.0))
    return head_of(scan), np.asarray(scan.dataobj) > 0


@pytest.fixture
def deepbet(monkeypatch):
    """Function: what deepbet's network shall say of a scan. Returns the scans that it was asked about."""

    def answers(answer):
        asked = []

        class BrainExtraction:
            def __init__(self, no_gpu):
                assert no_gpu

            def run(self, scan):
                # a copy: the scan's own array is worked in
                asked.append(nib.Nifti1Image(np.array(scan.dataobj), scan.affine))
                return None, nib.Nifti1Image(answer(scan).astype(np.uint8), scan.affine), 0.0

        monkeypatch.setitem(sys.modules, "deepbet", SimpleNamespace(BrainExtraction=BrainExtraction))
        return asked

    return answers


def test_head_with_skull_gets_the_templates_brain(head, saved, deepbet, monkeypatch, caplog):
    """With a warning, where there is no deepbet; without one where it is asked for."""
    scan, brain = head
    monkeypatch.setitem(sys.modules, "deepbet", None)
    path = saved(scan)
    out = prepare_volume(path, grid=GRID, register="auto", min_brain=0)
    assert registration_error(out.geometry.to_mni) < 6
    assert out.brain_source == "template" and out.brain_ml == pytest.approx(out.brain_in_scan.sum() * 0.064)
    assert len(caplog.records) == 1 and str(path) in caplog.text and "deepbet" in caplog.text
    returned = np.asarray(return_to_scan(out.brain, out.geometry).dataobj) > 0.5
    world = nib.affines.apply_affine(MOVED @ scan.affine, np.moveaxis(np.indices(scan.shape), 0, -1))
    lowest = world[..., 2] > -55
    assert dice(returned & lowest, brain & lowest) > 0.88
    with pytest.raises(ImportError, match=r'pip install "madad-lite\[prep\]"'):
        prepare_volume(path, brain="deepbet", grid=GRID)
    asked = deepbet(lambda _: brain)
    caplog.clear()
    same = prepare_volume(path, brain="template", grid=GRID, min_brain=0)
    assert np.array_equal(same.image, out.image) and not caplog.records and not asked


def test_head_with_skull_gets_deepbets_brain(head, saved, deepbet):
    scan, brain = head
    asked, path = deepbet(lambda _: brain), saved(scan)
    out = prepare_volume(path, grid=GRID, min_brain=0)
    assert out.brain_source == "deepbet" and np.array_equal(out.brain_in_scan, brain)
    assert np.array_equal(asked[0].dataobj, scan.dataobj) and registration_error(out.geometry.to_mni) < 3
    mask = saved(brain_image(out))
    back = nib.load(mask)
    assert back.get_data_dtype() == np.uint8 and np.array_equal(back.affine, nib.load(path).affine)
    again = prepare_volume(path, brain=mask, grid=GRID, min_brain=0)  # the kept mask gives the same
    assert again.brain_source == "file" and np.array_equal(again.image, out.image)


def test_deepbet_that_finds_nothing(head, saved, deepbet):
    def fails(scan):
        raise AssertionError("Not enough foreground")

    path = saved(head[0])
    for answer in (fails, lambda scan: np.zeros(scan.shape, bool)):
        deepbet(answer)
        with pytest.raises(ScanError, match="no brain") as error:
            prepare_volume(path, grid=GRID)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_deepbet_itself_finds_the_brain(head):
    """The package, as it is called here, on a head that is no real one."""
    scan, brain = head
    assert dice(deepbet_brain("head", scan), brain) > 0.8


def test_a_cut_head_on_a_clean_background_is_no_stripped_brain(head, saved, deepbet):
    """It has a brain's volume, but a skull."""
    scan, brain = head
    data = np.asarray(scan.dataobj).copy()
    outside = ndimage.distance_transform_edt(~brain) * 4 > 16
    data[outside] = 0
    low = np.flatnonzero(brain.any((0, 1)))[0] + 18
    cut = nib.Nifti1Image(data[:, :, low:], scan.affine @ nib.affines.from_matvec(np.eye(3), [0, 0, low]))
    inside = ndimage.binary_fill_holes(data[:, :, low:] > 0)
    assert inside.sum() * 0.064 < LARGEST_ML and skull_valley(data[:, :, low:], inside, scan.affine) < 0.6
    assert skull_valley(np.where(brain, data, 0), brain, scan.affine) > 0.95
    deepbet(lambda _: brain[:, :, low:])
    assert prepare_volume(saved(cut), grid=GRID, register=False, min_brain=0).brain_source == "deepbet"


@pytest.mark.parametrize("litres", [2.6, 0.7])
def test_a_brain_of_impossible_size_is_refused(litres, on_grid, saved, monkeypatch):
    """By its registration, also where the mask is a part of it, as of a scan that is cut off."""
    size = (litres / whole_brain_ml(np.eye(4)) * 1000) ** (1 / 3)
    scan_to_mni = np.diag([1 / size] * 3 + [1])
    mask = np.asarray(on_grid.dataobj) > 0
    mask[:, :, 28:] = False
    scaled = np.linalg.inv(scan_to_mni) @ on_grid.affine
    path, part = (saved(nib.Nifti1Image(x, scaled)) for x in (on_grid.get_fdata(), mask.astype(np.uint8)))
    monkeypatch.setattr(prepare, "register_to_mni", lambda *_: scan_to_mni)
    with pytest.raises(ScanError, match=rf"{litres:.2f} litres.*\(file\).*--brain") as error:
        prepare_volume(path, brain=part, grid=GRID, register=True)
    assert str(error.value).startswith(f"{path}: ")


def test_a_template_beside_the_head_is_refused(head, saved, monkeypatch):
    monkeypatch.setattr(prepare, "register_to_mni", lambda *_: nib.affines.from_matvec(np.eye(3), [90, 0, 0]))
    with pytest.raises(ScanError, match="cannot be registered.*overlap"):
        prepare_volume(saved(head[0]), brain="template", grid=GRID)


# --- bias field


def test_bias_correction(on_grid, saved):
    """A slope of brightness goes, and without being asked for nothing changes."""
    data = np.asarray(on_grid.dataobj)
    brain = data > 0
    slope = 1 + 0.4 * np.linspace(-1, 1, data.shape[0])[:, None, None]
    path = saved(nib.Nifti1Image((data * slope).astype(np.float32), on_grid.affine))
    straight = prepare_volume(saved(on_grid), grid=GRID, register=False, bias_correction=True)
    plain, mended = (
        prepare_volume(path, grid=GRID, register=False, bias_correction=b) for b in (False, True)
    )

    def away(out):
        return np.abs(out.image - straight.image)[straight.brain].mean()

    assert away(mended) < 0.4 * away(plain)
    repeated = prepare_volume(path, grid=GRID, register=False, bias_correction=True)
    assert np.array_equal(mended.image, repeated.image)
    z = np.where(brain, (data * slope - 100) / 30, 0).astype(np.float32)
    assert np.isfinite(without_bias(z, brain, on_grid.affine)).all()


@pytest.mark.parametrize(
    "values",
    [{"spacing": 1e6}, {"spacing": 0.0}, {"spacing": float("nan")}, {"size": 5000}, {"size": 97}, {"size": 0}]
    + [{"z_spacing": 1e-3}, {"z_spacing": 1e3}, {"z_range": (80, -62)}, {"z_range": (-1e9, 80)}],
    ids=str,
)
def test_grids_that_make_no_sense_are_refused(values):
    with pytest.raises(Refused, match=next(iter(values))) as error:
        Grid(**values)
    assert "\n" not in str(error.value)
    with pytest.raises(Refused):
        Grid.from_dict({"spacing": 2.0, "size": 96, "z_range": [-62, 80]} | values)


def test_when_a_scan_is_registered(on_grid, saved, monkeypatch):
    """True: always; False: never; "auto": only a scan that is not in MNI space yet."""
    calls = []

    def fake(image, brain=None):
        calls.append(brain)
        return np.linalg.inv(image.affine @ np.linalg.inv(on_grid.affine))

    monkeypatch.setattr(prepare, "register_to_mni", fake)
    shifted = nib.Nifti1Image(
        np.asarray(on_grid.dataobj), nib.affines.from_matvec(np.eye(3), [0, 30, 0]) @ on_grid.affine
    )
    there, elsewhere = saved(on_grid), saved(shifted)
    for path, register, n in (
        (there, "auto", 0),
        (there, False, 0),
        (there, True, 1),
        (elsewhere, False, 0),
        (elsewhere, "auto", 1),
    ):
        calls.clear()
        out = prepare_volume(path, grid=GRID, register=register)
        assert len(calls) == n, (path, register)
        assert np.array_equal(out.geometry.to_mni, np.eye(4)) == (n == 0 or path == there)
    with pytest.raises(ValueError, match="register is"):
        prepare_volume(there, grid=GRID, register="yes")


def test_failed_registration_is_an_error(on_grid, saved, monkeypatch):
    path = saved(on_grid)
    monkeypatch.setattr(prepare, "register_to_mni", lambda *_: nib.affines.from_matvec(np.eye(3), [90, 0, 0]))
    with pytest.raises(ScanError, match="cannot be registered.*register=False") as error:
        prepare_volume(path, grid=GRID, register=True)
    assert str(error.value).startswith(f"{path}: ")


def test_without_simpleitk(on_grid, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ImportError, match=r'pip install "madad-lite\[prep\]"'):
        prepare_volume(saved(on_grid), grid=GRID, register=True)
    assert len(prepare_volume(saved(on_grid), grid=GRID, register="auto").image)  # not needed, not missed


def test_registered_scan_gives_the_same_slices_as_one_in_place(reference, saved):
    out = prepare_volume(saved(moved_scan()), grid=GRID, min_brain=0)
    kept = list(reference.geometry.slice_index)
    assert dice(out.brain[kept], reference.brain) > 0.97
    both = out.brain[kept] & reference.brain
    assert np.corrcoef(out.image[kept][both], reference.image[both])[0, 1] > 0.8


# --- the way back


@pytest.mark.parametrize(
    "voxel, turn, codes",
    [
        ((4, 4, 4), STRAIGHT, "RAS"),
        ((2, 2, 2), STRAIGHT, "PIR"),
        ((1.5, 3, 4), STRAIGHT, "LSA"),
        ((2.5, 2, 3), TILTED, "LAS"),
        ((2, 3, 2.5), np.linalg.inv(TILTED), "SPL"),
    ],
    ids=["RAS", "2 mm PIR", "anisotropic LSA", "oblique LAS", "oblique SPL"],
)
def test_round_trip(voxel, turn, codes, saved):
    """A ball in the scan comes back as the same ball, on exactly the scan's grid."""
    scan = sampled(*covering(np.array(voxel, float), turn))
    scan = scan.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.io_orientation(scan.affine), nib.orientations.axcodes2ornt(codes)
        )
    )
    path, ball = saved(scan), blob(scan)
    out = prepare_volume(path, lesion=saved(ball), grid=Grid(), register=False)
    truth, original = np.asarray(ball.dataobj) > 0, nib.load(path)
    for slices, least in (
        (ball_map(out.geometry), 0.95),
        (out.lesion, 0.85),
    ):  # a mask has lost part of a voxel
        back = return_to_scan(slices, out.geometry)
        assert back.shape == original.shape and np.array_equal(back.affine, original.affine)
        assert back.get_data_dtype() == np.float32
        assert dice(np.asarray(back.dataobj) > 0.5, truth) > least


def test_round_trip_after_registration(saved):
    scan = moved_scan()
    path, ball = saved(scan), blob(scan, centre=(-20.0, -10.0, 10.0))
    out = prepare_volume(path, lesion=saved(ball), grid=Grid(spacing=2.0), register=True)
    back = return_to_scan(out.lesion, out.geometry)
    assert back.shape == scan.shape and np.array_equal(back.affine, nib.load(path).affine)
    assert dice(np.asarray(back.dataobj) > 0.5, np.asarray(ball.dataobj) > 0) > 0.93


def test_affine_of_a_qform_survives_being_saved(on_grid, saved, tmp_path):
    """Some scanners write only the qform; its rotation is not a float32 matrix."""
    image = nib.Nifti1Image(np.asarray(on_grid.dataobj), None)
    image.set_qform(TILTED @ on_grid.affine, code=1)
    image.set_sform(None, code=0)
    path = saved(image)
    out = prepare_volume(path, grid=GRID, register=False)
    back = return_to_scan(out.image, out.geometry)
    assert np.array_equal(back.affine, nib.load(path).affine)
    save_nifti(back, tmp_path / "map.nii.gz")
    assert np.abs(nib.load(tmp_path / "map.nii.gz").affine - nib.load(path).affine).max() < 1e-5


def test_nothing_outside_the_kept_slices(reference):
    some = np.ones_like(reference.image)
    back = np.asarray(return_to_scan(some, reference.geometry).dataobj)
    kept = list(reference.geometry.slice_index)
    assert np.allclose(back[:, :, kept], 1, atol=1e-5)
    assert not np.delete(back, kept, axis=2).any()
    with pytest.raises(ValueError, match="do not fit"):
        return_to_scan(some[:-1], reference.geometry)


def test_geometry_survives_json(saved):
    scan = sampled(*covering(np.array([2.5, 2, 3]), TILTED))
    out = prepare_volume(saved(scan), grid=GRID, register=False)
    same = Geometry.from_dict(json.loads(json.dumps(out.geometry.to_dict())))
    assert same.to_dict() == out.geometry.to_dict()
    for name in ("scan_affine", "to_mni"):
        assert np.array_equal(getattr(same, name), getattr(out.geometry, name))
    assert same.scan_shape == out.geometry.scan_shape and same.slice_index == out.geometry.slice_index
    one, two = (return_to_scan(out.image, g) for g in (out.geometry, same))
    assert np.array_equal(one.dataobj, two.dataobj) and np.array_equal(one.affine, two.affine)


# --- saving


def test_save_never_overwrites_silently(on_grid, tmp_path):
    path = tmp_path / "map.nii.gz"
    save_nifti(on_grid, path)
    before = path.read_bytes()
    other = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4))
    with pytest.raises(ScanError, match="exists already") as error:
        save_nifti(other, path)
    assert str(error.value).startswith(f"{path}: ") and path.read_bytes() == before
    save_nifti(other, path, force=True)
    assert nib.load(path).shape == (4, 4, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["map.nii.gz"]


def test_interrupted_save_leaves_the_old_file_and_no_other(on_grid, tmp_path, monkeypatch):
    path = tmp_path / "map.nii.gz"
    save_nifti(on_grid, path)
    before = path.read_bytes()

    def breaks(image, to):
        assert to != path
        to.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", breaks)
    with pytest.raises(RunError, match="disk full"):
        save_nifti(on_grid, path, force=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["map.nii.gz"]


def test_the_same_volume_gives_the_same_bytes(on_grid, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_nifti(on_grid, tmp_path / name / "map.nii.gz")
    assert (tmp_path / "a" / "map.nii.gz").read_bytes() == (tmp_path / "b" / "map.nii.gz").read_bytes()


# --- the template


def test_template():
    t1, brain = template("t1"), template("brain")
    assert np.allclose(nib.affines.voxel_sizes(t1.affine), 1) and t1.shape == brain.shape
    assert set(np.unique(brain.dataobj)) == {0, 1}
    assert 1700 < np.asarray(brain.dataobj).sum() / 1000 < 2000  # mL
    for kind in ("gm", "wm"):
        assert template(kind).shape == t1.shape and np.asarray(template(kind).dataobj).max() == 255


def test_slices_further_apart_are_some_of_the_same_slices(patient_scan):
    every = prepare_volume(patient_scan["image"])
    some = prepare_volume(patient_scan["image"], grid=Grid(z_spacing=6.0))
    heights = [
        [g.grid.affine[2, 3] + g.grid.step * k for k in g.slice_index]
        for g in (every.geometry, some.geometry)
    ]
    assert set(heights[1]) <= set(heights[0]) and 3 * len(some.image) == pytest.approx(
        len(every.image), abs=3
    )
    same = [heights[0].index(z) for z in heights[1]]
    np.testing.assert_allclose(some.image, every.image[same], atol=0.02)
    back = return_to_scan(some.image + 1, some.geometry)  # interpolated between the slices
    assert (
        np.asarray(back.dataobj)[np.asarray(nib.load(patient_scan["brain"]).dataobj) > 0] > 0
    ).mean() > 0.9
    assert Grid.from_dict(some.geometry.grid.to_dict()) == some.geometry.grid
