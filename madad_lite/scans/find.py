"""Which scans a folder holds: file names -> ScanFiles. Nothing here opens an image.

    layout   a scan's file                                                      its lesion mask
    cohort   sub-0001/anat/sub-0001_T1w.nii.gz  (BIDS, the simulated subjects)  sub-0001_label-lesion_mask.nii.gz
    atlas    .../sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz         ..._label-L_desc-T1lesion_mask.nii.gz
    brats    BraTS2021_00000/BraTS2021_00000_t1.nii.gz, _t1ce, _t2, _flair      BraTS2021_00000_seg.nii.gz
    glioma   brats_2013_pat0001_1/brats_2013_pat0001_1_flair.nii.gz, _t1c       brats_2013_pat0001_1_seg.nii.gz
    ms       patient07/patient07_flair.nii.gz, _t1, _t1post, _t2                patient07_seg.nii.gz
    msd      imagesTr/BRATS_001.nii.gz, 4-D, contrasts named in dataset.json    labelsTr/BRATS_001.nii.gz
    ixi      IXI002-Guys-0828-T1.nii.gz, IXI012-HH-1211_T1_brain.nii.gz         none: healthy people
    plain    any other NIfTI file                                               NAME_seg, NAME_lesion, NAME_lesion_mask

In every layout NAME_brain_mask or NAME_brainmask, or the subject's desc-brain_mask, is taken as the brain
mask.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from madad_lite.errors import ScanError
from madad_lite.files import Rule, is_nifti, nifti_files, read_json, safe_name, stem

log = logging.getLogger(__name__)
CONTRASTS = ("t1", "t2", "flair", "t1ce")
WORDS = {  # what the parts of file names and the entries of dataset.json say about the contrast
    "t1": "t1",
    "t1w": "t1",
    "t1n": "t1",
    "t2": "t2",
    "t2w": "t2",
    "flair": "flair",
    "t2f": "flair",
    **dict.fromkeys(("t1ce", "t1c", "t1gd", "t1post"), "t1ce"),
    **dict.fromkeys(("mprage", "bravo", "spgr"), "t1"),
}
# Contrast agent in the names of files and series. "ses-post" is a visit, "postop" and "posterior" are no agent either.
AGENT = re.compile(
    r"(?<![a-z])(gd|gad[a-z]*|km|ce|contrast|post(gd|gad[a-z]*|km|ce|contrast)"
    r"|(?<!ses-)post(?![ _-]?op)|t1c)(?![a-z0-9])|\+ ?c(?![a-z0-9])|(?<![a-z])c\+"
)
NO_AGENT = re.compile(
    r"(?<![a-z])(pre|non?|without|w[ /_-]?o|ohne)[ _-]*(iv[ _-]*)?(gd|gad[a-z]*|km|ce|contrast)(?![a-z0-9])"
    r"|ce-none"
)
MSD_CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")  # their order where dataset.json does not say
SIMULATED = "Simulated brain MRI (madad_lite)"  # in dataset_description.json: how our cohort is known again
MSD_MODALITY = Rule(
    lambda v: (
        isinstance(v, dict)
        and all(re.fullmatch("[0-9]{1,3}", k) and isinstance(c, str) for k, c in v.items())
    ),
    "contrasts by number",
)
INSIDE = Rule(
    lambda v: isinstance(v, str) and not os.path.isabs(v) and ".." not in Path(v).parts,
    "the name of a file in the task's folder",
)
MSD_DATASET = {
    "modality?": ({None}, MSD_MODALITY),
    "training": [{"image": INSIDE, "label": INSIDE}],
}  # dataset.json
BRAIN_ENDINGS = ("_brain_mask", "_brainmask")
LESION_ENDINGS = ("_lesion_mask", "_lesion", "_seg", "_segmentation")
# any name that ends so is a mask, whether or not the scan that it belongs to is known; "x_nolesion" is a scan
IS_MASK = re.compile(r"(mask|seg|(^|[^a-z])(segmentation|labels?|lesions?|roi))$", flags=re.IGNORECASE)
HEALTHY = {"normal", "control", "healthy", "hc", "cn"}  # in the group column of participants.tsv


@dataclass(frozen=True)
class ScanFiles:
    """One scan and what belongs to it. `subject` is the person: a person's scans stay in one split."""

    scan_id: str
    subject: str
    contrast: str
    image: Path
    lesion: Path | None = None
    brain: Path | None = None
    channel: int | None = None  # which volume of a 4-D file
    group: str = "normal"  # "normal" or "patient"


def is_simulated(folder: Path) -> bool:
    """Whether a folder is a cohort that simulation.cohort has written."""
    try:
        return read_json(folder / "dataset_description.json", {"Name": str})["Name"] == SIMULATED
    except ScanError:
        return False


def is_mask(path: str | Path) -> bool:
    """By its name: x_seg, x_segmentation, x_lesion, x_label-lesion_mask, x_brainmask, x_labels, x_roi."""
    return IS_MASK.search(stem(path)) is not None


def contrast_of(name: str) -> str | None:
    """The contrast that a name speaks of: sub-1_ce-gadolinium_T1w -> t1ce, BRATS_001 -> None."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    known = WORDS | {w: "t1" for w in words if w.startswith("t1") and with_agent(w)}  # such as t1gad
    found = [known[w] for w in words if w in known]
    contrast = found[-1] if found else None
    return "t1ce" if contrast == "t1" and with_agent(name) else contrast


def with_agent(name: str) -> bool:
    """Whether the name of a T1, a file's or a series', speaks of contrast agent: T1 post Gd; not T1 pre contrast."""
    spoken = re.sub("^sub-[a-z0-9]+", "", name.lower())  # a person may be called sub-CE01
    return AGENT.search(NO_AGENT.sub(" ", spoken)) is not None


def _mask(image: Path, endings: tuple[str, ...], files: set[Path]) -> Path | None:
    """The file beside `image` that has its name and one of these endings."""
    suffixes = (".nii.gz", ".nii", ".NII.GZ", ".NII")
    names = (image.with_name(stem(image) + e + suffix) for e in endings for suffix in suffixes)
    return next((p for p in names if p in files), None)


def _ixi(folder: Path, files: list[Path]) -> Iterator[ScanFiles]:
    for image in files:
        if (m := re.match(r"(IXI\d+)-", image.name)) and not stem(image).endswith(BRAIN_ENDINGS):
            brain = _mask(image, BRAIN_ENDINGS, set(files))
            yield ScanFiles(stem(image), m[1], contrast_of(stem(image)) or "", image, brain=brain)


def _bids(folder: Path, files: list[Path]) -> Iterator[ScanFiles]:
    table = folder / "participants.tsv"
    groups: dict[str, str] = {}
    if table.is_file():
        text = table.read_text(encoding="utf-8-sig", errors="replace")  # spreadsheets write other encodings
        try:
            rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
        except csv.Error as error:
            raise ScanError(f"{table}: is no table ({error}); repair or remove it") from None
        for row in rows:
            if row.get("group"):
                healthy = row["group"].strip().lower() in HEALTHY
                groups[row.get("participant_id") or ""] = "normal" if healthy else "patient"
    masks: dict[Path, list[Path]] = {}
    for f in files:
        if is_mask(f):
            masks.setdefault(f.parent, []).append(f)
    for image in files:
        m = re.match(r"(sub-[A-Za-z0-9]+)_", image.name)
        if not m or not (contrast := contrast_of(stem(image).rsplit("_", 1)[-1])):
            continue
        own = [f for f in masks.get(image.parent, []) if f.name.startswith(m[1] + "_")]
        own = _same_entities(image, own)
        named = {f: f.name[len(m[0]) :].lower() for f in own}  # a subject may be called sub-brain01
        lesion = next((f for f in own if "lesion" in named[f]), None)
        brain = next((f for f in own if "brain" in named[f]), None)
        group = groups.get(m[1], "patient" if lesion else "normal")
        yield ScanFiles(
            stem(image), m[1], contrast_of(stem(image)) or contrast, image, lesion, brain, group=group
        )


def _atlas(folder: Path, files: list[Path]) -> Iterator[ScanFiles]:
    """Stroke patients only, also where the mask is kept back for a challenge."""
    return (replace(scan, group="patient") for scan in _bids(folder, files))


def _same_entities(image: Path, masks: list[Path]) -> list[Path]:
    """Masks that do not contradict the image in session, run or space: ses-1 does not belong to ses-2."""
    of_image = dict(re.findall(r"_(ses|run|space)-([A-Za-z0-9]+)", image.name))

    def agrees(mask: Path) -> bool:
        of_mask = dict(re.findall(r"_(ses|run|space)-([A-Za-z0-9]+)", mask.name))
        return all(of_image.get(k, v) == v for k, v in of_mask.items())

    return [m for m in masks if agrees(m)]


def brain_beside(image: Path) -> Path | None:
    """The brain mask in a scan's folder that is its own by name: NAME_brain_mask, NAME_brainmask, or of BIDS the
    subject's desc-brain_mask.
    """
    try:
        files = {f for f in image.parent.iterdir() if is_nifti(f)}
    except OSError:
        return None
    subject = re.match(r"sub-[A-Za-z0-9]+_", image.name)
    bids = [f for f in files if subject and f.name.startswith(subject[0]) and "desc-brain_mask" in f.name]
    return _mask(image, BRAIN_ENDINGS, files) or next(iter(_same_entities(image, sorted(bids))), None)


def _patient_folders(folder: Path, files: list[Path]) -> Iterator[ScanFiles]:
    """NAME/NAME_t1.nii.gz with NAME/NAME_seg.nii.gz: brats, glioma and ms differ in the names only.

    BraTS has patients only; under other names a subject without a mask is taken for a normal one.
    """
    known = set(files)
    for image in files:
        m = re.match(r"(.+)[_-]([A-Za-z0-9]+)$", stem(image))
        if not m or m[1] != image.parent.name or m[2].lower() not in WORDS:
            continue
        lesion = _mask(image.with_name(m[1]), ("_seg", "-seg"), known)
        # BraTS-GLI-00000-001 and brats_2013_pat0001_1 end with the number of the visit
        subject = re.sub(r"^(BraTS-[A-Za-z]+-\d+|brats_\w+?_pat\d+)[-_\d]+$", r"\1", m[1])
        brain = _mask(image, BRAIN_ENDINGS, known)
        group = "patient" if lesion or image.name.lower().startswith("brats") else "normal"
        yield ScanFiles(stem(image), subject, WORDS[m[2].lower()], image, lesion, brain, group=group)


def _msd(folder: Path, files: list[Path]) -> Iterator[ScanFiles]:
    described = folder / "dataset.json"
    try:
        content = read_json(described, MSD_DATASET, hint="unpack it again")
    except ScanError as error:
        reason = str(error).removeprefix(f"{described}: ")
        raise ScanError(f"{described}: does not describe a Decathlon task: {reason}") from None
    modality = content.get("modality") or dict(enumerate(MSD_CHANNELS))
    times = Counter(folder / p["image"] for p in content["training"])
    if twice := [path for path, n in times.items() if n > 1]:
        raise ScanError(
            f"{described}: {twice[0].relative_to(folder)} is in it twice; repair it, or unpack it again"
        )
    for image, label in ((p["image"], p["label"]) for p in content["training"]):
        path = folder / image
        for channel, described_as in modality.items():
            if contrast := contrast_of(str(described_as)):
                name, mask = stem(path), folder / label
                yield ScanFiles(name, name, contrast, path, mask, channel=int(channel), group="patient")


def _plain(folder: Path, files: list[Path]) -> Iterator[ScanFiles]:
    """Every file that is not another one's mask. A name without a contrast is taken for any contrast (""). Where the
    same names lie in as many folders as there are names or more, such as P01/visit1.nii.gz, a folder is a person.
    """
    known, scans = set(files), []
    masks = {_mask(image, (e,), known) for image in files for e in BRAIN_ENDINGS + LESION_ENDINGS}
    for image in files:
        if image in masks or is_mask(image):
            continue
        lesion, brain = _mask(image, LESION_ENDINGS, known), _mask(image, BRAIN_ENDINGS, known)
        parts = [
            p for p in re.split(r"[_.\s]+", stem(image)) if contrast_of(p) is None and p.lower() != "brain"
        ]
        bids = re.match(r"sub-[A-Za-z0-9]+", stem(image))
        subject = bids[0] if bids else "_".join(parts) or image.parent.name
        group = "patient" if lesion else "normal"
        contrast = contrast_of(stem(image)) or ""
        scans.append(ScanFiles(stem(image), subject, contrast, image, lesion, brain, group=group))
    places: dict[str, set[Path]] = {}
    for scan in scans:
        if not scan.subject.startswith("sub-") and contrast_of(scan.image.parent.name) is None:
            places.setdefault(scan.subject, set()).add(scan.image.parent)
    folders = {place for several in places.values() if len(several) > 1 for place in several}
    names = {name for name, several in places.items() if several & folders}
    if folders and len(folders) < len(names):
        log.warning(
            f"{folder}: the same names lie in several folders and count as one person each; name files of "
            "different people differently, such as sub-P01_..., or give splits"
        )
    for scan in scans:
        if scan.image.parent in folders and scan.subject in names and len(folders) >= len(names):
            scan = replace(scan, subject=os.path.relpath(scan.image.parent, folder).replace(os.sep, "_"))
        yield scan


READERS = {
    "plain": _plain,
    "ixi": _ixi,
    "atlas": _atlas,
    "cohort": _bids,
    "brats": _patient_folders,
    "glioma": _patient_folders,
    "ms": _patient_folders,
    "msd": _msd,
}
LAYOUTS = ("auto", *READERS)


def detect_layout(folder: Path, files: list[Path]) -> str:
    """The layout that the names in a folder follow."""
    if (folder / "dataset.json").exists() and any(p.parent.name == "imagesTr" for p in files):
        return "msd"
    if any("desc-T1lesion_mask" in p.name for p in files):
        return "atlas"
    if any(p.name.startswith("sub-") and p.parent.name == "anat" for p in files):
        return "cohort"
    if patient := next((s for s in _patient_folders(folder, files) if s.group == "patient"), None):
        name = patient.image.name.lower()
        return "glioma" if name.startswith("brats_2013") else "brats" if name.startswith("brats") else "ms"
    return "ixi" if any(re.match(r"IXI\d+-", p.name) for p in files) else "plain"


def find_scans(folder: str | Path, contrast: str = "t1", layout: str = "auto") -> list[ScanFiles]:
    """The scans of one contrast in a folder, sorted by name; each scan_id once.

    layout: one of LAYOUTS; "auto" looks at the names. Raises ScanError when there is no folder, no NIfTI file
    in it, or none of this contrast. Images are not opened: whether they can be used is found when they are
    prepared.
    """
    folder = Path(folder)
    if contrast not in CONTRASTS:
        raise ScanError(f"{folder}: {contrast!r} is not a contrast; choose one of {', '.join(CONTRASTS)}")
    if layout not in LAYOUTS:
        raise ScanError(f"{folder}: {layout!r} is not a layout; choose one of {', '.join(LAYOUTS)}")
    if not folder.is_dir():
        raise ScanError(f"{folder}: no such folder; give the folder that holds the scans")
    files = nifti_files(folder)
    if not files:
        raise ScanError(
            f"{folder}: no NIfTI file (.nii, .nii.gz) in it; give the folder that holds the scans"
        )
    name = detect_layout(folder, files) if layout == "auto" else layout
    scans = list(READERS[name](folder, files))
    chosen = [replace(s, contrast=contrast) for s in scans if s.contrast in (contrast, "")]
    if not chosen:
        there = ", ".join(sorted({s.contrast for s in scans})) or "no scan that follows it"
        raise ScanError(f"{folder}: no {contrast} scan in the layout {name!r}; there is: {there}")
    return sorted(_unique(folder, chosen), key=lambda s: s.scan_id)


def _unique(folder: Path, scans: list[ScanFiles]) -> Iterator[ScanFiles]:
    """scan_ids become folder names, each another one, also where capitals do not count: plain characters, with
    the path in front where a name is there twice, and with a hash of it where that is not enough.
    """
    paths = ["-".join(s.image.parts[len(folder.parts) :]) for s in scans]
    whole = [f"{s.image}/{s.channel}".removeprefix(str(folder)) for s in scans]
    ids = [safe_name(s.scan_id) for s in scans]
    for longer in (paths, whole):  # no name holds a "/": the last ones get their hash
        times = Counter(i.lower() for i in ids)
        ids = [safe_name(name) if times[i.lower()] > 1 else i for i, name in zip(ids, longer)]
    return (replace(s, scan_id=i) for s, i in zip(scans, ids))
