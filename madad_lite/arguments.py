"""How the commands of cli.py are said: their arguments, those that several share, and what is made of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from madad_lite.errors import Refused
from madad_lite.files import parse_json

CONTRASTS = ("t1", "t2", "flair", "t1ce")
LAYOUTS = ("auto", "plain", "ixi", "atlas", "brats", "msd", "cohort", "glioma", "ms")
YES_NO = {"auto": "auto", "yes": True, "no": False}
COMMANDS: dict[str, tuple[str, tuple, Callable]] = {}  # name: (what it does, its arguments, what runs)


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says an argument's default where there is one and the text does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        plain = action.default in (None, []) or action.default is False or "default" in action.help
        return action.help if plain else super()._get_help_string(action)


def arg(*names: str, **options) -> tuple[tuple[str, ...], dict]:
    """An argument, in add_argument's words."""
    return names, options


def command(name: str, text: str, *arguments):
    """Adds a command; the function gets the arguments as they were parsed and returns nothing, or the exit
    code.
    """

    def add(run: Callable) -> Callable:
        COMMANDS[name] = (text, arguments, run)
        return run

    return add


def path(text: str) -> str:
    """An empty one would be the current folder: most likely a variable that a script did not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name; give the path of a file or folder")
    return text


def whole(low: int, high: int = 10**9) -> Callable[[str], int]:
    """The type of an argument that is a whole number from low to high."""

    def whole_number(text: str) -> int:
        if low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {low} to {high}")

    return whole_number


def folder(text: str) -> str:
    if Path(path(text)).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; give a folder")
    return text


INPUT = arg("source", type=path, help="the folder that is read")
RESULTS = arg("--out", type=folder, default="results/demo", help="the folder that is written")
OUT = arg("--out", type=folder, required=True, help="the folder that is written")
DATA = arg("--data", nargs="+", type=path, required=True, help="prepared folders")
WEIGHTS = arg("--weights", type=path, default="t1", help="a shipped name, a folder, or a hub id")
CONTRAST = arg("--contrast", choices=CONTRASTS, default="t1", help="of the scans")
REGISTER = arg("--register", choices=YES_NO, default="auto", help="to MNI152; auto: where it is needed")
NORMALISE = arg(
    "--normalise",
    choices=("median", "tissue"),
    help="intensities by the brain's median, or with CSF, grey and white matter at fixed places; default: median, for "
    "detect as the weights were trained",
)
RECIPE = arg("--recipe", choices=("lite", "paper", "authors"), default="lite", help="named settings")
SEED = arg("--seed", type=whole(0, 2**32 - 1), default=0, help="of what is random")
SERIES = arg("--series", help="of a DICOM folder: number or description; default: by the contrast")
FORCE = arg("--force", action="store_true", help="replace what an earlier call wrote")
REVERSE = (
    arg("--steps", type=int, help="reverse steps, at most 10; default: the model's own"),
    arg("--eta", type=float, help="randomness of the reverse process, 0: none; default: the model's own"),
    arg("--score", choices=("image", "latent", "mask"), default="image", help="what the map measures"),
    SEED,
)


def chosen(args, names: str) -> dict:
    """{"seed": args.seed, ...}: arguments that the called function names alike."""
    return {name: getattr(args, name) for name in names.split()}


def changes(metavar: str, text: str):
    return arg("--set", nargs="*", action="extend", default=[], metavar=metavar, help=text)


def settings(pairs: list[str]) -> dict:
    """["steps=100", "mask_loss=mse"] -> {"steps": 100, "mask_loss": "mse"}."""
    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise Refused(f"--set wants name=value, not {pair!r}")
        try:
            found[name.strip()] = parse_json(value)
        except ValueError:
            found[name.strip()] = value
    return found
