"""The paper's two settings as one command each, on folders that `madad prepare` made.

S1  train on healthy T1 scans (IXI), test on stroke patients (ATLAS 2.0).
S2  train on the lesion-free slices of tumour patients (BraTS'21), test on the slice of each patient with the
    largest lesion; once for each contrast, and the mean over them.

Methods of the family can be trained and tested beside MAD-AD; by the recipe "paper" each at its own paper's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from madad_lite.errors import Refused
from madad_lite.evaluation.compare import Split, evaluate_scans, methods_of
from madad_lite.evaluation.race import check_settings, maps_of, trained
from madad_lite.family.postprocess import Postprocessing
from madad_lite.family.registry import FAMILY
from madad_lite.files import check_json_output, save_model, write_json
from madad_lite.slices.folder import Manifest
from madad_lite.training.assemble import load_parts
from madad_lite.training.autoencoder import train_autoencoder
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.run_folder import refuse_others
from madad_lite.training.settings import RECIPES, configured

# Max Dice of MAD-AD in the paper, %. The S1 average is pooled over all images; see notebook 08.
OTHERS = [
    n for n in FAMILY if n not in ("intensity", "reconstruction", "untrained", "mad_ad", "mad_ad_paper")
]
PAPER = {"S1": {"t1": 51.6}, "S2": {"flair": 76.2, "t1ce": 68.5, "t2": 73.2, "t1": 63.4, "mean": 70.3}}


def train_and_test(
    train: str | Path | Sequence[str | Path],
    test: str | Path,
    out: str | Path,
    *,
    recipe: str = "lite",
    changes: dict[str, dict] | None = None,
    methods: Sequence[str] = (),
    only_largest: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """Both trainings of a recipe on `train`, then MAD-AD and the plain baselines on `test`, thresholds from
    its val split.

    changes: {"autoencoder": {...}, "denoiser": {...}, "detection": {...}, "family": {...}}; the last one's go to those
    methods that have such a setting. methods: of the family, trained beside it by a recipe of the same name; their
    maps are smoothed as MAD-AD's are. A training that was interrupted is resumed. Writes the weights to out/pipeline,
    those of `methods` to out/family; returns the results as `compare.evaluate_scans` does. ValueError before any
    training where something is missing.
    """
    named, changes, out = RECIPES[recipe], changes or {}, Path(out)
    if unknown := changes.keys() - {"autoencoder", "denoiser", "detection", "family"}:
        raise ValueError(f"no such part of a recipe: {', '.join(sorted(unknown))}")
    family = changes.get("family", {})
    for name in methods:
        if name in FAMILY and name not in OTHERS:
            choice = ", ".join(OTHERS)
            raise Refused(f"{name}: is among the rows already, or needs no training; choose from {choice}")
    check_settings(methods, family, recipe)
    parts = {
        k: configured(getattr(named, k), **({} if k == "detection" else {"seed": seed}) | changes.get(k, {}))
        for k in ("autoencoder", "denoiser", "detection")
    }
    # before the training: what is missing is known at once
    splits = {s: Split(test, s, largest=only_largest) for s in ("val", "test")}
    for name, split in splits.items():
        if not split.has_lesion():
            raise ValueError(f"{test}: no lesion in the {name} split; prepare more patients with masks")
    encoder = (
        train_autoencoder(train, out / "autoencoder", parts["autoencoder"], resume=True, progress=progress)
        / "best"
    )
    denoiser = (
        train_denoiser(train, encoder, out / "denoiser", parts["denoiser"], resume=True, progress=progress)
        / "best"
    )
    manifest = Manifest.load(test)
    pipe = load_parts(
        encoder,
        denoiser,
        contrast=manifest.contrast,
        grid=manifest.grid.to_dict(),
        normalise=manifest.normalise,
        **asdict(parts["detection"]),
    )
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    alike = dict(settings={"seed": seed} | family, recipe=recipe, autoencoder=encoder, progress=progress)
    others = [trained(name, train, out / "family", **alike) for name in methods]
    after = Postprocessing(sigma=parts["detection"].sigma)

    def of_split() -> dict:
        by_name = {m.title: partial(maps_of, m, after=after, seed=seed) for m in others}
        return methods_of(pipe, seed=seed, alone=only_largest) | by_name

    results = evaluate_scans(of_split, splits, seed=seed, progress=progress)
    pipe.register_to_config(decision_threshold=results["MAD-AD"]["threshold"])
    save_model(pipe, out / "pipeline")
    return results


def reproduce(
    setting: str, *, test: Sequence[str | Path], out: str | Path, train: str | Path | None = None, **options
) -> dict:
    """S1: `train` healthy T1, `test` one folder of patients. S2: `test` one folder a contrast, with the
    patients in train.

    out: a new or empty folder, or that of an earlier call, perhaps an interrupted one. Writes metrics.json.
    Returns {"setting", "recipe", "results": {contrast: methods}, "paper": max Dice in %}; `options` as of
    train_and_test.
    """
    if setting not in PAPER:
        raise ValueError(f"the paper's settings are S1 and S2, not {setting!r}")
    test = [test] if isinstance(test, (str, Path)) else test
    contrasts = [Manifest.load(t).contrast for t in test]
    if setting == "S1" and (train is None or len(test) != 1):
        raise ValueError(
            "S1 trains on one folder of healthy scans (--train) and tests on one folder of patients (--test)"
        )
    if setting == "S2" and (train is not None or len(set(contrasts)) != len(contrasts)):
        raise ValueError(
            "S2 trains and tests on the same patients: give one folder a contrast, all as --test"
        )
    out = Path(out)
    refuse_others(out, {*contrasts, "metrics.json"})
    for contrast in contrasts:
        refuse_others(out / contrast, {"autoencoder", "denoiser", "pipeline", "family"})
    check_json_output(out / "metrics.json", "results")
    results = {}
    for contrast, folder in zip(contrasts, test):
        results[contrast] = train_and_test(
            train if setting == "S1" else folder,
            folder,
            out / contrast,
            only_largest=setting == "S2",
            **options,
        )
    report = {
        "setting": setting,
        "recipe": options.get("recipe", "lite"),
        "results": results,
        "paper": PAPER[setting],
    }
    write_json(out / "metrics.json", report)
    return report


def summary(report: dict) -> str:
    """A Markdown table: max Dice in %, pooled and per image beside each other, and what the paper reports."""
    lines = ["| contrast | method | pooled max Dice | per-image max Dice | paper |", "|---|---|---|---|---|"]
    rows = {c: {m: r["test"] for m, r in methods.items()} for c, methods in report["results"].items()}
    if len(rows) > 1:
        keys = ("pooled_max_dice", "per_lesion_image_max_dice")
        methods = next(iter(rows.values()))
        rows["mean"] = {
            m: {k: float(np.mean([r[m][k] for r in rows.values()])) for k in keys} for m in methods
        }
    for contrast, methods in rows.items():
        for name, r in methods.items():
            paper = report["paper"].get(contrast, "-") if name == "MAD-AD" else "-"
            pooled, each = (100 * r[k] for k in ("pooled_max_dice", "per_lesion_image_max_dice"))
            lines.append(f"| {contrast} | {name} | {pooled:.1f} | {each:.1f} | {paper} |")
    return "\n".join(lines)
