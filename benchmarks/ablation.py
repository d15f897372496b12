"""Which of this repository's changes to the published method find lesions: each alone, all, and all but one.

    python benchmarks/ablation.py --data work/ixi work/cohort_t1 --test work/quality/ixi_t1 work/quality/cohort_t1
        --autoencoder t1 --out work/ablation

A network of the family's size "tiny" is trained for --steps with each change in its training that CHANGES names, from
the same seed and on the same slices (every so-many-th of --data), and heals the MIDDLE slices of each test scan, which
lie beside each other, so that neighbours can decide together. Nothing is chosen: every row is scored as it is, by
pooled max Dice; its difference is to the row that it changes, "published" or "all", of the same seed, over subjects.
One row lands after another in ablation.csv beside this file, and what is there is not done again. --page writes the
table of it into a page; nothing else is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from family import land, read_rows, thinned
from family_page import apart, mean, put
from tqdm import tqdm

from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import make_scheduler
from madad_lite.evaluation import metrics
from madad_lite.evaluation.compare import LabelledSlices, load_split
from madad_lite.pipeline import MadAdPipeline
from madad_lite.slices.folder import Manifest
from madad_lite.training.autoencoder import as_autoencoder
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.settings import RECIPES, DenoiserConfig

# setting: as published, here. Of the training, then of the detection; their size, length and data are the same.
CHANGES = {
    "lesion-like regions": ("corruption_share", 0.0, 0.5),
    "more samples of pure noise": ("last_step_share", 0.0, 0.3),
    "mask loss weighs 0.1": ("mask_weight", 1.0, 0.1),
    "mask threshold 0.2": ("mask_threshold", 0.5, 0.2),
    "eta 0.5": ("eta", 0.0, 0.5),
    "differences weighted by the mask": ("weighted", False, True),
    "smoothed by 0.7 pixels, not 2": ("sigma", 2.0, 0.7),
    "neighbouring slices decide together": ("neighbour_sigma", 0.0, 3.0),
}
TRAINED = ("corruption_share", "last_step_share", "mask_weight")
TINY = dict(channel_multipliers=(1, 1), attention_levels=(False, False))  # as in family/mad_ad.py
MIDDLE = 10  # slices of each test scan
COLUMNS = (
    "base,change,seed,steps,test,subjects,slices,max_dice,max_dice_low,max_dice_high,ap,small,medium,large,"
    "minus_low,minus_high"
).split(",")
TABLE = Path(__file__).with_suffix(".csv")


def settings_of(base: str, change: str) -> dict:
    """All settings of a row: those of its base, but for the one that is changed."""
    return {
        setting: ours if (base == "all") != (name == change) else published
        for name, (setting, published, ours) in CHANGES.items()
    }


def ways() -> Iterator[tuple[str, str]]:
    """(base, change) of every row, a base before what is compared with it."""
    for base in ("published", "all"):
        yield base, ""
        yield from ((base, change) for change in CHANGES)


def middle(s: LabelledSlices, n: int = MIDDLE) -> LabelledSlices:
    """The middle slices of each scan."""
    scans, rows = np.asarray(s.scans), []
    for scan in dict.fromkeys(s.scans):
        own = np.flatnonzero(scans == scan)
        start = max(0, (len(own) - n) // 2)
        rows += own[start : start + n].tolist()
    return s.take(rows)


def denoiser(settings: dict, seed: int, encoder, args) -> Denoiser:
    """Trained with a row's settings; rows that differ in their detection only share it."""
    own = {k: settings[k] for k in TRAINED}
    out = args.out / "runs" / "-".join(f"{v:g}" for v in (seed, args.steps, *own.values()))
    shape = TINY | {"latent_channels": encoder.config.latent_channels}
    if not (out / "last").exists():
        corrupted = own["corruption_share"] > 0
        latents = args.out / f"latents-{seed}{'-corrupted' if corrupted else ''}"
        latents.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "latents").exists():
            (out / "latents").symlink_to(latents.resolve())
        often = dict(validate_every=args.steps, checkpoint_every=100)
        config = DenoiserConfig(steps=args.steps, seed=seed, batch_size=16, variants=2, **often, **own)
        torch.manual_seed(seed)
        network = Denoiser.of_size("nano", **shape)
        train_denoiser(args.thin, encoder, out, config, model=network, resume=True, progress=False)
    return Denoiser.from_pretrained(out / "last").eval()


def maps_of(settings: dict, network: Denoiser, encoder, s: LabelledSlices, grid: dict) -> torch.Tensor:
    own = {k: v for k, v in settings.items() if k not in TRAINED}
    detection = replace(RECIPES["paper"].detection, **own)
    pipe = MadAdPipeline(encoder, network, make_scheduler(), grid=grid, **vars(detection))
    run = dict(brain=s.brain, volumes=s.scans, generator=torch.Generator().manual_seed(0))
    return pipe(s.image, **run, progress=False, reconstruct=False).anomaly_map


def measured(maps: torch.Tensor, other: np.ndarray | None, s: LabelledSlices, n: int) -> dict:
    """A row's numbers, as text. other: the maps of the row's base; None: it is the base."""
    options = dict(brain=s.brain, n=n)
    found = metrics.evaluate(maps, s.lesion, subjects=s.subjects, **options)
    low, high = found["pooled_max_dice_interval"] or ("", "")
    minus = ("", "")
    if other is not None:
        minus = metrics.difference_interval("pooled_max_dice", maps, other, s.lesion, s.subjects, **options)
    row = dict(subjects=len(set(s.subjects)), slices=found["slices"], ap=found["ap"])
    row |= dict(max_dice=found["pooled_max_dice"], max_dice_low=low, max_dice_high=high)
    row |= {k: v["pooled_max_dice"] for k, v in found["by_size"].items() if k in COLUMNS}
    row |= dict(minus_low=minus[0], minus_high=minus[1])
    return {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()}


def page(rows: list[dict]) -> str:
    """Markdown: a table for each test set, seeds side by side."""
    text = []
    for test in dict.fromkeys(r["test"] for r in rows):
        here = [r for r in rows if r["test"] == test]
        about = f"{here[0]['subjects']} subjects, {here[0]['slices']} slices, {here[0]['steps']} steps"
        text += [f"**{test}** ({about})", ""]
        text += [
            "| settings | max Dice, mean | of the seeds | clearly better, worse | small / medium / large |"
        ]
        text += ["|---|---|---|---|---|"]
        for base, change in ways():
            own = sorted(
                (r for r in here if (r["base"], r["change"]) == (base, change)), key=lambda r: int(r["seed"])
            )
            if not own:
                continue
            name = base if not change else f"{base} {'+' if base == 'published' else '-'} {change}"
            seeds = ", ".join(f"{float(r['max_dice']):.2f}" for r in own)
            sizes = " / ".join(mean(own, size) for size in ("small", "medium", "large"))
            text += [f"| {name} | {mean(own, 'max_dice')} | {seeds} | {apart(own)} | {sizes} |"]
        text += [""]
    return "\n".join(text)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", nargs="+", type=Path, help="prepared folders to train on")
    p.add_argument("--test", nargs="+", type=Path, help="prepared folders with lesions in their test split")
    p.add_argument("--autoencoder", help="a folder or a shipped name")
    p.add_argument("--out", type=Path, help="folder of the trainings")
    p.add_argument("--rows", type=Path, default=TABLE)
    p.add_argument("--page", type=Path, help="a page that gets the tables")
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--every", type=int, default=6, help="train on each so-many-th slice of a scan")
    p.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    p.add_argument("--resamples", type=int, default=200)
    args = p.parse_args(argv)
    if args.page:
        return put(args.page, page(read_rows(args.rows)))
    if not (args.data and args.test and args.autoencoder and args.out):
        p.error("--data, --test, --autoencoder and --out are needed")
    encoder = as_autoencoder(args.autoencoder)
    args.thin = [thinned(folder, args.every, args.out / "thinned") for folder in args.data]
    grid = Manifest.load(args.data[0]).grid.to_dict()
    tests = {folder.name: middle(load_split(folder, "test")) for folder in args.test}
    for seed in args.seeds:
        for base, change in tqdm(list(ways()), desc=f"seed {seed}"):
            for test, s in tests.items():
                done = read_rows(args.rows)
                key = dict(base=base, change=change, seed=str(seed), steps=str(args.steps), test=test)
                if any(all(r[k] == v for k, v in key.items()) for r in done):
                    continue
                settings = settings_of(base, change)
                maps = maps_of(settings, denoiser(settings, seed, encoder, args), encoder, s, grid)
                folder = args.out / "maps" / f"{seed}-{args.steps}-{test}"
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / f"{base}-{change}.npy", maps.numpy().astype(np.float16))
                other = np.load(folder / f"{base}-.npy").astype(np.float32) if change else None
                land(args.rows, [*done, key | measured(maps, other, s, args.resamples)], COLUMNS)
    print(page(read_rows(args.rows)))


if __name__ == "__main__":
    main()
