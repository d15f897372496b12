"""Two further ways to ask the same denoiser. They are this repository's extension, not the paper's.

The paper asks "what looks like noise?". A smooth lesion may not. The sweep asks "what do its surroundings not explain?": it hides
a quarter of the latent patches behind pure noise, lets the denoiser predict them from the rest, goes on to the next quarter,
and averages a few such draws. No cell is seen when it is judged. Healing by the selective reverse process can follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from diffusers import DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor

from madad_lite.diffusion import DenoiserFunction, ReverseResult, masked_forward, selective_reverse

GROUPS = 4  # each hides one quarter of the patches
PATCH = 2  # cells along the side of a patch
Generators = torch.Generator | list[torch.Generator] | None  # a list: one a sample, so that the batch does not matter


@torch.no_grad()
def masked_sweep(
    denoiser: DenoiserFunction,
    z0: torch.Tensor,
    scheduler: DDIMScheduler,
    *,
    draws: int = 4,
    generator: Generators = None,
    on_step: Callable[[], None] | None = None,
) -> torch.Tensor:
    """What the denoiser expects at each cell from its surroundings alone, (N, C, h, w) like z0.

    The patches are divided into quarters at random, anew for each draw; every cell is predicted once a draw. Returns the mean.
    """
    n, _, h, w = z0.shape
    rows, columns = -(-h // PATCH), -(-w // PATCH)
    t = torch.full((n,), scheduler.config.num_train_timesteps - 1)
    total = torch.zeros_like(z0)
    for _ in range(draws):
        order = randn_tensor((n, rows * columns), generator=generator, device=z0.device).argsort(1).argsort(1)
        group = (order % GROUPS).view(n, 1, rows, columns)
        group = group.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1)[..., :h, :w]  # (N, 1, h, w)
        for g in range(GROUPS):
            hidden = group == g
            noise = randn_tensor(z0.shape, generator=generator, device=z0.device)
            prediction, _ = denoiser(masked_forward(z0, noise, hidden, t, scheduler), t.to(z0.device))
            total = total + torch.where(hidden, prediction, 0.0)
            if on_step is not None:
                on_step()
    return total / draws


@torch.no_grad()
def sweep_and_heal(
    denoiser: DenoiserFunction,
    z0: torch.Tensor,
    scheduler: DDIMScheduler,
    *,
    rounds: int = 2,
    draws: int = 4,
    limit: float = 1.0,  # mean square over the channels, in units of the latents' variance
    generator: Generators = None,
    on_step: Callable[[], None] | None = None,
    **reverse,  # of selective_reverse
) -> ReverseResult:
    """The sweep finds, the selective reverse process heals; again from the healed latent, for lesions larger than a patch.

    Cells that differ by more than `limit` from what the sweep expects are noised completely before they are healed.
    """
    healed, found = z0, torch.zeros_like(z0[:, :1], dtype=torch.bool)
    t = torch.full((len(z0),), scheduler.config.num_train_timesteps - 1)
    common = dict(generator=generator, on_step=on_step)
    for _ in range(rounds):
        expected = masked_sweep(denoiser, healed, scheduler, draws=draws, **common)
        found = found | ((expected - z0).square().mean(1, keepdim=True) > limit)
        noise = randn_tensor(z0.shape, generator=generator, device=z0.device)
        result = selective_reverse(denoiser, masked_forward(z0, noise, found, t, scheduler), scheduler, **common, **reverse)
        healed = result.latent
    return replace(result, trajectory=torch.cat([z0[None], result.trajectory[1:]]))
