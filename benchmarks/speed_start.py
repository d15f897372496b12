"""How long it takes until something happens: imports and the command line, each in a new process."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from benchmarks.measuring import ROOT, Report, interleaved, medians

DIFFUSERS = "from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DModel"
STARTS = {
    "nothing": ["-c", "pass"],
    "torch": ["-c", "import torch"],
    "torch, madad_lite": ["-c", "import torch, madad_lite"],
    "madad_lite": ["-c", "import madad_lite"],
    "torch, diffusers' models": ["-c", f"import torch; {DIFFUSERS}"],
    "MadAdPipeline": ["-c", f"import torch; {DIFFUSERS}; from madad_lite import MadAdPipeline"],
    "madad --help": ["-m", "madad_lite.cli", "--help"],
}


def start(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def measure(quick: bool = False) -> Report:
    report = Report("start")
    times = medians(interleaved({name: partial(start, a) for name, a in STARTS.items()}, 1 if quick else 5))
    report.table(
        "A new Python process that imports or runs", [{"what": k, "seconds": v} for k, v in times.items()]
    )
    report.target(
        "import madad_lite beyond torch", times["torch, madad_lite"] - times["torch"], "<=", 0.3, "s"
    )
    report.target("madad --help", times["madad --help"], "<=", 1.0, "s")
    own = times["MadAdPipeline"] - times["torch, diffusers' models"]
    report.note(
        f"The package loads torch and diffusers when they are first needed. Its pipeline adds {own:.2f} s to theirs."
    )
    return report
