"""Settings: their types, ranges and choices are checked before any work; the learning rate's curve."""

import math

import pytest

from madad_lite.cli import main
from madad_lite.errors import Refused
from madad_lite.training.loop import learning_rate_factor
from madad_lite.training.settings import (
    ALLOWED,
    RECIPES,
    AutoencoderConfig,
    DenoiserConfig,
    TrainingConfig,
    configured,
)

PARTS = {
    "autoencoder": AutoencoderConfig(),
    "denoiser": DenoiserConfig(),
    "detection": RECIPES["lite"].detection,
}


def test_whole_numbers_may_be_written_as_others():
    config = configured(DenoiserConfig(), steps=1e3, learning_rate=1, epochs=None)
    assert (config.steps, config.learning_rate) == (1000, 1.0) and isinstance(config.steps, int)
    assert DenoiserConfig(batch_size=8.0) == DenoiserConfig(batch_size=8)


@pytest.mark.parametrize(
    ("part", "name", "value", "said"),
    [
        ("detection", "reference", "scan", "one of reconstruction, input"),
        ("detection", "eta", -1, ""),
        ("detection", "mask_threshold", math.nan, ""),
        ("detection", "sigma", "wide", ""),
        ("denoiser", "schedule", "linear", "one of cosine, constant"),
        ("denoiser", "augmentation", "none", "one of lite, authors, wide"),
        ("denoiser", "augmentation", None, "one of lite, authors, wide"),
        ("denoiser", "size", "XXL", "one of nano, fine, XS, S, M, L, XL"),
        ("denoiser", "size", "paper", "one of nano, fine, XS, S, M, L, XL"),
        ("denoiser", "mask_loss", "l2", "one of bce, mse"),
        ("denoiser", "corruption_share", 2, "a number, from 0 to 1"),
        ("denoiser", "dropout", math.nan, "a number, from 0 to 1"),
        ("denoiser", "variants", 0, "a whole number, from 1 to 1000"),
        ("denoiser", "brain_block", 0, "a whole number, from 1 to 1024"),
        ("autoencoder", "size", "XS", "one of nano, fine, paper"),
        ("autoencoder", "latent_channels", -4, "a whole number, from 1 to 256"),
        ("autoencoder", "kl_weight", -1e-6, "a number, 0 or more"),
        ("autoencoder", "steps", 1.5, "a whole number, from 1 to 1000000000"),
        ("autoencoder", "steps", 0, "a whole number, from 1 to 1000000000"),
        ("autoencoder", "steps", True, "a whole number, from 1 to 1000000000"),
        ("autoencoder", "steps", "many", "a whole number, from 1 to 1000000000"),
        pytest.param("autoencoder", "steps", 10**400, "a whole number, from 1 to 1000000000", id="huge"),
        pytest.param("autoencoder", "weight_decay", 10**400, "a number, 0 or more", id="huge decay"),
        ("autoencoder", "epochs", -1, "a number, from 1e-06 to 1000000 or null"),
        ("autoencoder", "learning_rate", "fast", "a number, 1e-12 or more"),
        ("autoencoder", "learning_rate", math.inf, "a number, 1e-12 or more"),
        ("autoencoder", "learning_rate", [1e-3], "a number, 1e-12 or more"),
        ("autoencoder", "ema_decay", math.nan, "a number, from 0 to 1"),
        ("autoencoder", "mixed_precision", "fp8", "one of auto, no, fp16, bf16"),
        ("autoencoder", "validate_every", 0, "a whole number, from 1 to 1000000000"),
        ("autoencoder", "seed", -1, "a whole number, from 0 to 4294967295"),
    ],
)
def test_what_is_not_allowed_is_refused_and_said(part, name, value, said):
    with pytest.raises(ValueError) as refused:
        configured(PARTS[part], **{name: value})
    assert name in str(refused.value) and "\n" not in str(refused.value)
    if said:
        assert (
            isinstance(refused.value, Refused) and str(refused.value) == f"{name}={value!r}: must be {said}"
        )


def test_every_setting_of_a_training_says_what_is_allowed():
    for config in (TrainingConfig(), AutoencoderConfig(), DenoiserConfig()):
        for name in vars(config):
            assert name in ALLOWED or f"{type(config).__name__}.{name}" in ALLOWED


@pytest.mark.parametrize(
    "setting", ["steps=1.5", "learning_rate=fast", "size=XXL", "ema_decay=NaN", "seed=-1"]
)
def test_train_refuses_before_it_looks_at_anything(setting, tmp_path, capsys):
    words = ["train", "denoiser", "--data", str(tmp_path / "nowhere"), "--autoencoder", str(tmp_path / "no")]
    assert main([*words, "--out", str(tmp_path / "run"), "--set", setting]) == 2
    said = capsys.readouterr().err
    assert setting.partition("=")[0] in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine():
    def curve(warmup, schedule, steps=100):
        config = TrainingConfig(schedule=schedule)
        return [learning_rate_factor(step, config, steps, warmup) for step in range(steps)]

    assert curve(0, "constant") == [1.0] * 100
    assert curve(4, "constant")[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = curve(0, "cosine")
    assert (
        cosine[0] == 1.0
        and cosine[50] == pytest.approx(0.5)
        and cosine[99] == pytest.approx(0.000246720, abs=1e-8)
    )
    assert curve(4, "cosine") == [c * min(1, (i + 1) / 4) for i, c in enumerate(cosine)]
