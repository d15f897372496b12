"""Moving a control calls the plotting function with the new value and changes the picture."""

import base64
from types import SimpleNamespace

import matplotlib

matplotlib.use("agg")

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from madad_lite import plotting
from madad_lite.plotting import widgets

N, SIZE, LATENT, STEPS = 4, 16, 4, 3
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def out():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(N, 1, SIZE, SIZE, generator=generator) - 0.5
    score = torch.rand(N, 1, SIZE, SIZE, generator=generator)
    score[2] += 1
    probability = torch.rand(STEPS, N, 1, LATENT, LATENT, generator=generator)
    return SimpleNamespace(
        image=image,
        reconstruction=image,
        healed=image,
        anomaly_map=score / 2,
        brain=torch.ones(N, 1, SIZE, SIZE, dtype=torch.bool),
        mask_probability=probability,
        replaced=probability > 0.5,
        timesteps=torch.tensor([9, 5, 0]),
        prepared=None,
    )


@pytest.fixture
def decoded():
    return np.random.default_rng(0).uniform(-1, 1, (STEPS + 1, SIZE, SIZE))


@pytest.fixture
def calls(monkeypatch):
    """Watch a plotting function: its arguments are noted, the figure is drawn as ever."""

    def watch(name):
        seen, real = [], getattr(plotting, name)

        def spy(*args, **kwargs):
            seen.append(args)
            return real(*args, **kwargs)

        monkeypatch.setattr(plotting, name, spy)
        return seen

    return watch


@pytest.fixture(autouse=True)
def no_open_figures():
    plt.close("all")
    yield
    assert plt.get_fignums() == []


def test_step_slider_walks_through_the_reverse_process(out, decoded, calls):
    seen = calls("reverse_step")
    box = widgets.step_slider(out, 1, decoded)
    slider, picture = box.children
    assert isinstance(slider, ipywidgets.IntSlider) and (slider.min, slider.max) == (1, STEPS)
    before = picture.value
    assert bytes(before).startswith(PNG)
    slider.value = 3
    assert [(index, step) for _, index, step, _ in seen[1:]] == [(1, 0), (1, 2)]
    assert bytes(picture.value).startswith(PNG) and picture.value != before


def test_threshold_slider_cuts_the_map_anew(out, calls):
    seen = calls("threshold_figure")
    truth = np.zeros((SIZE, SIZE))
    truth[2:5, 2:5] = 1
    box = widgets.threshold_slider(out.image[0], out.anomaly_map[0], truth, threshold=0.3)
    slider, picture = box.children
    before = picture.value
    slider.value = 0.05
    assert [args[2] for args in seen[1:]] == [0.3, 0.05] and all(args[3] is truth for args in seen)
    assert picture.value != before
    slider.value = 0.3
    assert picture.value == before  # the same value gives the same picture


def test_slice_browser_begins_at_the_most_anomalous_slice(out, calls):
    seen = calls("detection_figure")
    truth = torch.zeros(N, 1, SIZE, SIZE)
    truth[3, 0, 4:8, 4:8] = 1
    box = widgets.slice_browser(out, truth)
    slider, picture = box.children
    assert slider.value == 2 and (slider.min, slider.max) == (0, N - 1)
    before = picture.value
    slider.value = 3
    assert [args[1] for args in seen[1:]] == [2, 3] and seen[2][2].sum() == 16
    assert picture.value != before
    assert widgets.slice_browser(out, index=0).controls["index"].value == 0


def test_mask_explorer_draws_masks_of_the_chosen_kind(calls, monkeypatch):
    seen, kinds, real = calls("mask_examples"), [], widgets.random_patch_mask

    def spy(*args, **kwargs):
        kinds.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(widgets, "random_patch_mask", spy)
    brain = torch.zeros(8, 8, dtype=torch.bool)
    brain[2:6, 2:6] = True
    box = widgets.mask_explorer((8, 8), brain=brain, examples=3)
    ratio, side, seed, picture = box.children
    assert len(kinds) == 6 and kinds[0]["max_ratio"] == 0.4 and kinds[0]["sides"] == (1, 2, 4, 8)
    first = seen[0][0]
    assert first.shape == (3, 1, 8, 8) and not (first * ~brain).any()
    before = picture.value
    seed.value = 5
    assert not torch.equal(seen[-1][0], first)
    seed.value = 0
    assert torch.equal(seen[-1][0], first) and picture.value == before  # the same seed gives the same masks
    ratio.value = 0.0
    assert kinds[-1]["max_ratio"] == 0.0 and not seen[-1][0].any()
    ratio.value = 1.0
    side.value = (1,)
    assert kinds[-1]["sides"] == (1,) and kinds[-1]["side_probabilities"] == (1.0,) and seen[-1][0].any()
    assert picture.value != before


@pytest.mark.parametrize("seconds", [0.05, 0.5])
def test_what_is_drawn_quickly_follows_the_mouse(monkeypatch, seconds):
    """The first drawing does not count: it loads fonts. All else waits until the slider is let go."""
    clock = [0.0]
    monkeypatch.setattr(widgets.time, "perf_counter", lambda: clock[0])

    def draw(**values):
        clock[0] += seconds
        return plotting.dice_by_size({"a": 0.5})

    box = widgets.explorer(draw, height=ipywidgets.FloatSlider(), name=ipywidgets.Dropdown(options=["x"]))
    assert box.controls["height"].continuous_update is (seconds < widgets.WHILE_DRAGGING)


def test_a_picture_is_not_stretched_and_stands_for_its_widget(out):
    box = widgets.threshold_slider(out.image[0], out.anomaly_map[0])
    assert box.picture.layout.align_self == "flex-start" and box.picture.layout.max_width == "100%"
    assert box.picture.layout.width is None and box.picture.layout.height is None
    if int(ipywidgets.__version__.split(".")[0]) > 7:
        data = box._repr_mimebundle_()
        assert base64.b64decode(data["image/png"]) == bytes(box.picture.value)
        assert "application/vnd.jupyter.widget-view+json" in data


def test_one_click_chooses_a_patients_whole_volume(out, calls):
    seen = calls("patient_figure")
    truth = np.zeros((N, SIZE, SIZE))
    truth[1:3, 2:6, 2:6] = 1
    short = SimpleNamespace(**vars(out))
    for name in ("image", "anomaly_map", "brain"):
        setattr(short, name, getattr(out, name)[:2])
    box = widgets.patient_explorer({"a": (out, truth), "b": (short, truth[:2])}, 0.4)
    patient, chosen, threshold, picture = box.children
    assert isinstance(patient, ipywidgets.ToggleButtons) and chosen.max == N - 1 and chosen.value == 2
    before = picture.value
    patient.value = "b"
    assert seen[-1][0] is short and seen[-1][2:] == (1, 0.4) and picture.value != before
    threshold.value = 0.9
    assert seen[-1][3] == 0.9


def test_explorer_passes_every_control_by_name():
    seen = []

    def draw(**values):
        seen.append(values)
        return plotting.dice_by_size({"a": values["height"]})

    box = widgets.explorer(draw, height=ipywidgets.FloatSlider(0.5, min=0, max=1), name=ipywidgets.Text("x"))
    box.controls["name"].value = "y"
    first = {"height": 0.5, "name": "x"}  # drawn twice: the second time tells how long it takes
    assert seen == [first, first, first | {"name": "y"}]
    assert box.picture is box.children[-1] and isinstance(box, ipywidgets.VBox)
