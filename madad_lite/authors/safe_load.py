"""Tensors out of a pickled file without running anything from it.

A PyTorch file is a pickle, and a pickle is a program. torch.load(weights_only=True) runs only what rebuilds
tensors and plain containers, and stops at everything else. Files of whole modules also name the modules'
classes; those names are given inert stand-ins here, classes that hold attributes and do nothing. Nothing of
the original classes is imported.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from madad_lite.errors import UnsafeFile

# Names that get a stand-in: those of the classes that such a module is made of.
KNOWN = (
    "argparse.Namespace",
    "pathlib.",
    "ldm.",
    "taming.",
    "pytorch_lightning.",
    "lightning.",
    "omegaconf.",
    "torch.nn.modules.",
    "torch.nn.functional.",
    "torchvision.models.",
)


class StandIn:
    """Takes the place of a class of the file: holds its attributes, has none of its code."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    @property
    def class_name(self) -> str:
        return f"{type(self).__module__}.{type(self).__name__}"


def _stand_in(name: str) -> type:
    module, _, short = name.rpartition(".")
    return type(short, (StandIn,), {"__module__": module})


def load_file(path: str | Path):
    """What torch.save wrote, with stand-ins for module classes and argparse.Namespace. Raises UnsafeFile,
    FileNotFoundError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # damaged in some way; the kinds of exception are many
        raise UnsafeFile(
            f"{path}: cannot be read as a PyTorch file ({_first_line(error)}); cut off or too old?"
        ) from None
    if unknown := sorted(
        n for n in names if not n.startswith(KNOWN) or not n.replace(".", "").isidentifier()
    ):
        raise UnsafeFile(
            f"{path}: refused, it names {', '.join(unknown)}, which is neither a tensor nor a known module; "
            "nothing of it was run"
        )
    try:
        with safe_globals([_stand_in(n) for n in names]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeFile(
            f"{path}: refused, it holds more than tensors and containers ({_first_line(error)})"
        ) from None
    except Exception as error:
        raise UnsafeFile(
            f"{path}: cannot be read as a PyTorch file ({_first_line(error)}); cut off?"
        ) from None


def _first_line(error: Exception) -> str:
    """The cause in a few words: torch's own message begins with advice to trust the file, which is not what
    we advise.
    """
    text = str(error).split("WeightsUnpickler error:")[-1]
    return next((line.strip()[:160] for line in text.splitlines() if line.strip()), type(error).__name__)


def state_dict_of(module: StandIn, prefix: str = "", depth: int = 0) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a module's stand-in, with the names that state_dict() would give them."""
    if depth > 100:
        raise UnsafeFile(f"{type(module).__name__} holds modules in a circle")
    content = vars(module)
    transient = content.get("_non_persistent_buffers_set") or ()
    found = {}
    for group in ("_parameters", "_buffers", "_modules"):
        members = content.get(group) or {}
        if not isinstance(members, dict) or not all(isinstance(name, str) for name in members):
            raise UnsafeFile(f"{type(module).__name__}.{group} is not a dictionary by name")
        for name, value in members.items():
            if group == "_modules" and isinstance(value, StandIn):
                found |= state_dict_of(value, f"{prefix}{name}.", depth + 1)
            elif (
                group != "_modules"
                and isinstance(value, torch.Tensor)
                and not (group == "_buffers" and name in transient)
            ):
                found[f"{prefix}{name}"] = value.detach()
    return found
