"""The command line: madad demo | phantom | prepare | recolour | train | assemble | detect | evaluate | ...

Thin: each command is its arguments and the call of one function; what is heavy is imported where it is needed.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from pathlib import Path

import madad_lite
from madad_lite.arguments import (
    COMMANDS,
    CONTRAST,
    CONTRASTS,
    DATA,
    FORCE,
    INPUT,
    LAYOUTS,
    NORMALISE,
    OUT,
    RECIPE,
    REGISTER,
    RESULTS,
    REVERSE,
    SEED,
    SERIES,
    WEIGHTS,
    YES_NO,
    Help,
    arg,
    changes,
    chosen,
    command,
    folder,
    path,
    settings,
    whole,
)
from madad_lite.errors import Refused, foreseen, insisting, one_line, write_log
from madad_lite.family.registry import FAMILY
from madad_lite.threads import use_free_cores

BRAIN = """auto, deepbet, template, or a mask; of several scans such as {name}_brain_mask.nii.gz; default: auto, which
takes NAME_brain_mask.nii.gz beside the scan, else a stripped scan's background, else deepbet, else template"""
AGAIN_AFTER = 5.0  # s: a Ctrl-C that was swallowed comes again


@command("demo", "the main job end to end on simulated subjects; writes a page with pictures", RESULTS)
def demo(args):
    from madad_lite.demo.run import run_demo

    run_demo(args.out)


@command(
    "phantom",
    "write a cohort of simulated subjects as NIfTI files",
    OUT,
    arg("--normal", type=whole(0, 100_000), default=8, help="subjects without lesion"),
    arg("--patients", type=whole(0, 100_000), default=4, help="subjects with one"),
    arg("--contrast", nargs="+", choices=CONTRASTS, default=["t1"], help="one or several; default: t1"),
    arg("--spacing", type=float, default=2.0, help="voxel size in mm"),
    SEED,
    FORCE,
)
def phantom(args):
    from madad_lite.simulation.cohort import write_cohort

    options = chosen(args, "normal patients spacing seed force")
    written = write_cohort(args.out, contrasts=tuple(args.contrast), **options)
    print(f"simulated subjects: {written}")


@command(
    "prepare",
    "turn a folder of scans into slices on one grid",
    INPUT,
    OUT,
    CONTRAST,
    arg("--layout", choices=LAYOUTS, default="auto", help="how files are named and lie in the folder"),
    REGISTER,
    NORMALISE,
    arg("--spacing", type=float, default=2.0, help="of the slices, mm"),
    arg("--size", type=int, default=96, help="of the slices, pixels"),
    arg("--splits", type=path, help='JSON file {"train": [subjects], "val": ..., "test": ...}; else random'),
    arg("--patients-in-train", action="store_true", help="train on the lesion-free slices of patients too"),
    SERIES,
    arg("--png", type=folder, help="also write PNG files to this folder"),
    arg("--workers", type=whole(1, 10_000), help="processes; default: one a core"),
    SEED,
)
def prepare(args) -> int:
    from madad_lite.authors.png_export import check_png_output, export_png
    from madad_lite.scans.grid import Grid
    from madad_lite.slices.folder import prepare_folder

    options = chosen(args, "contrast layout series normalise seed workers patients_in_train splits")
    options |= {"grid": Grid(spacing=args.spacing, size=args.size), "register": YES_NO[args.register]}
    if args.png:
        check_png_output(Path(args.png), {args.source, args.out})
    manifest = prepare_folder(args.source, args.out, **options)
    if args.png:
        export_png(manifest, args.png)
    counts = ", ".join(f"{len(manifest.scans(s))} {s}" for s in ("train", "val", "test"))
    print(f"{args.out}: {counts}; {len(manifest.skipped)} skipped")
    for file, reason in manifest.skipped:
        print(f"  skipped {reason if str(file) in str(reason) else f'{file}: {reason}'}", file=sys.stderr)
    return 1 if manifest.skipped else 0


@command(
    "recolour",
    "prepared T1 slices of normal subjects -> FLAIR-like, T2-like or T1ce-like ones",
    INPUT,
    OUT,
    arg("--contrast", choices=("flair", "t2", "t1ce"), default="flair", help="to turn T1 into"),
    SEED,
)
def recolour(args):
    from madad_lite.simulation.recolour import recolour_folder

    manifest = recolour_folder(args.source, args.out, args.contrast, seed=args.seed)
    print(f"{args.out}: {len(manifest.scans())} scans in {args.contrast.upper()} contrast, made from T1")


@command(
    "train",
    "train the autoencoder, the masked denoiser, or another method of the family on prepared slices",
    arg("stage", choices=("autoencoder", "denoiser", *FAMILY), metavar="STAGE", help="%(choices)s"),
    DATA,
    OUT,
    arg("--autoencoder", type=path, help="for what lives in its latents: folder of the trained autoencoder"),
    arg("--start", help="weights the denoiser goes on from, and their autoencoder: such as t1, or a folder"),
    RECIPE,
    changes("NAME=VALUE", "settings that differ, such as steps=500 size=XS"),
    arg("--resume", action="store_true", help="go on from the last checkpoint"),
)
def train(args):
    from madad_lite.cli_family import train

    train(args, settings(args.set))


@command(
    "compare",
    "train methods of the family alike on the same slices, and measure them side by side",
    DATA,
    arg(
        "--methods",
        required=True,
        help=f"with commas between: {', '.join(FAMILY)}, or folders of trained ones",
    ),
    OUT,
    arg("--steps", type=int, default=500, help="of each training"),
    arg("--autoencoder", type=path, help="for those in latents; default: the shipped one of the contrast"),
    arg("--after", nargs="*", default=["sigma=0.7"], metavar="NAME=VALUE", help="what is done to every map"),
    changes("NAME=VALUE", "settings of the trainings, such as batch_size=16"),
    SEED,
)
def compare(args):
    from madad_lite.cli_family import compare

    compare(args)


@command(
    "assemble",
    "join a trained autoencoder and denoiser to a pipeline's folder",
    arg("--autoencoder", type=path, required=True),
    arg("--denoiser", type=path, required=True),
    arg("--data", type=path, required=True, help="a prepared folder: contrast and grid are taken from it"),
    OUT,
    RECIPE,
    changes("NAME=VALUE", "settings of detection, such as mask_threshold=0.3; decision_threshold too"),
    arg("--half", action="store_true", help="store in half precision"),
    FORCE,
)
def assemble(args):
    from madad_lite.training.assemble import assemble

    options = chosen(args, "autoencoder denoiser data out recipe half force")
    print(f"pipeline: {assemble(**options, changes=settings(args.set))}")


@command(
    "detect",
    "anomaly maps of scans",
    arg("scan", nargs="+", type=path, help="NIfTI files, folders of them, or DICOM folders, each one scan"),
    OUT,
    arg(
        "--weights", type=path, default="t1", help="a shipped name, a folder, a hub id, or auto: by contrast"
    ),
    arg("--method", type=folder, help="another trained method of the family: its folder; maps only"),
    arg("--force-contrast", action="store_true", help="also scans that look like another contrast"),
    arg("--brain", type=path, help=BRAIN),
    arg("--mask", action="store_true", help="also write NAME_mask.nii.gz: 1 where something was found"),
    arg("--keep-brain", action="store_true", help="also write NAME_brain_mask.nii.gz"),
    arg("--channel", type=whole(0), help="which volume of a 4-D file"),
    SERIES,
    REGISTER,
    NORMALISE,
    arg("--z-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="only these slices, MNI mm"),
    arg("--z-spacing", type=float, help="mm from slice to slice; default: the model's own"),
    arg("--batch-size", type=whole(1), help="slices at once; default: as many as fit"),
    arg("--device", help="cpu, cuda, ...; default: a GPU if there is one"),
    arg("--resume", action="store_true", help="leave out the scans whose results are there"),
    arg("--force", action="store_true", help="overwrite results"),
    *REVERSE,
)
def detect(args) -> int:
    if args.resume and args.force:
        raise Refused("--resume leaves alone what is there, --force overwrites it: choose one")
    from madad_lite.detection.many_scans import detect, scans_in

    scans = scans_in(args.scan)
    if not scans:
        raise Refused(f"{', '.join(args.scan)}: no NIfTI file (.nii, .nii.gz) and no DICOM file there")
    if args.device is not None:
        _check_device(args.device)
    if args.method is not None:
        from madad_lite.cli_family import detect

        return detect(args, scans, YES_NO[args.register])
    options = chosen(
        args, "weights brain channel series normalise z_range z_spacing batch_size device resume force"
    )
    options |= chosen(args, "force_contrast mask keep_brain eta score seed")
    options |= {"num_inference_steps": args.steps, "register": YES_NO[args.register]}
    failed = detect(scans, args.out, **options)
    return 1 if failed else 0


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:  # no such device, or a torch without it
        raise Refused(f"--device {name}: cannot be used here ({one_line(error)}); cpu always can") from None


@command(
    "evaluate",
    "metrics of weights on a prepared folder with lesion masks, beside simple baselines",
    DATA,
    WEIGHTS,
    arg("--out", type=path, help="JSON file for all numbers"),
    *REVERSE,
)
def evaluate(args):
    from madad_lite.evaluation.compare import evaluate_weights
    from madad_lite.evaluation.metrics import table
    from madad_lite.files import check_json_output, write_json

    if args.out:
        check_json_output(Path(args.out), "methods")
    options = chosen(args, "eta score seed") | {"num_inference_steps": args.steps}
    results = evaluate_weights(args.weights, args.data, **options)
    print(table({name: r["test"] for name, r in results["methods"].items()}))
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(args.out), results)
        print(f"all numbers: {args.out}")


@command(
    "reproduce",
    "a setting of the paper: both trainings, then the test; resumes what was interrupted",
    arg("setting", choices=("S1", "S2"), help="S1: IXI, then ATLAS. S2: BraTS, each contrast"),
    arg("--train", type=path, help="S1: the prepared folder of healthy T1 scans"),
    arg("--test", nargs="+", type=path, required=True, help="prepared patients; S2: a folder a contrast"),
    OUT,
    RECIPE,
    arg(
        "--methods",
        default="",
        help="of the family, with commas between, or all: trained and tested beside it; default: none",
    ),
    changes("PART.NAME=VALUE", "such as denoiser.size=XS; parts: autoencoder, denoiser, detection, family"),
    SEED,
)
def reproduce(args):
    from madad_lite.evaluation.reproduce import OTHERS, reproduce, summary

    different: dict[str, dict] = {}
    for name, value in settings(args.set).items():
        part, dot, key = name.partition(".")
        if not dot:
            raise Refused(
                f"--set wants denoiser.NAME=VALUE, or autoencoder, detection or family in its place, not {name!r}"
            )
        different.setdefault(part, {})[key] = value
    options = chosen(args, "train test out recipe seed")
    named = [name.strip() for name in args.methods.split(",") if name.strip()]
    options["methods"] = OTHERS if named == ["all"] else named
    print(summary(reproduce(args.setting, changes=different, **options)))
    print(f"all numbers: {Path(args.out) / 'metrics.json'}")


@command(
    "import-official",
    "the authors' checkpoints in our layout; nothing in the files is run",
    arg("file", nargs="+", type=path, help="their UNet, their encoder, or both: then a whole pipeline"),
    OUT,
    arg("--contrast", choices=CONTRASTS, default="t1", help="that they were trained on"),
    arg("--spacing", type=float, default=1.0, help="of the slices, mm"),
    arg("--size", type=int, default=256, help="of the slices, pixels"),
    arg("--z-spacing", type=float, default=4.0, help="mm from slice to slice: only time depends on it"),
    arg("--heads", type=whole(1), help="of the UNet's attention; default: as the authors', by its width"),
)
def import_official(args):
    from madad_lite.authors.checkpoints import import_official

    options = chosen(args, "contrast spacing z_spacing") | {"slice_size": args.size, "num_heads": args.heads}
    written = import_official(args.file, args.out, **options)
    print(f"imported: {written}")


@command(
    "export-onnx",
    "weights as ONNX files and a JSON of their settings, for other programs",
    arg("weights", type=path, help="a shipped name, a folder, or a hub id"),
    *(OUT, FORCE, arg("--half", action="store_true", help="store in half precision: half the size")),
)
def export_onnx(args):
    from madad_lite.onnx_export import export_onnx

    print(f"exported: {export_onnx(**chosen(args, 'weights out half force'))}")


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> Parser:
    p = Parser(prog="madad", description="Masked diffusion for unsupervised anomaly detection on brain MRI.")
    p.add_argument("--version", action="version", version=madad_lite.__version__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, arguments, run) in COMMANDS.items():
        c = commands.add_parser(name, help=text, description=text, formatter_class=Help)
        c.set_defaults(run=run)
        for names, options in arguments:
            c.add_argument(*names, **options)
    return p


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done; 1 some scans failed, or an error that nobody foresaw; 2 refused, one line says why;
    130 interrupted.
    """
    logging.basicConfig(format="madad: %(message)s")  # warnings and errors, to stderr
    for name in ("stdout", "stderr"):
        # closed by the caller (>&-): else the next file that is opened takes its place
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that cannot be shown stops nothing
    name = "madad"
    try:
        try:
            args = parser().parse_args(argv)
            name = f"madad {args.command}"
            use_free_cores()
            with insisting(AGAIN_AFTER):
                return args.run(args) or 0
        finally:
            _flush()
    except KeyboardInterrupt:
        exec("")  # else Python, if an exec() was interrupted, ends itself by the signal and not with 130
        print(f"{name}: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `madad ... | head`: nobody reads on
        return 141
    except Exception as error:
        if foreseen(error):
            print(f"{name}: {one_line(error)}", file=sys.stderr)
            return 2
        said, log = f"unexpected: {type(error).__name__}: {one_line(error)}", write_log(error)
        print(f"{name}: {said}; details in {log}", file=sys.stderr)
        return 1


def _flush() -> None:
    """Now, where an error can still be told; what could not be written is not tried again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from None


if __name__ == "__main__":
    sys.exit(main())
