"""Anomaly maps from what the reverse process changed: a = G_sigma * min(|d|^p, gamma) / gamma  (MAD-AD, section 3.3).

    d       what is compared: the healed slice with the scan's own, or their latents
    p       2 in the paper, 1 in the authors' code
    gamma   a difference of gamma or more counts as fully anomalous (1), so that one voxel cannot outshine the rest
    G       Gaussian smoothing by sigma pixels: lesions are blobs, noise is not

Every map is (N, 1, H, W) in [0, 1], higher is more anomalous, on the device and in the dtype of its input
(half precision becomes float32). Outside the brain it is 0; the mask is applied after smoothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy import ndimage

from madad_lite.settings import DetectionSettings


def image_difference(
    healed: torch.Tensor,
    reference: torch.Tensor,
    *,
    gamma: float | None = DetectionSettings.gamma,
    squared: bool = DetectionSettings.squared,
    sigma: float = DetectionSettings.sigma,
    weight: torch.Tensor | None = None,
    brain: torch.Tensor | None = None,
) -> torch.Tensor:
    """How much healing changed each voxel (section 3.3).

    healed, reference: (N, 1, H, W) in [-1, 1]. gamma, squared, sigma: as in DetectionSettings; without gamma the
    largest possible difference (2, squared 4) becomes 1. weight: (N, 1, h, w) in [0, 1], how much a difference
    counts, enlarged to the slice (ours). brain: (N, 1, H, W), bool or 0/1.
    Returns (N, 1, H, W) in [0, 1]. ValueError: shapes that do not agree, NaN or infinite values, bad settings.
    """
    DetectionSettings(gamma=gamma, squared=squared, sigma=sigma)
    _check("healed", healed, "(N, 1, H, W)", channels=1)
    _check("reference", reference, "(N, 1, H, W)", like=healed)
    difference = (_real(healed) - _real(reference)).abs()  # (N, 1, H, W)
    difference = difference.square() if squared else difference  # (N, 1, H, W), d^p
    largest = (4.0 if squared else 2.0) if gamma is None else float(gamma)
    difference = difference.clamp(max=largest) / largest  # (N, 1, H, W) in [0, 1]
    if weight is not None:
        _check("weight", weight, "(N, 1, h, w)", channels=1)
        difference = difference * _enlarge(_real(weight), difference.shape[-2:])  # (N, 1, H, W)
    return _finish(difference, sigma, brain)


def latent_difference(
    healed_latent: torch.Tensor,
    latent: torch.Tensor,
    *,
    size: Sequence[int],
    gamma: float | None = None,
    sigma: float = DetectionSettings.sigma,
    brain: torch.Tensor | None = None,
) -> torch.Tensor:
    """How much healing changed each latent cell, enlarged to the slice (the paper's ablation).

    d^2 is the mean over the channels. Latents have no largest value, so that without gamma the map is
    1 - exp(-d^2), which keeps the cells' order and ends at 1; with gamma it is min(d^2, gamma) / gamma.
    healed_latent, latent: (N, C, h, w), after and before healing. size: (H, W). sigma, brain: as above.
    Returns (N, 1, H, W) in [0, 1]. ValueError: as above.
    """
    DetectionSettings(gamma=gamma, sigma=sigma)
    _check("healed_latent", healed_latent, "(N, C, h, w)")
    _check("latent", latent, "(N, C, h, w)", like=healed_latent)
    difference = (_real(healed_latent) - _real(latent)).square().mean(1, keepdim=True)  # (N, 1, h, w)
    scaled = 1 - (-difference).exp() if gamma is None else difference.clamp(max=gamma) / gamma  # (N, 1, h, w)
    return _finish(_enlarge(scaled, size), sigma, brain)


def mean_predicted_mask(
    mask_probability: torch.Tensor,
    *,
    size: Sequence[int],
    sigma: float = DetectionSettings.sigma,
    brain: torch.Tensor | None = None,
) -> torch.Tensor:
    """How sure the network was, over the S steps, that a cell is noise, enlarged (the paper's ablation).

    mask_probability: (S, N, 1, h, w) in [0, 1], S >= 1. size: (H, W). sigma, brain: as above.
    Returns (N, 1, H, W) in [0, 1]. ValueError: as above.
    """
    DetectionSettings(sigma=sigma)
    if mask_probability.ndim != 5 or len(mask_probability) == 0:
        shape = tuple(mask_probability.shape)
        raise ValueError(f"mask_probability must be (S, N, 1, h, w) with S >= 1, not {shape}")
    _check("mask_probability", mask_probability.flatten(0, 1), "(S, N, 1, h, w)", channels=1)
    return _finish(_enlarge(_real(mask_probability).mean(0), size), sigma, brain)


def _enlarge(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(N, 1, h, w) -> (N, 1, H, W), linear."""
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)


def _finish(values: torch.Tensor, sigma: float, brain: torch.Tensor | None) -> torch.Tensor:
    """Smooth every slice and set what is outside the brain to 0: (N, 1, H, W) -> (N, 1, H, W)."""
    if brain is not None and brain.shape != values.shape:
        raise ValueError(f"brain {tuple(brain.shape)} must have the shape of the map, {tuple(values.shape)}")
    if sigma > 0:
        # scipy's defaults, reflecting borders and a kernel of 4 sigma, are what the authors' code uses
        smoothed = ndimage.gaussian_filter(values.detach().cpu().numpy(), sigma=(0, 0, sigma, sigma))
        values = torch.from_numpy(smoothed).to(values)  # (N, 1, H, W)
    values = values.clamp(0, 1)  # (N, 1, H, W)
    return values if brain is None else values.masked_fill(~brain.to(values.device).bool(), 0)


def _real(values: torch.Tensor) -> torch.Tensor:
    """At least single precision: half would cost three digits, and scipy does not know it."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _check(name, values, expected, *, channels=None, like=None) -> None:
    if like is not None and values.shape != like.shape:
        shapes = f"{tuple(values.shape)} and what it is compared with, {tuple(like.shape)}"
        raise ValueError(f"{name} {shapes}, differ in shape")
    if values.ndim != 4 or (channels is not None and values.shape[1] != channels):
        raise ValueError(f"{name} must be {expected}, not {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values")
