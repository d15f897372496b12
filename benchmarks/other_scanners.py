"""What weights make of scanners that they were not trained on: validation subjects, seen by simulated ones.

    MADAD_REAL_DATA=SCANS python benchmarks/other_scanners.py --weights t1 [OTHER ...]

Every third IXI validation subject of sets.py (five), with its implanted lesion and without, goes as it is and through
SCANNERS simulated scanners, each a draw for the whole volume: a curve of intensities that keeps the tissues' order, a
smooth bias field, noise, blur along the slices. Prints, for each of the weights, the share of healthy brain above the
decision threshold (of --threshold, else the weights' own): all, within 4 mm of the brain's edge, and in the topmost
eighth of the slices; and how well the lesions are found. Simulated scanners are no real ones: they order weights, no
more.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from sets import build
from tqdm import tqdm

from madad_lite.evaluation import metrics
from madad_lite.evaluation.compare import LabelledSlices, load_split
from madad_lite.pipeline import MadAdPipeline
from madad_lite.slices.augment import vary_tissues

SCANNERS = 2
EVERY = 3  # of the validation subjects
HEALTHY = "healthy"  # how the names of those without lesion end


def other_scanner(image: torch.Tensor, brain: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A whole volume (N, 1, H, W) in [-1, 1] as another scanner might show it; the background stays -1."""
    n, _, h, w = image.shape
    flat = vary_tissues(
        image.view(1, 1, n * h, w), brain.view(1, 1, n * h, w), generator
    )  # one curve for all
    value = (flat.view(n, 1, h, w) + 1) / 2
    draw = torch.rand(3, generator=generator)
    knots = torch.randn(1, 1, 4, 4, 4, generator=generator) * 0.12 * draw[0]
    field = F.interpolate(knots, size=(n, h, w), mode="trilinear", align_corners=True)[0, 0].unsqueeze(1)
    value = value * field.exp() + 0.03 * draw[1] * torch.randn(value.shape, generator=generator)
    if draw[2] > 0.5:  # slices of up to 6 mm
        value = torch.from_numpy(
            ndimage.gaussian_filter1d(value.numpy(), 2.4 * (draw[2].item() - 0.5), axis=0)
        )
    value = value * 0.5 / value[brain].median()
    return torch.where(brain, (2 * value - 1).clamp(-1, 1), -1.0)


def seen_by(s: LabelledSlices, number: int) -> LabelledSlices:
    """Every scan as one of the scanners shows it; number 0: as it is."""
    images = s.image.clone()
    for k, scan in enumerate(dict.fromkeys(s.scans)) if number else ():
        rows = s.scans == scan
        generator = torch.Generator().manual_seed(1000 * number + k)
        images[rows] = other_scanner(s.image[rows], s.brain[rows], generator)
    return replace(s, image=images)


def regions(s: LabelledSlices) -> dict[str, torch.Tensor]:
    """Where false alarms may sit: masks (N, 1, H, W)."""
    inner = ~F.max_pool2d((~s.brain).float(), 5, 1, 2).bool()
    top = torch.zeros(len(s.image), 1, 1, 1, dtype=torch.bool)
    for scan in dict.fromkeys(s.scans):
        rows = np.flatnonzero(s.scans == scan)
        top[rows[-(len(rows) // 8) :]] = True
    return {"brain": s.brain, "edge": s.brain & ~inner, "topmost slices": s.brain & top}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", nargs="+", required=True, help="shipped names or folders")
    p.add_argument("--threshold", type=float, help="of the map, in place of the weights' own")
    p.add_argument("--data", type=Path, default=Path("work/quality"), help="where the sets are, or are made")
    args = p.parse_args()
    print(HEAD)
    for name in args.weights:
        pipe = MadAdPipeline.from_pretrained(name)
        limit = args.threshold or pipe.config.decision_threshold
        if limit is None:
            p.error(f"{name}: has no decision threshold; give one with --threshold")
        s = load_split(build(f"ixi_{pipe.config.contrast}", args.data), "val")
        subjects = np.array([x.removesuffix(HEALTHY) for x in s.subjects])
        s = s.take(np.flatnonzero(np.isin(subjects, np.unique(subjects)[::EVERY])))
        sick = np.array([not x.endswith(HEALTHY) for x in s.subjects])
        for number in tqdm(range(1 + SCANNERS), desc=name, leave=False):
            seen = seen_by(s, number)
            options = dict(volumes=seen.scans, generator=torch.Generator().manual_seed(0), progress=False)
            maps = pipe(seen.image, brain=seen.brain, **options).anomaly_map
            shares = {
                k: ((maps > limit) & mask)[~sick].sum() / mask[~sick].sum()
                for k, mask in regions(seen).items()
            }
            dice, best = metrics.pooled_max_dice(maps[sick], s.lesion[sick], s.brain[sick])
            at = metrics.dice_at(maps[sick], s.lesion[sick], limit, s.brain[sick])["pooled"]
            alarms = " | ".join(f"{100 * share:.3f} %" for share in shares.values())
            scanner = f"simulated {number}" if number else "as it is"
            print(f"| {name} | {scanner} | {alarms} | {dice:.3f} at {best:.3f} | {at:.3f} at {limit:.3f} |")


HEAD = (
    "| weights | scanner | of healthy brain marked | edge | topmost slices | max Dice, pooled | at the threshold |\n"
    + "|---" * 7
    + "|"
)

if __name__ == "__main__":
    main()
