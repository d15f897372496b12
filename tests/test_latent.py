"""The latent encoder: shapes, scaling, folding, posterior."""

import pytest
import torch
from diffusers import AutoencoderKL

from madad_lite import latent


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return latent.make_autoencoder("nano").eval()


def test_shapes_and_factor(autoencoder):
    images = torch.rand(2, 1, 48, 32) * 2 - 1
    assert latent.downsampling(autoencoder) == 4
    z = latent.encode(autoencoder, images)
    assert z.shape == (2, 4, 12, 8)
    assert latent.decode(autoencoder, z).shape == images.shape
    with pytest.raises(ValueError, match="divisible by 4"):
        latent.encode(autoencoder, torch.zeros(1, 1, 50, 48))


def test_papers_autoencoder_has_factor_8():
    with torch.device("meta"):
        model = latent.make_autoencoder("paper")
    assert latent.downsampling(model) == 8
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(83.6, abs=0.1)
    with pytest.raises(ValueError, match="nano, paper"):
        latent.make_autoencoder("tiny")


def test_a_colour_encoder_takes_grey_slices():
    torch.manual_seed(0)
    colour = AutoencoderKL(in_channels=3, out_channels=3, block_out_channels=(32,), norm_num_groups=8).eval()
    images = torch.rand(1, 1, 16, 16)
    assert latent.decode(colour, latent.encode(colour, images)).shape == images.shape


def test_measured_scaling_gives_latents_of_unit_spread(autoencoder):
    images = torch.rand(8, 1, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scale = latent.measure_scaling(autoencoder, images.split(3))
    with torch.no_grad():
        z = latent.posterior(autoencoder, images).mode() * scale
    assert z.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="no slices"):
        latent.measure_scaling(autoencoder, [])


def test_mode_is_fixed_and_samples_follow_the_generator(autoencoder):
    images = torch.rand(1, 1, 16, 16) * 2 - 1
    assert torch.equal(latent.encode(autoencoder, images), latent.encode(autoencoder, images))

    def sample(seed):
        return latent.encode(autoencoder, images, sample=True, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))
