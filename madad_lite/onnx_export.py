"""Encoder, denoiser and decoder as ONNX, with a JSON of all that a program in another language needs to heal a slice
with them (this repository's addition). The page in docs/playground is such a program.

    encoder.onnx    x0 (1, 1, H, W) -> z0 (1, C, h, w), the posterior's mode, scaled
    denoiser.onnx   z_t (1, C, h, w), t (1,) int64 -> z0_hat (1, C, h, w), mask_logits (1, 1, h, w)
    decoder.onnx    z (1, C, h, w), scaled -> x0_hat (1, 1, H, W), not clipped to [-1, 1]
    settings.json   contrast, grid, shapes, schedule, settings of the reverse process and of the score
"""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from madad_lite.autoencoder import decode, downsampling, encode
from madad_lite.errors import Refused, RunError
from madad_lite.extensions.intensity_weight import BRIGHT_LESIONS
from madad_lite.files import new_folder, read_json, refuse_foreign, write_json
from madad_lite.pipeline import MadAdPipeline
from madad_lite.settings import DetectionSettings
from madad_lite.weights.folder import find_folder

SETTINGS = "settings.json"
EXPORTED = [SETTINGS, "encoder.onnx", "denoiser.onnx", "decoder.onnx", "README.md"]
OPSET = 17  # LayerNormalization and all else that is needed; every onnxruntime since 1.12 knows it


class _Encoder(nn.Module):
    def __init__(self, autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x0: torch.Tensor) -> torch.Tensor:
        return encode(self.autoencoder, x0)  # (1, C, h, w)


class _Decoder(_Encoder):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return decode(self.autoencoder, z)  # (1, 1, H, W)


def export_onnx(
    weights: str | os.PathLike, out: str | os.PathLike, *, half: bool = False, force: bool = False
) -> Path:
    """Write a model as ONNX, whole or not at all; returns the folder (not in the paper).

    weights: a shipped name, a folder, or a hub id. half: tensors are stored in half precision and enlarged to single
    when the file is loaded: half the size, the same speed, and for weights that were stored in half, such as the
    shipped ones, the same result. force: replace an earlier export.
    Refused without the extra `onnx`; RunError when `out` holds anything else; WeightsError: no such model.
    """
    if find_spec("onnx") is None:
        raise Refused('export-onnx needs the package onnx: pip install "madad-lite[onnx]"')
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        if not (out / SETTINGS).is_file():
            raise RunError(f"{out}: holds something else than an export; choose another folder")
        kind = {"alphas_cumprod": [float], "grid": {str: None}}
        read_json(out / SETTINGS, kind, error=RunError, hint="not of an export? choose another folder")
        refuse_foreign(out, EXPORTED, "an export")
        if not force:
            raise RunError(f"{out}: exists already; add --force to replace it")
    folder = find_folder(weights)
    pipe = MadAdPipeline.from_pretrained(folder)
    side, C = pipe.config.grid["size"], pipe.denoiser.config.latent_channels
    h = side // downsampling(pipe.autoencoder)
    x0, z, t = torch.zeros(1, 1, side, side), torch.zeros(1, C, h, h), torch.zeros(1, dtype=torch.int64)
    parts = {
        "encoder": (_Encoder(pipe.autoencoder), (x0,), ["x0"], ["z0"]),
        "denoiser": (pipe.denoiser, (z, t), ["z_t", "t"], ["z0_hat", "mask_logits"]),
        "decoder": (_Decoder(pipe.autoencoder), (z,), ["z"], ["x0_hat"]),
    }
    with new_folder(out, replace=True, ours=EXPORTED) as part:
        for name, (module, inputs, input_names, output_names) in parts.items():
            _export(module, inputs, input_names, output_names, part / f"{name}.onnx")
            if half:
                _store_in_half(part / f"{name}.onnx")
        write_json(part / SETTINGS, _settings(pipe, list(x0.shape), list(z.shape)))
        if (card := folder / "README.md").is_file():
            shutil.copyfile(card, part / "README.md")  # says under which licence the weights are
    return out


def _export(module: nn.Module, inputs, input_names, output_names, path: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        # tracing warns that shapes are fixed; of torch's two exporters this one is quick and needs no other package
        warnings.simplefilter("ignore")
        names = dict(input_names=input_names, output_names=output_names)
        torch.onnx.export(module.eval(), inputs, str(path), **names, opset_version=OPSET, dynamo=False)


def _store_in_half(path: Path) -> None:
    """Every tensor of single precision becomes one of half, and a Cast that onnxruntime folds away on loading."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _settings(pipe: MadAdPipeline, image: list[int], latent: list[int]) -> dict:
    """What settings.json holds."""
    schedule = pipe.scheduler
    schedule.set_timesteps(pipe.config.num_inference_steps)
    return {
        "contrast": pipe.config.contrast,
        "bright_lesions": BRIGHT_LESIONS[pipe.config.contrast],
        "grid": pipe.config.grid,
        "image": image,  # (1, 1, H, W)
        "latent": latent,  # (1, C, h, w)
        "num_train_timesteps": schedule.config.num_train_timesteps,  # T
        "alphas_cumprod": schedule.alphas_cumprod.double().tolist(),  # alpha-bar_t, t = 0..T-1
        "final_alpha_cumprod": float(schedule.final_alpha_cumprod),  # alpha-bar before t = 0
        "timesteps": schedule.timesteps.tolist(),  # the steps that are taken, the highest first
        "decision_threshold": pipe.config.decision_threshold,
        **asdict(DetectionSettings.of(pipe.config)),
    }
