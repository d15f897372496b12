"""Sliders for the notebooks. Each function returns a widget that redraws a figure of `plotting` when a value
changes.

The picture is an `Image` widget that holds a PNG: the same in Jupyter and Colab (ipywidgets 7.7 and 8),
without any captured cell output, which could be drawn twice. A reader without a kernel sees no widget; the
notebooks therefore show a figure of the same plotting function beside each one.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import ipywidgets
import numpy as np
import torch

from madad_lite import plotting
from madad_lite.masking import random_patch_mask

_WIDE = {"width": "420px"}
_STYLE = {"description_width": "130px"}


def png(figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def explorer(draw: Callable, **controls: ipywidgets.Widget) -> ipywidgets.VBox:
    """The controls with a picture below them: draw(name=value, ...) is called now and whenever a value
    changes.

    draw returns a figure. The controls and the picture are children of the returned box, in this order; the
    keyword arguments are also kept as `box.controls`, the picture as `box.picture`.
    """
    picture = ipywidgets.Image(format="png")

    def redraw(_change=None):
        picture.value = png(draw(**{name: control.value for name, control in controls.items()}))

    redraw()
    for control in controls.values():
        control.observe(redraw, names="value")
    box = ipywidgets.VBox([*controls.values(), picture])
    box.controls, box.picture = controls, picture
    return box


def _int_slider(text: str, value: int, low: int, high: int):
    # Only the value where the mouse is let go is drawn: over a slow connection (Colab) each drawing takes a
    # moment.
    return ipywidgets.IntSlider(
        value, min=low, max=high, description=text, continuous_update=False, style=_STYLE, layout=_WIDE
    )


def _float_slider(text: str, value: float, low: float, high: float, step: float):
    return ipywidgets.FloatSlider(
        value,
        min=low,
        max=high,
        step=step,
        description=text,
        continuous_update=False,
        readout_format=".2f",
        style=_STYLE,
        layout=_WIDE,
    )


def step_slider(out, index: int, decoded) -> ipywidgets.VBox:
    """Walk through the reverse process on slice `index`; calls `plotting.reverse_step`, with its arguments.

    The slider counts the S steps from 1.
    """
    steps = len(out.mask_probability)
    return explorer(
        lambda step: plotting.reverse_step(out, index, step - 1, decoded),
        step=_int_slider("reverse step", 1, 1, steps),
    )


def threshold_slider(image, score, truth=None, threshold: float = 0.5) -> ipywidgets.VBox:
    """Cut the anomaly map of one slice at a threshold and watch hits, false alarms, misses and the Dice
    coefficient.

    image, score, truth: (H, W) or (1, H, W), score in [0, 1]; calls `plotting.threshold_figure`.
    """
    return explorer(
        lambda threshold: plotting.threshold_figure(image, score, threshold, truth),
        threshold=_float_slider("threshold", threshold, 0.0, 1.0, 0.01),
    )


def slice_browser(out, truth=None, index: int | None = None) -> ipywidgets.VBox:
    """Leaf through the slices of a scan; calls `plotting.detection_figure`.

    out: the pipeline's output of N slices. truth: (N, H, W) or (N, 1, H, W) lesion masks, if known. index:
    the slice to begin with (default: the one with the highest summed score).
    """
    if index is None:
        index = int(np.asarray(out.anomaly_map.sum(dim=(1, 2, 3))).argmax())
    return explorer(
        lambda index: plotting.detection_figure(out, index, None if truth is None else truth[index]),
        index=_int_slider("slice", index, 0, len(out.image) - 1),
    )


def mask_explorer(
    size: tuple[int, int] = (32, 32), *, brain=None, image=None, examples: int = 6, seed: int = 0
) -> ipywidgets.VBox:
    """Play with the random patch masks of the training; calls `masking.random_patch_mask` and
    `plotting.mask_examples`.

    size: (h, w) of the latent. brain: (1, 1, h, w) or (h, w), the cells that may be noised. image: (H, W), a
    slice to draw the cells over. examples: how many masks are drawn at once.
    """
    if brain is not None:
        brain = torch.as_tensor(brain).reshape(1, 1, *size)

    def draw(ratio: float, side: tuple[int, ...], seed: int):
        # The sides are drawn once a batch: each example is a batch of its own, so that they differ here.
        generator = torch.Generator().manual_seed(seed)
        share = {(1, 2, 4, 8): (0.2, 0.3, 0.3, 0.2)}.get(side, (1.0,))
        masks = [
            random_patch_mask(
                1,
                size,
                brain=brain,
                generator=generator,
                sides=side,
                side_probabilities=share,
                max_ratio=ratio,
            )
            for _ in range(examples)
        ]
        return plotting.mask_examples(torch.cat(masks), brain=brain, images=image)

    sides = [("1, 2, 4 or 8 (as in training)", (1, 2, 4, 8))] + [(f"always {s}", (s,)) for s in (1, 2, 4, 8)]
    return explorer(
        draw,
        ratio=_float_slider("highest share", 0.4, 0.0, 1.0, 0.05),
        side=ipywidgets.Dropdown(options=sides, description="patch sides", style=_STYLE, layout=_WIDE),
        seed=_int_slider("seed", seed, 0, max(20, seed)),
    )
