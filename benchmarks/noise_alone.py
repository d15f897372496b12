"""What longer training does to one small network, taught with noise alone and with lesion-like regions beside it.

    python benchmarks/noise_alone.py                                # half a second a step and the measuring: 20 minutes
    python benchmarks/noise_alone.py --only noise --steps 3200      # goes on from there
    python benchmarks/noise_alone.py --only regions                 # the other training
    python benchmarks/noise_alone.py --contrast flair               # the same in FLAIR

Everything is simulated: the normal subjects of notebook 05 to train on, eight strokes, in FLAIR gliomas, of 20 mL to
look at. At each of STEPS the averaged weights heal the patients' slices (every fifth) in two ways; what they find goes
to noise_alone.csv beside this file, the table that notebook 05 draws, in FLAIR to noise_alone_flair.csv. Rows that are
there are kept. A training goes on from its last checkpoint in the work folder; remove that folder to begin anew.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel

from madad_lite.denoiser import Denoiser
from madad_lite.evaluation import metrics
from madad_lite.extensions.lesion_like import with_regions
from madad_lite.masking import brain_cells
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.nifti import save_nifti
from madad_lite.settings import DetectionSettings
from madad_lite.simulation.cohort import simulate_subject, write_cohort
from madad_lite.slices.folder import prepare_folder
from madad_lite.training.denoiser import masked_draw, masked_step
from madad_lite.training.latent_cache import LatentDataset, encode_latents
from madad_lite.training.loop import learning_rate_factor, step_generator
from madad_lite.training.settings import RECIPES, configured

STEPS = (50, 100, 200, 400, 800, 1600)
SAVE_EVERY = 50  # steps
PATIENTS, VOLUME_ML, EVERY, BATCH = range(9101, 9109), 20, 5, 16
LESION = {"t1": "stroke", "flair": "glioma"}
TRAININGS = {"noise": dict(corruption_share=0.0, last_step_share=0.0), "regions": {}}
AS_AUTHORS = dict(mask_threshold=0.5, weighted=False, sigma=2.0, reference="input")
COLUMNS = (
    *("training", "step", "val_masked", "way", "dice", "dice_low", "dice_high", "ap"),
    *("m_hat_lesion", "m_hat_healthy", "replaced_lesion", "replaced_healthy"),
)
TABLE = Path(__file__).with_suffix(".csv")


def ways(config) -> dict[str, dict]:
    """How a latent is healed and scored: as the authors say, and as the shipped weights do, each slice alone."""
    return {"authors": AS_AUTHORS, "shipped": vars(DetectionSettings.of(config, neighbour_sigma=0.0))}


def patients(pipe, folder: Path):
    """Slices of the simulated patients: images, brains and lesions (N, 1, H, W), and the subject of each slice."""
    parts, subjects, contrast = [], [], pipe.config.contrast
    for seed in PATIENTS:
        about = dict(contrasts=(contrast,), lesion=LESION[contrast], volume_ml=VOLUME_ML)
        simulated = simulate_subject(seed, **about)
        images = {contrast: simulated.images[contrast], "brain": simulated.brain, "lesion": simulated.lesion}
        files = {k: folder / f"patient{seed}_{k}.nii.gz" for k in images}
        for k, image in images.items():
            save_nifti(image, files[k], force=True)
        prepared = pipe.prepare(files[contrast], brain=files["brain"], lesion=files["lesion"])
        parts.append(
            [torch.from_numpy(getattr(prepared, k)[::EVERY])[:, None] for k in ("image", "brain", "lesion")]
        )
        subjects += [seed] * len(parts[-1][0])
    return *(torch.cat(p) for p in zip(*parts)), subjects


def judged(parts: MadAdPipeline, denoiser, slices) -> list[dict]:
    """One row of the table for each way of healing."""
    image, brain, lesion, subjects = slices
    rows = []
    for way, settings in ways(parts.config).items():
        about = dict(contrast=parts.config.contrast, grid=parts.config.grid)
        pipe = MadAdPipeline(parts.autoencoder, denoiser, parts.scheduler, **about, **settings)
        out = pipe(image, brain=brain, generator=torch.Generator().manual_seed(0), progress=False)
        size = out.mask_probability.shape[-2:]
        sick = torch.nn.functional.adaptive_avg_pool2d(lesion.float(), size) >= 0.5  # (N, 1, h, w)
        well = (
            brain_cells(brain, size, 0.5)
            & ~torch.nn.functional.adaptive_max_pool2d(lesion.float(), size).bool()
        )
        first, ever = out.mask_probability[0], out.replaced.any(0)
        low, high = metrics.bootstrap_interval(
            "pooled_max_dice", out.anomaly_map, lesion, subjects, brain=brain
        )
        row = {
            "way": way,
            "dice": metrics.pooled_max_dice(out.anomaly_map, lesion, brain)[0],
            "dice_low": low,
            "dice_high": high,
            "ap": metrics.average_precision(out.anomaly_map, lesion, brain),
            "m_hat_lesion": first[sick].mean().item(),
            "m_hat_healthy": first[well].mean().item(),
            "replaced_lesion": ever[sick].float().mean().item(),
            "replaced_healthy": ever[well].float().mean().item(),
        }
        rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    return rows


def train(name: str, data: Path, work: Path, parts: MadAdPipeline, slices, steps) -> Iterator[dict]:
    """The rows of one training, the paper's draw with or without regions, as they come."""
    config = configured(
        RECIPES["lite"].denoiser, batch_size=BATCH, variants=2, schedule="constant", **TRAININGS[name]
    )
    latents = LatentDataset(
        encode_latents(data, parts.autoencoder, work / f"latents_{name}", config, progress=False), "train"
    )
    held = LatentDataset(work / f"latents_{name}", "val")
    torch.manual_seed(config.seed)
    model = Denoiser.of_size("nano", latent_channels=parts.autoencoder.config.latent_channels)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    ema = EMAModel(model.parameters(), decay=0.98)
    checkpoint, done = work / f"{name}.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for part, state in ((model, "model"), (optimizer, "optimizer"), (ema, "ema")):
            part.load_state_dict(saved[state])
        done = saved["step"]

    def drawn(dataset, rows, generator):
        batch = {k: torch.stack([dataset[i][k] for i in rows]) for k in dataset[0]}
        draw = masked_draw(batch, parts.scheduler, generator, last_step_share=config.last_step_share)
        if config.corruption_share:
            draw = with_regions(draw, batch, config.corruption_share, parts.scheduler, generator)
        return draw

    for step in range(done + 1, max(steps) + 1):
        generator = step_generator(config.seed, step)
        chosen = torch.randint(len(latents), (BATCH,), generator=generator).tolist()
        losses = masked_step(model, drawn(latents, chosen, generator), config)[0]
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(
                step, config, max(steps), config.warmup_steps
            )
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        if step in steps:
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            with torch.no_grad():
                _, masked = masked_step(
                    model.eval(), drawn(held, range(len(held)), step_generator(12345, 0)), config
                )
            for row in judged(parts, model, slices):
                yield {"training": name, "step": step, "val_masked": round(masked.item(), 4), **row}
            ema.restore(model.parameters())
            model.train()
        if step in steps or step % SAVE_EVERY == 0:
            state = {"model": model, "optimizer": optimizer, "ema": ema}
            torch.save({k: v.state_dict() for k, v in state.items()} | {"step": step}, work / "part")
            os.replace(work / "part", checkpoint)


def write(table: Path, row: dict) -> None:
    """Puts a row into the table, in place of an older one of the same training, step and way; sorted."""
    key = ("training", "step", "way")
    rows = list(csv.DictReader(table.open(newline=""))) if table.exists() else []
    rows = [r for r in rows if any(r[k] != str(row[k]) for k in key)] + [row]
    rows.sort(key=lambda r: ([*TRAININGS, "shipped"].index(r["training"]), int(r["step"]), r["way"]))
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def main(argv=None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, help="default: work/noise_alone, of FLAIR work/noise_alone_flair")
    p.add_argument("--contrast", choices=LESION, default="t1")
    p.add_argument("--out", type=Path, help="the table, in place of that beside this file")
    p.add_argument("--only", nargs="*", choices=[*TRAININGS, "shipped"], default=["noise", "shipped"])
    p.add_argument("--steps", nargs="*", type=int, default=STEPS)
    args = p.parse_args(argv)
    own = TABLE if args.contrast == "t1" else TABLE.with_stem(f"noise_alone_{args.contrast}")
    table, work = args.out or own, args.work or Path("work") / own.stem
    work.mkdir(parents=True, exist_ok=True)
    parts = MadAdPipeline.from_pretrained(args.contrast)
    data = work / "prepared"
    if not data.exists():
        about = dict(contrasts=(args.contrast,), seed=21, force=True, progress=False)
        cohort = write_cohort(work / "cohort", normal=6, patients=0, **about)
        prepare_folder(cohort, data, contrast=args.contrast, progress=False)
    slices = patients(parts, work)
    for name in args.only:
        if name == "shipped":
            rows = ({"training": name, "step": 9000, **r} for r in judged(parts, parts.denoiser, slices))
        else:
            rows = train(name, data, work, parts, slices, args.steps)
        for row in rows:
            print(row, flush=True)
            write(table, row)


if __name__ == "__main__":
    main()
