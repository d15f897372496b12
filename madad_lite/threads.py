"""As many threads for PyTorch as there are free cores.

PyTorch's threads wait for each other at the end of every operation, and spin while they wait. With one of two cores
busy, a training step of the smallest denoiser took 1.3 s in two threads and 0.4 s in one. Passive waiting
(OMP_WAIT_POLICY) did not mend it, and cost more than it gained where both cores were free.
"""

from __future__ import annotations

import os
import sys


def free_cores(seconds: float = 0.2) -> int:
    """How many of the cores that this process may use are idle, measured for so many seconds; at least 1."""
    import psutil

    busy = psutil.cpu_percent(seconds, percpu=True)  # one share in percent a core
    everywhere = range(len(busy))
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else everywhere
    return max(1, round(sum(1 - busy[core] / 100 for core in everywhere if core in allowed)))


def use_free_cores() -> None:
    """One thread a free core for this process and those that it starts. OMP_NUM_THREADS decides where it is set.

    Sums in another number of threads differ in the last bits: set it to have runs that can be compared bit by bit.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    threads = free_cores()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
