"""The counts that the metrics are made of: one sort of the voxels, then every threshold at once.

A metric of N slices at 201 thresholds does not need 201 passes over the voxels. Sorted once, the number of
voxels at or above any score is a binary search; and between two scores of lesion voxels no lesion is gained
or lost, so that the counts at the lesion's scores hold the best Dice, the average precision and the AUROC
exactly. Voxels that do not fit in memory are counted in narrow bins of their scores instead.
"""

from __future__ import annotations

import numpy as np

THRESHOLDS = np.linspace(0, 1, 201)  # of the Dice with one threshold for all slices, as in the authors' code
BINS = 2048  # quantiles of the lesion's and of all scores; the bootstrap does not tell voxels apart between two of them
LOWEST, FINENESS = (
    -24,
    14,
)  # Histogram: its bins begin at 2^-24 and split every doubling of the score into 2^14
NO_LESION = "no lesion voxel inside the brain: Dice, AP and AUROC mean nothing there"


def as_array(values) -> np.ndarray:
    """(N, 1, H, W) or (N, H, W), array or tensor -> (N, H, W) array."""
    if hasattr(values, "detach"):  # a tensor, maybe on a GPU, maybe in a dtype that numpy does not know
        values = values.detach().cpu()
        values = values.float() if values.dtype.is_floating_point and values.dtype.itemsize < 4 else values
    values = np.asarray(values)
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


def dice(hits, found, lesion) -> np.ndarray:
    """2 |found and lesion| / (|found| + |lesion|); 1 where there is nothing to find and nothing is found."""
    both = np.asarray(found + lesion, dtype=float)
    return np.divide(2.0 * hits, both, out=np.ones_like(both), where=both > 0)


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
        self.values, self.lesion = np.unique(
            score[truth], return_counts=True
        )  # (K,) ascending; lesion voxels at each
        self.hits = self.lesion[::-1].cumsum()[::-1]  # (K,) lesion voxels with this score or more
        self.found = at_or_above(every, self.values)  # (K,) voxels with this score or more
        self.above = len(every) - np.searchsorted(every, self.values, side="right")  # (K,) with more
        next_lower = every[np.maximum(self.total - self.found - 1, 0)]
        self.lower = np.where(self.found < self.total, next_lower, self.values)  # (K,)

    def max_dice(self) -> tuple[float, float]:
        """(best Dice over all thresholds, threshold)."""
        values = dice(self.hits, self.found, self.hits[0])
        best = int(values.argmax())
        # halfway to the next lower score: ">" and ">=" agree there, and neither side is favoured on other
        # data
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


class Images:
    """Each of N slices on its own: voxels found and hit at T thresholds, and its best Dice of all (exact)."""

    def __init__(self, score, truth, brain, thresholds):
        thresholds = np.asarray(thresholds, dtype=float)
        self.hits, self.found = np.zeros((2, len(score), len(thresholds)))  # (N, T)
        self.lesion, self.own = (
            truth.sum((1, 2)),
            np.full(len(score), np.nan),
        )  # (N,); own: NaN without lesion
        for i in range(len(score)):
            every, lesion = score[i][brain[i]], score[i][truth[i]]
            every.sort(), lesion.sort()
            self.found[i], self.hits[i] = at_or_above(every, thresholds), at_or_above(lesion, thresholds)
            if len(lesion):
                self.own[i] = dice(at_or_above(lesion, lesion), at_or_above(every, lesion), len(lesion)).max()
        self.dice = dice(self.hits, self.found, self.lesion[:, None])  # (N, T)

    def also_at(self, threshold: float, score, truth, brain) -> Images:
        """With one threshold more, the last; nothing is sorted again."""
        found = brain & (score >= threshold)
        more, whole = (
            {"hits": (found & truth).sum((1, 2)), "found": found.sum((1, 2))},
            object.__new__(Images),
        )
        more["dice"] = dice(more["hits"], more["found"], self.lesion)
        whole.__dict__ = {
            k: np.column_stack([v, more[k]]) if k in more else v for k, v in self.__dict__.items()
        }
        return whole

    def take(self, rows: np.ndarray) -> Images:
        """Some of the slices."""
        part = object.__new__(Images)
        part.__dict__ = {k: v[rows] for k, v in self.__dict__.items()}
        return part


class Subjects:
    """Sums over the slices of each of S subjects: enough for every metric of any resample, without the
    voxels.

    Pooled counts are kept at quantiles of the scores. With up to BINS distinct lesion scores Dice and AP are
    exact; with more, the voxels between two quantiles are taken as tied, which moves Dice, AP and AUROC by
    one or two / BINS.

    images: of the same slices, at THRESHOLDS and, last, at a given threshold (or none).
    """

    def __init__(self, score, truth, brain, subjects, images: Images):
        names, index = subject_index(subjects, len(score))
        if len(names) < 2:
            raise ValueError("an interval over subjects needs two subjects or more")
        self.n, self.thresholds = len(names), images.hits.shape[1]
        edges = np.unique(np.concatenate([_quantiles(score[truth]), _quantiles(score[brain])]))
        self.hits, self.found = np.zeros((2, self.n, len(edges)))  # (S, K), voxels with score >= edge
        for i in range(self.n):
            rows = index == i
            self.hits[i] = at_or_above(np.sort(score[rows][truth[rows]]), edges)
            self.found[i] = at_or_above(np.sort(score[rows][brain[rows]]), edges)
        member = (index == np.arange(self.n)[:, None]).astype(float)  # (S, N)
        lesion = images.lesion > 0
        self.images, self.lesion_images = member.sum(1), member @ lesion  # (S,)
        self.dice, self.lesion_dice = member @ images.dice, member @ (images.dice * lesion[:, None])  # (S, T)
        self.own = member @ np.nan_to_num(images.own)  # (S,)
        self.at = member @ np.stack(
            [images.hits[:, -1], images.found[:, -1], images.lesion], 1
        )  # (S, 3), at the last

    def metric(self, name: str, weight: np.ndarray) -> np.ndarray:
        """weight (B, S), how often each subject counts -> (B,) values; NaN where no lesion is left."""
        if name not in METRICS:
            raise ValueError(f"metric is one of {', '.join(METRICS)}, or a function, not {name!r}")
        if name in AT_THRESHOLD and self.thresholds == len(THRESHOLDS):
            raise ValueError(f"{name} needs a threshold")
        with np.errstate(invalid="ignore", divide="ignore"):
            value = METRICS[name](self, weight)
        return np.where(weight @ self.at[:, 2] > 0, value, np.nan)

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
        return (weight @ self.dice[:, : len(THRESHOLDS)]).max(1) / (weight @ self.images)

    def _per_lesion_image_max_dice(self, weight):
        return (weight @ self.lesion_dice[:, : len(THRESHOLDS)]).max(1) / (weight @ self.lesion_images)

    def _per_image_own_threshold_dice(self, weight):
        return weight @ self.own / (weight @ self.lesion_images)

    def _pooled_dice(self, weight):
        return dice(*(weight @ self.at).T)

    def _per_image_dice(self, weight):
        return weight @ self.lesion_dice[:, -1] / (weight @ self.lesion_images)


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


def subject_index(subjects, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(names (S,), index (n,) into them)."""
    subjects = np.asarray(subjects)
    if subjects.shape != (n,):
        raise ValueError(f"subjects must name one subject a slice, ({n},), not {subjects.shape}")
    return np.unique(subjects, return_inverse=True)


def _quantiles(values: np.ndarray) -> np.ndarray:
    """At most BINS of the values, the lowest and the highest among them; all of them when there are so
    few.
    """
    values = np.sort(values)
    distinct = values[np.append(True, values[1:] > values[:-1])] if len(values) else values
    if len(distinct) <= BINS:
        return distinct
    return values[np.linspace(0, len(values) - 1, BINS).round().astype(int)]
