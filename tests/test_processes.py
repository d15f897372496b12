"""Several processes, or a batch in several parts, train as one process does; only one of them writes."""

import json
import multiprocessing
import os
import socket
import sys
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from tiny_models import make_tiny_known, tiny  # noqa: F401 (a fixture)

from madad_lite.autoencoder import make_autoencoder
from madad_lite.errors import RunError
from madad_lite.plotting import read_log
from madad_lite.scans.grid import Grid
from madad_lite.slices.folder import prepare_folder
from madad_lite.training.autoencoder import train_autoencoder
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.loop import train_model
from madad_lite.training.settings import AutoencoderConfig, DenoiserConfig, TrainingConfig

CONTEXT = multiprocessing.get_context("forkserver")
# imported once, for all processes
CONTEXT.set_forkserver_preload(
    ["pytest", "madad_lite.detection.many_scans", "madad_lite.plotting", "madad_lite.training.denoiser"]
)
# a low learning rate: the last bits of a sum depend on its order, and at a high one they grow with every step
BRIEF = dict(
    steps=20, learning_rate=2e-4, warmup_steps=2, validate_every=10, checkpoint_every=10, ema_decay=0.9
)


class Line(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)


def train_line(_, out: Path, config: TrainingConfig) -> None:
    """Trains on the numbers 0 .. 9 and notes which of them this process has seen at each step."""
    seen = []

    def losses_of(model, batch, generator):
        seen.append(batch["number"].tolist())
        loss = (model.layer(batch["number"].view(-1, 1).float()) - 1).square().mean()
        return {"loss": loss, "number": batch["number"].float().mean()}

    numbers = [{"number": i} for i in range(10)]
    answers = dict(losses_of=losses_of, validate=lambda *_: {"val_loss": 0.0})
    train_model(Line(), numbers, out, config, **answers, progress=False)
    out.with_name(f"{out.name}-seen-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(seen))


def train_encoder(data: Path, out: Path, config: AutoencoderConfig) -> None:
    train_autoencoder(data, out, config, progress=False)


def train_healer(data: Path, out: Path, config: DenoiserConfig) -> None:
    torch.manual_seed(0)
    train_denoiser(data, make_autoencoder(), out, config, progress=False)


def process(train, rank: int, number: int, port: int, data: Path, out: Path, config) -> None:
    """One process as `accelerate launch` would start it; notes the files that it writes in the run's
    folder.
    """
    places = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": number,
        "LOCAL_WORLD_SIZE": number,
        "MASTER_PORT": port,
    }
    os.environ.update(
        {k: str(v) for k, v in places.items()}, MASTER_ADDR="127.0.0.1", CUDA_VISIBLE_DEVICES=""
    )
    torch.set_num_threads(1)
    make_tiny_known()
    written = []

    def note(event: str, arguments: tuple) -> None:
        changes = event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
        changes = changes or (event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        changes = changes or (event == "os.mkdir" and not os.path.isdir(arguments[0]))
        if changes and str(arguments[0]).startswith(str(out) + os.sep):
            written.append(" ".join([event, *map(str, arguments[:2])]))  # of a rename: from, to

    sys.addaudithook(note)
    train(data, out, config)
    out.with_name(f"{out.name}-written-{rank}.json").write_text(json.dumps(written))


def launch(train, data: Path, out: Path, config, number: int = 2) -> Path:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    group = [
        CONTEXT.Process(target=process, args=(train, k, number, port, data, out, config))
        for k in range(number)
    ]
    for p in group:
        p.start()
    alive = group
    while alive:
        ended = wait([p.sentinel for p in alive], timeout=300)
        alive = [p for p in alive if p.is_alive()]
        # as a launcher does when one fails; or they wait for each other for ever
        for p in alive if not ended or any(q.exitcode for q in group) else []:
            p.kill()
    assert [p.exitcode for p in group] == [0] * number
    return out


@pytest.fixture(scope="module")
def data(cohort, tmp_path_factory):
    """Slices of 32 x 32 pixels."""
    out = tmp_path_factory.mktemp("small") / "data"
    prepare_folder(cohort, out, grid=Grid(spacing=6.0, size=32), workers=1, progress=False)
    return out


def same_curve(run: Path, other: Path) -> None:
    a, b = read_log(run), read_log(other)
    assert [x["step"] for x in a] == [x["step"] for x in b] == [1, 10, 20]
    for line, expected in zip(a, b):
        assert line == pytest.approx(expected, rel=1e-4, abs=2e-6)  # logged with 6 decimals


@pytest.fixture(scope="module")
def healer(data, tmp_path_factory):
    """(settings, the run of one process)."""
    config = DenoiserConfig(
        size="tiny", batch_size=6, variants=1, corruption_share=0.5, last_step_share=0.3, **BRIEF
    )
    return config, launch(train_healer, data, tmp_path_factory.mktemp("one") / "run", config, number=1)


@pytest.fixture(scope="module")
def healer_of_two(data, healer, tmp_path_factory):
    return launch(train_healer, data, tmp_path_factory.mktemp("two") / "run", healer[0])


def test_the_denoiser_learns_the_same_in_two_processes(healer, healer_of_two):
    same_curve(healer_of_two, healer[1])


def test_one_process_alone_writes(healer_of_two):
    main, other = (json.loads((healer_of_two.parent / f"run-written-{k}.json").read_text()) for k in (0, 1))
    assert any("checkpoint.pt" in x for x in main) and any("log.jsonl" in x for x in main)
    assert any("latents" in x for x in main) and any("last" in x for x in main) and other == []


def test_the_denoiser_learns_the_same_in_parts(data, healer, tmp_path):
    """4 unequal parts of a batch of 6."""
    config = DenoiserConfig(**{**vars(healer[0]), "gradient_accumulation": 4})
    same_curve(launch(train_healer, data, tmp_path / "run", config, number=1), healer[1])


def test_the_autoencoder_learns_the_same_in_two_processes_and_parts(data, tmp_path):
    config = AutoencoderConfig(size="tiny", batch_size=6, **BRIEF)
    one = launch(train_encoder, data, tmp_path / "one", config, number=1)
    two = launch(
        train_encoder,
        data,
        tmp_path / "two",
        AutoencoderConfig(**{**vars(config), "gradient_accumulation": 2}),
    )
    same_curve(two, one)
    measured = [
        json.loads((run / "last" / "config.json").read_text())["scaling_factor"] for run in (one, two)
    ]
    assert measured[0] == pytest.approx(measured[1], rel=1e-3) and measured[0] != 1.0


def test_every_sample_once_an_epoch(tmp_path):
    """The processes' shares are disjoint and together the whole batch; 3 processes share a batch of 5."""
    out = launch(train_line, tmp_path, tmp_path / "run", TrainingConfig(batch_size=5, **BRIEF), number=3)
    seen = [json.loads((tmp_path / f"run-seen-{k}.json").read_text()) for k in range(3)]
    assert [len(s) for s in seen] == [20] * 3
    epochs = [[i for s in seen for share in s[step : step + 2] for i in share] for step in range(0, 20, 2)]
    assert all(sorted(e) == list(range(10)) for e in epochs) and epochs[0] != epochs[1]
    assert read_log(out)[0]["number"] == pytest.approx(
        sum(i for s in seen for i in s[0]) / 5, abs=1e-6
    )  # the whole batch's mean


def test_more_shares_than_samples_are_refused(tmp_path):
    with pytest.raises(RunError, match="a batch of 2 cannot be shared by 3"):
        train_line(None, tmp_path / "run", TrainingConfig(batch_size=2, gradient_accumulation=3))
    assert not (tmp_path / "run").exists()
