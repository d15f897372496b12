"""The authors' network number for number, and their files: read, checked, refused."""

import argparse
import builtins
import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ldm_reference import AutoencoderKL, pickled_as_theirs

from madad_lite.authors.checkpoints import (
    SCALING,
    autoencoder_from_official,
    denoiser_from_official,
    denoiser_to_official,
    import_official,
    read_official,
)
from madad_lite.authors.safe_load import check_tensors
from madad_lite.autoencoder import decode, downsampling, encode
from madad_lite.cli import main
from madad_lite.denoiser import Denoiser
from madad_lite.pipeline import MadAdPipeline
from madad_lite.training.assemble import load_parts

DATA = Path(__file__).parent / "data"
KEYS = json.loads((DATA / "official_unet_keys.json").read_text())


def filled(size: str, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """A state dict of theirs, filled by a fixed rule, with which the authors' numbers were computed."""
    weights = {}
    for i, (name, shape) in enumerate(zip(KEYS["names"], KEYS[size], strict=True)):
        value = 0.05 * torch.sin(0.37 * torch.arange(np.prod(shape), dtype=torch.float64) + i)
        if len(shape) == 1 and name.endswith("weight"):
            value = value + 1
        weights[name] = value.float().view(shape).to(dtype)
    return weights


@pytest.fixture(scope="module")
def unet_numbers():
    with np.load(DATA / "parity_unet.npz") as arrays:
        return {k: torch.from_numpy(arrays[k]) for k in arrays}


@pytest.mark.parametrize(
    "dtype, ending, tolerance", [(torch.float64, "_f64", 1e-6), (torch.float32, "", 1e-4)]
)
def test_network_gives_the_authors_numbers(unet_numbers, dtype, ending, tolerance):
    denoiser = denoiser_from_official(filled("width32", dtype), num_heads=4)
    with torch.no_grad():
        prediction, logits = denoiser(unet_numbers["unet_x"].to(dtype), unet_numbers["unet_t"])
    keep = (-logits).sigmoid()  # theirs is the chance of "clean"
    for ours, name in ((prediction, "unet_x0"), (keep, "unet_keep")):
        torch.testing.assert_close(ours[..., ::3, ::3], unet_numbers[name + ending], atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", ["width32", "UNet_XS"])
def test_every_tensor_is_used_once_in_both_directions(size):
    weights = filled(size)
    denoiser = denoiser_from_official(weights, num_heads=4)
    back = denoiser_to_official(denoiser)
    assert list(back) == KEYS["names"]
    assert all(torch.equal(back[k], weights[k]) for k in weights)
    count = sum(v.numel() for v in weights.values())
    assert sum(p.numel() for p in denoiser.parameters()) == count
    if size == "UNet_XS":
        assert count == 16_142_149


@pytest.mark.parametrize("size", ["S", "M", "L", "XL"])
def test_every_size_maps_to_the_authors_layout(size):
    with torch.device("meta"):
        theirs = denoiser_to_official(Denoiser.of_size(size))
    assert list(theirs) == KEYS["names"]


def test_our_own_networks_survive_the_round_trip():
    torch.manual_seed(0)
    ours = Denoiser(
        base_channels=32, num_heads=2, channel_multipliers=(1, 2, 4), attention_levels=(True,) * 3
    ).eval()
    again = denoiser_from_official(denoiser_to_official(ours), num_heads=2)
    x, t = torch.randn(1, 4, 16, 16), torch.tensor([4])
    with torch.no_grad():
        for a, b in zip(ours(x, t), again(x, t)):
            torch.testing.assert_close(a, b)


def reference(channels: int = 1, **settings) -> AutoencoderKL:
    torch.manual_seed(0)
    model = AutoencoderKL(channels, **settings).eval()
    with torch.no_grad():
        for p in model.parameters():  # norms too: at their start they would hide a wrong place
            p.add_(0.1 * torch.randn(p.shape))
    return model


@pytest.mark.parametrize("channels, layers", [(1, 1), (3, 2)])
def test_encoder_computes_what_latent_diffusion_does(channels, layers):
    theirs = reference(channels, layers=layers)
    ours = autoencoder_from_official(theirs.state_dict())
    image = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        z = theirs.encode(image.expand(-1, channels, -1, -1))
        torch.testing.assert_close(encode(ours, image), SCALING * z, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            decode(ours, SCALING * z), theirs.decode(z).mean(1, keepdim=True), atol=1e-4, rtol=1e-4
        )
    assert downsampling(ours) == 8 and ours.config.scaling_factor == SCALING == 0.18215


def marking() -> dict[str, torch.Tensor]:
    """Weights of size XS that take every cell for noise."""
    return filled("UNet_XS") | {"mt_out.1.bias": torch.tensor([-5.0])}


@pytest.fixture(scope="module")
def unet_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "unet.pt"
    torch.save(
        {"model": marking(), "args": argparse.Namespace(model="UNet_XS", lr=4e-5, out=Path("runs"))}, path
    )
    return path


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "encoder.pt"
    with pickled_as_theirs():
        torch.save(reference(), path)
    assert "ldm" not in sys.modules
    return path


def test_files_of_the_authors_are_read(unet_file, encoder_file, tmp_path):
    denoiser = read_official(unet_file)
    assert denoiser.config.base_channels == 64 and denoiser.config.num_heads == 4
    whole, plain = read_official(encoder_file), tmp_path / "plain.pt"
    torch.save({"state_dict": reference().state_dict()}, plain)
    inside, prefix = tmp_path / "inside.pt", "first_stage_model."
    others = {"model.diffusion_model.out.2.bias": torch.zeros(4)}
    torch.save({"state_dict": {prefix + k: v for k, v in reference().state_dict().items()} | others}, inside)
    for path in (plain, inside):
        again = read_official(path).state_dict()
        assert all(torch.equal(v, again[k]) for k, v in whole.state_dict().items())
    wrapped, half = tmp_path / "wrapped.pt", tmp_path / "half.pt"
    torch.save({f"module.{k}": v for k, v in marking().items()}, wrapped)
    torch.save({k: v.half() for k, v in filled("UNet_XS").items()}, half)
    expected = denoiser.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in read_official(wrapped).state_dict().items())
    assert all(v.dtype == torch.float32 for v in read_official(half).state_dict().values())


def test_import_and_detect_from_the_command_line(unet_file, encoder_file, patient_scan, tmp_path, capsys):
    out, found = tmp_path / "official", tmp_path / "found"
    assert main(["import-official", str(unet_file), str(encoder_file), "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "unet.pt" in card and "0.18215" in card and "SHA-256" in card
    assert not [p for p in out.rglob("*") if p.is_file() and p.suffix not in (".json", ".safetensors", ".md")]
    pipe = MadAdPipeline.from_pretrained(out)
    assert (pipe.config.gamma, pipe.config.squared, pipe.config.eta, pipe.config.sigma) == (
        0.25,
        False,
        0.5,
        5.0,
    )
    grid = pipe.config.grid
    assert (grid["size"], grid["spacing"], grid["z_spacing"]) == (256, 1.0, 4.0)
    words = [
        "detect",
        patient_scan["image"],
        "--weights",
        str(out),
        "--out",
        str(found),
        "--z-range",
        "10",
        "14",
        "--steps",
        "2",
    ]
    assert main(words) == 0
    anomaly = nib.load(next(found.glob("*_anomaly.nii.gz"))).get_fdata()
    assert np.isfinite(anomaly).all() and anomaly.max() > 0
    assert main(["import-official", str(unet_file), "--out", str(out)]) == 2  # nothing is overwritten
    assert "exists already" in capsys.readouterr().err


def test_one_model_at_a_time(unet_file, encoder_file, tmp_path):
    for name, file in (("denoiser", unet_file), ("encoder", encoder_file)):
        import_official(file, tmp_path / name)
    pipe = load_parts(tmp_path / "encoder", tmp_path / "denoiser")
    slices = torch.full((1, 1, 64, 64), -1.0)
    slices[..., 16:48, 16:48] = 0.1
    assert pipe(slices, num_inference_steps=2, progress=False).anomaly_map.shape == slices.shape
    with pytest.raises(ValueError, match="one UNet, one encoder"):
        import_official([unet_file, unet_file], tmp_path / "twice")


class Attack:
    """Pickles to a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def with_attack(where: str, attack: Attack):
    if where == "args":
        return {
            "model": filled("width32"),
            "args": argparse.Namespace(model="UNet_XS", note=[{"deep": attack}]),
        }
    if where == "weights":
        return {"model": filled("width32") | {"extra": attack}, "args": None}
    if where == "buffer":
        model = reference()
        model.encoder.register_buffer("b", torch.zeros(1))
        model.encoder._buffers[attack] = torch.zeros(1)  # the buffer's name itself
        return model
    return attack


@pytest.mark.parametrize("where", ["whole file", "args", "weights", "buffer"])
@pytest.mark.parametrize(
    "function, name", [(os.system, "system"), (builtins.eval, "eval"), (builtins.exec, "exec")]
)
def test_nothing_of_a_file_is_run(where, function, name, tmp_path, capsys):
    path, ran, out = tmp_path / "bad.pt", tmp_path / "ran", tmp_path / "out"
    code = f"touch {ran}" if name == "system" else f"open({str(ran)!r}, 'w')"
    with pickled_as_theirs():
        torch.save(with_attack(where, Attack(function, code)), path)
    assert main(["import-official", str(path), "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and "bad.pt" in said and "refused" in said and name in said
    assert not ran.exists() and sorted(tmp_path.iterdir()) == [path]


def changed(size: str = "width32", **changes) -> dict:
    weights = filled(size)
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del weights[key]
        else:
            weights[key] = value
    return weights


@pytest.mark.parametrize(
    "content, said",
    [
        (lambda: changed(out__2__bias=None), "missing (out.2.bias"),
        (lambda: changed(surplus=torch.zeros(1)), "unexpected (surplus"),
        (lambda: changed(out__2__bias=torch.zeros(5)), "of another shape (out.2.bias (5,) for (4,)"),
        (lambda: changed(out__2__bias=torch.full((4,), float("nan"))), "not finite (out.2.bias"),
        (lambda: changed(input_blocks__0__0__weight=None), "is not a UNet of the authors"),
        (lambda: {"model": [1, 2, 3]}, "no tensor"),
        (lambda: [torch.zeros(1)], "no weights by name"),
        (
            lambda: {k: v for k, v in reference().state_dict().items() if k != "decoder.conv_out.bias"},
            "decoder.conv_out.bias",
        ),
        (lambda: reference().state_dict() | {"encoder.down.0.attn.0.q.weight": torch.zeros(1)}, "unexpected"),
        (
            lambda: reference().state_dict() | {"post_quant_conv.weight": torch.zeros(3, 4, 1, 1)},
            "of another shape",
        ),
    ],
)
def test_other_weights_are_refused_in_one_line(content, said, tmp_path, capsys):
    path = tmp_path / "other.pt"
    torch.save(content(), path)
    assert main(["import-official", str(path), "--out", str(tmp_path / "out"), "--heads", "4"]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message and "other.pt" in message and said in message
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.999])
def test_truncated_files_are_refused_in_one_line(kept, unet_file, tmp_path, capsys):
    path = tmp_path / "cut.pt"
    content = unet_file.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert main(["import-official", str(path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message and "cut.pt" in message and "PyTorch file" in message
    assert sorted(tmp_path.iterdir()) == [path]


def test_unknown_width_asks_for_the_heads(tmp_path):
    with pytest.raises(ValueError, match="num_heads"):
        denoiser_from_official(filled("width32"))
    with pytest.raises(FileNotFoundError, match="nothing.pt"):
        read_official(tmp_path / "nothing.pt")


def test_no_more_weights_than_a_limit():
    half = torch.empty(500_000_000)  # 2 GB, none of which is touched
    with pytest.raises(ValueError, match="holds 6.0 GB of weights, more than 4 GB"):
        check_tensors({"a": half, "b": half, "c": half})


def test_an_encoder_and_a_unet_that_are_no_pair(tmp_path):
    torch.save(filled("width32"), tmp_path / "unet.pt")
    torch.save(reference(latent=3).state_dict(), tmp_path / "encoder.pt")
    with pytest.raises(ValueError, match="encoder.pt: their latents have .* channels; not a pair"):
        import_official([tmp_path / "unet.pt", tmp_path / "encoder.pt"], tmp_path / "out", num_heads=4)
    assert not (tmp_path / "out").exists()
