"""The trained baselines: their noise, what they do with a network whose answers are known, and that training
teaches them.
"""

import json

import pytest
import torch

from madad_lite.autoencoder import make_autoencoder
from madad_lite.family.dae import DenoisingAutoencoder, coarse_noise, train_dae
from madad_lite.family.ddpm import Diffusion, fractal_noise, gaussian_noise, make_scheduler, train_ddpm
from madad_lite.pipeline import MadAdPipeline
from madad_lite.training.latent_cache import encode_latents
from madad_lite.training.settings import DenoiserConfig, TrainingConfig

CONFIG = TrainingConfig(
    steps=40, batch_size=8, validate_every=20, checkpoint_every=20, warmup_steps=1, ema_decay=0.9
)


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def roughness(x):
    return (x.diff(dim=-1).square().mean() / x.var()).item()


def test_noises_have_unit_spread_and_their_smoothness():
    shape = (8, 4, 24, 24)
    plain, fractal = gaussian_noise(shape, seeded()), fractal_noise(shape, seeded())
    assert plain.std() == pytest.approx(1, abs=0.05) and fractal.std() == pytest.approx(1, abs=0.05)
    assert roughness(plain) > 1.8 and roughness(fractal) < 1.0
    coarse = coarse_noise((8, 1, 96, 96), seeded())
    assert 0.2 < coarse.std() < 0.4 and roughness(coarse) < 0.15
    assert torch.equal(fractal, fractal_noise(shape, seeded()))


class Knowing:
    """A network that knows that every normal latent is 0, and so which noise was added."""

    def __call__(self, z, t):
        abar = make_scheduler().alphas_cumprod[t]
        return type("Output", (), {"sample": z / (1 - abar).sqrt()})


@pytest.fixture
def lesion():
    z0 = torch.zeros(2, 4, 24, 24)
    z0[:, :, 8:12, 8:12] = 3.0
    return z0


def test_anoddpm_heals_with_a_network_that_knows(lesion):
    (healed,) = Diffusion(Knowing(), "anoddpm").heal(lesion, seeded())
    assert healed.abs().max() < 1e-4


def test_thor_goes_on_from_the_scan_where_the_estimate_agrees(lesion):
    z0 = lesion + 0.01
    mixed = Diffusion._agreement(z0, torch.zeros_like(z0))
    assert mixed[:, :, 8:12, 8:12].abs().max() < 1.5  # most of the lesion goes
    assert (
        mixed[:, :, 16:, 16:] - 0.01
    ).abs().max() < 1e-3  # the rest is the scan's own, not the network's 0
    healed, *seen = Diffusion(Knowing(), "thor").heal(z0, seeded())
    assert healed.abs().max() < 1e-4 and len(seen) == 3  # nothing of the scan is mixed in at the end


def test_autoddpm_keeps_what_the_first_pass_did_not_change(lesion):
    z0 = lesion + 0.01
    healed, first = Diffusion(Knowing(), "autoddpm").heal(z0, seeded())
    assert first.abs().max() < 1e-4
    assert healed[:, :, 8:12, 8:12].abs().max() < 1e-3
    assert torch.equal(healed[:, :, 18:, 18:], z0[:, :, 18:, 18:])


class Plain:
    """A pipeline whose latents are the slices, shrunk."""

    def encode(self, images):
        return torch.nn.functional.avg_pool2d(images, 4).expand(-1, 4, -1, -1)

    def decode(self, z):
        return torch.nn.functional.interpolate(z[:, :1], scale_factor=4)


@pytest.mark.parametrize("method", ["anoddpm", "autoddpm", "thor"])
def test_each_method_marks_the_lesion(method):
    images = torch.zeros(2, 1, 96, 96)
    images[:, :, 32:48, 32:48] = 0.8
    score = Diffusion(Knowing(), method)(Plain(), images, images > -1)
    assert score.min() >= 0 and score.max() <= 1
    assert score[:, :, 34:46, 34:46].min() > 0.5 and score[:, :, 60:, 60:].max() < 0.05


@pytest.fixture(scope="module")
def cached(prepared_cohort, tmp_path_factory):
    torch.manual_seed(0)
    folder, config = tmp_path_factory.mktemp("z"), DenoiserConfig(variants=1)
    return encode_latents(prepared_cohort, make_autoencoder().eval(), folder, config, progress=False)


def losses(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("noise", ["gaussian", "fractal"])
def test_plain_diffusion_learns_to_predict_noise(cached, tmp_path, noise):
    run = train_ddpm(cached, tmp_path / "run", CONFIG, noise=noise, progress=False)
    assert losses(run)[-1]["val_loss"] < 0.9  # 1: no better than guessing 0
    method = Diffusion.load(run / "best", noise=noise, steps=3)
    (healed,) = method.heal(torch.zeros(1, 4, 12, 12), seeded())
    assert healed.shape == (1, 4, 12, 12) and torch.isfinite(healed).all()


def test_denoising_autoencoder_learns_to_denoise(prepared_cohort, tmp_path):
    run = train_dae(prepared_cohort, tmp_path / "run", CONFIG, progress=False)
    log = losses(run)
    assert log[-1]["val_loss"] < 0.5 * log[0]["loss"]
    method = DenoisingAutoencoder.load(run / "best")
    images = torch.rand(2, 1, 48, 48, generator=seeded()) - 0.5
    score = method(None, images, images > -2)
    assert score.shape == images.shape and 0 <= score.min() and score.max() <= 1
    smooth = DenoisingAutoencoder.load(run / "best", median=5)(None, images, images > -2)
    assert smooth.std() < 0.8 * score.std()


def test_trained_baselines_score_as_the_others(patient_scan, cached, tmp_path):
    run = train_ddpm(cached, tmp_path / "run", CONFIG, progress=False)
    pipe = MadAdPipeline.from_pretrained("t1")
    scan = pipe.prepare(patient_scan["image"], z_range=(0, 4))
    images, brain = torch.from_numpy(scan.image)[:, None], torch.from_numpy(scan.brain)[:, None]
    score = Diffusion.load(run / "best", steps=2)(pipe, images, brain)
    assert score.shape == images.shape and not score[~brain].any() and torch.isfinite(score).all()
