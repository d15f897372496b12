"""The plain baselines of the speed benchmarks compute what the package computes, and reports say what was
measured.
"""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measuring, speed_gpu, speed_metrics  # noqa: E402
from benchmarks.plain_detection import plain_maps, with_plain_attention  # noqa: E402
from benchmarks.plain_training import plain_masks  # noqa: E402
from benchmarks.speed_training import Case  # noqa: E402
from madad_lite import MadAdPipeline
from madad_lite.evaluation import metrics  # noqa: E402
from madad_lite.masking import random_patch_mask  # noqa: E402


def test_plain_and_fast_training_have_the_same_loss_and_gradient():
    case = Case("nano", "nano", 2, 64, torch.device("cpu"))
    loss, gradient = case.disagreement()
    assert loss < 1e-5 and gradient < 1e-4


def test_a_step_of_either_training_moves_the_weights():
    case = Case("nano", "nano", 2, 32, torch.device("cpu"))
    fast, before = case.fast(), case.model.latent_head[2].weight.clone()
    case.fast_step(fast)
    case.plain.step(case.images, case.brain)
    for model in (fast.model, case.plain.model):
        assert not torch.equal(model.latent_head[2].weight, before)


def test_what_is_measured_on_a_gpu_runs_on_a_cpu():
    case = Case("nano", "nano", 2, 32, torch.device("cpu"))
    fast = case.fast()
    assert speed_gpu.synchronisations(fast, case) is None  # PyTorch counts them on a GPU only
    assert set(speed_gpu.with_loader(fast, case, 1)) == {"one batch, on the device", "batches of the loader"}


def test_without_a_gpu_its_targets_are_open(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    content = speed_gpu.measure().content
    assert content["targets"] and not content["tables"]
    assert all(t["met"] is None and t["why_open"] == "no GPU here" for t in content["targets"])


def test_plain_masks_follow_the_same_law():
    random.seed(0), torch.manual_seed(0)
    brain = torch.rand(16, 1, 32, 32) < 0.7
    plain = torch.stack([plain_masks(brain) for _ in range(150)])
    ours = torch.stack([random_patch_mask(16, (32, 32), brain=brain) for _ in range(150)])
    for masks in (plain, ours):
        assert masks.shape == (150, 16, 1, 32, 32) and not (masks.bool() & ~brain).any()
        assert set(masks.unique().tolist()) == {0.0, 1.0}
    shares = [m.mean((2, 3, 4)).flatten().sort().values / 0.7 for m in (plain, ours)]  # of each sample
    assert shares[0].mean().item() == pytest.approx(shares[1].mean().item(), abs=0.01)
    assert (shares[0] - shares[1]).abs().max() < 0.1


def test_plain_and_batched_detection_give_the_same_maps():
    torch.manual_seed(0)
    pipe = MadAdPipeline.from_pretrained("t1")
    size = pipe.config.grid["size"]
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    brain = ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1).expand(2, 1, size, size)
    images = torch.where(brain, (0.1 * torch.randn(2, 1, size, size)).clamp(-1, 1), -1.0)
    images[0, 0, 40:50, 40:50] = -0.7
    ours = pipe(images, brain=brain, eta=0.0, progress=False).anomaly_map
    plain = plain_maps(with_plain_attention(pipe), images, brain)
    assert plain.shape == ours.shape and plain.max() > 0
    assert (plain - ours).abs().median() < 1e-5
    assert (
        (plain - ours).abs() > 1e-3
    ).float().mean() < 1e-2  # a cell at the very threshold may fall on either side


def test_plain_metrics_are_the_packages():
    score, truth = speed_metrics.maps(4)
    score, truth = score[:, ::4, ::4], truth[:, ::4, ::4]
    plain, ours = speed_metrics.plain_metrics(score, truth), speed_metrics.four_metrics(score, truth)
    assert plain == pytest.approx(speed_metrics.plain_metrics(score, truth, np.sum))
    assert plain.pop("pooled_max_dice") <= ours.pop(
        "pooled_max_dice"
    )  # the exact one looks at every threshold
    assert plain == pytest.approx(ours, abs=1e-6)
    streamed = speed_metrics.streamed(score, truth, batch=3, times=2)
    assert streamed["slices"] == 8
    assert streamed["ap"] == pytest.approx(metrics.average_precision(score, truth), abs=1e-4)


def test_a_report_says_which_targets_are_missed_and_by_how_much(monkeypatch):
    monkeypatch.setattr(
        torch, "__version__", "2.14.1+cu130"
    )  # the build, which the package's metadata leave out
    report = measuring.Report("training")
    report.target("a step", 24.0, "<=", 12.0, "s")
    report.target("a ratio", 13.0, ">=", 12.0, "times as fast")
    report.target("on a GPU", None, ">=", 4.0, "times as fast", "no GPU here")
    report.table("Stages", [{"stage": "encode", "seconds": 0.12345}, {"stage": "decode", "seconds": 1234.5}])
    text = measuring.markdown(report.content | {"seconds": 3.0})
    assert "| a step | <= 12 s | 24 s | no, off by a factor of 2.00 |" in text
    assert "| a ratio | >= 12 times as fast | 13 times as fast | yes |" in text
    assert "| on a GPU | >= 4 times as fast | - | open: no GPU here |" in text
    assert "| encode | 0.123 |\n| decode | 1234 |" in text
    assert "torch 2.14.1+cu130, " in text


def test_times_of_interleaved_ways_are_paired():
    calls = []
    times = measuring.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4  # the first of each warms up
    assert {k: len(v) for k, v in times.items()} == {"a": 3, "b": 3}


def test_a_benchmark_that_was_not_run_here_keeps_its_figures(tmp_path, monkeypatch):
    from benchmarks import __main__ as main

    page = tmp_path / "page.md"
    page.write_text(f"head\n{main.BEGIN}\n\n## training\n\nold\n\n## start\n\nold too\n\n{main.END}\ntail\n")
    monkeypatch.setattr(main, "PAGE", page)
    monkeypatch.setattr(main, "RESULTS", tmp_path)
    monkeypatch.setattr(main, "markdown", lambda report: f"## {report['name']}\n\nnew\n")
    for name in ("start", "metrics"):
        (tmp_path / f"{name}.json").write_text(f'{{"name": "{name}"}}')
    main.write_page()
    wanted = "## training\n\nold\n\n## metrics\n\nnew\n\n## start\n\nnew"
    assert page.read_text() == f"head\n{main.BEGIN}\n\n{wanted}\n\n{main.END}\ntail\n"
