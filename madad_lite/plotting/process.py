"""Pictures of the inside of the method: latents, patch masks, the forward and the reverse process."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .canvas import (
    CELLS,
    as_array,
    colour_bar,
    frame_of,
    heading,
    one_slice,
    paint_cells,
    row_label,
    show,
    stack,
    tiles,
)


def latent_channels(latents, titles=None, *, limit: float | None = None):
    """The channels of latents as pictures, one row a latent, all on one colour scale.

    latents: (C, h, w) or (N, C, h, w). titles: N row labels. limit: the scale runs from -limit to limit
    (default: the 99.5th percentile of the magnitude).
    """
    latents = as_array(latents)
    if latents.ndim == 3:
        latents = latents[None]
    if latents.ndim != 4:
        raise ValueError(f"latents (N, C, h, w) or (C, h, w) are needed, not shape {tuple(latents.shape)}")
    n, channels = latents.shape[:2]
    limit = limit or float(np.percentile(np.abs(latents), 99.5)) or 1.0
    left = 0.0 if titles is None else 1.1
    fig, axes = tiles(n, channels, latents.shape[2:], tile=1.7, head=0.0, left=left, right=0.75, top=0.3)
    for r in range(n):
        for c in range(channels):
            title = f"channel {c}" if r == 0 else None
            mappable = show(axes[r, c], latents[r, c], title, cmap="viridis", vmin=-limit, vmax=limit)
        if titles is not None:
            row_label(axes[r, 0], str(titles[r]))
    colour_bar(fig, mappable, axes[0, -1], "latent value")
    return fig


def forward_process(images, timesteps, mask=None, original=None):
    """Patches dissolve into noise while t grows.

    images: (T, H, W), the decoded z_t in [-1, 1]. timesteps: T numbers. mask: (h, w) the noised cells, drawn
    over `original` (H, W), or over the first image.
    """
    images = stack(images)
    extra = int(mask is not None)
    count = len(images) + extra
    fig, axes = tiles(1, count, images.shape[1:], tile=min(2.0, 10.5 / count), head=0.3)
    if mask is not None:
        below = images[0] if original is None else one_slice(original, "original")
        show(axes[0, 0], below, "noised cells")
        paint_cells(axes[0, 0], one_slice(mask, "mask") > 0.5, CELLS, alpha=0.6, extent=frame_of(below.shape))
    for ax, image, t in zip(axes[0, extra:], images, timesteps, strict=True):
        show(ax, image, f"t = {int(t)}")
    return fig


def mask_examples(masks, brain=None, images=None, titles=None, columns: int = 6):
    """Random patch masks: noised cells in orange, over the slices, over the brain, or over grey.

    masks: (N, h, w) or (N, 1, h, w), 1 = noised. brain: (N, ...) the cells that count as brain; one is enough
    for all.
    images: (N, H, W) slices. Each title gives the share of noised cells (of the brain's cells if these are
    known).
    """
    masks = stack(masks, "masks") > 0.5
    n = len(masks)
    brain = None if brain is None else np.broadcast_to(stack(brain, "brain") > 0.5, masks.shape)
    images = None if images is None else stack(images)
    if images is not None:
        images = np.broadcast_to(images, (n, *images.shape[1:]))
    columns = max(1, min(columns, n))
    shape = masks.shape[1:] if images is None else images.shape[1:]
    fig, axes = tiles(-(-n // columns), columns, shape, tile=1.6, head=0.25, gap=0.08)
    for i, ax in enumerate(axes.flat):
        if i >= n:
            ax.set_visible(False)
            continue
        noised = masks[i] if brain is None else masks[i] & brain[i]
        cells = masks[i].size if brain is None else max(1, int(brain[i].sum()))
        title = f"{noised.sum() / cells:.0%} noised" if titles is None else str(titles[i])
        if images is not None:
            show(ax, images[i], title)
        else:
            show(
                ax,
                np.zeros(shape) if brain is None else brain[i],
                title,
                vmin=-2 if brain is None else 0,
                vmax=2,
            )
        paint_cells(ax, masks[i], CELLS, alpha=0.6 if images is not None else 1.0, extent=frame_of(shape))
    return fig


def trajectory(out, index: int, decoded, *, columns: int = 5):
    """The reverse process on one slice in a few large steps, from the untouched scan to the healed one.

    out: the pipeline's output with S steps. index: which slice. decoded: (S+1, H, W), the decoded
    `out.trajectory[:, index]`. columns: how many of the S+1 are shown, evenly spread, the first and the last among
    them. In a column the network looks at the latent of the top row and gives each cell a probability of being
    noised; those above the threshold are replaced. The change is signed: blue is darker than at the start, red
    brighter.
    """
    decoded = stack(decoded, "decoded")
    probability, replaced = as_array(out.mask_probability)[:, index, 0], as_array(out.replaced)[:, index, 0]
    steps = len(probability)
    _check_steps(decoded, steps)
    shown = np.unique(np.linspace(0, steps, max(2, min(columns, steps + 1))).round().astype(int))
    fig, axes = tiles(
        4, len(shown), decoded.shape[1:], tile=1.75, head=0.0, left=1.0, right=0.75, top=0.42, gap=0.06
    )
    extent = frame_of(decoded.shape[1:])
    for column, s in enumerate(shown):
        title = "healed" if s == steps else f"step {s + 1} of {steps}\nt = {int(out.timesteps[s])}"
        show(axes[0, column], decoded[s], title)
        change = _show_change(axes[1, column], decoded[s] - decoded[0])
        if s == steps:
            axes[2, column].set_visible(False)
            axes[3, column].set_visible(False)
            continue
        chance = show(axes[2, column], probability[s], cmap="viridis", vmin=0, vmax=1, extent=extent)
        show(axes[3, column], decoded[s])
        paint_cells(axes[3, column], replaced[s], CELLS, extent=extent)
    for row, text in enumerate(
        ("decoded\nlatent", "change\nso far", "noised?\n(network)", "replaced\ncells")
    ):
        row_label(axes[row, 0], text)
    colour_bar(fig, change, axes[1, -1], CHANGE)
    colour_bar(fig, chance, axes[2, -2], "probability")
    return fig


CHANGE = "change of intensity\n(slices span -1 to 1)"


def _show_change(ax, change, title: str | None = None):
    """A signed difference of slices: white where nothing changed, blue darker, red brighter."""
    return show(ax, change, title, cmap="RdBu_r", vmin=-1, vmax=1)


def healing_film(out, index: int, decoded, *, milliseconds: int = 500) -> bytes:
    """The reverse process on one slice as an animated GIF, that begins and ends with a longer look.

    Left the decoded latent, right the probability of "noised" that the network gives each cell at this step. The
    arguments are those of `trajectory`. milliseconds: of each step.
    """
    decoded = stack(decoded, "decoded")
    probability = as_array(out.mask_probability)[:, index, 0]
    steps = len(probability)
    _check_steps(decoded, steps)
    extent, frames = frame_of(decoded.shape[1:]), []
    for s in range(steps + 1):
        fig, axes = tiles(1, 2, decoded.shape[1:], tile=2.6, head=0.3, right=0.75)
        t = "healed" if s == steps else f"t = {int(out.timesteps[s])}"
        show(axes[0, 0], decoded[s], f"decoded latent, {t}")
        last = probability[min(s, steps - 1)]
        chance = show(axes[0, 1], last, "noised? (network)", cmap="viridis", vmin=0, vmax=1, extent=extent)
        colour_bar(fig, chance, axes[0, 1], "probability")
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png")
        frames.append(Image.open(buffer).convert("P", palette=Image.Palette.ADAPTIVE, colors=128))
    film, times = io.BytesIO(), [3 * milliseconds, *[milliseconds] * (steps - 1), 4 * milliseconds]
    frames[0].save(film, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return film.getvalue()


def _check_steps(decoded, steps: int):
    if len(decoded) != steps + 1:
        raise ValueError(
            f"{steps} steps need {steps + 1} decoded latents (the start and one a step), not {len(decoded)}"
        )


def reverse_step(out, index: int, step: int, decoded):
    """One step of the reverse process, large: the latent before the step, what the network says, and the
    result.

    step: 0 ... S-1. The other arguments are those of `trajectory`.
    """
    decoded = stack(decoded, "decoded")
    probability, replaced = one_slice(out.mask_probability[step, index]), one_slice(out.replaced[step, index])
    _check_steps(decoded, len(out.mask_probability))
    extent = frame_of(decoded.shape[1:])
    fig, axes = tiles(1, 5, decoded.shape[1:], tile=1.85, head=0.42, right=0.8, top=0.32)
    heading(fig, f"Step {step + 1} of {len(out.mask_probability)}  (t = {int(out.timesteps[step])})")
    show(axes[0, 0], decoded[step], "before the step")
    show(
        axes[0, 1],
        probability,
        "how likely noised\n(0: dark, 1: bright)",
        cmap="viridis",
        vmin=0,
        vmax=1,
        extent=extent,
    )
    show(axes[0, 2], decoded[step], f"{int(replaced.sum())} of {replaced.size} cells\nreplaced")
    paint_cells(axes[0, 2], replaced, CELLS, extent=extent)
    show(axes[0, 3], decoded[step + 1], "after the step")
    mappable = _show_change(
        axes[0, 4], decoded[step + 1] - decoded[0], "change since the start\n(blue: darker)"
    )
    colour_bar(fig, mappable, axes[0, 4], CHANGE)
    return fig
