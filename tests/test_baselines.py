"""The trained baselines: their noise, what they do with a network whose answers are known, and that training
teaches them.
"""

import json

import pytest
import torch

from madad_lite.autoencoder import make_autoencoder
from madad_lite.errors import Refused
from madad_lite.family.dae import DAE, coarse_noise
from madad_lite.family.ddpm import THOR, AnoDDPM, AutoDDPM
from madad_lite.family.frame import load
from madad_lite.family.parts import fractal_noise, gaussian_noise, make_scheduler

BUDGET = dict(
    steps=40, batch_size=8, validate_every=20, checkpoint_every=20, warmup_steps=1, ema_decay=0.9, variants=1
)


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def each(n):
    return [seeded(i) for i in range(n)]


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


def knowing(kind):
    """A method whose network knows that every normal latent is 0, and so which noise was added; its latents are
    the slices, shrunk.
    """

    class Known(kind):
        def eps(self, z, t):
            return z / (1 - make_scheduler().alphas_cumprod[t]).sqrt()

        def encode(self, x):
            return torch.nn.functional.avg_pool2d(x, 4).expand(-1, 4, -1, -1)

        def decode(self, z, brain):
            return torch.nn.functional.interpolate(z[:, :1], scale_factor=4)

    return Known(autoencoder=make_autoencoder())


@pytest.fixture
def lesion():
    z0 = torch.zeros(2, 4, 24, 24)
    z0[:, :, 8:12, 8:12] = 3.0
    return z0


def test_anoddpm_heals_with_a_network_that_knows(lesion):
    (healed,) = knowing(AnoDDPM).heal(lesion, each(2))
    assert healed.abs().max() < 1e-4


def test_thor_goes_on_from_the_scan_where_the_estimate_agrees(lesion):
    z0 = lesion + 0.01
    mixed = THOR.agreement(z0, torch.zeros_like(z0))
    assert mixed[:, :, 8:12, 8:12].abs().max() < 1.5  # most of the lesion goes
    assert (
        mixed[:, :, 16:, 16:] - 0.01
    ).abs().max() < 1e-3  # the rest is the scan's own, not the network's 0
    healed, *seen = knowing(THOR).heal(z0, each(2))
    assert healed.abs().max() < 1e-4 and len(seen) == 3  # nothing of the scan is mixed in at the end


def test_autoddpm_keeps_what_the_first_pass_did_not_change(lesion):
    z0 = lesion + 0.01
    healed, first = knowing(AutoDDPM).heal(z0, each(2))
    assert first.abs().max() < 1e-4
    assert healed[:, :, 8:12, 8:12].abs().max() < 1e-3
    assert torch.equal(healed[:, :, 18:, 18:], z0[:, :, 18:, 18:])


@pytest.mark.parametrize("kind", [AnoDDPM, AutoDDPM, THOR])
def test_each_method_marks_the_lesion(kind):
    images = torch.zeros(2, 1, 96, 96)
    images[:, :, 32:48, 32:48] = 0.8
    score = knowing(kind)(images, images > -1)
    assert score.min() >= 0 and score.max() <= 1
    assert score[:, :, 34:46, 34:46].min() > 0.5 and score[:, :, 60:, 60:].max() < 0.05


def losses(run):
    return [json.loads(line) for line in (run / "training/all/log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return make_autoencoder().eval()


@pytest.mark.parametrize("noise", ["gaussian", "fractal"])
def test_plain_diffusion_learns_to_predict_noise(prepared_cohort, encoder, tmp_path, noise):
    config = AnoDDPM.Config(**BUDGET, noise=noise, ddim_steps=3)
    run = AnoDDPM.train(prepared_cohort, tmp_path / "run", config, autoencoder=encoder, progress=False)
    assert losses(run)[-1]["val_loss"] < 0.9  # 1: no better than guessing 0
    method = load(run)
    (healed,) = method.heal(torch.zeros(1, 4, 12, 12), each(1))
    assert healed.shape == (1, 4, 12, 12) and torch.isfinite(healed).all()
    thor = load(run, name="thor", start=300)  # the same network serves it
    assert thor.config.noise == noise and thor.config.start == 300
    images = torch.rand(2, 1, 48, 48, generator=seeded()) - 0.5
    score = thor(images, images > 0)
    assert score.shape == images.shape and not score[images <= 0].any() and torch.isfinite(score).all()
    with pytest.raises(Refused, match="does not serve"):
        load(run, name="dae")


def test_denoising_autoencoder_learns_to_denoise(prepared_cohort, tmp_path):
    run = DAE.train(prepared_cohort, tmp_path / "run", DAE.Config(**BUDGET), progress=False)
    log = losses(run)
    assert log[-1]["val_loss"] < 0.5 * log[0]["loss"]
    images = torch.rand(2, 1, 48, 48, generator=seeded()) - 0.5
    score = load(run)(images, images > -2)
    assert score.shape == images.shape and 0 <= score.min() and score.max() <= 1
