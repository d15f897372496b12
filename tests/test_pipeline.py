"""The pipeline: shipped weights on a scan and on slices, saved and loaded, repeatable, whatever the batch
size.
"""

from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from madad_lite import plotting
from madad_lite.autoencoder import make_autoencoder
from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import make_scheduler
from madad_lite.evaluation.metrics import average_precision
from madad_lite.extensions.memory import fitting_batch
from madad_lite.family import BASELINES
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.nifti import save_nifti
from madad_lite.simulation.cohort import simulate_subject
from madad_lite.weights import shipped


@pytest.fixture(scope="module")
def pipe():
    return MadAdPipeline.from_pretrained("t1")


@pytest.fixture(scope="module")
def output(pipe, patient_scan):
    return pipe(patient_scan["image"], generator=torch.Generator().manual_seed(0), progress=False)


@pytest.fixture
def slices(output):
    rows = output.brain.flatten(1).sum(1).argsort(descending=True)[:3]
    return output.image[rows], output.brain[rows]


def test_a_scan_gives_every_field(output):
    n, _, h, w = output.image.shape
    assert (
        output.anomaly_map.shape
        == output.healed.shape
        == output.reconstruction.shape
        == output.brain.shape
        == (n, 1, h, w)
    )
    assert output.mask_probability.shape == output.replaced.shape == (10, n, 1, h // 4, w // 4)
    assert output.trajectory.shape == (11, n, 4, h // 4, w // 4) and output.timesteps.tolist() == list(
        range(9, -1, -1)
    )
    assert 0 <= output.anomaly_map.min() and output.anomaly_map.max() <= 1
    assert (output.anomaly_map[~output.brain] == 0).all() and (output.healed[~output.brain] == -1).all()
    assert output.healed.abs().max() <= 1 and len(output.prepared.geometry.slice_index) == n


@pytest.mark.parametrize("field", ["mask_probability", "heeled"])
def test_a_field_that_is_no_map_is_refused(output, field):
    with pytest.raises(
        ValueError, match=f"no such field of this output: '{field}'; there is anomaly_map, healed"
    ):
        output.to_nifti(field)


def test_what_was_not_reconstructed_is_not_shown(output):
    bare = replace(output, reconstruction=None)
    with pytest.raises(ValueError, match="there is anomaly_map, healed, image, brain$"):
        bare.to_nifti("reconstruction")
    with pytest.raises(ValueError, match="without reconstruct=False"):
        plotting.detection_figure(bare, 0)


def test_maps_return_to_the_scans_own_grid(output, patient_scan):
    scan = nib.load(patient_scan["image"])
    for field in ("anomaly_map", "healed"):
        back = output.to_nifti(field)
        assert (
            back.shape == scan.shape
            and np.array_equal(back.affine, scan.affine)
            and back.get_data_dtype() == np.float32
        )
    inside = nib.load(patient_scan["brain"]).get_fdata() > 0
    same, original = output.to_nifti("image").get_fdata()[inside], scan.get_fdata()[inside]
    assert np.corrcoef(same, original)[0, 1] > 0.9
    assert np.median(same) == pytest.approx(np.median(original), rel=0.05)  # in the scan's own intensities


def test_shipped_weights_find_a_simulated_stroke(pipe, patient_scan):
    prepared = pipe.prepare(patient_scan["image"], lesion=patient_scan["lesion"])
    out = pipe(prepared, generator=torch.Generator().manual_seed(0), progress=False)
    lesion = torch.from_numpy(prepared.lesion)[:, None]
    inside, outside = out.anomaly_map[lesion].mean(), out.anomaly_map[out.brain & ~lesion].mean()
    assert inside > 3 * outside


def test_same_seed_same_map_whatever_the_batch_size(pipe, slices):
    def run(seed, batch_size=None):
        generator = torch.Generator().manual_seed(seed)
        return pipe(slices[0], brain=slices[1], generator=generator, batch_size=batch_size, progress=False)

    first = run(0)
    assert torch.equal(first.anomaly_map, run(0).anomaly_map)
    torch.testing.assert_close(first.anomaly_map, run(0, 1).anomaly_map, atol=1e-4, rtol=0)
    assert not torch.equal(first.trajectory, run(1).trajectory)
    assert torch.equal(
        *(pipe(slices[0], brain=slices[1], eta=0.0, progress=False).anomaly_map for _ in range(2))
    )  # no randomness at all


def test_the_batch_fits_the_free_memory(pipe, slices, monkeypatch):
    batches = []
    for free in (2**40, 2**28, 2**26, 0):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: SimpleNamespace(available=free))
        batches.append(fitting_batch(pipe.autoencoder, 96, pipe.device))
    assert batches[0] <= 256 and batches == sorted(set(batches), reverse=True) and batches[-1] == 1
    sizes = []
    for part in ("encoder", "decoder"):
        getattr(pipe.autoencoder, part).register_forward_hook(
            lambda module, inputs, output: sizes.append(len(inputs[0]))
        )
    pipe(slices[0], brain=slices[1], progress=False)
    pipe.decode(pipe.encode(slices[0]))
    assert set(sizes) == {1}


def test_scores_and_steps(pipe, slices):
    maps = [
        pipe(slices[0], score=s, eta=0.0, progress=False).anomaly_map for s in ("image", "latent", "mask")
    ]
    assert all(m.shape == slices[0].shape and m.max() > 0 for m in maps)
    assert not torch.equal(maps[0], maps[1]) and not torch.equal(maps[1], maps[2])
    assert pipe(slices[0], num_inference_steps=2, progress=False).timesteps.tolist() == [5, 0]
    with pytest.raises(ValueError, match="pixel"):
        pipe(slices[0], score="pixel")


def test_the_masks_floor_lies_between_weighted_and_not(pipe, slices):
    def found(**changes):
        parts = pipe.autoencoder, pipe.denoiser, pipe.scheduler
        own = MadAdPipeline(*parts, reference="input", **changes)
        return own(slices[0], brain=slices[1], eta=0.0, progress=False).anomaly_map

    plain, full = found(), found(weighted=True)
    assert not torch.allclose(plain, full)
    assert torch.equal(found(weighted=True, mask_floor=1.0), plain)
    assert torch.equal(found(mask_floor=0.3), plain)  # without the weight it says nothing
    torch.testing.assert_close(found(weighted=True, mask_floor=0.3), 0.3 * plain + 0.7 * full)


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.zeros(2, 3, 96, 96), "N, 1, H, W"),
        (torch.full((1, 1, 96, 96), 7.0), "within"),
        (torch.full((1, 1, 96, 96), float("nan")), "finite"),
    ],
)
def test_bad_slices_are_refused(pipe, bad, message):
    with pytest.raises(ValueError, match=message):
        pipe(bad)


def test_saved_and_loaded_gives_the_same(tmp_path):
    torch.manual_seed(0)
    parts = make_autoencoder("nano"), Denoiser.of_size("nano"), make_scheduler()
    pipe = MadAdPipeline(
        *parts, contrast="flair", gamma=0.3, sigma=1.0, reference="input", decision_threshold=0.4
    )
    pipe.save_pretrained(tmp_path / "model")
    again = MadAdPipeline.from_pretrained(tmp_path / "model")
    assert not list((tmp_path / "model").rglob("*.bin"))  # safetensors only
    for key in ("contrast", "grid", "gamma", "sigma", "reference", "decision_threshold"):
        assert again.config[key] == pipe.config[key]
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    maps = [p(images, eta=0.0, progress=False).anomaly_map for p in (pipe, again)]
    torch.testing.assert_close(*maps)


def test_intensity_weight_of_the_model_is_used(tmp_path):
    torch.manual_seed(0)
    parts = make_autoencoder("nano"), Denoiser.of_size("nano"), make_scheduler()
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    plain, weighed = (
        MadAdPipeline(*parts, contrast="flair", intensity_weight=w)(
            images, eta=0.0, progress=False
        ).anomaly_map
        for w in (0, 2)
    )
    assert plain.max() > 0
    torch.testing.assert_close(weighed, plain * (1 + 2 * images.clamp(0, 1)) / 3)


def test_half_precision_folder_is_computed_in_single(pipe):
    assert pipe.denoiser.dtype == pipe.autoencoder.dtype == torch.float32
    assert pipe.denoiser.training is False and pipe.autoencoder.training is False


def test_unknown_name_is_refused(tmp_path):
    assert "t1" in shipped()
    for name in ("t9", str(tmp_path)):
        with pytest.raises(ValueError, match="neither a shipped model"):
            MadAdPipeline.from_pretrained(name)


def test_a_quick_look_at_some_slices(patient_scan):
    pipe = MadAdPipeline.from_pretrained("t1")
    part = pipe.prepare(patient_scan["image"], z_range=(0, 20), z_spacing=4)
    assert part.image.shape[0] == 6 and part.geometry.grid.affine[2, 3] == 0
    for wrong in ({"z_range": (20, 0)}, {"z_spacing": 0}):
        with pytest.raises(ValueError, match="z_"):
            pipe.prepare(patient_scan["image"], **wrong)


@pytest.mark.parametrize("name, lesion", [("t1", "stroke"), ("flair", "glioma"), ("t2", "stroke")])
def test_shipped_weights_find_a_lesion_better_than_the_reconstruction_error_does(name, lesion, tmp_path):
    """A simulated patient that no choice was made on; every slice counts, most of them have no lesion."""
    subject = simulate_subject(31, lesion=lesion, volume_ml=30.0, contrasts=(name,))
    files = {k: tmp_path / f"{k}.nii.gz" for k in ("image", "brain", "lesion")}
    for file, image in zip(files.values(), (subject.images[name], subject.brain, subject.lesion)):
        save_nifti(image, file)
    pipe = MadAdPipeline.from_pretrained(name)
    scan = pipe.prepare(files["image"], brain=files["brain"], lesion=files["lesion"], z_spacing=4.0)
    out = pipe(scan, generator=torch.Generator().manual_seed(0), progress=False)
    truth = torch.from_numpy(scan.lesion)[:, None]
    ap = average_precision(out.anomaly_map, truth, out.brain)
    error = average_precision(BASELINES["reconstruction"](pipe, out.image, out.brain), truth, out.brain)
    assert ap > 0.5 and ap > 2 * error, (ap, error)
    found = out.anomaly_map >= pipe.config.decision_threshold  # the threshold that came with the weights
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.5
