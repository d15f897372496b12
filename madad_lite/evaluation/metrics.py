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

from collections.abc import Callable, Mapping

import numpy as np

from madad_lite.evaluation.counts import (
    NO_LESION,
    THRESHOLDS,
    Voxels,
    as_array,
    check_range,
    checked,
    subject_index,
)
from madad_lite.evaluation.sums import AT_THRESHOLD, METRICS, SIZES, Subjects, Sums, quantiles, sizes_of


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
    check_range(score)
    found = _sums(score, truth, brain, None, THRESHOLDS).subjects()
    mean = found.dice.sum(0) / found.slices.sum()  # (201,)
    return float(mean.max()), float(THRESHOLDS[mean.argmax()])


def own_threshold_dice(score, truth, brain=None) -> float:
    """Mean, over the slices with a lesion, of each slice's best Dice at its own best threshold. Exact."""
    score, truth, brain = checked(score, truth, brain)
    if not truth.any():
        raise ValueError(NO_LESION)
    return float(_sums(score, truth, brain, None, []).subjects().metric("per_image_own_threshold_dice")[0])


def dice_at(score, truth, threshold: float, brain=None) -> dict[str, float]:
    """Dice at a given threshold: {"pooled", "per_image", "per_image_all"}.

    per_image: mean over the slices with a lesion, NaN without any. per_image_all: over all slices; one
    without lesion counts 1 if nothing is found in it, else 0. pooled, without any lesion: likewise.
    """
    return _sums(*checked(score, truth, brain), None, [threshold]).subjects().dice_at()


def lesion_size(truth, brain=None) -> np.ndarray:
    """(N,) "small", "medium", "large" or "" (no lesion): below 1 %, 1-5 %, above 5 % of the slice's brain.

    Shares instead of pixels, so that the classes mean the same on every grid.
    """
    _, truth, brain = checked(np.zeros(as_array(truth).shape, np.float32), truth, brain)
    return sizes_of(truth.sum((1, 2)), brain.sum((1, 2)))


def false_positive_volume(score, truth, subjects, threshold: float, *, brain=None, spacing=None) -> dict:
    """What is found in subjects without any lesion, where everything found is wrong.

    {"subjects": how many, "brain_share": mean share of the brain's voxels found}; with spacing, the edge of a
    voxel in mm, also {"mean_ml", "median_ml", "max_ml"} over these subjects. None where there is no such
    subject.
    """
    score, truth, brain = checked(score, truth, brain)
    return _sums(score, truth, brain, subjects, [threshold]).subjects().false_positives(spacing)


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
    lesion only), "per_image_own_threshold_dice", "ap", "auroc", "by_size" ({"small": {"n": slices, and the
    metrics}, ...}: each size alone, with the slices' own healthy voxels; "pooled_dice" and "per_image_dice" at
    the threshold, without one at "best_threshold"; None where n is 0); with
    subjects "subjects"; with a threshold "validation_threshold" and "dice_at_validation_threshold" (see
    `dice_at`); with both "false_positives" (see `false_positive_volume`).
    """
    lesion_voxels = int((as_array(truth) > 0).sum())
    score, truth, brain = checked(score, truth, brain)
    check_range(score)
    voxels = Voxels(score, truth, brain) if truth.any() else None
    at = voxels.max_dice()[1] if threshold is None and voxels else threshold  # of the Dice by size
    names = [] if subjects is None else subject_index(subjects, len(score))[0]
    edges = _edges(score, truth, brain) if intervals and len(names) > 1 else ()
    sums = _sums(score, truth, brain, subjects, THRESHOLDS if at is None else [*THRESHOLDS, at], edges)
    sums.outside = lesion_voxels - int(truth.sum())
    parts = {None: voxels, **_voxels_by_size(score, truth, brain)}
    options = {"n": n, "seed": seed, "level": level} if intervals else {}
    return report(sums, parts, threshold, spacing=spacing, named=subjects is not None, options=options)


def report(
    sums: Sums,
    voxels: Mapping[str | None, Voxels | None],
    threshold: float | None,
    *,
    spacing: float | None,
    named: bool,
    options: dict,
) -> dict:
    """What `evaluate` returns, from what was counted.

    voxels: the pooled ones of each size of lesion and, under None, of all slices; None without lesion. named: the
    subjects of the slices are known. options: n, seed and level of the intervals, or {} for none.
    """
    subjects = sums.subjects()
    _, _, lesion, brain = subjects.at.sum(0)
    result = {
        "slices": int(subjects.slices.sum()),
        "lesion_slices": int(subjects.lesion_slices.sum()),
        "lesion_share": float(lesion / brain),
        "lesion_outside_brain": sums.outside,
    }
    if named:
        result["subjects"] = len(subjects.slices)
    found = _summary(subjects, voxels.get(None), options)
    at = {
        name: found.pop(name, None)
        for name in [*AT_THRESHOLD, *(f"{name}_interval" for name in AT_THRESHOLD)]
    }
    result |= found
    if threshold is not None:  # these two stand together with what they belong to
        intervals = {k.replace("_dice", ""): v for k, v in at.items() if k.endswith("_interval") and v}
        result["validation_threshold"] = float(threshold)
        result["dice_at_validation_threshold"] = _json(subjects.dice_at()) | intervals
        if named:
            result["false_positives"] = subjects.false_positives(spacing)
    if lesion:
        result["by_size"] = _by_size(sums, voxels, options)
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


def _sums(score, truth, brain, subjects, thresholds, edges=()) -> Sums:
    """Of slices in memory; without subjects all are of one."""
    if subjects is None:
        subjects = [""] * len(score)
    subject_index(subjects, len(score))
    sums = Sums(thresholds, edges)
    sums.add(score, truth, brain, subjects)
    return sums


def _by_size_of(score, truth, brain) -> dict[str, np.ndarray]:
    """{size of lesion: (N, 1, 1), which slices have it}, without the sizes that do not occur."""
    size = sizes_of(truth.sum((1, 2)), brain.sum((1, 2)))
    return {name: (size == name)[:, None, None] for name in SIZES if (size == name).any()}


def _voxels_by_size(score, truth, brain) -> dict[str, Voxels]:
    return {
        k: Voxels(score, truth & rows, brain & rows) for k, rows in _by_size_of(score, truth, brain).items()
    }


def _edges(score, truth, brain) -> np.ndarray:
    """(K,) quantiles of all scores and of those of the lesions of each size. With up to BINS distinct scores of
    lesion voxels in each size Dice and AP of the resamples are exact.
    """
    lesions = [quantiles(score[truth & rows]) for rows in _by_size_of(score, truth, brain).values()]
    return np.unique(np.concatenate([quantiles(score[brain]), *lesions]))


def _summary(subjects: Subjects, voxels: Voxels | None, options: dict) -> dict:
    """Every metric of these slices, flat; with options and two subjects or more also the intervals."""
    given = subjects.dice.shape[1] > len(THRESHOLDS)
    names = [name for name in METRICS if given or name not in AT_THRESHOLD]
    result = {"best_threshold": None, **dict.fromkeys(names)}
    if voxels is None:
        result["per_image_max_dice"] = float(
            (subjects.dice.sum(0) / subjects.slices.sum())[: len(THRESHOLDS)].max()
        )
        return result
    for name in names:
        if name.startswith("per_"):
            result[name] = float(subjects.metric(name)[0])
    result["pooled_max_dice"], result["best_threshold"] = voxels.max_dice()
    result["ap"] = voxels.average_precision()
    result["auroc"] = voxels.auroc() if voxels.hits[0] < voxels.total else None
    if given:
        result["pooled_dice"] = subjects.dice_at()["pooled"]
    if options and len(subjects.slices) > 1:
        weight = _draws(len(subjects.slices), options["n"], options["seed"])
        for name in names:
            if result[name] is not None:
                result[f"{name}_interval"] = _percentiles(subjects.metric(name, weight), options["level"])
    return result


def _by_size(sums: Sums, voxels: Mapping[str | None, Voxels | None], options: dict) -> dict[str, dict]:
    # every slice here has a lesion, so that this one would say the same as per_image_max_dice
    kept, results = [name for name in METRICS if name != "per_lesion_image_max_dice"], {}
    for name in SIZES:
        subjects = sums.subjects(name)
        results[name] = {"n": int(subjects.slices.sum()), **dict.fromkeys(kept)}
        if results[name]["n"]:
            found = _summary(subjects, voxels[name], options)
            results[name].update({k: v for k, v in found.items() if k.removesuffix("_interval") in kept})
    return results


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
    names, index = subject_index(subjects, len(score))
    if len(names) < 2:
        raise ValueError("an interval over subjects needs two subjects or more")
    draws = _draws(len(names), n, seed)
    if not callable(metric):
        if metric in ("per_image_max_dice", "per_lesion_image_max_dice"):
            check_range(score)
        thresholds = THRESHOLDS if threshold is None else [*THRESHOLDS, threshold]
        sums = _sums(score, truth, brain, subjects, thresholds, _edges(score, truth, brain))
        return sums.subjects().metric(metric, draws)
    rows, values = [np.flatnonzero(index == i) for i in range(len(names))], []
    for times in draws:
        chosen = np.concatenate([np.tile(r, k) for r, k in zip(rows, times)])
        values.append(metric(score[chosen], truth[chosen], brain[chosen]) if truth[chosen].any() else np.nan)
    return np.array(values, dtype=float)


def _json(values: dict) -> dict:
    """NaN, which JSON does not know, becomes None."""
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in values.items()}
