"""Figures are checked by their numbers: what is drawn, where, and in which words."""

import io
from types import SimpleNamespace

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from PIL import Image

from madad_lite import plotting
from madad_lite.evaluation import metrics
from madad_lite.plotting.canvas import CELLS, FALSE, HIT, MISSED, TRUTH
from madad_lite.plotting.scans import GAP
from madad_lite.plotting.schematic import BOXES

N, SIZE, LATENT, STEPS = 6, 24, 6, 3


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No figure stays open, and the user's settings stay as they were."""
    plt.close("all")
    before = dict(matplotlib.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


@pytest.fixture
def truth():
    mask = np.zeros((N, SIZE, SIZE), dtype=bool)
    mask[3, 8:14, 9:15] = True
    return mask


@pytest.fixture
def out(truth):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(N, 1, SIZE, SIZE, generator=generator) - 0.5
    score = 0.05 * torch.rand(N, 1, SIZE, SIZE, generator=generator) + 0.8 * torch.tensor(truth)[:, None]
    probability = torch.rand(STEPS, N, 1, LATENT, LATENT, generator=generator)
    return SimpleNamespace(
        image=image,
        reconstruction=image * 0.9,
        healed=image * 0.8,
        anomaly_map=score,
        brain=torch.ones(N, 1, SIZE, SIZE, dtype=torch.bool),
        mask_probability=probability,
        replaced=probability > 0.5,
        timesteps=torch.tensor([9, 5, 0]),
        prepared=None,
    )


@pytest.fixture
def decoded():
    return np.random.default_rng(1).uniform(-1, 1, (STEPS + 1, SIZE, SIZE))


def pictures(ax):
    return [np.ma.getdata(im.get_array()) for im in ax.get_images()]


def contours(ax):
    """The outlines of an axes; a QuadContourSet is one collection from matplotlib 3.8 on."""
    return [c for c in ax.collections if isinstance(c, ContourSet)]


def words(fig):
    """All text of a figure that is not a tick label."""
    found = [t.get_text() for t in fig.texts]
    for ax in fig.axes:
        found += [ax.get_title(), ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()]
        found += [t.get_text() for t in ax.texts]
        found += [t.get_text() for t in ax.get_legend().get_texts()] if ax.get_legend() else []
    return " | ".join(found)


# ---------------------------------------------------------------- slices and maps


def test_slice_grid_shows_each_slice_once_in_order(out):
    fig = plotting.slice_grid(out.image, titles=list("abcdef"), columns=4)
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert len(fig.axes) == 8 and len(shown) == N
    for i, ax in enumerate(shown):
        np.testing.assert_array_equal(pictures(ax)[0], out.image[i, 0])
        assert ax.get_images()[0].get_clim() == (-1, 1)
        assert ax.get_title() == "abcdef"[i]
    first, second, fifth = (fig.axes[i].get_position() for i in (0, 1, 4))
    assert first.x0 < second.x0 and first.y0 == second.y0 and fifth.y0 < first.y0


def test_slice_grid_draws_the_map_and_the_lesion_over_the_scan(out, truth):
    fig = plotting.slice_grid(out.image, overlay=out.anomaly_map, truth=truth, vmax=0.7, label="doubt")
    for i in range(N):
        scan, score = pictures(fig.axes[i])
        np.testing.assert_array_equal(scan, out.image[i, 0])
        np.testing.assert_array_equal(score, out.anomaly_map[i, 0])
        assert len(contours(fig.axes[i])) == int(truth[i].any())
    assert fig.axes[0].get_images()[1].get_clim() == (0, 0.7)
    assert "doubt" in words(fig)
    assert "anomaly score" in words(plotting.slice_grid(out.image, overlay=out.anomaly_map))


def test_slice_grid_refuses_wrong_titles_and_shapes(out):
    with pytest.raises(ValueError, match="2 titles for 6 slices"):
        plotting.slice_grid(out.image, titles=["a", "b"])
    with pytest.raises(ValueError, match=r"not shape \(6, 3, 24, 24\)"):
        plotting.slice_grid(out.image.repeat(1, 3, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_float_type_can_be_drawn(dtype):
    image = torch.full((1, 4, 4), 0.5, dtype=dtype, requires_grad=True)
    assert pictures(plotting.slice_grid(image).axes[0])[0] == pytest.approx(0.5)


def test_overlay_is_transparent_where_nothing_is_wrong(out, truth):
    fig = plotting.overlay(out.image[3], out.anomaly_map[3], truth[3])
    score = fig.axes[0].get_images()[1]
    alpha = score.get_alpha()
    assert alpha[truth[3]].min() > 0.7 and alpha[~truth[3]].max() < 0.1 and alpha.max() < 1
    np.testing.assert_array_equal(score.get_array(), out.anomaly_map[3, 0])
    assert len(fig.axes) == 2 and "true lesion" in words(fig)  # the picture and its colour bar
    assert "true lesion" not in words(plotting.overlay(out.image[3], out.anomaly_map[3]))
    with pytest.raises(ValueError, match="score: one slice"):
        plotting.overlay(out.image[3], out.anomaly_map)


def test_the_outline_follows_the_lesion_and_does_not_move_the_frame(out, truth):
    truth = truth.copy()
    truth[3, :4, :4] = True  # in the corner: its outline is to be closed as well
    ax = plotting.overlay(out.image[3], out.anomaly_map[3], truth[3]).axes[0]
    (outline,) = contours(ax)
    np.testing.assert_allclose(outline.get_edgecolor()[0], to_rgba(TRUTH))
    vertices = np.concatenate([path.vertices for path in outline.get_paths()])
    lesion = vertices[vertices[:, 0] > 6]
    np.testing.assert_allclose(
        lesion.min(0), (8.5, 7.5)
    )  # x, y: half a pixel outside columns 9-14, rows 8-13
    np.testing.assert_allclose(lesion.max(0), (14.5, 13.5))
    np.testing.assert_allclose(vertices.min(0), (-0.5, -0.5))
    assert ax.get_xlim() == (-0.5, SIZE - 0.5) and ax.get_ylim() == (SIZE - 0.5, -0.5)


def test_detection_figure_shows_the_five_stages_of_one_slice(out, truth):
    fig = plotting.detection_figure(out, 3, truth[3])
    for ax, field in zip(
        fig.axes, ("image", "reconstruction", "healed", "anomaly_map", "image"), strict=False
    ):
        np.testing.assert_array_equal(pictures(ax)[0], getattr(out, field)[3, 0])
    np.testing.assert_array_equal(pictures(fig.axes[4])[1], out.anomaly_map[3, 0])
    assert [len(contours(ax)) for ax in fig.axes[:5]] == [0, 0, 0, 1, 1]
    for word in (
        "slice 3",
        "scan",
        "reconstruction",
        "healed",
        "anomaly map",
        "true lesion",
        "anomaly score",
    ):
        assert word in words(fig)
    assert not any(contours(ax) for ax in plotting.detection_figure(out, 3).axes)
    one = SimpleNamespace(**{k: v[:1] if torch.is_tensor(v) else v for k, v in vars(out).items()})
    assert "slice" not in words(plotting.detection_figure(one, 0))  # there is only one


def test_slices_of_a_scan_are_named_by_their_height_in_mni_space(out):
    affine = np.array([[2, 0, 0, -95], [0, 2, 0, -113], [0, 0, 2, -62], [0, 0, 0, 1.0]])
    geometry = SimpleNamespace(grid=SimpleNamespace(affine=affine), slice_index=(20, 31, 37, 40, 41, 42))
    out.prepared = SimpleNamespace(geometry=geometry)
    assert plotting.slice_names(out)[:3] == ["z = -22 mm", "z = +0 mm", "z = +12 mm"]
    assert "z = +12 mm" in words(plotting.detection_figure(out, 2))


def test_threshold_figure_counts_and_colours_hits_false_alarms_and_misses():
    truth = np.zeros((SIZE, SIZE))
    truth[4:8, 4:8] = 1  # 16 voxels of lesion
    score = np.zeros((SIZE, SIZE))
    score[6:10, 4:8] = 0.5  # 16 found: 8 hits, 8 false alarms, 8 missed
    fig = plotting.threshold_figure(np.zeros((SIZE, SIZE)), score, 0.3, truth)
    painted = {im.get_cmap()(0): int(np.ma.count(im.get_array())) for im in fig.axes[2].get_images()[1:]}
    assert painted == {to_rgba(HIT): 8, to_rgba(FALSE): 8, to_rgba(MISSED): 8}
    assert "Dice = 0.50" in words(fig) and "score >= 0.30" in words(fig)
    for word in ("hit", "false alarm", "missed"):
        assert word in words(fig)
    above = plotting.threshold_figure(np.zeros((SIZE, SIZE)), score, 0.51, truth)
    assert "Dice = 0.00" in words(above)
    assert "none found" in words(plotting.threshold_figure(truth, score, 0.9, np.zeros_like(truth)))
    assert "16 voxels" in words(plotting.threshold_figure(truth, score, 0.3))


@pytest.mark.parametrize("threshold", [0.5, 0.7, float(np.float32(0.7)), 1.0])
def test_pictures_and_tables_agree_where_scores_equal_the_threshold(threshold):
    truth = np.zeros((1, 8, 8), dtype=bool)
    truth[0, :2] = True
    score = np.zeros((1, 8, 8), dtype=np.float32)
    score[0, 1:3], score[0, 3] = (
        threshold,
        threshold / 2,
    )  # half of the lesion is found, and as much beside it
    counted = metrics.dice_at(score, truth, threshold)["pooled"]
    picture = plotting.threshold_figure(score[0], score[0], threshold, truth[0])
    assert f"Dice = {counted:.2f}" in words(picture)
    assert f"at {threshold:.2f}" in words(plotting.dice_curve(score, truth, threshold=threshold))
    marked = plotting.dice_curve(score, truth, threshold=threshold).axes[0].lines[-1]
    assert marked.get_ydata()[0] == counted
    # the float32 nearest to 0.7 lies below 0.7; the others are met exactly
    assert counted == (0.0 if threshold == 0.7 else 0.5)


def test_scan_report_puts_the_most_anomalous_slices_first(out, truth):
    fig = plotting.scan_report(out, "sub-01_T1w", truth=truth, columns=2)
    per_slice = out.anomaly_map.sum(dim=(1, 2, 3)).numpy()
    top = sorted(np.argsort(-per_slice)[:2])
    assert 3 in top
    for column, i in enumerate(top):
        np.testing.assert_array_equal(pictures(fig.axes[column])[0], out.image[i, 0])
        np.testing.assert_array_equal(pictures(fig.axes[2 + column])[0], out.healed[i, 0])
        np.testing.assert_array_equal(pictures(fig.axes[4 + column])[1], out.anomaly_map[i, 0])
    curve = next(ax for ax in fig.axes if ax.lines)
    np.testing.assert_allclose(curve.lines[0].get_ydata(), per_slice, rtol=1e-6)
    strip = fig.axes[fig.axes.index(curve) + 1 :]
    assert len(strip) == 1 and len(strip[0].texts) == N  # all in one picture, with gaps
    row, score = pictures(strip[0])
    start = 5 * (SIZE + GAP)
    np.testing.assert_array_equal(row[:, start : start + SIZE], out.image[5, 0])
    np.testing.assert_array_equal(score[:, start : start + SIZE], out.anomaly_map[5, 0])
    assert np.isnan(row[:, start - GAP : start]).all() and row.shape[1] == N * SIZE + (N - 1) * GAP
    for word in ("sub-01_T1w", "2 most anomalous of 6 slices", "patient's left", "true lesion"):
        assert word in words(fig)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_scan_report_of_few_and_of_many_slices_stays_inside_the_page(n):
    image = torch.zeros(n, 1, SIZE, SIZE)
    out = SimpleNamespace(image=image, healed=image, anomaly_map=image, prepared=None)
    fig = plotting.scan_report(out, "scan")
    for ax in fig.axes:
        box = ax.get_position()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1 and box.y1 <= 1
    # stages, colour bar, curve, strips of ten
    assert len(fig.axes) == 3 * min(n, 4) + 1 + 1 + -(-min(n, 20) // 10)


def test_scan_report_keeps_the_slices_it_shows_apart():
    score = torch.zeros(60, 1, 8, 8)
    score[28:32] = 1.0  # one lesion in four neighbouring slices, ...
    score[10] = 0.5  # ... and a weaker one elsewhere
    out = SimpleNamespace(image=score, healed=score, anomaly_map=score, prepared=None)
    titles = [ax.get_title() for ax in plotting.scan_report(out, "scan").axes[:4]]
    assert "slice 28" in titles and "slice 10" in titles and "slice 29" not in titles


# ---------------------------------------------------------------- latents, masks, diffusion


def test_latent_channels_share_one_symmetric_scale():
    latents = np.random.default_rng(0).normal(size=(2, 4, LATENT, LATENT))
    fig = plotting.latent_channels(latents, titles=["healthy", "lesion"])
    assert len(fig.axes) == 9
    for r in range(2):
        for c in range(4):
            np.testing.assert_array_equal(pictures(fig.axes[4 * r + c])[0], latents[r, c])
    scales = {ax.get_images()[0].get_clim() for ax in fig.axes[:8]}
    assert len(scales) == 1 and sum(scales.pop()) == 0
    assert "channel 3" in words(fig) and "healthy" in words(fig)
    assert len(plotting.latent_channels(latents[0]).axes) == 5
    with pytest.raises(ValueError, match="latents"):
        plotting.latent_channels(latents[0, 0])


def test_forward_process_has_a_picture_per_step_after_the_mask(decoded):
    mask = np.zeros((LATENT, LATENT))
    mask[2, 3] = 1
    fig = plotting.forward_process(decoded, [0, 3, 6, 9], mask=mask)
    assert [ax.get_title() for ax in fig.axes] == ["noised cells", "t = 0", "t = 3", "t = 6", "t = 9"]
    np.testing.assert_array_equal(pictures(fig.axes[4])[0], decoded[3])
    cells = fig.axes[0].get_images()[1]
    np.testing.assert_array_equal(~np.ma.getmaskarray(cells.get_array()), mask.astype(bool))
    assert cells.get_cmap()(0) == to_rgba(CELLS)
    assert tuple(cells.get_extent()) == (
        -0.5,
        SIZE - 0.5,
        SIZE - 0.5,
        -0.5,
    )  # cells lie over their own pixels
    assert len(plotting.forward_process(decoded, [0, 3, 6, 9]).axes) == 4
    with pytest.raises(ValueError):
        plotting.forward_process(decoded, [0, 3])


def test_mask_examples_give_the_share_of_the_brain_that_is_noised():
    masks = np.zeros((3, 1, LATENT, LATENT))
    masks[1, 0, :3] = 1
    brain = np.zeros((LATENT, LATENT))
    brain[:4, :3] = 1  # 12 cells, 9 of them noised in the second example
    fig = plotting.mask_examples(masks, columns=2)
    assert [ax.get_title() for ax in fig.axes[:3]] == ["0% noised", "50% noised", "0% noised"]
    assert not fig.axes[3].get_visible()
    fig = plotting.mask_examples(masks, brain=brain)
    assert fig.axes[1].get_title() == "75% noised"
    np.testing.assert_array_equal(pictures(fig.axes[1])[0], brain.astype(bool))
    cells = fig.axes[1].get_images()[1].get_array()
    np.testing.assert_array_equal(~np.ma.getmaskarray(cells), masks[1, 0].astype(bool))
    scan = np.random.default_rng(0).uniform(-1, 1, (SIZE, SIZE))
    np.testing.assert_array_equal(pictures(plotting.mask_examples(masks, images=scan).axes[2])[0], scan)


def test_trajectory_has_a_column_a_step_and_the_healed_slice(out, decoded):
    fig = plotting.trajectory(out, 3, decoded)
    grid = np.array(fig.axes[: 4 * (STEPS + 1)]).reshape(4, STEPS + 1)
    for s in range(STEPS + 1):
        np.testing.assert_array_equal(pictures(grid[0, s])[0], decoded[s])
        np.testing.assert_array_equal(pictures(grid[1, s])[0], decoded[s] - decoded[0])
        assert grid[1, s].get_images()[0].get_clim() == (-1, 1)  # darker and brighter on one scale
    for s in range(STEPS):
        np.testing.assert_array_equal(pictures(grid[2, s])[0], out.mask_probability[s, 3, 0])
        assert grid[2, s].get_images()[0].get_clim() == (0, 1)
        cells = ~np.ma.getmaskarray(grid[3, s].get_images()[1].get_array())
        np.testing.assert_array_equal(cells, out.replaced[s, 3, 0])
    assert grid[0, 0].get_title() == "step 1 of 3\nt = 9" and grid[0, 3].get_title() == "healed"
    assert not grid[2, 3].get_visible() and not grid[3, 3].get_visible()
    with pytest.raises(ValueError, match="3 steps need 4 decoded latents"):
        plotting.trajectory(out, 3, decoded[:-1])


def test_trajectory_of_many_steps_shows_a_few_large_ones(out, decoded):
    fig = plotting.trajectory(out, 3, decoded, columns=2)
    assert [ax.get_title() for ax in fig.axes[:2]] == ["step 1 of 3\nt = 9", "healed"]
    np.testing.assert_array_equal(pictures(fig.axes[1])[0], decoded[STEPS])


def test_the_film_has_a_frame_a_step_and_the_healed_slice(out, decoded):
    film = Image.open(io.BytesIO(plotting.healing_film(out, 3, decoded, milliseconds=200)))
    assert film.format == "GIF" and film.n_frames == STEPS + 1
    times = []
    for frame in range(film.n_frames):
        film.seek(frame)
        times.append(film.info["duration"])
    assert times == [600, 200, 200, 800]


@pytest.mark.parametrize("lit", [None, *BOXES])
def test_the_method_lights_one_part(lit):
    fig = plotting.method(lit, image=256, latent=(4, 32, 32))
    texts = {t.get_text(): t for t in fig.axes[0].texts}
    assert {"N×1×256×256", "N×4×32×32", "N×1×32×32", "N×4×32×32\nN×1×32×32"} <= texts.keys()
    on = {words for words, text in texts.items() if "\n" in words and text.get_color() == "0"}
    wanted = BOXES if lit is None else [lit]
    boxes = {words for part in wanted for _, _, words in BOXES[part]}
    assert on == {words for words in boxes if "\n" in words}
    lit_boxes = [b for b in fig.axes[0].patches if to_rgba(CELLS) == b.get_edgecolor()]
    assert len(lit_boxes) == sum(len(BOXES[part]) for part in wanted)


def test_the_method_has_no_such_part():
    with pytest.raises(ValueError, match="no part 'loss' in the picture: choose from slice, encode"):
        plotting.method("loss")


def test_reverse_step_shows_before_and_after(out, decoded):
    fig = plotting.reverse_step(out, 3, 1, decoded)
    np.testing.assert_array_equal(pictures(fig.axes[0])[0], decoded[1])
    np.testing.assert_array_equal(pictures(fig.axes[1])[0], out.mask_probability[1, 3, 0])
    np.testing.assert_array_equal(pictures(fig.axes[3])[0], decoded[2])
    np.testing.assert_array_equal(pictures(fig.axes[4])[0], decoded[2] - decoded[0])
    assert f"{int(out.replaced[1, 3].sum())} of 36 cells" in words(fig)
    assert "Step 2 of 3  (t = 5)" in words(fig)


# ---------------------------------------------------------------- volumes


def ramp(affine, shape=(6, 8, 10)):
    return nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), affine)


def views(fig):
    """nilearn's three axes, of a ramp: sagittal, coronal, axial; it draws them in another order in some versions."""
    shown = [ax for ax in fig.axes if len(ax.get_images()) > 1]  # each has the black background below
    by_shape = {ax.get_images()[1].get_array().shape: ax for ax in shown}
    assert len(shown) == len(by_shape) == 3
    return [by_shape[shape] for shape in ((10, 8), (10, 6), (8, 6))]


def planes(fig):
    """The pictures of the views: the scan and what lies over it, with the top of the head first."""
    return [[np.ma.getdata(im.get_array()) for im in ax.get_images()[1:]] for ax in views(fig)]


def test_volume_view_cuts_three_planes_through_the_point(tmp_path):
    scan = ramp(np.diag([2.0, 2.0, 2.0, 1.0]))
    fig = plotting.volume_view(scan, point=(4, 6, 8), title="a ramp")
    data = scan.get_fdata()
    for (picture,), plane in zip(planes(fig), (data[2], data[:, 3], data[:, :, 4]), strict=True):
        np.testing.assert_array_equal(picture, plane.T[::-1])
    for word in ("x=4", "y=6", "z=8", "L", "R", "a ramp"):
        assert word in words(fig).split(" | ")
    nib.save(scan, tmp_path / "scan.nii.gz")
    from_file = plotting.volume_view(tmp_path / "scan.nii.gz", point=(4, 6, 8))
    np.testing.assert_array_equal(planes(from_file)[0][0], data[2].T[::-1])


def test_a_mask_over_a_volume_is_no_score():
    """It has no colour bar that speaks of scores."""
    scan = nib.Nifti1Image(np.arange(8.0 * 9 * 10).reshape(8, 9, 10).astype(np.float32), np.eye(4))
    half = np.zeros((8, 9, 10), np.float32)
    half[4:] = 1
    labels = [
        [axis.get_ylabel() for axis in plotting.volume_view(scan, nib.Nifti1Image(v, np.eye(4))).axes]
        for v in (half, 0.7 * half)
    ]
    assert "anomaly score" not in labels[0] and "anomaly score" in labels[1]


def test_volume_view_turns_any_orientation_to_ras():
    scan = ramp(np.diag([2.0, 2.0, 2.0, 1.0]))
    flipped = nib.Nifti1Image(
        scan.get_fdata()[::-1].astype("f4"),
        np.array([[-2, 0, 0, 10], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]]),
    )
    one, other = (planes(plotting.volume_view(v, point=(4, 6, 8))) for v in (scan, flipped))
    for (a,), (b,) in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_volume_view_goes_where_the_map_is_highest():
    scan = ramp(np.eye(4))
    score = np.zeros(scan.shape, dtype=np.float32)
    score[1, 2, 3], score[0, 2, 3] = 0.9, 0.09
    fig = plotting.volume_view(scan, nib.Nifti1Image(score, np.eye(4)), vmax=0.9)
    assert "z=3" in words(fig) and "anomaly score" in words(fig)
    assert planes(fig)[0][1].max() == np.float32(0.9)
    over = views(fig)[0].get_images()[2]
    assert over.get_clim() == (0, 0.9) and over.get_cmap().name == "magma"
    alpha = np.asarray(over.get_alpha())
    assert (
        alpha.max() == pytest.approx(0.75) and np.count_nonzero(alpha) == 1
    )  # elsewhere the scan shines through
    weak = plotting.volume_view(scan, nib.Nifti1Image(score, np.eye(4)), point=(0, 2, 3), vmax=0.9)
    over = views(weak)[0].get_images()[2]
    assert np.max(over.get_alpha()) == pytest.approx(
        0.15
    )  # weak is weak, though nothing else is in this plane
    score[1:6, 1:6, 2:7] = 1  # a flat top: its middle, not its first corner
    assert "z=4" in words(plotting.volume_view(scan, nib.Nifti1Image(score, np.eye(4))))
    with pytest.raises(ValueError, match="not the same grid"):
        plotting.volume_view(scan, nib.Nifti1Image(score[:4], np.eye(4)))


# ---------------------------------------------------------------- curves and bars


def log_lines(n=10):
    lines = [{"step": 10 * i, "lr": 1e-3, "loss": 2.0, "latent": 1 / (i + 1), "mask": 0.5} for i in range(n)]
    lines.append({"step": 90, "val_loss": 2.0, "val_latent": 0.3, "val_mask": 0.6})
    return lines


def test_training_curves_draw_both_losses_apart_with_validation():
    fig = plotting.training_curves(log_lines())
    assert (
        len(fig.axes) == 2
        and "latent loss" in fig.axes[0].get_title()
        and "mask loss" in fig.axes[1].get_title()
    )
    train, val = fig.axes[0].lines
    np.testing.assert_allclose(train.get_xdata(), np.arange(0, 100, 10))
    np.testing.assert_allclose(train.get_ydata(), 1 / np.arange(1, 11))
    assert (val.get_xdata()[0], val.get_ydata()[0]) == (90, 0.3)
    assert fig.axes[0].get_yscale() == "log" and fig.axes[1].get_yscale() == "linear"
    assert "validation" in words(fig) and "training" in words(fig)


def test_training_curves_read_the_run_folder_and_the_file(tmp_path):
    import json

    (tmp_path / "log.jsonl").write_text(
        "\n".join(map(json.dumps, [{"step": 1, "reconstruction": 0.2, "kl": 3.0}]))
    )
    for log in (tmp_path, tmp_path / "log.jsonl", str(tmp_path)):
        fig = plotting.training_curves(log)
        assert [ax.get_title().split()[0] for ax in fig.axes] == ["reconstruction", "KL"]
    with pytest.raises(FileNotFoundError, match="no training log here"):
        plotting.training_curves(tmp_path / "other.jsonl")
    with pytest.raises(ValueError, match="empty"):
        plotting.training_curves([])
    with pytest.raises(ValueError, match="no losses"):
        plotting.training_curves([{"step": 1, "lr": 0.1}])


def test_long_training_curves_are_smoothed_without_shifting_them():
    lines = [{"step": i, "loss": float(i)} for i in range(200)]
    raw, smooth = plotting.training_curves(lines).axes[0].lines
    np.testing.assert_allclose(smooth.get_ydata()[10:-10], raw.get_ydata()[10:-10])
    constant = plotting.training_curves([{"step": i, "loss": 2.0} for i in range(200)]).axes[0].lines[1]
    np.testing.assert_allclose(constant.get_ydata(), 2.0)  # also at both ends


def test_schedule_draws_the_two_factors():
    abar = np.linspace(0.99, 0.01, 10)
    for given in (abar, torch.tensor(abar), SimpleNamespace(alphas_cumprod=torch.tensor(abar))):
        left, right = plotting.schedule(given).axes
        np.testing.assert_allclose(left.lines[0].get_ydata(), abar)
        signal, noise = (line.get_ydata() for line in right.lines)
        np.testing.assert_allclose(signal**2 + noise**2, 1)
        np.testing.assert_allclose(signal, np.sqrt(abar))


def test_intensity_histogram_counts_only_the_brain():
    image = np.full((2, 4, 4), -1.0)
    brain = np.zeros((2, 4, 4), dtype=bool)
    brain[:, :2] = True
    image[brain] = 0.01
    (ax,) = plotting.intensity_histogram(image, brain).axes
    values, edges, _ = ax.patches[0].get_data()
    assert values.sum() == pytest.approx(100) and values[40] == pytest.approx(100)
    assert edges[40] <= 0.01 < edges[41] and ax.get_xlim() == (-1, 1)
    (ax,) = plotting.intensity_histogram([image, image], [brain, brain], ["one", "two"]).axes
    assert len(ax.patches) == 2 and [t.get_text() for t in ax.get_legend().get_texts()] == ["one", "two"]


def test_dice_curve_agrees_with_counting(out, truth):
    brain = np.zeros_like(truth)
    brain[:, 4:20, 4:20] = True
    score = out.anomaly_map[:, 0].numpy()
    score[3, 8:10, 9:15] = 0.5  # exactly at a threshold: found
    (ax,) = plotting.dice_curve(score, truth, brain, threshold=0.03, points=21).axes
    curve = ax.lines[0]
    for threshold, dice in zip(curve.get_xdata(), curve.get_ydata(), strict=True):
        found = (score >= threshold) & brain
        assert dice == pytest.approx(2 * (found & truth).sum() / max(1, found.sum() + truth.sum()))
    marked = next(line for line in ax.lines if "validation" in line.get_label())
    assert marked.get_xdata()[0] == 0.03
    assert "best: 1.00" in words(ax.figure)
    assert "validation" not in words(plotting.dice_curve(score, truth).axes[0].figure)
    with pytest.raises(ValueError, match="must have one shape"):
        plotting.dice_curve(score[:2], truth)


def test_precision_recall_names_its_area_and_the_level_of_guessing(out, truth):
    (ax,) = plotting.precision_recall(out.anomaly_map, truth, out.brain, label="MAD-AD").axes
    assert "MAD-AD (AP = 1.00)" in words(ax.figure)
    assert "guessing (AP = 0.010)" in words(ax.figure)
    assert ax.lines[1].get_ydata()[0] == pytest.approx(truth.mean())
    assert "AP = 1.00" in words(plotting.precision_recall(out.anomaly_map, truth))
    assert len(ax.lines[0].get_xdata()) <= 1000
    with pytest.raises(ValueError, match="no lesion voxel"):
        plotting.precision_recall(out.anomaly_map, np.zeros_like(truth))


def test_dice_by_size_draws_heights_and_intervals():
    results = {
        "small": {"dice": 0.2, "low": 0.1, "high": 0.4, "n": 12},
        "medium": (0.5, 0.4, 0.55),
        "large": 0.7,
    }
    (ax,) = plotting.dice_by_size(results).axes
    assert [bar.get_height() for bar in ax.patches] == [0.2, 0.5, 0.7]
    whiskers = [s[:, 1].tolist() for s in ax.collections[0].get_segments()]
    np.testing.assert_allclose(whiskers, [[0.1, 0.4], [0.4, 0.55], [0.7, 0.7]])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["small\n(n = 12)", "medium", "large"]
    assert [t.get_text() for t in ax.texts] == ["0.20", "0.50", "0.70"]


def test_compare_methods_has_a_panel_a_metric_and_shows_what_is_missing():
    results = {
        "MAD-AD": {"Dice": {"value": 0.5, "interval": [0.4, 0.6]}, "AP": 0.45},
        "threshold": {"Dice": 0.1},
    }
    dice, precision = plotting.compare_methods(results).axes
    assert (dice.get_title(), precision.get_title()) == ("Dice", "AP")
    assert [bar.get_width() for bar in dice.patches] == [0.5, 0.1]
    assert dice.patches[0].get_y() > dice.patches[1].get_y()  # the first method is on top
    assert [t.get_text() for t in dice.texts] == ["0.50", "0.10"]
    assert [t.get_text() for t in precision.texts] == ["0.45", "-"]
    assert dice.patches[0].get_facecolor() != dice.patches[1].get_facecolor()
    np.testing.assert_allclose(dice.collections[0].get_segments()[0][:, 0], [0.4, 0.6])


# ---------------------------------------------------------------- all of them


def test_every_figure_is_small_sharp_and_closed(out, truth, decoded, tmp_path):
    figures = [
        plotting.slice_grid(out.image, overlay=out.anomaly_map),
        plotting.overlay(out.image[3], out.anomaly_map[3], truth[3]),
        plotting.detection_figure(out, 3, truth[3]),
        plotting.threshold_figure(out.image[3], out.anomaly_map[3], 0.5, truth[3]),
        plotting.scan_report(out, "scan"),
        plotting.latent_channels(torch.zeros(4, LATENT, LATENT)),
        plotting.forward_process(decoded, range(4)),
        plotting.mask_examples(torch.zeros(6, 1, LATENT, LATENT)),
        plotting.trajectory(out, 3, decoded),
        plotting.reverse_step(out, 3, 0, decoded),
        plotting.method("reverse"),
        plotting.volume_view(ramp(np.eye(4))),
        plotting.training_curves(log_lines()),
        plotting.schedule(np.linspace(1, 0, 10)),
        plotting.intensity_histogram(out.image, out.brain),
        plotting.dice_curve(out.anomaly_map, truth),
        plotting.precision_recall(out.anomaly_map, truth),
        plotting.dice_by_size({"small": 0.1}),
        plotting.compare_methods({"MAD-AD": {"Dice": 0.5}}),
        plotting.patient_figure(out, truth, 3, 0.5),
        plotting.healing_figure(out, 3, truth[3], 0.5),
    ]
    for i, fig in enumerate(figures):
        assert isinstance(fig, Figure)
        width, height = fig.get_size_inches() * fig.dpi
        assert 200 < width < 1150 and 100 < height < 1150
        fig.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size < 200_000
    assert len(figures) == len(set(plotting.__all__) - {"read_log", "slice_names", "healing_film"})


# ---------------------------------------------------------------- a patient at one threshold, a healed slice


def test_patient_figure_counts_the_whole_volume(out, truth):
    out.anomaly_map = torch.zeros(N, 1, SIZE, SIZE)
    out.anomaly_map[3, 0, 8:14, 9:12] = 0.6  # half of the lesion
    out.anomaly_map[0, 0, :2, :9] = 0.4  # false alarms, in another slice than the one shown
    fig = plotting.patient_figure(out, truth, 3, 0.3)
    left, right = fig.axes
    dice = 2 * 18 / (36 + 36)
    assert right.get_title() == f"Whole volume: Dice {dice:.2f}\nlesion 36 voxels, false alarms 18 voxels"
    curve, point = right.lines
    assert point.get_xydata().tolist() == [[0.5, 0.5]]
    recall, precision = curve.get_data()
    assert (0.5, 1.0) in set(zip(recall, precision)) and recall.max() == 1.0
    assert left.get_title() == "slice 3"
    calm = plotting.patient_figure(out, np.zeros_like(truth), 3, 0.9)
    assert "nothing there, nothing found" in calm.axes[1].get_title() and not calm.axes[1].lines[1:]


def test_patient_figure_gives_millilitres_where_the_grid_is_known(out, truth):
    grid = SimpleNamespace(spacing=2.0, step=5.0, affine=np.eye(4))
    out.prepared = SimpleNamespace(geometry=SimpleNamespace(grid=grid, slice_index=range(N)))
    title = plotting.patient_figure(out, truth, 3, 0.3).axes[1].get_title()
    assert "lesion 0.7 mL, false alarms 0.0 mL" in title  # 36 voxels of 20 mm3


def test_healing_figure_shows_the_highest_probability_and_outlines_what_was_painted(out, truth):
    fig = plotting.healing_figure(out, 3, truth[3], threshold=0.5)
    panels = fig.axes[:4]
    shown = panels[1].get_images()[0]
    assert np.allclose(shown.get_array(), out.mask_probability[:, 3, 0].amax(0))
    assert np.allclose(panels[2].get_images()[0].get_array(), out.healed[3, 0])
    assert panels[3].get_title() == "anomaly map\nDice 1.00 at 0.50"
    assert all(any(isinstance(c, ContourSet) for c in ax.get_children()) for ax in panels)
    assert [ax.get_ylabel() for ax in fig.axes[4:]] == ["probability", "anomaly score"]
