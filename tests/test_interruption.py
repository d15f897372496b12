"""kill -9 at any moment, a full disk, a folder that cannot be written to: what was saved stays usable, and a
resume is exact.
"""

import contextlib
import errno
import io
import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL
from tiny_models import make_tiny_known, tiny  # noqa: F401 (a fixture)

from madad_lite.autoencoder import make_autoencoder
from madad_lite.cli import main
from madad_lite.denoiser import Denoiser
from madad_lite.files import save_model
from madad_lite.plotting import read_log
from madad_lite.scans.grid import Grid
from madad_lite.slices.folder import prepare_folder
from madad_lite.training import loop

CONTEXT = multiprocessing.get_context("forkserver")
# imported once, for all processes
CONTEXT.set_forkserver_preload(
    ["pytest", "madad_lite.detection.many_scans", "madad_lite.plotting", "madad_lite.training.denoiser"]
)
BRIEF = [
    "size=tiny",
    "steps=9",
    "batch_size=2",
    "warmup_steps=1",
    "validate_every=4",
    "checkpoint_every=3",
    "ema_decay=0.9",
]
STAGES = {"autoencoder": [], "denoiser": ["variants=1", "dropout=0.1", "corruption_share=0.5"]}
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(f, content: bytes) -> None:
    f.write(content[: len(content) // 2])
    f.flush()
    die()


def on_change(folder: Path, act) -> None:
    """act(number, file) just before every change in the folder: a file opened for writing, renamed or
    removed.
    """
    numbers = itertools.count()

    def hook(event: str, arguments: tuple) -> None:
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(arguments[0]).startswith(str(folder)):
            act(next(numbers), arguments[0])

    sys.addaudithook(hook)


def happens(what: str, number: int, folder: Path) -> None:
    """Make it happen in this process."""
    counted = itertools.count(1)
    if what == "killed before a change":
        on_change(folder, lambda n, _: n == number and die())
    elif what == "killed at a step":
        forward = loop._Losses.forward
        loop._Losses.forward = lambda *a: die() if a[2].initial_seed() == number else forward(*a)  # of seed 0
    elif what == "killed while a checkpoint is written":
        save = torch.save

        def save_half(state, f):
            if next(counted) < number:
                return save(state, f)
            save(state, buffer := io.BytesIO())
            write_half(f, buffer.getvalue())

        torch.save = save_half
    elif what == "killed while weights are written":
        safetensors.torch.save_file = lambda tensors, path, **_: write_half(
            open(path, "wb"), safetensors.torch.save(tensors)
        )
    elif what == "killed while the log is written":
        loop.Run.log = lambda run, **values: write_half(
            open(run.folder / "log.jsonl", "ab"), json.dumps(values).encode()
        )
    elif what == "read-only":

        def refuse(n, path):
            if n >= number:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

        on_change(folder, refuse)
    elif what == "disk full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))  # files of at most so many bytes


def process(words: list[str], events: list[tuple], said) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    make_tiny_known()
    for event in events:
        happens(*event, Path(words[words.index("--out") + 1]))
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        code = main(words)
    said.put(text.getvalue()[-1000:])
    sys.exit(code)


def run(words: list[str], *events: tuple) -> tuple[int, str]:
    """`madad WORDS` in a process of its own; returns its exit code and the last line of its error output."""
    said = CONTEXT.SimpleQueue()
    p = CONTEXT.Process(target=process, args=(words, events, said))
    p.start()
    p.join()
    text = "" if said.empty() else said.get()
    assert "Traceback" not in text
    return p.exitcode, text.strip().replace("\r", "\n").rpartition("\n")[2]


@pytest.fixture(scope="module")
def inputs(cohort, tmp_path_factory):
    """Slices of 32 x 32 pixels and an untrained autoencoder."""
    folder = tmp_path_factory.mktemp("small")
    prepare_folder(cohort, folder / "data", grid=Grid(spacing=6.0, size=32), workers=1, progress=False)
    torch.manual_seed(0)
    make_autoencoder().save_pretrained(folder / "autoencoder")
    return folder


def training(inputs: Path, stage: str, out: Path) -> list[str]:
    autoencoder = ["--autoencoder", str(inputs / "autoencoder")] if stage == "denoiser" else []
    return [
        "train",
        stage,
        "--data",
        str(inputs / "data"),
        "--out",
        str(out),
        *autoencoder,
        "--set",
        *BRIEF,
        *STAGES[stage],
    ]


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """Both trainings, not interrupted."""
    runs = {stage: tmp_path_factory.mktemp("whole") / stage for stage in STAGES}
    for stage, out in runs.items():
        assert run(training(inputs, stage, out))[0] == 0
    return runs


def same(a: Path, b: Path, stage: str) -> None:
    """Weights to the last bit, and the log."""
    assert read_log(a) == read_log(b) and not [p for p in a.rglob("*") if ".part" in p.name]
    for name in ("best", "last"):
        x, y = (
            (AutoencoderKL if stage == "autoencoder" else Denoiser).from_pretrained(r / name) for r in (a, b)
        )
        assert all(
            torch.equal(p, q) for p, q in zip(x.state_dict().values(), y.state_dict().values(), strict=True)
        )
        assert {k: v for k, v in x.config.items() if k[0] != "_"} == {
            k: v for k, v in y.config.items() if k[0] != "_"
        }


@pytest.mark.parametrize("stage", STAGES)
def test_killed_again_and_again_a_training_ends_with_the_same_weights(stage, inputs, whole, tmp_path):
    """One process after the other goes on where the last was killed; how far each gets is drawn, with a fixed
    seed.
    """
    draw = random.Random(stage)
    words = training(inputs, stage, tmp_path / "run")
    kills = [
        ("killed before a change", draw.randrange(1, 7)),
        ("killed at a step", draw.randint(1, 3)),
        ("killed while the log is written", 0),
        ("killed while a checkpoint is written", 1),
        ("killed before a change", draw.randrange(6, 10)),  # about when the first checkpoint takes its place
        ("killed at a step", draw.randint(5, 6)),  # the checkpoint of step 3 is there
        ("killed while weights are written", 0),
        ("killed while the log is written", 0),
        ("killed while a checkpoint is written", 2),
        ("killed before a change", draw.randrange(4, 16)),
    ]
    for kill in kills:
        assert run([*words, "--resume"], kill)[0] == -signal.SIGKILL, kill
    assert run([*words, "--resume"])[0] == 0
    same(tmp_path / "run", whole[stage], stage)


def replace_weights(folder: Path, number: int) -> None:
    make_tiny_known()
    on_change(folder.parent, lambda n, _: n == number and die())
    torch.manual_seed(1)
    save_model(make_autoencoder("tiny"), folder)


def test_killed_while_weights_are_replaced_there_are_the_old_or_the_new_ones(tmp_path):
    for number in itertools.count():
        torch.manual_seed(0)
        save_model(make_autoencoder("tiny"), tmp_path / "best")
        old = AutoencoderKL.from_pretrained(tmp_path / "best").state_dict()
        p = CONTEXT.Process(target=replace_weights, args=(tmp_path / "best", number))
        p.start()
        p.join()
        found = AutoencoderKL.from_pretrained(tmp_path / "best").state_dict()
        kept = [torch.equal(found[k], old[k]) for k in old if k.endswith("conv_in.weight")]
        assert all(kept) or not any(kept)
        if p.exitcode == 0:
            break
        assert p.exitcode == -signal.SIGKILL
    assert number > 3 and not any(kept)


def test_a_full_disk_is_reported_in_one_line_and_a_resume_is_exact(inputs, whole, tmp_path):
    out = tmp_path / "run"
    words = training(inputs, "denoiser", out)
    code, said = run(words, ("disk full", 1000))
    assert (
        code == 2
        and said.startswith(f"madad train: {out}/latents/train-")
        and "cannot be written (File too large)" in said
    )
    assert run([*words, "--resume"], ("killed at a step", 5))[0] == -signal.SIGKILL
    code, said = run([*words, "--resume"], ("disk full", 50_000))
    assert (
        code == 2
        and said.startswith(f"madad train: {out}/best: cannot be written (")
        and "make room on the disk" in said
    )
    Denoiser.from_pretrained(out / "best")  # the one before
    weights = (out / "best" / "diffusion_pytorch_model.safetensors").stat().st_size
    code, said = run([*words, "--resume"], ("disk full", 2 * weights))  # a checkpoint is larger
    assert code == 2 and said.startswith(
        f"madad train: {out}/checkpoint.pt: cannot be written (File too large); make room"
    )
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 3
    assert run([*words, "--resume"])[0] == 0
    same(out, whole["denoiser"], "denoiser")


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_that_cannot_be_written_to_is_reported_in_one_line(stage, inputs, whole, tmp_path):
    (tmp_path / "file").touch()
    words = training(inputs, stage, tmp_path / "file" / "run")
    code, said = run(words)
    assert code == 2 and said.startswith(f"madad train: {tmp_path}/file/run") and "(Not a directory)" in said
    words = training(inputs, stage, tmp_path / "run")
    assert run(words, ("killed at a step", 5))[0] == -signal.SIGKILL
    code, said = run([*words, "--resume"], ("read-only", 8))  # all of a sudden
    assert (
        code == 2 and said.startswith(f"madad train: {tmp_path}/run/") and "(Read-only file system)" in said
    )
    assert run([*words, "--resume"])[0] == 0
    same(tmp_path / "run", whole[stage], stage)
