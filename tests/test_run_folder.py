"""A run's folder: what is not ours is left alone, what is damaged is named, what has changed is noticed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny  # noqa: F401 (a fixture)

from madad_lite.autoencoder import make_autoencoder
from madad_lite.cli import main
from madad_lite.denoiser import Denoiser
from madad_lite.errors import RunError
from madad_lite.plotting import read_log
from madad_lite.training.autoencoder import load_autoencoder, train_autoencoder
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.latent_cache import LatentDataset, encode_latents
from madad_lite.training.loop import train_model
from madad_lite.training.run_folder import BatchOrder
from madad_lite.training.settings import AutoencoderConfig, DenoiserConfig, TrainingConfig, configured

LINE = TrainingConfig(steps=6, batch_size=2, validate_every=2, checkpoint_every=4, warmup_steps=1)
BRIEF = dict(size="tiny", steps=2, batch_size=2, validate_every=2, checkpoint_every=1, warmup_steps=1)


def train_line(out, config=LINE, dataset=tuple({"x": float(i)} for i in range(5)), width=1, **options):
    """y = a x + b, in milliseconds."""

    def losses_of(model, batch, generator):
        return {"loss": (model(batch["x"].float()[:, None]) - 1).square().mean()}

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, width))
    answers = dict(losses_of=losses_of, validate=lambda *_: {"val_loss": 1.0})
    return train_model(model, dataset, out, config, **answers, progress=False, **options)


def contents(folder: Path) -> dict:
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return make_autoencoder("tiny")


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "name", ["thesis.txt", "log.jsonl", "checkpoint.pt", "best/model.bin", "latents/mine.npy"]
)
def test_a_folder_with_other_files_is_left_alone(name, resume, prepared_cohort, encoder, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"years of work")
    before, options = contents(tmp_path), dict(resume=resume, progress=False)
    with pytest.raises(RunError, match="holds other files than ours"):
        train_denoiser(prepared_cohort, encoder, tmp_path, DenoiserConfig(**BRIEF), **options)
    if not name.startswith("latents"):
        with pytest.raises(RunError, match="holds other files than ours"):
            train_autoencoder(prepared_cohort, tmp_path, AutoencoderConfig(**BRIEF), **options)
    assert contents(tmp_path) == before


def test_a_model_s_folder_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    for resume in (False, True):
        with pytest.raises(RunError, match="not of a training run"):
            train_line(tmp_path, resume=resume)
    assert contents(tmp_path) == {Path("config.json"): b'{"_class_name": "AutoencoderKL"}'}


def test_hidden_files_and_latents_that_are_ours_do_not_matter(prepared_cohort, encoder, tmp_path):
    (tmp_path / ".DS_Store").touch()
    config = DenoiserConfig(variants=1, **BRIEF)
    latents = encode_latents(prepared_cohort, encoder, tmp_path / "latents", config, progress=False)
    before = os.stat(latents / "train-mean.npy").st_mtime_ns
    train_denoiser(prepared_cohort, encoder, tmp_path, config, progress=False)
    assert os.stat(latents / "train-mean.npy").st_mtime_ns == before and (tmp_path / "last").is_dir()


@pytest.fixture(scope="module")
def changing(prepared_cohort, tmp_path_factory):
    """A prepared folder, a function that makes one of its scans another one, and a run of its slices."""
    data, out = tmp_path_factory.mktemp("data") / "prepared", tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(prepared_cohort, data)
    train_autoencoder(data, out, AutoencoderConfig(**BRIEF), progress=False)

    def change(split: str) -> None:
        manifest = json.loads((data / "manifest.json").read_text())
        scan = next(s for s in manifest["scans"] if s["split"] == split)
        (data / "scans" / scan["scan_id"]).rename(data / "scans" / f"{scan['scan_id']}-again")
        scan["scan_id"] += "-again"
        (data / "manifest.json").write_text(json.dumps(manifest))

    return data, change, out


def test_other_slices_of_the_same_number_are_noticed(changing, encoder, tmp_path):
    data, change, out = changing
    config, options = AutoencoderConfig(**BRIEF), dict(resume=True, progress=False)
    latents = encode_latents(data, encoder, tmp_path, DenoiserConfig(variants=1), progress=False)
    encoded = os.stat(latents / "train-mean.npy").st_mtime_ns
    change("test")
    train_autoencoder(data, out, config, **options)  # not trained on
    change("train")
    before = contents(out)
    with pytest.raises(RunError, match="was started with fingerprint="):
        train_autoencoder(data, out, config, **options)
    assert contents(out) == before
    encode_latents(data, encoder, tmp_path, DenoiserConfig(variants=1), progress=False)
    assert os.stat(latents / "train-mean.npy").st_mtime_ns != encoded
    settings = json.loads((out / "config.json").read_text())
    del settings["fingerprint"], settings["model"]  # a run of an earlier version
    (out / "config.json").write_text(json.dumps(settings))
    train_autoencoder(data, out, config, **options)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def other_model(folder):
    other = train_line(folder.with_name("other"), width=2)
    shutil.copy(other / "checkpoint.pt", folder / "checkpoint.pt")


def without(key, value=None):
    def change(folder):
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        state.pop(key) if value is None else state.update({key: value})
        torch.save(state, folder / "checkpoint.pt")

    return change


DAMAGE = {
    "checkpoint.pt": {
        "empty": lambda f: (f / "checkpoint.pt").write_bytes(b""),
        "text": lambda f: (f / "checkpoint.pt").write_text("see the other disk"),
        "cut": lambda f: (f / "checkpoint.pt").write_bytes((f / "checkpoint.pt").read_bytes()[:1500]),
        "of another model": other_model,
        "a list": lambda f: torch.save([1, 2], f / "checkpoint.pt"),
        "without step": without("step"),
        "a step in words": without("step", "four"),
        "without optimizer": without("optimizer"),
        "an optimizer of nothing": without("optimizer", {}),
        "no average": without("ema", {}),
        "malicious": lambda f: torch.save({"step": 4, "model": Evil(str(f / "evil"))}, f / "checkpoint.pt"),
    },
    "config.json": {
        "null": lambda f: (f / "config.json").write_text("null"),
        "text": lambda f: (f / "config.json").write_text("steps: 6"),
        "cut": lambda f: (f / "config.json").write_text((f / "config.json").read_text()[:40]),
        "no text": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
        "a list": lambda f: (f / "config.json").write_text("[]"),
        "nothing in it": lambda f: (f / "config.json").write_text("{}"),
        "nested": lambda f: (f / "config.json").write_text("[" * 100_000),
        "a folder": lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
    },
    "log.jsonl": {
        "null": lambda f: (f / "log.jsonl").write_text("null\n"),
        "text": lambda f: (f / "log.jsonl").write_text("step 1\nstep 2\n"),
        "without step": lambda f: (f / "log.jsonl").write_text('{"loss": 1}\n'),
        "a step in words": lambda f: (f / "log.jsonl").write_text('{"step": "one"}\n'),
        "no text": lambda f: (f / "log.jsonl").write_bytes(b"\xff\xfe\n\x00\n"),
    },
}


@pytest.mark.parametrize(("name", "how"), [(n, h) for n, ways in DAMAGE.items() for h in ways])
def test_damaged_files_of_a_run_are_named_in_one_line(name, how, tmp_path):
    run = train_line(tmp_path / "run")
    DAMAGE[name][how](run)
    damaged = contents(run)
    with pytest.raises(RunError) as refused:
        train_line(run, resume=True)
    said = str(refused.value)
    assert said.startswith(f"{run / name}: ") and "\n" not in said and len(said) < 400
    assert any(way in said for way in ("remove", "choose another folder")) and "weights_only" not in said
    assert {k: v for k, v in contents(run).items() if k.name != "config.json"} == {
        k: v for k, v in damaged.items() if k.name != "config.json"
    }


def test_a_line_that_was_being_written_is_left_out_and_nothing_else(tmp_path):
    run = train_line(tmp_path / "run")
    whole = read_log(run)
    with open(run / "log.jsonl", "a") as f:
        f.write('{"step": 7, "lo')
    train_line(run, resume=True)
    assert read_log(run) == whole and [line["step"] for line in whole] == [1, 2, 4, 6]


LATENTS = {
    "null": "null",
    "text": "latents",
    "nothing in it": "{}",
    "words": '{"variants": "two", "corrupted": false}',
    "a negative number": '{"variants": -1, "corrupted": false}',
    "unfinished": '{"unfinished": true}',
}


def test_damaged_latents_are_named_in_one_line(prepared_cohort, encoder, tmp_path):
    config = DenoiserConfig(variants=2)
    folder = encode_latents(prepared_cohort, encoder, tmp_path / "z", config, progress=False)
    stamp, mean = folder / "latents.json", folder / "train-mean.npy"
    good, values = stamp.read_text(), mean.read_bytes()
    for text in LATENTS.values():
        stamp.write_text(text)
        with pytest.raises(RunError, match="latents.json: damaged.*; remove"):
            LatentDataset(folder, "train")
    stamp.write_text("null")
    with pytest.raises(RunError, match="latents.json: damaged.*; remove"):
        encode_latents(prepared_cohort, encoder, folder, config, progress=False)
    assert mean.read_bytes() == values
    stamp.write_text(good)
    for content in (b"", values[:-100], b"text"):
        mean.write_bytes(content)
        with pytest.raises(RunError, match="train-mean.npy: damaged.*; remove"):
            LatentDataset(folder, "train")
    np.save(mean, np.zeros((3, 4, 12, 12), np.float16))
    with pytest.raises(RunError, match="do not fit each other; remove"):
        LatentDataset(folder, "train")
    (folder / "train-mean.npy").unlink()
    stamp.write_text('{"unfinished": true}')  # stopped: what is there is made again
    encode_latents(prepared_cohort, encoder, folder, config, progress=False)
    assert stamp.read_text() == good and mean.read_bytes() == values


def damaged_encoders(folder: Path, encoder) -> dict[str, Path]:
    kinds = {k: folder / k for k in ("missing", "a denoiser", "cut", "without a tensor", "null")}
    for name in ("cut", "without a tensor", "null"):
        encoder.save_pretrained(kinds[name])
    Denoiser.of_size("tiny").save_pretrained(kinds["a denoiser"])
    weights = "diffusion_pytorch_model.safetensors"
    (kinds["cut"] / weights).write_bytes((kinds["cut"] / weights).read_bytes()[:5000])
    from safetensors.torch import load_file, save_file

    tensors = load_file(kinds["without a tensor"] / weights)
    del tensors["quant_conv.weight"]
    save_file(tensors, kinds["without a tensor"] / weights, metadata={"format": "pt"})
    (kinds["null"] / "config.json").write_text("null")
    return kinds


def test_an_encoder_that_cannot_be_used_is_named_in_one_line(prepared_cohort, encoder, tmp_path, capsys):
    for kind, folder in damaged_encoders(tmp_path, encoder).items():
        words = ["train", "denoiser", "--data", str(prepared_cohort), "--autoencoder", str(folder)]
        assert main([*words, "--out", str(tmp_path / "run")]) == 2, kind
        said = capsys.readouterr().err.strip().rpartition("\n")[2]
        assert said.startswith(f"madad train: {folder}"), (kind, said)
        assert not (tmp_path / "run").exists()
    encoder.save_pretrained(tmp_path / "good")
    assert load_autoencoder(tmp_path / "good").config.latent_channels == 4


class Variants(list):
    """20 slices, each there in 8 variants, as recipe `authors` has it."""

    variants = 8


def test_fewer_slices_than_a_batch_are_a_step_an_epoch(tmp_path):
    few = Variants({"x": float(i)} for i in range(160))
    config = configured(LINE, batch_size=96, epochs=3, warmup_epochs=1)
    log = read_log(train_line(tmp_path / "run", config, few))
    assert (log[-1]["step"], log[-1]["epoch"]) == (3, 3.0) and (tmp_path / "run" / "last").is_dir()
    with pytest.raises(RunError, match="epochs=0.1 are no step"):
        train_line(tmp_path / "none", configured(config, epochs=0.1), few)
    assert not (tmp_path / "none").exists()


def test_a_training_prints_nothing_and_logs(tmp_path, capfd, caplog):
    with caplog.at_level("INFO", logger="madad_lite"):
        train_line(tmp_path / "run")
    assert capfd.readouterr() == ("", "") and "0 of 6 steps done" in caplog.text


def test_half_precision_of_a_gpu_is_refused_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    with pytest.raises(RunError, match="mixed_precision=fp16 needs a GPU"):
        train_line(tmp_path / "run", configured(LINE, mixed_precision="fp16"))
    assert not (tmp_path / "run").exists()


def test_every_slice_once_an_epoch_in_an_order_of_its_own():
    batches = list(BatchOrder(10, 5, seed=0, start=0, stop=4))
    assert sorted(batches[0] + batches[1]) == sorted(batches[2] + batches[3]) == list(range(10))
    assert batches[0] + batches[1] != batches[2] + batches[3]
    assert list(BatchOrder(10, 5, seed=0, start=3, stop=4)) == batches[3:]
