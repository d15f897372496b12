"""The page that the demo leaves: one HTML file with pictures beside it, made from the demo's folder alone.

Words are HTML, pictures hold no letters: so both can be read on a telephone too.
"""

from __future__ import annotations

import html
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from madad_lite.plotting import read_log, training_curves
from madad_lite.plotting.canvas import (
    CELLS,
    FALSE,
    HIT,
    MISSED,
    contour,
    frame_of,
    paint_cells,
    show,
    show_map,
    tiles,
)

PEOPLE = {"plain": "A plain stroke", "small": "A small stroke", "healthy": "A healthy subject"}
METHODS = {
    "MAD-AD": "MAD-AD",
    "reconstruction": "the autoencoder's reconstruction error",
    "intensity": "plain threshold on dark voxels",
}
LOSSES = {
    "reconstruction": "error of the decoded slice",
    "kl": "distance of the latents from a normal distribution",
    "latent": "error of the guessed clean latent",
    "mask": "error of the guessed noised cells",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 1.5em auto; padding: 0 1em; color: #222 }
h1 { line-height: 1.2 } h2 { margin-top: 2em; border-top: 1px solid #ccc; padding-top: .8em }
h3 { margin: 1.5em 0 .2em } img { max-width: 100%; height: auto; display: block }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .7em; margin: .7em 0 }
figure { margin: 0 } figure img { width: 100% } figcaption { font-size: 14px; line-height: 1.35; padding-top: .3em }
.curves { grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 14px }
td, th { border: 1px solid #ccc; padding: .3em .5em; text-align: left; vertical-align: top }
.verdict { font-weight: 600 }
"""


def write_page(out: str | Path) -> Path:
    """index.html and pictures/ from what `run_demo` left in `out`; returns the page's path."""
    out = Path(out)
    pictures = out / "pictures"
    pictures.mkdir(exist_ok=True)
    about, results = (json.loads((out / name).read_text()) for name in ("demo.json", "metrics.json"))
    shipped, brief = results["shipped"], results["brief"]
    people = "".join(_person(out, name, about["threshold"]) for name in PEOPLE)
    curves = "".join(_curves(out, stage) for stage in ("autoencoder", "denoiser"))
    maps = "".join(
        f'<li><a href="maps/{html.escape(f.name)}">{html.escape(f.name)}</a></li>'
        for f in sorted((out / "maps").iterdir())
        if not f.name.startswith(".")
    )
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>madad_lite: the demo</title><style>{STYLE}</style></head><body>
<h1>Masked diffusion finds what is not normal</h1>
<p>A network that knows normal brains takes a lesion for noise and replaces it by what should be there;
the difference from the scan is the anomaly map. Everybody on this page is simulated from the MNI152 template: no
real patient. It took {about["minutes"]} minutes.</p>
<h2>Three scans, searched with the shipped weights</h2>
<p>The seeds were fixed before anybody was searched. Found means: the map is at least
{about["threshold"]:g}, the threshold that validation subjects gave these weights. Slices are seen from above,
the patient's left on the left.</p>
{people}
<h2>How the plain stroke is healed</h2>
<p>In ten steps, starting from the scan itself, nothing added. Orange: the patches that the network takes for noise
and replaces in the next step.</p>
{_steps(out)}
<h2>How well, on more subjects</h2>
<p>Dice is twice the overlap of what was found and what is there, divided by the sum of both: 1 is the same voxels,
0 none in common. {shipped["subjects"]["test"]} test subjects, {shipped["slices"]["test"]} slices; the threshold
comes from {shipped["subjects"]["val"]} others. In brackets 95 % intervals over subjects: so few give wide ones.</p>
{_table({text: shipped["methods"][name] for name, text in METHODS.items() if name in shipped["methods"]})}
<h2>How far minutes of training get</h2>
<p>The demo has also trained both networks from nothing, for as long as patience for a demo lasts, on the simulated
normal subjects. That shows that training runs and that the losses fall; it is not enough to find lesions reliably.
The same subjects and measures as above:</p>
{_table({"MAD-AD, after this brief training": brief["methods"]["MAD-AD"]})}
{curves}
<h2>Files</h2><ul>{maps}<li><a href="metrics.json">metrics.json</a>: all numbers</li></ul>
</body></html>
"""
    page = out / "index.html"
    page.write_text(text, encoding="utf-8")
    return page


def verdict(above_ml: float, hit_ml: float, lesion_ml: float, peak: float) -> str:
    """A sentence on one scan. above_ml: of all that reaches the threshold; hit_ml: of it, inside the lesion;
    lesion_ml: of the lesion, 0 in a healthy subject; peak: the map's highest value in it, or in the brain.
    """
    outside = above_ml - hit_ml
    if lesion_ml == 0:
        if above_ml == 0:
            return (
                f"Rightly nothing found: 0 mL above the threshold; the map's highest value is {peak:.2f}, "
                "because everything looked like the normal brains that the network knows."
            )
        return (
            f"False alarm: {above_ml:.1f} mL above the threshold where there is no lesion, because the "
            "network took unusual but normal anatomy for noise."
        )
    if hit_ml == 0:
        alarm = f"; {outside:.1f} mL elsewhere are a false alarm" if outside else ""
        return (
            f"Missed: 0 of {lesion_ml:.1f} mL found{alarm}; the map reaches only {peak:.2f} inside the lesion, "
            "because too little of it was taken for noise and replaced."
        )
    how = "Found" if hit_ml >= lesion_ml / 2 else "Found in part"
    why = (
        "the lesion is as dark as no tissue should be there, so the network took it for noise and replaced it"
        if hit_ml >= lesion_ml / 2
        else "only its darkest part differs enough from the tissue that replaced it"
    )
    return f"{how}: {hit_ml:.1f} of {lesion_ml:.1f} mL of the lesion, and {outside:.1f} mL outside it, because {why}."


def _person(out: Path, name: str, threshold: float) -> str:
    """The section on one subject: a sentence, and four pictures of one slice."""
    files = {
        "scan": f"shown/{name}_T1w.nii.gz",
        "lesion": f"shown/{name}_lesion.nii.gz",
        "healed": f"maps/{name}_T1w_healed.nii.gz",
        "anomaly": f"maps/{name}_T1w_anomaly.nii.gz",
    }
    images = {key: nib.load(out / file) for key, file in files.items()}
    scan, lesion, healed, anomaly = (np.asarray(i.dataobj, dtype=np.float32) for i in images.values())
    affine = images["scan"].affine
    lesion, found = lesion > 0, anomaly >= threshold
    ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    volumes = [float(mask.sum() * ml) for mask in (found, found & lesion, lesion)]
    peak = float(anomaly[lesion].max() if lesion.any() else anomaly.max())
    # a healthy subject's most suspicious slice, else the one with most lesion
    k = int((lesion if lesion.any() else anomaly).sum((0, 1)).argmax())
    rows, columns = (np.flatnonzero((scan > 0).any((axis, 2))) for axis in (1, 0))
    box = np.s_[max(0, rows[0] - 2) : rows[-1] + 3, max(0, columns[0] - 2) : columns[-1] + 3, k]
    white = float(np.percentile(scan[scan > 0], 99.5))
    planes = [v[box].T[::-1] for v in (scan / white * 2 - 1, healed / white * 2 - 1, anomaly, lesion, found)]
    height = f"z = {affine[2, 3] + affine[2, 2] * k:+.0f} mm"
    outline = "; the cyan line is the true lesion" if lesion.any() else ""
    chosen = "where it has most lesion" if lesion.any() else "where the map is highest in sum"
    captions = {
        "scan": f"The scan at {height}, {chosen}.",
        "healed": "Healed: what the network puts in place of what it takes for noise.",
        "map": f"Anomaly map over the scan, from 0 (dark) to 1 (bright){outline}.",
        "found": "At the threshold. White: hit, orange: false alarm, blue: missed.",
    }
    figures = "".join(
        _figure(out, f"{name}_{key}", _picture(key, *planes), text) for key, text in captions.items()
    )
    title = f"{PEOPLE[name]} of {volumes[2]:.1f} mL" if lesion.any() else PEOPLE[name]
    sentence = verdict(*volumes, peak)
    return f'<h3>{title}</h3><p class="verdict">{sentence}</p><div class="row">{figures}</div>'


def _picture(key: str, scan, healed, anomaly, lesion, found):
    """One picture without letters; all (H, W)."""
    fig, axes = tiles(1, 1, scan.shape, tile=3.0, head=0.0, bottom=0.0)
    ax = axes[0, 0]
    if key == "map":
        show_map(ax, scan, anomaly)
        contour(ax, lesion)
        return fig
    show(ax, healed if key == "healed" else scan)
    if key == "found":
        for mask, colour in ((found & lesion, HIT), (found & ~lesion, FALSE), (lesion & ~found, MISSED)):
            paint_cells(ax, mask, colour, alpha=1.0)
    return fig


def _steps(out: Path) -> str:
    """The reverse process: the slice before some of the steps, and at the end."""
    stored = np.load(out / "steps.npz")
    slices, replaced = stored["slices"], stored["replaced"]
    last = len(slices) - 1
    figures = ""
    for s in sorted({0, last // 3, 2 * last // 3, last}):
        fig, axes = tiles(1, 1, slices.shape[1:], tile=3.0, head=0.0, bottom=0.0)
        show(axes[0, 0], slices[s])
        if s < last:
            paint_cells(axes[0, 0], replaced[s], CELLS, extent=frame_of(slices.shape[1:]), alpha=0.55)
        text = f"Before step {s + 1} of {last}." if s < last else "Healed."
        figures += _figure(out, f"step_{s}", fig, f"{text} z = {float(stored['z']):+.0f} mm.")
    return f'<div class="row">{figures}</div>'


def _curves(out: Path, stage: str) -> str:
    """A picture for each part of a training's loss."""
    log = read_log(out / "training" / stage)
    parts = [key for key in LOSSES if key != "loss" and any(key in line for line in log)]
    figures = ""
    for key in parts:
        text = f"{stage.capitalize()}: {LOSSES[key]}, at each step."
        figures += _figure(out, f"training_{stage}_{key}", training_curves(log, [key]), text)
    return f'<div class="row curves">{figures}</div>'


def _figure(out: Path, name: str, figure, text: str) -> str:
    figure.savefig(out / "pictures" / f"{name}.png", dpi=110)
    return (
        f'<figure><img src="pictures/{name}.png" alt="{html.escape(text)}">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
    )


def _table(methods: dict[str, dict]) -> str:
    """{name: its evaluation} -> Dice over all voxels and per slice, side by side."""

    def cell(result: dict | None, key: str) -> str:
        if not result or result.get(key) is None:
            return "-"
        interval = result.get(f"{key}_interval")
        return f"{result[key]:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")

    head = ("Method", "Dice, all voxels pooled", "Dice, mean over lesion slices", "Average precision")
    rows = []
    for name, result in methods.items():
        test = result["test"]
        at_threshold = test.get("dice_at_validation_threshold")
        values = cell(at_threshold, "pooled"), cell(at_threshold, "per_image"), cell(test, "ap")
        rows.append((html.escape(name), *values))
    lines = ["".join(f"<th>{c}</th>" for c in head), *("".join(f"<td>{c}</td>" for c in row) for row in rows)]
    return '<div class="wide"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"
