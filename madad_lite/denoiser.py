"""The denoiser: a diffusers UNet2DModel with two heads, one for the clean latent and one for the mask (paper,
Fig. 1).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


@dataclass(frozen=True)
class DenoiserSize:
    base_channels: int  # width of the first level
    num_heads: int  # attention heads, the same number at every level
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    attention_levels: tuple[bool, ...] = (True, True, True)  # the authors attend at all three levels
    layers_per_block: int = 2
    norm_groups: int = 32


SIZES = {
    # nano trains on two CPU cores in minutes: no attention at the first level, where it costs most. fine: f = 2
    "nano": DenoiserSize(32, 4, (1, 2, 3), (False, True, True)),
    "fine": DenoiserSize(16, 4, (1, 2, 4, 6), (False, False, True, True), norm_groups=8),
    # the authors' five sizes
    "XS": DenoiserSize(64, 4),  # 16.1 M parameters
    "S": DenoiserSize(128, 4),  # 64.5 M
    "M": DenoiserSize(192, 6),  # 145 M
    "L": DenoiserSize(256, 8),  # 257.7 M, the paper's
    # 402.7 M. The authors' code says 12 heads, which do not divide 320 channels: there this size cannot be made
    "XL": DenoiserSize(320, 10),
}


class Denoiser(ModelMixin, ConfigMixin):
    """(z_t, t) -> (z0_hat, mask logits). `Denoiser.of_size("nano")` makes one of the named sizes.

    The trunk is diffusers' UNet2DModel without its own head. The latent head is norm, SiLU, convolution; the
    mask head has a norm of its own and no SiLU, as in the authors' network. A positive logit means "noised".
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        base_channels: int = 32,
        num_heads: int = 4,
        channel_multipliers: tuple[int, ...] = (1, 2, 3),
        attention_levels: tuple[bool, ...] = (False, True, True),
        layers_per_block: int = 2,
        dropout: float = 0.0,  # the authors' code trains with 0.4
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        if num_heads < 1 or base_channels % num_heads or base_channels % norm_groups:
            sharers = f"{num_heads} heads and {norm_groups} norm groups"
            raise ValueError(f"{base_channels} channels cannot be shared among {sharers}")
        self.unet = UNet2DModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=[base_channels * m for m in channel_multipliers],
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attention_levels],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention_levels)],
            layers_per_block=layers_per_block,
            attention_head_dim=base_channels,
            norm_num_groups=norm_groups,
            dropout=dropout,
        )
        # the trunk ends before its head: the two heads below take over
        self.unet.conv_norm_out = self.unet.conv_act = self.unet.conv_out = nn.Identity()
        # diffusers fixes the width of a head, the authors the number of heads at every level
        for module in self.unet.modules():
            if isinstance(module, Attention):
                module.heads = num_heads
                module.scale = (module.inner_dim // num_heads) ** -0.5
        to_latent, to_logit = (nn.Conv2d(base_channels, c, 3, padding=1) for c in (latent_channels, 1))
        self.latent_head = nn.Sequential(nn.GroupNorm(norm_groups, base_channels), nn.SiLU(), to_latent)
        self.mask_head = nn.Sequential(nn.GroupNorm(norm_groups, base_channels), to_logit)

    @classmethod
    def of_size(cls, size: str, **changes) -> Denoiser:
        """A new, untrained denoiser (section 4.1 for L; nano and fine are ours, the others of the authors' code).

        size: one of SIZES. changes: arguments of the class that differ. ValueError: an unknown size.
        """
        if size not in SIZES:
            raise ValueError(f"no denoiser size {size!r}: choose one of {', '.join(SIZES)}")
        return cls(**{**asdict(SIZES[size]), **changes})

    def forward(self, z_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z0_hat and the logits of M-hat (Fig. 1).

        z_t: (N, C, h, w), h and w divisible by 2 at every level but the last. t: (N,) integers, 0..T-1.
        Returns z0_hat (N, C, h, w) and logits (N, 1, h, w), positive where "noised".
        """
        features = self.unet(z_t.to(self.dtype), t).sample  # (N, base_channels, h, w)
        z0_hat, logits = self.latent_head(features), self.mask_head(features)  # (N, C, h, w), (N, 1, h, w)
        return z0_hat.to(z_t.dtype), logits.to(z_t.dtype)  # whatever precision the weights are in
