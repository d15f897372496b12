"""What a threshold that was set on validation subjects is worth elsewhere, by two rules of setting it.

    MADAD_REAL_DATA=SCANS python benchmarks/calibration.py --contrast flair --weights flair

    pooled      the best pooled Dice of the validation patients: large lesions decide
    patients    the best mean of the patients' own Dice: each of them counts the same

Both on the validation patients of quality.py. Prints, for every test set, the pooled Dice at each threshold beside the
best that any could reach there, the mean of the patients' Dice, and the share of the brain that is marked in subjects
without lesion. Maps are shared with quality.py, in DATA/maps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from quality import TEST, VALIDATION, keeping, mad_ad, patients_only, validation_patients
from sets import build, real_data

from madad_lite.evaluation import metrics
from madad_lite.evaluation.compare import LabelledSlices, load_split
from madad_lite.pipeline import MadAdPipeline
from madad_lite.weights.folder import autoencoder_folder, find_folder

THRESHOLDS = np.arange(0.02, 0.9, 0.01).round(2)
HEAD = "| set | rule | threshold | pooled Dice | best there | loss | mean of patients | of healthy brains marked |"


def dice_of_patients(score, s: LabelledSlices, threshold: float) -> list[float]:
    """The Dice of each patient's voxels at a threshold."""
    marked, lesion = (score >= threshold) & s.brain, s.lesion & s.brain
    rows = [np.flatnonzero(s.subjects == x) for x in dict.fromkeys(s.subjects)]
    overlaps = [(marked[r] & lesion[r]).sum() / (marked[r].sum() + lesion[r].sum()) for r in rows]
    return [2 * float(x) for x in overlaps]


def by_patients(score, s: LabelledSlices) -> float:
    """The threshold of the best mean of the patients' Dice."""
    means = [np.mean(dice_of_patients(score, s, t)) for t in THRESHOLDS]
    return float(THRESHOLDS[int(np.argmax(means))])


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--contrast", choices=TEST, required=True)
    p.add_argument("--weights", required=True)
    p.add_argument("--data", type=Path, default=Path("work/quality"))
    p.add_argument("--validation-only", action="store_true", help="leave the test sets alone")
    args = p.parse_args(argv)
    pipe = MadAdPipeline.from_pretrained(args.weights)
    source = find_folder(args.weights)
    method = keeping(args.data / "maps", [source, autoencoder_folder(source)], mad_ad(), "MAD-AD ")

    def usable(names):
        return [build(n, args.data) for n in names if n.startswith("cohort") or real_data()]

    val = LabelledSlices.joined([validation_patients(f) for f in usable(VALIDATION[args.contrast])])
    score = method(pipe, val.image, val.brain, val.scans)
    rules = {
        "pooled": metrics.pooled_max_dice(score, val.lesion, val.brain)[1],
        "patients": by_patients(score, val),
    }
    print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|")
    report("validation", score, val, rules, None, None)
    for folder in [] if args.validation_only else usable(TEST[args.contrast]):
        s, healthy = patients_only(load_split(folder, "test"))
        score = method(pipe, s.image, s.brain, s.scans)
        alone = None if healthy is None else method(pipe, healthy.image, healthy.brain, healthy.scans)
        report(folder.name, score, s, rules, alone, healthy)


def report(name: str, score, s: LabelledSlices, rules: dict[str, float], alone, healthy) -> None:
    best, _ = metrics.pooled_max_dice(score, s.lesion, s.brain)
    for rule, threshold in rules.items():
        pooled = metrics.dice_at(score, s.lesion, threshold, s.brain)["pooled"]
        mean = np.mean(dice_of_patients(score, s, threshold))
        marked = "-"
        if healthy is not None:
            given = torch.zeros_like(healthy.brain), healthy.subjects, threshold
            alarms = metrics.false_positive_volume(alone, *given, brain=healthy.brain)
            marked = f"{100 * alarms['brain_share']:.3f} %"
        print(
            f"| {name} | {rule} | {threshold:.3f} | {pooled:.3f} | {best:.3f} | {best - pooled:.3f} "
            f"| {mean:.3f} | {marked} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
