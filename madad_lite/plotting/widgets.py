"""Sliders and a canvas for the notebooks. Each function returns a widget that redraws a figure of `plotting`
when a value changes.

The picture is an `Image` widget that holds a PNG: the same in Jupyter and Colab (ipywidgets 7.7 and 8),
without any captured cell output, which could be drawn twice. Where no kernel runs, the picture of the first
values stands for the widget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import ipywidgets
import numpy as np
import torch

from madad_lite import plotting
from madad_lite.masking import random_patch_mask

from .canvas import grain, one_slice, png, stack, still

WHILE_DRAGGING = 0.1  # seconds: pictures drawn faster than this follow the mouse
_WIDE = {"width": "420px"}
_STYLE = {"description_width": "130px"}


class Explorer(ipywidgets.VBox):
    """Controls above a picture: `controls` by name, `picture` an Image with a PNG."""

    def _repr_mimebundle_(self, **kwargs):  # not asked for by ipywidgets 7, where widgets are always alive
        return still(super()._repr_mimebundle_(**kwargs), self.picture.value)


def explorer(draw: Callable, **controls: ipywidgets.Widget) -> Explorer:
    """The controls with a picture below them: draw(name=value, ...) is called now and whenever a value
    changes.

    draw returns a figure. The controls and the picture are children of the returned box, in this order; the
    keyword arguments are also kept as `box.controls`, the picture as `box.picture`. Where drawing takes less than
    WHILE_DRAGGING, the picture follows a slider while it is dragged; else it waits until the mouse lets go.
    """
    # as high as its width asks for: stretched, a picture blurs
    picture = ipywidgets.Image(format="png", layout={"align_self": "flex-start", "max_width": "100%"})

    def redraw(_change=None):
        picture.value = png(draw(**{name: control.value for name, control in controls.items()}))

    redraw()  # the first time there is more to do than later: fonts, imports
    start = time.perf_counter()
    redraw()
    fast = time.perf_counter() - start < WHILE_DRAGGING
    for control in controls.values():
        control.observe(redraw, names="value")
        if control.has_trait("continuous_update"):
            control.continuous_update = fast
    box = Explorer([*controls.values(), picture])
    box.controls, box.picture = controls, picture
    return box


def _int_slider(text: str, value: int, low: int, high: int):
    return ipywidgets.IntSlider(value, min=low, max=high, description=text, style=_STYLE, layout=_WIDE)


def _float_slider(text: str, value: float, low: float, high: float, step: float):
    return ipywidgets.FloatSlider(
        value,
        min=low,
        max=high,
        step=step,
        description=text,
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


def patient_explorer(patients: Mapping[str, tuple], threshold: float) -> Explorer:
    """Choose a patient with one click, a slice and a threshold; calls `plotting.patient_figure`, where Dice, false
    alarms and the point on the curve of precision and recall belong to the whole volume.

    patients: {name: (out, truth)}, the pipeline's output of N slices and masks (N, H, W). threshold: in [0, 1].
    """
    slices = max(len(out.image) for out, _ in patients.values()) - 1
    first = next(iter(patients.values()))
    begin = int(stack(first[0].anomaly_map).sum((1, 2)).argmax())

    def draw(patient: str, slice: int, threshold: float):
        out, truth = patients[patient]
        return plotting.patient_figure(out, truth, min(slice, len(out.image) - 1), threshold)

    return explorer(
        draw,
        patient=ipywidgets.ToggleButtons(options=list(patients), description="patient", style=_STYLE),
        slice=_int_slider("slice", begin, 0, slices),
        threshold=_float_slider("threshold", threshold, 0.0, 1.0, 0.01),
    )


def dab(image, brain, row, column, radius, grey, *, softness=0.3, texture=0.0):
    """One dab of the brush: the painted slice (H, W) and where it counts as painted, (H, W) bool.

    image: (H, W) in [-1, 1]. brain: (H, W), outside of it nothing is painted. row, column, radius: pixels. grey: in
    [-1, 1]. softness: in [0, 1], the share of the radius over which the paint fades out; a pixel counts as painted
    where at least half of it is paint. texture: 1 adds Gaussian noise of spread 0.3.
    """
    image, brain = one_slice(image), one_slice(brain, "brain") > 0
    i, j = np.indices(image.shape)
    distance, inner = np.hypot(i - row, j - column), radius * (1 - softness)
    u = np.where(distance <= inner, 1.0, np.clip((radius - distance) / max(radius - inner, 1e-9), 0, 1))
    cover = u * u * (3 - 2 * u) * brain
    paint = grey + 0.3 * texture * grain(image.shape)
    return np.clip((1 - cover) * image + cover * paint, -1, 1).astype(np.float32), cover >= 0.5


def painter(pipe, brain) -> Callable:
    """slice (1, 1, H, W) -> the pipeline's output, with the same draws every time."""
    brain = torch.as_tensor(one_slice(brain, "brain") > 0)[None, None]

    def heal(x0):
        return pipe(x0, brain=brain, generator=torch.Generator().manual_seed(0), progress=False)

    return heal


def paint_and_heal(pipe, image, brain, *, canvas: bool | None = None):
    """Paint a lesion and heal it: a canvas for mouse and finger, or sliders where anywidget is not installed.

    pipe: a MadAdPipeline. image: (H, W) a slice in [-1, 1]. brain: (H, W). canvas: None takes it where it is
    installed, False takes the sliders.
    """
    heal, threshold = painter(pipe, brain), pipe.config.decision_threshold or 0.5
    if canvas is not False:
        try:
            from .paint import Canvas

            return Canvas(heal, image, brain, threshold)
        except ImportError:
            if canvas:
                raise
    return paint_sliders(heal, image, brain, threshold)


def paint_sliders(heal: Callable, image, brain, threshold: float) -> Explorer:
    """One dab, placed with sliders; calls `plotting.healing_figure`. The arguments of `paint.Canvas`."""
    image = one_slice(image)
    height, width = image.shape

    def draw(row, column, radius, grey, softness, texture):
        painted, marks = dab(image, brain, row, column, radius, grey, softness=softness, texture=texture)
        out = heal(torch.from_numpy(painted)[None, None])
        return plotting.healing_figure(out, 0, marks, threshold)

    return explorer(
        draw,
        row=_int_slider("row", height // 2, 0, height - 1),
        column=_int_slider("column", width // 3, 0, width - 1),
        radius=_float_slider("radius, pixels", 6.0, 1.0, 16.0, 0.5),
        grey=_float_slider("grey", -0.8, -1.0, 1.0, 0.05),
        softness=_float_slider("softness", 0.3, 0.0, 1.0, 0.05),
        texture=_float_slider("texture", 0.0, 0.0, 1.0, 0.05),
    )
