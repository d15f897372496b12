"""DICOM folders: which series is the scan, and its conversion to NIfTI by dcm2niix (Li et al. 2016, doi
10.1016/j.jneumeth.2016.03.001; extra `dicom`, imported only when there is a series to convert).

A folder is one examination: the series of one visit, in it or in its subfolders. Of a scan only voxels and
affine are kept: names, dates and comments stay in the DICOM files.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from madad_lite.errors import ScanError
from madad_lite.files import new_file, safe_name
from madad_lite.scans.find import with_agent

FEWEST_SLICES, SHORTEST_MM = 15, 80  # of a series that is taken by itself; heads cut to 105 mm were seen
LOCALISER = re.compile(r"locali[sz]er|scout|survey|^loc\b", re.IGNORECASE)
# How radiographers name their series. "T1 FLAIR" is a T1: T1 is asked for first.
T1 = re.compile(r"t1|mprage|bravo|spgr", re.IGNORECASE)
FLAIR = re.compile(r"flair|dark.?fluid|tirm", re.IGNORECASE)
T2 = re.compile(r"t2(?!\s?\*|.?star)", re.IGNORECASE)


@dataclass(frozen=True)
class Series:
    """One converted series."""

    number: int
    description: str
    file: Path  # NIfTI
    shape: tuple[int, ...]
    voxel: tuple[float, ...]  # mm
    original: bool  # and not computed from other images
    fault: str | None = None  # why it is no scan to work on

    @property
    def contrast(self) -> str | None:
        """ "t1", "t1ce", "t2", "flair", or None where the description does not say."""
        if T1.search(self.description):
            return "t1ce" if with_agent(self.description) else "t1"
        if FLAIR.search(self.description):
            return "flair"
        return "t2" if T2.search(self.description) else None

    def __str__(self) -> str:
        voxels = " x ".join(str(n) for n in self.shape)
        return f"{self.number} {self.description!r} ({voxels} of {' x '.join(f'{v:.3g}' for v in self.voxel)} mm)"

    @property
    def why_not(self) -> str:
        return f"{self.number} {self.description!r} ({self.fault or self.contrast or 'contrast not named'})"


def is_dicom(path: str | os.PathLike) -> bool:
    """By the four letters behind a DICOM file's preamble."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _dicom_files(folder: Path) -> Iterator[Path]:
    return (
        Path(place, name)
        for place, _, names in os.walk(folder)
        for name in sorted(names)
        if not name.startswith(".") and os.path.isfile(Path(place, name)) and is_dicom(Path(place, name))
    )


def holds_dicom(folder: str | os.PathLike) -> bool:
    """Is there a DICOM file anywhere in it?"""
    return next(_dicom_files(Path(folder)), None) is not None


def converter() -> str:
    """The path of the program dcm2niix. ImportError, one line that says how to install it, where there is none."""
    try:
        import dcm2niix
    except ImportError:
        raise ImportError(
            'DICOM folders need dcm2niix: pip install "madad-lite[dicom]"; or give NIfTI files'
        ) from None
    return str(dcm2niix.bin)


def convert_all(folder: str | os.PathLike, work: str | os.PathLike) -> list[Series]:
    """All series of an examination as NIfTI files in the folder `work`, by number.

    ImportError without dcm2niix. ScanError where it makes nothing of the folder, or more than one examination.
    """
    program, folder, work = converter(), Path(folder), Path(work)
    # all JSON fields; no compression; default settings, whatever the user's own are; subfolders to the ninth level
    options = ["-g", "i", "-b", "y", "-ba", "n", "-z", "n", "-d", "9", "-f", "%s_%j", "-o", str(work)]
    done = subprocess.run(
        [program, *options, os.path.abspath(folder)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    described = {}
    for file in sorted(work.glob("*.json")):  # what dcm2niix makes besides, such as NAME_Eq_1.nii, has none
        if (image := file.with_suffix(".nii")).exists():
            described[image] = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    if not described:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = next((line for line in said if "error" in line.lower()), said[-1] if said else "no word")
        raise ScanError(f"{folder}: dcm2niix made no image of its DICOM files ({reason.strip()})")
    examinations = {content.get("StudyInstanceUID") for content in described.values()}
    if len(examinations) > 1:
        raise ScanError(
            f"{folder}: holds {len(examinations)} examinations, of several visits or people; give the folder of "
            f"each, such as {folder}/*"
        )
    return sorted((_series(*pair) for pair in described.items()), key=lambda s: (s.number, s.file.name))


def _series(file: Path, content: dict) -> Series:
    image = nib.load(file)
    description = str(content.get("SeriesDescription") or content.get("ProtocolName") or "")
    kinds = [str(kind).upper() for kind in content.get("ImageType") or []]
    shape, voxel = image.shape, tuple(float(v) for v in np.linalg.norm(image.affine[:3, :3], axis=0))
    shortest = min(n * v for n, v in zip(shape, voxel))
    even = next(
        iter(sorted(file.parent.glob(f"{file.stem}_Eq*.nii"))), None
    )  # interpolated to even distances
    fault = None
    if content.get("Modality", "MR") != "MR":
        fault = f"{content['Modality']}, not MR"
    elif "LOCALIZER" in kinds or LOCALISER.search(description):
        fault = "a localiser"
    elif image.get_data_dtype().kind not in "iuf":
        fault = "in colour"
    elif len(shape) > 3:
        fault = f"{shape[3]} volumes"
    elif min(shape) < FEWEST_SLICES:
        fault = f"{min(shape)} slices, fewer than {FEWEST_SLICES}"
    elif even is not None:
        missing = max(nib.load(even).shape) - max(shape), nib.load(even).shape[2] - shape[2]
        fault = f"{n} of its slices missing" if (n := max(missing)) > 0 else "slices at uneven distances"
    elif shortest < SHORTEST_MM:
        fault = f"{shortest:.0f} mm of a head, less than {SHORTEST_MM}"
    number = int(content.get("SeriesNumber", 0))
    return Series(number, description, file, shape, voxel, "DERIVED" not in kinds, fault)


def choose(
    folder: str | os.PathLike, there: Sequence[Series], contrasts: Sequence[str], wanted: str | None = None
) -> Series:
    """The series that is the scan.

    wanted: its number, or its description or a part of it. Without it the one whose description names one of the
    contrasts, of several the finest that was not computed from others; or the only one that could be a scan, if
    its description names no contrast. ScanError, which lists what is there, where there is none.
    """

    def best(of: Sequence[Series]) -> Series:
        return min(of, key=lambda s: (s.fault is not None, not s.original, float(np.prod(s.voxel)), s.number))

    found = f"there is: {'; '.join(s.why_not for s in there)}"
    if wanted is not None:
        text = wanted.strip().lower()
        names = [s.description.lower() for s in there]
        matching = [s for s in there if text == str(s.number)]
        matching = matching or [s for s, name in zip(there, names) if text == name]
        matching = matching or [s for s, name in zip(there, names) if text and text in name]
        if len({s.number for s in matching}) != 1:
            what = "several series" if matching else "no series"
            raise ScanError(f"{folder}: {what} {wanted!r} in it (--series); {found}")
        if (chosen := best(matching)).fault:
            raise ScanError(f"{folder}: series {chosen} cannot be used: {chosen.fault}")
        return chosen
    usable = [s for s in there if s.fault is None]
    if fitting := [s for s in usable if s.contrast in contrasts]:
        return best(fitting)
    if len(usable) == 1 and usable[0].contrast is None:
        return usable[0]
    names = " or ".join(c.upper() for c in contrasts)
    raise ScanError(
        f"{folder}: no series in it that can be used is named as {names}; choose one with --series; {found}"
    )


def dicom_to_nifti(
    folder: str | os.PathLike, out: str | os.PathLike, contrasts: Sequence[str], series: str | None = None
) -> tuple[Series, str]:
    """Write an examination's scan to the file `out`, .nii or .nii.gz; the same DICOM files give the same bytes.

    contrasts, series: as of `choose`. Returns the series, with `out` as its file, and a sentence that says
    which one was taken and which were not. ScanError, ImportError: as of `convert_all` and `choose`.
    """
    with tempfile.TemporaryDirectory() as work:
        there = convert_all(folder, work)
        chosen = choose(folder, there, contrasts, series)
        image = nib.load(chosen.file)
        for field in ("descrip", "aux_file", "intent_name", "db_name"):  # dates and comments
            if field in image.header:
                image.header[field] = b""
        with new_file(Path(out)) as part:
            nib.save(image, part)
    others = [s.why_not for s in there if s is not chosen]
    said = f"{folder}: series {chosen} taken" + (f"; not taken: {'; '.join(others)}" if others else "")
    said += "; --series chooses another" * bool(others)
    return Series(**{**vars(chosen), "file": Path(out)}), said


def people(source: Path) -> list[Path]:
    """The folders of a DICOM folder, one an examination: its subfolders with DICOM files, or itself."""
    if any(is_dicom(f) for f in source.iterdir() if f.is_file()):
        return [source]
    return [f for f in sorted(source.iterdir()) if f.is_dir() and holds_dicom(f)]


def convert_people(
    source: Path, out: Path, contrast: str, series: str | None = None
) -> tuple[list[str], list[tuple[str, str]]]:
    """The scan of each of `people(source)` as out/NAME_CONTRAST.nii.gz; one that is newer than its DICOM files
    is left as it is. Returns what was taken, in sentences, and (folder, reason) of those that had none.

    ImportError without dcm2niix. ScanError where no examination has a scan.
    """
    converter()
    said, failed = [], []
    folders = people(source)
    out.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        plain = not folder.name.startswith(".") and len(os.fsencode(folder.name)) <= 200
        target = out / f"{folder.name if plain else safe_name(folder.name)}_{contrast}.nii.gz"
        changed = max(os.lstat(p).st_mtime_ns for p in (folder, *folder.rglob("*")))
        if target.exists() and target.stat().st_mtime_ns > changed:
            continue
        try:
            said.append(dicom_to_nifti(folder, target, [contrast], series)[1])
        except ScanError as error:
            target.unlink(missing_ok=True)
            failed.append((str(folder), str(error)))
    if len(failed) == len(folders):
        raise ScanError(failed[0][1])
    return said, failed
