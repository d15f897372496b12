"""The test and validation sets of the quality benchmark, as prepared folders. What is there is not made
again.

    cohort_t1, cohort_flair, cohort_t2, cohort_t1ce
                              simulated patients and normal subjects; none of them was trained on (another seed)
    ixi_t1                    IXI subjects with simulated strokes in their own anatomy, and the same subjects without
    ixi_flair, ixi_t2, ixi_t1ce   the same turned into that contrast, with simulated tumours and white-matter
                              lesions: for validation only
    glioma_flair, glioma_t1ce, ms_flair, ms_t1, ms_t2, ms_t1ce   real patients: for test only

splits.json says which IXI subject trains, validates and tests.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm.auto import tqdm

from madad_lite.scans.find import find_scans
from madad_lite.scans.nifti import load_volume, save_nifti
from madad_lite.simulation.cohort import implant_lesion, write_cohort
from madad_lite.simulation.recolour import RECOLOUR
from madad_lite.slices.folder import prepare_folder
from madad_lite.slices.manifest import Manifest, write_arrays

SPLITS = json.loads((Path(__file__).parent / "splits.json").read_text())
COHORT = dict(normal=8, patients=30, seed=1001)
IXI_KINDS = {"ixi_t1": ("stroke",)} | {f"ixi_{c}": ("glioma", "wml") for c in RECOLOUR}
APART = ("t2", "t1ce")  # simulated apart: beside T1 and FLAIR they would change what is drawn for these
VOLUMES_ML = {"stroke": (0.5, 60.0), "glioma": (4.0, 60.0), "wml": (0.5, 15.0)}


def real_data() -> Path | None:
    """The folder of real scans, if there is one."""
    return Path(os.environ["MADAD_REAL_DATA"]) if os.environ.get("MADAD_REAL_DATA") else None


def cohort_scans(contrast: str, root: Path) -> Path:
    """The simulated subjects' folder."""
    return root / (f"cohort_{contrast}_scans" if contrast in APART else "cohort")


def build(name: str, root: Path) -> Path:
    """The prepared folder of a set."""
    out = root / name
    kind, _, contrast = name.partition("_")
    if (out / "manifest.json").exists():
        manifest = Manifest.load(out, unfinished=True)
        if manifest.complete and manifest.contrast == contrast:
            return out
        if manifest.contrast != contrast:  # painting was interrupted
            shutil.rmtree(out)
    if kind == "cohort":
        scans = cohort_scans(contrast, root)
        if not (scans / "participants.tsv").exists():
            write_cohort(scans, contrasts=(contrast,) if contrast in APART else ("t1", "flair"), **COHORT)
        prepare_folder(scans, out, contrast=contrast, fractions=(0.0, 0.5, 0.5))
    elif kind == "ixi":
        cohort, splits = implanted(name, root)
        prepare_folder(cohort, out, contrast="t1", splits=splits, layout="cohort")
        if contrast in RECOLOUR:
            paint(out, contrast)
    else:
        folder = {"glioma": "glioma_flair_1mm", "ms": "ms_1mm"}[kind]
        prepare_folder(
            real_data() / folder,
            out,
            contrast=contrast,
            layout=kind,
            fractions=(0.0, 0.0, 1.0),
            patients_in_train=True,
        )
    return out


def implanted(name: str, root: Path) -> tuple[Path, dict[str, list[str]]]:
    """Unseen IXI subjects with a simulated lesion each, in turn of every kind and from small to large; and as
    they are.
    """
    scans = {s.subject: s for s in find_scans(real_data() / "ixi_t1_2mm", "t1", "ixi")}
    folder, rows, splits = root / f"{name}_scans", ["participant_id\tgroup"], {"train": []}
    for split in ("val", "test"):
        subjects = SPLITS["ixi"][split]
        splits[split] = []
        for i, subject in enumerate(tqdm(subjects, desc=f"{name} ({split})")):
            kinds = IXI_KINDS[name]
            kind, place = kinds[i % len(kinds)], (i // len(kinds)) / max(1, len(subjects) // len(kinds) - 1)
            volume = float(np.exp(np.interp(place, [0, 1], np.log(VOLUMES_ML[kind]))))
            image = load_volume(scans[subject].image)
            brain = nib.Nifti1Image((np.asarray(image.dataobj) > 0).astype(np.uint8), image.affine)
            seed, enhancing = 1000 * (split == "test") + i, name == "ixi_t1ce"
            changed, lesion = implant_lesion(image, brain, seed, kind, volume, enhancing=enhancing)
            versions = {
                f"sub-{subject}": ("patient", changed, lesion),
                f"sub-{subject}healthy": ("normal", image, None),
            }
            for person, (group, scan, mask) in versions.items():
                rows.append(f"{person}\t{group}")
                splits[split].append(person)
                anat = folder / person / "anat"
                anat.mkdir(parents=True, exist_ok=True)
                files = {"T1w": scan, "desc-brain_mask": brain} | (
                    {} if mask is None else {"label-lesion_mask": mask}
                )
                for ending, volume_ in files.items():
                    save_nifti(volume_, anat / f"{person}_{ending}.nii.gz", force=True)
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    return folder, splits


def paint(folder: Path, contrast: str) -> None:
    """Turn prepared T1 slices into another contrast, in place; but for t1ce, which has its own, with bright lesions
    where the masks are.
    """
    manifest = Manifest.load(folder)
    content = manifest.to_dict() | {"contrast": contrast}
    for number, scan in enumerate(manifest.scans()):
        rng = np.random.default_rng([77, number])
        image, brain = (np.asarray(manifest.array(scan, k)) for k in ("image", "brain"))
        new = RECOLOUR[contrast](image, brain, rng)
        if scan["lesion"] and contrast != "t1ce":
            mask = np.asarray(manifest.array(scan, "lesion")).astype(np.float32)
            soft = np.clip(ndimage.gaussian_filter(mask, (0.5, 0.6, 0.6)) * mask * 1.5, 0, 1)
            level = (
                rng.uniform(0.35, 0.8)
                + 0.08 * ndimage.gaussian_filter(rng.standard_normal(mask.shape), 1.5) * 6
            )
            new = np.where(brain, np.clip(new * (1 - soft) + soft * level, -1, 1), -1)
        written = write_arrays(manifest.scan_folder(scan), {"image": new.astype(np.float16)})
        scan |= {"contrast": contrast, "crc32": scan.get("crc32", {}) | written}
    Manifest(folder, content).save()
