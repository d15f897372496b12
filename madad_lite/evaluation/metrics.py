"""How well an anomaly map finds lesions: Dice (pooled and per image), AP, AUROC, by lesion size, with
intervals.

Several kinds of Dice stand side by side, because published tables mix them up:

    pooled                     all voxels of all slices counted together; large lesions weigh most
    per image                  the Dice of each slice, then the mean; small lesions weigh as much as large ones
    ... max                    at the best of 201 thresholds in [0, 1] common to all slices, as in the authors' code,
                               where a slice without lesion counts 1 if nothing is found in it, else 0
    ... own threshold          each slice at its own best threshold: an upper bound that no detector reaches
    ... validation threshold   at a threshold that was fixed before the test data were seen: the only honest one

Arguments everywhere: score (N, H, W) or (N, 1, H, W), finite, higher is more anomalous; truth, brain: the
same slices, any value > 0 is lesion or brain. Arrays or tensors. A voxel is found where score >= threshold.
Voxels outside the brain are left out, lesion or not (default: all voxels count). ValueError for other shapes,
NaN, or a truth without lesion.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from madad_lite.evaluation.counts import (
    AT_THRESHOLD,
    METRICS,
    NO_LESION,
    THRESHOLDS,
    Histogram,
    Images,
    Subjects,
    Voxels,
    as_array,
    checked,
    dice,
    subject_index,
)

SIZES = ("small", "medium", "large")
SIZE_LIMITS = (0.01, 0.05)  # share of the slice's brain at which "medium" and "large" begin


def pooled_max_dice(score, truth, brain=None) -> tuple[float, float]:
    """(best Dice of all voxels together over every possible threshold, that threshold). Exact."""
    return Voxels(*checked(score, truth, brain)).max_dice()


def average_precision(score, truth, brain=None) -> float:
    """Area under the precision-recall curve of all voxels, as scikit-learn defines it."""
    return Voxels(*checked(score, truth, brain)).average_precision()


def auroc(score, truth, brain=None) -> float:
    """Area under the receiver operating characteristic of all voxels."""
    return Voxels(*checked(score, truth, brain)).auroc()


def per_image_max_dice(score, truth, brain=None) -> tuple[float, float]:
    """(best mean Dice over the slices, its threshold): one threshold for all slices, the best of 201 in [0,
    1].

    As the authors' code computes it: a slice without lesion counts 1 if nothing is found in it, else 0, so
    that mostly healthy slices score high with an empty map; leave them out to avoid that. Needs scores in [0,
    1].
    """
    score, truth, brain = checked(score, truth, brain)
    _check_range(score)
    return _best_common(Images(score, truth, brain, THRESHOLDS).dice)


def own_threshold_dice(score, truth, brain=None) -> float:
    """Mean, over the slices with a lesion, of each slice's best Dice at its own best threshold. Exact."""
    score, truth, brain = checked(score, truth, brain)
    if not truth.any():
        raise ValueError(NO_LESION)
    return float(np.nanmean(Images(score, truth, brain, []).own))


def dice_at(score, truth, threshold: float, brain=None) -> dict[str, float]:
    """Dice at a given threshold: {"pooled", "per_image", "per_image_all"}.

    per_image: mean over the slices with a lesion, NaN without any. per_image_all: over all slices; one
    without lesion counts 1 if nothing is found in it, else 0. pooled, without any lesion: likewise.
    """
    return _dice_at(Images(*checked(score, truth, brain), [threshold]))


def lesion_size(truth, brain=None, limits: tuple[float, float] = SIZE_LIMITS) -> np.ndarray:
    """(N,) "small", "medium", "large" or "" (no lesion): below 1 %, 1-5 %, above 5 % of the slice's brain.

    Shares instead of pixels, so that the classes mean the same on every grid.
    """
    _, truth, brain = checked(np.zeros(as_array(truth).shape, np.float32), truth, brain)
    return _sizes(truth.sum((1, 2)), brain, limits)


def by_lesion_size(score, truth, brain=None, threshold: float | None = None) -> dict[str, dict]:
    """{"small": {"n": slices, "pooled_dice", "per_image_dice", "pooled_max_dice", ..., "ap", "auroc"}, ...}.

    Each class alone, with the slices' own healthy voxels; slices without lesion belong to none. pooled_dice
    and per_image_dice are at the given threshold, without one at the best pooled threshold of all slices
    together. Where n is 0 the values are None.
    """
    score, truth, brain = checked(score, truth, brain)
    _check_range(score)
    threshold = Voxels(score, truth, brain).max_dice()[1] if threshold is None else threshold
    return _by_size(score, truth, brain, _images(score, truth, brain, threshold), None, {})


def false_positive_volume(score, truth, subjects, threshold: float, *, brain=None, spacing=None) -> dict:
    """What is found in subjects without any lesion, where everything found is wrong.

    {"subjects": how many, "brain_share": mean share of the brain's voxels found}; with spacing, the edge of a
    voxel in mm, also {"mean_ml", "median_ml", "max_ml"} over these subjects. None where there is no such
    subject.
    """
    score, truth, brain = checked(score, truth, brain)
    return _false_positives(Images(score, truth, brain, [threshold]), brain, subjects, spacing)


def bootstrap_interval(
    metric: str | Callable, score, truth, subjects, *, brain=None, threshold=None, n=500, seed=0, level=0.95
) -> list[float]:
    """[low, high]: percentiles of a metric over n resamples of the subjects, drawn with replacement.

    Subjects, not slices: the slices of one subject resemble each other. metric: a name out of METRICS (fast),
    or a function (score, truth, brain) -> number of (M, H, W) arrays (slow). subjects: (N,), the subject of
    each slice, two at least. threshold: for "pooled_dice" and "per_image_dice". Resamples without any lesion
    are left out.
    """
    values = _resampled(metric, *checked(score, truth, brain), subjects, threshold, n, seed)
    return _percentiles(values, level)


def difference_interval(
    metric: str | Callable,
    score_a,
    score_b,
    truth,
    subjects,
    *,
    brain=None,
    threshold=None,
    n=500,
    seed=0,
    level=0.95,
) -> list[float]:
    """[low, high] of metric(a) - metric(b), both on the same resamples: the methods differ where 0 lies
    outside.

    threshold: one for both, or a pair.
    """
    pair = threshold if isinstance(threshold, (tuple, list)) else (threshold, threshold)
    a, b = (
        _resampled(metric, *checked(score, truth, brain), subjects, t, n, seed)
        for score, t in zip((score_a, score_b), pair)
    )
    return _percentiles(a - b, level)


def evaluate(
    score,
    truth,
    *,
    brain=None,
    subjects=None,
    threshold: float | None = None,
    spacing: float | None = None,
    intervals: bool = True,
    n: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> dict:
    """All metrics of scores in [0, 1], as a dict that JSON can hold. None: not defined (no lesion, no healthy
    voxel).

    Args:
        subjects: (N,), the subject of each slice; for the intervals (two subjects or more) and the false
        positives.
        threshold: from validation data, see `pooled_max_dice`; adds the Dice at it and the false positives.
        spacing: edge of a voxel in mm; gives the false positives in mL too.
        intervals: add `<metric>_interval`: [low, high] over n resamples of the subjects.

    Returns "slices", "lesion_slices", "lesion_share" (of the brain's voxels; the AP of a guess),
    "lesion_outside_brain" (lesion voxels that the brain mask left out), "pooled_max_dice", "best_threshold"
    (its own), "per_image_max_dice" (all slices, as the authors), "per_lesion_image_max_dice" (slices with
    lesion only), "per_image_own_threshold_dice", "ap", "auroc", "by_size" (see `by_lesion_size`); with
    subjects "subjects"; with a threshold "validation_threshold" and "dice_at_validation_threshold" (see
    `dice_at`); with both "false_positives" (see `false_positive_volume`).
    """
    lesion_voxels = int((as_array(truth) > 0).sum())
    score, truth, brain = checked(score, truth, brain)
    _check_range(score)
    images = _images(score, truth, brain, threshold)
    result = {
        "slices": len(score),
        "lesion_slices": int((images.lesion > 0).sum()),
        "lesion_share": float(truth.sum() / brain.sum()),
        "lesion_outside_brain": lesion_voxels - int(truth.sum()),
    }
    options = {"n": n, "seed": seed, "level": level} if intervals else {}
    if subjects is not None:
        result["subjects"] = len(subject_index(subjects, len(score))[0])
    found = _summary(score, truth, brain, images, subjects, options)
    at = _dice_at(images)
    for name in AT_THRESHOLD:  # these two stand together with what they belong to
        if f"{name}_interval" in found:
            at[f"{name.removesuffix('_dice')}_interval"] = found.pop(f"{name}_interval")
        found.pop(name, None)
    result.update(found)
    if threshold is not None:
        result["validation_threshold"], result["dice_at_validation_threshold"] = float(threshold), _json(at)
        if subjects is not None:
            result["false_positives"] = _false_positives(images, brain, subjects, spacing)
    if truth.any():
        if threshold is None:
            images = images.also_at(found["best_threshold"], score, truth, brain)
        result["by_size"] = _by_size(score, truth, brain, images, subjects, options)
    return result


class Stream:
    """The metrics of slices that come batch by batch, for sets larger than memory; what it holds does not
    grow.

        stream = Stream()
        for score, truth, brain in batches:
            stream.add(score, truth, brain)
        stream.result()  # as of `evaluate`, without the parts by size, by subject and the intervals

    Scores in [0, 1]. Pooled max Dice, AP and AUROC are within 1e-4 of the exact values (see
    counts.Histogram), the rest is exact. threshold: from validation data, as in `evaluate`.
    """

    def __init__(self, threshold: float | None = None):
        self.threshold, self.histogram = threshold, Histogram()
        self.slices = self.lesion_slices = 0
        self.own, self.at = (
            0.0,
            np.zeros(3),
        )  # sum of the slices' own best Dice; hits, found and lesion at the threshold
        self.dice, self.lesion_dice = np.zeros(
            (2, len(THRESHOLDS) + (threshold is not None))
        )  # sums over slices

    def add(self, score, truth, brain=None) -> None:
        score, truth, brain = checked(score, truth, brain)
        _check_range(score)
        images = _images(score, truth, brain, self.threshold)
        lesion = images.lesion > 0
        self.histogram.add(score, truth, brain)
        self.slices, self.lesion_slices = self.slices + len(score), self.lesion_slices + int(lesion.sum())
        self.dice, self.lesion_dice = (
            self.dice + images.dice.sum(0),
            self.lesion_dice + images.dice[lesion].sum(0),
        )
        self.own += float(np.nansum(images.own))
        self.at += images.hits[:, -1].sum(), images.found[:, -1].sum(), images.lesion.sum()

    def result(self) -> dict:
        """ValueError as long as no lesion has come."""
        voxels, n = self.histogram.voxels(), len(THRESHOLDS)
        best, threshold = voxels.max_dice()
        result = {
            "slices": self.slices,
            "lesion_slices": self.lesion_slices,
            "pooled_max_dice": best,
            "best_threshold": threshold,
            "per_image_max_dice": float(self.dice[:n].max() / self.slices),
            "per_lesion_image_max_dice": float(self.lesion_dice[:n].max() / self.lesion_slices),
            "per_image_own_threshold_dice": self.own / self.lesion_slices,
            "ap": voxels.average_precision(),
            "auroc": voxels.auroc() if voxels.lesion.sum() < voxels.total else None,
        }
        if self.threshold is not None:
            result["validation_threshold"] = float(self.threshold)
            result["dice_at_validation_threshold"] = {
                "pooled": float(dice(*self.at)),
                "per_image": float(self.lesion_dice[-1] / self.lesion_slices),
                "per_image_all": float(self.dice[-1] / self.slices),
            }
        return result


def table(results: dict[str, dict]) -> str:
    """{method: result of evaluate} -> Markdown, one row a method; in brackets the intervals over subjects.

    Pooled and per-image Dice stand side by side; per image means over the slices with a lesion.
    """
    validation = "dice_at_validation_threshold"
    columns = {
        "max Dice, pooled": lambda r: _cell(r, "pooled_max_dice"),
        "max Dice, per lesion slice": lambda r: _cell(r, "per_lesion_image_max_dice"),
        "Dice at validation threshold, pooled": lambda r: _cell(r.get(validation), "pooled"),
        "Dice at validation threshold, per lesion slice": lambda r: _cell(r.get(validation), "per_image"),
        "AP": lambda r: _cell(r, "ap"),
        "AUROC": lambda r: _cell(r, "auroc"),
    }
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(cell(result) for cell in columns.values()) + " |")
    return "\n".join(lines)


def _cell(result: dict | None, key: str) -> str:
    if result is None or result.get(key) is None:
        return "-"
    interval = result.get(f"{key}_interval")
    return f"{result[key]:.3f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _images(score, truth, brain, threshold: float | None) -> Images:
    """Counts at the 201 thresholds and, last, at the given one."""
    return Images(score, truth, brain, THRESHOLDS if threshold is None else [*THRESHOLDS, threshold])


def _check_range(score) -> None:
    low, high = float(score.min()), float(score.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"the 201 thresholds lie in [0, 1], the score in [{low:.3g}, {high:.3g}]: rescale it"
        )


def _best_common(dice_: np.ndarray) -> tuple[float, float]:
    """(N, 201 or more) -> (best mean over the slices, its threshold)."""
    mean = dice_[:, : len(THRESHOLDS)].mean(0)
    return float(mean.max()), float(THRESHOLDS[mean.argmax()])


def _dice_at(images: Images) -> dict[str, float]:
    """At the last threshold."""
    hits, found, each = images.hits[:, -1], images.found[:, -1], images.dice[:, -1]
    lesion = images.lesion > 0
    return {
        "pooled": float(dice(hits.sum(), found.sum(), images.lesion.sum())),
        "per_image": float(each[lesion].mean()) if lesion.any() else float("nan"),
        "per_image_all": float(each.mean()),
    }


def _summary(score, truth, brain, images: Images, subjects, options: dict) -> dict:
    """Every metric of these slices, flat; with options and two subjects or more also the intervals."""
    result = {"best_threshold": None, **dict.fromkeys(METRICS)}
    result["per_image_max_dice"] = _best_common(images.dice)[0]
    if images.hits.shape[1] == len(THRESHOLDS):  # no threshold given
        for name in AT_THRESHOLD:
            result.pop(name)
    if not truth.any():
        return result
    voxels, lesion = Voxels(score, truth, brain), images.lesion > 0
    result["pooled_max_dice"], result["best_threshold"] = voxels.max_dice()
    result["per_lesion_image_max_dice"] = _best_common(images.dice[lesion])[0]
    result["per_image_own_threshold_dice"] = float(np.nanmean(images.own))
    result["ap"] = voxels.average_precision()
    result["auroc"] = voxels.auroc() if truth.sum() < brain.sum() else None
    if "pooled_dice" in result:
        at = _dice_at(images)
        result["pooled_dice"], result["per_image_dice"] = at["pooled"], at["per_image"]
    if options and subjects is not None and len(np.unique(subjects)) > 1:
        counts = Subjects(score, truth, brain, subjects, images)
        weight = _draws(counts.n, options["n"], options["seed"])
        for name in METRICS:
            if result.get(name) is not None:
                result[f"{name}_interval"] = _percentiles(counts.metric(name, weight), options["level"])
    return result


def _by_size(score, truth, brain, images: Images, subjects, options: dict) -> dict[str, dict]:
    size, results = _sizes(images.lesion, brain), {}
    # every slice here has a lesion, so that this one would say the same as per_image_max_dice
    kept = [name for name in METRICS if name != "per_lesion_image_max_dice"]
    for name in SIZES:
        rows = size == name
        results[name] = {"n": int(rows.sum()), **dict.fromkeys(kept)}
        if rows.any():
            members = None if subjects is None else np.asarray(subjects)[rows]
            found = _summary(score[rows], truth[rows], brain[rows], images.take(rows), members, options)
            results[name].update({k: v for k, v in found.items() if k.removesuffix("_interval") in kept})
    return results


def _sizes(lesion, brain, limits=SIZE_LIMITS) -> np.ndarray:
    """lesion: (N,) voxels."""
    share = lesion / np.maximum(brain.sum((1, 2)), 1)
    return np.select([share == 0, share < limits[0], share <= limits[1]], ["", *SIZES[:2]], SIZES[2])


def _false_positives(images: Images, brain, subjects, spacing: float | None) -> dict:
    names, index = subject_index(subjects, len(brain))
    each = (images.found[:, -1], images.lesion, brain.sum((1, 2)))
    found, lesion, size = (np.bincount(index, weights=v, minlength=len(names)) for v in each)  # (S,) voxels
    normal = (lesion == 0) & (size > 0)
    result = {"subjects": int(normal.sum()), "brain_share": None}
    if spacing is not None:
        result.update(dict.fromkeys(("mean_ml", "median_ml", "max_ml")))
    if normal.any():
        result["brain_share"] = float((found[normal] / size[normal]).mean())
        if spacing is not None:
            volume = found[normal] * spacing**3 / 1000
            result.update(
                mean_ml=float(volume.mean()), median_ml=float(np.median(volume)), max_ml=float(volume.max())
            )
    return result


def _draws(n_subjects: int, n: int, seed: int) -> np.ndarray:
    """(n, S): how often each subject is among S draws with replacement."""
    return np.random.default_rng(seed).multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), size=n)


def _percentiles(values: np.ndarray, level: float) -> list[float]:
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError(NO_LESION)
    return [float(v) for v in np.quantile(values, [(1 - level) / 2, (1 + level) / 2])]


def _resampled(metric, score, truth, brain, subjects, threshold, n, seed) -> np.ndarray:
    """(n,) values of one metric, NaN for resamples without lesion."""
    if not callable(metric):
        if metric in ("per_image_max_dice", "per_lesion_image_max_dice"):
            _check_range(score)
        counts = Subjects(score, truth, brain, subjects, _images(score, truth, brain, threshold))
        return counts.metric(metric, _draws(counts.n, n, seed))
    names, index = subject_index(subjects, len(score))
    if len(names) < 2:
        raise ValueError("an interval over subjects needs two subjects or more")
    rows, values = [np.flatnonzero(index == i) for i in range(len(names))], []
    for times in _draws(len(names), n, seed):
        chosen = np.concatenate([np.tile(r, k) for r, k in zip(rows, times)])
        values.append(metric(score[chosen], truth[chosen], brain[chosen]) if truth[chosen].any() else np.nan)
    return np.array(values, dtype=float)


def _json(values: dict) -> dict:
    """NaN, which JSON does not know, becomes None."""
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in values.items()}
