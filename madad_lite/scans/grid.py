"""Where slices lie: a grid in MNI152 space, a scan's geometry on it, and the slices themselves.

Coordinates are carried by affines from end to end, so that orientation and voxel size need no special cases:

    scan voxel --scan_affine--> scan mm --to_mni--> MNI152 mm --inverse of grid.affine--> grid voxel

and each direction interpolates once. Slices: (n, H, W), inferior to superior; rows from anterior to
posterior, columns from the patient's left to right; float32 in [-1, 1], background exactly -1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from madad_lite.errors import Refused


@dataclass(frozen=True)
class Grid:
    """The grid of the slices, in MNI152 mm. In plane it is centred on x = 0, y = -18. Refused, a ValueError, when
    it makes no sense.
    """

    spacing: float = 2.0  # mm
    size: int = 96  # pixels along both sides of a slice
    z_range: tuple[float, float] = (-62.0, 80.0)  # mm, of the lowest and the highest slice
    z_spacing: float | None = None  # mm from slice to slice; None: as in plane

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("spacing", self.spacing, 0.25, 20),
            ("size", self.size, 8, 1024),
            ("z_spacing", self.step, 0.25, 100),
            ("z_range", self.z_range[0], -500, 500),
            ("z_range", self.z_range[1], -500, 500),
        ):
            if not low <= value <= high:
                raise Refused(f"{name} {value} lies outside of {low} to {high}" + " mm" * (name != "size"))
        if self.z_range[0] > self.z_range[1]:
            raise Refused(f"z_range goes from low to high, not from {self.z_range[0]} to {self.z_range[1]}")
        if self.size % 8:  # the encoder halves it twice or more, the denoiser its latents
            raise Refused(f"size {self.size} is no multiple of 8: encoder and denoiser halve it")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size, self.size, int((self.z_range[1] - self.z_range[0]) / self.step + 1e-6) + 1

    @property
    def step(self) -> float:
        """mm from slice to slice."""
        return self.z_spacing or self.spacing

    @property
    def affine(self) -> np.ndarray:
        """(4, 4): voxel of the RAS grid -> MNI mm."""
        affine = np.diag([self.spacing, self.spacing, self.step, 1.0])
        half = (self.size - 1) / 2 * self.spacing
        affine[:3, 3] = -half, -18.0 - half, self.z_range[0]
        return affine

    def to_dict(self) -> dict:
        content = {"spacing": self.spacing, "size": self.size, "z_range": list(self.z_range)}
        return content if self.z_spacing is None else content | {"z_spacing": self.z_spacing}

    @classmethod
    def from_dict(cls, values: dict) -> Grid:
        z_range = tuple(float(z) for z in values["z_range"])
        return cls(float(values["spacing"]), int(values["size"]), z_range, values.get("z_spacing"))


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Geometry:
    """Everything that is needed to go back from slices to the scan. As JSON (`to_dict`) it keeps every
    bit.
    """

    scan_shape: tuple[int, int, int]
    scan_affine: np.ndarray  # (4, 4) scan voxel -> scan mm
    to_mni: np.ndarray  # (4, 4) scan mm -> MNI mm
    grid: Grid
    slice_index: tuple[int, ...]  # z of each kept slice in the grid
    intensity: tuple[float, float] = (0.0, 1.0)  # (offset, median): value = offset + median * (x + 1)
    levels: tuple[tuple[float, ...], tuple[float, ...]] | None = (
        None  # (0..2 by the median, 0..2 by the tissues)
    )

    def to_intensity(self, slices: np.ndarray) -> np.ndarray:
        """Slices in [-1, 1] in the scan's own intensities."""
        offset, median = self.intensity
        values = np.asarray(slices) + 1
        if self.levels is not None:
            values = np.interp(values, self.levels[1], self.levels[0])
        return offset + median * values

    def to_dict(self) -> dict:
        content = {
            "scan_shape": [int(n) for n in self.scan_shape],
            "scan_affine": np.asarray(self.scan_affine).tolist(),
            "to_mni": np.asarray(self.to_mni).tolist(),
            "grid": self.grid.to_dict(),
            "slice_index": [int(k) for k in self.slice_index],
            "intensity": [float(v) for v in self.intensity],
        }
        levels = None if self.levels is None else [[float(v) for v in way] for way in self.levels]
        return content if levels is None else content | {"levels": levels}

    @classmethod
    def from_dict(cls, values: dict) -> Geometry:
        return cls(
            tuple(values["scan_shape"]),
            np.array(values["scan_affine"]),
            np.array(values["to_mni"]),
            Grid.from_dict(values["grid"]),
            tuple(values["slice_index"]),
            tuple(values["intensity"]),
            tuple(map(tuple, values["levels"])) if values.get("levels") else None,
        )


@dataclass
class PreparedScan:
    """A scan's n kept slices on its grid: H = W = grid.size, from inferior to superior."""

    image: np.ndarray  # (n, H, W) float32 in [-1, 1]
    brain: np.ndarray  # (n, H, W) bool
    lesion: np.ndarray | None  # (n, H, W) bool
    geometry: Geometry
    brain_source: str = "file"  # how the brain was found: "file", "background", "deepbet" or "template"
    brain_ml: float | None = None  # its volume in the scan
    brain_in_scan: np.ndarray | None = None  # (X, Y, Z) bool, its mask on the scan's own grid
