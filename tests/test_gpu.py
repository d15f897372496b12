"""Training and detection on an NVIDIA GPU, in both half precisions."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speed_gpu import synchronisations  # noqa: E402
from benchmarks.speed_training import Case  # noqa: E402
from madad_lite import MadAdPipeline
from madad_lite.plotting import read_log
from madad_lite.training.autoencoder import train_autoencoder
from madad_lite.training.denoiser import train_denoiser
from madad_lite.training.loader import worker_count
from madad_lite.training.settings import AutoencoderConfig, DenoiserConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and there is none"),
]
CUDA = torch.device("cuda")
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("precision", TYPES)
def test_both_trainings_learn_in_half_precision(precision, prepared_cohort, tmp_path):
    brief = {"batch_size": 8, "warmup_steps": 5, "validate_every": 20, "mixed_precision": precision}
    encoder = train_autoencoder(
        prepared_cohort, tmp_path / "encoder", AutoencoderConfig(steps=60, **brief), progress=False
    )
    healer = train_denoiser(
        prepared_cohort,
        encoder / "best",
        tmp_path / "healer",
        DenoiserConfig(steps=60, **brief),
        progress=False,
    )
    for run in (encoder, healer):
        losses = [line["val_loss"] for line in read_log(run) if "val_loss" in line]
        assert all(math.isfinite(loss) for loss in losses) and losses[-1] < losses[0]


@pytest.mark.parametrize("precision", TYPES)
def test_detection_in_half_precision_gives_nearly_the_same_map(precision, patient_scan):
    expected, found = (
        pipe(patient_scan["image"], brain=patient_scan["brain"], eta=0.0, progress=False).anomaly_map
        for pipe in (
            MadAdPipeline.from_pretrained("t1"),
            MadAdPipeline.from_pretrained("t1").to("cuda", TYPES[precision]),
        )
    )
    assert found.device.type == "cpu" and found.dtype == torch.float32
    # where the network was of two minds a cell may be replaced in one and not in the other
    assert ((found - expected).abs() > 0.05).float().mean() < 0.01
    assert (found * expected).sum() / (found.norm() * expected.norm()) > 0.95


def test_a_step_never_waits_for_the_gpu_and_its_batches_are_those_of_a_cpu():
    case, plain = (Case("nano", "nano", 4, 64, device) for device in (CUDA, torch.device("cpu")))
    assert worker_count(CUDA) > 0 and worker_count(torch.device("cpu")) == 0
    plain.mean, plain.std, plain.brain = case.mean, case.std, case.brain
    for ahead, own in zip(case.drawn(5), plain.drawn(5)):
        assert all(v.is_pinned() and torch.equal(v, own[k]) for k, v in ahead.items())
    assert synchronisations(case.fast(), case) == 0
