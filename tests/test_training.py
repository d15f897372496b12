"""Both trainings: they learn, resume exactly, refuse wrong folders, and cache latents once."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from madad_lite.autoencoder import make_autoencoder
from madad_lite.denoiser import Denoiser
from madad_lite.errors import Refused, RunError
from madad_lite.plotting import read_log
from madad_lite.slices.dataset import SliceDataset
from madad_lite.training import denoiser
from madad_lite.training.autoencoder import train_autoencoder
from madad_lite.training.denoiser import denoising_losses, train_denoiser
from madad_lite.training.latent_cache import encode_latents, fingerprint
from madad_lite.training.loop import _accelerator
from madad_lite.training.settings import (
    RECIPES,
    AutoencoderConfig,
    DenoiserConfig,
    TrainingConfig,
    configured,
)

TINY = dict(batch_size=4, validate_every=10, checkpoint_every=5, warmup_steps=1, ema_decay=0.9)


def weights(folder, kind) -> dict[str, torch.Tensor]:
    return kind.from_pretrained(folder).state_dict()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def autoencoder_run(prepared_cohort, tmp_path_factory):
    config = AutoencoderConfig(steps=60, **TINY)
    return train_autoencoder(prepared_cohort, tmp_path_factory.mktemp("ae") / "run", config, progress=False)


def test_autoencoder_learns_and_stores_its_measured_scaling(autoencoder_run, prepared_cohort):
    log = read_log(autoencoder_run)
    assert (
        log[-1]["step"] == 60
        and {"loss", "reconstruction", "kl", "val_psnr", "lr", "epoch"} <= log[-1].keys()
    )
    assert log[-1]["val_psnr"] > log[1]["val_psnr"] + 1  # dB, from step 10 to step 60
    for name in ("best", "last"):
        model = AutoencoderKL.from_pretrained(autoencoder_run / name)
        assert model.config.scaling_factor != 1.0
        assert (autoencoder_run / name / "diffusion_pytorch_model.safetensors").exists()
    cache = encode_latents(prepared_cohort, model, autoencoder_run / "check", progress=False)
    assert np.load(cache / "val-mean.npy").astype(np.float32).std() == pytest.approx(1, abs=0.15)


@pytest.fixture(scope="module")
def denoiser_run(prepared_cohort, autoencoder_run, tmp_path_factory):
    config = DenoiserConfig(steps=60, variants=2, **{**TINY, "batch_size": 8})
    out = tmp_path_factory.mktemp("denoiser") / "run"
    return train_denoiser(prepared_cohort, autoencoder_run / "best", out, config, progress=False)


def test_denoiser_learns_both_tasks(denoiser_run):
    log = read_log(denoiser_run)
    assert {"loss", "latent", "mask", "val_latent", "val_mask", "val_loss", "val_masked"} <= log[-1].keys()
    assert log[-1]["val_masked"] < 1.0  # below the spread of the latents: better than guessing their mean
    first = next(line for line in log if "val_mask" in line)
    assert log[-1]["val_mask"] < first["val_mask"] and log[-1]["val_latent"] < first["val_latent"]


def test_stopped_and_resumed_is_the_same_to_the_last_bit(
    prepared_cohort, autoencoder_run, tmp_path, monkeypatch
):
    config = DenoiserConfig(steps=12, dropout=0.1, variants=1, **TINY)

    def run(name, **options):
        return train_denoiser(
            prepared_cohort, autoencoder_run / "best", tmp_path / name, config, progress=False, **options
        )

    whole = run("whole")
    losses = denoising_losses
    calls = iter(range(100))

    def stops(*args, **options):
        if next(calls) == 8:
            raise KeyboardInterrupt
        return losses(*args, **options)

    monkeypatch.setattr(denoiser, "denoising_losses", stops)
    with pytest.raises(KeyboardInterrupt):
        run("halves")
    monkeypatch.undo()
    assert torch.load(tmp_path / "halves" / "checkpoint.pt", weights_only=True)["step"] == 5
    halves = run("halves", resume=True)
    assert same(weights(whole / "last", Denoiser), weights(halves / "last", Denoiser))
    assert read_log(whole) == read_log(halves)
    with pytest.raises(RunError, match="holds a training run already"):
        run("halves")


def test_resuming_with_other_settings_is_refused(denoiser_run, prepared_cohort, autoencoder_run):
    config = DenoiserConfig(steps=61, variants=2, **{**TINY, "batch_size": 8})
    with pytest.raises(RunError, match="steps=60, not 61"):
        train_denoiser(
            prepared_cohort, autoencoder_run / "best", denoiser_run, config, resume=True, progress=False
        )


def test_a_resume_finds_the_same_slices_under_another_name(
    denoiser_run, prepared_cohort, autoencoder_run, tmp_path
):
    config = DenoiserConfig(steps=60, variants=2, **{**TINY, "batch_size": 8})
    moved = shutil.copytree(prepared_cohort, tmp_path / "moved")
    before = read_log(denoiser_run)
    train_denoiser(moved, autoencoder_run / "best", denoiser_run, config, resume=True, progress=False)
    assert read_log(denoiser_run) == before


def test_an_encoder_without_its_scale_is_another_one(autoencoder_run):
    encoder = AutoencoderKL.from_pretrained(autoencoder_run / "best")
    measured = fingerprint(encoder)
    encoder.register_to_config(scaling_factor=1.0)
    assert fingerprint(encoder) != measured


def test_weights_that_are_not_numbers_replace_no_checkpoint(
    prepared_cohort, autoencoder_run, tmp_path, monkeypatch
):
    """Though the loss is looked at every ten steps only."""
    config, losses, log = (
        DenoiserConfig(steps=20, variants=1, **TINY),
        denoising_losses,
        tmp_path / "run" / "log.jsonl",
    )

    def spoilt(*args, **options):
        begun = log.exists() and '"step": 10,' in log.read_text()
        return tuple(x * float("nan") if begun else x for x in losses(*args, **options))

    monkeypatch.setattr(denoiser, "denoising_losses", spoilt)
    with pytest.raises(RunError, match="weights are not finite at step 15"):
        train_denoiser(prepared_cohort, autoencoder_run / "best", tmp_path / "run", config, progress=False)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 10 and all(x.isfinite().all() for x in state["model"].values())


def test_another_encoder_or_a_used_folder_is_refused_before_latents_are_touched(
    denoiser_run, prepared_cohort, autoencoder_run
):
    def state():
        return {
            f: os.stat(denoiser_run / "latents" / f).st_mtime_ns for f in os.listdir(denoiser_run / "latents")
        }

    before = state()
    config = DenoiserConfig(steps=60, variants=2, **{**TINY, "batch_size": 8})
    torch.manual_seed(5)
    for encoder, options, message in (
        (make_autoencoder().eval(), {"config": config, "resume": True}, "was started with encoder="),
        (
            autoencoder_run / "best",
            {"config": configured(config, variants=3)},
            "holds a training run already",
        ),
    ):
        with pytest.raises(RunError, match=message):
            train_denoiser(prepared_cohort, encoder, denoiser_run, progress=False, **options)
    assert state() == before


def test_an_epoch_sees_every_slice_once_in_one_of_its_variants(prepared_cohort, autoencoder_run, tmp_path):
    lengths = []
    for variants in (1, 3):
        settings = {**TINY, "epochs": 2, "variants": variants}
        out = tmp_path / str(variants)
        train_denoiser(
            prepared_cohort, autoencoder_run / "best", out, DenoiserConfig(**settings), progress=False
        )
        lengths.append(read_log(out)[-1]["step"])
        assert read_log(out)[-1]["epoch"] == 2
    slices = len(SliceDataset(prepared_cohort, "train", lesion_free=True))
    assert lengths == [2 * (slices // TINY["batch_size"])] * 2


def test_trainings_of_one_process_may_differ_in_precision():
    precisions = [
        _accelerator(TrainingConfig(mixed_precision=p)).mixed_precision for p in ("bf16", "no", "auto")
    ]
    assert precisions[:2] == ["bf16", "no"]


def test_latents_are_encoded_once(denoiser_run, prepared_cohort, autoencoder_run):
    cache = denoiser_run / "latents"
    before = {f: os.stat(cache / f).st_mtime_ns for f in os.listdir(cache)}
    model = AutoencoderKL.from_pretrained(autoencoder_run / "best")
    config = DenoiserConfig(variants=2)
    encode_latents(prepared_cohort, model, cache, config, progress=False)
    assert before == {f: os.stat(cache / f).st_mtime_ns for f in os.listdir(cache)}
    encode_latents(prepared_cohort, model, cache, configured(config, variants=3), progress=False)
    assert len(np.load(cache / "train-mean.npy", mmap_mode="r")) % 3 == 0
    assert before["train-mean.npy"] != os.stat(cache / "train-mean.npy").st_mtime_ns


def test_variants_differ_and_the_first_is_the_slice_itself(prepared_cohort, autoencoder_run, tmp_path):
    model = AutoencoderKL.from_pretrained(autoencoder_run / "best")
    cache = encode_latents(prepared_cohort, model, tmp_path, DenoiserConfig(variants=2), progress=False)
    mean = np.load(cache / "train-mean.npy").astype(np.float32)
    half = len(mean) // 2
    from madad_lite.autoencoder import encode

    first = SliceDataset(prepared_cohort, "train", lesion_free=True)[0]["image"][None]
    with torch.no_grad():
        expected = encode(model, first)[0]
    np.testing.assert_allclose(mean[0], expected, atol=0.02)  # stored in half precision
    assert np.abs(mean[:half] - mean[half:]).mean() > 0.05


def test_settings_by_name():
    assert configured(DenoiserConfig(), steps=5).steps == 5
    with pytest.raises(Refused, match="no such setting: stepz; choose from steps, epochs"):
        configured(DenoiserConfig(), stepz=5)
    paper = RECIPES["paper"].denoiser
    assert (paper.size, paper.epochs, paper.batch_size, paper.learning_rate) == ("L", 300, 96, 5e-4)


def test_run_folder_is_readable(denoiser_run):
    config = json.loads((denoiser_run / "config.json").read_text())
    assert config["steps"] == 60 and config["mask_loss"] == "bce" and config["data"]
    assert not list(denoiser_run.rglob("*.part*"))
