"""Sums over the slices of each subject: what the metrics per image, by lesion size and for any resample of the
subjects are made of, without the voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from madad_lite.evaluation.counts import THRESHOLDS, at_or_above, dice

SIZES = ("small", "medium", "large")
SIZE_LIMITS = (0.01, 0.05)  # share of the slice's brain at which "medium" and "large" begin
BINS = 2048  # quantiles of the lesion's and of all scores; the bootstrap does not tell voxels apart between two of them
# where the scores are not known beforehand: 0, each doubling from 2^-16 to 2^-4 in 64 steps and from there to 1 in 1024
FIXED_EDGES = np.concatenate(
    [
        [0.0],
        *(2.0**k * np.linspace(1, 2, 64 if k < -4 else 1024, endpoint=False) for k in range(-16, 0)),
        [1.0],
    ]
)


def sizes_of(lesion: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Voxels of lesion and of brain, (N,) -> (N,) "small", "medium", "large", or "" without lesion."""
    share = lesion / np.maximum(brain, 1)
    return np.select(
        [share == 0, share < SIZE_LIMITS[0], share <= SIZE_LIMITS[1]], ["", *SIZES[:2]], SIZES[2]
    )


def quantiles(values: np.ndarray) -> np.ndarray:
    """At most BINS of the values, the lowest and the highest among them; all of them when there are so
    few.
    """
    values = np.sort(values)
    distinct = values[np.append(True, values[1:] > values[:-1])] if len(values) else values
    if len(distinct) <= BINS:
        return distinct
    return values[np.linspace(0, len(values) - 1, BINS).round().astype(int)]


class Sums:
    """Of slices that come batch by batch, one row of sums for each subject and size of lesion.

    thresholds: (T,), where the Dice of each slice is taken. edges: (K,) ascending, where the voxels of a subject
    are counted, for the intervals; none: no intervals. A row holds T + 2 K + 6 numbers, however many slices it
    sums. Voxels between two edges count as tied: that moves a Dice of an interval by at most twice, an AUROC by at
    most once, the share of the lesion's voxels that lie between two neighbouring edges, and an AP by about as much
    (measured: 0.003 and less, but up to 0.02 where the lesions of a size have 34 voxels in all).
    """

    def __init__(self, thresholds, edges=()):
        self.thresholds, self.edges = np.asarray(thresholds, float), np.asarray(edges, float)
        self.rows: dict[tuple, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self.outside = 0  # lesion voxels that the brain mask left out

    def add(self, score, truth, brain, subjects) -> np.ndarray:
        """score, truth, brain: (N, H, W) as `counts.checked` gives them. Returns the sizes of the lesions (N,)."""
        every_threshold = np.append(self.thresholds, self.edges)
        n = len(self.thresholds)
        sizes = sizes_of(truth.sum((1, 2)), brain.sum((1, 2)))
        for i, key in enumerate(zip(subjects, sizes)):
            every, lesion = np.sort(score[i][brain[i]]), np.sort(score[i][truth[i]])
            found, hits = at_or_above(every, every_threshold), at_or_above(lesion, every_threshold)
            own = 0.0
            if len(lesion):
                own = dice(at_or_above(lesion, lesion), at_or_above(every, lesion), len(lesion)).max()
            last = (hits[n - 1], found[n - 1]) if n else (0, 0)
            if key not in self.rows:
                self.rows[key] = np.zeros(6), np.zeros(n), np.zeros((2, len(self.edges)), np.int32)
            numbers, each, counts = self.rows[key]
            numbers += (1, own, *last, len(lesion), len(every))
            each += dice(hits[:n], found[:n], len(lesion))
            counts += np.stack([hits[n:], found[n:]]).astype(np.int32)
        return sizes

    def subjects(self, size: str | None = None) -> Subjects:
        """The sums of each of S subjects, over their slices of one size of lesion or over all."""
        rows = {key: row for key, row in self.rows.items() if size in (None, key[1])}
        index = {name: k for k, name in enumerate(sorted({name for name, _ in rows}))}
        numbers = np.zeros((len(index), 6))
        slices, each, lesion_each = np.zeros(len(index)), *np.zeros((2, len(index), len(self.thresholds)))
        hits, found = np.zeros((2, len(index), len(self.edges)))
        for (name, of_size), (n, dices, counts) in rows.items():
            k = index[name]
            numbers[k] += n
            each[k] += dices
            hits[k] += counts[0]
            found[k] += counts[1]
            if of_size:
                slices[k] += n[0]
                lesion_each[k] += dices
        return Subjects(numbers[:, 0], slices, numbers[:, 1], numbers[:, 2:], each, lesion_each, hits, found)


@dataclass
class Subjects:
    """Sums over the slices of each of S subjects."""

    slices: np.ndarray  # (S,)
    lesion_slices: np.ndarray  # (S,)
    own: np.ndarray  # (S,) of each slice's best Dice
    at: np.ndarray  # (S, 4) voxels: hits and found at the last threshold, lesion, brain
    dice: (
        np.ndarray
    )  # (S, T) of each slice's Dice at THRESHOLDS and, if there is one, at a given threshold, the last
    lesion_dice: np.ndarray  # (S, T) the same of the slices with a lesion
    hits: np.ndarray  # (S, K) lesion voxels with a score >= edge
    found: np.ndarray  # (S, K) voxels with a score >= edge

    def metric(self, name: str, weight: np.ndarray | None = None) -> np.ndarray:
        """weight (B, S), how often each subject counts, once by default -> (B,) values of one of METRICS; NaN
        where no lesion is left. ValueError for another name, or where the threshold is missing.
        """
        if name not in METRICS:
            raise ValueError(f"metric is one of {', '.join(METRICS)}, or a function, not {name!r}")
        if name in AT_THRESHOLD and self.dice.shape[1] == len(THRESHOLDS):
            raise ValueError(f"{name} needs a threshold")
        weight = np.ones((1, len(self.slices))) if weight is None else weight
        with np.errstate(invalid="ignore", divide="ignore"):
            value = METRICS[name](self, weight)
        return np.where(weight @ self.at[:, 2] > 0, value, np.nan)

    def dice_at(self) -> dict[str, float]:
        """At the last threshold: {"pooled", "per_image", "per_image_all"}, see `metrics.dice_at`."""
        hits, found, lesion, _ = self.at.sum(0)
        with_lesion = self.lesion_slices.sum()
        return {
            "pooled": float(dice(hits, found, lesion)),
            "per_image": float(self.lesion_dice[:, -1].sum() / with_lesion) if with_lesion else float("nan"),
            "per_image_all": float(self.dice[:, -1].sum() / self.slices.sum()),
        }

    def false_positives(self, spacing: float | None = None) -> dict:
        """Of the subjects without lesion, at the last threshold; see `metrics.false_positive_volume`."""
        _, found, lesion, brain = self.at.T
        normal = (lesion == 0) & (brain > 0)
        result = {"subjects": int(normal.sum()), "brain_share": None}
        if spacing is not None:
            result.update(dict.fromkeys(("mean_ml", "median_ml", "max_ml")))
        if normal.any():
            result["brain_share"] = float((found[normal] / brain[normal]).mean())
            if spacing is not None:
                ml = found[normal] * spacing**3 / 1000
                result |= {
                    "mean_ml": float(ml.mean()),
                    "median_ml": float(np.median(ml)),
                    "max_ml": float(ml.max()),
                }
        return result

    def _pooled(self, weight):
        hits, found = weight @ self.hits, weight @ self.found  # (B, K)
        return hits, found, -np.diff(hits, append=0)  # the last: lesion voxels between this edge and the next

    def _pooled_max_dice(self, weight):
        hits, found, _ = self._pooled(weight)
        return dice(hits, found, hits[:, :1]).max(1)

    def _average_precision(self, weight):
        hits, found, lesion = self._pooled(weight)
        return (lesion * hits / np.maximum(found, 1)).sum(1) / hits[:, 0]

    def _auroc(self, weight):
        hits, found, lesion = self._pooled(weight)
        healthy = found - hits
        beaten = healthy[:, :1] - (healthy + np.pad(healthy[:, 1:], ((0, 0), (0, 1)))) / 2  # ties count half
        return (lesion * beaten).sum(1) / (hits[:, 0] * healthy[:, 0])

    def _per_image_max_dice(self, weight):
        return (weight @ self.dice[:, : len(THRESHOLDS)]).max(1) / (weight @ self.slices)

    def _per_lesion_image_max_dice(self, weight):
        return (weight @ self.lesion_dice[:, : len(THRESHOLDS)]).max(1) / (weight @ self.lesion_slices)

    def _per_image_own_threshold_dice(self, weight):
        return weight @ self.own / (weight @ self.lesion_slices)

    def _pooled_dice(self, weight):
        hits, found, lesion, _ = (weight @ self.at).T
        return dice(hits, found, lesion)

    def _per_image_dice(self, weight):
        return weight @ self.lesion_dice[:, -1] / (weight @ self.lesion_slices)


AT_THRESHOLD = ("pooled_dice", "per_image_dice")  # the others choose their own threshold, or need none
METRICS = {
    "pooled_max_dice": Subjects._pooled_max_dice,
    "per_image_max_dice": Subjects._per_image_max_dice,
    "per_lesion_image_max_dice": Subjects._per_lesion_image_max_dice,
    "per_image_own_threshold_dice": Subjects._per_image_own_threshold_dice,
    "ap": Subjects._average_precision,
    "auroc": Subjects._auroc,
    "pooled_dice": Subjects._pooled_dice,
    "per_image_dice": Subjects._per_image_dice,
}
