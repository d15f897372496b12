"""Lesion-like corruption of normal slices, for a denoiser that shall know more than Gaussian noise as
abnormal.

This repository's extension, not the paper's. The paper noises random patches of a latent, and the denoiser
learns to tell them from clean ones. The better it knows Gaussian noise, the less it takes a smooth lesion for
noise. So a share of the training slices gets regions whose tissue was replaced, in the image, before it is
encoded: what a region looks like is random and no particular disease (any grey level, other contrast, tissue
of another slice, brighter or darker), in the way of foreign patch interpolation (Tan et al. 2020, arXiv
2011.04197) and DRAEM (Zavrtanik et al. 2021, arXiv 2108.07610).

In two parts: `corrupt` changes slices before they are encoded, `with_regions` puts the encoded regions into
what a training step draws. All functions draw from the generator that is given. Images (N, 1, H, W) in
[-1, 1], background -1; brain (N, 1, H, W) bool.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler

from madad_lite.slices.augment import random_contrast

REGIONS = (1.0, 0.5, 0.4, 0.3, 0.2)  # chances of a first, second, .. region in a slice


def _between(n: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.empty(n, 1, 1, 1).uniform_(low, high, generator=generator)


def _smooth_noise(n: int, knots: int, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """(n, 1, H, W) of about unit spread, smooth over size / knots pixels."""
    coarse = torch.empty(n, 1, knots, knots).normal_(generator=generator)
    return F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)


def random_region(
    brain: torch.Tensor, generator: torch.Generator, radius: tuple[float, float] = (1.0, 18.0)
) -> torch.Tensor:
    """One irregular blob a slice, around a random brain pixel: (N, 1, H, W) in [0, 1], 0 outside the brain.

    radius: of the ellipse that the blob is made from, in pixels; drawn evenly on a logarithmic scale.
    """
    n, _, h, w = brain.shape
    chance = torch.rand(n, h * w, generator=generator) * brain.flatten(1)
    centre = chance.argmax(1)
    cy, cx = ((centre // w).view(n, 1, 1, 1).float(), (centre % w).view(n, 1, 1, 1).float())
    y, x = torch.arange(h).view(1, 1, h, 1) - cy, torch.arange(w).view(1, 1, 1, w) - cx
    angle = _between(n, 0, math.pi, generator)
    r = _between(n, math.log(radius[0]), math.log(radius[1]), generator).exp()
    stretch = _between(n, -0.5, 0.5, generator).exp()
    u, v = (
        (angle.cos() * x + angle.sin() * y) / (r * stretch),
        (angle.cos() * y - angle.sin() * x) / (r / stretch),
    )
    distance = (u**2 + v**2).sqrt()  # 1 at the ellipse
    rough = 0.25 * _smooth_noise(n, 8, (h, w), generator) + 0.15 * _smooth_noise(n, 20, (h, w), generator)
    edge = _between(n, 0.25, 1.5, generator)  # in pixels
    blob = ((1 - distance * (1 + rough)) * r / edge + 0.5).clamp(0, 1)
    return blob * brain


def corrupt(images: torch.Tensor, brain: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each slice with some regions of foreign tissue; same shape and range, background unchanged."""
    n = len(images)
    size = tuple(images.shape[-2:])
    levels = _between(n, -1, 1, generator).expand_as(images)
    darker_or_brighter = images + _between(n, 0.15, 0.9, generator) * torch.where(
        _between(n, -1, 1, generator) > 0, 1.0, -1.0
    )
    other = torch.where(brain.roll(1, 0), images.roll(1, 0), levels)
    recoloured = random_contrast(images, brain, generator, share=1.0)
    result = images
    for chance in REGIONS:
        kind = torch.rand(n, 1, 1, 1, generator=generator)
        level = _between(n, -1, 1, generator) + _between(n, 0, 0.12, generator) * _smooth_noise(
            n, 32, size, generator
        )
        level = level + _between(n, 0, 0.25, generator) * _smooth_noise(n, 6, size, generator)
        content = torch.where(kind < 0.55, level, torch.where(kind < 0.75, darker_or_brighter, other))
        content = torch.where(kind > 0.9, recoloured, content)
        region = random_region(brain, generator) * _between(n, 0.5, 1.0, generator)  # some are faint
        region = region * (torch.rand(n, 1, 1, 1, generator=generator) < chance)
        result = torch.lerp(result, content, region)
    return torch.where(brain, result.clamp(-1, 1), images)


def with_regions(
    drawn: dict[str, torch.Tensor],
    latents: dict[str, torch.Tensor],
    share: float,
    scheduler: DDIMScheduler,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """The paper's draw (training.denoiser.masked_draw), with lesion-like regions in a share of the samples.

    drawn: {"M", "eps", "t", "z_t", ...}, which comes back with another M and z_t. latents: a batch of
    LatentDataset; "std" and "corrupted" (N, C, h, w), the posterior's, for the slices with regions, "changed"
    (N, 1, h, w) bool, the cells of the regions.

    A region arrives clean, as a lesion does, or noised to any step up to t, as later steps see it. Half of the
    chosen samples keep their noised patches beside it. M is 1 in both.
    """
    M, t, z_t = drawn["M"], drawn["t"], drawn["z_t"]  # (N, 1, h, w), (N,), (N, C, h, w)
    n, changed = len(t), latents["changed"]
    chosen = torch.rand(n, 1, 1, 1, generator=generator) < share
    earlier = (torch.rand(n, generator=generator) * (t + 2)).long() - 1  # (N,), -1: not noised
    foreign = latents["corrupted"] + latents["std"] * torch.randn(
        z_t.shape, generator=generator
    )  # (N, C, h, w)
    noised = scheduler.add_noise(foreign, drawn["eps"], earlier.clamp_min(0))
    region = torch.where((earlier < 0).view(n, 1, 1, 1) | ~changed, foreign, noised)
    patches = M.bool() & ~changed & (torch.rand(n, 1, 1, 1, generator=generator) < 0.5)  # (N, 1, h, w)
    return drawn | {
        "z_t": torch.where(chosen, torch.where(patches, z_t, region), z_t),
        "M": torch.where(chosen, (changed | patches).float(), M),
    }
