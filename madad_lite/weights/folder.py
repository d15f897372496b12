"""A model's folder is read here, and nothing but a model is read from it: these files, of these classes, no other.

    model_index.json                                   the settings of the pipeline, and the class of each part
    autoencoder/config.json, denoiser/config.json      their shapes
    autoencoder/, denoiser/ *.safetensors              their tensors, exactly those that the shapes ask for
    scheduler/scheduler_config.json                    the noise schedule

The shipped models share one autoencoder, beside their folders.

diffusers' own loading looks up, and in some versions runs, whatever module an index names. So none of it is used on a
folder: the index only has to agree with this list. Sizes are bounded before a module is made, and memory is taken only
for tensors that are in the file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from madad_lite.autoencoder import folding
from madad_lite.denoiser import Denoiser
from madad_lite.errors import WeightsError
from madad_lite.files import parse_json
from madad_lite.scans.grid import Grid
from madad_lite.weights import SHARED_AUTOENCODER, WEIGHTS, shipped

INDEX, CONFIG, SCHEDULE = "model_index.json", "config.json", "scheduler_config.json"
TENSORS = "diffusion_pytorch_model.safetensors"
PARTS = {
    "autoencoder": ["diffusers", "AutoencoderKL"],
    "denoiser": ["madad_lite.denoiser", "Denoiser"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}
FILES = [INDEX, "README.md", f"scheduler/{SCHEDULE}"]
FILES += [f"{part}/{file}" for part in ("autoencoder", "denoiser") for file in (CONFIG, TENSORS)]
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")  # of snapshot_download
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

LARGEST_JSON = 1_000_000  # bytes
LARGEST_NUMBER = 8192  # of a config: channels, groups, steps
DEEPEST = {"layers_per_block": 16, "num_train_timesteps": 1000}
LONGEST = 16  # entries of a list
LARGEST_MODEL = 2e9  # parameters; the largest of the authors' has 0.4e9
LARGEST_GRID = 2**28  # voxels

Model = TypeVar("Model", AutoencoderKL, Denoiser)
Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


def find_folder(name: str | os.PathLike, **hub) -> Path:
    """The folder of a shipped name in any case, of a path, or of a hub id, which is downloaded; a hub id is only what
    cannot be a folder.

    hub: HUB_OPTIONS, as of huggingface_hub.snapshot_download.
    WeightsError: there is no such thing.
    """
    text = os.fspath(name)
    folder = Path(text)
    if text in shipped() or (text.lower() in shipped() and not folder.exists()):
        return WEIGHTS / text.lower()
    if (folder / INDEX).is_file():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(text) or folder.parent.exists():
        raise WeightsError(
            f"{text}: neither a shipped model ({', '.join(shipped())}), nor a folder with a {INDEX}, nor a hub id"
        )
    try:
        return Path(snapshot_download(text, allow_patterns=FILES, **hub))
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # no such repository, no network, an id that none can have
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"{text}: no such folder here, and not to be had from the hub ({reason})"
        ) from None


def autoencoder_folder(folder: Path) -> Path:
    """Where the autoencoder of a model's folder lies: in it, or, of a shipped one, beside it."""
    own, is_shipped = folder / "autoencoder", folder.resolve().parent == WEIGHTS.resolve()
    return SHARED_AUTOENCODER if is_shipped and not own.exists() else own


def read_pipeline(kind: type[Pipeline], name: str | os.PathLike, dtype: torch.dtype, **changes) -> Pipeline:
    """The pipeline `kind` of a shipped name, a folder or a hub id, its models in `dtype`.

    changes: its arguments, in place of the folder's, and options of find_folder. TypeError: other ones.
    WeightsError, one line that names the file, for whatever is not a model's: other classes, python files, damaged or
    missing files, sizes out of bounds.
    """
    folder = find_folder(name, **{k: changes.pop(k) for k in HUB_OPTIONS if k in changes})
    if code := [p for pattern in ("*.py", "*/*.py") for p in sorted(folder.glob(pattern))]:
        raise WeightsError(f"{code[0]}: a model's folder holds no code; remove it, or do not use this folder")
    index = _read_json(folder / INDEX, "MadAdPipeline")
    for part, expected in PARTS.items():
        if (found := index.pop(part, None)) != expected:
            raise WeightsError(f"{folder / INDEX}: {part} must be {expected}, not {found!r}")
    if unknown := index.keys() - signature(kind.__init__).parameters.keys():
        raise WeightsError(f"{folder / INDEX}: no such setting: {', '.join(sorted(unknown))}")
    _check_grid(folder / INDEX, index.get("grid"))
    parts = {
        "autoencoder": read_model(AutoencoderKL, autoencoder_folder(folder), dtype),
        "denoiser": read_model(Denoiser, folder / "denoiser", dtype),
        "scheduler": read_scheduler(folder / "scheduler"),
    }
    check_pair(parts["autoencoder"], parts["denoiser"], folder)
    with _naming(folder / INDEX):
        pipe = kind(**parts, **index)
    pipe = kind(**{**parts, **index, **changes}) if changes else pipe
    pipe.register_to_config(_name_or_path=str(folder))
    return pipe


def check_pair(autoencoder: AutoencoderKL, denoiser: Denoiser, where: str | os.PathLike) -> None:
    """WeightsError: the two do not fit each other."""
    given, wanted = autoencoder.config.latent_channels, denoiser.config.latent_channels
    if given != wanted:
        raise WeightsError(
            f"{where}: its autoencoder gives {given} latent channels, its denoiser wants {wanted}"
        )


def read_model(kind: type[Model], folder: str | os.PathLike, dtype: torch.dtype = torch.float32) -> Model:
    """An autoencoder or denoiser from its folder, in `dtype`, for inference.

    WeightsError, one line that names the file: another class, a missing, damaged or superfluous tensor, and the like.
    """
    config, tensors = Path(folder) / CONFIG, Path(folder) / TENSORS
    content = _read_json(config, kind.__name__, private=True)
    with _naming(config), torch.device("meta"):  # takes no memory
        model = kind.from_config(content)
    if isinstance(model, AutoencoderKL):
        with _naming(config):
            folding(model)
            if model.config.out_channels != model.config.in_channels:
                raise ValueError(
                    f"{model.config.in_channels} channels in, and {model.config.out_channels} out"
                )
            if not model.config.scaling_factor > 0:
                raise ValueError(f"scaling_factor must be above 0, not {model.config.scaling_factor}")
    wanted = model.state_dict()  # of parameters alone: neither class has buffers that are not saved
    if sum(t.numel() for t in wanted.values()) > LARGEST_MODEL:
        raise WeightsError(f"{config}: more than {LARGEST_MODEL:.0e} parameters")
    if not tensors.is_file():
        raise WeightsError(f"{tensors}: no such file")
    with _naming(tensors), safe_open(tensors, "pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}
        if missing := sorted(wanted.keys() - found.keys()):
            raise ValueError(f"{missing[0]} is missing ({len(missing)} of {len(wanted)} tensors are)")
        if unknown := sorted(found.keys() - wanted.keys()):
            raise ValueError(f"{unknown[0]} belongs to no such model as {config} describes")
        for name, tensor in found.items():
            if tensor.get_shape() != list(wanted[name].shape):
                raise ValueError(
                    f"{name} is {tensor.get_shape()}, but {config} asks for {list(wanted[name].shape)}"
                )
            if tensor.get_dtype() not in ("F16", "BF16", "F32", "F64"):
                raise ValueError(f"{name} holds no floating-point numbers")
        # copied: a file that is mapped and cut meanwhile would end the process
        tensors = {name: file.get_tensor(name).to(dtype, copy=True) for name in wanted}
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} holds NaN or infinite values")
        model.load_state_dict(tensors, assign=True)
    return model.eval()


def read_scheduler(folder: str | os.PathLike) -> DDIMScheduler:
    """The noise schedule of a folder. WeightsError, one line that names the file, if it is none."""
    path = Path(folder) / SCHEDULE
    content = _read_json(path, "DDIMScheduler")
    with _naming(path):
        scheduler = DDIMScheduler.from_config(content)
        if scheduler.config.prediction_type != "sample":
            raise ValueError('prediction_type must be "sample": the denoiser gives the clean latent itself')
        if scheduler.config.clip_sample or scheduler.config.thresholding:
            raise ValueError("clip_sample and thresholding must be false: latents go beyond -1 and 1")
        T, abar = scheduler.config.num_train_timesteps, scheduler.alphas_cumprod
        known = len(abar) == T and torch.isfinite(abar).all() and 0 <= abar.min() and abar.max() <= 1
        if not known or (abar.diff() >= 0).any():
            raise ValueError("alphas_cumprod must fall from step to step, within 0 and 1")
        for steps in (1, T):
            scheduler.set_timesteps(steps)
            if not 0 <= scheduler.timesteps.min() <= scheduler.timesteps.max() < T:
                raise ValueError(f"{steps} reverse steps would leave the {T} of the schedule")
    return scheduler


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever a file's content makes fail becomes one line that names the file."""
    try:
        yield
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path}: {reason}") from None
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged ({error}); copy or download it again") from None


def _read_json(path: Path, kind: str, private: bool = False) -> dict:
    """The content of a config of the class `kind`, every number bounded; private: with what diffusers notes there."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    with _naming(path):
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"a config of more than {LARGEST_JSON} bytes")
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"damaged ({error}); copy or download it again") from None
        if not isinstance(content, dict) or content.get("_class_name") != kind:
            found = content.get("_class_name") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"describes {found!r}, not a {kind}")
        content = {k: v for k, v in content.items() if not k.startswith("_") or (private and k == "_folding")}
        for name, value in content.items():
            _check_value(name, value, DEEPEST.get(name, LARGEST_NUMBER))
    return content


def _check_value(name: str, value: object, largest: float) -> None:
    if isinstance(value, (list, dict)):
        if len(value) > LONGEST:
            raise ValueError(f"{name} has more than {LONGEST} entries")
        for entry in value.values() if isinstance(value, dict) else value:
            _check_value(name, entry, largest)
    elif isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) <= largest):
        raise ValueError(f"{name} is out of bounds: {value}")


def _check_grid(path: Path, grid: object) -> None:
    """Before any slice is made on it."""
    if grid is None:
        return
    with _naming(path):
        try:
            spacing, size, (low, high) = grid["spacing"], grid["size"], grid["z_range"]
            step = grid.get("z_spacing") or spacing
            good = spacing > 0 and step > 0 and size >= 1 and low <= high and bool(Grid.from_dict(grid))
            voxels = size**2 * ((high - low) / step + 1)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            good, voxels = False, 0
        if not good or voxels > LARGEST_GRID:
            raise ValueError(f"no usable grid: {grid!r}")
