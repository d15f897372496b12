"""What counts as found: connected parts of at least 0.1 mL where the anomaly map, on the scan's own grid, is
at or above the weights' decision threshold. Smaller parts are counted, not listed.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

SMALLEST_ML = 0.1  # about twelve voxels of 2 mm: what is smaller is noise more often than lesion
COLUMNS = ("part", "volume_ml", "x_mm", "y_mm", "z_mm", "max_score", "threshold")


@dataclass(frozen=True)
class Part:
    """Connected voxels, also over edges and corners."""

    volume_ml: float
    centre: tuple[float, float, float]  # centre of mass, MNI152 mm: x to the right, y to the front, z up
    max_score: float


@dataclass(frozen=True)
class Finding:
    """Of a scan. `mask`: uint8 on its grid, 1 in the parts."""

    threshold: float
    parts: tuple[Part, ...]  # the largest first
    smaller: int  # how many parts of less than SMALLEST_ML, ...
    smaller_ml: float  # ... and their volume together
    mask: nib.Nifti1Image

    @property
    def volume_ml(self) -> float:
        return sum(part.volume_ml for part in self.parts)

    @property
    def sentence(self) -> str:
        """Whether anything was found, in one sentence."""
        above = f"above the threshold ({self.threshold:g})"
        small = f"{self.smaller} {'spot' if self.smaller == 1 else 'spots'} of less than {SMALLEST_ML} mL"
        if not self.parts:
            return f"nothing {above}" if not self.smaller else f"nothing {above} but {small}"
        parts = "1 part" if len(self.parts) == 1 else f"{len(self.parts)} parts"
        return f"{self.volume_ml:.1f} mL {above}, in {parts}" + (
            f"; {small} left out" if self.smaller else ""
        )

    def lines(self) -> list[str]:
        """Size and place of each part, in words."""
        lines = []
        for n, part in enumerate(self.parts, 1):
            x, y, z = (f"{round(v):+d}" for v in part.centre)
            place = f"x {x}, y {y}, z {z} mm"
            lines.append(f"{n}: {part.volume_ml:.1f} mL at {place}, score up to {part.max_score:.2f}")
        return lines

    def to_dict(self) -> dict:
        return {
            "sentence": self.sentence,
            "threshold": self.threshold,
            "volume_ml": round(self.volume_ml, 3),
            "parts": len(self.parts),
            "smaller_parts": self.smaller,
            "smaller_ml": round(self.smaller_ml, 3),
        }

    def write_csv(self, path: Path) -> None:
        """A row a part, the largest first; only the head where nothing was found."""
        with open(path, "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(COLUMNS)
            for n, p in enumerate(self.parts, 1):
                place = [round(v, 1) for v in p.centre]
                rows.writerow([n, round(p.volume_ml, 3), *place, round(p.max_score, 3), self.threshold])


def find_parts(score: nib.Nifti1Image, to_mni: np.ndarray, threshold: float) -> Finding:
    """score: an anomaly map on the scan's grid; to_mni: (4, 4), scan mm -> MNI152 mm."""
    values = np.asarray(score.dataobj)
    mask = nib.Nifti1Image(np.zeros(values.shape, np.uint8), score.affine)
    mask.header.set_xyzt_units("mm")
    # the rule of counts.found in single precision: not below the threshold in double precision; and above 0
    lowest = np.float32(threshold)
    lowest = lowest if float(lowest) >= threshold else np.nextafter(lowest, np.float32(np.inf))
    above = values >= max(lowest, np.nextafter(np.float32(0), np.float32(1)))
    if not above.any():
        return Finding(float(threshold), (), 0, 0.0, mask)
    (box,) = ndimage.find_objects(above.view(np.uint8))  # labels of a whole scan of 0.5 mm would be large
    values, marked, corner = values[box], np.asarray(mask.dataobj)[box], [s.start for s in box]
    labels, n = ndimage.label(above[box], structure=np.ones((3, 3, 3)))
    voxel_ml = abs(np.linalg.det(score.affine[:3, :3])) / 1000
    numbers = np.arange(1, n + 1)
    volumes = np.bincount(labels[labels > 0], minlength=n + 1)[1:] * voxel_ml
    listed = numbers[volumes >= SMALLEST_ML]
    listed = listed[np.argsort(-volumes[listed - 1], kind="stable")]
    parts = []
    boxes = ndimage.find_objects(labels)
    for number in listed:
        box = boxes[number - 1]
        inside = labels[box] == number
        voxels = np.argwhere(inside) + [s.start for s in box] + corner
        centre = nib.affines.apply_affine(to_mni @ score.affine, voxels.mean(0))
        parts.append(
            Part(
                float(volumes[number - 1]), tuple(float(v) for v in centre), float(values[box][inside].max())
            )
        )
        marked[box][inside] = 1
    small = volumes[volumes < SMALLEST_ML]
    return Finding(float(threshold), tuple(parts), len(small), float(small.sum()), mask)
