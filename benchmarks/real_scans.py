"""Detection on real scans that no model was trained on. Needs a folder of scans, which the repository does not hold:

    MADAD_REAL_DATA/ixi_t1_2mm         healthy T1 (IXI); subjects of the test and val splits get simulated strokes implanted
    MADAD_REAL_DATA/glioma_flair_1mm   glioma patients, FLAIR with masks
    MADAD_REAL_DATA/ms_1mm             multiple sclerosis patients, T1 and FLAIR with masks

    python benchmarks/real_scans.py --ixi work/ixi --cohort-flair work/cohort_flair --out results/real_scans

`--ixi` is the prepared folder that the T1 weights were trained on: its split says which subjects are unseen. Thresholds come
from implanted val subjects (T1) and from the simulated val patients (FLAIR), never from the scans that are reported.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import nibabel as nib
import numpy as np
import torch
from tqdm.auto import tqdm

from madad_lite import plotting
from madad_lite.baselines import BASELINES
from madad_lite.data import Manifest, prepare_folder
from madad_lite.evaluation import LabelledSlices, evaluate_methods, load_split
from madad_lite.metrics import table
from madad_lite.phantom import implant_lesion
from madad_lite.pipeline import MadAdPipeline
from madad_lite.runs import write_json
from madad_lite.volumes import load_volume, save_nifti


def implant(ixi: Manifest, out: Path, per_split: int = 10) -> Path:
    """Simulated strokes in the own anatomy of unseen IXI subjects, as a cohort that prepare_folder understands."""
    rows = ["participant_id\tgroup"]
    for split in ("val", "test"):
        for i, scan in enumerate(tqdm(ixi.scans(split)[:per_split], desc=f"implanting ({split})")):
            name = f"sub-{split}{i:02d}"
            rows.append(f"{name}\tpatient")
            anat = out / name / "anat"
            if (anat / f"{name}_label-lesion_mask.nii.gz").exists():
                continue
            anat.mkdir(parents=True, exist_ok=True)
            image = load_volume(scan["source"])
            brain = np.asarray(image.dataobj) > 0
            # volumes spread evenly on a log scale from 0.5 to 60 mL: small and large lesions in both splits
            volume = float(np.exp(np.interp(i, [0, per_split - 1], np.log([0.5, 60.0]))))
            changed, lesion = implant_lesion(image, brain, seed=1000 * (split == "test") + i, volume_ml=volume)
            mask = nib.Nifti1Image(brain.astype(np.uint8), image.affine)
            for ending, volume in (("T1w", changed), ("desc-brain_mask", mask), ("label-lesion_mask", lesion)):
                save_nifti(volume, anat / f"{name}_{ending}.nii.gz", force=True)
    (out / "participants.tsv").write_text("\n".join(rows) + "\n")
    return out


def scores(pipe: MadAdPipeline, s: LabelledSlices, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"MAD-AD": pipe(s.image, brain=s.brain, generator=generator).anomaly_map} | {
        name: method(pipe, s.image, s.brain) for name, method in BASELINES.items()
    }


def report(name: str, pipe: MadAdPipeline, val: LabelledSlices, on_val: dict, test: LabelledSlices, out: Path, seed: int) -> dict:
    found = {"val": on_val, "test": scores(pipe, test, seed)}
    results = evaluate_methods({m: {k: found[k][m] for k in found} for m in found["val"]}, {"val": val, "test": test}, seed=seed)
    print(f"\n{name}: {len(set(test.subjects))} subjects, {len(test.image)} slices")
    print(table({m: r["test"] for m, r in results.items()}))
    area = test.lesion.flatten(1).sum(1)
    rows = [
        max((i for i, x in enumerate(test.subjects) if x == s), key=lambda i: area[i])
        for s in dict.fromkeys(test.subjects.tolist())
    ]
    output = pipe(test.image[rows], brain=test.brain[rows], generator=torch.Generator().manual_seed(seed), progress=False)
    for i, row in enumerate(rows):
        figure = plotting.detection_figure(output, i, truth=test.lesion[row, 0].numpy())
        figure.savefig(out / f"{name}_{test.subjects[row]}.png", bbox_inches="tight")
    return results


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ixi", required=True, help="prepared IXI folder")
    p.add_argument("--cohort-flair", required=True, help="prepared simulated FLAIR cohort")
    p.add_argument("--out", default="results/real_scans")
    p.add_argument("--t1", default="t1")
    p.add_argument("--flair", default="flair")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    real, out = Path(os.environ["MADAD_REAL_DATA"]), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    implanted = implant(Manifest.load(args.ixi), out / "ixi_implanted")
    names = {s: [f"sub-{s}{i:02d}" for i in range(10)] for s in ("val", "test")}
    prepare_folder(implanted, out / "prepared_ixi", contrast="t1", splits={"train": [], **names}, layout="cohort")
    prepared = {"ixi_implanted": (out / "prepared_ixi", "t1")}
    for folder, contrast in (("ms_1mm", "t1"), ("ms_1mm", "flair"), ("glioma_flair_1mm", "flair")):
        target = out / f"prepared_{folder}_{contrast}"
        layout = "ms" if folder.startswith("ms") else "glioma"
        prepare_folder(real / folder, target, contrast=contrast, layout=layout, fractions=(0.0, 0.0, 1.0), patients_in_train=True)
        prepared[f"{folder}_{contrast}"] = (target, contrast)
    pipes = {"t1": MadAdPipeline.from_pretrained(args.t1), "flair": MadAdPipeline.from_pretrained(args.flair)}
    vals = {"t1": load_split(out / "prepared_ixi", "val"), "flair": load_split(args.cohort_flair, "val")}
    on_val = {c: scores(pipes[c], vals[c], args.seed) for c in pipes}
    for name, (folder, contrast) in prepared.items():
        test = load_split(folder, "test")
        results[name] = report(name, pipes[contrast], vals[contrast], on_val[contrast], test, out, args.seed)
    write_json(out / "metrics.json", results)


if __name__ == "__main__":
    main()
