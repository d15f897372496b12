"""The counts that the metrics are made of: one sort of the voxels, then every threshold at once.

A metric of N slices at 201 thresholds does not need 201 passes over the voxels. Sorted once, the number of
voxels at or above any score is a binary search; and between two scores of lesion voxels no lesion is gained
or lost, so that the counts at the lesion's scores hold the best Dice, the average precision and the AUROC
exactly. Voxels that do not fit in memory are counted in narrow bins of their scores instead.
"""

from __future__ import annotations

import numpy as np

THRESHOLDS = np.linspace(0, 1, 201)  # of the Dice with one threshold for all slices, as in the authors' code
LOWEST, FINENESS = -24, 14  # Histogram: bins begin at 2^-24 and split every doubling of the score into 2^14
NO_LESION = "no lesion voxel inside the brain: Dice, AP and AUROC mean nothing there"


def to_numpy(values) -> np.ndarray:
    """An array from an array, a list or a tensor on any device; half precision becomes float32."""
    if hasattr(values, "detach"):  # a tensor; torch itself is not needed here
        values = values.detach().cpu()
        values = values.float() if values.dtype.is_floating_point and values.dtype.itemsize < 4 else values
    return np.asarray(values)


def as_array(values) -> np.ndarray:
    """(N, 1, H, W) or (N, H, W), array or tensor -> (N, H, W) array."""
    values = to_numpy(values)
    return values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else values


def checked(score, truth, brain=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, H, W) float, bool, bool; voxels outside the brain are neither lesion nor brain. ValueError for bad
    input.
    """
    score, truth = as_array(score), as_array(truth)
    brain = np.ones(truth.shape, bool) if brain is None else as_array(brain)
    if score.shape != truth.shape or brain.shape != truth.shape:
        raise ValueError(
            f"score {score.shape}, truth {truth.shape} and brain {brain.shape} must have one shape"
        )
    if score.ndim != 3 or not score.size:
        raise ValueError(f"scores must be (N, H, W) or (N, 1, H, W) and not empty, not {score.shape}")
    score = score if score.dtype in (np.float32, np.float64) else score.astype(np.float32)
    for name, values in (("score", score), ("truth", truth), ("brain", brain)):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"the {name} holds NaN or infinite values")
    brain, truth = (v if v.dtype == bool else v > 0 for v in (brain, truth))
    if not brain.any():
        raise ValueError("the brain mask is empty: there is nothing to measure")
    return score, truth & brain, brain


def check_range(score) -> None:
    """ValueError for scores outside of [0, 1]."""
    low, high = float(score.min()), float(score.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"the 201 thresholds lie in [0, 1], the score in [{low:.3g}, {high:.3g}]: rescale it"
        )


def subject_index(subjects, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(names (S,), index (n,) into them). ValueError unless each of the n slices has a subject."""
    subjects = np.asarray(subjects)
    if subjects.shape != (n,):
        raise ValueError(f"subjects must name one subject a slice, ({n},), not {subjects.shape}")
    return np.unique(subjects, return_inverse=True)


def dice(hits, found, lesion) -> np.ndarray:
    """2 |found and lesion| / (|found| + |lesion|); 1 where there is nothing to find and nothing is found."""
    both = np.asarray(found + lesion, dtype=float)
    return np.divide(2.0 * hits, both, out=np.ones_like(both), where=both > 0)


def found(score: np.ndarray, threshold: float) -> np.ndarray:
    """The rule of every picture and table: a voxel is found where score >= threshold. Any shape -> bool.

    In double precision, as `at_or_above` counts: a float32 score of 0.7 lies below a threshold of 0.7.
    """
    return np.asarray(score, np.float64) >= threshold


def at_or_above(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many of the sorted values are >= each threshold."""
    return len(values) - np.searchsorted(values, thresholds, side="left")


class Voxels:
    """All voxels in the brain pooled, counted at the K distinct scores of lesion voxels. Exact."""

    def __init__(self, score, truth, brain):
        if not truth.any():
            raise ValueError(NO_LESION)
        every = score[brain]
        every.sort()  # in place: there may be a hundred million
        self.total = len(every)
        # (K,) the scores of lesion voxels, ascending; and the number of lesion voxels at each
        self.values, self.lesion = np.unique(score[truth], return_counts=True)
        self.hits = self.lesion[::-1].cumsum()[::-1]  # (K,) lesion voxels with this score or more
        self.found = at_or_above(every, self.values)  # (K,) voxels with this score or more
        self.above = len(every) - np.searchsorted(every, self.values, side="right")  # (K,) with more
        next_lower = every[np.maximum(self.total - self.found - 1, 0)]
        self.lower = np.where(self.found < self.total, next_lower, self.values)  # (K,)

    def max_dice(self) -> tuple[float, float]:
        """(best Dice over all thresholds, threshold)."""
        values = dice(self.hits, self.found, self.hits[0])
        best = int(values.argmax())
        # halfway to the next lower score, so that neither side is favoured on other data
        return float(values[best]), (float(self.lower[best]) + float(self.values[best])) / 2

    def average_precision(self) -> float:
        """Sum over thresholds of (recall gained) x precision, as scikit-learn defines it."""
        return float((self.lesion * (self.hits / self.found)).sum() / self.hits[0])

    def auroc(self) -> float:
        """The share of all pairs of a lesion and a healthy voxel in which the lesion scores higher; ties
        count half.
        """
        healthy = self.total - self.hits[0]
        if not healthy:
            raise ValueError("no healthy voxel inside the brain: the AUROC means nothing there")
        tied = self.found - self.above - self.lesion  # (K,) healthy voxels with exactly this score
        beaten = healthy - (self.found - self.hits) + tied / 2
        return float((self.lesion * (beaten / healthy)).sum() / self.hits[0])


class Histogram:
    """The pooled voxels of slices with scores in [0, 1] that come batch by batch: 6 MB, however many they
    are.

    A bin's width is 1/16384 of its scores or less; whatever is below 2^-24 shares one. Voxels of one bin
    count as tied: that moves the best Dice, AP and AUROC by less than 1e-4, unless nearly all scores are
    crammed into a few bins.
    """

    # the bits of positive floats, read as integers, are in the order of the floats; the first of them name
    # the bin
    SHIFT = 23 - FINENESS
    FIRST = int(np.float32(2.0**LOWEST).view(np.int32)) >> SHIFT

    def __init__(self):
        self.every, self.lesion = np.zeros((2, (-LOWEST << FINENESS) + 2), np.int64)

    @classmethod
    def joined(cls, parts: list[Histogram]) -> Histogram:
        """The voxels of all of them."""
        result = cls()
        for part in parts:
            result.every += part.every
            result.lesion += part.lesion
        return result

    def add(self, score, truth, brain) -> None:
        for counts, values in ((self.every, score[brain]), (self.lesion, score[truth])):
            bins = (values.astype(np.float32, copy=False).view(np.int32) >> self.SHIFT) - (self.FIRST - 1)
            counts += np.bincount(np.maximum(bins, 0), minlength=len(counts))

    def voxels(self) -> Voxels:
        """What has come so far, every score rounded down to its bin's edge."""
        if not self.lesion.any():
            raise ValueError(NO_LESION)
        edges = (np.arange(len(self.every) - 1) + self.FIRST << self.SHIFT).astype(np.int32).view(np.float32)
        found, some = self.every[::-1].cumsum()[::-1], np.flatnonzero(self.lesion)
        result = object.__new__(Voxels)
        result.total, result.lesion, result.found = int(found[0]), self.lesion[some], found[some]
        result.values = result.lower = np.append(np.float32(0), edges)[some]
        result.hits = result.lesion[::-1].cumsum()[::-1]
        result.above = result.found - self.every[some]
        return result
