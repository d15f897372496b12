"""From the two trainings' weights to a pipeline's folder: what `madad assemble` does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from diffusers import AutoencoderKL

from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import make_scheduler
from madad_lite.errors import RunError
from madad_lite.files import MODEL, read_json, refuse_foreign, save_model
from madad_lite.pipeline import MadAdPipeline
from madad_lite.slices.folder import Manifest
from madad_lite.training.settings import RECIPES, configured
from madad_lite.weights.folder import check_pair, read_model


def assemble(
    autoencoder: str | Path,
    denoiser: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    recipe: str = "lite",
    changes: Mapping[str, object] | None = None,
    half: bool = False,
    force: bool = False,
) -> Path:
    """Write a pipeline's folder, whole or not at all; returns it.

    autoencoder, denoiser: the trainings' `best/` or `last/`. data: the prepared folder that they learnt from:
    contrast, grid and normalisation are taken from it. changes: settings of detection that differ from the
    recipe's, and decision_threshold. half: stored in half precision. force: replace an earlier pipeline.
    RunError when `out` holds anything else; ValueError for a setting that does not exist.
    """
    out, changes = Path(out), dict(changes or {})
    if out.exists() and any(out.iterdir()):
        if not (out / "model_index.json").exists():
            raise RunError(f"{out}: holds something else than a pipeline; choose another folder")
        kind = {"_class_name": {MadAdPipeline.__name__}}
        read_json(out / "model_index.json", kind, error=RunError, hint="choose another folder")
        refuse_foreign(out, MODEL, "a pipeline")
        if not force:
            raise RunError(f"{out}: exists already; add --force to replace it")
    threshold = changes.pop("decision_threshold", None)
    if not (threshold is None or (type(threshold) in (int, float) and 0 <= threshold <= 1)):
        raise ValueError(f"decision_threshold={threshold}: the threshold of a map is a number from 0 to 1")
    detection = asdict(configured(RECIPES[recipe].detection, **changes))
    manifest = Manifest.load(data)
    own = {"contrast": manifest.contrast, "grid": manifest.grid.to_dict(), "normalise": manifest.normalise}
    pipe = load_parts(autoencoder, denoiser, **own, decision_threshold=threshold, **detection)
    if half:
        pipe.autoencoder.half(), pipe.denoiser.half()
    save_model(pipe, out)
    return out


def load_parts(autoencoder: str | os.PathLike, denoiser: str | os.PathLike, **settings) -> MadAdPipeline:
    """A pipeline of the folders that the two trainings wrote, their `best/` (not in the paper).

    settings: of MadAdPipeline. WeightsError: a folder that is missing, damaged or not what it should be.
    """
    parts = read_model(AutoencoderKL, autoencoder), read_model(Denoiser, denoiser)
    check_pair(*parts, denoiser)
    return MadAdPipeline(*parts, make_scheduler(), **settings)
