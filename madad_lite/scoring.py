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

# Two readings of the method, as arguments of `image_difference`. `reference` differs too: the paper compares
# the healed slice with the scan itself, the authors' code with the decoded latent before healing, so that
# what the autoencoder alone loses does not count. Their sigma belongs to slices of 256 pixels; on 96 pixels
# about 2 smooths as many mm.
PAPER = {"gamma": 0.2, "squared": True}
AUTHORS = {"gamma": 0.25, "squared": False, "sigma": 5.0}


def image_difference(
    healed: torch.Tensor,
    reference: torch.Tensor,
    *,
    gamma: float | None = 0.2,
    squared: bool = True,
    sigma: float = 2.0,
    weight: torch.Tensor | None = None,
    brain: torch.Tensor | None = None,
) -> torch.Tensor:
    """How much healing changed each voxel.

    Args:
        healed: (N, 1, H, W) in [-1, 1], the decoded healed latent.
        reference: (N, 1, H, W) in [-1, 1], the scan (paper) or the decoded latent before healing (authors'
        code).
        gamma: where the difference is clipped, in units of d^p; None: no clipping, only scaled by the largest
            possible difference (2, squared 4).
        squared: p = 2 if True, else 1.
        sigma: standard deviation of the Gaussian in pixels; 0: no smoothing.
        weight: (N, 1, h, w) in [0, 1], how much a difference counts, enlarged to the slice; for one, how sure
            the network was that a cell is noise, so that what only the decoder loses does not count. Not in
            the paper.
        brain: (N, 1, H, W), bool or 0/1.

    Raises ValueError for shapes that do not agree, NaN or infinite values, a gamma that is not positive.
    """
    _check("healed", healed, "(N, 1, H, W)", channels=1)
    _check("reference", reference, "(N, 1, H, W)", shape=healed.shape)
    difference = (_real(healed) - _real(reference)).abs()  # (N, 1, H, W)
    difference = difference.square() if squared else difference
    largest = (4.0 if squared else 2.0) if gamma is None else _positive("gamma", gamma)
    difference = difference.clamp(max=largest) / largest
    if weight is not None:
        _check("weight", weight, "(N, 1, h, w)", channels=1)
        difference = difference * _enlarge(_real(weight), difference.shape[-2:])
    return _finish(difference, sigma, brain)


def latent_difference(
    healed_latent: torch.Tensor,
    latent: torch.Tensor,
    *,
    size: Sequence[int],
    gamma: float | None = None,
    sigma: float = 2.0,
    brain: torch.Tensor | None = None,
) -> torch.Tensor:
    """How much healing changed each latent cell, enlarged to the slice: the decoder plays no part.

    d^2 is the mean over the latent's channels. Latents have no largest value, so that without gamma the map
    is 1 - exp(-d^2), which keeps the cells' order and ends at 1; with gamma it is min(d^2, gamma) / gamma.

    Args:
        healed_latent, latent: (N, C, h, w), after and before healing, scaled to about unit variance.
        size: (H, W) of the map.
        gamma, sigma, brain: as in `image_difference`; sigma in pixels of the enlarged map.
    """
    _check("healed_latent", healed_latent, "(N, C, h, w)")
    _check("latent", latent, "(N, C, h, w)", shape=healed_latent.shape)
    difference = (_real(healed_latent) - _real(latent)).square().mean(1, keepdim=True)  # (N, 1, h, w)
    if gamma is None:
        difference = 1 - (-difference).exp()
    else:
        difference = difference.clamp(max=_positive("gamma", gamma)) / gamma
    return _finish(_enlarge(difference, size), sigma, brain)


def mean_predicted_mask(
    mask_probability: torch.Tensor,
    *,
    size: Sequence[int],
    sigma: float = 2.0,
    brain: torch.Tensor | None = None,
) -> torch.Tensor:
    """How sure the network was, over the S reverse steps, that a cell is noise, enlarged to the slice.

    mask_probability: (S, N, 1, h, w) in [0, 1], chance of "noised". size, sigma, brain: as in
    `latent_difference`.
    """
    if mask_probability.ndim != 5 or len(mask_probability) == 0:
        raise ValueError(
            f"mask_probability must be (S, N, 1, h, w) with S >= 1, not {tuple(mask_probability.shape)}"
        )
    _check("mask_probability", mask_probability[0], "(S, N, 1, h, w)", channels=1)
    _finite("mask_probability", mask_probability)
    return _finish(_enlarge(_real(mask_probability).mean(0), size), sigma, brain)


def _enlarge(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(N, 1, h, w) -> (N, 1, H, W), linear."""
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)


def _finish(values: torch.Tensor, sigma: float, brain: torch.Tensor | None) -> torch.Tensor:
    """Smooth every slice and set what is outside the brain to 0: (N, 1, H, W) -> (N, 1, H, W)."""
    if brain is not None and brain.shape != values.shape:
        raise ValueError(f"brain {tuple(brain.shape)} must have the shape of the map, {tuple(values.shape)}")
    if sigma < 0:
        raise ValueError(f"sigma is in pixels and not negative, not {sigma}")
    if sigma > 0:
        # scipy's defaults, reflecting borders and a kernel of 4 sigma, are what the authors' code uses
        smoothed = ndimage.gaussian_filter(values.detach().cpu().numpy(), sigma=(0, 0, sigma, sigma))
        values = torch.from_numpy(smoothed).to(values)
    values = values.clamp(0, 1)
    return (
        values
        if brain is None
        else torch.where(brain.to(values.device).bool(), values, torch.zeros_like(values))
    )


def _real(values: torch.Tensor) -> torch.Tensor:
    """At least single precision: half would cost three digits, and scipy does not know it."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be positive, or None for no clipping, not {value}")
    return float(value)


def _finite(name: str, values: torch.Tensor) -> None:
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values")


def _check(
    name: str, values: torch.Tensor, expected: str, *, channels: int | None = None, shape=None
) -> None:
    if shape is not None and values.shape != shape:
        raise ValueError(
            f"{name} {tuple(values.shape)} and what it is compared with, {tuple(shape)}, differ in shape"
        )
    if values.ndim != 4 or (channels is not None and values.shape[1] != channels):
        raise ValueError(f"{name} must be {expected}, not {tuple(values.shape)}")
    _finite(name, values)
