"""Tensors out of a pickled file without running anything from it.

A PyTorch file is a pickle, and a pickle is a program. torch.load(weights_only=True) runs only what rebuilds
tensors and plain containers, and stops at everything else. Files of whole modules also name the modules'
classes; those names are given inert stand-ins here, classes that hold attributes and do nothing. Nothing of
the original classes is imported.
"""

from __future__ import annotations

import pickle
import zipfile
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
MAX_BYTES = 4 * 10**9  # of weights; the authors' largest UNet has 1.6
MAX_MODULES = 20_000  # in a module; an autoencoder with its loss has a few hundred
MAX_DEPTH = 100


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
        raise FileNotFoundError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        _refuse_packed(path)
        names = get_unsafe_globals_in_checkpoint(path)
    except UnsafeFile:
        raise
    except Exception as error:  # damaged in some way; the kinds of exception are many
        raise UnsafeFile(
            f"{path}: cannot be read as a PyTorch file ({_first_line(error)}); cut off or too old?"
        ) from None
    if unknown := sorted(
        n for n in names if not n.startswith(KNOWN) or not n.replace(".", "").isidentifier()
    ):
        raise UnsafeFile(
            f"{path}: refused, it names {', '.join(map(short, unknown[:3]))}{', ..' if unknown[3:] else ''}, "
            "which is neither a tensor nor a known module; nothing of it was run"
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


def _refuse_packed(path: Path) -> None:
    """torch.save packs nothing, so that what is packed, or there twice, can only be meant to grow in memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
        packed = any(p.compress_type != zipfile.ZIP_STORED for p in parts)
        if packed or sum(p.file_size for p in parts) > path.stat().st_size:
            raise UnsafeFile(f"{path}: refused, it grows when it is unpacked, which no PyTorch file does")


def short(name: object) -> str:
    """A name from a file, fit for a line of text."""
    text = " ".join(str(name).split())
    return text if len(text) <= 80 else text[:77] + "..."


def _first_line(error: Exception) -> str:
    """The cause in a few words: torch's own message begins with advice to trust the file, which is not what
    we advise.
    """
    text = str(error).split("WeightsUnpickler error:")[-1]
    return next((line.strip()[:160] for line in text.splitlines() if line.strip()), type(error).__name__)


def check_tensors(weights: dict[str, torch.Tensor]) -> None:
    """ValueError, naming the first, unless all are ordinary tensors of numbers that lie in memory as they are,
    together at most MAX_BYTES.
    """
    total = 0
    for name, value in weights.items():
        kind = (
            "a nested tensor"
            if value.is_nested
            else f"{str(value.layout).removeprefix('torch.')}"
            if value.layout != torch.strided
            else f"on the device {value.device}"
            if value.device.type != "cpu"
            else f"of type {str(value.dtype).removeprefix('torch.')}"
            if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
            else "a view with its sign turned"
            if value.is_neg()
            else None
        )
        if kind:
            raise ValueError(f"holds no weights: {short(name)} is {kind}")
        size = value.numel() * value.element_size()
        if size > value.untyped_storage().nbytes():
            raise ValueError(f"holds no weights: {short(name)} says it is larger than what is stored of it")
        total += size
    if total > MAX_BYTES:
        raise ValueError(f"holds {total / 1e9:.1f} GB of weights, more than {MAX_BYTES / 1e9:.0f} GB")


def state_dict_of(module: StandIn) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a module's stand-in, with the names that state_dict() would give them.

    UnsafeFile for what is no tree of modules, or one of more than MAX_MODULES modules or MAX_DEPTH levels.
    """
    found: dict[str, torch.Tensor] = {}
    waiting, seen = [(module, "", 0)], 0
    while waiting:
        module, prefix, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_MODULES:  # a circle, or one that is there twice at each level
            raise UnsafeFile(
                f"{short(type(module).__name__)} holds modules in a circle, or more than {MAX_MODULES} of them"
            )
        content = vars(module)
        transient = content.get("_non_persistent_buffers_set")
        transient = transient if isinstance(transient, (set, frozenset)) else ()
        for group in ("_parameters", "_buffers", "_modules"):
            members = content.get(group, {})
            members = {} if members is None else members
            if not isinstance(members, dict) or not all(isinstance(name, str) for name in members):
                raise UnsafeFile(f"{short(type(module).__name__)}.{group} is not a dictionary by name")
            for name, value in members.items():
                if group == "_modules" and isinstance(value, StandIn):
                    waiting.append((value, f"{prefix}{name}.", depth + 1))
                elif group != "_modules" and isinstance(value, torch.Tensor):
                    if not (group == "_buffers" and name in transient):
                        found[f"{prefix}{name}"] = value.detach()
    return found
