"""What the command train does, and compare and detect with the methods of the family. Thin, as cli.py."""

from __future__ import annotations

from pathlib import Path

from madad_lite.arguments import chosen, settings
from madad_lite.detection.other_methods import detect_by
from madad_lite.errors import Refused
from madad_lite.evaluation import race
from madad_lite.evaluation.compare import note_differences
from madad_lite.evaluation.metrics import table
from madad_lite.family.postprocess import Postprocessing
from madad_lite.family.registry import method_class, recipe_settings
from madad_lite.pipeline import MadAdPipeline
from madad_lite.slices.manifest import Manifest
from madad_lite.training.autoencoder import train_autoencoder
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.settings import RECIPES, configured


def train(args, changes: dict) -> None:
    """The stages of MAD-AD, or another method of the family."""
    if args.start and (args.stage != "denoiser" or args.autoencoder):
        raise Refused("--start is for the denoiser, and brings the autoencoder: leave --autoencoder out")
    if args.start and (fixed := changes.keys() & {"size", "dropout"}):
        raise Refused(f"--start brings the network as it is: leave --set {' and '.join(sorted(fixed))} out")
    if args.stage not in ("autoencoder", "denoiser"):
        return _train_method(args, changes)
    recipe = getattr(RECIPES[args.recipe], args.stage)
    config, options = configured(recipe, **changes), dict(resume=args.resume)
    if args.stage == "autoencoder":
        run = train_autoencoder(args.data, args.out, config, **options)
    else:
        autoencoder = args.autoencoder
        if args.start:
            start = MadAdPipeline.from_pretrained(args.start)
            note_differences(f"--start {args.start}", start.config.contrast, start.config.grid, args.data)
            known, normalise = start.config.normalise, Manifest.load(args.data[0]).normalise
            if normalise != known:
                print(f"--start {args.start}: knows --normalise {known}, and learns {normalise} now")
            autoencoder, options["model"] = start.autoencoder, start.denoiser
        elif autoencoder is None:
            raise Refused("the denoiser needs a trained autoencoder: --autoencoder RUN/best")
        run = train_denoiser(args.data, autoencoder, args.out, config, **options)
    print(f"weights: {run / 'best'} and {run / 'last'}")


def _train_method(args, changes: dict) -> None:
    kind = method_class(args.stage)
    recipe = configured(kind.Config(), **recipe_settings(args.stage, args.recipe))
    options = dict(autoencoder=args.autoencoder, resume=args.resume)
    written = kind.train(args.data, args.out, configured(recipe, **changes), **options)
    print(f"{kind.title}: {written}")


def compare(args) -> None:
    names = [name.strip() for name in args.methods.split(",")]
    results = race.compare(
        args.data,
        names,
        args.out,
        autoencoder=args.autoencoder,
        settings={"steps": args.steps} | settings(args.set),
        after=configured(Postprocessing(), **settings(args.after)),
        seed=args.seed,
    )
    print(table({name: r["test"] for name, r in results.items()}))
    print(f"table, numbers and pictures: {Path(args.out) / race.PICTURE}")


def detect(args, scans: list[Path], register: bool | str) -> int:
    without = ("resume", "mask", "keep_brain", "series", "normalise", "steps", "eta")
    if given := [n for n in without if getattr(args, n) not in (None, False)]:
        raise Refused(f"--method writes maps only: leave --{given[0].replace('_', '-')} out")
    if args.score != "image":
        raise Refused("--method has one score: leave --score out")
    options = chosen(args, "brain channel z_range z_spacing batch_size device force force_contrast seed")
    return 1 if detect_by(args.method, scans, args.out, register=register, **options) else 0
