"""Anomaly maps from what the reverse process changed (MAD-AD, section 3.3): a = G_sigma * min(|d|^p, gamma) / gamma."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy import ndimage


def _smooth(values: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian of every slice (N, 1, H, W), sigma in pixels."""
    if sigma <= 0:
        return values
    smoothed = ndimage.gaussian_filter(values.double().cpu().numpy(), sigma=(0, 0, sigma, sigma))
    return torch.from_numpy(smoothed).to(values)


def _finish(values: torch.Tensor, sigma: float, brain: torch.Tensor | None) -> torch.Tensor:
    score = _smooth(values, sigma).clamp(0, 1)
    return score if brain is None else torch.where(brain.bool(), score, 0.0)


def image_difference(
    healed: torch.Tensor,
    reference: torch.Tensor,
    *,
    gamma: float | None = 0.2,
    squared: bool = True,
    sigma: float = 2.0,
    brain: torch.Tensor | None = None,
) -> torch.Tensor:
    difference = (healed - reference).abs()  # (N, 1, H, W)
    difference = difference.square() if squared else difference
    largest = gamma if gamma else (4.0 if squared else 2.0)
    return _finish(difference.clamp(max=largest) / largest, sigma, brain)


def latent_difference(healed_latent, latent, *, size, gamma=None, sigma=2.0, brain=None) -> torch.Tensor:
    difference = (healed_latent - latent).square().mean(1, keepdim=True)  # (N, 1, h, w)
    difference = difference.clamp(max=gamma) / gamma if gamma else 1 - (-difference).exp()
    return _finish(F.interpolate(difference, size=tuple(size), mode="bilinear"), sigma, brain)


def mean_predicted_mask(mask_probability, *, size, sigma=2.0, brain=None) -> torch.Tensor:
    return _finish(F.interpolate(mask_probability.mean(0), size=tuple(size), mode="bilinear"), sigma, brain)
