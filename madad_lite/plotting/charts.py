"""Curves and bars: training, schedule, intensities, thresholds, comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from madad_lite.evaluation.counts import at_or_above, checked, dice

from .canvas import DPI, as_array, show, stack
from .scans import slice_names, verdict

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.6"  # Okabe-Ito

LOSSES = {  # what the training log calls it: what it means
    "latent": "latent loss\n(error of the guessed clean latent)",
    "mask": "mask loss\n(error of the guessed noised cells)",
    "reconstruction": "reconstruction loss\n(decoded against the slice)",
    "kl": "KL loss\n(latents against a normal distribution)",
    "loss": "total loss",
}


def _panels(n: int = 1, width: float = 4.6, height: float = 3.2):
    """Figure and n axes side by side, without the upper and right frame."""
    fig, axes = plt.subplots(1, n, figsize=(width * n, height), dpi=DPI, layout="constrained", squeeze=False)
    plt.close(fig)  # forgotten by pyplot, alive for us
    for ax in axes[0]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return fig, axes[0]


def _label(ax, title: str, x: str = "", y: str = "", **more):
    """The words of a chart, all in the same sizes; `more` goes to Axes.set."""
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.set(**more)


def read_log(log) -> list[dict]:
    """The lines of a training log: a list of dicts, a log.jsonl, or the run folder that holds it."""
    if not isinstance(log, (str, Path)):
        return list(log)
    path = Path(log)
    path = path / "log.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no training log here; give the run folder or its log.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def training_curves(log, keys=None):
    """Each loss in a panel of its own, training and validation, against the step.

    log: run folder, log.jsonl or list of dicts with "step", losses, and "val_<loss>" at evaluations. keys:
    which losses (default: the parts of the loss that the log has). The axis is logarithmic where a loss falls
    by more than 5 times.
    """
    lines = read_log(log)
    if not lines:
        raise ValueError("the training log is empty: nothing to draw yet")
    if keys is None:
        known = [k for k in LOSSES if any(k in line or f"val_{k}" in line for line in lines)]
        keys = [k for k in known if k != "loss"] or known
    if not keys:
        raise ValueError(f"no losses in the training log, only {sorted(lines[0])}")
    fig, axes = _panels(len(keys), 4.2)
    for ax, key in zip(axes, keys, strict=True):
        step, value = _series(lines, key)
        val_step, val = _series(lines, f"val_{key}")
        if len(value):
            noisy = len(value) > 60
            ax.plot(
                step,
                value,
                color=BLUE,
                lw=0.8 if noisy else 1.4,
                alpha=0.35 if noisy else 1,
                label=None if noisy else "training",
            )
            if noisy:
                smooth, width = _running_mean(value)
                ax.plot(step, smooth, color=BLUE, lw=1.6, label=f"training (mean of {width} lines)")
        if len(val):
            ax.plot(val_step, val, "o-", color=ORANGE, lw=1.4, ms=4, label="validation")
        every = np.concatenate([value, val])
        if len(every) and every.min() > 0 and every.max() > 5 * every.min():
            ax.set_yscale("log")
        _label(ax, LOSSES.get(key, key), "training step", "loss")
        if len(every):
            ax.legend(frameon=False, fontsize=8)
    return fig


def _series(lines: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line.get("step", i), line[key]) for i, line in enumerate(lines) if line.get(key) is not None]
    return tuple(np.array(points, dtype=float).reshape(-1, 2).T)


def _running_mean(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Mean over the neighbours, fewer of them at the ends; and over how many."""
    half = max(1, len(values) // 50)
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low), 2 * half + 1


def schedule(alphas_cumprod):
    """How much of the latent and how much noise the forward process mixes at each level t.

    alphas_cumprod: T numbers, or a diffusers scheduler that has them.
    """
    abar = as_array(getattr(alphas_cumprod, "alphas_cumprod", alphas_cumprod)).astype(float)
    t = np.arange(len(abar))
    fig, (left, right) = _panels(2, 4.2)
    left.plot(t, abar, "o-", color="0.2", ms=4)
    _label(left, r"$\bar\alpha_t$: share of the signal's variance left", "noise level t", r"$\bar\alpha_t$")
    right.plot(t, np.sqrt(abar), "o-", color=BLUE, ms=4, label=r"clean latent: $\sqrt{\bar\alpha_t}$")
    right.plot(t, np.sqrt(1 - abar), "s-", color=ORANGE, ms=4, label=r"noise: $\sqrt{1-\bar\alpha_t}$")
    _label(
        right,
        r"$z_t = \sqrt{\bar\alpha_t}\,z_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$",
        "noise level t",
        "factor",
    )
    right.legend(frameon=False, fontsize=8)
    for ax in (left, right):
        ax.set_ylim(-0.03, 1.03)
        if len(t) <= 20:
            ax.set_xticks(t)
    return fig


def intensity_histogram(images, brain, labels=None):
    """Intensities inside the brain, after normalisation: the brain's median is at 0, the background at -1.

    images, brain: (N, H, W); or lists of such pairs to compare several scans, with one label each.
    """
    if not isinstance(images, (list, tuple)):
        images, brain, labels = [images], [brain], labels or [None]
    labels = labels or [f"scan {i}" for i in range(len(images))]
    fig, (ax,) = _panels(1, 5.6)
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.85, len(images)))
    for image, mask, label, colour in zip(images, brain, labels, colours, strict=True):
        values = stack(image)[stack(mask, "brain") > 0.5]
        counts, edges = np.histogram(values, bins=80, range=(-1, 1))
        share = 100 * counts / max(1, values.size)
        ax.stairs(share, edges, color=colour, fill=len(images) == 1, lw=1.4, label=label)
    ax.axvline(0, color="0.3", lw=1, ls="--")
    ax.text(
        0.02,
        0.97,
        "median of the brain",
        transform=ax.get_xaxis_transform(),
        fontsize=8,
        va="top",
        color="0.3",
    )
    _label(
        ax, "Intensities inside the brain", "normalised intensity", "% of the brain's voxels", xlim=(-1, 1)
    )
    if labels[0] is not None:
        ax.legend(frameon=False, fontsize=8)
    return fig


def dice_curve(score, truth, brain=None, threshold: float | None = None, *, points: int = 201):
    """Dice of the voxels with score >= threshold, over all slices together, against the threshold.

    score, truth, brain: (N, H, W) or (N, 1, H, W), score in [0, 1]; only the brain's voxels count (default: all).
    threshold: the one chosen on validation data; it is marked. ValueError as of `evaluation.metrics`.
    """
    score, truth, brain = checked(score, truth, brain)
    every, lesion = np.sort(score[brain]), np.sort(score[truth])

    def dice_of(thresholds):
        return dice(at_or_above(lesion, thresholds), at_or_above(every, thresholds), len(lesion))

    grid = np.linspace(0, 1, points)
    values = dice_of(grid)
    best = int(values.argmax())
    fig, (ax,) = _panels(1, 5.6)
    ax.plot(grid, values, color=BLUE, lw=1.8)
    ax.plot(grid[best], values[best], "o", color="0.2", label=f"best: {values[best]:.2f} at {grid[best]:.2f}")
    if threshold is not None:
        value = dice_of(np.array([threshold]))[0]
        ax.axvline(
            threshold,
            color=ORANGE,
            lw=1.4,
            ls="--",
            label=f"threshold from validation: {value:.2f} at {threshold:.2f}",
        )
        ax.plot(threshold, value, "o", color=ORANGE)
    top = max(0.05, 1.15 * float(values.max()))
    _label(ax, "Dice of the voxels with score >= threshold", "threshold", "Dice (all slices pooled)")
    ax.set(xlim=(0, 1), ylim=(0, min(1.03, top)))
    ax.legend(frameon=False, fontsize=8)
    return fig


def precision_recall(score, truth, brain=None, *, label: str | None = None):
    """Precision against recall over all thresholds, with the average precision (AP) and the level of pure guessing.

    score, truth, brain: as of `dice_curve`; label: the method's name. ValueError also without any lesion voxel.
    """
    from sklearn.metrics import PrecisionRecallDisplay, average_precision_score, precision_recall_curve

    score, truth, brain = checked(score, truth, brain)
    if not truth.any():
        raise ValueError("no lesion voxel in `truth`: precision and recall mean nothing")
    score, truth = score[brain], truth[brain]
    precision, recall, _ = precision_recall_curve(truth, score)
    some = np.unique(np.linspace(0, len(recall) - 1, 1000).astype(int))  # a million points draw the same line
    fig, (ax,) = _panels(1, 4.6, 3.6)
    area, guess = average_precision_score(truth, score), float(truth.mean())
    display = PrecisionRecallDisplay(
        precision[some], recall[some], average_precision=area, prevalence_pos_label=guess
    )
    chance = {"color": GREY, "lw": 1.2, "label": f"guessing (AP = {guess:.3f})"}
    display.plot(ax, name=label, plot_chance_level=True, chance_level_kw=chance)
    ax.lines[0].set(color=BLUE, linewidth=1.8)
    ax.set(aspect="auto", xlim=(0, 1), ylim=(0, 1.03))
    _label(
        ax,
        "Precision and recall of lesion voxels",
        "recall: share of the lesion that is found",
        "precision: share of the found\nthat is lesion",
    )
    ax.legend(frameon=False, fontsize=8)
    return fig


def patient_figure(out, truth, index: int, threshold: float):
    """A whole volume at one threshold: one slice with hits, false alarms and misses, and the curve of precision and
    recall over all slices, with the point where the threshold stands.

    out: the pipeline's output of N slices. truth: (N, H, W) masks. index: the slice that is shown. threshold: in
    [0, 1]. The Dice coefficient and the volumes are those of all slices together; volumes are in millilitres where the
    output knows its grid, else in voxels.
    """
    score, truth, brain = checked(out.anomaly_map, truth, out.brain)
    marked = (score >= threshold) & brain
    hits, found_, lesion_ = int((marked & truth).sum()), int(marked.sum()), int(truth.sum())
    fig = plt.figure(figsize=(8.4, 3.8), dpi=DPI)  # placed by hand: that is drawn twice as fast
    plt.close(fig)
    left, right = fig.add_axes((0.01, 0.1, 0.38, 0.8)), fig.add_axes((0.49, 0.14, 0.48, 0.7))
    right.spines[["top", "right"]].set_visible(False)
    show(left, stack(out.image)[index])
    left.set(xticks=[], yticks=[])
    left.spines[:].set_visible(False)
    verdict(left, marked[index], truth[index])
    left.set_title(slice_names(out)[index], fontsize=10)
    # precision and recall at 201 thresholds: two sorts, then every point of the curve is a search
    grid = np.linspace(0, 1, 201)
    every, lesion = np.sort(score[brain]), np.sort(score[truth])
    above, inside = at_or_above(every, grid), at_or_above(lesion, grid)
    some = (above > 0) & (lesion_ > 0)
    right.plot(inside[some] / max(1, lesion_), inside[some] / above[some], color=BLUE, lw=1.8)
    if found_ and lesion_:
        right.plot(hits / lesion_, hits / found_, "o", color=ORANGE, ms=9, label=f"threshold {threshold:.2f}")
        right.legend(frameon=False, fontsize=8, loc="lower left")
    value = (
        f"Dice {float(dice(hits, found_, lesion_)):.2f}"
        if found_ or lesion_
        else "nothing there, nothing found"
    )
    sizes = f"lesion {_volume(out, lesion_)}, false alarms {_volume(out, found_ - hits)}"
    _label(
        right,
        f"Whole volume: {value}\n{sizes}",
        "recall: share of the lesion that is found",
        "precision: share of the found that is lesion",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.05),
    )
    return fig


def _volume(out, voxels: int) -> str:
    """So many voxels of the output's slices in millilitres, where it knows its grid."""
    if getattr(out, "prepared", None) is None:
        return f"{voxels} voxels"
    grid = out.prepared.geometry.grid
    return f"{voxels * grid.spacing**2 * grid.step / 1000:.1f} mL"


def _interval(value) -> tuple[float, float, float]:
    """(value, low, high) from a number, a triple, or a dict of "value" (or "dice"), "low", "high" (or
    "interval").
    """
    if isinstance(value, Mapping):
        middle = value.get("value", value.get("dice"))
        if middle is None:
            raise ValueError(f'a result needs "value" or "dice", not only {sorted(value)}')
        low, high = value.get("interval") or (value.get("low"), value.get("high"))
        return tuple(float(middle if v is None else v) for v in (middle, low, high))
    if np.ndim(value) == 0:
        return (float(value),) * 3
    middle, low, high = (float(v) for v in value)
    return middle, low, high


def _whiskers(values) -> tuple[np.ndarray, np.ndarray]:
    """Heights and the lengths of the whiskers (2, n) as matplotlib wants them."""
    middle, low, high = np.array([_interval(v) for v in values]).T
    return middle, np.clip(np.stack([middle - low, high - middle]), 0, None)


def dice_by_size(results: Mapping, *, ylabel: str = "Dice"):
    """Bars by lesion size, with intervals.

    results: {"small": number | (value, low, high) | {"dice"| "value", "low", "high", "n"}, ...}; "n" is
    printed below.
    """
    middle, error = _whiskers(results.values())
    fig, (ax,) = _panels(1, 1.6 + 1.1 * len(results))
    places = np.arange(len(results))
    ax.bar(places, middle, color=BLUE, width=0.6)
    if error.any():
        ax.errorbar(places, middle, yerr=error, fmt="none", ecolor="0.15", capsize=4, lw=1.2)
    for x, value, up in zip(places, middle, error[1], strict=True):
        ax.text(x, value + up + 0.015, f"{value:.2f}", ha="center", va="bottom", fontsize=9)
    names = [
        f"{k}\n(n = {v['n']})" if isinstance(v, Mapping) and "n" in v else str(k) for k, v in results.items()
    ]
    ax.set_xticks(places, names, fontsize=9)
    _label(
        ax, "By lesion size", y=ylabel, ylim=(0, min(1.1, float(np.nanmax(middle + error[1])) * 1.2 + 0.05))
    )
    return fig


def compare_methods(results: Mapping[str, Mapping], metrics=None, *, highlight: str | None = None):
    """Methods below each other, one panel a metric, each bar with its number and interval: a table one can
    see.

    results: {method: {metric: number | (value, low, high) | {"value", "low", "high"}}}. metrics: which, in
    this order.
    highlight: the method drawn in colour (default: the first).
    """
    methods = list(results)
    metrics = list(metrics or dict.fromkeys(m for row in results.values() for m in row))
    highlight = methods[0] if highlight is None else highlight
    fig, axes = _panels(len(metrics), max(2.6, 9.6 / (len(metrics) + 0.6)), 0.8 + 0.42 * len(methods))
    places = np.arange(len(methods))[::-1]
    for column, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        middle, error = _whiskers([results[m].get(metric, np.nan) for m in methods])
        colours = [BLUE if m == highlight else GREY for m in methods]
        ax.barh(places, np.nan_to_num(middle), color=colours, height=0.6)
        if np.nan_to_num(error).any():
            ax.errorbar(middle, places, xerr=error, fmt="none", ecolor="0.15", capsize=3, lw=1.1)
        reach = np.nanmax(np.append(middle + error[1], 0.01))
        for y, value, right in zip(places, middle, middle + error[1], strict=True):
            text, x = ("-", 0.0) if np.isnan(value) else (f"{value:.2f}", right)
            ax.text(x + 0.03 * reach, y, text, va="center", fontsize=9)
        _label(ax, metric, xlim=(0, 1.25 * reach), ylim=(-0.6, len(methods) - 0.4), xticks=[])
        ax.set_yticks(places, methods if column == 0 else [""] * len(methods), fontsize=9)
        ax.tick_params(axis="y", length=0)
        ax.spines["bottom"].set_visible(False)
    return fig
