"""The metrics of slices that come batch by batch, for sets larger than memory."""

from __future__ import annotations

from madad_lite.evaluation.counts import THRESHOLDS, Histogram, as_array, check_range, checked, subject_index
from madad_lite.evaluation.metrics import report
from madad_lite.evaluation.sums import FIXED_EDGES, Sums


class Stream:
    """As `metrics.evaluate`, without all slices at once.

        stream = Stream()
        for score, truth, brain in batches:
            stream.add(score, truth, brain)
        stream.result()

    What it holds does not grow with the slices: 6 MB for each size of lesion, and with intervals 40 KB for each
    subject (and size of lesion that it has). Pooled max Dice, AP and AUROC are within 1e-4 of the exact values (see
    counts.Histogram), their intervals within what sums.Sums says; the rest is exact.

    threshold: from validation data; adds the Dice at it and the false positives, and without it the two Dice of
    "by_size" that are taken at a threshold are None. intervals: count what `result` needs for intervals over subjects.
    """

    def __init__(self, threshold: float | None = None, *, intervals: bool = True):
        self.threshold = threshold
        thresholds = THRESHOLDS if threshold is None else [*THRESHOLDS, threshold]
        self.sums = Sums(thresholds, FIXED_EDGES if intervals else ())
        self.histograms: dict[str, Histogram] = {}  # one a size of lesion; "" without lesion
        self.named = False

    def add(self, score, truth, brain=None, subjects=None) -> None:
        """score in [0, 1], truth, brain: (N, H, W) or (N, 1, H, W); subjects: (N,), in every batch or in none.
        ValueError as of `metrics.evaluate`.
        """
        lesion_voxels = int((as_array(truth) > 0).sum())
        score, truth, brain = checked(score, truth, brain)
        check_range(score)
        if self.sums.rows and self.named != (subjects is not None):
            raise ValueError("name the subjects of every batch, or of none")
        self.named = subjects is not None
        subjects = subjects if self.named else [""] * len(score)
        subject_index(subjects, len(score))
        self.sums.outside += lesion_voxels - int(truth.sum())
        sizes = self.sums.add(score, truth, brain, subjects)
        for size in set(sizes):
            rows = sizes == size
            histogram = self.histograms.setdefault(size, Histogram())
            histogram.add(score[rows], truth[rows], brain[rows])

    def result(
        self, *, spacing: float | None = None, n: int = 500, seed: int = 0, level: float = 0.95
    ) -> dict:
        """As of `metrics.evaluate`; intervals only if they were asked for at the start. ValueError before the first
        batch.
        """
        if not self.sums.rows:
            raise ValueError("no slices have been added: there is nothing to measure")
        voxels = {size: h.voxels() for size, h in self.histograms.items() if size}
        voxels[None] = Histogram.joined(list(self.histograms.values())).voxels() if voxels else None
        options = {"n": n, "seed": seed, "level": level} if len(self.sums.edges) else {}
        return report(self.sums, voxels, self.threshold, spacing=spacing, named=self.named, options=options)
