"""The latent encoder: shapes, scaling, folding, posterior."""

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging

from madad_lite.autoencoder import (
    decode,
    downsampling,
    encode,
    folding,
    make_autoencoder,
    measure_scaling,
    posterior,
)


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return make_autoencoder("nano").eval()


def test_shapes_and_factor(autoencoder):
    images = torch.rand(2, 1, 48, 32) * 2 - 1
    assert downsampling(autoencoder) == 4
    z = encode(autoencoder, images)
    assert z.shape == (2, 4, 12, 8)
    assert decode(autoencoder, z).shape == images.shape
    with pytest.raises(ValueError, match="divisible by 4"):
        encode(autoencoder, torch.zeros(1, 1, 50, 48))


def test_papers_autoencoder_has_factor_8():
    with torch.device("meta"):
        model = make_autoencoder("paper")
    assert downsampling(model) == 8
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(83.6, abs=0.1)
    with pytest.raises(ValueError, match="nano, fine, paper"):
        make_autoencoder("tiny")


def test_a_colour_encoder_takes_grey_slices():
    torch.manual_seed(0)
    colour = AutoencoderKL(in_channels=3, out_channels=3, block_out_channels=(32,), norm_num_groups=8).eval()
    images = torch.rand(1, 1, 16, 16)
    assert decode(colour, encode(colour, images)).shape == images.shape


def test_measured_scaling_gives_latents_of_unit_spread(autoencoder):
    images = torch.rand(8, 1, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scale = measure_scaling(autoencoder, images.split(3))
    with torch.no_grad():
        z = posterior(autoencoder, images).mode() * scale
    assert z.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="no slices"):
        measure_scaling(autoencoder, [])


def test_mode_is_fixed_and_samples_follow_the_generator(autoencoder):
    images = torch.rand(1, 1, 16, 16) * 2 - 1
    assert torch.equal(encode(autoencoder, images), encode(autoencoder, images))

    def sample(seed):
        return encode(autoencoder, images, sample=True, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))


def test_folding_is_written_down_not_guessed(autoencoder, tmp_path, recwarn, caplog):
    """Sixteen channels may be folded slices, or what somebody else's encoder takes."""
    logging.enable_propagation()
    autoencoder.save_pretrained(tmp_path / "folded")
    again = AutoencoderKL.from_pretrained(tmp_path / "folded")  # with diffusers' own class
    logging.disable_propagation()
    assert folding(autoencoder) == folding(again) == 4 and not recwarn.list and not caplog.records
    foreign = AutoencoderKL(in_channels=16, out_channels=16, block_out_channels=(32,))
    with pytest.raises(ValueError, match="16 channels .* folding of 1"):
        encode(foreign, torch.zeros(1, 1, 16, 16))
    foreign.register_to_config(_folding=4)
    assert encode(foreign, torch.zeros(1, 1, 16, 16)).shape == (1, 4, 4, 4)
