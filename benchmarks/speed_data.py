"""Reading the training data as the set grows, and preparing scans with one and two processes."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np

from benchmarks.measuring import Report, in_new_process, interleaved, medians, own_memory, seconds
from madad_lite.authors.png_export import export_png
from madad_lite.simulation.cohort import write_cohort
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.folder import Manifest, prepare_folder

GROWTH = (1, 4, 16)
BATCH = 32


def repeated_latents(folder: Path, slices: int) -> Path:
    """A latent cache of so many random latents of 4 x 24 x 24."""
    folder.mkdir()
    (folder / "latents.json").write_text('{"variants": 1}')
    rng = np.random.default_rng(0)
    some = rng.standard_normal((500, 4, 24, 24)).astype(np.float16)
    for name, values in {"mean": some, "std": np.abs(some), "brain": some[:, :1] > 0}.items():
        stored = np.lib.format.open_memmap(
            folder / f"train-{name}.npy", "w+", values.dtype, (slices, *values.shape[1:])
        )
        for i in range(0, slices, len(values)):
            stored[i : i + len(values)] = values[: slices - i]
    return folder


def repeated_scans(prepared: Path, folder: Path, times: int) -> Path:
    """A prepared folder in which every scan is there `times` over, as links."""
    manifest = Manifest.load(prepared)
    (folder / "scans").mkdir(parents=True)
    entries = []
    for entry in manifest.scans():
        for k in range(times):
            name = f"{entry['scan_id']}-{k}"
            (folder / "scans" / name).symlink_to(prepared / "scans" / entry["scan_id"])
            entries.append(entry | {"scan_id": name, "split": "train"})
    (folder / "manifest.json").write_text(json.dumps(manifest.to_dict() | {"scans": entries}))
    return folder


def epoch(kind: str, folder: str) -> None:
    """One epoch in random order, as the training loop reads it; prints seconds, slices and the memory that it
    took.
    """
    from torch.utils.data import DataLoader

    from madad_lite.training.latent_cache import LatentDataset
    from madad_lite.training.run_folder import BatchOrder

    dataset = LatentDataset(folder, "train") if kind == "latents" else SliceDataset(folder, "train")
    batches = len(dataset) // BATCH
    loader = DataLoader(dataset, batch_sampler=BatchOrder(len(dataset), BATCH, 0, 0, batches))
    next(iter(loader))  # what comes once
    before, most = own_memory(), 0

    def read() -> None:
        nonlocal most
        for number, _ in enumerate(loader):
            if number % 16 == 0 and before is not None:
                most = max(most, own_memory())

    took = seconds(read)
    print(
        json.dumps(
            {"seconds": took, "slices": batches * BATCH, "memory": None if before is None else most - before}
        )
    )


def png_epoch(folder: Path) -> float:
    """Seconds a slice when image and brain mask are PNG files, as the authors' loader reads them."""
    from PIL import Image

    files = sorted(folder.rglob("*_T1.png"))

    def read() -> None:
        for file in files:
            image = np.asarray(Image.open(file), np.float32) / 127.5 - 1
            brain = np.asarray(Image.open(file.with_name(file.name.replace("_T1", "_brainmask")))) > 0
            assert image.shape == brain.shape

    return seconds(read) / len(files)


def growing(report: Report, kind: str, folders: dict[int, Path]) -> None:
    rows = []
    code = "import sys; from benchmarks.speed_data import epoch; epoch(*sys.argv[1:])"
    for times, folder in folders.items():
        result = in_new_process(code, kind, str(folder))
        memory = None if result["memory"] is None else result["memory"] / 1e6
        rows.append(
            {
                "set": f"{times}x",
                "slices": result["slices"],
                "seconds an epoch": result["seconds"],
                "microseconds a slice": result["seconds"] / result["slices"] * 1e6,
                "own memory, MB": memory,
            }
        )
    report.table(f"An epoch of {kind}, the set repeated", rows)
    what = f"time of a slice in an epoch of {kind}, 16x set against 1x"
    report.target(
        what, rows[-1]["microseconds a slice"] / rows[0]["microseconds a slice"], "<=", 1.25, "times"
    )
    report.target(
        f"own memory of an epoch of {kind}, 16x set", rows[-1]["own memory, MB"], "<=", 50, "MB", "Linux only"
    )


def measure(quick: bool = False) -> Report:
    report = Report("data")
    with tempfile.TemporaryDirectory() as name, redirect_stderr(StringIO()):
        root = Path(name)
        subjects = 2 if quick else 8
        cohort = write_cohort(
            root / "cohort", normal=subjects, patients=0, spacing=4.0 if quick else 2.0, progress=False
        )

        def prepare(workers: int) -> None:
            shutil.rmtree(root / f"slices{workers}", ignore_errors=True)
            options = dict(register=True, fractions=(1, 0, 0), workers=workers, progress=False)
            prepare_folder(cohort, root / f"slices{workers}", **options)

        ways = {f"{k} process{'es' * (k > 1)}": partial(prepare, k) for k in (1, 2)}
        times = medians(interleaved(ways, 1 if quick else 3, warm_up=False))
        rows = [{"workers": k, "seconds": t, "seconds a scan": t / subjects} for k, t in times.items()]
        report.table(f"Preparing {subjects} scans of 2 mm, registration included", rows)
        report.target(
            "preparing with 2 processes against 1",
            rows[0]["seconds"] / rows[1]["seconds"],
            ">=",
            1.6,
            "times as fast",
        )

        base = 200 if quick else 2000
        latents = {k: repeated_latents(root / f"latents{k}", base * k) for k in GROWTH}
        growing(report, "latents", latents)
        scans = {k: repeated_scans(root / "slices1", root / f"scans{k}", k) for k in GROWTH}
        growing(report, "slices", scans)
        export_png(root / "slices1", root / "png")
        plain = png_epoch(root / "png")
        ours = report.content["tables"][-1]["rows"][0]["microseconds a slice"] / 1e6
        report.note(
            "A slice and its brain mask from PNG files, as the authors' loader reads them: "
            f"{plain * 1e6:.0f} microseconds, not yet batched; "
            f"from a prepared folder, batched as tensors: {ours * 1e6:.0f}."
        )
    report.note(
        "Own memory is RssAnon, what the process holds beside pages of files: those of a memory-mapped cache "
        "count as resident too, but the system takes them back whenever it needs them."
    )
    return report
