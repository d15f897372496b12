"""Batches, and what is drawn for them, ready before a GPU asks: workers draw masks, noise and augmentation on the
CPU while it computes, into pinned memory, which it fetches without anybody waiting.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

Batch = dict[str, torch.Tensor]  # of n samples each
SHARED = "/dev/shm"  # through which workers hand over batches; Docker gives it 64 MB
ENOUGH = 2**30  # bytes of it: some batches of 96 slices of 256 x 256


class Drawn(Dataset):
    """item (number, rows): the batch of these rows of a dataset, after draw(batch, number)."""

    def __init__(self, dataset: Dataset, draw: Callable[[Batch, int], Batch]):
        self.dataset, self.draw = dataset, draw

    def __getitem__(self, key: tuple[int, Sequence[int]]) -> Batch:
        number, rows = key
        return self.draw(default_collate([self.dataset[i] for i in rows]), number)


def worker_count(device: torch.device, processes: int = 1) -> int:
    """How many workers draw for each of so many training processes: up to 4 beside a GPU. 0 where none can be, and
    for a CPU, which has nothing to do meanwhile.
    """
    if device.type != "cuda" or "fork" not in multiprocessing.get_all_start_methods():
        return 0
    if not os.path.isdir(SHARED) or shutil.disk_usage(SHARED).free < ENOUGH * processes:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, max(1, cores // processes - 1))


def drawn_ahead(
    dataset: Dataset,
    batches: Iterable[tuple[int, Sequence[int]]],
    draw: Callable[[Batch, int], Batch],
    device: torch.device,
    processes: int = 1,
) -> DataLoader:
    """The batches (number, rows) of a dataset, in their order, after draw(batch, number), on the CPU.

    draw: all that is random in it must come from the number, and it must not use the GPU. Then the batches are
    the same with any number of workers.
    """
    workers = worker_count(device, processes)
    return DataLoader(
        Drawn(dataset, draw),
        batch_size=None,  # an item is a batch already
        sampler=batches,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # others cannot be sent a local function
        pin_memory=device.type == "cuda",
    )


def to_device(batch: Batch, device: torch.device, rows: slice = slice(None)) -> Batch:
    """These rows of a batch on the device; out of pinned memory nobody waits for them."""
    return {k: v[rows].to(device, non_blocking=True) for k, v in batch.items()}
