"""What a caller gives the pipeline: a scan, a prepared one, or slices; checked before any work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from madad_lite.scans.grid import Grid, PreparedScan


def quick_look(grid: Grid, z_range: tuple[float, float] | None, z_spacing: float | None) -> Grid:
    """Fewer slices of a grid: only those between two heights, in MNI mm, or one every `z_spacing` mm (a map is
    interpolated in between). None: as they are. ValueError: a range or spacing that makes no sense.
    """
    if z_range is not None:
        if not z_range[0] <= z_range[1]:
            raise ValueError(f"z_range goes from low to high, not from {z_range[0]} to {z_range[1]}")
        grid = replace(grid, z_range=tuple(float(z) for z in z_range))
    if z_spacing is not None:
        if not 0 < z_spacing < 100:
            raise ValueError(f"z_spacing is in mm and above 0, not {z_spacing}")
        grid = replace(grid, z_spacing=float(z_spacing))
    return grid


def given(
    scan: object,
    prepare: Callable[..., PreparedScan],
    divisor: int,
    *,
    brain: object,
    volumes: Sequence | None,
    **of_file,
) -> tuple[PreparedScan | None, torch.Tensor, torch.Tensor, Sequence | None]:
    """What the pipeline works on, of a file, a PreparedScan, or slices.

    divisor: of H and W. brain, volumes, of_file: as of MadAdPipeline; None and "auto" count as not given.
    Returns the prepared scan (None: slices were given), slices (N, 1, H, W) in [-1, 1], their brain (N, 1, H, W) bool,
    and the volume of each. ValueError: arguments that make no sense for what was given, or slices that are none.
    """
    of_file = {k: v for k, v in of_file.items() if v not in (None, "auto")}
    if isinstance(scan, (str, os.PathLike)):
        _refuse("a scan, whose slices are one volume", volumes=volumes)
        scan, brain, of_file = (
            prepare(scan, **({} if brain is None else {"brain": brain}), **of_file),
            None,
            {},
        )
    if not isinstance(scan, PreparedScan):
        _refuse("slices", **of_file)
        return None, *_slices(scan, brain, divisor), volumes
    _refuse("a prepared scan, which has its own brain and slices", brain=brain, volumes=volumes, **of_file)
    return scan, *_slices(scan.image, scan.brain, divisor), [0] * len(scan.image)


def _slices(
    slices: torch.Tensor | np.ndarray | Sequence, brain: object, divisor: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 1, H, W) or (N, H, W), and a mask of as many pixels or None: where slices are not background, -1; checked."""
    images = _tensor(slices).float()
    images = images[:, None] if images.ndim == 3 else images  # (N, 1, H, W)
    if images.ndim != 4 or images.shape[1] != 1 or not images.numel():
        raise ValueError(f"slices must be (N, 1, H, W), not {tuple(images.shape)}")
    if images.shape[2] % divisor or images.shape[3] % divisor:
        sides = f"{images.shape[2]} x {images.shape[3]}"
        raise ValueError(f"slices of {sides} pixels: this model needs sides that are divisible by {divisor}")
    if not torch.isfinite(images).all() or images.min() < -1.001 or images.max() > 1.001:
        raise ValueError(
            "slices must be finite and within [-1, 1]; prepare_volume makes such slices from a scan"
        )
    if brain is None:
        return images, images > -1
    if isinstance(brain, (str, os.PathLike)):
        raise ValueError(f"{brain}: a mask file belongs to a scan; slices need a mask of their own shape")
    mask = _tensor(brain).bool()
    if mask.numel() != images.numel() or mask.shape[-2:] != images.shape[-2:]:
        raise ValueError(
            f"brain {tuple(mask.shape)} must have the shape of the slices, {tuple(images.shape)}"
        )
    return images, mask.view(images.shape)


def _refuse(what: str, **given: object) -> None:
    if named := [f"{name}=" for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(named)} cannot be used with {what}")


def _tensor(values: object) -> torch.Tensor:
    return (values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))).cpu()
