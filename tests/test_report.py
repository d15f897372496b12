"""What `detect` says of a scan: which parts were found, which contrast it has, and the page about it."""

import csv
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest
import torch

from madad_lite import plotting
from madad_lite.detection.finding import COLUMNS, find_parts
from madad_lite.detection.record import healthy_range
from madad_lite.evaluation import counts
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.contrast import contrast_seen, tissue_medians
from madad_lite.scans.grid import Grid
from madad_lite.scans.nifti import return_to_scan, save_nifti
from madad_lite.scans.prepare import prepare_volume
from madad_lite.simulation.cohort import simulate_subject
from madad_lite.slices.folder import prepare_folder
from madad_lite.weights import shipped

THRESHOLD = 0.435


def score_map(*blocks) -> nib.Nifti1Image:
    """A map of 2 mm voxels, 0.008 mL each; blocks: (score, corner, side in voxels)."""
    values = np.zeros((40, 40, 40), np.float32)
    for score, corner, side in blocks:
        values[tuple(slice(c, c + side) for c in corner)] = score
    return nib.Nifti1Image(values, nib.affines.from_matvec(np.diag([-2.0, 2, 2]), [40, -30, -20]))


def test_parts_have_their_volume_and_place_and_specks_are_only_counted(tmp_path):
    to_mni = nib.affines.from_matvec(np.eye(3), [1, 2, 3])
    blocks = (0.5, (2, 2, 2), 3), (0.9, (20, 20, 20), 5), (0.435, (30, 2, 2), 2), (0.4, (2, 30, 30), 5)
    found = find_parts(score_map(*blocks), to_mni, THRESHOLD)
    assert [p.volume_ml for p in found.parts] == pytest.approx([125 * 0.008, 27 * 0.008])
    assert found.smaller == 1 and found.smaller_ml == pytest.approx(0.064)  # at the threshold counts as above
    largest = found.parts[0]
    assert largest.centre == pytest.approx((40 - 2 * 22 + 1, -30 + 2 * 22 + 2, -20 + 2 * 22 + 3))
    assert largest.max_score == pytest.approx(0.9)
    assert (
        found.sentence
        == "1.2 mL above the threshold (0.435), in 2 parts; 1 spot of less than 0.1 mL left out"
    )
    assert found.lines()[0] == "1: 1.0 mL at x -3, y +16, z +27 mm, score up to 0.90"
    mask = np.asarray(found.mask.dataobj)
    assert mask.dtype == np.uint8 and mask.sum() == 125 + 27 and mask[31, 3, 3] == 0
    found.write_csv(tmp_path / "found.csv")
    rows = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS and [r["part"] for r in rows] == ["1", "2"]
    assert sum(float(r["volume_ml"]) for r in rows) == pytest.approx(found.volume_ml)
    assert (rows[0]["x_mm"], rows[0]["threshold"]) == ("-3.0", "0.435")


def test_nothing_is_said_in_words(tmp_path):
    for blocks, sentence in (
        ([], "nothing above the threshold (0.435)"),
        ([(0.4, (2, 2, 2), 9)], "nothing above the threshold (0.435)"),
        ([(0.5, (2, 2, 2), 2)], "nothing above the threshold (0.435) but 1 spot of less than 0.1 mL"),
    ):
        found = find_parts(score_map(*blocks), np.eye(4), THRESHOLD)
        assert found.sentence == sentence and not found.parts and not np.asarray(found.mask.dataobj).any()
    found.write_csv(tmp_path / "found.csv")
    assert (tmp_path / "found.csv").read_text().split() == [",".join(COLUMNS)]


def test_parts_that_touch_at_a_corner_are_one():
    found = find_parts(score_map((0.5, (2, 2, 2), 4), (0.5, (6, 6, 6), 4)), np.eye(4), THRESHOLD)
    assert len(found.parts) == 1


@pytest.mark.parametrize(("threshold", "parts"), [(0.7, 0), (0.69, 1), (0.0, 1)])
def test_found_is_what_pictures_and_tables_count(threshold, parts):
    """0.7 in single precision lies below 0.7; and where the score is 0 nothing is found at any threshold."""
    score = score_map((0.7, (2, 2, 2), 4))
    found = find_parts(score, np.eye(4), threshold)
    assert len(found.parts) == parts and found.volume_ml == pytest.approx(parts * 64 * 0.008)
    if threshold:
        assert counts.found(np.asarray(score.dataobj), threshold).any() == bool(parts)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """{contrast: slices} of two subjects, one with a large lesion."""
    folder, scans = tmp_path_factory.mktemp("contrasts"), []
    for seed, lesion in ((3, None), (4, "glioma")):
        contrasts = ("t1", "t2", "flair", "t1ce")
        subject = simulate_subject(seed, contrasts=contrasts, lesion=lesion, spacing=4.0)
        for contrast, image in subject.images.items():
            save_nifti(image, path := folder / f"{seed}_{contrast}.nii.gz")
            scans.append((contrast, prepare_volume(path, grid=Grid(spacing=4.0, size=48), register=False)))
    return scans


def test_the_contrast_is_seen_from_the_order_of_the_tissues(prepared):
    for contrast, scan in prepared:
        assert contrast_seen(scan) == {"t1ce": "t1"}.get(contrast, contrast), tissue_medians(scan)


def test_a_scan_of_another_contrast_among_those_to_prepare_is_warned_of(tmp_path, caplog):
    subject = simulate_subject(3, contrasts=("t1", "flair"), spacing=4.0)
    (tmp_path / "in").mkdir()
    for name, contrast in (("a", "t1"), ("b", "flair")):  # names that say nothing of the contrast
        save_nifti(subject.images[contrast], tmp_path / "in" / f"{name}.nii.gz")
    for _ in range(2):  # the second time nothing is prepared
        caplog.clear()
        grid = Grid(spacing=4.0, size=48)
        manifest = prepare_folder(tmp_path / "in", tmp_path / "out", grid=grid, workers=1, progress=False)
        assert len(manifest.scans()) == 2 and not manifest.skipped
        (warning,) = caplog.messages
        assert warning.startswith(str(tmp_path / "in" / "b.nii.gz"))
        assert "prepared as T1, and looks like FLAIR" in warning


def test_what_is_not_clear_is_left_open(prepared):
    _, scan = prepared[0]
    few = SimpleNamespace(
        image=scan.image[-2:],
        brain=scan.brain[-2:],
        geometry=SimpleNamespace(grid=scan.geometry.grid, slice_index=scan.geometry.slice_index[-2:]),
    )
    assert tissue_medians(few) is None and contrast_seen(few) is None  # no CSF at the top of the head
    flat = SimpleNamespace(image=np.zeros_like(scan.image), brain=scan.brain, geometry=scan.geometry)
    assert contrast_seen(flat) is None


@pytest.fixture
def page(prepared):
    """A scan with one bright block, as the pipeline gives it."""
    _, scan = prepared[0]
    image = torch.from_numpy(scan.image)[:, None]
    score = torch.zeros_like(image)
    score[10:14, :, 20:26, 20:26] = 0.8
    return SimpleNamespace(image=image, healed=image, anomaly_map=score, prepared=scan)


def words(fig) -> str:
    return "\n".join(text.get_text() for text in fig.findobj(lambda artist: hasattr(artist, "get_text")))


def test_the_page_says_first_what_was_found_and_marks_the_threshold(page):
    found = find_parts(score_map(*((0.5, (2 + 6 * i, 2, 2), 3) for i in range(6))), np.eye(4), THRESHOLD)
    fig = plotting.scan_report(page, "a$_$b", found=found, about="Weights: t1, for T1 contrast.")
    lines = [text.get_text() for text in fig.texts]
    assert lines[0] == r"a\$_\$b" and lines[1].startswith("1.3 mL above the threshold (0.435), in 6 parts")
    assert lines[2].startswith("1: 0.2 mL at x") and "... and 2 more parts, in the table" in lines
    assert "Weights: t1, for T1 contrast." in lines
    bar = next(ax for ax in fig.axes if "score" in ax.get_ylabel())
    assert THRESHOLD in bar.get_yticks() and any(line.get_ydata()[0] == THRESHOLD for line in bar.lines)
    fig.canvas.draw()  # no formula between the dollar signs
    top = max(ax.get_position().y1 for ax in fig.axes)
    box = fig.texts[lines.index(next(x for x in lines if "most anomalous" in x))].get_window_extent()
    assert box.y0 / fig.bbox.height > top  # the words end above the pictures


def test_the_page_outlines_what_was_found_on_the_scans_own_grid(page):
    """And not what lies above the threshold on the slices alone."""
    geometry, slices = page.prepared.geometry, page.anomaly_map[:, 0].numpy()
    for level, told in ((1.0, True), (0.99 * THRESHOLD / slices.max(), False)):
        found = find_parts(return_to_scan(level * slices, geometry), geometry.to_mni, THRESHOLD)
        fig = plotting.scan_report(page, "scan", found=found)
        white = [
            c
            for ax in fig.axes
            for c in ax.collections
            if len(c.get_edgecolor()) and tuple(c.get_edgecolor()[0]) == (1, 1, 1, 1)
        ]
        assert len(found.parts) == told and bool(white) == told
        assert ("white outline: what was found" in "".join(text.get_text() for text in fig.texts)) == told
        plt.close(fig)


def test_the_curve_has_one_scale_and_healthy_subjects_behind_it(page):
    healthy = {"who": "3 subjects", "z_mm": [-60.0, 80.0], "lowest": [1.0, 1.0], "highest": [2.0, 2.0]}
    tops = []
    for factor in (1, 0.01):
        quiet = SimpleNamespace(**{**vars(page), "anomaly_map": page.anomaly_map * factor})
        fig = plotting.scan_report(quiet, "scan", healthy=healthy)
        curve = next(ax for ax in fig.axes if ax.get_title("left").startswith("Anomaly score summed"))
        tops.append(curve.get_ylim())
        assert "range of 3 subjects" in curve.get_title("left")
        (band,) = curve.collections
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() == 1 and heights.max() == 2
    assert tops[0] == tops[1] == pytest.approx((0, 0.1 * 48 * 48))


def test_shipped_weights_know_the_range_of_healthy_subjects():
    for name in shipped():
        pipe = MadAdPipeline.from_pretrained(name)
        healthy = healthy_range(pipe)
        assert [c for c in ("FLAIR", "T2", "T1CE") if c in healthy["who"]] == (
            [] if name == "t1" else [name.upper()]
        )
        low, median, high = (np.array(healthy[k]) for k in ("lowest", "median", "highest"))
        assert len(healthy["z_mm"]) == len(low) and (low <= median).all() and (median <= high).all()
    pipe.register_to_config(_name_or_path="")
    assert healthy_range(pipe) is None
