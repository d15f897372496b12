"""ONNX files give the numbers of torch, and their JSON says all that is needed to use them."""

import json
from dataclasses import asdict

import numpy as np
import onnxruntime
import pytest
import torch

from madad_lite import MadAdPipeline
from madad_lite.cli import main
from madad_lite.onnx_export import export_onnx
from madad_lite.settings import DetectionSettings

PARTS = ("encoder", "denoiser", "decoder")


def run(folder, part, **inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / f"{part}.onnx", options)
    return [torch.from_numpy(x) for x in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


def difference(a, b):
    return float((a - b).abs().max())


@pytest.fixture(scope="module", params=["t1", "flair"])
def exported(request, tmp_path_factory):
    """(the pipeline, its export in single precision, and in half)."""
    out = tmp_path_factory.mktemp("onnx")
    folders = [export_onnx(request.param, out / name, half=name == "half") for name in ("single", "half")]
    return MadAdPipeline.from_pretrained(request.param), *folders


@torch.no_grad()
def test_onnxruntime_gives_what_torch_gives(exported, prepared_cohort):
    """Half precision too: the shipped weights were stored in it, so that nothing is lost."""
    pipe, *folders = exported
    side = pipe.config.grid["size"]
    slices = np.load(next(prepared_cohort.glob("**/*image*.npy")))
    x0 = torch.nn.functional.interpolate(
        torch.from_numpy(slices[len(slices) // 2].astype(np.float32))[None, None], (side, side)
    )
    z0 = pipe.encode(x0)
    t = torch.tensor([7])
    z0_hat, logits = pipe.denoiser(z0, t)
    for folder in folders:
        assert difference(run(folder, "encoder", x0=x0)[0], z0) < 1e-5
        found = run(folder, "denoiser", z_t=z0, t=t)
        assert difference(found[0], z0_hat) < 1e-5
        assert difference(found[1].sigmoid(), logits.sigmoid()) < 1e-5
        assert difference(run(folder, "decoder", z=z0)[0].clamp(-1, 1), pipe.decode(z0)) < 1e-5


def test_half_takes_half_the_room(exported):
    _, single, half = exported
    sizes = [sum((f / f"{p}.onnx").stat().st_size for p in PARTS) for f in (single, half)]
    assert sizes[0] < 18e6 and 0.45 < sizes[1] / sizes[0] < 0.55


def test_settings_are_those_of_the_weights(exported):
    pipe, folder, _ = exported
    content = json.loads((folder / "settings.json").read_text())
    for name, value in asdict(DetectionSettings.of(pipe.config)).items():
        assert content[name] == value, name
    for name in ("contrast", "grid", "decision_threshold"):
        assert content[name] == pipe.config[name]
    assert content["timesteps"] == list(range(9, -1, -1))
    assert np.allclose(content["alphas_cumprod"], pipe.scheduler.alphas_cumprod, atol=1e-7)
    assert content["image"] == [1, 1, 96, 96] and content["latent"] == [1, 4, 24, 24]
    assert "licen" in (folder / "README.md").read_text().lower()


def test_command_refuses_what_it_would_overwrite(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert main(["export-onnx", "t1", "--out", str(out), "--force"]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["notes.txt"]
    assert main(["export-onnx", "nothing_such", "--out", str(tmp_path / "new")]) == 2
    assert "neither a shipped model" in capsys.readouterr().err
    (out / "notes.txt").unlink()
    (out / "settings.json").write_text('{"alphas_cumprod": [1.0], "grid": {}}')  # an earlier export, then
    assert main(["export-onnx", "t1", "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err


def test_command_says_which_package_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("madad_lite.onnx_export.find_spec", lambda name: None)
    assert main(["export-onnx", "t1", "--out", str(tmp_path / "out")]) == 2
    assert "madad-lite[onnx]" in capsys.readouterr().err
