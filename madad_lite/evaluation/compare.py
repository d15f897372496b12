"""Metrics of MAD-AD and other methods on prepared folders with lesion masks, thresholds taken from validation.

`evaluate_scans` reads scan after scan and keeps counts only; `evaluate_methods` takes maps that are in memory already,
and is exact.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from madad_lite.evaluation import metrics
from madad_lite.evaluation.stream import Stream
from madad_lite.family import BASELINES
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.grid import Grid
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.folder import Manifest

Folders = str | Path | Sequence[str | Path]
log = logging.getLogger(__name__)


@dataclass
class LabelledSlices:
    """N slices of one split."""

    image: torch.Tensor  # (N, 1, H, W) in [-1, 1]
    brain: torch.Tensor  # (N, 1, H, W) bool
    lesion: torch.Tensor  # (N, 1, H, W) bool
    subjects: np.ndarray  # (N,) the subject of each slice
    scans: np.ndarray  # (N,) the scan, one volume each; of a subject there may be several
    spacing: float  # mm, edge of a cube of a voxel's volume

    def take(self, rows: Sequence[int]) -> LabelledSlices:
        """Some of the slices."""
        rows = np.asarray(rows)
        arrays = (self.image, self.brain, self.lesion, self.subjects, self.scans)
        return LabelledSlices(*(a[rows] for a in arrays), self.spacing)

    @classmethod
    def joined(cls, parts: Sequence[LabelledSlices]) -> LabelledSlices:
        """All of them, in this order; they have one spacing."""
        tensors = (torch.cat([getattr(p, k) for p in parts]) for k in ("image", "brain", "lesion"))
        names = (np.concatenate([getattr(p, k) for p in parts]) for k in ("subjects", "scans"))
        return cls(*tensors, *names, parts[0].spacing)


class Split(Sequence):
    """A split of prepared folders, scan by scan: each item the slices of one scan, read when it is asked for.

    largest: instead, of each subject that has a lesion, the one slice with most of it, 16 subjects an item.
    ScanError where the split is empty.
    """

    def __init__(self, data: Folders, split: str, *, largest: bool = False):
        manifests = [Manifest.load(d) for d in ([data] if isinstance(data, (str, Path)) else data)]
        self.dataset, grid = SliceDataset(manifests, split, lesion_free=False), manifests[0].grid
        self.normalise = manifests[0].normalise
        self.spacing = (grid.spacing**2 * grid.step) ** (1 / 3)
        entries = [s for m in manifests for s in m.scans(split)]
        ends = list(accumulate(s["n_slices"] for s in entries))
        self.rows = [range(end - s["n_slices"], end) for s, end in zip(entries, ends)]
        if largest:
            most: dict[str, tuple[int, int]] = {}  # {subject: (pixels of lesion, row)}
            for scan, rows in zip(entries, self.rows):
                for row, pixels in zip(rows, scan["lesion_pixels"]):
                    if pixels > most.get(scan["subject"], (0,))[0]:
                        most[scan["subject"]] = pixels, row
            chosen = [row for _, row in most.values()]
            self.rows = [chosen[i : i + 16] for i in range(0, len(chosen), 16)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> LabelledSlices:
        items = [self.dataset[row] for row in self.rows[i]]
        tensors = (torch.stack([item[k] for item in items]) for k in ("image", "brain", "lesion"))
        names = (
            np.array([of[item["scan"]] for item in items])
            for of in (self.dataset.subjects, self.dataset.scan_ids)
        )
        return LabelledSlices(*tensors, *names, self.spacing)

    def has_lesion(self) -> bool:
        """Is there a lesion inside a brain? Reads until it finds one."""
        return any(bool((s.lesion & s.brain).any()) for s in self)


def note_differences(name: str, contrast: str, grid: dict, data: Folders) -> None:
    """Warns of slices that are unlike those that something was trained on: its numbers then say little."""
    for folder in [data] if isinstance(data, (str, Path)) else data:
        m, own = Manifest.load(folder), Grid.from_dict(grid)
        of_data, of_own = (
            f"{c.upper()} of {g.size} pixels of {g.spacing:g} mm"
            for c, g in ((m.contrast, m.grid), (contrast, own))
        )
        if of_data != of_own:
            log.warning("%s: holds %s, and %s learnt from %s", folder, of_data, name, of_own)


def load_split(data: Folders, split: str) -> LabelledSlices:
    """Every slice of a split, patients and normal subjects, in memory. ScanError where there is none."""
    return LabelledSlices.joined(Split(data, split))


def evaluate_methods(
    scores: dict[str, dict[str, torch.Tensor]], splits: dict[str, LabelledSlices], *, seed: int = 0
) -> dict:
    """scores: {method: {"val": (N, 1, H, W), "test": ...}} -> {method: {"threshold", "val": metrics, "test":
    metrics}}.

    The threshold is the one of the best pooled Dice on the validation slices.
    """
    results = {}
    for name, score in scores.items():
        val, test = splits["val"], splits["test"]
        threshold = (
            metrics.pooled_max_dice(score["val"], val.lesion, val.brain)[1]
            if (val.lesion & val.brain).any()
            else None
        )
        results[name] = {"threshold": threshold}
        for split, s in splits.items():
            results[name][split] = metrics.evaluate(
                score[split],
                s.lesion,
                brain=s.brain,
                subjects=s.subjects,
                threshold=threshold,
                spacing=s.spacing,
                seed=seed,
                intervals=s is test and len(set(s.subjects)) > 1,
            )
    return results


Method = Callable[[LabelledSlices], torch.Tensor]


def evaluate_scans(
    methods: Callable[[], Mapping[str, Method]],
    splits: Mapping[str, Split],
    *,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """The same as `evaluate_methods`, of maps that are made scan by scan and counted at once (see stream.Stream).

    methods: called once a split, gives {name: slices of one scan -> scores (N, 1, H, W) in [0, 1]}. splits: {"val",
    "test": a `Split` each}. Each split is gone through once, so that "val", where the threshold comes from, has no
    Dice at it.
    """
    results: dict[str, dict] = {}
    for split in ("val", "test"):
        of_split, streams = methods(), {}
        for name in of_split:
            result = results.setdefault(name, {"threshold": None})
            streams[name] = Stream(result["threshold"], intervals=split == "test")
        for s in tqdm(splits[split], desc=f"evaluating ({split})", disable=not progress):
            for name, method in of_split.items():
                streams[name].add(method(s), s.lesion, s.brain, s.subjects)
        for name, stream in streams.items():
            results[name][split] = stream.result(spacing=splits[split].spacing, seed=seed)
            if split == "val":
                results[name]["threshold"] = results[name]["val"]["best_threshold"]
    return results


def methods_of(pipe: MadAdPipeline, *, seed: int = 0, alone: bool = False, **options) -> dict[str, Method]:
    """MAD-AD and the baselines, for one split of `evaluate_scans`.

    alone: each slice decides for itself, not with its neighbours in the scan. options: of MadAdPipeline.__call__. The
    random numbers go on from scan to scan: the maps are those of one call with all scans.
    """
    generator = torch.Generator().manual_seed(seed)

    def mad_ad(s: LabelledSlices) -> torch.Tensor:
        volumes = None if alone else s.scans
        run = dict(brain=s.brain, volumes=volumes, generator=generator, progress=False)
        return pipe(s.image, **run, **options).anomaly_map

    def baseline(method: Callable) -> Method:
        return lambda s: method(pipe, s.image, s.brain)

    return {"MAD-AD": mad_ad, **{name: baseline(method) for name, method in BASELINES.items()}}


def evaluate_weights(
    weights: str | Path | MadAdPipeline,
    data: Folders,
    *,
    seed: int = 0,
    progress: bool = True,
    **options,  # of MadAdPipeline.__call__
) -> dict:
    """MAD-AD and the baselines on the test split, thresholds from the validation split, scan by scan.

    JSON-able: {"methods": {name: as of evaluate_scans}, "subjects", "slices", "options", "weights", "seed"}. ValueError
    where the test split has no lesion.
    """
    pipe = weights if isinstance(weights, MadAdPipeline) else MadAdPipeline.from_pretrained(weights)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    splits = {s: Split(data, s) for s in ("val", "test")}
    if (own := pipe.config.normalise) != (theirs := splits["test"].normalise):
        raise ValueError(
            f"{data}: prepared with --normalise {theirs}, and the weights want {own}; prepare it so"
        )
    name = "the pipeline" if isinstance(weights, MadAdPipeline) else str(weights)
    note_differences(name, pipe.config.contrast, pipe.config.grid, data)
    if not splits["test"].has_lesion():
        raise ValueError(
            f"{data}: no lesion in the test split, so that there is nothing to measure; prepare scans with lesion masks"
        )
    of_split = partial(methods_of, pipe, seed=seed, **options)
    methods = evaluate_scans(of_split, splits, seed=seed, progress=progress)
    return {
        "weights": weights if isinstance(weights, str) else type(weights).__name__,
        "seed": seed,
        "options": options,
        "subjects": {s: methods["MAD-AD"][s]["subjects"] for s in splits},
        "slices": {s: methods["MAD-AD"][s]["slices"] for s in splits},
        "methods": methods,
    }
