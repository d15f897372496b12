"""On a GPU: the step of the paper's network, a training of it with its loader, and a scan's detection.

`--quick` runs the same code with the smallest sizes on whatever there is, also a CPU: to see that it runs.
"""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch

from benchmarks.measuring import Report, interleaved, medians, seconds
from benchmarks.speed_detection import write_scans
from benchmarks.speed_training import Case, FastTraining, compared, half, matmul_gflops
from madad_lite import MadAdPipeline
from madad_lite.training.loader import to_device, worker_count

BATCHES = 96, 48, 24, 12  # the paper's, and what fits where it does not


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def synchronisations(fast: FastTraining, case: Case) -> int | None:
    """How often a step waits for the GPU, as PyTorch counts it. None on a CPU."""
    batch = next(case.batches)
    fast.step(batch)  # the first one makes the optimiser's state
    if case.device.type != "cuda":
        fast.step(batch)
        return None
    wait(case.device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fast.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchron" in str(w.message) for w in caught)


def with_loader(fast: FastTraining, case: Case, steps: int) -> dict[str, float]:
    """Seconds a step: of one batch that is on the device already, and of batches that the loader draws."""
    there = to_device(next(case.batches), case.device)

    def run(drawn) -> None:
        for _ in range(steps):
            fast.step(drawn())
        wait(case.device)

    ways = {"one batch, on the device": lambda: there, "batches of the loader": partial(next, case.batches)}
    times = medians(interleaved({k: partial(run, way) for k, way in ways.items()}, 3))
    return {k: t / steps for k, t in times.items()}


def detection(report: Report, device: torch.device, spacing: float) -> None:
    """A scan, prepared before, through the pipeline."""
    with tempfile.TemporaryDirectory() as folder:
        scan = write_scans(Path(folder), (spacing,))[spacing]
        prepared = MadAdPipeline.from_pretrained("t1").prepare(scan, register=False)
    rows = []
    for dtype in dict.fromkeys((torch.float32, half() if device.type == "cuda" else torch.float32)):
        pipe = MadAdPipeline.from_pretrained("t1", torch_dtype=dtype).to(device)
        run = partial(pipe, prepared, progress=False)
        run()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = min(seconds(run) for _ in range(3))
        peak = torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else None
        rows.append({"precision": str(dtype).removeprefix("torch."), "seconds": took, "GPU memory, MB": peak})
    report.table(f"{len(prepared.image)} slices from image to anomaly map, shipped weights", rows)


def measure(quick: bool = False, compiled: bool = False) -> Report:
    report, faster, share, waits, lost = Report("gpu"), None, None, None, None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    why = "no GPU here" if device.type == "cpu" else "too large for this GPU"
    sizes = ("nano", "nano", 64) if quick else ("L", "paper", 256)
    for batch in (2,) if quick else BATCHES if device.type == "cuda" else ():
        try:
            case = Case(sizes[0], sizes[1], batch, sizes[2], device)
            title = f"{sizes[0]}, batch {batch}, slices of {sizes[2]} x {sizes[2]}"
            times = compared(report, case, title, 1 if quick else 5, compiled)
            fast = case.fast()
            waits, loops = synchronisations(fast, case), with_loader(fast, case, 2 if quick else 20)
        except torch.cuda.OutOfMemoryError:
            report.note(f"A batch of {batch}, plain and ours beside each other, does not fit on this GPU.")
            case = fast = None  # what did not fit makes room
            torch.cuda.empty_cache()
            continue
        best = min(v for k, v in times.items() if k.startswith("ours"))
        limit = matmul_gflops(device, half() if device.type == "cuda" else torch.float32)
        faster, share = times["plain, encoder in the step"] / best, 100 * case.gflop() / best / limit
        lost = 100 * (loops["batches of the loader"] / loops["one batch, on the device"] - 1)
        report.table(
            f"{title}: {worker_count(device)} workers draw",
            [{"step": k, "seconds": t} for k, t in loops.items()],
        )
        detection(report, device, 4.0 if quick else 1.0)
        break
    report.target("L step on a GPU, batch 96", faster, ">=", 4, "times as fast", why)
    report.target("share of the half-precision matrix rate, L on a GPU", share, ">=", 40, "%", why)
    report.target("waits for the GPU in a step", None if waits is None else float(waits), "<=", 0, "", why)
    report.target("time that the loader adds to a step", lost, "<=", 5, "%", why)
    return report
