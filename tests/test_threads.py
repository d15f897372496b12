"""PyTorch's threads: one a free core."""

import os
import sys
from types import SimpleNamespace

import psutil
import pytest

from madad_lite.threads import free_cores, use_free_cores


@pytest.fixture
def machine(monkeypatch):
    """machine(shares in percent, allowed cores) makes it so."""

    def make(busy, allowed):
        monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: busy)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed), raising=False)

    return make


@pytest.mark.parametrize(
    "busy, allowed, free",
    [
        ([0.0, 3.0], [0, 1], 2),
        ([100.0, 2.0], [0, 1], 1),
        ([100.0, 100.0], [0, 1], 1),  # one all the same
        ([50.0, 45.0, 0.0, 0.0], [0, 1, 2, 3], 3),  # two halves are one core
        ([0.0, 0.0, 0.0, 100.0], [0, 3], 1),  # the others are not for this process
    ],
)
def test_busy_cores_do_not_count(machine, busy, allowed, free):
    machine(busy, allowed)
    assert free_cores() == free


def test_torch_gets_one_thread_a_free_core_unless_the_user_has_chosen(machine, monkeypatch):
    machine([0.0, 100.0, 0.0, 0.0], range(4))
    chosen = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=chosen.append))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    use_free_cores()
    assert os.environ["OMP_NUM_THREADS"] == "7" and chosen == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    use_free_cores()
    assert os.environ["OMP_NUM_THREADS"] == "3" and chosen == [3]
