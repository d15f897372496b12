"""Pictures of scans, healed scans and anomaly maps."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from madad_lite.evaluation.counts import dice, found
from madad_lite.scans.nifti import on_slices

from .canvas import (
    CELLS,
    DPI,
    FALSE,
    HIT,
    MISSED,
    as_array,
    colour_bar,
    contour,
    frame_of,
    heading,
    one_slice,
    opacity,
    paint_cells,
    row_label,
    show,
    show_map,
    stack,
    tiles,
    truth_note,
)

GAP = 3  # pixels between slices side by side in one picture


def slice_names(out) -> list[str]:
    """A short name for each slice: its height in MNI space ("z = +12 mm") if known, else its number."""
    prepared = getattr(out, "prepared", None)
    if prepared is None:
        return [f"slice {i}" for i in range(len(out.image))]
    geometry = prepared.geometry
    z0, step = geometry.grid.affine[2][3], geometry.grid.affine[2][2]
    return [f"z = {z0 + step * k:+.0f} mm" for k in geometry.slice_index]


def slice_grid(
    images,
    titles=None,
    columns: int = 8,
    overlay=None,
    truth=None,
    vmax: float = 1.0,
    label: str = "anomaly score",
):
    """Many slices side by side.

    images: (N, H, W) or (N, 1, H, W) in [-1, 1]. titles: N strings. overlay: scores of the same shape in [0,
    vmax], drawn on top; label: what its colour bar says. truth: masks of the same shape, outlined in cyan.
    """
    images = stack(images)
    n = len(images)
    columns = max(1, min(columns, n))
    overlay = None if overlay is None else stack(overlay, "overlay")
    truth = None if truth is None else stack(truth, "truth")
    if titles is not None and len(titles) != n:
        raise ValueError(f"{len(titles)} titles for {n} slices")
    rows, right = -(-n // columns), 0.0 if overlay is None else 0.6
    tile = min(1.6, 9.5 / columns)
    fig, axes = tiles(
        rows, columns, images.shape[1:], tile=tile, head=0.22 if titles is not None else 0, right=right
    )
    for i, ax in enumerate(axes.flat):
        if i >= n:
            ax.set_visible(False)
            continue
        title = None if titles is None else str(titles[i])
        if overlay is None:
            show(ax, images[i], title)
        else:
            mappable = show_map(ax, images[i], overlay[i], vmax, title)
        if truth is not None:
            contour(ax, truth[i])
    if overlay is not None:
        colour_bar(fig, mappable, axes[0, -1], label)
    return fig


def overlay(image, score, truth=None, *, vmax: float = 1.0, title: str | None = None):
    """One slice with its anomaly map on top and, if given, the true lesion outlined. All (H, W)."""
    image, score = one_slice(image), one_slice(score, "score")
    fig, axes = tiles(
        1, 1, image.shape, tile=3.6, head=0.3, right=0.7, bottom=0.3 if truth is not None else 0.05
    )
    mappable = show_map(axes[0, 0], image, score, vmax, title or "anomaly map over the scan")
    colour_bar(fig, mappable, axes[0, 0], "anomaly score")
    if truth is not None:
        contour(axes[0, 0], one_slice(truth, "truth"))
        truth_note(axes[0, 0])
    return fig


def detection_figure(out, index: int, truth=None, *, vmax: float = 1.0):
    """Everything the pipeline says about one slice, left to right.

    out: the pipeline's output. index: which of its N slices. truth: (H, W) mask of the true lesion, if known.
    """
    if out.reconstruction is None:
        raise ValueError("the output has no reconstruction: call the pipeline without reconstruct=False")
    scan, decoded = one_slice(out.image[index]), one_slice(out.reconstruction[index])
    healed, score = one_slice(out.healed[index]), one_slice(out.anomaly_map[index])
    fig, axes = tiles(1, 5, scan.shape, tile=1.85, head=0.42, right=0.65, top=0.32, bottom=0.22)
    name = f": {slice_names(out)[index]}" if len(out.image) > 1 or out.prepared is not None else ""
    heading(fig, f"From the scan to the anomaly map{name}")
    show(axes[0, 0], scan, "scan")
    show(axes[0, 1], decoded, "reconstruction\n(encoded and decoded)")
    show(axes[0, 2], healed, "healed\n(after the reverse process)")
    show(axes[0, 3], score, "anomaly map", cmap="magma", vmin=0, vmax=vmax)
    mappable = show_map(axes[0, 4], scan, score, vmax, "anomaly map\nover the scan")
    colour_bar(fig, mappable, axes[0, 4], "anomaly score")
    if truth is not None:
        for ax in (axes[0, 3], axes[0, 4]):
            contour(ax, one_slice(truth, "truth"))
            truth_note(ax)
    return fig


def healing_figure(out, index: int, truth=None, threshold: float | None = None, columns: int = 4):
    """What the network took for noise, the healed slice and the anomaly map of one slice, side by side.

    out: the pipeline's output with S steps. index: which of its N slices. truth: (H, W) mask to outline. The second
    picture shows each cell's highest probability of the S steps. With a threshold, the Dice coefficient of what lies at
    or above it stands over the map. columns: 4, 2 or 1 pictures side by side.
    """
    scan, chance = one_slice(out.image[index]), as_array(out.mask_probability)[:, index, 0].max(0)
    tile = 1.85 if columns > 2 else 2.2
    fig, axes = tiles(4 // columns, columns, scan.shape, tile=tile, head=0.42, right=0.65, gap=0.72)
    axes = axes.reshape(-1)  # scan, probability, healed, map
    show(axes[0], scan, "scan")
    options = dict(cmap="viridis", vmin=0, vmax=1, extent=frame_of(scan.shape))
    first = show(axes[1], chance, "taken for noise\n(highest of all steps)", **options)
    show(axes[2], one_slice(out.healed[index]), "healed")
    score = one_slice(out.anomaly_map[index])
    title = "anomaly map"
    if threshold is not None and truth is not None:
        title += f"\nDice {dice_of(found(score, threshold), one_slice(truth) > 0):.2f} at {threshold:.2f}"
    second = show(axes[3], score, title, cmap="magma", vmin=0, vmax=1)
    colour_bar(fig, first, axes[1], "probability")
    colour_bar(fig, second, axes[3], "anomaly score")
    if truth is not None:
        for ax in axes:
            contour(ax, one_slice(truth, "truth"))
    return fig


def threshold_figure(image, score, threshold: float, truth=None, *, vmax: float = 1.0):
    """What a threshold makes of an anomaly map: scan, map, and the voxels with score >= threshold. All (H, W).

    With `truth`, the voxels are coloured by hit, false alarm and miss, and the Dice coefficient of the slice
    is given, as `evaluation.metrics.dice_at` counts it.
    """
    image, score = one_slice(image), one_slice(score, "score")
    marked = found(score, threshold)
    fig, axes = tiles(1, 3, image.shape, tile=2.9, head=0.45, bottom=0.3, gap=0.12)
    show(axes[0, 0], image, "scan")
    show(axes[0, 1], score, "anomaly map", cmap="magma", vmin=0, vmax=vmax)
    if truth is None:
        show(axes[0, 2], image, f"score >= {threshold:.2f}: {int(marked.sum())} voxels")
        paint_cells(axes[0, 2], marked, FALSE)
        return fig
    lesion = one_slice(truth, "truth") > 0
    value = f"Dice = {dice_of(marked, lesion):.2f}"
    value = value if marked.any() or lesion.any() else "no lesion, and none found"
    show(axes[0, 2], image, f"score >= {threshold:.2f}\n{value}")
    verdict(axes[0, 2], marked, lesion)
    for ax in axes[0, :2]:
        contour(ax, lesion)
    truth_note(axes[0, 0])
    return fig


def dice_of(marked, lesion) -> float:
    """Dice coefficient of two masks of any one shape."""
    return float(dice((marked & lesion).sum(), marked.sum(), lesion.sum()))


def verdict(ax, marked, lesion):
    """Hits, false alarms and misses in their colours, with their legend below."""
    for mask, colour in ((marked & lesion, HIT), (marked & ~lesion, FALSE), (lesion & ~marked, MISSED)):
        paint_cells(ax, mask, colour, alpha=1.0)
    colours = (("hit", HIT), ("false alarm", FALSE), ("missed", MISSED))
    handles = [Patch(facecolor=colour, edgecolor="0.6", label=text) for text, colour in colours]
    ax.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False, fontsize=8
    )


def scan_report(
    out,
    name: str,
    *,
    truth=None,
    vmax: float = 1.0,
    columns: int = 4,
    found=None,
    healthy: dict | None = None,
    about: str | None = None,
):
    """One page about one scan: whether anything was found, its most suspicious slices, the score along the
    brain, and the whole volume.

    out: the pipeline's output for a volume. name: the heading. truth: (N, H, W) lesion masks, outlined if given.
    about: a line on the weights.
    found: a detection.finding.Finding: its sentence and parts come first; they are outlined, its threshold is marked.
    healthy: the range of healthy subjects behind the curve, {"who": words, "z_mm", "lowest", "highest": lists}.
    """
    images, scores, healed = stack(out.image), stack(out.anomaly_map), stack(out.healed)
    truth = None if truth is None else stack(truth, "truth")
    names, per_slice = slice_names(out), scores.sum((1, 2))
    parts = on_slices(found.mask, out.prepared.geometry) if found is not None and found.parts else None
    shown = sorted(_apart(per_slice, columns))
    strip = np.unique(np.linspace(0, len(images) - 1, min(20, len(images))).round().astype(int))
    columns, aspect = len(shown), images.shape[1] / images.shape[2]
    text = _report_text(found, about, f"The {columns} most anomalous of {len(images)} slices")
    tile, small, left, right, curve = 1.9, 0.84, 1.05, 0.75 if found is None else 0.95, 1.2
    strip_rows = -(-len(strip) // 10)
    below = curve + 1.15 + strip_rows * (small * aspect + 0.22)
    margins = dict(
        left=left, right=right + (4 - columns) * (tile + 0.05), top=0.66 + 0.19 * len(text), bottom=below
    )
    fig, axes = tiles(3, columns, images.shape[1:], tile=tile, head=0.0, **margins)
    width, height = fig.get_size_inches()
    heading(fig, _plain(name))
    for line, words in enumerate(text):
        y, bold = 1 - (0.34 + 0.19 * line) / height, found is not None and line == 0
        style = {"fontsize": 10, "fontweight": "bold"} if bold else {"fontsize": 9}
        fig.text(0.01, y, _plain(words), va="top", **style)
    for column, i in enumerate(shown):
        show(axes[0, column], images[i], names[i])
        show(axes[1, column], healed[i])
        mappable = show_map(axes[2, column], images[i], scores[i], vmax)
        if parts is not None:
            contour(axes[2, column], parts[i], "white")
        if truth is not None:
            contour(axes[2, column], truth[i])
    for row, label in enumerate(("scan", "healed\n(as if normal)", "anomaly map\nover the scan")):
        row_label(axes[row, 0], label)
    bar = colour_bar(fig, mappable, axes[2, -1], "anomaly score")
    if found is not None:
        ticks = [t for t in np.linspace(0, vmax, 6) if abs(t - found.threshold) > 0.08 * vmax]
        labels = [f"{t:.1f}" for t in ticks] + [f"{found.threshold:g} \N{BLACK LEFT-POINTING POINTER}"]
        bar.set_yticks([*ticks, found.threshold], labels)
        bar.axhline(found.threshold, color="white", lw=1.5)
    if truth is not None:
        truth_note(axes[2, 0])

    ax = fig.add_axes(
        (left / width, (below - curve - 0.4) / height, 1 - (left + right) / width, curve / height)
    )
    _score_curve(ax, out, per_slice, shown, images[0].size, healthy)
    ticks = strip[:: max(1, len(strip) // 6)]
    ax.set_xticks(ticks, [names[i].replace("slice ", "") for i in ticks])

    for row, some in enumerate(strip[k : k + 10] for k in range(0, len(strip), 10)):
        y = below - curve - 1.1 - (row + 1) * (small * aspect + 0.2)
        wide = small * (len(some) + (len(some) - 1) * GAP / images.shape[2])
        ax = fig.add_axes((0.1 / width, y / height, wide / width, small * aspect / height))
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        scan, score = _in_a_row(images[some]), np.nan_to_num(_in_a_row(scores[some]))
        show_map(ax, scan, score, vmax)
        for place, i in enumerate(some):
            x = place * (images.shape[2] + GAP) + (images.shape[2] - 1) / 2
            ax.text(x, -3, names[i].replace("z = ", ""), fontsize=7, ha="center", va="bottom")
        if truth is not None:
            contour(ax, np.nan_to_num(_in_a_row(truth[some].astype(float))))
    fig.text(0.1 / width, (below - curve - 0.95) / height, "The whole volume", fontsize=9)
    return fig


def _in_a_row(slices) -> np.ndarray:
    """(N, H, W) -> (H, N * W + (N - 1) * GAP), NaN between them: one picture is drawn several times as fast as many."""
    gap = np.full((slices.shape[1], GAP), np.nan)
    return np.concatenate([part for s in slices for part in (s, gap)][:-1], axis=1)


def _plain(text: str) -> str:
    """Text as it is: no formula between dollar signs, no bytes that are not text."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")


def _report_text(found, about: str | None, slices: str, most: int = 4) -> list[str]:
    """The lines above the pictures, what was found first."""
    lines = []
    if found is not None:
        parts = found.lines()
        more = [f"... and {len(parts) - most} more parts, in the table"] if len(parts) > most else []
        lines = [found.sentence[0].upper() + found.sentence[1:] + ".", *parts[:most], *more]
        slices += ", white outline: what was found" if found.parts else ""
    return lines + ([about] if about else []) + [f"{slices}. The patient's left is on the left."]


def _score_curve(ax, out, per_slice, shown, area: int, healthy: dict | None) -> None:
    """Scores summed over each slice, on the same scale in every report, healthy subjects behind them."""
    title = "Anomaly score summed over each slice, % of its area, from bottom to top of the head (dots: slices above)"
    if healthy is not None and getattr(out, "prepared", None) is not None:
        geometry = out.prepared.geometry
        z = geometry.grid.affine[2, 3] + geometry.grid.step * np.array(geometry.slice_index)
        low, high = (
            np.interp(z, healthy["z_mm"], healthy[k], left=np.nan, right=np.nan)
            for k in ("lowest", "highest")
        )
        ax.fill_between(np.arange(len(z)), low, high, color="#009E73", alpha=0.35, lw=0)
        title += f"\nGreen: range of {healthy['who']}; scans of other scanners may lie higher"
    ax.plot(per_slice, color="0.2", lw=1.2)
    ax.plot(shown, per_slice[shown], "o", color=CELLS, ms=6)
    ax.set_title(title, fontsize=9, loc="left", pad=4)
    # logarithmic above 0.01 %, so that healthy brains can be seen beside a large lesion
    ax.set_yscale("symlog", linthresh=1e-4 * area)
    shares = (0, 1e-4, 1e-3, 1e-2, 1e-1)
    ax.set_yticks([s * area for s in shares], [f"{100 * s:g} %" for s in shares])
    ax.minorticks_off()
    ax.tick_params(labelsize=8)
    ax.set(xlim=(0, max(1, len(per_slice) - 1)), ylim=(0, max(0.1 * area, 1.05 * float(per_slice.max()))))
    ax.spines[["top", "right"]].set_visible(False)


def _apart(values, n: int) -> list[int]:
    """Indices of the n largest values, kept apart from each other so that they do not all show the same
    spot.
    """
    order, distance = np.argsort(-np.asarray(values), kind="stable"), max(1, len(values) // 20)
    chosen: list[int] = []
    while len(chosen) < min(n, len(values)):
        for i in order:
            if len(chosen) < n and all(abs(int(i) - j) >= distance for j in chosen):
                chosen.append(int(i))
        distance -= 1
    return chosen


def volume_view(scan, overlay=None, *, point=None, title: str | None = None, vmax: float = 1.0):
    """A volume in three planes, sagittal, coronal and axial, with a cross where they meet; drawn by nilearn.

    scan: a NIfTI image or its path. overlay: an anomaly map or mask on the same grid (image or path), drawn from 0
    (transparent) to vmax. point: (x, y, z) in the scan's own world mm; by default where the overlay is highest, else
    the centre of the brain. ValueError where the grids differ.
    """
    import nibabel as nib
    from nibabel.affines import apply_affine
    from nilearn.plotting import plot_anat  # slow to import

    image, above = (nib.load(v) if isinstance(v, (str, Path)) else v for v in (scan, overlay))
    data = np.asarray(image.dataobj, dtype=np.float32)
    inside = data > np.percentile(data, 1) if data.min() != 0 else data > 0
    score = None if above is None else np.asarray(above.dataobj, dtype=np.float32)
    if score is not None and score.shape != data.shape:
        raise ValueError(
            f"overlay of shape {score.shape} over a scan of shape {data.shape}: not the same grid"
        )
    if point is None and score is not None and score.max() > 0:
        # a mask or a clipped map is highest in many places: their middle
        peak = np.argwhere(score >= 0.99 * score.max())
        point = apply_affine(image.affine, peak[((peak - peak.mean(0)) ** 2).sum(1).argmin()])
    elif point is None:
        centre = np.argwhere(inside).mean(0) if inside.any() else np.array(data.shape) / 2
        point = apply_affine(image.affine, centre.round())
    brightest = float(np.percentile(data[inside], 99.5)) if inside.any() else 1.0
    fig = plt.figure(figsize=(9.9, 3.8), dpi=DPI)
    plt.close(fig)
    display = plot_anat(
        nib.Nifti1Image(data, image.affine),
        cut_coords=tuple(float(v) for v in point),
        figure=fig,
        title=title or "Three planes through one point",
        black_bg=True,
        dim=0,
        vmin=min(0.0, float(data.min())),
        vmax=brightest,
        colorbar=False,
    )
    if score is not None:
        values = nib.Nifti1Image(score, image.affine)
        is_mask = np.isin(score, (0, 1)).all()  # whose colour says nothing but "inside"
        display.add_overlay(values, cmap="magma", vmin=0, vmax=vmax, colorbar=not is_mask)
        for (
            plane
        ) in display.axes.values():  # nilearn's own transparency makes the highest score opaque, however low
            picture = plane.ax.get_images()[-1]
            picture.set_alpha(opacity(np.ma.filled(picture.get_array(), 0), vmax))
        if not is_mask:
            fig.axes[-1].yaxis.set_label_position("left")
            fig.axes[-1].set_ylabel("anomaly score", color="white", fontsize=9)
    return fig
