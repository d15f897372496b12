"""One whole scan, file to files, with the shipped t1 weights: stage by stage, as scans grow, and against a
plain loop.
"""

from __future__ import annotations

import json
import tempfile
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.measuring import Report, in_new_process, interleaved, medians, peak_memory

SPACINGS = (4.0, 2.0, 1.0, 0.5)  # mm: every scan has eight times the voxels of the one before
CODE = "import sys; from benchmarks.speed_detection import one_scan; one_scan(*sys.argv[1:])"


def write_scans(folder: Path, spacings: tuple[float, ...]) -> dict[float, Path]:
    """Simulated patients, stripped, tilted and moved, so that they have to be registered."""
    from madad_lite.scans.nifti import save_nifti
    from madad_lite.simulation.cohort import simulate_subject

    tilt = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.15, 0.0), [12.0, -8.0, 10.0])
    paths = {}
    for spacing in spacings:
        if spacing >= 1:
            image = simulate_subject(5, lesion="stroke", volume_ml=40.0, spacing=spacing).images["t1"]
            data, affine = np.asarray(image.dataobj), image.affine
        else:  # simulating it would take minutes: every voxel of the scan before becomes eight
            for axis in range(3):
                data = data.repeat(2, axis)
            affine = affine @ np.diag([0.5, 0.5, 0.5, 1.0])
        paths[spacing] = folder / f"scan_{spacing:g}mm.nii.gz"
        save_nifti(nib.Nifti1Image(data, tilt @ affine), paths[spacing])
    return paths


def one_scan(scan: str, out: str) -> None:
    """Detect in this process; prints {"stages": {name: seconds}, "voxels", "memory": peak bytes}."""
    stages: dict[str, float] = {}

    def timed(stage: str, owner, name: str) -> None:
        """Count the time of owner.name to a stage, and not to that from which it is called."""
        function = getattr(owner, name)

        def wrapped(*args, **kwargs):
            start, within = time.perf_counter(), sum(stages.values())
            result = function(*args, **kwargs)
            took = time.perf_counter() - start - (sum(stages.values()) - within)
            stages[stage] = stages.get(stage, 0.0) + took
            return result

        setattr(owner, name, wrapped)

    start = time.perf_counter()
    from madad_lite import pipeline, scoring
    from madad_lite.detection import many_scans
    from madad_lite.scans import output, prepare

    stages["import"] = time.perf_counter() - start
    pipe_class = pipeline.MadAdPipeline
    start = time.perf_counter()
    pipe = pipe_class.from_pretrained("t1")
    stages["load weights"] = time.perf_counter() - start
    for stage, owner, name in (
        ("read and prepare", pipeline, "prepare_volume"),
        ("register", prepare, "_register"),
        ("encode", pipe_class, "encode"),
        ("reverse process", pipeline, "reverse_in_groups"),
        ("decode", pipe_class, "decode"),
        ("score", scoring, "image_difference"),
        ("return to the scan's grid", output, "return_to_scan"),
        ("write files and report", many_scans, "_write"),
    ):
        timed(stage, owner, name)
    start, before = time.perf_counter(), sum(stages.values())
    failed = many_scans.detect([scan], out, weights=pipe, progress=False, force=True)
    assert not failed, failed
    stages["all else"] = time.perf_counter() - start - (sum(stages.values()) - before)
    shape = nib.load(many_scans.outputs(scan, out)["anomaly"]).shape
    print(json.dumps({"stages": stages, "voxels": int(np.prod(shape)), "memory": peak_memory()}))


def against_plain(report: Report, scan: Path, slices: int, rounds: int) -> None:
    import torch

    from benchmarks.plain_detection import plain_maps, with_plain_attention
    from madad_lite import MadAdPipeline

    pipe, plain_pipe = (
        MadAdPipeline.from_pretrained("t1"),
        with_plain_attention(MadAdPipeline.from_pretrained("t1")),
    )
    prepared = pipe.prepare(scan)
    middle = (len(prepared.image) - slices) // 2
    images, brain = (
        torch.from_numpy(x[middle : middle + slices])[:, None] for x in (prepared.image, prepared.brain)
    )
    # without `volumes` every slice is judged alone, without eta nothing is random: what the plain loop does
    ours = partial(pipe, images, brain=brain, eta=0.0, progress=False)
    plain = partial(plain_maps, plain_pipe, images, brain)
    apart = (ours().anomaly_map - plain()).abs()
    far = (apart > 1e-3).float().mean().item()  # a cell at the very threshold may fall on either side
    if far > 1e-3:
        raise AssertionError(f"plain and ours do not compute the same: {far:.1%} of the pixels differ")
    times = medians(interleaved({"plain": plain, "ours": ours}, rounds, warm_up=False))
    report.table(
        f"{slices} slices from image to anomaly map: slice by slice with plain attention, and in batches",
        [{"way": k, "seconds": t, "times as fast": times["plain"] / t} for k, t in times.items()],
    )
    report.note(
        f"Plain and ours: median difference {apart.median():.0e} in the map, above 0.001 in {far:.1%} of the pixels."
    )


def measure(quick: bool = False) -> Report:
    report = Report("detection")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = write_scans(folder, SPACINGS[:2] if quick else SPACINGS)
        main = 2.0 if quick else 1.0
        run = partial(in_new_process, CODE, str(scans[main]), str(folder / "out"))
        runs = sorted((run() for _ in range(1 if quick else 3)), key=lambda r: sum(r["stages"].values()))
        middle = runs[len(runs) // 2]
        total = sum(middle["stages"].values())
        rows = [{"stage": k, "seconds": v, "share, %": 100 * v / total} for k, v in middle["stages"].items()]
        report.table(
            f"A scan of {main:g} mm, {middle['voxels'] / 1e6:.1f} million voxels (the median of {len(runs)} runs)",
            rows,
        )
        report.target(f"a whole scan of {main:g} mm, imports counted", total, "<=", 8, "s")
        rows = []
        for spacing, scan in scans.items():
            result = middle if spacing == main else in_new_process(CODE, str(scan), str(folder / "out"))
            took = sum(result["stages"].values()) - result["stages"]["import"]
            rows.append(
                {
                    "scan": f"{spacing:g} mm",
                    "million voxels": result["voxels"] / 1e6,
                    "seconds": took,
                    "peak memory, MB": result["memory"] / 1e6,
                }
            )
        report.table("Scans of growing size", rows)
        most = max(row["peak memory, MB"] for row in rows)
        report.target(f"memory of a scan, up to {min(scans):g} mm", most, "<=", 1000, "MB")
        against_plain(report, scans[2.0], 4 if quick else 12, 1 if quick else 3)
    return report
