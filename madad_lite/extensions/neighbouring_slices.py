"""The slices of a volume decide together which cells are noise. This repository's extension; the paper judges
each slice alone.

A lesion goes on in the next slice, a false alarm seldom does. So at every step of the reverse process the
mask's logits are averaged over neighbouring slices with Gaussian weights, before they are compared with the
threshold. The denoiser itself still sees single slices, and no training changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler

from madad_lite.diffusion import DenoiserFunction, ReverseResult, selective_reverse


def neighbour_weights(slices: int, sigma: float) -> torch.Tensor:
    """How much each slice of a volume counts for each: a Gaussian (ours).

    sigma: in slices, above 0. Returns (slices, slices); row i, the weights for slice i, sums to 1.
    """
    index = torch.arange(slices)
    weights = (-(index[:, None] - index[None]).square() / (2 * sigma**2)).exp()  # (S, S)
    return weights / weights.sum(1, keepdim=True)


def deciding_together(
    denoiser: DenoiserFunction, weights: torch.Tensor | None, batch_size: int
) -> DenoiserFunction:
    """The denoiser run on `batch_size` slices at a time, its mask logits averaged by `weights` (ours).

    weights: (N, N), see neighbour_weights; None: the logits are left as they are.
    """

    def run(z_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [denoiser(z, at) for z, at in zip(z_t.split(batch_size), t.split(batch_size))]
        z0_hat, logits = (torch.cat(p) for p in zip(*parts))  # (N, C, h, w), (N, 1, h, w)
        if weights is not None:
            logits = torch.einsum("ij,jchw->ichw", weights.to(logits), logits)  # (N, 1, h, w)
        return z0_hat, logits

    return run


def slice_groups(n: int, volumes: Sequence | None, batch_size: int) -> list[torch.Tensor]:
    """Which of n slices go through the reverse process together: a volume, or, without volumes, a batch (ours).

    volumes: (n,) the volume of each slice, those of one beside each other. Returns rows, one tensor a group.
    ValueError: another number of volumes than of slices.
    """
    if volumes is None:
        return list(torch.arange(n).split(batch_size))
    labels = np.asarray(volumes)
    if labels.shape != (n,):
        raise ValueError(f"volumes names the volume of each of the {n} slices, not {labels.shape}")
    ends = [*(np.flatnonzero(labels[1:] != labels[:-1]) + 1), n]
    return [torch.arange(start, end) for start, end in zip([0, *ends], ends)]


def reverse_in_groups(
    denoiser: DenoiserFunction,
    z0: torch.Tensor,
    scheduler: DDIMScheduler,
    groups: Sequence[torch.Tensor],
    *,
    sigma: float,
    batch_size: int,
    device: torch.device | str,
    generator: torch.Generator | None = None,
    **options,
) -> ReverseResult:
    """selective_reverse of one group of slices after the other, on the device; the results on the CPU (ours).

    z0: (N, C, h, w). groups: of slice_groups. sigma: in slices, over which a group decides together; 0: each
    slice alone. options: of selective_reverse. Each slice draws from a generator of its own, so that neither
    the groups nor the batch size change what is drawn.
    """
    draw_on = generator.device if generator else "cpu"
    seeds = torch.randint(2**62, (len(z0),), generator=generator, device=draw_on).tolist()
    parts = []
    for rows in groups:
        weights = neighbour_weights(len(rows), sigma) if sigma > 0 else None
        own = [torch.Generator().manual_seed(seeds[row]) for row in rows]
        run = deciding_together(denoiser, weights, batch_size)
        parts.append(selective_reverse(run, z0[rows].to(device), scheduler, generator=own, **options))

    def joined(field: str, axis: int) -> torch.Tensor:
        return torch.cat([getattr(p, field).cpu() for p in parts], axis)

    stacks = (joined(field, 1) for field in ("mask_probability", "replaced", "trajectory"))
    return ReverseResult(joined("latent", 0), *stacks, parts[0].timesteps.cpu())
