"""The command line: end to end on small simulated scans, and what it makes of errors."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.torch import load_file

from madad_lite import __version__, cli
from madad_lite.__main__ import start
from madad_lite.arguments import COMMANDS
from madad_lite.cli import main
from madad_lite.errors import ScanError


@pytest.fixture(scope="module")
def detected(patient_scan, tmp_path_factory):
    out = tmp_path_factory.mktemp("detect")
    assert main(["detect", patient_scan["image"], "--out", str(out)]) == 0
    return out


def test_detect_writes_its_five_files(detected, patient_scan):
    name = Path(patient_scan["image"]).name.removesuffix(".nii.gz")
    assert {p.name for p in detected.iterdir()} == {
        f"{name}_anomaly.nii.gz",
        f"{name}_healed.nii.gz",
        f"{name}_report.png",
        f"{name}_lesions.csv",
        f"{name}.json",
    }
    scan, anomaly = nib.load(patient_scan["image"]), nib.load(detected / f"{name}_anomaly.nii.gz")
    assert anomaly.shape == scan.shape and np.array_equal(anomaly.affine, scan.affine)
    assert anomaly.get_data_dtype() == np.float32
    values = anomaly.get_fdata()
    assert values.min() >= 0 and 0 < values.max() <= 1


def test_detect_never_overwrites_without_force(detected, patient_scan, capsys):
    before = {p: p.read_bytes() for p in detected.iterdir()}
    assert main(["detect", patient_scan["image"], "--out", str(detected)]) == 1
    assert "--force" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in detected.iterdir()}
    assert main(["detect", patient_scan["image"], "--out", str(detected), "--force"]) == 0
    maps = [p for p in before if p.name.endswith((".nii.gz", ".csv", ".json"))]
    assert all(p.read_bytes() == before[p] for p in maps)  # and the same seed gives the same bytes


def test_one_bad_scan_does_not_stop_the_others(patient_scan, tmp_path, capsys):
    bad = tmp_path / "broken.nii.gz"
    bad.write_bytes(b"no NIfTI at all")
    out = tmp_path / "out"
    assert main(["detect", str(bad), patient_scan["image"], "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "broken.nii.gz" in said and "1 of 2 scans done" in said
    assert len(list(out.glob("*_anomaly.nii.gz"))) == 1 and not list(out.glob("broken*"))


def test_help_says_each_default_once(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        said = capsys.readouterr().out
        assert "(default: None)" not in said and "(default: False)" not in said
        assert name != "detect" or ("(default: t1)" in said and "default: the model's own" in said)


def test_unusable_requests_are_refused_in_one_line(tmp_path, capsys):
    for words in (
        ["detect", str(tmp_path), "--out", str(tmp_path / "o")],
        ["detect", "x.nii.gz", "--out", str(tmp_path / "o"), "--weights", "nothing"],
        ["train", "denoiser", "--data", str(tmp_path), "--out", str(tmp_path / "r")],
        ["prepare", str(tmp_path / "nowhere"), "--out", str(tmp_path / "p")],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith(f"madad {words[0]}: ") and "\n" not in said


def test_simulate_prepare_train_assemble_evaluate(tmp_path, capsys, caplog):
    """The main job as a user types it, as small as it can be."""
    cohort, data = tmp_path / "cohort", tmp_path / "data"
    assert main(["phantom", "--out", str(cohort), "--normal", "3", "--patients", "2", "--spacing", "4"]) == 0
    assert (
        main(["prepare", str(cohort), "--out", str(data), "--spacing", "4", "--size", "48", "--workers", "1"])
        == 0
    )
    brief = ["--data", str(data), "--set", "steps=2", "batch_size=2"]
    assert main(["train", "autoencoder", "--out", str(tmp_path / "ae"), *brief]) == 0
    best = str(tmp_path / "ae" / "best")
    assert (
        main(
            ["train", "denoiser", "--out", str(tmp_path / "dn"), "--autoencoder", best, *brief, "variants=1"]
        )
        == 0
    )
    joined = ["--autoencoder", best, "--denoiser", str(tmp_path / "dn" / "best"), "--data", str(data)]
    model = str(tmp_path / "model")
    assert main(["assemble", *joined, "--out", model, "--set", "sigma=1.0"]) == 0
    assert main(["assemble", *joined, "--out", model]) == 2  # there already
    further = ["train", "denoiser", "--out", str(tmp_path / "on"), "--start", model, *brief, "variants=1"]
    assert main(further) == 0  # goes on from the assembled weights, with their autoencoder
    weights = [
        load_file(tmp_path / run / "last" / "diffusion_pytorch_model.safetensors") for run in ("dn", "on")
    ]
    assert max((a - weights[1][k]).abs().max() for k, a in weights[0].items()) < 0.02  # two steps away
    assert main([*further, "--autoencoder", best]) == 2  # two autoencoders
    capsys.readouterr()
    assert main([*further, "size=S", "dropout=0.1"]) == 2  # the network is that of --start
    assert "leave --set dropout and size out" in capsys.readouterr().err
    index = Path(model) / "model_index.json"
    text = index.read_text()
    index.write_text(text.replace('"median"', '"tissue"'))
    caplog.clear()
    assert main([*further[:3], str(tmp_path / "tissue"), "--start", model, *brief, "variants=1"]) == 0
    assert "knows --normalise tissue, and learns median now" in capsys.readouterr().out
    assert not caplog.messages  # same contrast, same grid
    index.write_text(text)
    assert main([*further[:3], str(tmp_path / "other"), "--start", "flair", *brief, "variants=1"]) == 0
    assert (
        "holds T1 of 48 pixels of 4 mm, and --start flair learnt from FLAIR of 96 pixels of 2 mm"
        in caplog.text
    )
    results = tmp_path / "results.json"
    capsys.readouterr()
    assert (
        main(["evaluate", "--data", str(data), "--weights", model, "--steps", "2", "--out", str(results)])
        == 0
    )
    printed = capsys.readouterr().out
    numbers = json.loads(results.read_text())
    assert set(numbers["methods"]) == {"MAD-AD", "intensity", "reconstruction"} and "MAD-AD" in printed
    assert all("threshold" in m and "test" in m and "val" in m for m in numbers["methods"].values())


def script(body: str, **options) -> subprocess.Popen:
    """A process whose command "try" is `body`."""
    code = f"""
import os, signal, sys, time
from madad_lite import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell that runs the tests may ignore it
def run(args):
    {body}
cli.COMMANDS["try"] = ("", (), run)
sys.exit(cli.main(["try"]))
"""
    options = {"stdout": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture
def attempt(monkeypatch, tmp_path):
    """attempt(run): the exit code of a command that calls `run`, from an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def start(run) -> int:
        monkeypatch.setitem(cli.COMMANDS, "try", ("", (), run))
        return main(["try"])

    return start


def test_ctrl_c_ends_with_130():
    process = script("print('ready', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "madad try: interrupted; what was finished is kept\n"


def test_ctrl_c_within_an_exec_ends_with_130_too():
    """Dataclasses and named tuples are made by exec() while libraries are imported."""
    process = script("exec('os.kill(os.getpid(), signal.SIGINT); time.sleep(60)')")
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_swallowed_ctrl_c_comes_again(attempt, monkeypatch, capsys):
    monkeypatch.setattr(cli, "AGAIN_AFTER", 0.05)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    swallowed = []

    def run(args):
        for _ in range(3):
            try:
                signal.raise_signal(signal.SIGINT) if not swallowed else time.sleep(20)
            except KeyboardInterrupt:
                swallowed.append(1)
        time.sleep(20)

    try:
        assert attempt(run) == 130 and len(swallowed) == 3
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.count("interrupted") == 1


def test_an_error_that_nobody_foresaw_is_one_line_and_its_traceback_a_file(attempt, tmp_path, capsys):
    def run(args):
        int("three\nlines\n")

    assert attempt(run) == attempt(run) == 1
    first, second = capsys.readouterr().err.splitlines()
    log = tmp_path / "madad-error.log"
    assert first == second and first.startswith("madad try: unexpected: ValueError: invalid literal")
    assert first.endswith(f"; details in {log}")
    assert log.read_text().count("Traceback") == 2 and 'int("three' in log.read_text()


def test_where_nothing_can_be_written_the_traceback_goes_to_a_temporary_file(
    attempt, tmp_path, monkeypatch, capsys
):
    (tmp_path / "madad-error.log").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert attempt(lambda args: 1 / 0) == 1
    log = Path(capsys.readouterr().err.strip().partition("; details in ")[2])
    assert log.parent == tmp_path and "ZeroDivisionError" in log.read_text()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ScanError("a.nii: too\nsmall"), "a.nii: too small"),
        (FileNotFoundError(2, "No such file or directory", "a.nii"), "a.nii: No such file or directory"),
        (PermissionError("not\nallowed"), "not allowed"),
    ],
)
def test_an_error_that_is_meant_for_the_user_is_one_line_without_a_file(
    error, said, attempt, tmp_path, capsys
):
    def run(args):
        raise error

    assert attempt(run) == 2 and capsys.readouterr().err == f"madad try: {said}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("raise ValueError('no')", 2),
        ("raise ImportError('no')", 2),
        ("int('x')", 1),
        ("import madad_liter", 1),
    ],
)
def test_what_a_line_of_the_package_refuses_is_foreseen_and_its_mistakes_are_not(
    line, code, attempt, tmp_path, capsys
):
    assert attempt(lambda args: exec(line, {"__name__": "madad_lite.some"})) == code
    assert len(capsys.readouterr().err.splitlines()) == 1 and (tmp_path / "madad-error.log").exists() == (
        code == 1
    )


def test_an_interrupt_of_which_a_library_makes_another_error_is_one():
    process = script(
        "exec('try: os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\\nfinally: raise RuntimeError(7)')"
    )
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said == "madad try: interrupted; what was finished is kept\n"


def test_a_reader_that_has_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    process = script("print('x' * 1_000_000)", stdout=write)
    os.close(write)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 141


def test_output_that_cannot_be_written_is_one_line():
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # else print itself fails
    with open(os.devnull) as nowhere:
        process = script("print('x')", stdout=nowhere, env=buffered)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and re.fullmatch("madad try: standard output: .+\n", said)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(closed):
    command = f'"$0" -m madad_lite --version {closed}'
    assert subprocess.run(["sh", "-c", command, sys.executable], timeout=120).returncode == 0


def test_a_name_that_the_terminal_cannot_show_stops_nothing():
    process = script("print('é \\udcff')", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert process.communicate(timeout=60)[0] == "\\xe9 \\udcff\n" and process.returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: COMMAND"),
        (["detect", "", "--out", "o"], "an empty name"),
        (["detect", "x.nii.gz", "--out", ""], "an empty name"),
        (["detect", "x.nii.gz", "--out", __file__], "is a file; give a folder"),
        (["detect", "x.nii.gz", "--out", "o", "--steps", "many"], "invalid int value: 'many'"),
        (["train", "autoencoder", "--out", "o"], "required: --data"),
    ],
)
def test_wrong_arguments_are_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    message = capsys.readouterr().err
    assert ended.value.code == 2 and said in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_set_twice_keeps_both():
    args = cli.parser().parse_args(
        ["train", "autoencoder", "--data", "d", "--out", "o", "--set", "a=1", "--set", "b=x"]
    )
    assert cli.settings(args.set) == {"a": 1, "b": "x"}


def test_an_interrupt_while_the_command_line_is_loaded(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    assert start() == 130 and capsys.readouterr().err == "madad: interrupted\n"


def test_python_m_madad_lite():
    done = subprocess.run([sys.executable, "-m", "madad_lite", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, __version__)
