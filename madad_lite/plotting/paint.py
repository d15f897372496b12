"""A slice to paint a lesion on, in the browser; needs anywidget (the extra `paint`). Use
`widgets.paint_and_heal`, which takes sliders where it is missing.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path

import anywidget
import numpy as np
import torch
import traitlets

from madad_lite import plotting

from .canvas import grain, one_slice, png, still


def to_bytes(values) -> np.ndarray:
    """[-1, 1] -> 0 ... 255, as the browser has a slice."""
    return np.rint((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)


def text_of(array) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=np.uint8).tobytes()).decode()


class Canvas(anywidget.AnyWidget):
    """Paint with mouse or finger; the button sends the slice to `heal`, whose result is drawn beside it.

    heal: slice (1, 1, H, W) in [-1, 1] -> the pipeline's output. image: (H, W) in [-1, 1]. brain: (H, W), where
    one can paint. threshold: in [0, 1], where the Dice coefficient is counted first; the browser has a slider.
    `out` and `marks` are the last output and (H, W) bool what was painted, None before.
    """

    _esm = Path(__file__).with_suffix(".js")
    size = traitlets.List().tag(sync=True)
    scan = traitlets.Unicode().tag(sync=True)
    brain = traitlets.Unicode().tag(sync=True)
    grain = traitlets.Unicode().tag(sync=True)
    threshold = traitlets.Float().tag(sync=True)
    answer = traitlets.Dict().tag(sync=True)  # number, seconds, score and picture as text; or number, error

    def __init__(self, heal: Callable, image, brain, threshold: float):
        image, brain = one_slice(image), one_slice(brain, "brain") > 0
        super().__init__(
            size=list(image.shape),
            scan=text_of(to_bytes(image)),
            brain=text_of(brain),
            grain=text_of(np.clip(128 + 50 * grain(image.shape), 0, 255)),
            threshold=threshold,
        )
        self.heal, self.image, self.out, self.marks = heal, image, None, None
        self.on_msg(self._painted)

    def _painted(self, _widget, message: dict, _buffers) -> None:
        """The browser's {slice, marks}, (H * W) bytes each, as text."""
        number = self.answer.get("number", 0) + 1
        try:
            start = time.perf_counter()
            slice_, marks = (
                np.frombuffer(base64.b64decode(message[k]), np.uint8).reshape(self.size)
                for k in ("slice", "marks")
            )
            # what was not painted keeps the scan's own values, not their rounding
            values = np.where(slice_ == to_bytes(self.image), self.image, slice_ / 127.5 - 1)
            self.out = self.heal(torch.tensor(values, dtype=torch.float32)[None, None])
            self.marks = marks > 0
            self.answer = {
                "number": number,
                "seconds": time.perf_counter() - start,
                "score": text_of(np.floor(255 * np.clip(one_slice(self.out.anomaly_map), 0, 1))),
                "picture": base64.b64encode(self._drawn()).decode(),
            }
        except Exception as error:  # in a widget's callback it would vanish
            self.answer = {"number": number, "error": f"{type(error).__name__}: {error}"}

    def _drawn(self) -> bytes:
        if self.out is None:
            return png(plotting.slice_grid(self.image, titles=["paint here"]))
        return png(plotting.healing_figure(self.out, 0, self.marks, columns=2))

    def _repr_mimebundle_(self, **kwargs):
        return still(super()._repr_mimebundle_(**kwargs), self._drawn())
