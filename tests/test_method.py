"""The method's files: few lines, one source of defaults, public functions that say what they take and give."""

import importlib
import inspect
from dataclasses import fields
from pathlib import Path

import pytest

import madad_lite
from madad_lite.diffusion import make_scheduler, selective_reverse
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scoring import image_difference, latent_difference, mean_predicted_mask
from madad_lite.settings import DetectionSettings
from madad_lite.training.settings import RECIPES, configured

FILES = ("masking", "diffusion", "denoiser", "autoencoder", "scoring", "pipeline")
ROOMS = ("extensions.neighbouring_slices", "extensions.intensity_weight", "extensions.memory", "settings")
ROOMS += ("scans.given", "scans.output", "weights", "weights.folder")


def test_the_method_is_read_in_one_sitting():
    root = Path(madad_lite.__file__).parent
    assert sum(len((root / f"{name}.py").read_text().splitlines()) for name in FILES) <= 750


def public(module):
    for name, item in vars(module).items():
        if name.startswith("_") or getattr(item, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(item):
            yield name, item
        if inspect.isclass(item):
            own = {
                n: getattr(f, "__func__", f)
                for n, f in vars(item).items()
                if n in ("__call__", "__init__") or n[0] != "_"
            }
            yield from ((f"{name}.{n}", f) for n, f in own.items() if inspect.isfunction(f))


@pytest.mark.parametrize("name", FILES + ROOMS)
def test_public_functions_are_annotated_and_described(name):
    module = importlib.import_module(f"madad_lite.{name}")
    found = dict(public(module))
    assert found
    for where, function in found.items():
        signature = inspect.signature(function)
        plain = [
            p.name
            for p in signature.parameters.values()
            if p.annotation is p.empty and p.name not in ("self", "cls") and p.kind is not p.VAR_KEYWORD
        ]
        assert not plain, f"{where}: no annotation of {plain}"
        if not where.endswith("__init__"):
            assert signature.return_annotation is not signature.empty, where
            assert inspect.getdoc(function), where


def test_the_package_shows_what_it_loads_later():
    assert {"MadAdPipeline", "MadAdOutput", "Denoiser"} <= set(dir(madad_lite))


# ---------------------------------------------------------------- one source of detection's defaults


def defaults(function) -> dict:
    parameters = inspect.signature(function).parameters.items()
    found = {k: p.default for k, p in parameters if p.default is not p.empty}
    found["mask_threshold"] = found.pop("threshold", found.get("mask_threshold"))
    return found


def test_every_default_of_detection_is_the_settings():
    expected = {f.name: f.default for f in fields(DetectionSettings)}
    pipeline = defaults(MadAdPipeline.__init__)
    assert {k: pipeline[k] for k in expected} == expected
    for function in (selective_reverse, image_difference):
        own = defaults(function)
        shared = own.keys() & expected.keys() - {"mask_threshold"}
        assert len(shared) >= 2 and {k: own[k] for k in shared} == {k: expected[k] for k in shared}
    assert defaults(selective_reverse)["mask_threshold"] == expected["mask_threshold"]
    for function in (latent_difference, mean_predicted_mask):
        assert defaults(function)["sigma"] == expected["sigma"]
    assert all(isinstance(r.detection, DetectionSettings) for r in RECIPES.values())


def test_a_models_own_settings_are_used(monkeypatch):
    """num_inference_steps too."""
    import torch

    from madad_lite.autoencoder import AUTOENCODERS, make_autoencoder
    from madad_lite.denoiser import Denoiser

    monkeypatch.setitem(AUTOENCODERS, "small", {**AUTOENCODERS["nano"], "block_out_channels": (16,)})
    parts = make_autoencoder("small"), Denoiser.of_size("nano"), make_scheduler()
    pipe = MadAdPipeline(*parts, num_inference_steps=2)
    images = torch.zeros(1, 1, 32, 32)
    assert pipe(images, progress=False).timesteps.tolist() == [5, 0]
    assert len(pipe(images, num_inference_steps=5, progress=False).timesteps) == 5
    pipe.register_to_config(sigma=-1.0)
    with pytest.raises(ValueError, match="sigma"):
        pipe(images, progress=False)


NAN = float("nan")


@pytest.mark.parametrize(
    "bad",
    [
        dict(eta=-0.1), dict(eta=1.1), dict(eta=NAN), dict(eta="a"), dict(eta=None), dict(eta=True),
        dict(mask_threshold=NAN), dict(mask_threshold=-1), dict(sigma=-1.0), dict(sigma=NAN), dict(sigma=float("inf")),
        dict(gamma=0.0), dict(gamma=-1), dict(gamma=NAN), dict(gamma=float("inf")), dict(gamma="0.2"),
        dict(squared=1), dict(weighted="yes"), dict(mask_floor=1.1), dict(reference="scan"), dict(intensity_weight=-1),
        dict(neighbour_sigma=NAN), dict(num_inference_steps=0), dict(num_inference_steps=1e3),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_in_one_line(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=name) as error:
        configured(RECIPES["lite"].detection, **bad)
    assert "\n" not in str(error.value)
    assert configured(RECIPES["lite"].detection, gamma=None, sigma=0).gamma is None


@pytest.mark.parametrize("bad", [dict(num_inference_steps=11), dict(eta=2.0), dict(threshold=NAN)])
def test_the_reverse_process_refuses_them_too(bad):
    def denoiser(z_t, t):
        pytest.fail("worked")

    import torch

    with pytest.raises(ValueError):
        selective_reverse(denoiser, torch.zeros(1, 4, 8, 8), make_scheduler(), **bad)
