"""The latent encoder: a diffusers AutoencoderKL that turns slices into latents and back (MAD-AD, section
3.1).

x0 slice (N, 1, H, W) in [-1, 1]  ->  z0 latent (N, C, H/f, W/f), scaled to unit spread  ->  slice again.

The scale s = 1 / std is measured on training slices and kept in the autoencoder's own config
(`scaling_factor`); only the authors' own encoder uses Stable Diffusion's 0.18215.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

AUTOENCODERS = {
    # For two CPU cores: f = 4. The slice is folded 4 x 4 into 16 channels first (pixel unshuffle), so that
    # every layer works at the latent's own resolution; in equal CPU time this gave sharper slices than
    # working at full resolution.
    "nano": dict(
        in_channels=16, block_out_channels=(96,), layers_per_block=1, norm_num_groups=16, attention=False
    ),
    # The paper's: f = 8, the layout of Stable Diffusion's autoencoder, 83.6 M parameters.
    "paper": dict(
        in_channels=1,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        norm_num_groups=32,
        attention=True,
    ),
}


def make_autoencoder(size: str = "nano", latent_channels: int = 4) -> AutoencoderKL:
    """A new, untrained autoencoder of one of the named sizes."""
    if size not in AUTOENCODERS:
        raise ValueError(f"no autoencoder size {size!r}: choose one of {', '.join(AUTOENCODERS)}")
    settings = dict(AUTOENCODERS[size])
    attention, channels = settings.pop("attention"), settings.pop("in_channels")
    levels = len(settings["block_out_channels"])
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=latent_channels,
        mid_block_add_attention=attention,
        scaling_factor=1.0,  # until it is measured
        **settings,
    )


def folding(autoencoder: AutoencoderKL) -> int:
    """Side of the square of pixels that is folded into the channels before the first layer; 1: none.

    An encoder of three image channels (a Stable Diffusion one) is not folded: it gets the grey slice three
    times.
    """
    return {1: 1, 3: 1, 4: 2, 16: 4}[autoencoder.config.in_channels]


def downsampling(autoencoder: AutoencoderKL) -> int:
    """f: pixels along one side of a latent cell."""
    return folding(autoencoder) * 2 ** (len(autoencoder.config.block_out_channels) - 1)


def posterior(autoencoder: AutoencoderKL, images: torch.Tensor):
    """The encoder's diagonal Gaussian for slices (N, 1, H, W), not yet scaled; H and W divisible by f."""
    f = downsampling(autoencoder)
    if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] % f or images.shape[3] % f:
        raise ValueError(
            f"slices must be (N, 1, H, W) with H and W divisible by {f}, not {tuple(images.shape)}"
        )
    images = images.to(autoencoder.dtype)
    if autoencoder.config.in_channels == 3:
        images = images.expand(-1, 3, -1, -1)
    return autoencoder.encode(F.pixel_unshuffle(images, folding(autoencoder))).latent_dist


def encode(
    autoencoder: AutoencoderKL,
    images: torch.Tensor,
    *,
    sample: bool = False,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """z0 = s * mode of the posterior (s * a sample of it when training). (N, 1, H, W) -> (N, C, H/f, W/f)."""
    distribution = posterior(autoencoder, images)
    latent = distribution.sample(generator) if sample else distribution.mode()
    return latent * autoencoder.config.scaling_factor


def decode(autoencoder: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) scaled latents -> slices (N, 1, H, W), not clipped."""
    folded = autoencoder.decode(latents.to(autoencoder.dtype) / autoencoder.config.scaling_factor).sample
    images = F.pixel_shuffle(folded, folding(autoencoder))
    return images.mean(1, keepdim=True)  # one channel, or the mean of a colour encoder's three


@torch.no_grad()
def measure_scaling(autoencoder: AutoencoderKL, batches: Iterable[torch.Tensor]) -> float:
    """s = 1 / std of all latent values of the batches (N, 1, H, W), as Rombach et al. 2022, section G,
    measure it.
    """
    count, total, squares = 0, 0.0, 0.0
    for images in batches:
        z = posterior(autoencoder, images).mode().double()
        count, total, squares = count + z.numel(), total + z.sum().item(), squares + z.square().sum().item()
    if not count:
        raise ValueError("no slices to measure the latent scaling on")
    return (squares / count - (total / count) ** 2) ** -0.5
