"""What every picture is made of: axes placed in inches, brains, maps, outlines, colour bars."""

from __future__ import annotations

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from madad_lite.evaluation.counts import to_numpy as as_array

DPI = 90  # small enough for a notebook of many figures, sharp enough to read
TRUTH = "#00E5FF"  # cyan: absent from grey, magma and viridis at their bright ends
CELLS = "#E69F00"  # orange: latent cells that are noised or replaced
HIT, FALSE, MISSED = "#F0F0F0", "#E69F00", "#0072B2"  # Okabe-Ito: told apart by all kinds of colour vision


def one_slice(values, name: str = "image") -> np.ndarray:
    """(H, W) from (H, W), (1, H, W) or (1, 1, H, W)."""
    array = as_array(values)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2:
        raise ValueError(f"{name}: one slice (H, W) is needed, not shape {tuple(array.shape)}")
    return array


def stack(values, name: str = "images") -> np.ndarray:
    """(N, H, W) from (N, H, W), (N, 1, H, W) or (H, W)."""
    array = as_array(values)
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        raise ValueError(
            f"{name}: slices (N, H, W) or (N, 1, H, W) are needed, not shape {tuple(array.shape)}"
        )
    return array


def tiles(rows, columns, shape, *, tile=1.5, head=0.3, left=0.0, right=0.0, top=0.0, bottom=0.06, gap=0.05):
    """Figure with rows x columns picture axes without ticks. All sizes in inches; `head` is the room above
    each row.
    """
    height = tile * shape[0] / shape[1]
    width = left + columns * tile + (columns - 1) * gap + right
    total = top + rows * (height + head) + (rows - 1) * gap + bottom
    fig = plt.figure(figsize=(width, total), dpi=DPI)
    plt.close(fig)  # forgotten by pyplot, alive for us
    axes = np.empty((rows, columns), dtype=object)
    for r in range(rows):
        y = total - top - (r + 1) * (head + height) - r * gap
        for c in range(columns):
            x = left + c * (tile + gap)
            ax = fig.add_axes((x / width, y / total, tile / width, height / total))
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            axes[r, c] = ax
    return fig, axes


def heading(fig, text: str, y: float = 0.08):
    """A title of the whole figure, at the left, y inches below the top."""
    fig.text(0.01, 1 - y / fig.get_figheight(), text, ha="left", va="top", fontsize=11, fontweight="bold")


def row_label(ax, text: str):
    ax.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9, labelpad=6)


def colour_bar(fig, mappable, ax, label: str, *, pad: float = 0.08):
    """A thin bar right of `ax`, as high as `ax`."""
    box, width = ax.get_position(), fig.get_figwidth()
    bar = fig.add_axes((box.x1 + pad / width, box.y0, 0.1 / width, box.height))
    fig.colorbar(mappable, cax=bar)
    bar.tick_params(labelsize=8, length=2)
    bar.set_ylabel(label, fontsize=8)
    return bar


def show(ax, image, title: str | None = None, **options):
    """One picture, by default a grey brain slice in [-1, 1]."""
    options = {"cmap": "gray", "vmin": -1, "vmax": 1, "interpolation": "nearest"} | options
    if title is not None:
        ax.set_title(title, fontsize=9, pad=3)
    return ax.imshow(image, **options)


def show_map(ax, image, score, vmax: float = 1.0, title: str | None = None):
    """A brain slice with its anomaly map on top: the higher the score, the less of the brain shines
    through.
    """
    show(ax, image, title)
    alpha = opacity(score, vmax)
    return ax.imshow(score, cmap="magma", vmin=0, vmax=vmax, alpha=alpha, interpolation="nearest")


def opacity(score, vmax: float):
    """How opaque a map is over a scan, in [0, 0.75]: nothing where the score is 0, most from half of vmax on."""
    return np.clip(2 * score / vmax, 0, 1) * 0.75


def contour(ax, truth, colour: str = TRUTH):
    """Outline of a mask (H, W); nothing when the mask is empty."""
    truth = np.asarray(truth) > 0.5
    if truth.any():
        padded = np.pad(truth, 1).astype(float)  # so that a lesion at the edge has a closed outline
        axis = [np.arange(-1, n + 1) for n in truth.shape]
        limits = ax.get_xlim(), ax.get_ylim()
        ax.contour(axis[1], axis[0], padded, levels=[0.5], colors=[colour], linewidths=1.2)
        ax.set(xlim=limits[0], ylim=limits[1])


def paint_cells(ax, mask, colour: str, *, alpha: float = 0.75, extent=None):
    """Paint the true cells of `mask` in one colour; the others stay transparent."""
    shown = np.ma.masked_where(~np.asarray(mask, dtype=bool), np.ones(np.shape(mask)))
    return ax.imshow(
        shown, cmap=ListedColormap([colour]), alpha=alpha, interpolation="nearest", extent=extent
    )


def frame_of(shape) -> tuple[float, float, float, float]:
    """Where imshow draws an image of this shape: latent cells are drawn into the frame of their slice."""
    return (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5)


def truth_note(ax):
    ax.text(
        0.5,
        -0.02,
        "cyan outline: true lesion",
        transform=ax.transAxes,
        ha="center",
        va="top",
        fontsize=8,
        color="#00798C",
    )


def png(figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def still(bundle: dict | tuple[dict, dict], picture: bytes) -> dict:
    """The MIME bundle of a widget with a picture beside it, which is shown where no widget can be."""
    data = bundle[0] if isinstance(bundle, tuple) else bundle  # without metadata
    return data | {"image/png": base64.b64encode(picture).decode()}


def grain(shape, seed: int = 0) -> np.ndarray:
    """Gaussian noise (H, W) of spread 1, the texture of a painted lesion."""
    return np.random.default_rng(seed).standard_normal(shape)
