"""The slices of a volume decide together which cells are noise. This repository's extension; the paper judges
each slice alone.

A lesion goes on in the next slice, a false alarm seldom does. So at every step of the reverse process the
mask's logits are averaged over neighbouring slices with Gaussian weights, before they are compared with the
threshold. The denoiser itself still sees single slices, and no training changes.
"""

from __future__ import annotations

import torch

from madad_lite.diffusion import DenoiserFunction


def neighbour_weights(slices: int, sigma: float) -> torch.Tensor:
    """(slices, slices), row i: how much each slice of a volume counts for slice i. Rows sum to 1; sigma in
    slices, above 0.
    """
    index = torch.arange(slices)
    weights = (-(index[:, None] - index[None]).square() / (2 * sigma**2)).exp()
    return weights / weights.sum(1, keepdim=True)


def deciding_together(
    denoiser: DenoiserFunction, weights: torch.Tensor | None, batch_size: int
) -> DenoiserFunction:
    """The denoiser run on `batch_size` slices at a time, its mask logits averaged by `weights` (None: left as
    they are).
    """

    def run(latent: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [denoiser(z, at) for z, at in zip(latent.split(batch_size), t.split(batch_size))]
        prediction, logits = (torch.cat(p) for p in zip(*parts))
        if weights is not None:
            logits = torch.einsum("ij,jchw->ichw", weights.to(logits), logits)
        return prediction, logits

    return run
