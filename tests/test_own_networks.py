"""The paper's draw, and trainings of a user's own networks."""

import json

import pytest
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file
from torch import nn

from madad_lite.autoencoder import make_autoencoder
from madad_lite.diffusion import make_scheduler, masked_forward
from madad_lite.errors import RunError
from madad_lite.masking import random_patch_mask
from madad_lite.training.autoencoder import train_autoencoder
from madad_lite.training.denoiser import masked_draw, train_denoiser
from madad_lite.training.latent_cache import LatentDataset
from madad_lite.training.settings import AutoencoderConfig, DenoiserConfig

BRIEF = dict(steps=4, batch_size=4, validate_every=2, checkpoint_every=2, warmup_steps=1, learning_rate=1e-2)


def test_the_draw_is_the_paper_s_in_this_order():
    """Trainings repeat to the last bit only while the order of the random numbers stays."""
    generator, scheduler = torch.Generator(), make_scheduler()
    mean, std = torch.randn(6, 4, 8, 8), torch.rand(6, 4, 8, 8)
    brain = torch.rand(6, 1, 8, 8) < 0.8
    latents = {"mean": mean, "std": std, "brain": brain}
    for share in (0.0, 0.5):
        generator.manual_seed(3)
        z0 = mean + std * torch.randn(mean.shape, generator=generator)
        M = random_patch_mask(6, (8, 8), brain=brain, max_ratio=0.4, generator=generator)
        eps = torch.randn(mean.shape, generator=generator)
        t = torch.randint(10, (6,), generator=generator)
        if share:
            t[torch.rand(6, generator=generator) < share] = 9
        drawn = masked_draw(latents, scheduler, generator.manual_seed(3), last_step_share=share)
        expected = {"z0": z0, "M": M, "eps": eps, "t": t, "z_t": masked_forward(z0, eps, M, t, scheduler)}
        assert drawn.keys() == expected.keys() and all(torch.equal(drawn[k], expected[k]) for k in drawn)
    assert (masked_draw(latents, scheduler, last_step_share=1.0)["t"] == 9).all()
    assert not masked_draw(latents, scheduler, max_ratio=0.0)["M"].any()


class Plain(nn.Module):
    """A denoiser of two convolutions: two heads, t as one more channel."""

    def __init__(self, channels: int = 4, answers: int = 5):
        super().__init__()
        self.first, self.heads = nn.Conv2d(channels + 1, 8, 3, padding=1), nn.Conv2d(8, answers, 1)

    def forward(self, z_t, t):
        level = (t / 10).view(-1, 1, 1, 1).expand(-1, 1, *z_t.shape[2:])  # (N, 1, h, w)
        answers = self.heads(self.first(torch.cat([z_t, level], 1)).relu())  # (N, C + 1, h, w)
        return answers[:, :-1], answers[:, -1:]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return make_autoencoder()


def test_a_denoiser_of_one_s_own_is_trained_saved_and_resumed(prepared_cohort, encoder, tmp_path):
    config = DenoiserConfig(variants=1, **BRIEF)
    torch.manual_seed(0)
    model = Plain()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run = train_denoiser(prepared_cohort, encoder, tmp_path, config, model=model, progress=False)
    for name in ("best", "last"):
        assert [p.name for p in (run / name).iterdir()] == ["model.safetensors"]
        Plain().load_state_dict(load_file(run / name / "model.safetensors"))
    assert all(not torch.equal(v, before[k]) for k, v in model.state_dict().items())  # in place
    assert json.loads((run / "config.json").read_text())["model"] == "Plain"
    with pytest.raises(RunError, match="was started with model='Plain', not None"):
        train_denoiser(prepared_cohort, encoder, run, config, resume=True, progress=False)
    last = (run / "last" / "model.safetensors").read_bytes()
    train_denoiser(prepared_cohort, encoder, run, config, model=Plain(), resume=True, progress=False)
    assert (run / "last" / "model.safetensors").read_bytes() == last


def test_answers_of_another_shape_are_refused(prepared_cohort, encoder, tmp_path):
    config = DenoiserConfig(variants=1, **BRIEF)
    with pytest.raises(RunError, match=r"Plain: answers \(4, 1, 12, 12\) and \(4, 1, 12, 12\)"):
        train_denoiser(prepared_cohort, encoder, tmp_path, config, model=Plain(answers=2), progress=False)


class Shrinking(ModelMixin, ConfigMixin):
    """An autoencoder of one convolution each way, f = 4."""

    @register_to_config
    def __init__(
        self, in_channels=1, latent_channels=2, block_out_channels=(1, 1, 1), scaling_factor=1.0, folding=1
    ):
        super().__init__()
        self.down = nn.Conv2d(1, 2 * latent_channels, 4, stride=4)
        self.up = nn.ConvTranspose2d(latent_channels, 1, 4, stride=4)

    def encode(self, x):
        return type("Encoded", (), {"latent_dist": DiagonalGaussianDistribution(self.down(x))})

    def decode(self, z):
        return type("Decoded", (), {"sample": self.up(z)})


def test_an_autoencoder_of_one_s_own_is_trained_and_used(prepared_cohort, tmp_path):
    torch.manual_seed(0)
    config = AutoencoderConfig(**BRIEF | {"steps": 20, "validate_every": 20})
    run = train_autoencoder(prepared_cohort, tmp_path / "ae", config, model=Shrinking(), progress=False)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["val_reconstruction"] < log[0]["reconstruction"]
    assert json.loads((run / "config.json").read_text())["model"] == "Shrinking"
    trained = Shrinking.from_pretrained(run / "best")
    assert trained.config.scaling_factor != 1.0
    config = DenoiserConfig(variants=1, **BRIEF)
    healer = train_denoiser(prepared_cohort, trained, tmp_path / "dn", config, progress=False)
    assert LatentDataset(healer / "latents", "val")[0]["mean"].shape == (2, 12, 12)
    assert (healer / "best" / "config.json").exists()
