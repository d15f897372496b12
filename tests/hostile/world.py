"""A small world for commands: one scan, a prepared folder, a model, both trainings' runs. Made once, copied for
each case.
"""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import nibabel as nib
import numpy as np
import torch
from prepared import prepared

from madad_lite.autoencoder import make_autoencoder
from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import make_scheduler
from madad_lite.family.registry import method_class
from madad_lite.files import write_json
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.grid import Grid
from madad_lite.training.autoencoder import train_autoencoder
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.settings import RECIPES, configured

BRIEF = dict(size="tiny", steps=2, batch_size=2, warmup_steps=1, validate_every=2, checkpoint_every=2)
AFFINE = np.diag([8.0, 8.0, 8.0, 1.0])
AFFINE[:3, 3] = -80, -110, -70


def volume(shape: tuple[int, int, int] = (20, 24, 20)) -> np.ndarray:
    """An ellipsoid with some texture on a background of zeros, float32: as much of a brain as the guards ask for."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (place**2).sum(0) < 0.8
    texture = np.random.default_rng(0).uniform(80, 120, shape)
    return np.where(inside, texture, 0).astype(np.float32)


@lru_cache(maxsize=1)
def _made() -> Path:
    """In the order in which a user makes them. The sizes called tiny must be known."""
    world = Path(mkdtemp(prefix="madad-world-"))
    (world / "scans").mkdir()
    nib.save(nib.Nifti1Image(volume(), AFFINE), world / "scans" / "good.nii.gz")
    prepared(world / "data")
    quiet = dict(progress=False)
    train_autoencoder(world / "data", world / "ae", configured(RECIPES["lite"].autoencoder, **BRIEF), **quiet)
    config = configured(RECIPES["lite"].denoiser, variants=1, **BRIEF)
    train_denoiser(world / "data", world / "ae" / "best", world / "dn", config, **quiet)
    for run in ("ae", "dn"):  # as if trained from within the world
        settings = json.loads((world / run / "config.json").read_text())
        write_json(world / run / "config.json", settings | {"data": ["data"]})
    dae = method_class("dae")
    shared = {k: v for k, v in BRIEF.items() if k != "size"}
    dae.train(world / "data", world / "dae", dae.Config(size="tiny", **shared), **quiet)
    torch.manual_seed(0)
    parts = make_autoencoder("tiny"), Denoiser.of_size("tiny"), make_scheduler()
    grid = Grid(spacing=12.0, size=16).to_dict()
    MadAdPipeline(*parts, grid=grid, decision_threshold=0.4).save_pretrained(world / "model")
    (world / "model" / "README.md").unlink(missing_ok=True)
    (world / "results.json").write_text(json.dumps({"mine": 1}))
    (world / "notes.txt").write_text("years of work")
    return world


def world(folder: Path) -> None:
    """Fill an empty folder."""
    shutil.copytree(_made(), folder, dirs_exist_ok=True)


def remove() -> None:
    """What `world` copies from; made again where it is needed again."""
    if _made.cache_info().currsize:
        shutil.rmtree(_made())
        _made.cache_clear()
