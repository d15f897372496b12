"""Metrics of a pipeline on prepared folders with lesion masks, beside the baselines, thresholds taken from
validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from madad_lite.evaluation import metrics
from madad_lite.family import BASELINES
from madad_lite.pipeline import MadAdPipeline
from madad_lite.slices.dataset import SliceDataset
from madad_lite.slices.folder import Manifest


@dataclass
class LabelledSlices:
    """All slices of one split, N of them."""

    image: torch.Tensor  # (N, 1, H, W) in [-1, 1]
    brain: torch.Tensor  # (N, 1, H, W) bool
    lesion: torch.Tensor  # (N, 1, H, W) bool
    subjects: np.ndarray  # (N,) the subject of each slice
    scans: np.ndarray  # (N,) the scan; of a subject there may be several
    spacing: float  # mm, edge of a cube of a voxel's volume

    def take(self, rows: Sequence[int]) -> LabelledSlices:
        """Some of the slices."""
        rows = np.asarray(rows)
        arrays = (self.image, self.brain, self.lesion, self.subjects, self.scans)
        return LabelledSlices(*(a[rows] for a in arrays), self.spacing)


def load_split(data: str | Path | Sequence[str | Path], split: str) -> LabelledSlices:
    """Every slice of a split, patients and normal subjects."""
    dataset = SliceDataset(data, split, lesion_free=False)
    items = [dataset[i] for i in range(len(dataset))]
    stacked = {k: torch.stack([item[k] for item in items]) for k in ("image", "brain", "lesion")}
    subjects, scans = (
        np.array([names[item["scan"]] for item in items]) for names in (dataset.subjects, dataset.scan_ids)
    )
    grid = Manifest.load(data if isinstance(data, (str, Path)) else data[0]).grid
    return LabelledSlices(
        **stacked, subjects=subjects, scans=scans, spacing=(grid.spacing**2 * grid.step) ** (1 / 3)
    )


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


def evaluate_weights(
    weights: str | Path | MadAdPipeline,
    data: str | Path | Sequence[str | Path],
    *,
    seed: int = 0,
    progress: bool = True,
    **options,  # of MadAdPipeline.__call__
) -> dict:
    """MAD-AD and the baselines on the test split. JSON-able: {"methods": {name: ...}, "subjects", "slices",
    "options"}.
    """
    pipe = weights if isinstance(weights, MadAdPipeline) else MadAdPipeline.from_pretrained(weights)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    splits = {s: load_split(data, s) for s in ("val", "test")}
    if not (splits["test"].lesion & splits["test"].brain).any():
        raise ValueError(
            f"{data}: no lesion in the test split, so that there is nothing to measure; prepare scans with lesion masks"
        )
    scores: dict[str, dict[str, torch.Tensor]] = {"MAD-AD": {}, **{name: {} for name in BASELINES}}
    for split, s in splits.items():
        generator = torch.Generator().manual_seed(seed)
        run = dict(brain=s.brain, volumes=s.scans, generator=generator, progress=progress)
        scores["MAD-AD"][split] = pipe(s.image, **run, **options).anomaly_map
        for name, method in BASELINES.items():
            scores[name][split] = method(pipe, s.image, s.brain)
    return {
        "weights": weights if isinstance(weights, str) else type(weights).__name__,
        "seed": seed,
        "options": options,
        "subjects": {k: int(len(set(s.subjects))) for k, s in splits.items()},
        "slices": {k: len(s.image) for k, s in splits.items()},
        "methods": evaluate_methods(scores, splits, seed=seed),
    }
