"""The main job end to end on simulated subjects: what `make demo` runs, and the page that it leaves."""

from __future__ import annotations

import html
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch

from madad_lite import plotting
from madad_lite.detection.many_scans import detect
from madad_lite.errors import RunError
from madad_lite.evaluation.compare import evaluate_methods, evaluate_weights, load_split
from madad_lite.evaluation.metrics import table
from madad_lite.files import write_json
from madad_lite.pipeline import MadAdPipeline, load_parts
from madad_lite.simulation.cohort import write_cohort
from madad_lite.slices.folder import prepare_folder
from madad_lite.training.autoencoder import train_autoencoder
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.settings import RECIPES, configured

SEED = 2024  # not a seed that the shipped weights were trained with
MARKER = "demo.json"


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


def run_demo(out: str | Path, *, normal: int = 8, patients: int = 6, **training_steps) -> Path:
    """Simulate, prepare, train, detect, evaluate, and write `index.html`. Replaces an earlier demo, nothing
    else.
    """
    out, started = Path(out), time.time()
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise RunError(f"{out}: holds other files than an earlier demo's; choose another folder")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARKER, {"made_by": "madad demo", "seed": SEED})

    print("1/5  simulating subjects as NIfTI files")
    cohort = write_cohort(out / "cohort", normal=normal, patients=patients, seed=SEED)
    print("2/5  preparing slices")
    manifest = prepare_folder(cohort, out / "prepared", contrast="t1")
    print("3/5  training both stages briefly, from nothing")
    brief = short_training(out / "prepared", out / "training", **training_steps)
    print("4/5  detecting with the shipped weights")
    shipped = MadAdPipeline.from_pretrained("t1")
    patients_to_test = [s for s in manifest.scans("test") if s["group"] == "patient"]
    scans = [s["source"] for s in patients_to_test]
    detect(scans, out / "maps", weights=shipped)
    print("5/5  evaluating")
    results = evaluate_weights(shipped, out / "prepared")
    splits = {s: load_split(out / "prepared", s) for s in ("val", "test")}
    own = {
        k: brief(
            s.image, brain=s.brain, volumes=s.subjects, generator=torch.Generator().manual_seed(0)
        ).anomaly_map
        for k, s in splits.items()
    }
    results["methods"]["MAD-AD, trained by this demo"] = evaluate_methods({"own": own}, splits)["own"]
    methods = results["methods"]
    methods["MAD-AD, shipped weights"] = methods.pop("MAD-AD")
    methods["plain dark threshold"] = methods.pop("intensity")
    methods["autoencoder's reconstruction error"] = methods.pop("reconstruction")
    write_json(out / "metrics.json", results)
    page = write_page(out, shipped, splits["test"], results, time.time() - started)
    print(f"\nDone in {(time.time() - started) / 60:.1f} minutes. The pictures: {page.resolve()}")
    print("Open that file in a browser. The notebooks: make lab")
    return page


def write_page(out: Path, pipe: MadAdPipeline, test, results: dict, seconds: float) -> Path:
    """One HTML page with the pictures beside it, readable without a server."""
    pictures = out / "pictures"
    pictures.mkdir(exist_ok=True)
    sections = []

    def add(name: str, figure, title: str, text: str) -> None:
        figure.savefig(pictures / f"{name}.png", bbox_inches="tight")
        sections.append(
            f'<h2>{html.escape(title)}</h2><p>{text}</p><img src="pictures/{name}.png" alt="{html.escape(title)}">'
        )

    area = test.lesion.flatten(1).sum(1)
    shown = []  # the largest lesion slice of each patient
    for subject in dict.fromkeys(test.subjects.tolist()):
        rows = [i for i, s in enumerate(test.subjects) if s == subject and area[i] > 0]
        if rows:
            shown.append(max(rows, key=lambda i: area[i]))
    output = pipe(
        test.image[shown], brain=test.brain[shown], generator=torch.Generator().manual_seed(0), progress=False
    )
    for i, row in enumerate(shown):
        add(
            f"detection_{i + 1}",
            plotting.detection_figure(output, i, truth=test.lesion[row, 0].numpy()),
            f"Patient {test.subjects[row]}: the slice with most lesion",
            "From the scan to the anomaly map. The denoiser replaces what it takes for noise; what changed "
            "is the anomaly.",
        )
    first = pipe.decode(output.trajectory[:, 0])
    add(
        "steps",
        plotting.trajectory(output, 0, decoded=first),
        "The reverse process, step by step",
        "Which latent cells the network took for noise at each step, and the slice after they were replaced.",
    )
    for stage in ("autoencoder", "denoiser"):
        add(
            f"training_{stage}",
            plotting.training_curves(out / "training" / stage),
            f"The short training: {stage}",
            "Trained by this demo, from nothing, on simulated normal subjects. The shipped weights had longer.",
        )
    rows = table({name: r["test"] for name, r in results["methods"].items()})
    maps = "".join(
        f'<li><a href="maps/{f.name}">{f.name}</a></li>'
        for f in sorted((out / "maps").iterdir())
        if not f.name.startswith(".")
    )
    page = out / "index.html"
    page.write_text(
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>madad_lite: demo</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}}
img{{max-width:100%;height:auto}}table{{border-collapse:collapse;font-size:14px}}
td,th{{border:1px solid #ccc;padding:.3em .6em;text-align:left}}
h2{{margin-top:2em}}</style>
<h1>Masked diffusion for anomaly detection: the demo</h1>
<p>Simulated subjects (from the MNI152 template, no real patient), prepared, trained on, searched for lesions
and measured in {seconds / 60:.1f} minutes. {results["subjects"]["test"]} test subjects,
{results["slices"]["test"]} slices.</p> <h2>Numbers</h2><p>Test subjects; thresholds from the validation
subjects; in brackets 95 % intervals over subjects. So few subjects give wide
intervals.</p>{_html_table(rows)} {"".join(sections)}
<h2>Files</h2><ul>{maps}<li><a href="metrics.json">metrics.json</a>: all numbers</li></ul></html>
"""
    )
    return page


def _html_table(markdown: str) -> str:
    rows = [
        [html.escape(c.strip()) for c in line.strip().strip("|").split("|")]
        for line in markdown.splitlines()
        if line.startswith("|")
    ]
    head, body = rows[0], rows[2:]
    cells = "".join(f"<th>{c}</th>" for c in head)
    return (
        f"<table><tr>{cells}</tr>"
        + "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in body)
        + "</table>"
    )
