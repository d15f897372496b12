"""Would it help to put CSF, grey and white matter at fixed places instead of scaling by the brain's median?

    MADAD_REAL_DATA=SCANS python benchmarks/tissue_peaks.py --subjects 5

Prints, for weights (the shipped `t1`) with their own settings and both normalisations: the share of the brain at or
above the decision threshold in scans of scanners that were not trained on (healthy heads; MS patients, but for their
lesions and 4 mm around them), and the pooled Dice, at the threshold and at its best, of strokes that are implanted into
IXI validation subjects.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from sets import SPLITS, VOLUMES_ML, real_data

from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.find import find_scans
from madad_lite.scans.grid import PreparedScan
from madad_lite.scans.nifti import load_volume, save_nifti
from madad_lite.scans.tissues import normalised, tissue_medians
from madad_lite.simulation.cohort import implant_lesion


def score(pipe: MadAdPipeline, scan: PreparedScan) -> np.ndarray:
    return pipe(scan, generator=torch.Generator().manual_seed(0), progress=False).anomaly_map[:, 0].numpy()


def dice(scores: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    found = scores >= threshold
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default="t1")
    p.add_argument("--subjects", type=int, default=15)
    args = p.parse_args()
    pipe, root = MadAdPipeline.from_pretrained(args.weights), real_data()
    threshold = pipe.config.decision_threshold
    ixi = {s.subject: s.image for s in find_scans(root / "ixi_t1_2mm", "t1", "ixi")}

    def both(scan: PreparedScan) -> list[np.ndarray]:
        return [score(pipe, normalised(scan, how, "t1", "scan")) for how in ("median", "tissue")]

    print(f"% of the brain at or above {threshold}            tissues            median  tissue peaks")
    others = {p.name: (p, None) for p in sorted((root / "heads").glob("head_*_t1.nii.gz"))}
    others |= {s.scan_id: (s.image, s.lesion) for s in find_scans(root / "ms_1mm", "t1", "ms")}
    for name, (image, lesion) in others.items():
        scan = pipe.prepare(image, lesion=lesion)
        inside = scan.brain
        if lesion is not None:
            inside = inside & ~ndimage.binary_dilation(scan.lesion, iterations=2)
        own = tissue_medians(scan)
        shares = [100 * (s >= threshold)[inside].mean() for s in both(scan)]
        tissues = "  ".join(f"{own[t]:.3f}" for t in ("csf", "grey", "white"))
        print(f"{name:38} {tissues} {shares[0]:10.4f} {shares[1]:10.4f}", flush=True)

    pooled: list[list[np.ndarray]] = [[], [], []]  # median, tissue peaks, truth
    for i, subject in enumerate(SPLITS["ixi"]["val"][: args.subjects]):
        place = i / max(1, args.subjects - 1)
        volume = float(np.exp(np.interp(place, [0, 1], np.log(VOLUMES_ML["stroke"]))))
        image = load_volume(ixi[subject])
        brain = nib.Nifti1Image((np.asarray(image.dataobj) > 0).astype(np.uint8), image.affine)
        changed, lesion = implant_lesion(image, brain, seed=i, kind="stroke", volume_ml=volume)
        with tempfile.TemporaryDirectory() as work:
            files = {name: Path(work, f"{name}.nii.gz") for name in ("scan", "lesion", "brain")}
            for file, volume_ in zip(files.values(), (changed, lesion, brain)):
                save_nifti(volume_, file)
            scan = pipe.prepare(files["scan"], lesion=files["lesion"], brain=files["brain"])
        for kept, values in zip(pooled, (*both(scan), scan.lesion)):
            kept.append(values[scan.brain])
    median, peaks, truth = (np.concatenate(kept) for kept in pooled)
    print(f"pooled Dice of {args.subjects} implanted strokes        median  tissue peaks")
    print(
        f"at {threshold:<35}    {dice(median, truth, threshold):10.4f} {dice(peaks, truth, threshold):10.4f}"
    )
    best = [max(dice(s, truth, t) for t in np.linspace(0.02, 0.9, 45)) for s in (median, peaks)]
    print(f"at its best                               {best[0]:10.4f} {best[1]:10.4f}")


if __name__ == "__main__":
    main()
