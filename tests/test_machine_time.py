"""What keeps detection quick, small and a GPU busy, without a clock: which modules are loaded, how much memory a scan
takes at its most, and where a training step draws and waits.
"""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nilearn import datasets
from scipy import ndimage
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speed_training import Case  # noqa: E402
from madad_lite.detection.finding import find_parts
from madad_lite.scans import registration
from madad_lite.scans.nifti import load_volume, resample, return_to_scan
from madad_lite.scans.prepare import prepare_volume
from madad_lite.scans.registration import register_to_mni, template
from madad_lite.training import loader
from madad_lite.training.loader import drawn_ahead, worker_count
from madad_lite.training.loop import train_model
from madad_lite.training.settings import TrainingConfig

# --- what is imported

NOT_NEEDED = "nilearn pandas sklearn transformers"
DETECTION = f"""
import sys
import SimpleITK
from madad_lite import MadAdPipeline
from madad_lite.detection import many_scans
from madad_lite.plotting import scan_report
from madad_lite.scans.registration import template
MadAdPipeline.from_pretrained("t1"), template("t1")
print(sorted(set("{NOT_NEEDED}".split()) & set(sys.modules)))

"""


def test_detection_imports_what_it_needs():
    done = subprocess.run([sys.executable, "-c", DETECTION], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("kind, load", [("t1", "template"), ("gm", "gm_template"), ("wm", "wm_template")])
def test_the_template_read_from_its_file_is_nilearns(kind, load):
    theirs = getattr(datasets, f"load_mni152_{load}")(resolution=1)
    assert np.array_equal(template(kind).affine, theirs.affine)
    assert np.array_equal(
        np.asarray(template(kind).dataobj), np.asarray(theirs.dataobj, np.float32) * np.float32(255)
    )


# --- memory


SIDE, SPACING = 192, 1.0  # of the scan, voxels and mm: its 28 MB stand out against the template's
VOXELS = SIDE**3


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """A stripped scan, int16 with a scale, that nibabel would turn into double precision."""
    x, y, z = (np.arange(SIDE) - SIDE / 2 for _ in range(3))
    r = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
    data = np.where(r < 72, 1000 - 4 * r, 0).astype(np.int16)  # brightest in its middle: no skull
    affine = nib.affines.from_matvec(np.eye(3), [-SIDE / 2, -18 - SIDE / 2, 9 - SIDE / 2])
    image = nib.Nifti1Image(data, affine)
    image.header.set_slope_inter(0.37, 0)
    path = tmp_path_factory.mktemp("ball") / "ball.nii"
    nib.save(image, path)
    return path


def peak(call) -> float:
    """Bytes a voxel of the ball, the most that the call holds at one time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / VOXELS
    finally:
        tracemalloc.stop()


def test_a_scaled_scan_is_read_plane_by_plane_with_nibabels_numbers(ball):
    theirs = np.asarray(np.asarray(nib.load(ball).dataobj), np.float32)
    assert np.array_equal(np.asarray(load_volume(ball).dataobj), theirs)
    assert peak(lambda: load_volume(ball)) < 8  # int16 and float32 beside each other: 6


def test_memory_of_preparing_a_scan(ball, monkeypatch):
    prepare_volume(ball, register=False)  # what comes once: template, imports
    assert peak(lambda: prepare_volume(ball, register=False)) < 12
    monkeypatch.setattr(registration, "_optimise", lambda *_: 0.0)  # ITK sees 4 mm only
    scan = load_volume(ball)
    brain = np.asarray(scan.dataobj) > 0
    register_to_mni(scan, brain)
    assert peak(lambda: register_to_mni(scan, brain)) < 7  # beside the scan, which is float32 and so 4


def test_the_cubic_spline_needs_no_copy_in_double_precision():
    data = np.random.default_rng(0).normal(size=(100, 100, 100)).astype(np.float32)
    by_scipy = ndimage.affine_transform(data, 2 * np.eye(3), output_shape=(40, 40, 40), order=3)
    tracemalloc.start()
    ours = resample(data, np.diag([2, 2, 2, 1]), (40, 40, 40), 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < data.nbytes / 2 and np.abs(ours - by_scipy).max() < 1e-5


def test_memory_of_the_way_back(ball):
    geometry = prepare_volume(ball, register=False).geometry
    slices = np.zeros((len(geometry.slice_index), geometry.grid.size, geometry.grid.size), np.float32)
    slices[30:40, 40:50, 40:50] = 1
    kept = []
    assert peak(lambda: kept.append(return_to_scan(slices, geometry))) < 5  # float32: 4
    assert peak(lambda: kept.append(find_parts(kept[0], np.eye(4), 0.5))) < 3
    assert len(kept[1].parts) == 1 and np.asarray(kept[1].mask.dataobj).sum() > 1000


def test_smoothing_around_the_brain_is_smoothing_the_whole():
    rng = np.random.default_rng(0)
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    brain = np.zeros((60, 50, 40), bool)
    brain[25:40, 2:30, 12:20] = True  # near one side: there it ends as the whole does
    data = np.where(brain, rng.random(brain.shape, np.float32), np.float32(0))
    for spacing in (8.0, 4.0):
        whole, around = (registration._coarse(data.copy(), affine, spacing, b) for b in (None, brain))
        assert np.array_equal(np.asarray(whole.dataobj), np.asarray(around.dataobj))


# --- a training step

CPU = torch.device("cpu")


def train(out, steps: int = 9):
    """A small training that draws; its weights, and by how many processes its batches were drawn."""
    torch.manual_seed(0)
    model, data = torch.nn.Linear(4, 1), [{"x": torch.arange(4.0) + i} for i in range(20)]

    def draw(batch, generator):
        noise = torch.randn(batch["x"].shape, generator=generator)
        return {"x": batch["x"] + noise, "pid": torch.full((len(noise),), float(os.getpid()))}

    def losses_of(model, batch, generator):
        pids.append(batch["pid"])
        return {"loss": model(batch["x"]).square().mean()}

    pids = []
    config = TrainingConfig(
        steps=steps, batch_size=8, validate_every=100, checkpoint_every=100, warmup_steps=1
    )
    validate = lambda model, device: {"val_loss": 1.0}  # noqa: E731
    train_model(model, data, out, config, losses_of=losses_of, validate=validate, draw=draw, progress=False)
    return model.weight.detach(), set(torch.cat(pids).tolist())


def test_workers_draw_ahead_and_change_nothing(tmp_path, monkeypatch):
    own, drawn_by = train(tmp_path / "own")
    assert drawn_by == {os.getpid()} and worker_count(CPU) == 0
    monkeypatch.setattr(loader, "worker_count", lambda *_: 2)
    ahead, drawn_by = train(tmp_path / "ahead")
    assert len(drawn_by) == 2 and os.getpid() not in drawn_by
    assert torch.equal(own, ahead)


def test_batches_come_in_their_order_with_any_number_of_workers(monkeypatch):
    rows = [{"x": torch.tensor(float(i))} for i in range(10)]
    order = [(n, [n % 10, (n + 1) % 10]) for n in range(12)]
    found = []
    for workers in (0, 2):
        monkeypatch.setattr(loader, "worker_count", lambda *_, workers=workers: workers)
        batches = drawn_ahead(rows, order, lambda batch, n: batch | {"n": torch.tensor(n)}, CPU)
        assert not batches.pin_memory  # that is for a GPU's sake
        found.append([(b["n"].item(), b["x"].tolist()) for b in batches])
    assert found[0] == found[1] == [(n, [float(i) for i in rows]) for n, rows in order]


class Readings(TorchDispatchMode):
    """Where a tensor's value is read (`.item()`, `if x:`), for which a GPU would have to be waited."""

    def __init__(self):
        super().__init__()
        self.where = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            frame = sys._getframe(1)
            files = []
            while frame is not None:
                files.append(frame.f_code.co_filename)
                frame = frame.f_back
            # AdamW counts its steps on the CPU, whatever the device
            if not any(os.path.join("torch", "optim") in f for f in files):
                self.where.append(files[:6])
        return function(*args, **(kwargs or {}))


def test_a_step_reads_no_value_but_for_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "worker_count", lambda *_: 1)  # what is drawn is drawn elsewhere
    counts = []
    for steps in (9, 13):  # the log is written at steps 1, 10 and the last
        with Readings() as readings:
            train(tmp_path / str(steps), steps)
        counts.append(len(readings.where))
    with Readings() as readings:
        train(tmp_path / "few", 8)
    assert counts[0] == len(readings.where)  # one step more, nothing more is read
    assert counts[1] > counts[0]  # and the log does read


def test_the_denoisers_step_reads_no_value():
    case = Case("nano", "nano", 2, 32, CPU)
    fast, batch = case.fast(), next(case.batches)
    fast.step(batch)
    with Readings() as readings:
        fast.step(batch)
    assert readings.where == []
