"""A model's folder: what is read from it, and what is refused, in one line that names the file."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging
from safetensors.torch import load_file, save_file
from tiny_models import tiny  # noqa: F401

from madad_lite.autoencoder import make_autoencoder
from madad_lite.denoiser import Denoiser
from madad_lite.diffusion import make_scheduler
from madad_lite.errors import WeightsError
from madad_lite.pipeline import MadAdPipeline
from madad_lite.training.assemble import load_parts
from madad_lite.weights import SHARED_AUTOENCODER, WEIGHTS, folder, shipped

TENSORS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def good(tiny, tmp_path_factory):  # noqa: F811
    """A pipeline as it is saved."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("weights") / "good"
    parts = make_autoencoder("tiny"), Denoiser.of_size("tiny"), make_scheduler()
    MadAdPipeline(*parts, eta=0.25, decision_threshold=0.4).save_pretrained(out)
    return out


@pytest.fixture
def model(good, tmp_path):
    """A copy, to damage."""
    return Path(shutil.copytree(good, tmp_path / "model"))


def change(file: Path, **values) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **values}))


def drop(file: Path, key: str) -> None:
    content = json.loads(file.read_text())
    del content[key]
    file.write_text(json.dumps(content))


def retensor(file: Path, make) -> None:
    save_file({k: v.contiguous() for k, v in make(load_file(file)).items()}, file)


def first(tensors: dict) -> str:
    return sorted(tensors)[0]


def swap(model: Path) -> None:
    (model / "autoencoder").rename(model / "x")
    (model / "denoiser").rename(model / "autoencoder")
    (model / "x").rename(model / "denoiser")


def index(**values):
    return lambda m: change(m / "model_index.json", **values)


def config(part: str, **values):
    return lambda m: change(m / part / "config.json", **values)


def schedule(**values):
    return lambda m: change(m / "scheduler" / "scheduler_config.json", **values)


def text(file: str, content: str):
    return lambda m: (m / file).write_text(content)


def tensors(make):
    return lambda m: retensor(m / "denoiser" / TENSORS, make)


GRID = {"spacing": 2.0, "size": 96, "z_range": [-62.0, 80.0]}
BAD = {
    # foreign code
    "another pipeline": (
        index(_class_name="StableDiffusionPipeline"),
        "model_index.json",
        "not a MadAdPipeline",
    ),
    "a pipeline of a module": (index(_class_name=["evil", "X"]), "model_index.json", "not a MadAdPipeline"),
    "a part of a module": (index(denoiser=["evil", "Y"]), "model_index.json", "denoiser must be"),
    "an encoder of diffusers": (
        index(autoencoder=["diffusers", "VQModel"]),
        "model_index.json",
        "autoencoder",
    ),
    "a scheduler of os": (index(scheduler=["os", "system"]), "model_index.json", "scheduler must be"),
    "no encoder": (index(autoencoder=[None, None]), "model_index.json", "autoencoder must be"),
    "no denoiser named": (lambda m: drop(m / "model_index.json", "denoiser"), "model_index.json", "denoiser"),
    "code beside": (text("evil.py", ""), "evil.py", "holds no code"),
    "code in a part": (text("denoiser/evil.py", ""), "evil.py", "holds no code"),
    # the index
    "null": (text("model_index.json", "null"), "model_index.json", "NoneType"),
    "a list": (text("model_index.json", "[1]"), "model_index.json", "not a MadAdPipeline"),
    "cut": (text("model_index.json", '{"_class_name": "Mad'), "model_index.json", "damaged"),
    "not text": (
        lambda m: (m / "model_index.json").write_bytes(b"\xff\xfe\x00"),
        "model_index.json",
        "damaged",
    ),
    "nested": (text("model_index.json", "[" * 100_000), "model_index.json", "damaged"),
    "large": (text("model_index.json", " " * 1_100_000), "model_index.json", "bytes"),
    "unknown setting": (index(gama=0.2), "model_index.json", "gama"),
    "eta": (index(eta=2), "model_index.json", "eta lies between 0 and 1"),
    "nan": (index(sigma=float("nan")), "model_index.json", "sigma"),
    "a text for a number": (index(gamma="0.2"), "model_index.json", "gamma must be positive"),
    "contrast": (index(contrast="pd"), "model_index.json", "no such contrast: 'pd'; choose one of t1, "),
    "steps": (index(num_inference_steps=0), "model_index.json", "num_inference_steps"),
    "decision": (index(decision_threshold="a"), "model_index.json", "not supported between"),
    "grid of 1.8 PiB": (
        index(grid={**GRID, "size": 8000, "spacing": 1e-4}),
        "model_index.json",
        "no usable grid",
    ),
    "grid without size": (index(grid={"spacing": 2.0}), "model_index.json", "no usable grid"),
    "grid upside down": (index(grid={**GRID, "z_range": [80, -62]}), "model_index.json", "no usable grid"),
    "grid is a text": (index(grid="96"), "model_index.json", "no usable grid"),
    # the parts' configs
    "swapped": (swap, "autoencoder/config.json", "describes 'Denoiser', not a AutoencoderKL"),
    "layers": (config("autoencoder", layers_per_block=3000), "autoencoder/config.json", "layers_per_block"),
    "channels": (config("autoencoder", block_out_channels=[10**9]), "autoencoder/config.json", "block_out_"),
    "levels": (config("denoiser", channel_multipliers=[1] * 50), "denoiser/config.json", "more than 16"),
    "heads": (config("denoiser", num_heads=0), "denoiser/config.json", "0 heads"),
    "width": (config("denoiser", base_channels=8192), "denoiser/config.json", "parameters"),
    "width of text": (config("denoiser", base_channels="32"), "denoiser/config.json", ""),
    "folding": (config("autoencoder", _folding=2), "autoencoder/config.json", "folding of 2"),
    "no folding": (
        lambda m: drop(m / "autoencoder" / "config.json", "_folding"),
        "config.json",
        "folding of 1",
    ),
    "scale": (config("autoencoder", scaling_factor=0), "autoencoder/config.json", "scaling_factor"),
    "latents": (config("denoiser", latent_channels=3), TENSORS, "asks for"),
    "block of no kind": (config("autoencoder", down_block_types=["X"]), "autoencoder/config.json", "X"),
    "no config": (lambda m: (m / "denoiser/config.json").unlink(), "denoiser/config.json", "no such file"),
    # the schedule
    "endless": (schedule(num_train_timesteps=10**10), "scheduler_config.json", "num_train_timesteps"),
    "noise": (schedule(prediction_type="epsilon"), "scheduler_config.json", "prediction_type"),
    "no such schedule": (schedule(beta_schedule="square"), "scheduler_config.json", "square"),
    # the tensors
    "no tensors": (lambda m: (m / "denoiser" / TENSORS).unlink(), TENSORS, "no such file"),
    "cut tensors": (lambda m: (m / "denoiser" / TENSORS).write_bytes(b"\x10" * 100), TENSORS, "damaged"),
    "one missing": (tensors(lambda t: {k: v for k, v in t.items() if k != first(t)}), TENSORS, "is missing"),
    "one too many": (tensors(lambda t: {**t, "more": torch.ones(1)}), TENSORS, "more belongs to no"),
    "a shape": (tensors(lambda t: {**t, first(t): torch.ones(3)}), TENSORS, "asks for"),
    "integers": (tensors(lambda t: {**t, first(t): t[first(t)].long()}), TENSORS, "floating-point"),
    "not a number": (tensors(lambda t: {**t, first(t): t[first(t)] * torch.nan}), TENSORS, "NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_in_one_line_that_names_the_file(case, model):
    damage, file, said = BAD[case]
    damage(model)
    with pytest.raises(WeightsError) as error:
        MadAdPipeline.from_pretrained(model)
    message = str(error.value)
    assert message.startswith(str(model)) and file in message and said in message and "\n" not in message


def test_nothing_of_a_folder_is_imported(model, monkeypatch):
    """Neither a module in the folder, nor one that could be found elsewhere, nor a pickle."""
    (model / "evil_module.py").write_text("raise SystemExit('was run')")
    monkeypatch.syspath_prepend(str(model))
    for entry in ({"_class_name": ["evil_module", "X"]}, {"denoiser": ["evil_module", "Y"]}):
        change(model / "model_index.json", **entry)
        with pytest.raises(WeightsError):
            MadAdPipeline.from_pretrained(model)
    (model / "evil_module.py").rename(model.parent / "evil_module.py")
    monkeypatch.syspath_prepend(str(model.parent))
    with pytest.raises(WeightsError):
        MadAdPipeline.from_pretrained(model)
    assert "evil_module" not in sys.modules


def test_pickled_weights_are_never_read(model):
    torch.save(load_file(model / "denoiser" / TENSORS), model / "denoiser" / "diffusion_pytorch_model.bin")
    (model / "denoiser" / TENSORS).unlink()
    with pytest.raises(WeightsError, match="no such file"):
        MadAdPipeline.from_pretrained(model)


def test_what_is_loaded_is_what_was_saved(good):
    pipe = MadAdPipeline.from_pretrained(good)
    assert pipe.config.eta == 0.25 and pipe.config.decision_threshold == 0.4
    for part in ("autoencoder", "denoiser"):
        saved = load_file(good / part / TENSORS)
        assert all(torch.equal(v, saved[k]) for k, v in getattr(pipe, part).state_dict().items())
        assert not getattr(pipe, part).training
    plain = AutoencoderKL.from_pretrained(good / "autoencoder")  # diffusers' own loading agrees
    assert plain.config["_folding"] == pipe.autoencoder.config["_folding"] == 4


def test_settings_and_parts_can_be_given_in_place_of_the_folders(good):
    network = Denoiser.of_size("tiny")
    pipe = MadAdPipeline.from_pretrained(good, eta=0.0, denoiser=network)
    assert pipe.denoiser is network and pipe.config.eta == 0 and pipe.config.decision_threshold == 0.4
    with pytest.raises(TypeError, match="gama"):
        MadAdPipeline.from_pretrained(good, gama=0.1)
    with pytest.raises(ValueError, match="eta"):
        MadAdPipeline.from_pretrained(good, eta=3)


def test_parts_go_through_the_same_checks(good, model):
    pipe = load_parts(good / "autoencoder", good / "denoiser", contrast="flair")
    assert pipe.config.contrast == "flair"
    with pytest.raises(WeightsError, match="not a AutoencoderKL"):
        load_parts(good / "denoiser", good / "autoencoder")
    BAD["one missing"][0](model)
    with pytest.raises(WeightsError, match="is missing"):
        load_parts(good / "autoencoder", model / "denoiser")
    with pytest.raises(ValueError, match="contrast"):
        load_parts(good / "autoencoder", good / "denoiser", contrast="pd")


def test_loading_says_nothing_and_leaves_progress_bars_as_they_are(caplog, capfd, recwarn):
    logging.enable_propagation()  # so that caplog sees what diffusers would print
    logging.disable_progress_bar()
    try:
        for name in shipped():
            MadAdPipeline.from_pretrained(name)
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.disable_propagation()
        logging.enable_progress_bar()
    assert not caplog.records and not recwarn.list and capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["runs/modle", "./modle", "/no/such", "a/b/c", "t9", "runs", "..", ""])
def test_a_mistyped_folder_does_not_go_to_the_hub(name, tmp_path, monkeypatch):
    (tmp_path / "runs" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(WeightsError, match="neither a shipped model .* nor a folder"):
        MadAdPipeline.from_pretrained(name)


def test_a_hub_id_is_downloaded_without_what_is_not_a_models(good, tmp_path):
    """From a hub's cache, as huggingface_hub lays it out."""
    repository = tmp_path / "models--someone--brains"
    commit = "0" * 40
    shutil.copytree(good, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    pipe = MadAdPipeline.from_pretrained("someone/brains", cache_dir=tmp_path, local_files_only=True)
    assert pipe.config.eta == 0.25
    assert not any(f.endswith((".py", ".bin")) for f in folder.FILES)
    with pytest.raises(WeightsError, match="someone/else: no such folder here, and not to be had") as error:
        MadAdPipeline.from_pretrained("someone/else", cache_dir=tmp_path, local_files_only=True)
    assert "\n" not in str(error.value)


def test_shipped_models_share_an_autoencoder_that_says_how_it_folds(tmp_path):
    content = json.loads((SHARED_AUTOENCODER / "config.json").read_text())
    assert content["_folding"] == 4 and "_name_or_path" not in content
    saved = load_file(SHARED_AUTOENCODER / TENSORS)
    for name in shipped():
        pipe = MadAdPipeline.from_pretrained(WEIGHTS / name)
        assert all(torch.equal(v, saved[k].float()) for k, v in pipe.autoencoder.state_dict().items())
    pipe.save_pretrained(tmp_path / "own")  # whole, with an autoencoder of its own
    assert folder.autoencoder_folder(tmp_path / "own") == tmp_path / "own" / "autoencoder"
    MadAdPipeline.from_pretrained(tmp_path / "own")
    shutil.copytree(WEIGHTS / "t1", tmp_path / "t1")  # torn from it: never another's by mistake
    with pytest.raises(WeightsError, match="no such file"):
        MadAdPipeline.from_pretrained(tmp_path / "t1")


def test_shipped_names_in_any_case(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder.find_folder("T1") == folder.find_folder("t1") and folder.find_folder(
        "Flair"
    ) == folder.find_folder("flair")
    Path("T1").mkdir()  # the user's own, and no model
    with pytest.raises(WeightsError, match="T1: neither a shipped model"):
        folder.find_folder("T1")
