"""The processes that share a training or a folder of scans."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """The processes that `accelerate launch` or torchrun has started; without them just this one.

    They wait for each other for as long as it takes: one alone encodes and validates, and scans are of
    different sizes.
    """
    several_on_cpu = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available()
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    return PartialState(cpu=several_on_cpu or forced, timeout=timedelta(days=7))
