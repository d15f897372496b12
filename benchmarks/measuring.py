"""What the speed benchmarks share: the machine, interleaved timing, memory, and reports as Markdown and
JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "speed"


def use_cores(cores: int) -> None:
    """This process and its children see no more than so many cores. Before torch is imported: it counts them
    once.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["OMP_NUM_THREADS"] = str(min(cores, os.cpu_count() or 1))


def machine() -> str:
    """One line: processor, cores in use, memory, GPU, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # the modules' own word, not the package's: only that tells the build (2.14.1+cu130)
    versions = ", ".join(
        f"{p} {importlib.import_module(p).__version__}" for p in ("torch", "diffusers", "numpy")
    )
    return (
        f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores in use, "
        f"{memory:.0f} GiB; {gpu()}; "
        f"Python {platform.python_version()}, {versions}"
    )


def gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def load() -> float:
    """How many processes want a core, averaged over a minute; that of an idle machine is near 0 before a
    run.
    """
    return os.getloadavg()[0]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(
    ways: dict[str, Callable[[], object]], rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of every run of each way, one run of each a round, so that whatever slows the machine down hits
    them alike.
    """
    if warm_up:
        for call in ways.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            times[name].append(seconds(call))
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def _status(field: str) -> int:
    """A size out of /proc/self/status, in bytes."""
    return int(re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def own_memory() -> int | None:
    """Bytes that this process holds for itself now (RssAnon): pages of memory-mapped files, which the system
    takes back whenever it needs them, are not counted. None where the system is not Linux."""
    return _status("RssAnon") if sys.platform == "linux" else None


def peak_memory() -> int:
    """Bytes, the most that this process has held at one time, file pages included."""
    if sys.platform == "linux":  # there getrusage's ru_maxrss of a new process begins at its parent's
        return _status("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_new_process(code: str, *arguments: str) -> dict:
    """Run Python code that prints one line of JSON, at the end, in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{code}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class Report:
    """Tables, targets and notes of one benchmark."""

    def __init__(self, name: str):
        self.started = time.perf_counter()
        self.content = {
            "name": name,
            "machine": machine(),
            "load_before": load(),
            "targets": [],
            "tables": [],
            "notes": [],
        }

    def table(self, title: str, rows: list[dict]) -> None:
        self.content["tables"].append({"title": title, "rows": rows})

    def note(self, text: str) -> None:
        self.content["notes"].append(text)

    def target(
        self, what: str, reached: float | None, sense: str, wanted: float, unit: str = "", why_open: str = ""
    ) -> None:
        """sense: "<=" or ">=". reached None: could not be measured here."""
        met = None if reached is None else (reached <= wanted if sense == "<=" else reached >= wanted)
        self.content["targets"].append(
            {
                "what": what,
                "target": f"{sense} {number(wanted)} {unit}".strip(),
                "reached": reached,
                "wanted": wanted,
                "unit": unit,
                "met": met,
                "why_open": why_open,
            }
        )

    def publish(self, keep: bool = True) -> None:
        """Print it, and keep it as results/speed/NAME.json."""
        self.content["seconds"] = time.perf_counter() - self.started
        if keep:
            RESULTS.mkdir(parents=True, exist_ok=True)
            (RESULTS / f"{self.content['name']}.json").write_text(json.dumps(self.content, indent=1) + "\n")
        print(markdown(self.content), flush=True)


def number(value) -> str:
    """Three digits, or the text itself."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown_table(rows: list[dict]) -> list[str]:
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return lines + ["| " + " | ".join(number(v) for v in row.values()) + " |" for row in rows]


def verdict(target: dict) -> str:
    if target["met"] is None:
        return f"open: {target['why_open']}"
    if target["met"]:
        return "yes"
    low, high = sorted((target["reached"], target["wanted"]))
    return f"no, off by a factor of {high / low:.2f}"


def markdown(content: dict) -> str:
    """A benchmark's section of the page."""
    lines = [
        f"## {content['name']}",
        "",
        f"`python -m benchmarks {content['name']}` ({content['seconds']:.0f} s)",
        "",
    ]
    if content["targets"]:
        targets = [
            {
                "target": t["what"],
                "wanted": t["target"],
                "reached": "-" if t["reached"] is None else f"{number(t['reached'])} {t['unit']}".strip(),
                "met": verdict(t),
            }
            for t in content["targets"]
        ]
        lines += [*markdown_table(targets), ""]
    for table in content["tables"]:
        lines += [f"**{table['title']}**", "", *markdown_table(table["rows"]), ""]
    lines += [f"- {note}" for note in content["notes"]]
    lines += ["", f"*{content['machine']}; load before the run {content['load_before']:.1f}.*", ""]
    return "\n".join(lines)
