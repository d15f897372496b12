"""Long runs that show whether anything leaks, and whether kill -9 loses anything. All on a small simulated cohort.

    python scripts/soak.py [--calls 100] [--kills 20] [--seed 0]

First calls of `madad prepare`, `detect` and `evaluate` by turns in one process: after a warm-up memory stays flat
within 5 % and the number of open files is constant. Then trainings, prepare, detect and assemble, each killed at random
moments and started again: files are those of a run that nobody disturbed. Exit code 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

MOST_GROWTH = 0.05
PRELOADED = "cli detection.many_scans evaluation.compare slices.folder training.autoencoder training.denoiser"
CONTEXT = multiprocessing.get_context("forkserver")
BRIEF = ["--set", "size=nano", "steps=6", "batch_size=2", "validate_every=3", "checkpoint_every=2"]
GRID = ["--spacing", "6", "--size", "32"]


def make_inputs(folder: Path) -> None:
    """A cohort, its slices, and two models whose weights are random."""
    import torch

    from madad_lite.autoencoder import make_autoencoder
    from madad_lite.denoiser import Denoiser
    from madad_lite.diffusion import make_scheduler
    from madad_lite.pipeline import MadAdPipeline
    from madad_lite.scans.grid import Grid
    from madad_lite.simulation.cohort import write_cohort
    from madad_lite.slices.folder import prepare_folder

    write_cohort(folder / "cohort", normal=3, patients=2, spacing=4.0, seed=1, progress=False)
    grid = Grid(spacing=6.0, size=32)
    prepare_folder(folder / "cohort", folder / "data", grid=grid, workers=1, progress=False)
    for seed, model in enumerate(("one", "two")):
        torch.manual_seed(seed)
        autoencoder, denoiser = make_autoencoder("nano"), Denoiser.of_size("nano")
        pipe = MadAdPipeline(
            autoencoder, denoiser, make_scheduler(), grid=grid.to_dict(), decision_threshold=0.4
        )
        pipe.save_pretrained(folder / model)


def run(words: list[str], said: Path | None = None) -> int:
    """`madad WORDS` in this process; its exit code. said: where to write what it says."""
    from madad_lite.cli import main

    with contextlib.ExitStack() as stack:
        out = io.StringIO() if said is None else stack.enter_context(open(said, "w"))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(out))
        return main(words)


def growth(values: Sequence[float]) -> tuple[float, float]:
    """The highest of the second quarter, before which all is warm-up, and of the last."""
    n = len(values) // 4
    return max(values[n : 2 * n]), max(values[-n:])


def leaks(memory: Sequence[float], files: Sequence[int]) -> bool:
    """Memory and open files after each call."""
    before, after = growth(memory)
    return after > before * (1 + MOST_GROWTH) or len(set(files[len(files) // 4 :])) > 1


def many_calls(folder: Path, calls: int) -> bool:
    """False where something leaks."""
    scan = next((folder / "cohort").rglob("*_T1w.nii.gz"))
    model, out = ["--weights", str(folder / "one")], folder / "calls"
    by_turns = [
        ["prepare", str(folder / "cohort"), "--out", str(out / "data"), *GRID, "--workers", "1"],
        ["detect", str(scan), "--out", str(out / "maps"), *model, "--force"],
        ["evaluate", "--data", str(folder / "data"), *model],
    ]
    process, memory, files, started = psutil.Process(), [], [], time.monotonic()
    for number in range(calls):
        shutil.rmtree(out / "data", ignore_errors=True)
        words = by_turns[number % len(by_turns)]
        if run(words) != 0:
            raise SystemExit(f"madad {' '.join(words)}: failed")
        memory.append(process.memory_info().rss / 2**20)
        files.append(process.num_fds())
    before, after = growth(memory)
    leaking = leaks(memory, files)
    print(
        f"{calls} calls of prepare, detect and evaluate in one process, {time.monotonic() - started:.0f} s: "
        f"after the warm-up {before:.0f} MB, at the end {after:.0f} MB ({after / before - 1:+.1%}); open files "
        f"{min(files[calls // 4 :])} to {max(files[calls // 4 :])}: {'LEAKS' if leaking else 'no leak'}",
        flush=True,
    )
    return not leaking


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file; of a checkpoint only that it is there."""
    seen = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): b"" if p.name == "checkpoint.pt" else p.read_bytes() for p in seen}


def work(words: list[str], said: Path) -> None:
    sys.exit(run(words, said))


def start(words: list[str], said: Path):
    process = CONTEXT.Process(target=work, args=(words, said))
    process.start()
    return process


def failed(words: list[str], said: Path) -> SystemExit:
    return SystemExit(f"madad {' '.join(words)}: failed: {said.read_text()[-500:]}")


def to_the_end(words: list[str], said: Path) -> float:
    """Seconds that it took."""
    started = time.monotonic()
    process = start(words, said)
    process.join()
    if process.exitcode != 0:
        raise failed(words, said)
    return time.monotonic() - started


def killed_within(seconds: float, words: list[str], said: Path, draw: random.Random) -> bool:
    """At a random moment; False where it came to its end before."""
    process = start(words, said)
    process.join(draw.uniform(0, seconds))
    process.kill()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise failed(words, said)
    return process.exitcode != 0


def kill_again_and_again(name: str, words: list[str], out: Path, kills: int, draw: random.Random) -> bool:
    """Kill it at random moments, start it again; where it gets to its end, compare, remove, begin anew. False where a
    result is another than undisturbed.
    """
    said = out.parent / "said.txt"
    seconds = to_the_end(words, said)
    whole, different, ends, done = contents(out), 0, 0, 0
    shutil.rmtree(out)
    while done < kills:
        dead = killed_within(seconds, words, said, draw)
        done += dead
        if not dead or done == kills:
            to_the_end(words, said)
            ends += 1
            different += contents(out) != whole
            shutil.rmtree(out)
    print(f"{name}: {done} kills, {ends} times brought to the end, {different} times different", flush=True)
    return different == 0


def kill_while_replaced(folder: Path, kills: int, draw: random.Random) -> bool:
    """Two models by turns into one folder: it always holds one of them. False where it held anything else."""

    def words(model: str) -> list[str]:
        parts = ["--autoencoder", f"{folder / model}/autoencoder", "--denoiser", f"{folder / model}/denoiser"]
        return ["assemble", *parts, "--data", str(folder / "data"), "--out", str(out), "--force"]

    out, said = folder / "assembled", folder / "said.txt"
    seconds, whole = 0.0, []
    for model in ("one", "two"):
        seconds = to_the_end(words(model), said)
        whole.append(contents(out))
    different = done = turn = 0
    while done < kills:
        turn += 1
        done += killed_within(seconds, words(("one", "two")[turn % 2]), said, draw)
        different += contents(out) not in whole
    print(f"assemble --force: {done} kills, {different} times neither the old model nor the new", flush=True)
    return different == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=100, help="at least 12")
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.calls < 12:
        parser.error("--calls: at least 12, a warm-up among them")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else as many as cores are free, and other last bits
    # the libraries are imported once, for all processes, before the first is timed
    CONTEXT.set_forkserver_preload([f"madad_lite.{name}" for name in PRELOADED.split()])
    CONTEXT.Process(target=int).start()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as work_folder:
        folder = Path(work_folder)
        make_inputs(folder)
        good = [many_calls(folder, args.calls)]
        data, out = ["--data", str(folder / "data")], folder / "out"
        encoder = ["--autoencoder", str(folder / "one" / "autoencoder")]
        cohort = str(folder / "cohort")
        commands = {
            "train autoencoder": ["train", "autoencoder", *data, *BRIEF, "--resume"],
            "train denoiser": ["train", "denoiser", *data, *encoder, *BRIEF, "variants=1", "--resume"],
            "prepare": ["prepare", cohort, *GRID, "--workers", "1"],
            "detect": ["detect", cohort, "--weights", str(folder / "one"), "--resume"],
        }
        for name, words in commands.items():
            good.append(kill_again_and_again(name, [*words, "--out", str(out)], out, args.kills, draw))
        good.append(kill_while_replaced(folder, args.kills, draw))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
