"""What the pipeline gives back: maps and pictures of slices, and their way back to the scan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from nibabel import Nifti1Image

from madad_lite.scans.grid import PreparedScan
from madad_lite.scans.nifti import return_to_scan


@dataclass
class MadAdOutput(BaseOutput):
    """Maps and pictures of N slices; S executed steps. Float32 on the CPU."""

    anomaly_map: torch.Tensor  # (N, 1, H, W) in [0, 1]
    healed: torch.Tensor  # (N, 1, H, W) in [-1, 1], the decoded healed latent
    reconstruction: torch.Tensor | None  # (N, 1, H, W) in [-1, 1], the decoded latent before healing
    image: torch.Tensor  # (N, 1, H, W) in [-1, 1], the scan itself
    brain: torch.Tensor  # (N, 1, H, W) bool
    mask_probability: torch.Tensor  # (S, N, 1, h, w) in [0, 1], chance of "noised" at each step
    replaced: torch.Tensor  # (S, N, 1, h, w) bool, the cells replaced at each step
    trajectory: torch.Tensor  # (S + 1, N, C, h, w), the latent before each step and the last one
    timesteps: torch.Tensor  # (S,)
    prepared: PreparedScan | None = None  # of a scan: where its slices lie

    def to_nifti(self, field: str = "anomaly_map") -> Nifti1Image:
        """A field on the scan's own grid and affine, float32; pictures in the scan's own intensities.

        field: "anomaly_map", "healed", "reconstruction", "image" or "brain". ValueError: another; slices were given.
        """
        fields = ("anomaly_map", "healed", "reconstruction", "image", "brain")
        if field not in fields or getattr(self, field) is None:
            there = ", ".join(f for f in fields if getattr(self, f) is not None)
            raise ValueError(f"no such field of this output: {field!r}; there is {there}")
        if self.prepared is None:
            raise ValueError("slices were given, not a scan: there is no scan to return to")
        values = getattr(self, field)[:, 0].numpy()  # (N, H, W)
        if field in ("healed", "reconstruction", "image"):
            values = self.prepared.geometry.to_intensity(values)
        return return_to_scan(values, self.prepared.geometry)
