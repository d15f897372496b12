"""The method in one picture: the part that is being talked about is lit, every tensor has its shape."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from .canvas import CELLS, DPI

TRAINING, INFERENCE = 1.0, 0.0  # the rows, from below
BOXES = {  # part: (row, column, words); the same part may have a box in both rows
    "slice": [(TRAINING, 0, "normal slice\n$x_0$"), (INFERENCE, 0, "any scan\n$x_0$")],
    "encode": [(TRAINING, 1, "encoder"), (INFERENCE, 1, "encoder")],
    "mask": [(TRAINING, 2, "patch mask $M$\nnoise $\\varepsilon$")],
    "forward": [(TRAINING, 3, "noise only\nwhere $M = 1$")],
    "network": [(TRAINING, 4, "U-Net with\ntwo heads"), (INFERENCE, 3, "the same U-Net\nat step $t$")],
    "losses": [(TRAINING, 5, "latent loss\n+ mask loss")],
    "start": [(INFERENCE, 2, "no noise:\n$z_{T-1} := z_0$")],
    "reverse": [(INFERENCE, 4, "one DDIM step\nwhere $\\hat M > \\tau$")],
    "decode": [(INFERENCE, 5, "decoder")],
    "score": [(INFERENCE, 6, "clipped\ndifference")],
}
ARROWS = {  # row: what goes along its arrows, and which kind of tensor that is
    TRAINING: r"x_0 image, z_0 latent, M mask, z_t latent, \hat{z}_0,\hat{M} both",
    INFERENCE: r"x_0 image, z_0 latent, z_t latent, \hat{z}_0,\hat{M} both, z_{-1} latent, \hat{x}_0 image",
}
WIDTH, HEIGHT, APART = 1.0, 0.5, (1.5, 1.4)  # of a box, and from box to box


def method(lit: str | None = None, *, image: int = 96, latent: tuple[int, int, int] = (4, 24, 24)):
    """Training above, inference below; the boxes of the part `lit` are coloured, all if it is None.

    lit: a key of BOXES. image: side of a slice, pixels. latent: (C, h, w). They give the shapes under the arrows, of
    N slices at once. Returns a Figure. ValueError: no such part.
    """
    if lit is not None and lit not in BOXES:
        raise ValueError(f"no part {lit!r} in the picture: choose from {', '.join(BOXES)}")
    c, h, w = latent
    latents, masks = f"N×{c}×{h}×{w}", f"N×1×{h}×{w}"
    shapes = {
        "image": f"N×1×{image}×{image}",
        "latent": latents,
        "mask": masks,
        "both": f"{latents}\n{masks}",
    }
    fig = plt.figure(figsize=(10.4, 3.1), dpi=DPI)
    plt.close(fig)  # forgotten by pyplot, alive for us
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-0.75, 9.65), ylim=(-0.9, 2.2), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    middle, bold = {"ha": "center", "va": "center"}, {"fontsize": 10, "fontweight": "bold"}
    for part, places in BOXES.items():
        on = lit in (None, part)
        look = {"facecolor": "#FFE8B8" if on else "#F4F4F4", "edgecolor": CELLS if on else "0.75", "lw": 1.6}
        for row, column, words in places:
            x, y = column * APART[0], row * APART[1]
            corner = (x - WIDTH / 2, y - HEIGHT / 2)
            ax.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0.08", **look))
            ax.text(x, y, words, fontsize=8.5, color="0" if on else "0.45", **middle)
    arrow = {"arrowstyle": "-|>", "color": "0.3", "lw": 1.2}
    for row, along in ARROWS.items():
        for column, (symbol, kind) in enumerate(item.split() for item in along.split(", ")):
            x, y = (column + 0.5) * APART[0], row * APART[1]
            ax.annotate("", (x + 0.19, y), (x - 0.19, y), arrowprops=arrow)
            ax.text(x, y + 0.36, f"${symbol}$", ha="center", va="bottom", fontsize=9)
            ax.text(x, y - 0.36, shapes[kind], ha="center", va="top", fontsize=6.5, color="0.35")
    ax.annotate("", (4.4, -0.36), (6.1, -0.36), arrowprops=arrow | {"connectionstyle": "arc3,rad=-0.3"})
    ax.text(5.25, -0.76, "again for $t = 9, 8, \\ldots, 0$", fontsize=8, **middle)
    ax.text(-0.6, 2.03, "Training: normal brains, damaged on purpose", **bold)
    ax.text(-0.6, 0.58, "Inference: nothing is noised", **bold)
    return fig
