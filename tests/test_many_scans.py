"""A folder of scans: shared by processes, resumed without doing anything twice, and no bad scan stops the
others.
"""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from madad_lite.autoencoder import make_autoencoder
from madad_lite.cli import main
from madad_lite.denoiser import Denoiser
from madad_lite.detection import many_scans
from madad_lite.detection.many_scans import ENDINGS, scans_in
from madad_lite.detection.record import hash_of_weights
from madad_lite.diffusion import make_scheduler
from madad_lite.errors import Refused, ScanError
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.grid import Grid

CONTEXT = multiprocessing.get_context("forkserver")
# imported once, for all processes
CONTEXT.set_forkserver_preload(
    ["pytest", "madad_lite.detection.many_scans", "madad_lite.plotting", "madad_lite.training.denoiser"]
)
GOOD = ("a", "c", "d", "e")
WRITTEN = {ENDINGS[k] for k in ("record", "anomaly", "lesions", "healed", "report")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Untrained."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    grid = Grid(spacing=4.0, size=48).to_dict()
    parts = make_autoencoder(), Denoiser.of_size("nano"), make_scheduler()
    MadAdPipeline(*parts, grid=grid, decision_threshold=0.4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scans(cohort, tmp_path_factory):
    """Four scans, and b.nii.gz, which ends too early: the share of the second of two processes."""
    folder = tmp_path_factory.mktemp("scans") / "scans"
    folder.mkdir()
    sources = sorted(cohort.glob("sub-*/anat/*_T1w.nii.gz"))
    for name, source in zip(GOOD, sources):
        shutil.copy(source, folder / f"{name}.nii.gz")
    (folder / "b.nii.gz").write_bytes(sources[0].read_bytes()[:2000])
    (folder / "notes.txt").touch()
    return folder


def words(scans: Path, out: Path, model: Path, *more: str) -> list[str]:
    brief = ["--z-range", "0", "4", "--steps", "2", "--register", "no"]
    return ["detect", str(scans), "--out", str(out), "--weights", str(model), *brief, *more]


def content(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name.endswith(".nii.gz")}


@pytest.fixture(scope="module")
def whole(scans, model, tmp_path_factory):
    """The results of one process, not interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(words(scans, out, model)) == 1
    assert {p.name for p in out.iterdir()} == {f"{s}{ending}" for s in GOOD for ending in WRITTEN}
    return out


def launch(arguments: list[str]) -> subprocess.CompletedProcess:
    """`accelerate launch` with two processes on the CPU; --multi_gpu is its word for several processes."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    options = [
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        "-m",
        "madad_lite.cli",
    ]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return subprocess.run(
        [*command, *options, *arguments], env=env, capture_output=True, text=True, timeout=300
    )


def test_a_mask_that_was_kept_and_is_read_again_is_not_removed(scans, model, tmp_path):
    out, scan = tmp_path / "out", one(scans, tmp_path / "in")
    assert main(words(scan, out, model, "--keep-brain")) == 0
    kept = out / "a_brain_mask.nii.gz"
    mended = kept.read_bytes()
    assert main(words(scan, out, model, "--force", "--brain", str(kept))) == 0
    assert kept.read_bytes() == mended
    assert kept.name not in record(out, "a")["files"]


def test_a_hash_of_weights_holds_what_changes_the_map(model):
    def changed(change=lambda pipe: None):
        change(pipe := MadAdPipeline.from_pretrained(model))
        return hash_of_weights(pipe)

    linear = DDIMScheduler(num_train_timesteps=10, beta_schedule="linear", prediction_type="sample")
    others = {
        changed(lambda pipe: pipe.autoencoder.register_to_config(scaling_factor=9.0)),
        changed(lambda pipe: pipe.register_modules(scheduler=linear)),
        changed(lambda pipe: pipe.denoiser.register_to_config(num_heads=7)),
        changed(),
    }
    assert len(others) == 4 and changed() in others


def test_two_processes_share_a_folder_and_a_bad_scan_stops_neither(scans, model, whole, tmp_path):
    done = launch(words(scans, tmp_path / "out", model))
    assert done.returncode != 0 and content(tmp_path / "out") == content(whole)
    assert len(list((tmp_path / "out").iterdir())) == len(WRITTEN) * len(GOOD)
    written = [line.split()[-1] for line in done.stdout.splitlines() if line.endswith("_anomaly.nii.gz")]
    assert sorted(written) == [f"{tmp_path}/out/{s}_anomaly.nii.gz" for s in GOOD]  # none twice
    summary = done.stderr.partition("4 of 5 scans done, 1 failed:\n")[2].splitlines()
    assert summary[0].startswith(f"  {scans}/b.nii.gz: ") and done.stderr.count("scans done") == 1


def test_the_shares_are_disjoint_and_together_everything(scans, model, tmp_path, monkeypatch):
    healed = {0: [], 1: []}
    for rank in healed:
        state = SimpleNamespace(
            process_index=rank, num_processes=2, is_main_process=rank == 0, device=torch.device("cpu")
        )
        state.wait_for_everyone = lambda: None
        monkeypatch.setattr(many_scans, "processes", lambda state=state: state)
        monkeypatch.setattr(
            many_scans,
            "_write",
            lambda _, volumes, files, *more, rank=rank: healed[rank].append(files["record"].name[0]),
        )
        main(words(scans, tmp_path / "out", model))
    assert healed == {0: ["a", "c", "e"], 1: ["d"]}


def killed(number: int, arguments: list[str]) -> None:
    """Before the number-th file takes its place."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    seen = []

    def hook(event, _):
        if event == "os.rename":
            seen.append(event)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    main(arguments)


def run_killed(number: int, arguments: list[str]) -> None:
    p = CONTEXT.Process(target=killed, args=(number, arguments))
    p.start()
    p.join()
    assert p.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("number", [7, 8, 11, 12])
def test_an_interrupted_run_is_resumed_and_nothing_is_done_twice(
    number, scans, model, whole, tmp_path, capsys
):
    """Killed within c.nii.gz: before its first file takes its place, in between, and before the last, the
    record.
    """
    out = tmp_path / "out"
    run_killed(number, words(scans, out, model))
    before = {f: f.stat().st_mtime_ns for f in out.glob("a_*")}
    assert len(before) == len(WRITTEN) - 1 and not list(out.glob("c_anomaly.nii.gz")) or number == 12
    assert main(words(scans, out, model, "--resume")) == 1
    assert content(out) == content(whole) and len(list(out.iterdir())) == len(WRITTEN) * len(GOOD)
    assert before == {f: f.stat().st_mtime_ns for f in out.glob("a_*")}
    assert "a.nii.gz" not in capsys.readouterr().out


@pytest.mark.parametrize("number", [2, 6])
def test_what_was_being_overwritten_counts_as_unfinished(number, scans, model, whole, tmp_path):
    """Else a scan could be left with an anomaly map of one run beside pictures of another."""
    out = shutil.copytree(whole, tmp_path / "out")
    run_killed(number, words(scans / "a.nii.gz", out, model, "--force", "--seed", "1"))
    assert main(words(scans / "a.nii.gz", out, model, "--resume")) == 0
    assert content(out) == content(whole)


def test_what_is_there_is_kept_unless_told_otherwise(scans, model, whole, capsys):
    before = {f: f.stat().st_mtime_ns for f in whole.iterdir()}
    assert main(words(scans, whole, model)) == 1
    said = capsys.readouterr().err
    assert "0 of 5 scans done, 5 failed" in said and "--resume" in said and "--force" in said
    assert main(words(scans, whole, model, "--resume")) == 1  # b.nii.gz still fails
    assert "4 of 5 scans done, 1 failed" in capsys.readouterr().err
    assert before == {f: f.stat().st_mtime_ns for f in whole.iterdir()}
    assert main(words(scans / "a.nii.gz", whole, model, "--resume")) == 0
    assert main(words(scans / "a.nii.gz", whole, model, "--force")) == 0
    assert {f.name[0] for f in whole.iterdir() if f.stat().st_mtime_ns != before[f]} == {"a"}


def test_a_full_disk_names_the_file_and_leaves_no_half_results(
    scans, model, whole, tmp_path, monkeypatch, capsys
):
    def full(image, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(nib, "save", full)
    assert main(words(scans / "a.nii.gz", tmp_path / "out", model)) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path}/out/a_anomaly.nii.gz: cannot be written (No space left on device); make room" in said
    assert not list((tmp_path / "out").iterdir())
    out = shutil.copytree(whole, tmp_path / "old")
    assert main(words(scans / "a.nii.gz", out, model, "--force")) == 1
    assert content(out) == content(whole) and len(list(out.iterdir())) == len(list(whole.iterdir()))
    (tmp_path / "file").touch()
    assert main(words(scans, tmp_path / "file" / "out", model)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"madad detect: {tmp_path}/file/out: cannot be written (Not a directory)")


def test_scans_of_a_folder(tmp_path):
    others = (
        "a_anomaly.nii.gz",
        "a_healed.nii.gz",
        ".part-a.nii.gz",
        "a_report.png",
        "a_brain_mask.nii.gz",
        "b_Seg.nii",
        "b_segmentation.nii.gz",
    )
    for name in ("b.nii", "a.NII.GZ", "sub/c.nii.gz", *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in scans_in([tmp_path])] == [
        "a.NII.GZ",
        "b.nii",
        "sub/c.nii.gz",
    ]
    given = tmp_path / "a_healed.nii.gz"  # by name, whatever it is called
    assert scans_in([str(given)]) == [given]


def test_two_scans_of_one_name(scans, model, tmp_path, capsys):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        shutil.copy(scans / "a.nii.gz", tmp_path / folder / "a.nii.gz")
    arguments = words(tmp_path / "x", tmp_path / "out", model)
    arguments.insert(2, str(tmp_path / "y"))
    for more in ([], ["--resume"]):
        assert main([*arguments, *more]) == 1
        assert f"{tmp_path}/y/a.nii.gz: has the same name as {tmp_path}/x/a.nii.gz" in capsys.readouterr().err


def test_whatever_is_wrong_with_a_scan_the_others_are_done(scans, model, tmp_path, monkeypatch, capsys):
    prepare = MadAdPipeline.prepare

    def fails(pipe, scan, **options):
        if scan.endswith("a.nii.gz"):
            raise RuntimeError("out of\nmemory")
        return prepare(pipe, scan, **options)

    monkeypatch.setattr(MadAdPipeline, "prepare", fails)
    assert main(words(scans, tmp_path / "out", model)) == 1
    assert len(content(tmp_path / "out")) == 2 * 3
    said = capsys.readouterr().err
    assert (
        "3 of 5 scans done, 2 failed" in said and f"  {scans}/a.nii.gz: RuntimeError: out of memory\n" in said
    )


def one(scans: Path, folder: Path, name: str = "a.nii.gz") -> Path:
    """A copy of a scan, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(scans / "a.nii.gz", folder / name))


def record(out: Path, name: str = "a") -> dict:
    return json.loads((out / f"{name}.json").read_text())


def mask_of(scan: Path, mask: Path) -> None:
    image = nib.load(scan)
    nib.save(nib.Nifti1Image((image.get_fdata() > 0).astype("uint8"), image.affine), mask)


def test_one_brain_mask_is_not_for_several_scans(scans, model, tmp_path, capsys):
    first, second = one(scans, tmp_path / "in"), one(scans, tmp_path / "in", "sub-2_T1w.nii.gz")
    mask_of(first, tmp_path / "one.nii.gz")
    arguments = [*words(first, tmp_path / "out", model), "--brain"]
    arguments.insert(2, str(second))
    assert main([*arguments, str(tmp_path / "one.nii.gz")]) == 2
    assert "one brain mask for 2 scans; give a pattern" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    mask_of(first, tmp_path / "in" / "a_mine.nii.gz")  # beside its scan; the other one has none
    assert main([*arguments, "{name}_mine.nii.gz"]) == 1
    said = capsys.readouterr()
    assert f"a.nii.gz: brain mask {tmp_path}/in/a_mine.nii.gz" in said.out
    assert "sub-2_T1w_mine.nii.gz: no such file" in said.err and "1 of 2 scans done" in said.err
    assert record(tmp_path / "out")["brain"]["file"] == str(tmp_path / "in" / "a_mine.nii.gz")
    assert not (tmp_path / "out" / "sub-2_T1w.json").exists()


def test_a_mask_beside_its_scan_is_used_and_said(scans, model, tmp_path, capsys):
    scan = one(scans, tmp_path / "in", "sub-2_T1w.nii.gz")
    mask_of(scan, tmp_path / "in" / "sub-2_desc-brain_mask.nii.gz")
    assert main(words(tmp_path / "in", tmp_path / "out", model, "--keep-brain")) == 0
    said = capsys.readouterr().out
    assert f"sub-2_T1w.nii.gz: brain mask {tmp_path}/in/sub-2_desc-brain_mask.nii.gz" in said
    kept = nib.load(tmp_path / "out" / "sub-2_T1w_brain_mask.nii.gz")
    assert kept.shape == nib.load(scan).shape and kept.get_data_dtype() == "uint8"
    assert 0 < kept.get_fdata().sum() and set(np.unique(kept.dataobj)) == {0, 1}


def test_a_result_never_takes_the_place_of_an_input_or_of_a_file_that_is_not_ours(
    scans, model, tmp_path, capsys
):
    scan, other = one(scans, tmp_path / "in"), one(scans, tmp_path / "in", "a_healed.nii.gz")
    before = other.read_bytes()
    arguments = words(scan, tmp_path / "in", model, "--force")
    arguments.insert(2, str(other))
    assert main(arguments) == 2
    assert f"{other}: is read, and would be overwritten" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_report.png").write_text("mine")
    for more in ("--force", "--resume"):
        assert main(words(scan, tmp_path / "out", model, more)) == 1
        assert "a_report.png: exists and was not written by madad detect" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_report.png"]
    assert (tmp_path / "out" / "a_report.png").read_text() == "mine" and other.read_bytes() == before


def test_a_resume_with_other_options_is_refused_and_empty_files_are_made_again(
    scans, model, whole, tmp_path, capsys
):
    out = shutil.copytree(whole, tmp_path / "out")
    before = content(out)
    others = (["--seed", "1"], "seed: 0, now: 1"), (["--eta", "0"], "eta: not given, now: 0.0")
    for more, said in (*others, (["--steps", "3"], "steps: 2, now: 3")):
        assert main(words(scans / "a.nii.gz", out, model, "--resume", *more)) == 1
        assert f"a_anomaly.nii.gz: was made with {said}; --force" in capsys.readouterr().err
    other = shutil.copytree(model, tmp_path / "model")
    torch.manual_seed(1)
    Denoiser.of_size("nano").save_pretrained(other / "denoiser")
    assert main(words(scans / "a.nii.gz", out, other, "--resume")) == 1
    assert "was made with other weights" in capsys.readouterr().err
    changed = one(scans, tmp_path / "in")
    changed.write_bytes((scans / "c.nii.gz").read_bytes())
    assert main(words(changed, out, model, "--resume")) == 1
    assert "was made from another scan" in capsys.readouterr().err and content(out) == before
    (out / "a_healed.nii.gz").write_bytes(b"")
    assert main(words(scans / "a.nii.gz", out, model, "--resume")) == 0
    assert content(out) == before


def test_what_an_earlier_run_wrote_and_this_one_does_not_is_removed(scans, model, tmp_path):
    out = tmp_path / "out"
    assert main(words(scans / "a.nii.gz", out, model, "--mask")) == 0
    assert (out / "a_mask.nii.gz").exists() and record(out)["finished"]
    assert main(words(scans / "a.nii.gz", out, model, "--force")) == 0
    assert (
        {f"a{ending}" for ending in WRITTEN} == {p.name for p in out.iterdir()} == set(record(out)["files"])
    )


def test_a_record_of_someone_else_removes_nothing(scans, model, tmp_path):
    out = tmp_path / "out"
    assert main(words(scans / "a.nii.gz", out, model)) == 0
    (out / "thesis.txt").write_text("mine")
    record = json.loads((out / "a.json").read_text())
    record["files"] += ["thesis.txt", "../notes.txt", "a_brain_mask.nii.gz"]
    (out / "a_brain_mask.nii.gz").touch()  # an earlier run could have written it
    (out / "a.json").write_text(json.dumps(record))
    assert main(words(scans / "a.nii.gz", out, model, "--force")) == 0
    assert (out / "thesis.txt").read_text() == "mine" and not (out / "a_brain_mask.nii.gz").exists()
    assert json.loads((out / "a.json").read_text())["files"] == sorted(f"a{e}" for e in WRITTEN)


def test_a_single_name_is_one_scan(scans, model, tmp_path):
    name = str(scans / "a.nii.gz")
    assert scans_in(name) == [scans / "a.nii.gz"]
    assert many_scans.detect(name, tmp_path / "out", weights=model, register=False, progress=False) == []
    assert len(list((tmp_path / "out").iterdir())) == len(WRITTEN)


def test_names_that_cannot_be_opened_do_not_stop_the_others(scans, model, tmp_path, monkeypatch, capsys):
    (tmp_path / "in" / "closed").mkdir(parents=True)
    one(scans, tmp_path / "in", "a$_$b.nii.gz")
    scandir = os.scandir

    def refuse(path="."):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    arguments = words(tmp_path / "in", tmp_path / "out", model)
    arguments.insert(2, str(tmp_path / ("x" * 300 + ".nii.gz")))
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "1 of 3 scans done, 2 failed" in said and "in/closed: a folder that cannot be read" in said
    assert (tmp_path / "out" / "a$_$b_report.png").stat().st_size > 0


def test_that_nobody_listens_is_no_fault_of_the_scan(scans, model, tmp_path, monkeypatch):
    class Closed:
        encoding = "ascii"

        def __init__(self, file):
            self.fileno = file.fileno

        def write(self, text):
            text.encode(self.encoding)
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

        def flush(self):
            pass

    with open(tmp_path / "nobody", "w") as file:
        monkeypatch.setattr(sys, "stdout", Closed(file))
        scan = one(scans, tmp_path / "in", "\u8111.nii.gz")
        assert (
            many_scans.detect([scan], tmp_path / "out", weights=model, z_range=(0, 0), register=False) == []
        )


def test_requests_that_make_no_sense_are_refused_before_any_work(scans, model, tmp_path, capsys):
    (tmp_path / "file").touch()
    scan, out = scans / "a.nii.gz", tmp_path / "out"
    for arguments, said in (
        (words(scan, out, model, "--steps", "0"), "1 to 10 reverse steps are possible, not 0"),
        (words(scan, out, model, "--steps", "50"), "1 to 10 reverse steps are possible, not 50"),
        (words(scan, out, model, "--mask", "--score", "latent"), "a mask needs weights with a decision"),
    ):
        assert main(arguments) == 2
        said_now = capsys.readouterr().err
        assert said in said_now and said_now.count("\n") == 1
    with pytest.raises(Refused, match="file: is a file; --out names the folder"):
        many_scans.detect([scan], tmp_path / "file", weights=model)
    with pytest.raises(Refused, match="an empty name where a scan or a folder is meant"):
        scans_in([""])
    assert not out.exists()


def test_a_scan_of_another_contrast_is_refused_unless_forced(scans, model, tmp_path, capsys):
    flair = MadAdPipeline.from_pretrained(model)
    flair.register_to_config(contrast="flair")
    options = dict(weights=flair, z_range=(0, 4), num_inference_steps=1, register=False, progress=False)
    ((_, reason),) = many_scans.detect([scans / "a.nii.gz"], tmp_path / "out", **options)
    assert "its contrast looks like T1, and the weights are for FLAIR" in reason
    assert "--force-contrast" in reason and not list((tmp_path / "out").iterdir())
    assert not many_scans.detect([scans / "a.nii.gz"], tmp_path / "out", force_contrast=True, **options)


@pytest.mark.parametrize(("weights", "mistaken"), [("t1", "a_t1c"), ("t1ce", "a_t1")])
def test_a_name_that_speaks_of_another_use_of_contrast_agent_is_warned_of(
    weights, mistaken, scans, model, tmp_path, capsys
):
    """With and without it a T1 is the same in the order of its tissues."""
    pipe = MadAdPipeline.from_pretrained(model)
    pipe.register_to_config(contrast=weights)
    names = ("a", "a_t1", "a_t1c")  # the first says nothing
    copies = [shutil.copy(scans / "a.nii.gz", tmp_path / f"{name}.nii.gz") for name in names]
    options = dict(weights=pipe, z_range=(0, 4), num_inference_steps=1, register=False, progress=False)
    assert not many_scans.detect(copies, tmp_path / "out", **options)
    said = {name: record(tmp_path / "out", name).get("warning") for name in names}
    assert [name for name, warning in said.items() if warning] == [mistaken]
    assert capsys.readouterr().err.splitlines() == [f"{mistaken}.nii.gz: {said[mistaken]}"]
    assert {"t1": "--weights t1ce", "t1ce": "without it, --weights t1"}[weights] in said[mistaken]


def test_auto_takes_the_shipped_weights_of_the_scans_contrast(cohort, tmp_path, capsys):
    scan = next(cohort.glob("sub-*/anat/*_T1w.nii.gz"))
    brief = ["--z-range", "0", "4", "--steps", "1", "--register", "no"]
    assert main(["detect", str(scan), "--out", str(tmp_path), "--weights", "AUTO", *brief]) == 0
    assert record(tmp_path, scan.name.removesuffix(".nii.gz"))["weights"]["name"] == "t1"
    pipes = many_scans._pipelines("Auto")
    for seen, named, taken in (
        ("t2", None, "t2"),
        ("t2", "t1ce", "t2"),  # what is seen counts first
        ("t1", "t1ce", "t1ce"),
        ("t1", "flair", "t1"),
        ("t1", None, "t1"),
    ):
        assert many_scans._fitting(pipes, seen, named, scan, force=False).config.contrast == taken
    with pytest.raises(ScanError, match="looks like T2, and the shipped weights are for flair, t1 and t1ce"):
        pipes = [p for p in pipes if p.config.contrast != "t2"]
        many_scans._fitting(pipes, "t2", None, scan, force=True)


def test_auto_takes_those_for_contrast_agent_where_the_name_says_it(cohort, tmp_path):
    scan = shutil.copy(next(cohort.glob("sub-*/anat/*_T1w.nii.gz")), tmp_path / "a_t1c.nii.gz")
    brief = ["--z-range", "0", "4", "--steps", "1", "--register", "no"]
    assert main(["detect", str(scan), "--out", str(tmp_path / "out"), "--weights", "auto", *brief]) == 0
    found = record(tmp_path / "out", "a_t1c")
    assert found["weights"]["name"] == "t1ce" and "warning" not in found
