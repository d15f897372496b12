"""The pipeline as it is called: arguments that make no sense are refused before any work, and what diffusers' pipelines
offer works: precision, offloading, progress bars, callbacks, tuples, threads.
"""

import threading

import numpy as np
import pytest
import torch
from tiny_models import tiny  # noqa: F401

from madad_lite.autoencoder import make_autoencoder
from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import make_scheduler
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.grid import Geometry, Grid, PreparedScan


@pytest.fixture(scope="module")
def parts(tiny):  # noqa: F811
    torch.manual_seed(0)
    return make_autoencoder("tiny").eval(), Denoiser.of_size("tiny").eval(), make_scheduler()


@pytest.fixture
def pipe(parts):
    """Every cell is replaced at every step: the maps depend on the whole of the schedule."""
    return MadAdPipeline(*parts, mask_threshold=0.0, eta=0.0, gamma=None)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def prepared(images):
    grid = Grid(size=32, z_range=(0.0, 4.0))
    slices = images[:, 0].numpy()
    return PreparedScan(slices, slices > -1, None, Geometry((3, 3, 3), np.eye(4), np.eye(4), grid, (0, 1, 2)))


def no_work(*arguments, **options):
    pytest.fail("worked")


# ---------------------------------------------------------------- arguments


def test_misspelt_arguments_are_refused(pipe, images, prepared):
    brain = images > -1
    for scan in (images, prepared, "scan.nii.gz"):
        with pytest.raises(TypeError, match="brian"):
            pipe(scan, brian=brain)
    with pytest.raises(TypeError, match="brian"):
        pipe.prepare("scan.nii.gz", brian="mask.nii.gz")
    with pytest.raises(TypeError, match="gama"):
        MadAdPipeline(**pipe.components, gama=0.1)


@pytest.mark.parametrize(
    "argument", ["brain", "volumes", "channel", "register", "z_range", "z_spacing"], ids=lambda x: x
)
def test_a_prepared_scan_has_all_that_already(pipe, prepared, argument, monkeypatch):
    monkeypatch.setattr(pipe, "encode", no_work)
    values = dict(
        brain=prepared.brain, volumes=[0, 0, 0], channel=0, register=True, z_range=(0, 1), z_spacing=4
    )
    with pytest.raises(ValueError, match=f"{argument}= cannot be used with a prepared scan"):
        pipe(prepared, **{argument: values[argument]})


def test_arguments_of_a_file_are_refused_with_slices_and_the_other_way_round(pipe, images, monkeypatch):
    monkeypatch.setattr(pipe, "encode", no_work)
    monkeypatch.setattr(pipe, "prepare", no_work)
    for options in (dict(channel=0), dict(register=False), dict(z_range=(0, 1)), dict(z_spacing=2.0)):
        with pytest.raises(ValueError, match=f"{next(iter(options))}= cannot be used with slices"):
            pipe(images, **options)
    with pytest.raises(ValueError, match="volumes= cannot be used with a scan"):
        pipe("scan.nii.gz", volumes=[0])
    with pytest.raises(ValueError, match="mask.nii.gz: a mask file belongs to a scan"):
        pipe(images, brain="mask.nii.gz")


def test_a_files_arguments_arrive(pipe, prepared, monkeypatch):
    seen = {}
    monkeypatch.setattr("madad_lite.pipeline.prepare_volume", lambda scan, **o: seen.update(o) or prepared)
    options = dict(brain="m.nii.gz", channel=1, register=False)
    out = pipe("scan.nii.gz", **options, z_range=(0, 9), z_spacing=3, progress=False)
    assert out.prepared is prepared and {k: seen[k] for k in options} == options
    assert seen["grid"].z_range == (0.0, 9.0) and seen["grid"].step == 3


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(eta=-1), "eta lies between 0 and 1"),
        (dict(eta=2), "eta"),
        (dict(eta=float("nan")), "eta"),
        (dict(mask_threshold=float("nan")), "mask_threshold"),
        (dict(mask_threshold=1.5), "mask_threshold"),
        (dict(num_inference_steps=0), "num_inference_steps"),
        (dict(num_inference_steps=-5), "num_inference_steps"),
        (dict(num_inference_steps=11), "num_inference_steps lies between 1 and 10, not 11"),
        (dict(num_inference_steps=2.5), "num_inference_steps"),
        (dict(score="pixel"), "score"),
        (dict(volumes=[0]), "volume of each of the 3 slices"),
        (dict(brain=torch.ones(1, 1, 32, 32)), "shape of the slices"),
    ],
)
def test_refused_before_any_work(parts, images, options, message, monkeypatch):
    pipe = MadAdPipeline(*parts, neighbour_sigma=2.0)
    monkeypatch.setattr(pipe, "encode", no_work)
    with pytest.raises(ValueError, match=message) as error:
        pipe(images, **options)
    assert "\n" not in str(error.value)


def test_slices_of_a_wrong_size_are_refused(pipe):
    for shape in ((1, 1, 36, 32), (0, 1, 32, 32)):
        with pytest.raises(ValueError, match="slices"):
            pipe(torch.zeros(shape))


def test_an_unknown_contrast_is_refused_before_it_is_needed(parts):
    with pytest.raises(ValueError, match="no such contrast: 'pd'; choose one of t1, t1ce, t2, flair"):
        MadAdPipeline(*parts, contrast="pd")


def test_slices_and_masks_may_be_arrays_or_tensors_of_any_precision(pipe, images):
    brain = images > 0
    expected = pipe(images, brain=brain, progress=False).anomaly_map
    assert (expected[~brain] == 0).all()
    for x, mask in (
        (images.numpy(), brain[:, 0].numpy()),
        (images[:, 0].double(), brain.int()),
        (list(images), brain),
    ):
        torch.testing.assert_close(pipe(x, brain=mask, progress=False).anomaly_map, expected)


# ---------------------------------------------------------------- as a pipeline of diffusers


def test_half_precision_gives_maps_in_single(pipe, parts, images, tmp_path):
    pipe.save_pretrained(tmp_path)
    single = pipe(images, progress=False).anomaly_map
    for loaded in (
        MadAdPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16),
        MadAdPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16),
        MadAdPipeline.from_pretrained(tmp_path).to(torch.bfloat16),
    ):
        assert loaded.denoiser.dtype == loaded.autoencoder.dtype == torch.bfloat16
        out = loaded(images, progress=False)
        assert all(x.dtype == torch.float32 for x in (out.anomaly_map, out.healed, out.trajectory))
        assert not torch.equal(out.anomaly_map, single) and (out.anomaly_map - single).abs().max() < 0.05


def test_stored_in_half_computed_in_single(parts, tmp_path):
    pipe = MadAdPipeline(*parts)
    pipe.save_pretrained(tmp_path / "single")
    half = MadAdPipeline.from_pretrained(tmp_path / "single", torch_dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    again = MadAdPipeline.from_pretrained(tmp_path / "half")
    assert again.denoiser.dtype == again.autoencoder.dtype == torch.float32


def test_progress_bars_are_the_users(pipe, images, capsys):
    pipe(images)
    assert "healing" in capsys.readouterr().err
    pipe(images, progress=False)
    pipe.set_progress_bar_config(disable=True)
    pipe(images)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="mine")
    pipe(images)
    assert "mine" in capsys.readouterr().err


def test_parts_can_wait_on_the_cpu(pipe, parts, images):
    """As far as it goes without a GPU: the hooks are set, used, and there for the next call."""
    expected = pipe(images, progress=False).anomaly_map
    pipe.enable_model_cpu_offload(device="cpu")
    try:
        for _ in range(2):
            assert torch.equal(pipe(images, progress=False).anomaly_map, expected)
            assert len(pipe._all_hooks) == 2 and all(hasattr(m, "_hf_hook") for m in parts[:2])
    finally:
        pipe.remove_all_hooks()


def test_callback_sees_every_step_and_may_change_it(pipe, images):
    seen = []

    def look(given, step, t, values):
        assert given is pipe and list(values) == ["latents"]
        seen.append((step, int(t), len(values["latents"])))
        if step == 4:
            return {"latents": torch.zeros_like(values["latents"])}

    out = pipe(images, batch_size=2, progress=False, callback_on_step_end=look)
    once = [(i, 9 - i) for i in range(10)]
    assert seen == [(*x, 2) for x in once] + [(*x, 1) for x in once]  # a batch of two slices, then one of one
    assert not out.trajectory[5].any() and out.trajectory[4].any()
    untouched = pipe(images, batch_size=2, progress=False)
    assert torch.equal(out.trajectory[:5], untouched.trajectory[:5])
    assert not torch.equal(out.anomaly_map, untouched.anomaly_map)


def test_a_tuple_where_it_is_asked_for(pipe, images):
    out = pipe(images, progress=False, return_dict=False)
    assert isinstance(out, tuple) and torch.equal(out[0], pipe(images, progress=False).anomaly_map)


def test_two_threads_may_use_one_pipeline(pipe, images):
    """Both are within their reverse process at the same time, with another number of steps each."""
    steps = (10, 2)
    alone = {n: pipe(images, num_inference_steps=n, progress=False).anomaly_map for n in steps}
    both, found = threading.Barrier(2, timeout=60), {}

    def run(n):
        def wait(pipe, step, t, values):
            if step == 0:
                both.wait()

        options = dict(num_inference_steps=n, progress=False, callback_on_step_end=wait)
        found[n] = pipe(images, **options).anomaly_map

    threads = [threading.Thread(target=run, args=(n,)) for n in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torch.equal(alone[10], alone[2])
    assert all(torch.equal(found[n], alone[n]) for n in steps)


def test_the_reconstruction_is_left_out_where_nobody_needs_it(parts, images, monkeypatch):
    decoded, decode = [], MadAdPipeline.decode
    monkeypatch.setattr(MadAdPipeline, "decode", lambda self, z, *a: decoded.append(z) or decode(self, z, *a))
    for reference, times in (("input", 1), ("reconstruction", 2)):
        pipe = MadAdPipeline(*parts, mask_threshold=0.0, eta=0.0, reference=reference)
        whole, decoded[:] = pipe(images, progress=False), []
        part = pipe(images, progress=False, reconstruct=False)
        assert len(decoded) == times and (part.reconstruction is None) == (times == 1)
        assert torch.equal(part.anomaly_map, whole.anomaly_map) and torch.equal(part.healed, whole.healed)
