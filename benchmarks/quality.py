"""How well each method finds lesions, on scans that it neither saw nor was tuned on.

    MADAD_REAL_DATA=SCANS python benchmarks/quality.py --contrast t1 --weights t1 --baselines
    work/baselines_t1

Thresholds, and for each of the other methods how far it noises, how its map is smoothed in the slice and
through the slices, and whether it is weighed by intensity where MAD-AD's is, are chosen on the validation
sets of the contrast (MAD-AD's settings were, with its weights; --settle looks at its mask threshold again);
test sets are looked at once, with what was chosen. See sets.py for the sets and splits.json for the subjects.
Writes results/quality/CONTRAST.json, CONTRAST.md and a picture of each set. Without MADAD_REAL_DATA only the
simulated cohort runs. Maps are kept beside the sets, so that what was interrupted goes on: delete DATA/maps
after a change of the code.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from sets import build, cohort_scans, real_data
from tqdm import tqdm

from madad_lite.denoiser import Denoiser
from madad_lite.evaluation import metrics
from madad_lite.evaluation.compare import LabelledSlices, load_split
from madad_lite.extensions.intensity_weight import weigh_by_intensity
from madad_lite.family import BASELINES
from madad_lite.family.frame import load
from madad_lite.family.postprocess import Postprocessing
from madad_lite.files import write_json
from madad_lite.pipeline import MadAdPipeline
from madad_lite.plotting import slice_grid
from madad_lite.training.settings import RECIPES
from madad_lite.weights.folder import autoencoder_folder, find_folder

VALIDATION = {c: (f"cohort_{c}", f"ixi_{c}") for c in ("t1", "flair", "t2", "t1ce")}
TEST = {
    "t1": ("cohort_t1", "ixi_t1", "ms_t1"),
    "flair": ("cohort_flair", "glioma_flair", "ms_flair"),
    "t2": ("cohort_t2", "ms_t2"),
    "t1ce": ("cohort_t1ce", "glioma_t1ce", "ms_t1ce"),
}
ENOUGH = 6  # patients; of fewer the bootstrap's intervals exclude 0 far too often
# (pipeline, images, brain, the scan of each slice: its volume) -> scores
Method = Callable[[MadAdPipeline, torch.Tensor, torch.Tensor, np.ndarray], torch.Tensor]
SMOOTHING = (
    ("", 0, 0),
    ("sigma 1.5", 1.5, 0),
    ("through 1.2", 0, 1.2),
    ("sigma 1.5, through 1.2", 1.5, 1.2),
)  # pixels, slices


def mad_ad(*, alone: bool = False, changes: dict | None = None, **options) -> Method:
    """`changes`: parts and settings of the pipeline, in place of those of the weights."""

    def run(pipe, images, brain, scans):
        volumes = None if alone else scans
        if changes:
            pipe = MadAdPipeline.from_pretrained(pipe.name_or_path, **changes)
        run = dict(brain=brain, volumes=volumes, generator=torch.Generator().manual_seed(0), progress=False)
        return pipe(images, **run, **options).anomaly_map

    return run


def baseline(method: Callable) -> Method:
    return lambda pipe, images, brain, scans: method(pipe, images, brain)


def filtered(method, median: int = 0) -> Callable:
    """A method of the family, as a baseline, median-filtered or smoothed a little in the slice."""
    after = Postprocessing(median=median, sigma=0.7)
    return lambda pipe, images, brain: after(method(images, brain), images, brain)


def helped(method: Method, sigma: float, through: float, weight: float) -> Method:
    """With its maps smoothed, sigma in pixels, through in slices, and weighed by intensity: the same help as
    MAD-AD gets.
    """

    def run(pipe, images, brain, scans):
        score = method(pipe, images, brain, scans)
        for scan in np.unique(scans):
            rows = np.flatnonzero(scans == scan)
            volume = ndimage.gaussian_filter(score[rows, 0].numpy(), (through, sigma, sigma), mode="constant")
            score[rows, 0] = torch.from_numpy(volume)
        score = weigh_by_intensity(score, images, weight, contrast=pipe.config.contrast) if weight else score
        return torch.where(brain, score, 0.0)

    return run


def keeping(folder: Path, weights: list[Path], method: Method, label: str) -> Method:
    """The method, its maps kept in files: an interrupted benchmark goes on. New weights, new files."""
    files = sorted(f for w in weights for f in w.rglob("*") if f.suffix in (".json", ".safetensors"))
    state = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]

    def run(pipe, images, brain, scans):
        which = hashlib.sha256(
            label.encode() + images.numpy().tobytes() + brain.numpy().tobytes()
        ).hexdigest()[:16]
        path = folder / f"{state}-{which}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            with open(part, "wb") as file:
                np.save(file, method(pipe, images, brain, scans).numpy().astype(np.float16))
            part.replace(path)
        return torch.from_numpy(np.load(path).astype(np.float32))

    return run


def candidates(
    pipe: MadAdPipeline,
    weights: Path,
    baselines: Path | None,
    settle: bool,
    kept: Path,
    also: Sequence[Path] = (),
) -> dict[str, dict[str, Method]]:
    """{method: {setting: how to run it}}. One setting: nothing to choose."""
    encoder, thresholds = autoencoder_folder(weights), (0.5, 0.3, 0.2, 0.1) if settle else ()
    own: dict[str, dict[str, Method]] = {
        "MAD-AD": {"": mad_ad()} | {f"mask threshold {p}": mad_ad(mask_threshold=p) for p in thresholds},
        "MAD-AD, each slice alone": {"": mad_ad(alone=True)},
    }
    own_weight = pipe.config.intensity_weight
    if own_weight:
        own["MAD-AD, not weighed by intensity"] = {
            "": mad_ad(changes=asdict(RECIPES["lite"].detection))
        }  # as on T1
    if pipe.config.mask_floor:
        own["MAD-AD, mask floor 0"] = {"": mad_ad(changes={"mask_floor": 0.0})}
    found = {
        n: {s: keeping(kept, [weights, encoder], m, f"{n} {s}") for s, m in settings.items()}
        for n, settings in own.items()
    }

    def add(name: str, used: list[Path], settings: dict[str, Method]) -> None:
        found[name] = {}
        for setting, method in settings.items():
            raw = keeping(kept, [encoder, *used], baseline(method), f"{name} {setting}")
            for label, sigma, through in SMOOTHING:
                for weight in (0, own_weight) if own_weight and name != "intensity" else (0,):
                    labels = setting, label, f"intensity weight {weight:g}" if weight else ""
                    found[name][", ".join(x for x in labels if x)] = helped(raw, sigma, through, weight)

    add("intensity", [], {"": BASELINES["intensity"]})
    add("reconstruction error", [], {"": BASELINES["reconstruction"]})
    if baselines is not None:
        name, folder = "MAD-AD, the baselines' budget", baselines / "mad_ad" / "best"
        method = mad_ad(changes={"denoiser": Denoiser.from_pretrained(folder)})
        found[name] = {"": keeping(kept, [weights, encoder, folder], method, name)}
        folder = baselines / "dae"
        dae = load(folder)
        add("DAE", [folder / "unet"], {f"median {k}" if k else "": filtered(dae, k) for k in (0, 5)})
        for name, method, noise in (
            ("AnoDDPM, Gaussian", "anoddpm", "gaussian"),
            ("AnoDDPM, fractal", "anoddpm", "fractal"),
            ("AutoDDPM", "autoddpm", "gaussian"),
            ("THOR", "thor", "gaussian"),
        ):
            folder = baselines / noise
            starts = {f"start {t}": filtered(load(folder, name=method, start=t)) for t in (390, 640)}
            add(name, [folder / "unet"], starts)
    for folder in also:
        method = load(folder)
        name = f"{method.title}, {method.config.steps:,} steps"
        choices = {json.dumps(c).strip("{}").replace('"', ""): c for c in method.tried}
        add(name, [folder], {said: filtered(method.changed(**c)) for said, c in choices.items()})
    return found


def patients_only(s: LabelledSlices) -> tuple[LabelledSlices, LabelledSlices | None]:
    """(slices of the subjects with lesion, slices of those without)."""
    area = (s.lesion & s.brain).flatten(1).sum(1).numpy()
    sick = np.isin(s.subjects, list({x for x, a in zip(s.subjects, area) if a}))
    return s.take(np.flatnonzero(sick)), s.take(np.flatnonzero(~sick)) if (~sick).any() else None


def validation_patients(folder: Path, every: int = 2) -> LabelledSlices:
    """The slices of one of so many validation patients, two and two: kinds of lesion alternate."""
    sick, _ = patients_only(load_split(folder, "val"))
    order = np.array(list(dict.fromkeys(sick.subjects)))
    return sick.take(np.flatnonzero(np.isin(sick.subjects, order[np.arange(len(order)) // 2 % every == 0])))


def by_kind(folder: Path, score: torch.Tensor, s: LabelledSlices) -> dict[str, float]:
    """Pooled max Dice of each kind of lesion, for the simulated cohort."""
    with open(folder / "participants.tsv") as file:
        kinds = {r["participant_id"]: r["lesion"] for r in csv.DictReader(file, delimiter="\t")}
    result = {}
    for kind in sorted({kinds[x] for x in s.subjects}):
        rows = np.flatnonzero([kinds[x] == kind for x in s.subjects])
        result[kind] = metrics.pooled_max_dice(score[rows], s.lesion[rows], s.brain[rows])[0]
    return result


def measure(
    score, threshold: float, sick: LabelledSlices, healthy_score, healthy: LabelledSlices | None
) -> dict:
    result = metrics.evaluate(
        score,
        sick.lesion,
        brain=sick.brain,
        subjects=sick.subjects,
        threshold=threshold,
        spacing=sick.spacing,
    )
    if healthy is not None:
        nothing = torch.zeros_like(healthy.brain)
        alarms = metrics.false_positive_volume(
            healthy_score, nothing, healthy.subjects, threshold, brain=healthy.brain
        )
        result["healthy"] = {"subjects": alarms["subjects"], "marked_share_of_brain": alarms["brain_share"]}
    return result


def examples(score: torch.Tensor, threshold: float, s: LabelledSlices, path: Path, columns: int = 6) -> None:
    """A picture of slices whose lesion covers 1 % of the brain or more: the worst above, the best below, of
    many subjects.
    """
    rows = np.flatnonzero(np.isin(metrics.lesion_size(s.lesion, s.brain), ("medium", "large")))
    dice = {i: metrics.dice_at(score[[i]], s.lesion[[i]], threshold, s.brain[[i]])["pooled"] for i in rows}
    of = {
        x: sorted((i for i in rows if s.subjects[i] == x), key=dice.get)
        for x in dict.fromkeys(s.subjects[rows])
    }
    turns = -(-columns // max(1, len(of)))
    worst = sorted((i for order in of.values() for i in order[:turns]), key=dice.get)[:columns]
    best = sorted((i for order in of.values() for i in order[::-1][:turns]), key=dice.get)[-columns:]
    shown = [*worst, *best]
    titles = [f"Dice {dice[i]:.2f}" for i in shown]
    figure = slice_grid(s.image[shown], titles, len(worst), overlay=score[shown], truth=s.lesion[shown])
    figure.savefig(path, dpi=80, bbox_inches="tight")


def row(name: str, setting: str, r: dict) -> str:
    sizes = " / ".join(
        f"{v['pooled_max_dice']:.2f}" if v.get("pooled_max_dice") is not None else "-"
        for v in r["by_size"].values()
    )
    low, high = r.get("pooled_max_dice_interval", (float("nan"),) * 2)
    at, healthy = r["dice_at_validation_threshold"]["pooled"], r.get("healthy")
    alarm = f"{100 * healthy['marked_share_of_brain']:.2f} %" if healthy else "-"
    auroc = "-" if r["auroc"] is None else f"{r['auroc']:.3f}"
    return (
        f"| {name}{f' ({setting})' if setting else ''} | {r['pooled_max_dice']:.3f} [{low:.2f}, {high:.2f}] "
        f"| {r['per_lesion_image_max_dice']:.3f} | {at:.3f} | {r['ap']:.3f} | {auroc} | {sizes} | {alarm} |"
    )


HEAD = (
    "| method | max Dice, pooled | per lesion slice | Dice at validation threshold | AP | AUROC "
    "| pooled: small / medium / large | of healthy brains marked |\n" + "|---" * 8 + "|"
)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--contrast", choices=TEST, required=True)
    p.add_argument("--weights", required=True)
    p.add_argument(
        "--baselines", type=Path, help="folder of train_baselines.py; without it, only what needs no training"
    )
    p.add_argument(
        "--also", nargs="*", type=Path, default=(), help="folders of `madad train METHOD`: a row each"
    )
    p.add_argument("--data", type=Path, default=Path("work/quality"), help="where the sets are, or are made")
    p.add_argument("--out", type=Path, default=Path("results/quality"))
    p.add_argument("--validation-every", type=int, default=2, help="choose on one of n validation subjects")
    p.add_argument(
        "--settle",
        action="store_true",
        help="choose MAD-AD's mask threshold too, in place of the weights' own",
    )
    p.add_argument("--only", nargs="*", help="only these methods, as they are named in the tables")
    p.add_argument("--validation-only", action="store_true", help="leave the test sets alone")
    args = p.parse_args()
    pipe = MadAdPipeline.from_pretrained(args.weights)
    usable = [
        n for n in VALIDATION[args.contrast] + TEST[args.contrast] if n.startswith("cohort") or real_data()
    ]
    folders = {name: build(name, args.data) for name in dict.fromkeys(usable)}

    to_choose = (folders[n] for n in VALIDATION[args.contrast] if n in folders)
    val = LabelledSlices.joined([validation_patients(f, args.validation_every) for f in to_choose])
    source = find_folder(args.weights)
    chosen, lines = {}, [f"## {args.contrast}: validation, {len(set(val.subjects))} subjects", "", HEAD]
    methods = candidates(pipe, source, args.baselines, args.settle, args.data / "maps", args.also)
    methods = {k: v for k, v in methods.items() if not args.only or k in args.only}
    for name, settings in tqdm(methods.items(), desc="choosing"):
        best = None
        for setting, method in settings.items():
            score = method(pipe, val.image, val.brain, val.scans)
            dice, threshold = metrics.pooled_max_dice(score, val.lesion, val.brain)
            lines.append(row(name, setting, measure(score, threshold, val, None, None)))
            tqdm.write(lines[-1])
            if best is None or dice > best[0]:
                best = dice, setting, threshold, method
        chosen[name] = best
    settings = {k: {"validation": v[0], "setting": v[1], "threshold": v[2]} for k, v in chosen.items()}
    report = {
        "weights": args.weights,
        "validation_every": args.validation_every,
        "chosen": settings,
        "test": {},
    }
    for name in [] if args.validation_only else [n for n in TEST[args.contrast] if n in folders]:
        sick, healthy = patients_only(load_split(folders[name], "test"))
        lines += [
            "",
            f"## {name}: test, {len(set(sick.subjects))} patients, {len(sick.image)} slices",
            "",
            HEAD,
        ]
        results, scores = {}, {}
        for method_name, (_, setting, threshold, method) in chosen.items():
            scores[method_name] = method(pipe, sick.image, sick.brain, sick.scans)
            on_healthy = (
                None if healthy is None else method(pipe, healthy.image, healthy.brain, healthy.scans)
            )
            results[method_name] = measure(scores[method_name], threshold, sick, on_healthy, healthy)
            if name.startswith("cohort"):
                results[method_name]["by_kind"] = by_kind(
                    cohort_scans(args.contrast, args.data), scores[method_name], sick
                )
            lines.append(row(method_name, setting, results[method_name]))
            tqdm.write(f"{name} {lines[-1]}")
        enough = len(set(sick.subjects)) >= ENOUGH and "MAD-AD" in scores
        for other in results.keys() - {"MAD-AD"} if enough else ():
            interval = metrics.difference_interval(
                "pooled_max_dice",
                scores["MAD-AD"],
                scores[other],
                sick.lesion,
                sick.subjects,
                brain=sick.brain,
            )
            results[other]["mad_ad_minus_this"] = list(map(float, interval))
        report["test"][name] = results
        args.out.mkdir(parents=True, exist_ok=True)
        if "MAD-AD" in scores:
            examples(scores["MAD-AD"], chosen["MAD-AD"][2], sick, args.out / f"{name}.png")
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / f"{args.contrast}.json", report)
    (args.out / f"{args.contrast}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
