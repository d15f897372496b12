"""The main job end to end on simulated subjects: what `make demo` runs. The page is made by demo/page.py."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from madad_lite.demo.page import write_page
from madad_lite.detection.many_scans import detect
from madad_lite.errors import RunError, ScanError
from madad_lite.evaluation.compare import evaluate_weights
from madad_lite.files import read_json, refuse_foreign, write_json
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.grid import Grid
from madad_lite.scans.nifti import save_nifti
from madad_lite.simulation.cohort import simulate_subject, write_cohort
from madad_lite.slices.folder import prepare_folder
from madad_lite.training.assemble import load_parts
from madad_lite.training.autoencoder import train_autoencoder
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.settings import RECIPES, configured

SEED = 2024  # not a seed that the shipped weights were trained with
MARKER, MADE_BY = "demo.json", "madad demo"
FOLDERS = ("pictures", "cohort", "shown", "maps", "prepared", "training")
OURS = [MARKER, "index.html", "metrics.json", "steps.npz", *(f"{folder}/*" for folder in FOLDERS)]
# Shown on the page: the three seeds after those of the cohort's subjects, whatever the weights make of them.
SHOWN = {
    "plain": {"seed": SEED * 10_000 + 5000, "lesion": "stroke", "volume_ml": 30.0},
    "small": {"seed": SEED * 10_000 + 5001, "lesion": "stroke", "volume_ml": 2.0},
    "healthy": {"seed": SEED * 10_000 + 5002, "lesion": None, "volume_ml": None},
}


def short_training(
    data: Path, out: Path, *, autoencoder_steps: int = 250, denoiser_steps: int = 200
) -> MadAdPipeline:
    """Both stages, briefly: minutes on two CPU cores."""
    autoencoder = configured(
        RECIPES["lite"].autoencoder,
        steps=autoencoder_steps,
        validate_every=100,
        checkpoint_every=100,
        ema_decay=0.99,
    )
    denoiser = configured(
        RECIPES["lite"].denoiser,
        steps=denoiser_steps,
        batch_size=16,
        validate_every=50,
        checkpoint_every=50,
        variants=1,
        ema_decay=0.99,
    )
    train_autoencoder(data, out / "autoencoder", autoencoder)
    train_denoiser(data, out / "autoencoder" / "best", out / "denoiser", denoiser)
    return load_parts(
        out / "autoencoder" / "best", out / "denoiser" / "best", **asdict(RECIPES["lite"].detection)
    )


def run_demo(
    out: str | Path,
    *,
    normal: int = 8,
    patients: int = 6,
    spacing: float = 2.0,
    z_spacing: float | None = None,
    **training_steps,
) -> Path:
    """Simulate, prepare, detect, train, evaluate, and write `index.html`; returns its path. Replaces an
    earlier demo, nothing else.

    normal, patients: subjects to train on and to measure. spacing: their voxels, mm. z_spacing: mm from slice
    to slice, larger for a quick look; by default 2. training_steps: as of `short_training`.
    """
    out, started = Path(out), time.time()
    if out.exists() and any(out.iterdir()):
        hint = "holds other files than an earlier demo's; choose another folder"
        read_json(out / MARKER, {"made_by": {MADE_BY}}, error=RunError, hint=f"{out} {hint}")
        refuse_foreign(out, OURS, "an earlier demo")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    shipped = MadAdPipeline.from_pretrained("t1")
    about = {"made_by": MADE_BY, "seed": SEED, "threshold": shipped.config.decision_threshold}
    write_json(out / MARKER, about)

    print("1/5  simulating subjects as NIfTI files")
    cohort = write_cohort(out / "cohort", normal=normal, patients=patients, spacing=spacing, seed=SEED)
    scans = [_simulate(out / "shown", name, spacing) for name in SHOWN]
    print("2/5  detecting with the shipped weights")
    if failed := detect(scans, out / "maps", weights=shipped, z_spacing=z_spacing):
        raise ScanError(failed[0][1])
    np.savez_compressed(out / "steps.npz", **_step_by_step(shipped, out, "plain"))
    print("3/5  preparing slices to train on")
    prepare_folder(cohort, out / "prepared", contrast="t1", grid=Grid(z_spacing=z_spacing))
    print("4/5  training both stages briefly, from nothing")
    brief = short_training(out / "prepared", out / "training", **training_steps)
    print("5/5  evaluating")
    results = {
        name: evaluate_weights(pipe, out / "prepared")
        for name, pipe in (("shipped", shipped), ("brief", brief))
    }
    write_json(out / "metrics.json", results)
    write_json(out / MARKER, about | {"minutes": round((time.time() - started) / 60, 1)})
    page = write_page(out)
    print(f"\nDone in {(time.time() - started) / 60:.1f} minutes. The pictures: {page.resolve()}")
    print("Open that file in a browser. The notebooks: make lab")
    return page


def _simulate(folder: Path, name: str, spacing: float) -> Path:
    """One of the SHOWN as NIfTI files, the lesion's mask beside the scan; returns the scan."""
    subject = simulate_subject(spacing=spacing, **SHOWN[name])
    folder.mkdir(exist_ok=True)
    scan = folder / f"{name}_T1w.nii.gz"
    save_nifti(subject.images["t1"], scan)
    save_nifti(subject.lesion, folder / f"{name}_lesion.nii.gz")
    return scan


def _step_by_step(pipe: MadAdPipeline, out: Path, name: str) -> dict[str, np.ndarray]:
    """The reverse process in the slice with most lesion: "slices" (S + 1, H, W), the decoded latent before
    each step and the last one; "replaced" (S, h, w), the cells replaced at each step; "z" in mm.
    """
    lesion = nib.load(out / "shown" / f"{name}_lesion.nii.gz")
    z = lesion.affine[2, 3] + lesion.affine[2, 2] * np.asarray(lesion.dataobj).sum((0, 1)).argmax()
    scan = str(out / "shown" / f"{name}_T1w.nii.gz")
    # some neighbours too: they decide together
    output = pipe(scan, z_range=(z - 8, z + 8), generator=torch.Generator().manual_seed(0), progress=False)
    grid, kept = output.prepared.geometry.grid, np.array(output.prepared.geometry.slice_index)
    heights = grid.z_range[0] + grid.step * kept
    k = int(np.abs(heights - z).argmin())
    slices = pipe.decode(output.trajectory[:, k])[:, 0].numpy()
    return {"slices": slices, "replaced": output.replaced[:, k, 0].numpy(), "z": heights[k]}
