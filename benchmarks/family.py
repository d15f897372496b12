"""The race of the family: every method on the same slices, with the same number of samples seen or the same seconds.

    python benchmarks/family.py --train work/ixi work/cohort_t1 --test work/quality/cohort_t1 work/quality/ixi_t1
        --autoencoder work/ae_ixi/best --steps 1500 --out work/family_t1

One row lands after another: a method and seed that is done is not done again, and what was interrupted goes on, so
that the race can be stopped and started at any time. For each method and seed: trained on --train; the post-processing
of the best pooled Dice chosen among the same few on the validation split of --test, and the threshold with it; then
measured once on each test set. Differences to --against are intervals over subjects. With --seconds every method gets
as many steps as it does in that time, measured over its first ones, in place of --steps.

Writes OUT/rows/NAME-SEED.json (numbers), OUT/maps (maps of the test sets, for the differences), OUT/table.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from madad_lite.evaluation import metrics
from madad_lite.evaluation.compare import LabelledSlices, load_split
from madad_lite.evaluation.race import own, trained
from madad_lite.family.frame import Method, as_autoencoder
from madad_lite.family.postprocess import Postprocessing
from madad_lite.family.registry import FAMILY, method_class
from madad_lite.files import new_file, write_json
from madad_lite.training.settings import configured

AFTER = (
    Postprocessing(),
    Postprocessing(sigma=0.7),
    Postprocessing(sigma=1.5, through=1.2),
    Postprocessing(median=5, erode=1),
    Postprocessing(sigma=1.5, through=1.2, erode=1, smallest=20),
)
WEIGHTED = 3.0  # of intensity, offered beside each where --weighted
TRIAL = 10  # steps whose time is taken


def steps_in(seconds: float, name: str, args, settings: dict, folder: Path) -> int:
    """Optimiser steps that a method does in so many seconds on this machine: a short trial, less its set-up."""
    took = []
    for steps in (1, 1 + TRIAL):
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        brief = settings | {"steps": steps, "validate_every": 10**6, "checkpoint_every": 10**6}
        trained(name, args.train, folder, autoencoder=args.encoder, settings=brief, progress=False)
        took.append(time.perf_counter() - start)
    shutil.rmtree(folder)
    return max(1, round(seconds * TRIAL / max(took[1] - took[0], 1e-3)))


def raw_maps(method: Method, s: LabelledSlices, seed: int) -> tuple[torch.Tensor, float]:
    """(maps as the method gives them, seconds a slice)."""
    start = time.perf_counter()
    maps = method(s.image, s.brain, s.scans, torch.Generator().manual_seed(seed))
    return maps, (time.perf_counter() - start) / len(maps)


def row(name: str, seed: int, args) -> dict:
    """Train, choose on validation, measure on the test sets."""
    kind = method_class(name)
    settings = {"batch_size": args.batch_size, "validate_every": 250, "checkpoint_every": 250, "seed": seed}
    settings |= {"size": args.size} if args.size and not name.startswith("mad_ad") else {}
    settings["steps"] = args.steps
    runs = args.out / "runs" / str(seed)
    if args.seconds and kind.kinds:
        stamp = runs / f"{kind.trained_as or name}.json"
        if not stamp.exists():
            stamp.parent.mkdir(parents=True, exist_ok=True)
            steps = steps_in(args.seconds, name, args, settings, args.out / "trial")
            write_json(stamp, {"steps": steps})
        settings["steps"] = json.loads(stamp.read_text())["steps"]
    method = trained(name, args.train, runs, autoencoder=args.encoder, settings=settings)
    val = LabelledSlices.joined([load_split(folder, "val") for folder in args.test])
    raw, seconds = raw_maps(method, val, seed)
    offered = [configured(a, weight=w) for a in AFTER for w in ((0.0, WEIGHTED) if args.weighted else (0.0,))]
    tried = {}
    for after in offered:
        maps = after(raw, val.image, val.brain, val.scans, contrast=method.contrast)
        dice, threshold = metrics.pooled_max_dice(maps, val.lesion, val.brain)
        tried[after] = dice, threshold
    best = max(tried, key=lambda a: tried[a][0])
    result = {
        "method": name,
        "seed": seed,
        "steps": settings["steps"] if kind.kinds else 0,
        "parameters": sum(p.numel() for p in method.networks.parameters()),
        "seconds_a_slice": seconds,
        "after": str(best),
        "settings": own(kind, settings),
        "validation": {str(a): d for a, (d, _) in tried.items()},
        "test": {},
    }
    for folder in args.test:
        s = load_split(folder, "test")
        maps, _ = raw_maps(method, s, seed)
        maps = best(maps, s.image, s.brain, s.scans, contrast=method.contrast)
        options = dict(brain=s.brain, subjects=s.subjects, threshold=tried[best][1], spacing=s.spacing)
        result["test"][folder.name] = metrics.evaluate(maps, s.lesion, **options)
        file = args.out / "maps" / folder.name / f"{name}-{seed}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as part:
            np.save(part, maps.numpy().astype(np.float16))
    return result


def table(rows: list[dict], args) -> str:
    """Markdown, a part for each test set: means and range over the seeds, and the difference to --against."""
    lines = []
    for folder in args.test:
        s = load_split(folder, "test")
        lines += [f"## {folder.name}: {len(set(s.subjects))} subjects", "", f"{HEAD} minus {args.against} |"]
        lines.append("|---" * 9 + "|")
        for name in dict.fromkeys(r["method"] for r in rows):
            same = [r for r in rows if r["method"] == name]
            dice = [r["test"][folder.name]["pooled_max_dice"] for r in same]
            at = np.mean([r["test"][folder.name]["dice_at_validation_threshold"]["pooled"] for r in same])
            ap = np.mean([r["test"][folder.name]["ap"] for r in same])
            first = same[0]
            lines.append(
                f"| {name} | {first['steps']} | {first['parameters'] / 1e6:.2f} M "
                f"| {np.mean(dice):.3f} ({min(dice):.3f} to {max(dice):.3f}) | {at:.3f} | {ap:.3f} "
                f"| {1000 * np.mean([r['seconds_a_slice'] for r in same]):.0f} ms | {first['after']} "
                f"| {apart(name, first['seed'], folder, s, args)} |"
            )
        lines.append("")
    return "\n".join(lines)


HEAD = (
    "| method | steps | size | max Dice, pooled: mean (range of seeds) | at the validation threshold | AP "
    "| a slice | after the map | "
)


def apart(name: str, seed: int, folder: Path, s: LabelledSlices, args) -> str:
    """The interval over subjects of the difference to --against, in pooled max Dice, of one seed."""
    files = [args.out / "maps" / folder.name / f"{n}-{seed}.npy" for n in (name, args.against)]
    if name == args.against or not all(f.exists() for f in files) or len(set(s.subjects)) < 2:
        return "-"
    a, b = (np.load(f).astype(np.float32) for f in files)
    options = dict(brain=s.brain, n=args.resamples)
    low, high = metrics.difference_interval("pooled_max_dice", a, b, s.lesion, s.subjects, **options)
    return f"[{low:+.3f}, {high:+.3f}]"


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--train", nargs="+", required=True, help="prepared folders")
    p.add_argument("--test", nargs="+", type=Path, required=True, help="with lesions in val and test")
    p.add_argument("--autoencoder", required=True, help="of those in latents; a folder or a shipped name")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--methods", nargs="*", choices=FAMILY, default=list(FAMILY))
    p.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--seconds", type=float, help="of training, in place of --steps")
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--size", help="of the U-Nets, such as tiny; MAD-AD's own is not changed")
    p.add_argument("--weighted", action="store_true", help="offer the weight of intensity too (FLAIR)")
    p.add_argument("--against", choices=FAMILY, default="mad_ad")
    p.add_argument("--resamples", type=int, default=500)
    args = p.parse_args(argv)
    args.encoder = as_autoencoder(args.autoencoder)
    rows = []
    for seed in args.seeds:
        for name in tqdm(args.methods, desc=f"seed {seed}"):
            file = args.out / "rows" / f"{name}-{seed}.json"
            if not file.exists():
                found = row(name, seed, args)
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, found)
            rows.append(json.loads(file.read_text()))
            (args.out / "table.md").write_text(table(rows, args))
    print(table(rows, args))


if __name__ == "__main__":
    main()
