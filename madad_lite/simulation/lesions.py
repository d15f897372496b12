"""Simulated lesions with exact masks: chronic stroke, glioma, white-matter lesions.

Every lesion is a level set: a smooth random distance field is computed around a seed point, and as many of
the best voxels are taken as the volume asks for. Shapes follow tissue: strokes reach the cortex and stop at
the brain's edge and the midline, oedema prefers white matter, white-matter lesions lie near the ventricles.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

KINDS = ("stroke", "glioma", "wml")
VOLUME_ML = {"stroke": (0.1, 60.0), "glioma": (1.0, 60.0), "wml": (0.1, 20.0)}  # drawn log-uniformly


def smooth_noise(shape, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of zero mean and unit spread, smooth over about `scale` voxels; (shape) float32.

    A coarse random lattice, enlarged by cubic splines along one axis after the other.
    """
    field = rng.standard_normal([max(4, int(np.ceil(n / scale)) + 3) for n in shape]).astype(np.float32)
    for axis, n in enumerate(shape):
        knots = field.shape[axis]
        start = rng.uniform(0, 1)
        at = start + np.arange(n) * min(1 / scale, (knots - 2) / n)
        weights = np.stack(
            [ndimage.map_coordinates(row, [at], order=3, mode="nearest") for row in np.eye(knots)], 1
        )
        field = np.moveaxis(np.tensordot(weights.astype(np.float32), field, (1, axis)), 0, axis)
    return (field - field.mean()) / (field.std() + 1e-6)


def draw_volume(kind: str, rng: np.random.Generator) -> float:
    low, high = VOLUME_ML[kind]
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def level_set(cost: np.ndarray, allowed: np.ndarray, voxels: int) -> np.ndarray:
    """The `voxels` allowed voxels of least cost, as a mask."""
    values = cost[allowed]
    mask = np.zeros(cost.shape, bool)
    voxels = min(max(1, voxels), values.size)
    mask[allowed] = values <= np.partition(values, voxels - 1)[voxels - 1]
    return mask


def _distance(shape, centre, spacing: float, stretch=(1.0, 1.0, 1.0)) -> np.ndarray:
    axes = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij", sparse=True)
    return np.sqrt(sum(((a - c) * spacing / s) ** 2 for a, c, s in zip(axes, centre, stretch)))


def _seed_point(candidates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    points = np.argwhere(candidates)
    return points[rng.integers(len(points))].astype(float)


def stroke_mask(brain, ventricle, spacing: float, volume_ml: float, rng) -> np.ndarray:
    """Territory-like: a stretched, irregular region from the cortex inwards, in one hemisphere."""
    depth = ndimage.distance_transform_edt(brain) * spacing
    middle = np.argwhere(brain).mean(0)
    # lateral, not the lowest slices: where the large arteries' territories are
    columns = np.abs(np.arange(brain.shape[0]) - middle[0]) * spacing
    lateral = (columns > 18)[:, None, None] & (np.arange(brain.shape[2]) > middle[2] - 25 / spacing)[
        None, None
    ]
    radius = (3 * volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    centre = _seed_point(brain & lateral & (depth > 3) & (depth < 8 + radius), rng)
    stretch = rng.uniform(0.75, 1.35, 3)
    cost = _distance(brain.shape, centre, spacing, stretch) + 0.3 * radius * smooth_noise(
        brain.shape, 9 / spacing, rng
    )
    side = np.sign(np.arange(brain.shape[0]) - middle[0]) == np.sign(centre[0] - middle[0])
    allowed = brain & side[:, None, None] & ~ventricle & (depth > 1.0)
    return level_set(cost, allowed, round(volume_ml * 1000 / spacing**3))


def glioma_masks(brain, white, ventricle, spacing: float, volume_ml: float, rng):
    """(whole, ring or core, core, centre, radius in mm): oedema spreads along white matter around a rounder
    tumour.
    """
    depth = ndimage.distance_transform_edt(brain) * spacing
    radius = (3 * volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    middle = np.argwhere(brain).mean(0)
    high = (np.arange(brain.shape[2]) > middle[2] - 20 / spacing)[None, None]
    candidates = brain & (white > 0.6) & (depth > min(12, 4 + radius / 2)) & high
    centre = _seed_point(candidates if candidates.any() else brain & (depth > 6), rng)
    distance = _distance(brain.shape, centre, spacing, rng.uniform(0.85, 1.2, 3))
    bumps = smooth_noise(brain.shape, 14 / spacing, rng)
    whole = level_set(
        distance + 0.18 * radius * bumps - 0.3 * radius * white,
        brain & ~ventricle & (depth > 1),
        round(volume_ml * 1000 / spacing**3),
    )
    share = rng.uniform(0.25, 0.55)
    tumour = level_set(distance + 0.12 * radius * bumps, whole, round(share * whole.sum()))
    core = level_set(distance + 0.1 * radius * bumps, tumour, round(rng.uniform(0.2, 0.6) * tumour.sum()))
    return whole, tumour, core, centre, radius


def wml_mask(brain, white, ventricle, spacing: float, volume_ml: float, rng) -> np.ndarray:
    """Several small lesions in white matter, more of them near the ventricles."""
    depth = ndimage.distance_transform_edt(brain) * spacing
    near = (
        ndimage.distance_transform_edt(~ventricle) * spacing
        if ventricle.any()
        else np.full(brain.shape, 20.0)
    )
    candidates = brain & (white > 0.7) & (depth > 8) & (near < 30)
    if not candidates.any():
        candidates = brain & (depth > 8)
    points = np.argwhere(candidates)
    weight = np.exp(-near[candidates] / 8)
    n = int(np.clip(rng.poisson(3 + 2.5 * volume_ml**0.6), 2, 30))
    chosen = points[rng.choice(len(points), size=min(n, len(points)), replace=False, p=weight / weight.sum())]
    cost = np.full(brain.shape, 1e6, np.float32)
    for centre in chosen:
        size = rng.uniform(0.5, 1.6)
        cost = np.minimum(cost, _distance(brain.shape, centre, spacing, rng.uniform(0.7, 1.4, 3)) / size)
    cost = cost + 0.8 * smooth_noise(brain.shape, 4 / spacing, rng)
    return level_set(
        cost, brain & (white > 0.3) & ~ventricle & (depth > 3), round(volume_ml * 1000 / spacing**3)
    )
