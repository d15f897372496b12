"""The command line: madad demo | phantom | prepare | recolour | train | assemble | detect | evaluate |
reproduce | ...

Thin: each command calls one function.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import madad_lite
from madad_lite.errors import Refused

CONTRASTS = ("t1", "t2", "flair", "t1ce")
LAYOUTS = ("auto", "plain", "ixi", "atlas", "brats", "msd", "cohort", "glioma", "ms")


def _settings(pairs: list[str]) -> dict:
    """["steps=100", "mask_loss=mse"] -> {"steps": 100, "mask_loss": "mse"}."""
    settings = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise Refused(f"--set wants name=value, not {pair!r}")
        try:
            settings[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            settings[key.strip()] = value
    return settings


def _demo(args) -> int:
    from madad_lite.demo.run import run_demo

    run_demo(args.out)
    return 0


def _phantom(args) -> int:
    from madad_lite.simulation.cohort import write_cohort

    folder = write_cohort(
        args.out,
        normal=args.normal,
        patients=args.patients,
        contrasts=tuple(args.contrast),
        spacing=args.spacing,
        seed=args.seed,
        force=args.force,
    )
    print(f"simulated subjects: {folder}")
    return 0


def _prepare(args) -> int:
    from madad_lite.authors.png_export import export_png
    from madad_lite.scans.grid import Grid
    from madad_lite.slices.folder import prepare_folder

    manifest = prepare_folder(
        args.source,
        args.out,
        contrast=args.contrast,
        layout=args.layout,
        grid=Grid(spacing=args.spacing, size=args.size),
        register={"auto": "auto", "yes": True, "no": False}[args.register],
        seed=args.seed,
        workers=args.workers,
        patients_in_train=args.patients_in_train,
        splits=args.splits,
    )
    if args.png:
        export_png(manifest, args.png)
    counts = ", ".join(f"{len(manifest.scans(s))} {s}" for s in ("train", "val", "test"))
    print(f"{args.out}: {counts}; {len(manifest.skipped)} skipped")
    for file, reason in manifest.skipped:
        print(f"  skipped {reason if str(file) in str(reason) else f'{file}: {reason}'}", file=sys.stderr)
    return 1 if manifest.skipped else 0


def _recolour(args) -> int:
    from madad_lite.simulation.recolour import recolour_folder

    manifest = recolour_folder(args.source, args.out, seed=args.seed)
    print(f"{args.out}: {len(manifest.scans())} scans in FLAIR contrast, made from T1")
    return 0


def _train(args) -> int:
    from madad_lite.training.autoencoder import train_autoencoder
    from madad_lite.training.denoiser import train_denoiser
    from madad_lite.training.settings import RECIPES, configured

    recipe, changes = RECIPES[args.recipe], _settings(args.set)
    if args.stage == "autoencoder":
        config = configured(recipe.autoencoder, **changes)
        run = train_autoencoder(args.data, args.out, config, resume=args.resume)
    else:
        if args.autoencoder is None:
            raise Refused("the denoiser needs a trained autoencoder: --autoencoder RUN/best")
        config = configured(recipe.denoiser, **changes)
        run = train_denoiser(args.data, args.autoencoder, args.out, config, resume=args.resume)
    print(f"weights: {run / 'best'} and {run / 'last'}")
    return 0


def _assemble(args) -> int:
    from dataclasses import asdict

    from madad_lite.files import new_folder
    from madad_lite.pipeline import load_parts
    from madad_lite.slices.folder import Manifest
    from madad_lite.training.settings import RECIPES, configured

    if Path(args.out).exists() and not args.force:
        raise Refused(f"{args.out}: exists already; add --force to replace it")
    if Path(args.out).exists() and not (Path(args.out) / "model_index.json").exists():
        raise Refused(f"{args.out}: exists and is no pipeline's folder; choose another one")
    manifest = Manifest.load(args.data)
    changes = _settings(args.set)
    threshold = changes.pop("decision_threshold", None)
    pipe = load_parts(
        args.autoencoder,
        args.denoiser,
        contrast=manifest.contrast,
        grid=manifest.grid.to_dict(),
        decision_threshold=threshold,
        **asdict(configured(RECIPES[args.recipe].detection, **changes)),
    )
    if args.half:
        pipe.autoencoder.half(), pipe.denoiser.half()
    with new_folder(Path(args.out), replace=args.force) as part:
        pipe.save_pretrained(part)
    print(f"pipeline: {args.out}")
    return 0


def _detect(args) -> int:
    from madad_lite.detection.many_scans import detect, scans_in

    scans = scans_in(args.scan)
    if not scans:
        raise Refused(f"{', '.join(args.scan)}: no NIfTI file (.nii, .nii.gz) there")
    failed = detect(
        scans,
        args.out,
        weights=args.weights,
        brain=args.brain,
        channel=args.channel,
        z_range=args.z_range,
        z_spacing=args.z_spacing,
        register={"auto": "auto", "yes": True, "no": False}[args.register],
        num_inference_steps=args.steps,
        eta=args.eta,
        score=args.score,
        seed=args.seed,
        batch_size=args.batch_size,
        device=args.device,
        mask=args.mask,
        keep_brain=args.keep_brain,
        force_contrast=args.force_contrast,
        force=args.force,
        resume=args.resume,
    )
    return 1 if failed else 0


def _evaluate(args) -> int:
    from madad_lite.evaluation.compare import evaluate_weights
    from madad_lite.evaluation.metrics import table
    from madad_lite.files import check_json_output, write_json

    if args.out:
        check_json_output(Path(args.out), "methods")
    results = evaluate_weights(
        args.weights,
        args.data,
        seed=args.seed,
        num_inference_steps=args.steps,
        eta=args.eta,
        score=args.score,
    )
    print(table({name: r["test"] for name, r in results["methods"].items()}))
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(args.out), results)
        print(f"all numbers: {args.out}")
    return 0


def _reproduce(args) -> int:
    from madad_lite.evaluation.reproduce import reproduce, summary

    changes: dict[str, dict] = {}
    for name, value in _settings(args.set).items():
        part, dot, key = name.partition(".")
        if not dot:
            raise Refused(
                f"--set wants autoencoder.NAME=VALUE, denoiser.NAME=VALUE or detection.NAME=VALUE, not {name!r}"
            )
        changes.setdefault(part, {})[key] = value
    report = reproduce(
        args.setting,
        train=args.train,
        test=args.test,
        out=args.out,
        recipe=args.recipe,
        changes=changes,
        seed=args.seed,
    )
    print(summary(report))
    print(f"all numbers: {Path(args.out) / 'metrics.json'}")
    return 0


def _import_official(args) -> int:
    from madad_lite.authors.checkpoints import import_official

    out = import_official(
        args.file,
        args.out,
        contrast=args.contrast,
        spacing=args.spacing,
        slice_size=args.size,
        z_spacing=args.z_spacing,
        num_heads=args.heads,
    )
    print(f"imported: {out}")
    return 0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="madad", description="Masked diffusion for unsupervised anomaly detection on brain MRI."
    )
    p.add_argument("--version", action="version", version=madad_lite.__version__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        c = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        c.set_defaults(run=run)
        return c

    def reverse(c):
        c.add_argument("--steps", type=int, default=10, help="reverse steps, at most 10")
        c.add_argument(
            "--eta", type=float, help="randomness of the reverse process, 0: none; default: the model's own"
        )
        c.add_argument(
            "--score",
            choices=("image", "latent", "mask"),
            default="image",
            help="what the anomaly map measures",
        )
        c.add_argument("--seed", type=int, default=0)

    def recipe(c):
        c.add_argument(
            "--recipe",
            choices=("lite", "paper", "authors"),
            default="lite",
            help="named settings; README: Recipes",
        )

    c = command("demo", _demo, "the main job end to end on simulated subjects; writes a page with pictures")
    c.add_argument("--out", default="results/demo")

    c = command("phantom", _phantom, "write a cohort of simulated subjects as NIfTI files")
    c.add_argument("--out", required=True)
    c.add_argument("--normal", type=int, default=8)
    c.add_argument("--patients", type=int, default=4)
    c.add_argument("--contrast", nargs="+", choices=CONTRASTS, default=["t1"])
    c.add_argument("--spacing", type=float, default=2.0, help="voxel size in mm")
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("--force", action="store_true", help="replace an earlier cohort")

    c = command("prepare", _prepare, "turn a folder of scans into slices on one grid")
    c.add_argument("source")
    c.add_argument("--out", required=True)
    c.add_argument("--contrast", choices=CONTRASTS, default="t1")
    c.add_argument("--layout", choices=LAYOUTS, default="auto")
    c.add_argument(
        "--register",
        choices=("auto", "yes", "no"),
        default="auto",
        help="to MNI152; auto: where it is needed",
    )
    c.add_argument("--spacing", type=float, default=2.0, help="of the slices, mm")
    c.add_argument("--size", type=int, default=96, help="of the slices, pixels")
    c.add_argument(
        "--splits",
        help='JSON file {"train": [subjects], "val": [...], "test": [...]} instead of a random split',
    )
    c.add_argument(
        "--patients-in-train", action="store_true", help="train on the lesion-free slices of patients too"
    )
    c.add_argument("--png", help="also write PNG files to this folder")
    c.add_argument("--workers", type=int, help="processes; default: one a core")
    c.add_argument("--seed", type=int, default=0)

    c = command(
        "recolour", _recolour, "prepared T1 slices of normal subjects -> FLAIR-like ones, to train on"
    )
    c.add_argument("source")
    c.add_argument("--out", required=True)
    c.add_argument("--seed", type=int, default=0)

    c = command("train", _train, "train the autoencoder or the masked denoiser on prepared slices")
    c.add_argument("stage", choices=("autoencoder", "denoiser"))
    c.add_argument("--data", nargs="+", required=True, help="prepared folders")
    c.add_argument("--out", required=True, help="the run's folder")
    c.add_argument("--autoencoder", help="for the denoiser: folder of the trained autoencoder")
    recipe(c)
    c.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="settings that differ, such as steps=500 size=XS",
    )
    c.add_argument("--resume", action="store_true", help="go on from the last checkpoint")

    c = command("assemble", _assemble, "join a trained autoencoder and denoiser to a pipeline's folder")
    c.add_argument("--autoencoder", required=True)
    c.add_argument("--denoiser", required=True)
    c.add_argument("--data", required=True, help="a prepared folder: contrast and grid are taken from it")
    c.add_argument("--out", required=True)
    recipe(c)
    c.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help=(
            "detection settings that differ, such as mask_threshold=0.3 sigma=1 intensity_weight=2; "
            "decision_threshold too"
        ),
    )
    c.add_argument("--half", action="store_true", help="store in half precision")
    c.add_argument("--force", action="store_true")

    c = command("detect", _detect, "anomaly maps of scans")
    c.add_argument(
        "scan", nargs="+", help="NIfTI files, or folders of them; of a folder all but earlier results"
    )
    c.add_argument("--out", required=True)
    c.add_argument(
        "--weights",
        default="t1",
        help="a shipped name, a folder, a hub id, or auto: the shipped ones of each scan's contrast",
    )
    c.add_argument(
        "--force-contrast",
        action="store_true",
        help="use the weights also where a scan does not look like their contrast",
    )
    c.add_argument(
        "--brain",
        help=(
            "brain mask of the scan; of several scans a pattern, such as {name}_mask.nii.gz; default: one that "
            "lies beside the scan, else found by itself"
        ),
    )
    c.add_argument(
        "--mask", action="store_true", help="also write NAME_mask.nii.gz: 1 where something was found"
    )
    c.add_argument(
        "--keep-brain", action="store_true", help="also write NAME_brain_mask.nii.gz, the brain that was used"
    )
    c.add_argument("--channel", type=int, help="which volume of a 4-D file")
    c.add_argument(
        "--register",
        choices=("auto", "yes", "no"),
        default="auto",
        help="to MNI152; auto: where it is needed",
    )
    c.add_argument(
        "--z-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="a quick look: only these slices, MNI mm",
    )
    c.add_argument(
        "--z-spacing", type=float, help="a quick look: mm from slice to slice; default: the model's own"
    )
    c.add_argument("--batch-size", type=int, help="slices at once; default: as many as fit")
    c.add_argument("--device", help="cpu, cuda, ...; default: a GPU if there is one")
    there = c.add_mutually_exclusive_group()
    there.add_argument(
        "--resume",
        action="store_true",
        help="leave out the scans whose results are there, of the same weights and options; do the others",
    )
    there.add_argument("--force", action="store_true", help="overwrite results")
    reverse(c)

    c = command(
        "evaluate",
        _evaluate,
        "metrics of weights on a prepared folder with lesion masks, beside simple baselines",
    )
    c.add_argument("--data", nargs="+", required=True, help="prepared folders")
    c.add_argument("--weights", default="t1", help="a shipped name, a folder, or a hub id")
    c.add_argument("--out", help="JSON file for all numbers")
    reverse(c)

    c = command(
        "reproduce",
        _reproduce,
        "a setting of the paper: both trainings, then the test; resumes what was interrupted",
    )
    c.add_argument("setting", choices=("S1", "S2"), help="S1: IXI, then ATLAS. S2: BraTS, each contrast")
    c.add_argument("--train", help="S1: the prepared folder of healthy T1 scans")
    c.add_argument(
        "--test", nargs="+", required=True, help="prepared folders of patients; S2: one a contrast"
    )
    c.add_argument("--out", required=True)
    recipe(c)
    c.add_argument("--set", nargs="*", default=[], metavar="PART.NAME=VALUE", help="such as denoiser.size=XS")
    c.add_argument("--seed", type=int, default=0)

    c = command(
        "import-official",
        _import_official,
        "the authors' checkpoints in our layout; nothing in the files is run",
    )
    c.add_argument(
        "file", nargs="+", help="their UNet, their encoder, or both: then a whole pipeline is written"
    )
    c.add_argument("--out", required=True)
    c.add_argument("--contrast", choices=CONTRASTS, default="t1", help="that they were trained on")
    c.add_argument("--spacing", type=float, default=1.0, help="of the slices, mm")
    c.add_argument("--size", type=int, default=256, help="of the slices, pixels")
    c.add_argument(
        "--z-spacing", type=float, default=4.0, help="mm from slice to slice: only time depends on it"
    )
    c.add_argument(
        "--heads",
        type=int,
        help="attention heads of the UNet; default: those of the authors' size of its width",
    )
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except (Refused, ValueError, OSError) as error:
        # ScanError and RunError are ValueErrors: what they say is meant for the user
        print(f"madad {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"madad {args.command}: interrupted; what was finished is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
