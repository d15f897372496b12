"""A folder of scans: shared by processes, resumed without doing anything twice, and no bad scan stops the
others.
"""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from madad_lite.autoencoder import make_autoencoder
from madad_lite.cli import main
from madad_lite.denoiser import Denoiser
from madad_lite.detection import many_scans
from madad_lite.detection.many_scans import ENDINGS, scans_in
from madad_lite.diffusion import make_scheduler
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.grid import Grid

CONTEXT = multiprocessing.get_context("forkserver")
# imported once, for all processes
CONTEXT.set_forkserver_preload(
    ["pytest", "madad_lite.detection.many_scans", "madad_lite.plotting", "madad_lite.training.denoiser"]
)
GOOD = ("a", "c", "d", "e")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Untrained."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    grid = Grid(spacing=4.0, size=48).to_dict()
    MadAdPipeline(make_autoencoder(), Denoiser.of_size("nano"), make_scheduler(), grid=grid).save_pretrained(
        folder
    )
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
    assert {p.name for p in out.iterdir()} == {f"{s}{ending}" for s in GOOD for ending in ENDINGS.values()}
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


def test_two_processes_share_a_folder_and_a_bad_scan_stops_neither(scans, model, whole, tmp_path):
    done = launch(words(scans, tmp_path / "out", model))
    assert done.returncode != 0 and content(tmp_path / "out") == content(whole)
    assert len(list((tmp_path / "out").iterdir())) == 3 * len(GOOD)
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
            many_scans, "_write", lambda output, scan, out, rank=rank: healed[rank].append(scan.name[0])
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


@pytest.mark.parametrize("number", [6, 9, 10])
def test_an_interrupted_run_is_resumed_and_nothing_is_done_twice(
    number, scans, model, whole, tmp_path, capsys
):
    """Killed within c.nii.gz: before its first part is whole, and between the files of which each takes its
    place.
    """
    out = tmp_path / "out"
    run_killed(number, words(scans, out, model))
    before = {f: f.stat().st_mtime_ns for f in out.glob("a_*")}
    assert len(before) == 3 and not (out / "c_anomaly.nii.gz").exists()
    assert main(words(scans, out, model, "--resume")) == 1
    assert content(out) == content(whole) and len(list(out.iterdir())) == 3 * len(GOOD)
    assert before == {f: f.stat().st_mtime_ns for f in out.glob("a_*")}
    assert "a.nii.gz" not in capsys.readouterr().out


def test_what_was_being_overwritten_counts_as_unfinished(scans, model, whole, tmp_path):
    """Else a scan could be left with an anomaly map of one run beside pictures of another."""
    out = shutil.copytree(whole, tmp_path / "out")
    run_killed(4, words(scans / "a.nii.gz", out, model, "--force", "--seed", "1"))
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
    def full(image, path, force=False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(many_scans, "save_nifti", full)
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
    )
    for name in ("b.nii", "a.nii.gz", "sub/c.nii.gz", *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in scans_in([tmp_path])] == [
        "a.nii.gz",
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
