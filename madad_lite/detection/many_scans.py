"""Anomaly maps of many scans, as files: what `madad detect` does."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from madad_lite.detection import record
from madad_lite.detection.finding import Finding, find_parts
from madad_lite.errors import Refused, ScanError, one_line
from madad_lite.extensions.memory import give_back
from madad_lite.files import new_file, nifti_files, remove_leftovers, stem, write_json, writing
from madad_lite.pipeline import MadAdOutput, MadAdPipeline
from madad_lite.scans.contrast import LIKE, contrast_seen
from madad_lite.scans.dicom import converter, dicom_to_nifti, holds_dicom
from madad_lite.scans.find import brain_beside, contrast_of, is_mask
from madad_lite.scans.given import quick_look
from madad_lite.scans.grid import Grid, PreparedScan
from madad_lite.scans.nifti import return_to_scan
from madad_lite.scans.tissues import check_normalisation, normalised
from madad_lite.settings import DetectionSettings
from madad_lite.training.processes import processes
from madad_lite.weights import shipped

ENDINGS = {
    "record": ".json",  # what made the others; the last to be written
    "anomaly": "_anomaly.nii.gz",
    "lesions": "_lesions.csv",
    "mask": "_mask.nii.gz",
    "brain": "_brain_mask.nii.gz",
    "healed": "_healed.nii.gz",
    "report": "_report.png",
    "scan": ".nii.gz",  # of a DICOM folder
}
MISTAKEN = {  # (contrast that the scan's name speaks of, that of the weights), alike in the order of the tissues
    ("t1ce", "t1"): "named as T1 with contrast agent, and these weights have seen none: vessels may "
    "count as findings; --weights t1ce was trained with simulated ones",
    ("t1", "t1ce"): "named as T1, and these weights are for T1 with contrast agent; without it, --weights t1",
}
BRAIN_WORDS = ("auto", "template", "deepbet")  # ways to find the brain; anything else is a file


def outputs(
    scan: str | Path, out: str | Path, kinds: Sequence[str] = ("record", "anomaly", "healed", "report")
) -> dict[str, Path]:
    """The files that are written for a scan."""
    return {k: Path(out) / f"{stem(scan)}{ENDINGS[k]}" for k in ENDINGS if k in kinds}


def scans_in(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files as they are given; of a folder all NIfTI files in it, sorted, but for masks and what an earlier
    run wrote. A folder without any that holds DICOM files is one scan, itself. A folder that cannot be read is in
    the list itself, for `detect` to report.
    """
    results = (ENDINGS["anomaly"], ENDINGS["healed"])
    found: list[Path] = []
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        if not str(path).strip():
            raise Refused("an empty name where a scan or a folder is meant; the current folder is .")
        if not os.path.isdir(path):
            found.append(Path(path))
            continue
        unreadable: list[OSError] = []
        files = nifti_files(Path(path), unreadable.append)
        if not files and holds_dicom(path):
            found.append(
                Path(path).resolve() if not Path(path).name else Path(path)
            )  # its name is the scan's
            continue
        found += [f for f in files if not is_mask(f) and not f.name.endswith(results)]
        found += [Path(error.filename) for error in unreadable]
    return found


def detect(
    scans: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    weights: str | Path | MadAdPipeline = "t1",
    brain: str | Path | None = None,
    channel: int | None = None,
    series: str | None = None,
    register: bool | str = "auto",
    normalise: str | None = None,
    z_range: tuple[float, float] | None = None,
    z_spacing: float | None = None,
    num_inference_steps: int | None = None,
    eta: float | None = None,
    score: str = "image",
    seed: int = 0,
    batch_size: int | None = None,
    device: str | None = None,
    mask: bool = False,
    keep_brain: bool = False,
    force_contrast: bool = False,
    force: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> list[tuple[Path, str]]:
    """Write for each scan, on its own grid, `<name>_anomaly.nii.gz` (float32 in [0, 1]) and
    `<name>_healed.nii.gz`; `<name>_report.png`; `<name>_lesions.csv`, the parts that were found (see
    finding.py), if the weights have a decision threshold; `<name>.json`, what made them. With `mask` also
    `<name>_mask.nii.gz`, 1 in the parts; with `keep_brain` `<name>_brain_mask.nii.gz`. A scan is a NIfTI file, or
    a DICOM folder, one examination; of that the series that was taken as `<name>.nii.gz`.

    weights: a shipped name, a folder, a hub id, a pipeline, or "auto": the shipped ones of each scan's
        contrast.
    brain: None or "auto": a mask that lies beside the scan (see scans.find.brain_beside), else as
        prepare_volume finds it; a mask file; for several scans a pattern with {name}, beside each scan or from
        here: "{name}_mask.nii.gz".
    series: of a DICOM folder, its number or description; None: see scans.dicom.choose.
    channel, register, normalise, z_range, z_spacing: as of MadAdPipeline.prepare; the next five as of its __call__.
    force_contrast: also scans that do not look like the weights' contrast.

    One bad scan does not stop the others. Returns the scans that failed, each with its reason. Where results
    exist already, `resume` leaves out what is finished, `force` overwrites it, and without either the scan
    fails; what came from other weights or options, `resume` refuses. Several processes share the scans. Every
    scan starts from the same seed, so that its map does not depend on the others. Refused when the request
    makes no sense as a whole; then nothing is done.
    """
    scans = [scans] if isinstance(scans, (str, os.PathLike)) else scans
    state, scans, out = processes(), list(dict.fromkeys(map(Path, scans))), Path(out)
    shown = progress and state.is_main_process
    if len(scans) > 1 and brain is not None and str(brain) not in BRAIN_WORDS and "{name}" not in str(brain):
        raise Refused(
            f"{brain}: one brain mask for {len(scans)} scans; give a pattern, such as "
            "--brain '{name}_brain_mask.nii.gz', or one scan"
        )
    pipes = _pipelines(weights)
    for pipe in pipes:
        pipe.to(device or (state.device if state.device.type == "cuda" else "cpu"))
        most = pipe.scheduler.config.num_train_timesteps
        if num_inference_steps is not None and not 1 <= num_inference_steps <= most:
            raise Refused(f"steps: 1 to {most} reverse steps are possible, not {num_inference_steps}")
        DetectionSettings.of(pipe.config, **({} if eta is None else {"eta": eta}))
        check_normalisation(normalise or pipe.config.normalise, pipe.config.contrast)
        quick_look(Grid.from_dict(pipe.config.grid), z_range, z_spacing)
    if batch_size is not None and batch_size < 1:
        raise Refused(f"batch_size is 1 or more, not {batch_size}")
    decides = score == "image" and all(pipe.config.decision_threshold is not None for pipe in pipes)
    if mask and not decides:
        raise Refused("a mask needs weights with a decision threshold, and the score 'image'")
    extra = {"lesions": decides, "mask": mask, "brain": keep_brain}
    kinds = ["record", "anomaly", "healed", "report", *(k for k, wanted in extra.items() if wanted)]
    dicom = [scan for scan in scans if os.path.isdir(scan) and holds_dicom(scan)]
    if dicom:
        converter()  # where it is missing no scan is to blame
    elif series is not None:
        raise Refused("--series chooses within a DICOM folder, and none is given")
    masks = {scan: _brain_of(scan, brain) for scan in scans}
    check_outputs(scans, masks, out, [*kinds, *(["scan"] if dicom else [])])
    with writing(out):
        if out.exists() and not out.is_dir():
            raise Refused(f"{out}: is a file; --out names the folder for the results")
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
    options = {
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "eta": eta,
        "score": score,
        "channel": channel,
        "register": register,
        "normalise": normalise,
        "z_range": None if z_range is None else list(z_range),
        "z_spacing": z_spacing,
    }
    hashes = [record.hash_of_weights(pipe) for pipe in pipes]
    healthy = [record.healthy_range(pipe) for pipe in pipes]
    preparing = {"channel": channel, "register": register, "z_range": z_range, "z_spacing": z_spacing}
    preparing["normalise"] = "median"  # at first: the contrast is seen in it
    named = {stem(scan): scan for scan in reversed(scans)}  # the first of a name has it

    def one(scan: Path) -> None:
        if named[stem(scan)] != scan:
            raise ScanError(f"{scan}: has the same name as {named[stem(scan)]}; give it another --out folder")
        if scan not in dicom:
            if os.path.isdir(scan):
                raise ScanError(f"{scan}: a folder that cannot be read; change its rights or leave it out")
            return heal(scan, scan, kinds)
        with tempfile.TemporaryDirectory() as work:
            file = Path(work, f"{stem(scan)}.nii.gz")
            taken, said = dicom_to_nifti(scan, file, [pipe.config.contrast for pipe in pipes], series)
            _say(said)
            try:
                heal(scan, file, [*kinds, "scan"], {"series": str(taken), "contrast": taken.contrast})
            except ScanError as error:
                raise ScanError(str(error).replace(str(file), str(scan))) from None

    def heal(scan: Path, image: Path, kinds: list[str], more: dict | None = None) -> None:
        """image: the file, which of a DICOM folder is not the scan itself. more: what the record says of the scan."""
        files, own = outputs(scan, out, kinds), masks[scan]
        now = record.made_of(scan, image, own, options)
        now["scan"] |= more or {}
        old = record.of_earlier_run(files, force=force, resume=resume)
        if resume and record.is_finished(old, now, hashes, files):
            return left_out.append(scan)
        if isinstance(own, Path):
            if not own.exists():
                raise ScanError(f"{own}: no such file, where the brain mask of {scan.name} is meant")
            _say(f"{scan.name}: brain mask {own}")
        given = preparing if own is None else preparing | {"brain": str(own)}
        prepared = pipes[0].prepare(str(image), **given)
        seen = contrast_seen(prepared)
        named = now["scan"].get("contrast") or contrast_of(stem(scan))
        pipe = _fitting(pipes, seen, named, scan, force_contrast)
        if pipe.config.grid != pipes[0].config.grid:
            prepared = pipe.prepare(str(image), **given)
        now["normalise"] = normalise or pipe.config.normalise
        prepared = normalised(prepared, now["normalise"], pipe.config.contrast, scan)
        give_back()
        output = pipe(
            prepared,
            num_inference_steps=num_inference_steps,
            eta=eta,
            score=score,
            generator=torch.Generator().manual_seed(seed),
            batch_size=batch_size,
            reconstruct=False,
            progress=shown,
        )
        give_back()
        found, volumes = None, [output.to_nifti("anomaly_map")]
        if decides:
            found = find_parts(volumes[0], prepared.geometry.to_mni, pipe.config.decision_threshold)
        name = Path(pipe.name_or_path or "pipeline").name  # of shipped weights, theirs
        if not isinstance(weights, MadAdPipeline) and os.path.exists(weights):
            name = str(weights)
        if warning := MISTAKEN.get((named, pipe.config.contrast)):
            now["warning"] = warning
            _say(f"{scan.name}: {warning}", sys.stderr)
        now |= {
            "weights": {"name": name, "contrast": pipe.config.contrast, "sha256": hashes[pipes.index(pipe)]},
            "contrast_seen": seen,
            "found": None if found is None else found.to_dict(),
        }
        usual = score == "image" and num_inference_steps is None and eta is None
        healthy_range = healthy[pipes.index(pipe)] if usual else None
        _write(output, volumes, files, now, old, found, healthy_range, image)
        _say(f"{scan.name}: " + (f"{found.sentence}: " if found else "") + str(files["anomaly"]))

    failed, left_out = list[tuple[Path, str]](), list[Path]()
    share = scans[state.process_index :: state.num_processes]
    for scan in tqdm(share, desc="scans", disable=not shown or len(scans) == 1):
        try:
            one(scan)
        except Exception as error:  # whatever is wrong with one scan, the others are still done
            kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
            reason = kind + one_line(error)
            failed.append((scan, reason if scan.name in reason else f"{scan}: {reason}"))
            _say(failed[-1][1], sys.stderr)
    if left_out:
        _say(f"{len(left_out)} of {len(share)} scans left out: their results are there")
    failed = sorted(gather_object(failed))
    if failed and len(scans) > 1 and state.is_main_process:
        lines = [f"{len(scans) - len(failed)} of {len(scans)} scans done, {len(failed)} failed:"]
        _say("\n".join(lines + [f"  {reason}" for _, reason in failed]), sys.stderr)
    state.wait_for_everyone()  # a launcher ends all processes when the first of them reports a failure
    return failed


def _pipelines(weights: str | Path | MadAdPipeline) -> list[MadAdPipeline]:
    """The one that is meant, or with "auto" all shipped ones."""
    if isinstance(weights, MadAdPipeline):
        return [weights]
    auto = str(weights).lower() == "auto" and not os.path.exists(weights)
    return [MadAdPipeline.from_pretrained(n) for n in (shipped() if auto else [weights])]


def _fitting(
    pipes: list[MadAdPipeline], seen: str | None, named: str | None, scan: Path, force: bool
) -> MadAdPipeline:
    """The pipeline for a scan of this contrast. named: what its name says, which tells T1 with contrast agent from T1
    without. ScanError when there is none.
    """
    if len(pipes) > 1:
        looks = f"{scan}: its contrast " + (f"looks like {seen.upper()}" if seen else "is not clear")
        if fitting := [p for p in pipes if LIKE.get(p.config.contrast) == seen]:
            return min(fitting, key=lambda p: (p.config.contrast != named, p.config.contrast != seen))
        *most, last = sorted(p.config.contrast for p in pipes)
        known = f"{', '.join(most)} and {last}"
        raise ScanError(f"{looks}, and the shipped weights are for {known}; choose weights with --weights")
    if not force:
        refuse_another_contrast(
            scan, seen, pipes[0].config.contrast, "choose others (--weights auto), or use these"
        )
    return pipes[0]


def refuse_another_contrast(scan: Path, seen: str | None, contrast: str, instead: str) -> None:
    """ScanError for a scan that surely looks like another contrast than that of the weights."""
    if None not in (seen, LIKE.get(contrast)) and LIKE[contrast] != seen:
        raise ScanError(
            f"{scan}: its contrast looks like {seen.upper()}, and the weights are for {contrast.upper()}; {instead} "
            "all the same with --force-contrast"
        )


def _brain_of(scan: Path, brain: str | Path | None) -> Path | str | None:
    """The scan's brain mask, or the word for a way to find the brain; None: the usual way."""
    if brain is None or str(brain) == "auto":
        return brain_beside(scan)
    if str(brain) in BRAIN_WORDS:
        return str(brain)
    path = Path(str(brain).replace("{name}", stem(scan)))
    beside = scan.with_name(path.name) if path.name == str(path) else scan.parent / path
    return beside if "{name}" in str(brain) and os.path.exists(beside) else path


def check_outputs(scans: list[Path], masks: dict, out: Path, kinds: list[str]) -> None:
    """Refused when a result would take the place of anything that is read."""
    inputs = [*scans, *(m for m in masks.values() if isinstance(m, Path))]
    known = {os.path.realpath(path) for path in inputs}
    for scan in scans:
        for file in outputs(scan, out, kinds).values():
            if os.path.realpath(file) in known:
                raise Refused(f"{file}: is read, and would be overwritten; choose another --out folder")


def _say(text: str, to=None) -> None:
    """A line for the user. That nobody listens (`| head`), or in another alphabet, is no fault of the scan."""
    to = to or sys.stdout
    try:
        encoding = getattr(to, "encoding", None) or "utf-8"
        tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=to)
        to.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), to.fileno())  # else Python complains once more at its end


def _brain_image(prepared: PreparedScan):
    image = return_to_scan(prepared.brain, prepared.geometry, order=0)
    return nib.Nifti1Image(np.asarray(image.dataobj).astype(np.uint8), image.affine)


def _write(
    output: MadAdOutput,
    volumes: list[nib.Nifti1Image],
    files: dict[str, Path],
    now: dict,
    old: dict | None,
    found: Finding | None,
    healthy: dict | None,
    image: Path,
) -> None:
    """All are there before one takes the place of an earlier run's. Until the record says "finished" they may
    be of two runs. volumes: the anomaly map, dropped once it is written, to make room for the healed scan.
    """
    from madad_lite.plotting import scan_report

    about = f"Weights: {now['weights']['name']}, for {now['weights']['contrast'].upper()} contrast"
    if seen := now["contrast_seen"]:
        fits = LIKE.get(now["weights"]["contrast"], seen) == seen
        about += f"{'; the scan looks' if fits else ', but the scan looks'} like {seen.upper()}"
    about += f"; {now['warning']}" if "warning" in now else ""
    scan, brain = now["scan"]["file"], now["brain"]
    read = {os.path.realpath(p) for p in (scan, brain["file"] if isinstance(brain, dict) else scan)}
    known = outputs(scan, files["record"].parent, tuple(ENDINGS)).values()  # a record may be another's work
    ours = {f.name for f in known if os.path.realpath(f) not in read}
    earlier = set(old["files"] if old else ()) & ours
    now["files"] = sorted(f.name for f in files.values())

    def report(part: Path) -> None:
        figure = scan_report(output, stem(scan), found=found, healthy=healthy, about=about + ".")
        figure.savefig(part, format="png")

    writers: dict[str, Callable[[Path], None]] = {
        "record": lambda part: part.write_text(record.text(now)),
        "anomaly": lambda part: nib.save(volumes.pop(), part),
        "lesions": lambda part: found.write_csv(part),
        "mask": lambda part: nib.save(found.mask, part),
        "brain": lambda part: nib.save(_brain_image(output.prepared), part),
        "healed": lambda part: nib.save(output.to_nifti("healed"), part),
        "report": report,
        "scan": lambda part: shutil.copyfile(image, part),
    }
    with ExitStack() as stack:
        # on leaving, the last one takes its place first: the record comes last
        for k, file in files.items():
            part = stack.enter_context(new_file(file))
            with writing(file):
                writers[k](part)
        write_json(files["record"], now | {"finished": False, "files": sorted(earlier.union(now["files"]))})
        for old_name in {files["anomaly"].name} | earlier.difference(now["files"]):
            files["record"].with_name(old_name).unlink(missing_ok=True)
