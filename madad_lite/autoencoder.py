"""The latent encoder: a diffusers AutoencoderKL that turns slices into latents and back (section 3.1).

x0 slice (N, 1, H, W) in [-1, 1]  ->  z0 latent (N, C, H/f, W/f), scaled to unit spread  ->  slice again.

The scale s = 1 / std is measured on training slices and kept in the autoencoder's own config
(`scaling_factor`); only the authors' own encoder uses Stable Diffusion's 0.18215.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

AUTOENCODERS = {
    # For two CPU cores: f = 4, or 2. The slice is folded f x f into channels first (pixel unshuffle), so that
    # every layer works at the latent's resolution: in equal time sharper than layers at the slice's.
    "nano": dict(folding=4, block_out_channels=(96,), layers_per_block=1, norm_num_groups=16),
    "fine": dict(folding=2, block_out_channels=(48,), layers_per_block=1, norm_num_groups=16),
    # The paper's: f = 8, the layout of Stable Diffusion's autoencoder, 83.6 M parameters.
    "paper": dict(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, attention=True
    ),
}


def make_autoencoder(size: str = "nano", latent_channels: int = 4) -> AutoencoderKL:
    """A new, untrained autoencoder (section 4.1 for "paper"; the others are ours).

    size: one of AUTOENCODERS. latent_channels: C. ValueError: an unknown size.
    """
    if size not in AUTOENCODERS:
        raise ValueError(f"no autoencoder size {size!r}: choose one of {', '.join(AUTOENCODERS)}")
    settings = dict(AUTOENCODERS[size])
    attention, side = settings.pop("attention", False), settings.pop("folding", 1)
    levels = len(settings["block_out_channels"])
    model = AutoencoderKL(
        in_channels=side**2,
        out_channels=side**2,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=latent_channels,
        mid_block_add_attention=attention,
        scaling_factor=1.0,  # until it is measured
        **settings,
    )
    model.register_to_config(_folding=side)  # private, so that diffusers keeps it and does not warn of it
    return model


def folding(autoencoder: AutoencoderKL) -> int:
    """Side, in pixels, of the square that is folded into the channels before the first layer; 1: none (ours).

    An encoder of three image channels (a Stable Diffusion one) is not folded: it gets the grey slice three times.
    ValueError: the config names a folding that does not give the encoder's channels.
    """
    side, channels = autoencoder.config.get("_folding", 1), autoencoder.config.in_channels
    if channels != side**2 and (side, channels) != (1, 3):
        raise ValueError(f"an encoder of {channels} channels cannot take slices with a folding of {side}")
    return side


def downsampling(autoencoder: AutoencoderKL) -> int:
    """f: pixels along one side of a latent cell (section 3.1; paper: 8)."""
    return folding(autoencoder) * 2 ** (len(autoencoder.config.block_out_channels) - 1)


def posterior(autoencoder: AutoencoderKL, images: torch.Tensor) -> DiagonalGaussianDistribution:
    """q(z | x0), the encoder's diagonal Gaussian, not yet scaled (section 3.1).

    images: (N, 1, H, W) in [-1, 1], H and W divisible by f. Returns a distribution of (N, C, H/f, W/f).
    ValueError: another shape.
    """
    f, side = downsampling(autoencoder), folding(autoencoder)
    if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] % f or images.shape[3] % f:
        raise ValueError(f"slices must be (N, 1, H, W), H and W divisible by {f}, not {tuple(images.shape)}")
    x = images.to(autoencoder.dtype)  # (N, 1, H, W)
    x = x.expand(-1, 3, -1, -1) if autoencoder.config.in_channels == 3 else x  # (N, 3, H, W)
    x = F.pixel_unshuffle(x, side)  # (N, side * side, H / side, W / side)
    return autoencoder.encode(x).latent_dist  # of (N, C, H / f, W / f)


def encode(
    autoencoder: AutoencoderKL,
    images: torch.Tensor,
    *,
    sample: bool = False,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """z0 = s * mode of q(z | x0); when training, s * a sample of it (section 3.1).

    images: (N, 1, H, W) in [-1, 1], H and W divisible by f. Returns (N, C, H/f, W/f). ValueError: another shape.
    """
    distribution = posterior(autoencoder, images)
    z = distribution.sample(generator) if sample else distribution.mode()  # (N, C, h, w)
    return z * autoencoder.config.scaling_factor  # (N, C, h, w)


def decode(autoencoder: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """x0_hat of a latent (section 3.1).

    latents: (N, C, h, w), scaled. Returns (N, 1, H, W), not clipped to [-1, 1].
    """
    z = latents.to(autoencoder.dtype) / autoencoder.config.scaling_factor  # (N, C, h, w)
    x = F.pixel_shuffle(autoencoder.decode(z).sample, folding(autoencoder))  # (N, 1 or 3, H, W)
    return x.mean(1, keepdim=True)  # (N, 1, H, W): the one channel, or the mean of a colour encoder's three


@torch.no_grad()
def measure_scaling(autoencoder: AutoencoderKL, batches: Iterable[torch.Tensor]) -> float:
    """s = 1 / std of all latent values (Rombach et al. 2022, section G).

    batches: of slices (N, 1, H, W). Returns s > 0. ValueError: no slices.
    """
    count, total, squares = 0, 0.0, 0.0
    for images in batches:
        z = posterior(autoencoder, images).mode().double()  # (N, C, h, w)
        count, total, squares = count + z.numel(), total + z.sum().item(), squares + z.square().sum().item()
    if not count:
        raise ValueError("no slices to measure the latent scaling on")
    return (squares / count - (total / count) ** 2) ** -0.5
