"""Paint a lesion and heal it: the canvas in a browser, with a mouse and a finger; and the sliders without it."""

import base64
import builtins
import json

import chromium
import numpy as np
import pytest
import torch

from madad_lite.pipeline import MadAdPipeline
from madad_lite.plotting import widgets
from madad_lite.plotting.paint import Canvas, text_of, to_bytes
from madad_lite.scans.nifti import save_nifti
from madad_lite.simulation.cohort import simulate_subject

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def pipe():
    return MadAdPipeline.from_pretrained("t1")


@pytest.fixture(scope="module")
def healthy(pipe, tmp_path_factory):
    """A slice of a healthy person of the embedded cohort: image and brain, (96, 96)."""
    folder, subject = tmp_path_factory.mktemp("healthy"), simulate_subject(9002)
    for name, image in {"t1": subject.images["t1"], "brain": subject.brain}.items():
        save_nifti(image, folder / f"{name}.nii.gz")
    prepared = pipe.prepare(folder / "t1.nii.gz", brain=folder / "brain.nii.gz")
    k = len(prepared.image) // 2
    return prepared.image[k], prepared.brain[k]


# The widget's model, as far as the module uses it: `sent` takes the place of the kernel.
STUB = """
(async () => {
  const { default: widget } = await import("data:text/javascript;base64,%s");
  window.sent = [];
  window.state = %s;
  window.listeners = {};
  const model = {
    get: (name) => state[name],
    send: (content) => sent.push(content),
    on: (event, call) => (listeners[event] = call),
    off: (event) => delete listeners[event],
  };
  document.body.innerHTML = "<div id=here></div>";
  window.leave = widget.render({ model, el: document.getElementById("here") });
  window.set = (selector, value) => {
    const input = document.querySelector(selector);
    input.value = value;
    input.dispatchEvent(new Event("input"));
  };
})()
"""


def put(page, canvas):
    """The widget's front end in the page, with a stub of the model."""
    names = ("size", "scan", "brain", "grain", "threshold", "answer")
    code = base64.b64encode(
        canvas._esm.encode() if isinstance(canvas._esm, str) else str(canvas._esm).encode()
    )
    page.run(STUB % (code.decode(), json.dumps({name: getattr(canvas, name) for name in names})))


def answer(page, canvas, number):
    """What the kernel does: take message `number` from the page, and give the answer back."""
    message = json.loads(page.until(f"sent.length > {number} && JSON.stringify(sent[{number}])"))
    canvas._handle_custom_msg(message, [])
    page.run(f"state.answer = {json.dumps(canvas.answer)}; listeners['change:answer']()")


def on_screen(page, row, column):
    return page.place(".paint-canvas", (column + 0.5) / 96, (row + 0.5) / 96)


def words(page):
    return page.run("document.querySelector('.paint-words').textContent")


def dice_on(page):
    return float(words(page).split("Dice ")[1].split(":")[0])


@pytest.fixture(scope="module")
def page():
    browser = chromium.Browser()
    yield browser.page()
    browser.close()


def test_a_stroke_with_the_mouse_is_healed_and_found(page, pipe, healthy):
    canvas = widgets.paint_and_heal(pipe, *healthy)
    assert isinstance(canvas, Canvas)
    put(page, canvas)
    assert "press Heal" in words(page)
    page.run("set('.paint-radius', 7); set('.paint-softness', 0)")
    page.drag([on_screen(page, 40, 36), on_screen(page, 44, 36), on_screen(page, 48, 36)])
    page.click(".paint-heal")
    assert words(page) == "healing ..."
    answer(page, canvas, 0)

    i, j = np.indices((96, 96))
    wanted = (np.hypot(np.maximum(np.abs(i - 44) - 4, 0), j - 36) <= 7) & (healthy[1] > 0)
    assert (canvas.marks != wanted).mean() < 0.002  # a capsule, along the way of the mouse
    image = canvas.out.image[0, 0].numpy()
    assert np.abs(image[canvas.marks] + 0.8).max() < 0.01  # the grey that was chosen
    assert np.array_equal(image[~canvas.marks], healthy[0][~canvas.marks])  # all else to the last bit
    assert canvas.out.healed[0, 0].numpy()[canvas.marks].mean() > -0.6  # tissue where the stroke was
    score = np.floor(255 * canvas.out.anomaly_map[0, 0].numpy()) >= 255 * canvas.threshold
    both = (score & canvas.marks).sum()
    assert dice_on(page) == pytest.approx(2 * both / (score.sum() + canvas.marks.sum()), abs=0.006)
    assert dice_on(page) > 0.5
    shown = page.run("document.querySelector('.paint-picture').naturalWidth")
    assert shown > 500 and base64.b64decode(canvas.answer["picture"]).startswith(PNG)


def test_the_dice_is_alive_and_strokes_can_be_taken_back(page, pipe, healthy):
    canvas = widgets.paint_and_heal(pipe, *healthy)
    put(page, canvas)
    page.drag([on_screen(page, 44, 36), on_screen(page, 46, 36)])
    page.click(".paint-heal")
    answer(page, canvas, 0)
    first = words(page)
    page.run("set('.paint-threshold', 1)")
    assert dice_on(page) < 0.2
    page.run(f"set('.paint-threshold', {canvas.threshold})")
    assert words(page) == first
    page.drag([on_screen(page, 44, 60)])
    assert dice_on(page) < float(first.split("Dice ")[1].split(":")[0])  # more painted, not yet healed
    page.click(".paint-undo")
    assert words(page) == first
    page.click(".paint-reset")
    assert words(page) == "painted: 0 pixels; press Heal"
    page.click(".paint-heal")
    answer(page, canvas, 1)
    assert torch.equal(canvas.out.image[0, 0], torch.from_numpy(healthy[0])) and not canvas.marks.any()


def test_a_finger_paints_and_heals_after_every_stroke(page, pipe, healthy):
    canvas = widgets.paint_and_heal(pipe, *healthy)
    put(page, canvas)
    page.click(".paint-always")
    page.run("set('.paint-texture', 0.5); set('.paint-grey', 0.8)")
    page.swipe([on_screen(page, 44, 36), on_screen(page, 46, 38)])
    answer(page, canvas, 0)
    inside = canvas.out.image[0, 0].numpy()[canvas.marks]
    assert 60 < len(inside) < 400 and 0.3 < inside.mean() < 0.9 and inside.std() > 0.05


def test_one_dab_is_the_same_in_the_browser_and_in_python(page, pipe, healthy):
    canvas = widgets.paint_and_heal(pipe, *healthy)
    put(page, canvas)
    page.run("set('.paint-radius', 8); set('.paint-softness', 0.6); set('.paint-texture', 0.4)")
    page.drag([on_screen(page, 42, 38)])
    page.click(".paint-heal")
    answer(page, canvas, 0)
    painted, marks = widgets.dab(*healthy, 42, 38, 8, -0.8, softness=0.6, texture=0.4)
    assert (canvas.marks != marks).sum() <= 6
    assert np.abs(canvas.out.image[0, 0].numpy() - painted).max() < 0.06  # whole screen pixels, 256 greys


def test_what_is_asked_for_while_healing_is_healed_next(page, pipe, healthy):
    canvas = widgets.paint_and_heal(pipe, *healthy)
    put(page, canvas)
    page.click(".paint-heal")
    page.drag([on_screen(page, 44, 36)])
    page.click(".paint-heal")
    page.click(".paint-heal")
    assert page.run("sent.length") == 1
    answer(page, canvas, 0)
    assert not canvas.marks.any() and page.run("sent.length") == 2
    answer(page, canvas, 1)
    assert canvas.marks.any() and page.run("sent.length") == 2


def test_an_error_is_told_in_the_browser(page, healthy):
    def broken(_slice):
        raise RuntimeError("out of memory")

    canvas = Canvas(broken, *healthy, 0.5)
    put(page, canvas)
    page.click(".paint-heal")
    answer(page, canvas, 0)
    assert words(page) == "RuntimeError: out of memory"
    page.run("leave()")
    assert page.run("Object.keys(listeners).length") == 0


def test_a_picture_stands_for_the_canvas_where_no_widget_can_be(healthy):
    data = Canvas(None, *healthy, 0.5)._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(PNG)
    assert "application/vnd.jupyter.widget-view+json" in data


def test_bytes_are_rounded_and_lie_within_their_range():
    assert to_bytes(np.array([-1.2, -1, 0, 1, 3])).tolist() == [0, 0, 128, 255, 255]
    assert base64.b64decode(text_of(np.array([True, False]))) == b"\x01\x00"


def test_sliders_take_the_place_of_the_canvas(pipe, healthy, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "paint" or "anywidget" in name:
            raise ImportError("no anywidget")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    box = widgets.paint_and_heal(pipe, *healthy)
    assert list(box.controls) == ["row", "column", "radius", "grey", "softness", "texture"]
    before = bytes(box.picture.value)
    assert before.startswith(PNG)
    box.controls["radius"].value = 10.0
    assert bytes(box.picture.value) != before
    with pytest.raises(ImportError):
        widgets.paint_and_heal(pipe, *healthy, canvas=True)


def test_a_dab_fades_out_and_stays_in_the_brain(healthy):
    image, brain = np.zeros((40, 40)), np.ones((40, 40))
    brain[:, 24:] = 0
    hard, marks = widgets.dab(image, brain, 20, 20, 6, -0.5, softness=0)
    assert marks.sum() == (np.hypot(*(np.indices((40, 40)) - 20)) <= 6)[:, :24].sum()
    assert set(np.unique(hard)) == {-0.5, 0.0} and not hard[:, 24:].any()
    soft, half = widgets.dab(image, brain, 20, 20, 6, -0.5, softness=1)
    assert half.sum() < marks.sum() / 2 and (np.diff(soft[20, 14:21]) < 0).all()
    rough, _ = widgets.dab(image, brain, 20, 20, 6, -0.5, softness=0, texture=1)
    assert 0.2 < rough[marks].std() < 0.4
