"""The site is built without a warning and its links lead somewhere; the playground heals in Chromium as Python does."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import chromium
import nibabel as nib
import numpy as np
import pytest
import torch

from madad_lite import MadAdPipeline
from madad_lite.diffusion import selective_reverse
from madad_lite.scans.prepare import prepare_volume
from madad_lite.simulation.cohort import simulate_subject

ROOT = Path(__file__).resolve().parent.parent
READY = "document.getElementById('status').textContent.startsWith('Ready')"
STATUS = "document.getElementById('status').textContent"
NUMBERS = "document.getElementById('numbers').textContent"
# Drawings as a link holds them: contrast, slice, seed, [mask threshold, decision threshold, eta], strokes
DRAWINGS = {
    "dark, random": ["t1", 3, 1, [0.2, 0.435, 0.5], [[0, 5, -0.6, 0.4, 0.3, 62, 38, 66, 46]]],
    "erased, not random": [
        *("t1", 6, 1, [0.05, 0.3, 0]),
        [[0, 7, -0.4, 0.2, 0.8, 40, 50], [1, 3, 0, 0.5, 0, 40, 50], [0, 1.5, 0.8, 0, 0, 60, 30]],
    ],
    "bright on FLAIR": ["flair", 2, 7, [0.2, 0.342, 1], [[0, 6, 0.9, 0.5, 0.1, 30, 40, 34, 48]]],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-W", "ignore", str(ROOT / "scripts" / "make_site.py"), str(out)]
    # no proxy leads out: only npm, where the runtime is not there yet, has its own settings
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return out


# ---------------------------------------------------------------- pages


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[k] for k in ("id", "name") if values.get(k)}
        self.links += [values[k] for k in ("href", "src") if values.get(k)]


def test_links_lead_somewhere(site):
    pages = {p.resolve(): Page(p) for p in site.rglob("*.html")}
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"(https?|data|mailto|javascript):", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert wrong == []


def test_site_loads_nothing_from_elsewhere(site):
    loads = re.compile(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"(?:https?:)?//([^/\"]+)[^>]*>")
    found = {
        (p.name, m[1]) for p in site.rglob("*.html") for m in loads.finditer(p.read_text(encoding="utf-8"))
    }
    # the badges that open a notebook in Colab are Colab's
    assert {host for _, host in found} <= {"colab.research.google.com"}


def test_every_notebook_and_page_is_there_with_its_figures(site):
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert notebooks
    learn = (site / "learn.html").read_text(encoding="utf-8")
    for path in notebooks:
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        figures = sum("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
        assert page.count("_images/") >= figures > 0, path.stem
        assert "VBox(children" not in page
        assert f"notebooks/{path.stem}.html" in learn
        deck = (site / "slides" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert deck.count("<img ") == figures
    for path in (ROOT / "docs").glob("*.md"):
        assert (site / "docs" / f"{path.stem}.html").is_file()
    assert "selective_reverse" in (site / "api" / "root.html").read_text(encoding="utf-8")


def test_front_page_has_the_playground_and_three_doors(site):
    front = (site / "index.html").read_text(encoding="utf-8")
    assert 'src="playground/index.html"' in front
    assert front.count('class="door docutils container"') == 3


def test_site_is_small_and_git_holds_none_of_it(site):
    assert sum(p.stat().st_size for p in site.rglob("*") if p.is_file()) <= 45e6
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not re.findall(r".*\.(?:onnx|wasm|mjs)\b.*", tracked)


# ---------------------------------------------------------------- the playground


@pytest.fixture(scope="module")
def served(site):
    if not (site / "playground" / "runtime").is_dir():
        chromium.missing("npm brought no onnxruntime-web: the playground's models cannot run")
    browser, server = chromium.Browser(), chromium.Server(site)
    yield browser, server.address + "/playground/index.html"
    browser.close()
    server.stop()


@pytest.fixture
def page(served):
    """A tab with the playground, ready; without an error when the test ends."""
    browser, address = served
    tab = browser.page()
    tab.go(address)
    tab.until(READY)
    yield tab
    assert tab.errors == []
    tab.close()


def healed(tab):
    tab.until(f"playground.state.result !== null && !playground.state.busy || {STATUS}.includes('could not')")
    assert "Healed" in tab.run(STATUS)
    tab.run("playground.state.result.rest.then(() => 1)")


def stroke_on(tab, draw):
    x, y = tab.place("#scan", 0.65, 0.42)
    draw([(x + 3 * i, y + 3 * i) for i in range(8)])


@pytest.fixture(scope="module")
def pipes():
    return {name: MadAdPipeline.from_pretrained(name) for name in ("t1", "flair")}


@pytest.mark.parametrize("name", DRAWINGS)
@torch.no_grad()
def test_numbers_are_those_of_python(page, pipes, name):
    """The drawing of a link, healed by both with the same noise."""
    contrast, number, seed, (mask_threshold, _, eta), _ = DRAWINGS[name]
    pipe = pipes[contrast]
    noise = torch.randn(10, 1, 4, 24, 24, generator=torch.Generator().manual_seed(seed))
    rounded = [[round(float(x), 4) for x in step.flatten()] for step in noise]
    code = f"""(async () => {{
      const content = {json.dumps(DRAWINGS[name])}, noise = {json.dumps(rounded)};
      location.hash = btoa(JSON.stringify(content)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
      await playground.follow(location.hash);
      const result = await playground.heal({{ stepNoise: (step) => noise[step] }});
      const list = (values) => Array.from(values);
      return JSON.stringify({{
        image: list(playground.state.drawn.image), brain: list(playground.state.slice.brain), map: list(result.map),
        trajectory: result.trajectory.map(list), replaced: result.replaced.map(list),
        painted: list(playground.state.drawn.covered),
      }});
    }})()"""
    theirs = {k: torch.tensor(v).float() for k, v in json.loads(page.run(code)).items()}
    assert 10 < (theirs["painted"] >= 0.5).sum() < 400
    x0 = theirs["image"].view(1, 1, 96, 96)
    brain = theirs["brain"].view(1, 1, 96, 96) > 0
    noise = torch.tensor(rounded).view(noise.shape)
    z0 = pipe.encode(x0)
    options = dict(eta=eta, threshold=mask_threshold, step_noise=noise)
    ours = selective_reverse(pipe.denoiser, z0, pipe.scheduler, **options)
    assert torch.equal(ours.replaced.flatten(1).float(), theirs["replaced"])
    assert ours.replaced.any()
    assert (ours.trajectory.flatten(1) - theirs["trajectory"]).abs().max() < 1e-4
    # the whole pipeline, put on the same way by what it calls after each step
    path = iter(ours.trajectory[1:])
    whole = pipe(
        *(x0,), brain=brain, eta=eta, mask_threshold=mask_threshold, progress=False,
        callback_on_step_end=lambda pipe, step, t, state: {"latents": next(path)},
    )  # fmt: skip
    assert (whole.anomaly_map.flatten() - theirs["map"]).abs().max() < 1e-3
    assert whole.anomaly_map.max() > 0.3


def test_paint_with_the_mouse_heal_and_play(page):
    stroke_on(page, page.drag)
    painted = page.run("playground.state.drawn.covered.filter((c) => c >= 0.5).length")
    assert 50 < painted < 500
    page.click("#heal")
    healed(page)
    dice, found, there = map(float, re.findall(r"\d+\.\d+", page.run(NUMBERS)))
    assert dice > 0.5 and found > 0.3 and there == pytest.approx(painted * 0.008, abs=0.006)
    # the film: every step is another picture, and play ends at the last
    film = """Array.from({ length: 11 }, (_, step) => { playground.state.step = step; playground.show();
      return document.getElementById('healed').toDataURL(); })"""
    pictures = set(page.run(film))
    assert len(pictures) == 11
    page.run("playground.state.step = 3")
    page.click("#play")
    page.until("playground.state.step === 0")
    page.until("playground.state.step === 10")
    # undo and reset
    stroke_on(page, page.drag)
    assert page.run("playground.state.strokes.length") == 2
    page.click("#undo")
    assert page.run("playground.state.strokes.length") == 1
    page.click("#reset")
    assert page.run("playground.state.drawn.covered.some((c) => c > 0)") is False


def test_thresholds_change_the_picture(page):
    page.run("[...document.querySelectorAll('#tries button')][0].click()")
    healed(page)
    mask, replaced = (
        "document.getElementById('mask').toDataURL()",
        "playground.state.result.replaced.flatMap((r) => [...r])",
    )
    count = f"{replaced}.filter(Boolean).length"
    before, cells, numbers = page.run(mask), page.run(count), page.run(NUMBERS)
    slide = """(() => {{ const slider = document.getElementById('{}'); slider.value = {};
      for (const kind of ['input', 'change']) slider.dispatchEvent(new Event(kind)); }})()"""
    page.run(slide.format("decision_threshold", 0.9))
    assert page.run(mask) != before and page.run(NUMBERS) != numbers
    page.run("playground.state.result = Object.assign(playground.state.result, { old: true })")
    page.run(slide.format("mask_threshold", 0.02))
    page.until("playground.state.result && !playground.state.result.old && !playground.state.busy")
    assert page.run(count) > 1.5 * cells


def test_it_works_offline_once_it_is_loaded(page):
    page.offline()
    page.run("document.querySelectorAll('#slices button')[5].click()")
    page.until("playground.state.number === 5")
    stroke_on(page, page.drag)
    page.click("#heal")
    healed(page)
    page.offline(False)


def test_keyboard_alone_is_enough(page):
    page.run("document.getElementById('scan').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.press(key)
    assert page.run("playground.state.cursor") == [51, 49]
    assert page.run(STATUS) == "Brush at column 51, row 49."
    page.press(" ", "Space", " ")
    assert page.run("playground.state.strokes.length") == 1
    page.press("h", "KeyH", "h")
    healed(page)
    unnamed = """[...document.querySelectorAll('button, input, select, canvas:not(button canvas)')].filter((e) =>
      !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).map((e) => e.id)"""
    assert page.run(unnamed) == []


def test_guess_first_hides_the_lesion_until_one_has_guessed(page):
    page.click("#guess")
    assert page.run("playground.state.slice.lesion.some((m) => m)")
    page.click("#heal")
    assert page.run("playground.state.result") is None and "Tap first" in page.run(STATUS)
    spot = page.run(
        "(() => { const i = playground.state.slice.lesion.indexOf(1); return [i % 96, Math.floor(i / 96)]; })()"
    )
    page.drag([page.place("#scan", (spot[0] + 0.5) / 96, (spot[1] + 0.5) / 96)])
    page.until("playground.state.guessing.shown")
    assert page.run("[playground.state.guessing.you, playground.state.guessing.games]") == [1, 1]
    assert re.search(r"(You and the model both|You) found it", page.run(STATUS))


def test_own_slice_of_a_nifti_file_and_of_a_picture(page, tmp_path):
    subject = simulate_subject(31, spacing=2.0)
    for name, image in {"scan": subject.images["t1"], "brain": subject.brain}.items():
        nib.save(image, tmp_path / f"{name}.nii.gz")
    page.choose_file("#file", tmp_path / "scan.nii.gz")
    page.until("playground.state.number === -1")
    assert "no diagnosis" in page.run(STATUS)
    theirs = np.array(page.run("Array.from(playground.state.slice.x0)")).reshape(96, 96)
    scan = prepare_volume(tmp_path / "scan.nii.gz", brain=tmp_path / "brain.nii.gz", register=False)
    grid = scan.geometry.grid
    ours = scan.image[scan.geometry.slice_index.index(round((18 - grid.z_range[0]) / grid.step))]
    inside = (ours > -1) & (theirs > -1)
    assert inside.sum() > 0.95 * (ours > -1).sum()
    # the median is this slice's, and not the brain's; interpolation is linear: nearly the same picture, in its place
    assert np.corrcoef(ours[inside], theirs[inside])[0, 1] > 0.97
    from PIL import Image

    Image.fromarray(np.uint8(np.clip((ours + 1) * 127.5, 0, 255))).resize((192, 192)).save(
        tmp_path / "slice.png"
    )
    page.choose_file("#file", tmp_path / "slice.png")
    page.until("document.getElementById('level-row').hidden")
    shown = np.array(page.run("Array.from(playground.state.slice.x0)")).reshape(96, 96)
    inside = (ours > -0.9) & (shown > -1)
    assert np.corrcoef(ours[inside], shown[inside])[0, 1] > 0.9
    (tmp_path / "text.nii").write_text("no scan at all")
    page.choose_file("#file", tmp_path / "text.nii")
    page.until(f"{STATUS}.includes('text.nii: this is no NIfTI-1 file')")


@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_screen_and_obeys_a_finger(served, width, tmp_path):
    browser, address = served
    tab = browser.page(width=width, height=800, touch=True, dark=width == 400)
    tab.go(address)
    tab.until(READY)
    assert tab.run("document.documentElement.scrollWidth") <= width
    stroke_on(tab, tab.swipe)
    assert tab.run("playground.state.strokes[0].points.length") > 8
    tab.run("document.getElementById('heal').click()")
    healed(tab)
    assert len(tab.picture(tmp_path / "page.png")) > 20_000
    assert tab.errors == []
    tab.close()


def test_a_browser_without_simd_shows_the_film(served):
    browser, address = served
    tab = browser.page(before="WebAssembly.validate = () => false")
    tab.go(address)
    tab.until("!document.getElementById('fallback').hidden")
    assert "lacks WebAssembly" in tab.run("document.getElementById('reason').textContent")
    tab.until("document.querySelector('#fallback img').naturalWidth === 576")
    assert tab.errors == []
    tab.close()


def test_a_link_that_holds_no_drawing_says_so(served):
    browser, address = served
    tab = browser.page()
    tab.go(address + "#nonsense")
    tab.until(f"{STATUS}.startsWith('This link holds no drawing')")
    assert tab.errors == []
    tab.close()
