"""How a scan is healed and scored: the one place of these defaults. Light: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf, nan
from numbers import Integral, Real

from madad_lite.errors import Refused


@dataclass(frozen=True)
class DetectionSettings:
    """Settings of the reverse process and the score. Refused for what is out of range."""

    num_inference_steps: int = 10  # reverse steps, 1..T; the paper's ablation has 2, 5 and 10
    eta: float = 0.5  # randomness of the reverse process, 0..1; 0: deterministic DDIM; the authors use 0.5
    mask_threshold: float = 0.5  # a cell is replaced where its chance of "noised" is above
    gamma: float | None = 0.2  # differences are clipped here, in units of d^p; None: only scaled to 0..1
    squared: bool = True  # p = 2, the paper's; False: p = 1
    sigma: float = 2.0  # Gaussian smoothing of the map, in pixels; 0: none
    reference: str = "reconstruction"  # what the healed slice is compared with; "input": the scan itself
    # ours, not the paper's, see extensions/
    weighted: bool = False  # differences count as much as the network took the cell for noise
    mask_floor: float = 0.0  # weighted: the share of a difference that counts all the same; 1: all of it
    intensity_weight: float = 0.0  # voxels as bright, on T1 as dark, as lesions mostly are count more
    neighbour_sigma: float = 0.0  # mm over which neighbouring slices decide together; 0: each alone

    @classmethod
    def of(cls, values: Mapping, **changes) -> DetectionSettings:
        """Those of a mapping that holds others too, such as a pipeline's config. Refused: out of range."""
        return cls(**{f.name: values[f.name] for f in fields(cls)} | changes)

    def reverse(self) -> dict:
        """What diffusion.selective_reverse needs of them."""
        steps = self.num_inference_steps
        return dict(num_inference_steps=steps, eta=self.eta, threshold=self.mask_threshold)

    def __post_init__(self) -> None:
        limits = {
            "eta": 1,
            "mask_threshold": 1,
            "mask_floor": 1,
            "sigma": 1e3,
            "intensity_weight": 1e6,
            "neighbour_sigma": 1e3,
        }
        for name, high in limits.items():
            value = as_float(getattr(self, name))
            if not 0 <= value <= high:  # nan neither
                raise Refused(f"{name} lies between 0 and {high:g}, not {getattr(self, name)!r}")
            object.__setattr__(self, name, value)  # the class is frozen
        steps = self.num_inference_steps
        if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1:
            raise Refused(f"num_inference_steps is a whole number from 1 on, not {steps!r}")
        object.__setattr__(self, "num_inference_steps", int(steps))
        if self.gamma is not None:
            if not 0 < as_float(self.gamma) < inf:
                raise Refused(f"gamma must be positive, or None for no clipping, not {self.gamma!r}")
            object.__setattr__(self, "gamma", as_float(self.gamma))
        if not isinstance(self.reference, str) or self.reference not in ("input", "reconstruction"):
            raise Refused(f"reference={self.reference!r}: must be one of reconstruction, input")
        for name in ("squared", "weighted"):
            if not isinstance(getattr(self, name), bool):
                raise Refused(f"{name} is true or false, not {getattr(self, name)!r}")


def check_steps(num_inference_steps: int, T: int) -> None:
    """ValueError: more reverse steps than the T of the schedule, or fewer than one."""
    if not 1 <= num_inference_steps <= T:
        raise Refused(f"num_inference_steps lies between 1 and {T}, not {num_inference_steps}")


def as_float(value: object) -> float:
    """A real number as a float; NaN, which lies in no range, for anything else and for what is too large."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else nan
    except OverflowError:
        return nan


# Two readings of the method, as arguments of `scoring.image_difference`. `reference` differs too: the paper compares
# the healed slice with the scan itself, the authors' code with the decoded latent before healing, so that
# what the autoencoder alone loses does not count. Their sigma belongs to slices of 256 pixels; on 96 pixels
# about 2 smooths as many mm.
PAPER = {"gamma": 0.2, "squared": True}
AUTHORS = {"gamma": 0.25, "squared": False, "sigma": 5.0}
