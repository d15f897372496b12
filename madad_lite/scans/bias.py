"""Bias fields: slow changes of brightness across a scan, by the coil and not by the brain."""

from __future__ import annotations

import numpy as np

from madad_lite.scans.brain import box_of
from madad_lite.scans.registration import one_thread, simpleitk

COARSE = 6.0  # mm; the field is slow, and a second or two are enough to see it
ITERATIONS = [20, 20, 20]  # at each of three resolutions of the spline


def without_bias(data: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The volume divided by its bias field, float32; outside the mask as it was.

    data: (X, Y, Z).  mask: (X, Y, Z) bool, the brain.  affine: (4, 4), for the voxels' sizes. N4 (Tustison et al.
    2010, doi 10.1109/TMI.2010.2046908) on voxels of about 6 mm. Deterministic. ImportError without SimpleITK.
    """
    sitk = simpleitk("bias correction", "leave it out (bias_correction=False)")
    box = box_of(mask)
    part, inside = data[box], mask[box]
    low = min(0.0, float(np.percentile(data[mask], 0.5)))  # of z-scored scans, as in the normalisation
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    image, where = (
        sitk.GetImageFromArray(np.ascontiguousarray(a.T)) for a in (part - low, inside.astype(np.uint8))
    )
    for volume in (image, where):
        volume.SetSpacing([float(v) for v in voxel])
    factors = [max(1, round(COARSE / v)) for v in voxel]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(ITERATIONS)
    with one_thread():
        n4.Execute(sitk.Shrink(image, factors), sitk.Shrink(where, factors))
        field = np.exp(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T)
    result = data.copy()
    result[box] = np.where(inside, (part - low) / field + low, part)
    return result
