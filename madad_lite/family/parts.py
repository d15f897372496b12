"""What several methods share: the U-Net and its sizes, noise, the schedule, boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

T = 1000  # steps of the schedule, where a method names no other number
Draws = torch.Generator | Sequence[torch.Generator]  # one for all, or one a slice


@dataclass(frozen=True)
class UNetSize:
    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    head: int  # width of an attention head
    fold: int = 1  # slices are folded fold x fold into the channels; latents are not


SIZES = {
    # as the trunk of MAD-AD's nano denoiser: depth, widths and where it attends; 2.7 M parameters as well
    "nano": UNetSize((32, 64, 96), (False, True, True), 24, fold=4),
    # for tests and lessons
    "tiny": UNetSize((32, 32), (False, False), 16, fold=4),
    # Behrendt et al. 2023, for slices of 96 pixels
    "pixels-96": UNetSize((128, 128, 256), (False, False, True), 32),
    # Wyatt et al. 2022, for slices of 256 pixels; attention at 32, 16 pixels
    "pixels-256": UNetSize((128, 128, 256, 384, 512), (False, False, False, True, True), 64),
    # Kascenas et al. 2022: a U-Net without attention, three times halved
    "dae": UNetSize((64, 128, 256, 512), (False,) * 4, 64),
    # Liang et al. 2024, for slices of 128 pixels; attention at 32, 16, 8 pixels
    "itermask": UNetSize((32, 32, 64, 96, 128), (False, False, True, True, True), 32),
    # the trunk of MAD-AD's L, for latents of 32 x 32
    "latents-L": UNetSize((256, 512, 1024), (True, True, True), 128),
}


def make_unet(inputs: int, outputs: int, size: str = "nano", *, vector: bool = False) -> UNet2DModel:
    """An untrained U-Net for what is folded already. vector: it is conditioned on one of 4 * widths[0] numbers,
    added to the time's embedding.
    """
    s = SIZES[size]
    return UNet2DModel(
        in_channels=inputs,
        out_channels=outputs,
        block_out_channels=s.widths,
        layers_per_block=2,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in s.attention],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(s.attention)],
        attention_head_dim=s.head,
        class_embed_type="identity" if vector else None,
    )


def run(unet: UNet2DModel, x: torch.Tensor, t: torch.Tensor | int, **condition) -> torch.Tensor:
    """The U-Net's answer to slices (N, k, H, W), folded as its channels say; t: (N,) or one number."""
    fold = round((unet.config.out_channels) ** 0.5)  # it answers one slice
    t = torch.as_tensor(t, device=x.device).expand(len(x))
    answer = unet(F.pixel_unshuffle(x, fold), t, **condition).sample  # (N, fold * fold, H / fold, W / fold)
    return F.pixel_shuffle(answer, fold).float()  # (N, 1, H, W)


def make_scheduler() -> DDIMScheduler:
    """The cosine schedule of T steps; the network predicts the noise."""
    return DDIMScheduler(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2", clip_sample=False)


@cache
def _abar() -> torch.Tensor:
    return make_scheduler().alphas_cumprod


def abar(t: torch.Tensor | int, like: torch.Tensor) -> torch.Tensor:
    """alpha-bar_t as (N, 1, 1, 1), or (1, 1, 1, 1) for one number; 1 for t < 0, the clean slice."""
    t = torch.as_tensor(t).cpu().view(-1, 1, 1, 1)
    return torch.where(t < 0, 1.0, _abar()[t.clamp_min(0)]).to(like)


def noised(x: torch.Tensor, eps: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
    """x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps."""
    a = abar(t, x)
    return a.sqrt() * x + (1 - a).sqrt() * eps


def gaussian_noise(shape: Sequence[int], draws: Draws) -> torch.Tensor:
    """(N, C, H, W); with a list of generators each sample draws from its own."""
    return randn_tensor(tuple(shape), generator=list(draws) if isinstance(draws, Sequence) else draws)


def fractal_noise(
    shape: Sequence[int], draws: Draws, *, octaves: int = 4, persistence: float = 0.8
) -> torch.Tensor:
    """Smooth noise of unit spread, in the place of simplex noise (ours): lattices of 3, 6, 12, .. knots, each
    finer one weighted by `persistence` more often.
    """
    total = torch.zeros(tuple(shape))
    for octave in range(octaves):
        knots = 3 * 2**octave
        lattice = gaussian_noise((*shape[:2], knots, knots), draws)
        larger = F.interpolate(lattice, size=tuple(shape[2:]), mode="bicubic", align_corners=True)
        total = total + persistence**octave * larger
    return total / total.flatten(1).std(1).view(-1, 1, 1, 1)


def uniform(draws: Sequence[torch.Generator], shape: Sequence[int]) -> torch.Tensor:
    """U(0, 1), (N, *shape), each sample of its own generator."""
    return torch.stack([torch.rand(tuple(shape), generator=g) for g in draws])


def boxes(size: Sequence[int], side: float, stride: float) -> torch.Tensor:
    """(K, 1, H, W) bool: boxes of `side` of the slice's sides, at every `stride` of them, as many as fit."""
    h, w = size
    rows, columns = (
        sorted({round(i * stride * n) for i in range(int((1 - side) / stride + 1e-6) + 1)}) for n in (h, w)
    )
    masks = torch.zeros(len(rows) * len(columns), 1, h, w, dtype=torch.bool)
    for k, (y, x) in enumerate((y, x) for y in rows for x in columns):
        masks[k, 0, y : y + round(side * h), x : x + round(side * w)] = True
    return masks


def mean_over(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of values (N, 1, H, W) where the mask is; 0 where it is nowhere. Not a mean of the samples' means:
    as a loss it depends a little on how many processes or parts share a batch.
    """
    return (values * mask).sum() / mask.expand_as(values).sum().clamp_min(1)
