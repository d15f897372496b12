"""How well a training finds lesions after how many minutes: Dice on validation subjects over the time of one core.

    python benchmarks/time_to_quality.py --data work/ixi work/cohort_t1 --autoencoder t1 --test work/quality/ixi_t1
        --methods mad_ad dae reflect --steps 9000 --out work/time_t1

Each method of the family is trained by `madad train` in a process of its own. Whenever that has validated, it waits
while its best weights so far score the lesions of --test's validation subjects (real heads with implanted strokes);
the post-processing is the best of family.py's few, the same choice for all at every point. Seconds are those of the
training's process (user and system), its start and the encoding of its latents with it; the autoencoder is there
already. Rows land in time_to_quality.csv beside this file; what is there is not measured again, and a training goes on
from its last checkpoint. A picture of it: --picture docs/time_to_quality.png; the table: --page benchmarks/README.md.
--set changes settings of the method's training, --called names what is changed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import psutil
import torch
from family import AFTER, THROUGH, land, read_rows
from family_page import put
from quality import validation_patients

from madad_lite.arguments import settings as settings_given
from madad_lite.evaluation import metrics
from madad_lite.evaluation.compare import LabelledSlices
from madad_lite.family.registry import FAMILY, method_class
from madad_lite.files import replace_file
from madad_lite.slices.manifest import Manifest
from madad_lite.training.autoencoder import as_autoencoder
from madad_lite.training.settings import configured
from madad_lite.weights.folder import read_model

POINTS = (250, 500, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000)
COLUMNS = ("data", "method", "step", "seconds", "max_dice", "ap", "small", "after", "val_loss")
TABLE = Path(__file__).with_suffix(".csv")
SHORT = 2001  # steps: what ends before has a table of its own
WANTED = 0.75  # pooled max Dice


def judged(name: str, run: Path, manifest: Manifest, settings: dict, encoder, s: LabelledSlices) -> dict:
    """What the best weights of a run that goes on find."""
    kind = method_class(name)
    config = configured(kind.Config(), **settings)
    networks = {n: read_model(k, run / "best" / n) for n, k in kind.kinds.items()}
    about = dict(contrast=manifest.contrast, grid=manifest.grid.to_dict(), normalise=manifest.normalise)
    method = kind(config, networks, autoencoder=encoder, **about)
    raw, best = method(s.image, s.brain, s.scans, torch.Generator().manual_seed(0)), None
    for after in (configured(a, through=t) for a in AFTER for t in (0.0, THROUGH)):
        maps = after(raw, s.image, s.brain, s.scans, contrast=method.contrast)
        dice, _ = metrics.pooled_max_dice(maps, s.lesion, s.brain)
        if best is None or dice > best[0]:
            best = dice, after, maps
    dice, after, maps = best
    found = metrics.evaluate(maps, s.lesion, brain=s.brain, intervals=False)
    return dict(
        max_dice=dice, ap=found["ap"], small=found["by_size"]["small"]["pooled_max_dice"], after=str(after)
    )


def validated(log: Path) -> dict[int, float]:
    """{step: validation loss} of a log that is being written."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    rows = [json.loads(line) for line in lines]
    return {r["step"]: r["val_loss"] for r in rows if "val_loss" in r}


def seconds_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def settings_of(args) -> dict:
    own = dict(steps=args.steps, batch_size=16, variants=4, validate_every=250, checkpoint_every=250)
    return own | settings_given(args.set)


def title(label: str) -> str:
    return method_class(label).title if label in FAMILY else label


def follow(name: str, args, encoder, s: LabelledSlices) -> None:
    """Train a method, and measure it at POINTS as it goes."""
    label = args.called or name
    out, settings = args.out / label.replace(" ", "_"), settings_of(args)
    words = [f"{k}={v}" for k, v in settings.items()]
    kind, manifest = method_class(name), Manifest.load(args.data[0])
    data = "+".join(d.name for d in args.data)
    done = [r for r in read_rows(args.rows) if r["data"] == data and r["method"] == label]
    if {str(p) for p in POINTS if p <= args.steps} <= {r["step"] for r in done}:
        return
    command = [sys.executable, "-m", "madad_lite", "train", name, "--data", *map(str, args.data)]
    command += ["--autoencoder", str(args.autoencoder)] if kind.latent or kind.encoder else []
    command += ["--out", str(out), "--resume", "--set", *words]
    clock = out.with_name(f"{out.name}_seconds.txt")  # of what was trained before, until a validation
    before = float(clock.read_text()) if clock.exists() else 0.0
    child = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    watched, run, seen, ended = psutil.Process(child.pid), out / "training" / "all", 0, False
    try:
        while not ended:
            time.sleep(0.5)
            spent = before + seconds_of(watched)  # it is there until poll() has seen its end
            ended = child.poll() is not None
            losses = validated(run / "log.jsonl")
            if len(losses) == seen:
                continue
            child.send_signal(signal.SIGSTOP)  # its clock stands still
            seen = len(losses)
            replace_file(clock, f"{spent}")
            measured = {int(r["step"]) for r in done}
            if new := [step for step in losses if step in POINTS and step not in measured]:
                step = new[-1]
                found = judged(name, run, manifest, settings, encoder, s)
                row = dict(data=data, method=label, step=step, seconds=spent, val_loss=losses[step], **found)
                done.append({k: f"{v:.4f}" if isinstance(v, float) else str(v) for k, v in row.items()})
                land(args.rows, [*read_rows(args.rows), done[-1]], COLUMNS)
                print(row, flush=True)
            child.send_signal(signal.SIGCONT)
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGCONT)
            child.terminate()
    if child.wait():
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")


def in_words(row: dict | None) -> str:
    if row is None:
        return "-"
    dice, small, seconds = (float(row[k]) for k in ("max_dice", "small", "seconds"))
    return f"{dice:.3f} ({small:.2f}), {seconds / 60:.0f} min"


def runs_of(rows: list[dict]) -> tuple[dict, dict]:
    """{(data, method): {step: row}} of the long trainings, and of those that end before step SHORT."""
    runs: dict[tuple[str, str], dict[int, dict]] = {}
    for r in rows:
        runs.setdefault((r["data"], r["method"]), {})[int(r["step"])] = r
    short = {run: points for run, points in runs.items() if max(points) < SHORT}
    return {run: points for run, points in runs.items() if run not in short}, short


def page(rows: list[dict]) -> str:
    """Markdown: of the long trainings a row for each point and a column each; of the short ones a row each."""
    long, short = runs_of(rows)
    text = []
    if long:
        text += ["| steps | " + " | ".join(f"{title(name)}, {data}" for data, name in long) + " |"]
        text += ["|---" * (len(long) + 1) + "|"]
        for step in sorted({step for points in long.values() for step in points}):
            cells = [f"{step:,}", *(in_words(points.get(step)) for points in long.values())]
            text += ["| " + " | ".join(cells) + " |"]
    if short:
        text += ["", "| short training | on | steps | half way | at the end |", "|---|---|---|---|---|"]
        for (data, name), points in short.items():
            last = max(points)
            cells = title(name), data, f"{last:,}", in_words(points.get(last // 2)), in_words(points[last])
            text += ["| " + " | ".join(cells) + " |"]
    return "\n".join([*text, ""])


def picture(rows: list[dict], path: Path) -> None:
    """Dice over minutes, a panel for each set of data, a line for each method; of the short ones the best alone."""
    long, short = runs_of(rows)
    best = max(short, key=lambda run: float(short[run][max(short[run])]["max_dice"]), default=None)
    rows = [r for r in rows if (r["data"], r["method"]) in {*long, best}]
    data = list(dict.fromkeys(r["data"] for r in rows))
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(r["method"] for r in rows))}
    size = (1 + 4.5 * len(data), 3.8)
    figure, panels = plt.subplots(
        1, len(data), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, of in zip(panels[0], data):
        here = [r for r in rows if r["data"] == of]
        for name in dict.fromkeys(r["method"] for r in here):
            points = [(float(r["seconds"]) / 60, float(r["max_dice"])) for r in here if r["method"] == name]
            axes.plot(*zip(*sorted(points)), "o-", color=colours[name], label=title(name))
        axes.axhline(WANTED, color="0.6", ls=":")
        axes.set(title=f"trained on {of}", xlabel="minutes of one core", ylim=(0, 1))
        axes.legend(loc="center right")
    panels[0, 0].set_ylabel("max Dice, pooled, validation")
    replace_file(path, lambda file: figure.savefig(file, format="png", dpi=100))


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", nargs="+", type=Path, help="prepared folders to train on")
    p.add_argument("--autoencoder", help="of those in latents; a folder or a shipped name")
    p.add_argument("--test", type=Path, help="with lesions in val")
    p.add_argument("--every", type=int, default=2, help="one of so many validation patients")
    p.add_argument("--methods", nargs="+", choices=FAMILY, default=["mad_ad", "dae", "reflect"])
    p.add_argument("--steps", type=int, default=9000)
    p.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings that differ")
    p.add_argument("--called", help="the name of a method with them")
    p.add_argument("--out", type=Path, help="folder of the trainings")
    p.add_argument("--rows", type=Path, default=TABLE)
    p.add_argument("--picture", type=Path, help="a file that gets the picture; nothing else is done")
    p.add_argument("--page", type=Path, help="a page that gets the table; nothing else is done")
    args = p.parse_args(argv)
    if args.picture:
        return picture(read_rows(args.rows), args.picture)
    if args.page:
        return put(args.page, page(read_rows(args.rows)))
    if not (args.data and args.test and args.autoencoder and args.out):
        p.error("--data, --test, --autoencoder and --out are needed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the training ends too
    if args.set and not (args.called and len(args.methods) == 1):
        p.error("--set is for one method, and what it makes of it needs a name: --called")
    s, encoder = validation_patients(args.test, args.every), as_autoencoder(args.autoencoder)
    for name in args.methods:
        follow(name, args, encoder, s)


if __name__ == "__main__":
    main()
