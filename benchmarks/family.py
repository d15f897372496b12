"""The race of the family: every method on the same slices, with the same number of samples seen or the same seconds.

    python benchmarks/family.py --train work/ixi work/cohort_t1 --test work/quality/cohort_t1 work/quality/ixi_t1
        --autoencoder t1 --size tiny --steps 300 --every 8 --train-every 4 --out work/family_t1

One row lands after another in --rows, a table that is kept in the repository: a method and seed that is there with the
same race (steps, slices, ..) is not done again, and what was interrupted goes on in --out, so that the race can be
stopped and started at any time. For each method and seed: trained on --train; its settings at test time (`tried` of its
class, chosen with the first seed) and the post-processing chosen by pooled Dice among the same few on the validation
split of --test, and the threshold with it; then measured once on each test set. Intervals are over subjects. With
--seconds every method gets as many steps as it does in that time of one core, measured over its first ones, in place
of --steps. With --every the slices are far from each other, so that each is scored for itself.

--page writes the tables of --rows into a page; nothing else is done.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from family_page import write_page
from tqdm import tqdm

from madad_lite.evaluation import metrics
from madad_lite.evaluation.compare import LabelledSlices, load_split
from madad_lite.evaluation.race import own, trained
from madad_lite.family.frame import Method, as_autoencoder
from madad_lite.family.postprocess import Postprocessing
from madad_lite.family.registry import FAMILY, method_class
from madad_lite.files import new_file, write_json
from madad_lite.slices.folder import Manifest
from madad_lite.slices.manifest import write_arrays
from madad_lite.training.settings import configured

AFTER = (
    Postprocessing(),
    Postprocessing(sigma=0.7),
    Postprocessing(sigma=1.5),
    Postprocessing(median=5, erode=1),
    Postprocessing(sigma=1.5, erode=1, smallest=20),
)
THROUGH = 1.2  # slices; smoothing through them, where they lie beside each other
WEIGHTED = 3.0  # of intensity, offered beside each where --weighted
TRIAL = 10  # steps whose time is taken
COLUMNS = (
    "race,method,seed,test,subjects,slices,lesion_slices,steps,parameters,ms_a_slice,settings,after,"
    "max_dice,max_dice_low,max_dice_high,at_threshold,per_lesion_slice,ap,small,medium,large,"
    "found_in_healthy,minus_low,minus_high"
).split(",")


def thinned(folder: Path, every: int, root: Path) -> Path:
    """A prepared folder with every so-many-th slice of each scan of another one, in root; made once."""
    out = root / f"{every}" / folder.name
    if every == 1 or (out / "manifest.json").exists():
        return folder if every == 1 else out
    source = Manifest.load(folder)
    content = source.to_dict() | {"scans": []}
    for scan in source.scans():
        rows = slice(every // 2, None, every)
        arrays = {n: source.array(scan, n)[rows] for n in ("image", "brain", "lesion")[: 2 + scan["lesion"]]}
        geometry = scan["geometry"] | {"slice_index": scan["geometry"]["slice_index"][rows]}
        entry = scan | {"geometry": geometry, "lesion_pixels": scan["lesion_pixels"][rows]}
        target = out / "scans" / scan["scan_id"]
        target.mkdir(parents=True, exist_ok=True)
        entry |= {"n_slices": len(arrays["image"]), "crc32": write_arrays(target, arrays)}
        content["scans"].append(entry)
    Manifest(out, content).save()
    return out


def share_latents(name: str, settings: dict, args, runs: Path) -> None:
    """Latents are encoded once for all methods that want the same ones."""
    source = method_class(name).trained_as or name
    kind = method_class(source)
    link = runs / source / "latents"
    if kind.latent and not link.exists():
        c = kind(configured(kind.Config(), **own(kind, settings)), autoencoder=args.encoder).cache_config()
        corrupted = "-corrupted" if c.corruption_share > 0 else ""
        shared = (
            args.out / "latents" / f"{c.seed}-{c.variants}-{c.augmentation}-{c.brain_fraction}{corrupted}"
        )
        shared.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(shared.resolve())


def steps_in(seconds: float, name: str, args, settings: dict, folder: Path) -> int:
    """Optimiser steps that a method does in so many seconds of one core: a short trial, less its set-up."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    brief = settings | {"validate_every": 10**6, "checkpoint_every": 10**6}
    took = []
    for steps in (1, 1, 1 + TRIAL):  # the first one warms up
        shutil.rmtree(folder, ignore_errors=True)
        share_latents(name, settings, args, folder)
        start = clock()
        now = brief | {"steps": steps}
        trained(name, args.thin_train, folder, autoencoder=args.encoder, settings=now, progress=False)
        took.append(clock() - start)
    shutil.rmtree(folder)
    return max(1, round(seconds * TRIAL / max(took[2] - took[1], 1e-3)))


def raw_maps(method: Method, s: LabelledSlices, seed: int, args) -> tuple[torch.Tensor, float]:
    """(maps as the method gives them, seconds of the processor a slice)."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start, volumes = clock(), s.scans if args.every == 1 else None
    maps = method(s.image, s.brain, volumes, torch.Generator().manual_seed(seed))
    return maps, (clock() - start) / len(maps)


def settings_of(name: str, seed: int, args) -> dict:
    """Those of the training."""
    kind = method_class(name)
    settings = {"batch_size": args.batch_size, "validate_every": 100, "checkpoint_every": 100, "seed": seed}
    settings |= {"size": args.size} if args.size else {}
    settings |= {"steps": args.steps, "variants": args.variants}
    if args.seconds and kind.kinds:
        stamp = args.out / "steps" / f"{kind.trained_as or name}.json"
        if not stamp.exists():
            stamp.parent.mkdir(parents=True, exist_ok=True)
            steps = steps_in(args.seconds, name, args, settings, args.out / "trial")
            write_json(stamp, {"steps": steps})
        settings["steps"] = json.loads(stamp.read_text())["steps"]
    return settings


def row(name: str, seed: int, args, choices) -> list[dict]:
    """Train, choose on validation among the choices and AFTER, measure on the test sets: a row for each of these."""
    kind, settings = method_class(name), settings_of(name, seed, args)
    runs = args.out / "runs" / (f"{args.seconds:g}s" if args.seconds else f"{args.steps}") / str(seed)
    share_latents(name, settings, args, runs)
    base = trained(name, args.thin_train, runs, autoencoder=args.encoder, settings=settings, progress=False)
    to_choose = [f for f in args.thin_test if Manifest.load(f).scans("val")]  # not real patients
    val = LabelledSlices.joined([load_split(folder, "val") for folder in to_choose])
    volumes = (lambda s: s.scans) if args.every == 1 else (lambda s: None)
    through = (0.0, THROUGH) if args.every == 1 else (0.0,)
    weights = (0.0, WEIGHTED) if args.weighted else (0.0,)
    offered = [configured(a, through=t, weight=w) for a in AFTER for t in through for w in weights]
    tried = []
    for choice in choices:
        method = base.changed(**choice)
        raw, _ = raw_maps(method, val, seed, args)
        for after in offered:
            maps = after(raw, val.image, val.brain, volumes(val), contrast=method.contrast)
            dice, threshold = metrics.pooled_max_dice(maps, val.lesion, val.brain)
            tried.append((dice, threshold, choice, after))
    _, threshold, choice, after = max(tried, key=lambda t: t[0])
    method, rows = base.changed(**choice), []
    for folder in args.thin_test:
        s = load_split(folder, "test")
        maps, seconds = raw_maps(method, s, seed, args)
        maps = after(maps, s.image, s.brain, volumes(s), contrast=method.contrast)
        file = args.out / "maps" / args.race.replace(" ", "_") / folder.name / f"{name}-{seed}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as part:
            np.save(part, maps.numpy().astype(np.float16))
        options = dict(brain=s.brain, subjects=s.subjects, threshold=threshold, spacing=s.spacing)
        found = metrics.evaluate(maps, s.lesion, n=args.resamples, **options)
        low, high = found.get("pooled_max_dice_interval") or ("", "")
        sizes = {k: found["by_size"][k]["pooled_max_dice"] for k in ("small", "medium", "large")}
        healthy = found["false_positives"] or {}
        minus = apart(file, name, seed, s, args)
        rows.append(
            {
                "race": args.race,
                "method": name,
                "seed": seed,
                "test": folder.name,
                "subjects": len(set(s.subjects)),
                "slices": found["slices"],
                "lesion_slices": found["lesion_slices"],
                "steps": settings["steps"] if kind.kinds and base.stages() else 0,
                "parameters": sum(p.numel() for p in method.networks.parameters()),
                "ms_a_slice": round(1000 * seconds, 1),
                "settings": json.dumps(choice),
                "after": str(after),
                "max_dice": found["pooled_max_dice"],
                "max_dice_low": low,
                "max_dice_high": high,
                "at_threshold": found["dice_at_validation_threshold"]["pooled"],
                "per_lesion_slice": found["per_lesion_image_max_dice"],
                "ap": found["ap"],
                **sizes,
                "found_in_healthy": healthy.get("brain_share"),
                "minus_low": minus[0],
                "minus_high": minus[1],
            }
        )
    return [
        {k: f"{v:.4f}" if isinstance(v, float) and k != "ms_a_slice" else v for k, v in r.items()}
        for r in rows
    ]


def apart(file: Path, name: str, seed: int, s: LabelledSlices, args):
    """The interval over subjects of the difference to --against of the same seed, in pooled max Dice."""
    other = file.with_name(f"{args.against}-{seed}.npy")
    if name == args.against or not other.exists() or len(set(s.subjects)) < 2:
        return "", ""
    a, b = (np.load(f).astype(np.float32) for f in (file, other))
    options = dict(brain=s.brain, n=args.resamples)
    return metrics.difference_interval("pooled_max_dice", a, b, s.lesion, s.subjects, **options)


def read_rows(file: Path) -> list[dict]:
    """The rows that have landed, as text."""
    if not file.exists():
        return []
    with open(file, newline="") as f:
        return list(csv.DictReader(f))


def land(file: Path, rows: list[dict], columns: Sequence[str] = COLUMNS) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as part, open(part, "w", newline="") as f:
        writer = csv.DictWriter(f, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--train", nargs="+", type=Path, help="prepared folders")
    p.add_argument("--test", nargs="+", type=Path, help="with lesions in test, and in val of one at least")
    p.add_argument("--autoencoder", help="of those in latents; a folder or a shipped name")
    p.add_argument("--out", type=Path, help="folder of the trainings")
    p.add_argument("--rows", type=Path, default=Path(__file__).with_name("family.csv"))
    p.add_argument("--page", type=Path, help="a page that gets the tables, such as benchmarks/FAMILY.md")
    p.add_argument("--methods", nargs="*", choices=FAMILY, default=list(FAMILY))
    p.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--seconds", type=float, help="of training on one core, in place of --steps")
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--variants", type=int, default=2, help="of each slice's latents, see madad train")
    p.add_argument("--size", help="of every network, such as tiny")
    p.add_argument("--every", type=int, default=1, help="measure on each so-many-th slice of a scan")
    p.add_argument("--train-every", type=int, default=1, help="train on each so-many-th slice of a scan")
    p.add_argument("--weighted", action="store_true", help="offer the weight of intensity too (FLAIR)")
    p.add_argument("--against", choices=FAMILY, default="mad_ad")
    p.add_argument("--resamples", type=int, default=500)
    args = p.parse_args(argv)
    if args.page:
        return write_page(args.page, read_rows(args.rows))
    if not (args.train and args.test and args.autoencoder and args.out):
        p.error("--train, --test, --autoencoder and --out are needed for a race")
    args.encoder = as_autoencoder(args.autoencoder)
    args.thin_train, args.thin_test = (
        [thinned(f, every, args.out / "thinned") for f in folders]
        for folders, every in ((args.train, args.train_every), (args.test, args.every))
    )
    budget = f"seconds {args.seconds:g}" if args.seconds else f"steps {args.steps}"
    sets = ["+".join(f.name for f in folders) for folders in (args.train, args.test)]
    args.race = (
        f"{budget}, batch {args.batch_size}, size {args.size or 'own'}, variants {args.variants}, "
        f"train {sets[0]}/{args.train_every}, test {sets[1]}/{args.every}, weighted {int(args.weighted)}"
    )
    order = sorted(args.methods, key=lambda n: n != args.against)  # the others are compared with its maps
    for seed in args.seeds:
        for name in tqdm(order, desc=f"seed {seed}"):
            done = read_rows(args.rows)
            same = [r for r in done if r["race"] == args.race and r["method"] == name]
            drawn = bool(method_class(name).kinds)  # without networks every seed gives the same
            if any(int(r["seed"]) == seed for r in same) or (same and not drawn):
                continue
            choices = (json.loads(same[0]["settings"]),) if same else method_class(name).tried
            land(args.rows, done + row(name, seed, args, choices))
    write_page(None, [r for r in read_rows(args.rows) if r["race"] == args.race])


if __name__ == "__main__":
    main()
