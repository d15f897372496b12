"""All metrics from one pass over sorted voxels against the plain loop over 201 thresholds, and sets larger
than memory.
"""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.measuring import Report, interleaved, medians, seconds
from madad_lite.evaluation import metrics
from madad_lite.evaluation.stream import Stream

SLICES, SIZE = 1000, 256
S2_PATIENTS = 1251  # of BraTS'21: the paper's setting S2 looks at one slice of each


def maps(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(score, truth) (n, 256, 256): a round lesion in every second slice, raised by chance above a smooth
    background.
    """
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE - 0.5
    score, truth = np.empty((n, SIZE, SIZE), np.float32), np.zeros((n, SIZE, SIZE), bool)
    for i in range(n):
        centre, radius = rng.uniform(-0.2, 0.2, 2), rng.uniform(0.02, 0.12)
        if i % 2:
            truth[i] = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        noise = np.abs(rng.standard_normal((SIZE, SIZE), np.float32)) * 0.15
        score[i] = ndimage.gaussian_filter(noise + truth[i] * np.float32(rng.uniform(0.02, 0.3)), 2)
    return np.clip(score, 0, 1), truth


def plain_dice(score: np.ndarray, truth: np.ndarray, threshold: float, total: Callable) -> float:
    found = score >= threshold
    score[found], score[~found] = 1, 0
    if total(truth) == 0:
        return 1.0 if total(score) == 0 else 0.0
    return 2 * (score * truth).sum() / (score.sum() + truth.sum())


def plain_metrics(score: np.ndarray, truth: np.ndarray, total: Callable = sum) -> dict[str, float]:
    """Every slice is copied and cut anew at each of the 201 thresholds. total: Python's own sum walks through
    the voxels one by one, as the authors' published evaluation does; numpy's does not."""
    per_image, pooled = [], []
    for threshold in metrics.THRESHOLDS:
        dices = []
        for s, r in zip(score, truth):
            dices.append(
                plain_dice(
                    copy.deepcopy(s.ravel()), copy.deepcopy(r.ravel().astype(np.int32)), threshold, total
                )
            )
        per_image.append(np.mean(dices))
        found = copy.deepcopy(score) >= threshold
        pooled.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    return {
        "per_image_max_dice": max(per_image),
        "pooled_max_dice": max(pooled),
        "ap": average_precision_score(truth.ravel(), score.ravel()),
        "auroc": roc_auc_score(truth.ravel(), score.ravel()),
    }


def four_metrics(score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The same four, from the package."""
    voxels = metrics.Voxels(*metrics.checked(score, truth))
    return {
        "per_image_max_dice": metrics.per_image_max_dice(score, truth)[0],
        "pooled_max_dice": voxels.max_dice()[0],
        "ap": voxels.average_precision(),
        "auroc": voxels.auroc(),
    }


def streamed(score: np.ndarray, truth: np.ndarray, batch: int = 32, times: int = 1) -> dict:
    """As if the slices came from disk, `times` over."""
    stream = Stream()
    for _ in range(times):
        for i in range(0, len(score), batch):
            stream.add(score[i : i + batch], truth[i : i + batch])
    return stream.result()


def grown(score: np.ndarray, truth: np.ndarray, times: int) -> dict:
    tracemalloc.start()
    took = seconds(partial(streamed, score, truth, times=times))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    every = times * score.nbytes
    return {
        "slices": times * len(score),
        "seconds": took,
        "peak memory, MB": peak / 1e6,
        "scores alone, MB": every / 1e6,
    }


def paper_sized(score: np.ndarray, truth: np.ndarray, patients: int = S2_PATIENTS) -> dict:
    """Validation and test of `patients` slices each (the given ones, over and over), with everything that
    `madad reproduce S2` counts: by size, false positives, intervals over subjects."""
    tracemalloc.start()

    def both() -> None:
        threshold = None
        for intervals in (False, True):
            stream = Stream(threshold, intervals=intervals)
            for i in range(0, patients, 16):
                rows = np.arange(i, min(i + 16, patients))
                chosen = rows % len(score)
                stream.add(score[chosen], truth[chosen], subjects=[f"sub-{k}" for k in rows])
            threshold = stream.result(spacing=1.0)["best_threshold"]

    took, peak = seconds(both), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"patients": patients, "seconds": took, "peak memory, MB": peak / 1e6}


def measure(quick: bool = False) -> Report:
    report, n, few = Report("metrics"), 40 if quick else SLICES, 2 if quick else 4
    score, truth = maps(n)
    some = score[:few], truth[:few]
    plain = {
        "plain loop, Python's sum": partial(plain_metrics, *some, sum),
        "plain loop, numpy's sum": partial(plain_metrics, *some, np.sum),
    }
    ours = {
        "ours, the same four metrics": partial(four_metrics, score, truth),
        "ours, all of evaluate": partial(metrics.evaluate, score, truth),
        "ours, all of evaluate, streamed": partial(streamed, score, truth),
    }
    times = medians(interleaved(plain | ours, 1 if quick else 3, warm_up=False))
    times = {name: t * n / few if name in plain else t for name, t in times.items()}
    slowest = times["plain loop, Python's sum"]
    rows = [{"metrics": k, "seconds": t, "times as fast": slowest / t} for k, t in times.items()]
    report.table(f"{n} slices of {SIZE} x {SIZE}; the plain loop was timed on {few} of them and scaled", rows)
    theirs, exact = plain_metrics(*some, np.sum), four_metrics(*some)
    difference = {k: abs(theirs[k] - exact[k]) for k in theirs}
    # the plain loop looks for the pooled Dice at 201 thresholds only, ours at every one
    same = max(difference[k] for k in ("per_image_max_dice", "ap", "auroc"))
    if same > 1e-6 or not 0 <= exact["pooled_max_dice"] - theirs["pooled_max_dice"] < 5e-3:
        raise AssertionError(f"plain and ours do not compute the same: {difference}")
    whole, approximate = metrics.evaluate(score, truth), streamed(score, truth)
    error = max(abs(whole[k] - approximate[k]) for k in ("pooled_max_dice", "ap", "auroc"))
    report.note(
        f"Plain and ours differ by {same:.0e} at most; the pooled max Dice of ours is exact and so "
        f"{difference['pooled_max_dice']:.0e} higher than the best of 201 thresholds. Streamed and exact "
        f"differ by {error:.0e}."
    )
    quarter = score[: n // 4], truth[: n // 4]
    growth = [grown(*quarter, k) for k in (1, 4, 16)]
    report.table("Streamed in batches of 32, the same slices repeated", growth)
    large = paper_sized(score[: n // 4], truth[: n // 4], 50 if quick else S2_PATIENTS)
    report.table(
        "The paper's S2 counted: a slice of 256 x 256 a patient, for validation and for the test", [large]
    )
    report.target("memory beside the model at the size of S2", large["peak memory, MB"], "<=", 1000, "MB")
    report.target(
        f"the four metrics of {n} slices",
        slowest / times["ours, the same four metrics"],
        ">=",
        500,
        "times as fast",
    )
    report.target("streamed against exact, largest difference", error, "<=", 1e-4)
    return report
