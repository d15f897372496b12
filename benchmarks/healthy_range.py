"""The grey band of the report: which summed scores each slice has in healthy validation subjects.

    MADAD_REAL_DATA=SCANS python benchmarks/healthy_range.py --weights t1

Writes healthy.json into the weights' folder: for each height z of the grid, MNI mm, the lowest, the median
and the highest sum of the anomaly map over the slice, over `--subjects` IXI validation subjects of
splits.json, with the weights' own settings and seed 0. There are no healthy FLAIR, T2 or T1CE scans: for weights of
these contrasts the same subjects are turned into them first, and the file says so.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sets import SPLITS, real_data
from tqdm import tqdm

from madad_lite.files import write_json
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.find import find_scans
from madad_lite.scans.grid import Grid
from madad_lite.simulation.recolour import RECOLOUR
from madad_lite.weights import WEIGHTS


def measure(pipe: MadAdPipeline, subjects: int) -> dict:
    scans = {s.subject: s for s in find_scans(real_data() / "ixi_t1_2mm", "t1", "ixi")}
    chosen = sorted(SPLITS["ixi"]["val"])[:subjects]
    grid = Grid.from_dict(pipe.config.grid)
    sums = np.full((len(chosen), grid.shape[2]), np.nan)
    for row, subject in enumerate(tqdm(chosen, desc="healthy subjects")):
        prepared = pipe.prepare(scans[subject].image)
        if to_contrast := RECOLOUR.get(pipe.config.contrast):
            rng = np.random.default_rng([0, row])
            prepared = replace(prepared, image=to_contrast(prepared.image, prepared.brain, rng))
        output = pipe(prepared, generator=torch.Generator().manual_seed(0), progress=False)
        sums[row, list(prepared.geometry.slice_index)] = output.anomaly_map.sum((1, 2, 3)).numpy()
    kept = np.isfinite(sums).all(0)  # heights at which every subject has a slice
    heights = grid.affine[2, 3] + grid.step * np.flatnonzero(kept)
    recoloured = (
        f" turned into {pipe.config.contrast.upper()} contrast" if pipe.config.contrast in RECOLOUR else ""
    )
    return {
        "who": f"{len(chosen)} healthy validation subjects{recoloured}",
        "z_mm": heights.tolist(),
        **{
            name: np.round(function(sums[:, kept], axis=0), 2).tolist()
            for name, function in (("lowest", np.min), ("median", np.median), ("highest", np.max))
        },
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default="t1", help="a shipped name or a folder")
    p.add_argument("--subjects", type=int, default=15)
    args = p.parse_args()
    shipped = WEIGHTS / args.weights
    folder = shipped if shipped.is_dir() else Path(args.weights)
    write_json(folder / "healthy.json", measure(MadAdPipeline.from_pretrained(folder), args.subjects))


if __name__ == "__main__":
    main()
