"""Methods of the family trained alike and measured on the same slices: what `madad compare` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from madad_lite.errors import Refused, ScanError
from madad_lite.evaluation import metrics
from madad_lite.evaluation.compare import LabelledSlices, evaluate_methods, load_split, note_differences
from madad_lite.family.frame import FILE, Method, as_autoencoder, load
from madad_lite.family.postprocess import Postprocessing
from madad_lite.family.registry import FAMILY, method_class, recipe_settings
from madad_lite.files import check_json_output, replace_file, write_json
from madad_lite.plotting import slice_grid
from madad_lite.slices.folder import Manifest
from madad_lite.training.settings import configured

NUMBERS, TABLE, PICTURE = "comparison.json", "comparison.md", "comparison.png"
USUAL = Postprocessing(sigma=0.7)


def own(kind: type[Method], settings: dict) -> dict:
    """Those of some settings that a method has."""
    return {k: v for k, v in settings.items() if k in {f.name for f in fields(kind.Config)}}


def check_settings(methods: Sequence[str], settings: dict, recipe: str = "lite") -> None:
    """Refused: a setting that a method, by a recipe, does not allow, or that none of them has; an unknown method."""
    kinds = {name: method_class(name) for name in methods}
    for name, kind in kinds.items():
        configured(kind.Config(), **recipe_settings(name, recipe) | own(kind, settings))
    if unknown := sorted(k for k in settings if not any(own(kind, {k: 0}) for kind in kinds.values())):
        raise Refused(f"no such setting of {', '.join(kinds) or 'no method'}: {', '.join(unknown)}")


def trained(
    name: str,
    data,
    out: Path,
    *,
    autoencoder=None,
    settings: dict | None = None,
    recipe: str = "lite",
    progress: bool = True,
) -> Method:
    """A method by its name, trained in out/NAME, or in the folder of the method whose networks serve it, by a recipe,
    of which those of the settings differ that the method has; what is there already is not trained again, what was
    interrupted goes on.
    """
    kind = method_class(name)
    source = kind.trained_as or name
    of = method_class(source)
    config = configured(of.Config(), **recipe_settings(source, recipe) | own(of, settings or {}))
    needs = autoencoder if of.latent or of.encoder else None
    folder = of.train(data, out / source, config, autoencoder=needs, resume=True, progress=progress)
    return load(folder, name=name)


def maps_of(method: Method, s: LabelledSlices, after: Postprocessing, seed: int = 0, batch_size: int = 32):
    """The finished maps of labelled slices, (N, 1, H, W); computed on the GPU if there is one."""
    method.to("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    maps = method(s.image, s.brain, s.scans, generator, batch_size=batch_size)
    return after(maps, s.image, s.brain, s.scans, contrast=method.contrast)


def compare(
    data: str | Path | Sequence[str | Path],
    methods: Sequence[str],
    out: str | Path,
    *,
    autoencoder: str | Path | None = None,
    settings: dict | None = None,
    after: Postprocessing = USUAL,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """Train methods on the same slices for the same number of steps, and measure them on the test split.

    data: prepared folder(s), with lesions in the test split. methods: names of the family, or folders of methods that
    are trained already. autoencoder: for those that live in latents, see Method.train; None: the shipped one of the
    slices' contrast. settings: of the trainings, such as {"steps": 500}; a setting that only some methods have goes to
    them. after: what is done to every map.

    Writes in `out` a folder for each method, the table (Markdown; intervals over subjects), all numbers (JSON) and a
    picture with a row for each method, and returns {method: {"threshold", "val", "test"}}, as evaluate_methods.
    Refused, before any work: an unknown name or setting; ScanError: no lesion in the test split.
    """
    out, settings = Path(out), {"seed": seed} | (settings or {})
    methods = [methods] if isinstance(methods, str) else methods
    if not methods or len(set(methods)) < len(methods):
        raise Refused("name one method or more, each once")
    folders = {name: Path(name) for name in methods if name not in FAMILY and (Path(name) / FILE).is_file()}
    kinds = {name: method_class(name) for name in methods if name not in folders}
    if kinds:
        check_settings(list(kinds), settings)
    check_json_output(out / NUMBERS, "methods")
    if not (out / NUMBERS).exists() and (others := [f for f in (TABLE, PICTURE) if (out / f).exists()]):
        raise Refused(f"{out / others[0]}: exists and is not an earlier result; choose another folder")
    splits = {name: load_split(data, name) for name in ("val", "test")}
    if not (splits["test"].lesion & splits["test"].brain).any():
        raise ScanError(f"{data}: no lesion in the test split, so that there is nothing to measure")
    if autoencoder is None and any(k.latent or k.encoder for k in kinds.values()):
        autoencoder = Manifest.load(data if isinstance(data, (str, Path)) else data[0]).contrast
    encoder = as_autoencoder(autoencoder)
    scores: dict[str, dict[str, torch.Tensor]] = {}
    for name in tqdm(methods, desc="methods", disable=not progress):
        options = dict(autoencoder=encoder, settings=settings, progress=progress)
        method = load(folders[name]) if name in folders else trained(name, data, out, **options)
        note_differences(name, method.contrast, method.grid, data)
        scores[name] = {split: maps_of(method, s, after, seed) for split, s in splits.items()}
    results = evaluate_methods(scores, splits, seed=seed)
    text = metrics.table({name: r["test"] for name, r in results.items()})
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / NUMBERS, {"settings": settings, "after": str(after), "methods": results})
    replace_file(out / TABLE, f"{text}\n\nAfter every map: {after}.\n")
    figure = picture({name: s["test"] for name, s in scores.items()}, splits["test"])
    replace_file(out / PICTURE, lambda file: figure.savefig(file, format="png", dpi=80, bbox_inches="tight"))
    return results


def picture(scores: dict[str, torch.Tensor], s: LabelledSlices, columns: int = 6):
    """A row for each method, the same slices in each: those with most lesion, one a subject as long as there are."""
    area = (s.lesion & s.brain).flatten(1).sum(1).numpy()
    order = np.argsort(-area, kind="stable")
    order = order[area[order] > 0]
    first = {subject: i for i, subject in reversed(list(zip(order, s.subjects[order])))}
    chosen = sorted(first.values(), key=lambda i: -area[i])
    chosen = (chosen + [i for i in order if i not in chosen])[:columns]
    shares = [
        m / max(1e-6, float(np.quantile(m[s.brain].numpy(), 0.999))) for m in scores.values()
    ]  # each to its own range; torch's quantile takes no more than 2^24 values
    rows = torch.cat([x[chosen].clamp(max=1) for x in shares])
    images = s.image[chosen].repeat(len(scores), 1, 1, 1)
    titles = [name if i == 0 else "" for name in scores for i in range(len(chosen))]
    truth = s.lesion[chosen].repeat(len(scores), 1, 1, 1)
    return slice_grid(images, titles, len(chosen), overlay=rows, truth=truth)
