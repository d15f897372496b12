"""How well an anomaly map finds lesions: Dice (pooled and per image), AP, AUROC, by lesion size, with intervals.

Two kinds of Dice stand side by side everywhere, because published averages mix them up:

    pooled      all voxels of all slices counted together; large lesions weigh most
    per image   the Dice of each slice, then the mean; every slice weighs the same, small lesions as much as large ones

score: (N, H, W) or (N, 1, H, W), higher is more anomalous. truth: same shape, lesion or not. brain: same shape; voxels outside
are left out (default: all voxels count). Arrays or tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

THRESHOLDS = np.linspace(0, 1, 201)  # of the per-image Dice, as in the authors' code
BINS = 4096  # of the score, for the bootstrap: the resampled Dice is exact to the bin
SIZES = ("small", "medium", "large")


def _checked(score, truth, brain=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, H, W) float32, bool, bool; voxels outside the brain are neither lesion nor scored."""
    score, truth = np.asarray(score, dtype=np.float32), np.asarray(truth) > 0
    brain = np.ones(truth.shape, bool) if brain is None else np.asarray(brain) > 0
    if score.shape != truth.shape or brain.shape != truth.shape:
        raise ValueError(f"score {score.shape}, truth {truth.shape} and brain {brain.shape} must have one shape")
    if score.ndim == 4 and score.shape[1] == 1:
        score, truth, brain = score[:, 0], truth[:, 0], brain[:, 0]
    if score.ndim != 3 or not score.size:
        raise ValueError(f"scores must be (N, H, W) or (N, 1, H, W) and not empty, not {score.shape}")
    if not np.isfinite(score).all():
        raise ValueError("the score holds NaN or infinite values")
    return score, truth & brain, brain


def _needs_lesion(truth: np.ndarray) -> None:
    if not truth.any():
        raise ValueError("no lesion voxel in the truth: Dice, AP and AUROC mean nothing there")


def _dice(hits, found, lesion):
    return 2 * hits / np.maximum(found + lesion, 1)


def pooled_max_dice(score, truth, brain=None) -> tuple[float, float]:
    """(best Dice of all voxels together, threshold that gives it): lesion where score >= threshold. Exact: from one sort."""
    score, truth, brain = _checked(score, truth, brain)
    _needs_lesion(truth)
    precision, recall, thresholds = precision_recall_curve(truth[brain], score[brain])
    dice = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(dice[:-1].argmax())
    return float(dice[best]), float(thresholds[best])


def _counts_per_image(score, truth, brain, thresholds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, K) hits and found voxels at K thresholds (score >= threshold), (N,) lesion voxels: one sort an image."""
    hits, found = np.zeros((2, len(score), len(thresholds)))
    for i in range(len(score)):
        every, lesion = np.sort(score[i][brain[i]]), np.sort(score[i][truth[i]])
        found[i] = len(every) - np.searchsorted(every, thresholds, side="left")
        hits[i] = len(lesion) - np.searchsorted(lesion, thresholds, side="left")
    return hits, found, truth.sum((1, 2))


def _dice_per_image(hits, found, lesion) -> np.ndarray:
    """(N, K); an image without lesion counts 1 where nothing is found in it, else 0."""
    return np.where((lesion == 0)[:, None], (found == 0).astype(float), _dice(hits, found, lesion[:, None]))


def per_image_max_dice(score, truth, brain=None) -> tuple[float, float]:
    """(best mean Dice over the images, its threshold), one threshold for all images out of 201 in [0, 1].

    As the authors' code computes it: an image without lesion counts 1 if nothing is found in it, else 0.
    """
    dice = _dice_per_image(*_counts_per_image(*_checked(score, truth, brain), THRESHOLDS)).mean(0)
    return float(dice.max()), float(THRESHOLDS[dice.argmax()])


def dice_at(score, truth, threshold: float, brain=None) -> dict[str, float]:
    """{"pooled", "per_image"} Dice at a given threshold; per image: the mean over the images with a lesion."""
    hits, found, lesion = _counts_per_image(*_checked(score, truth, brain), np.array([threshold]))
    images = lesion > 0
    return {
        "pooled": float(_dice(hits.sum(), found.sum(), lesion.sum())),
        "per_image": float(_dice(hits[images, 0], found[images, 0], lesion[images]).mean()) if images.any() else float("nan"),
    }


def average_precision(score, truth, brain=None) -> float:
    """Area under the precision-recall curve of all voxels."""
    score, truth, brain = _checked(score, truth, brain)
    _needs_lesion(truth)
    return float(average_precision_score(truth[brain], score[brain]))


def auroc(score, truth, brain=None) -> float:
    """Area under the receiver operating characteristic of all voxels."""
    score, truth, brain = _checked(score, truth, brain)
    _needs_lesion(truth)
    return float(roc_auc_score(truth[brain], score[brain]))


def lesion_size(truth, brain=None) -> np.ndarray:
    """(N,) "small", "medium", "large" or "" (no lesion): below 1 %, 1-5 %, above 5 % of the slice's brain."""
    truth = np.asarray(truth) > 0
    brain = np.ones(truth.shape, bool) if brain is None else np.asarray(brain) > 0
    share = truth.reshape(len(truth), -1).sum(1) / np.maximum(brain.reshape(len(brain), -1).sum(1), 1)
    return np.select([share == 0, share < 0.01, share <= 0.05], ["", *SIZES[:2]], SIZES[2])


def by_lesion_size(score, truth, brain=None, threshold: float | None = None) -> dict[str, dict]:
    """{"small": {"n", "pooled_dice", "per_image_dice"}, ...} over the slices with a lesion of that size.

    At the given threshold; without one, at the pooled best threshold of all slices.
    """
    score, truth, brain = _checked(score, truth, brain)
    threshold = pooled_max_dice(score, truth, brain)[1] if threshold is None else threshold
    size, results = lesion_size(truth, brain), {}
    for name in SIZES:
        rows = size == name
        if rows.any():
            dice = dice_at(score[rows], truth[rows], threshold, brain[rows])
            results[name] = {"n": int(rows.sum()), "pooled_dice": dice["pooled"], "per_image_dice": dice["per_image"]}
        else:
            results[name] = {"n": 0, "pooled_dice": None, "per_image_dice": None}
    return results


class _SubjectCounts:
    """Histograms of the score, by subject, of lesion and of all brain voxels: enough to resample subjects quickly."""

    def __init__(self, score, truth, brain, subjects):
        self.names, index = np.unique(np.asarray(subjects), return_inverse=True)
        values = np.sort(score[brain])
        # bins of equal counts: quantiles resolve the score where the voxels are
        edges = np.unique(values[np.linspace(0, len(values) - 1, BINS).astype(int)])
        self.lesion, self.every = np.zeros((2, len(self.names), len(edges)))
        for i in range(len(self.names)):
            rows = index == i
            for counts, mask in ((self.lesion, truth[rows]), (self.every, brain[rows])):
                bins = np.searchsorted(edges, score[rows][mask], side="right") - 1
                counts[i] = np.bincount(bins, minlength=len(edges))

    def max_dice(self, chosen: np.ndarray) -> float:
        hits, found = (c[chosen].sum(0)[::-1].cumsum() for c in (self.lesion, self.every))
        return float(_dice(hits, found, hits[-1]).max()) if hits[-1] else float("nan")

    def ap(self, chosen: np.ndarray) -> float:
        hits, found = (c[chosen].sum(0)[::-1].cumsum() for c in (self.lesion, self.every))
        if not hits[-1]:
            return float("nan")
        return float((np.diff(hits, prepend=0) * hits / np.maximum(found, 1)).sum() / hits[-1])


def _resampled(statistic: Callable[[np.ndarray], float], n_subjects: int, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(n_subjects, size=n_subjects)) for _ in range(n)])


def _interval(values: np.ndarray, level: float) -> list[float]:
    values = values[np.isfinite(values)]
    return [float(v) for v in np.quantile(values, [(1 - level) / 2, (1 + level) / 2])] if len(values) else [float("nan")] * 2


def bootstrap_interval(
    score, truth, subjects, *, metric: str = "max_dice", brain=None, n: int = 500, seed: int = 0, level: float = 0.95
) -> list[float]:
    """[low, high] of the pooled "max_dice" or "ap" when subjects (not slices) are drawn again with replacement."""
    counts = _SubjectCounts(*_checked(score, truth, brain), subjects)
    return _interval(_resampled(getattr(counts, metric), len(counts.names), n, seed), level)


def difference_interval(
    score_a, score_b, truth, subjects, *, metric: str = "max_dice", brain=None, n: int = 500, seed: int = 0, level: float = 0.95
) -> list[float]:
    """[low, high] of metric(a) - metric(b), both on the same resampled subjects."""
    a, b = (_SubjectCounts(*_checked(s, truth, brain), subjects) for s in (score_a, score_b))
    return _interval(_resampled(lambda c: getattr(a, metric)(c) - getattr(b, metric)(c), len(a.names), n, seed), level)


def evaluate(
    score,
    truth,
    *,
    brain=None,
    subjects=None,
    threshold: float | None = None,
    intervals: bool = True,
    n: int = 500,
    seed: int = 0,
) -> dict:
    """All metrics as a JSON-able dict. threshold: from validation data. subjects: (N,), for the intervals over subjects."""
    score, truth, brain = _checked(score, truth, brain)
    result = {"slices": len(score), "lesion_slices": int(truth.any((1, 2)).sum())}
    if not truth.any():
        return result
    result["pooled_max_dice"], result["best_threshold"] = pooled_max_dice(score, truth, brain)
    result["per_image_max_dice"] = per_image_max_dice(score, truth, brain)[0]
    lesion = truth.any((1, 2))
    result["per_lesion_image_max_dice"] = per_image_max_dice(score[lesion], truth[lesion], brain[lesion])[0]
    result["ap"], result["auroc"] = average_precision(score, truth, brain), auroc(score, truth, brain)
    result["lesion_share"] = float(truth.sum() / brain.sum())  # the AP of a score that knows nothing
    if threshold is not None:
        result["validation_threshold"] = float(threshold)
        result["dice_at_validation_threshold"] = dice_at(score, truth, threshold, brain)
    result["by_size"] = by_lesion_size(score, truth, brain, threshold)
    if intervals and subjects is not None:
        counts = _SubjectCounts(score, truth, brain, subjects)
        for key, statistic in (("pooled_max_dice", counts.max_dice), ("ap", counts.ap)):
            result[f"{key}_interval"] = _interval(_resampled(statistic, len(counts.names), n, seed), 0.95)
        result["subjects"] = len(counts.names)
    return result


def table(results: dict[str, dict]) -> str:
    """Markdown: one row a method; pooled and per-image Dice side by side, 95 % intervals over subjects in brackets."""

    def shown(r: dict, key: str) -> str:
        if r.get(key) is None:
            return "-"
        interval = r.get(f"{key}_interval")
        return f"{r[key]:.3f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")

    rows = ["| method | max Dice, pooled | max Dice, per lesion slice | Dice at validation threshold, pooled | AP | AUROC |", "|---|---|---|---|---|---|"]
    for name, r in results.items():
        at = r.get("dice_at_validation_threshold")
        cells = [shown(r, "pooled_max_dice"), shown(r, "per_lesion_image_max_dice"), f"{at['pooled']:.3f}" if at else "-", shown(r, "ap"), shown(r, "auroc")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)
