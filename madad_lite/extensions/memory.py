"""How many slices fit in memory at once, and memory that is given back."""

from __future__ import annotations

import ctypes

import psutil
import torch
from diffusers import AutoencoderKL

from madad_lite.autoencoder import folding


def fitting_batch(autoencoder: AutoencoderKL, size: int, device: torch.device) -> int:
    """Slices whose widest layer, a dozen times over, fits in half of the free memory (ours).

    size: of a slice, pixels along one side. On a CPU 1 GiB is used at most. Returns 1..256.
    """
    width = autoencoder.config.block_out_channels[0] / folding(autoencoder) ** 2
    one = size**2 * width * 4 * 12  # bytes
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0] / 2
    else:
        room = min(2**30, psutil.virtual_memory().available / 2)
    return int(min(256, max(1, room // one)))


def give_back() -> None:
    """Return what was freed to the system (ours). glibc keeps pieces of less than 32 MB, which after a reverse process
    are hundreds of MB, and a large scan needs as much again. Elsewhere nothing is done.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        pass
