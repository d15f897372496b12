"""Build the site: pages, notebooks with their stored outputs, API reference, slides, and the playground.

    python scripts/make_site.py              # into build/site
    python scripts/make_site.py OUT --open   # elsewhere; then serve it and open the browser

Pages are those of docs/ and docs/site/, notebooks those that are in notebooks/. They are laid out in OUT.source,
where links to what is not on the site lead to the repository, and Sphinx makes every warning an error. Of all this
only the runtime of the playground comes from the network, once (see make_playground.py).
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import html
import http.server
import json
import os
import re
import shutil
import sys
import webbrowser
from pathlib import Path

import make_playground
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from restamp import address
from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")  # [..](this#part), but not an address with a colon
WIDGET = "application/vnd.jupyter.widget-view+json"


def main(out: Path) -> int:
    source = out.with_name(f"{out.name}.source")
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    notebooks = lay_out(source)
    failed = build_main(
        ["-W", "--keep-going", "-q", "-b", "html", "-d", f"{source}.doctrees", str(source), str(out)]
    )
    if failed:
        return failed
    for notebook in notebooks:
        if notebook.parent.name == "notebooks":  # solutions have the names of their lessons
            write_slides(notebook, out)
    make_playground.main(out / "playground")
    (out / ".nojekyll").touch()  # GitHub Pages would leave out folders that begin with an underscore
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6
    print(f"the site: {out / 'index.html'} ({size:.1f} MB)")
    return 0


# ---------------------------------------------------------------- laying out


def lay_out(source: Path) -> list[Path]:
    """Write everything that Sphinx reads; returns the notebooks."""
    pages = {p: Path(p.name) for p in sorted((ROOT / "docs" / "site").glob("*.md"))}
    pages |= {p: Path("docs", p.name) for p in sorted((ROOT / "docs").glob("*.md"))}
    notebooks = sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb"))
    notebooks = [p for p in notebooks if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]
    pages |= {p: p.relative_to(ROOT) for p in notebooks}
    for page, place in pages.items():
        target = source / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if page.suffix == ".md":
            target.write_text(
                with_links(page.read_text(encoding="utf-8"), page, pages, source), encoding="utf-8"
            )
        else:
            target.write_text(json.dumps(shown(page, pages, source)), encoding="utf-8")
    shutil.copyfile(ROOT / "docs" / "site" / "conf.py", source / "conf.py")
    shutil.copytree(ROOT / "docs" / "site" / "static", source / "static")
    listed = [f"- [{title(p)}]({p.relative_to(ROOT).as_posix()})" for p in notebooks]
    (source / "notebooks.md").write_text("\n".join(listed) + "\n", encoding="utf-8")
    decks = [
        f'- {title(p)}: <a href="slides/{p.stem}.html">slides</a>'
        for p in notebooks
        if p.parent.name == "notebooks"
    ]
    (source / "decks.md").write_text("\n".join(decks) + "\n", encoding="utf-8")
    rooms = write_api(source)
    trees = {
        "Start": ["learn", "teach", "use"],
        "Notebooks": [p.relative_to(ROOT).with_suffix("").as_posix() for p in notebooks],
        "Pages": [f"docs/{p.stem}" for p in pages if p.parent.name == "docs"],
        "Reference": ["api"],
    }
    with open(source / "index.md", "a", encoding="utf-8") as index:
        for caption, entries in trees.items():
            index.write(tree(entries, caption))
    with open(source / "api.md", "a", encoding="utf-8") as api:
        api.write(tree([f"api/{room}" for room in rooms]))
    return notebooks


def tree(entries: list[str], caption: str = "") -> str:
    rows = [f":caption: {caption}"] if caption else []
    return "\n".join(["", "```{toctree}", ":hidden:", ":maxdepth: 1", *rows, "", *entries, "```", ""])


def with_links(text: str, page: Path, pages: dict[Path, Path], source: Path) -> str:
    """Links to pages of the site stay within it, pictures are brought along, all else leads to the repository."""

    def moved(match: re.Match) -> str:
        before, link, part, after = match.groups()
        target = Path(os.path.normpath(page.parent / link))
        if not target.exists():
            return match[0]
        place = pages.get(target)
        if place is None and target.suffix == ".png":
            place = target.relative_to(ROOT)
            (source / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, source / place)
        if place is None:
            return f"{before}{address()}/blob/main/{target.relative_to(ROOT).as_posix()}{part or ''}{after}"
        inside = os.path.relpath(source / place, (source / pages[page]).parent).replace(os.sep, "/")
        return f"{before}{inside}{part or ''}{after}"

    return LINK.sub(moved, text)


def shown(path: Path, pages: dict[Path, Path], source: Path) -> dict:
    """A notebook as the site shows it: links as above, and a word in the place of widgets, which need a kernel."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}  # knows %pip
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = with_links("".join(cell["source"]), path, pages, source)
        for k, output in enumerate(cell.get("outputs", [])):
            if WIDGET in output.get("data", {}) and "image/png" not in output["data"]:
                words = "A control stands here when the notebook runs.\n"
                cell["outputs"][k] = {"output_type": "stream", "name": "stdout", "text": words}
    return notebook


def title(notebook: Path) -> str:
    """Its first heading."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return re.search(r"^# (.*)$", "".join(cells[0]["source"]), re.MULTILINE)[1]


def write_api(source: Path) -> list[str]:
    """A page for each room of the package, and one for the modules at its root."""
    package, rooms = ROOT / "madad_lite", {"root": []}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        room = "root" if len(parts) == 1 else parts[0]
        if parts[-1] != "__main__" and path.read_text(encoding="utf-8").strip():
            module = [p for p in ("madad_lite", *parts) if p != "__init__"]
            rooms.setdefault(room, []).append(".".join(module))
    (source / "api").mkdir()
    lines = []
    for room, modules in rooms.items():
        name = "madad_lite" if room == "root" else f"madad_lite.{room}"
        text = [f"# {name}", ""]
        for module in modules:
            text += [] if module == name else [f"## {module.removeprefix('madad_lite.')}", ""]
            text += ["```{eval-rst}", f".. automodule:: {module}", "   :members:", "   :no-index:", "```", ""]
        (source / "api" / f"{room}.md").write_text("\n".join(text), encoding="utf-8")
        lines.append(f"- [{name}](api/{room}.md)")
    with open(source / "api.md", "a", encoding="utf-8") as page:
        page.write("\n".join(lines) + "\n")
    return list(rooms)


# ---------------------------------------------------------------- slides

DECK = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>{title}</title><style>
body {{ margin: 0; font: clamp(16px, 2.2vmin, 26px)/1.4 system-ui, sans-serif; }}
section {{ box-sizing: border-box; height: 100vh; padding: 4vmin 6vmin; display: flex; flex-direction: column;
  gap: 2vmin; scroll-snap-align: start; break-after: page; overflow: hidden; }}
html {{ scroll-snap-type: y mandatory; }}
h1, h2 {{ margin: 0; }}
img {{ flex: 1; min-height: 0; max-width: 100%; object-fit: contain; background: #fff; border-radius: 6px; }}
p, ul {{ margin: 0; max-width: 80ch; }}
.title {{ justify-content: center; }}
</style></head><body>
{slides}
<script>
addEventListener("keydown", (event) => {{
  const steps = {{ ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1 }};
  const step = steps[event.key];
  if (!step) return;
  event.preventDefault();
  scrollTo({{ top: (Math.round(scrollY / innerHeight) + step) * innerHeight }});
}});
</script></body></html>
"""


def write_slides(path: Path, out: Path) -> None:
    """A deck: the title with what is learnt, then every figure under its heading, with the words before it."""
    math = lambda content, options: convert(content, display="block" if options["display_mode"] else "inline")  # noqa: E731
    markdown = MarkdownIt("commonmark").use(dollarmath_plugin, renderer=math)
    # the same pictures, as Sphinx has stored them
    images = {hashlib.sha256(p.read_bytes()).digest(): p.name for p in (out / "_images").glob("*.png")}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"])
    name = title(path)
    learnt = re.search(r"\*\*What you will learn\*\*\s+((?:- .*\n?(?:  .*\n?)*)+)", first)
    slides = [
        f'<section class="title"><h1>{html.escape(name)}</h1>{markdown.render(learnt[1]) if learnt else ""}</section>'
    ]
    heading, words = name, ""
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^##+ (.*)$", text, re.MULTILINE) or [heading])[-1]
            plain = [
                p for p in re.split(r"\n\s*\n", text) if not re.match(r"#|\||!\[|```|- |\[!|\*\*", p.strip())
            ]
            words = plain[0] if plain else ""
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                picture = base64.b64decode("".join(output["data"]["image/png"]))
                file = images[hashlib.sha256(picture).digest()]
                words = LINK.sub(r"](#)", words)
                words_html = re.sub(r"</?a\b[^>]*>", "", markdown.render(words))
                head = re.sub(r"</?p>", "", markdown.render(heading)).strip()
                image = f'<img src="../_images/{file}" alt="{html.escape(heading)}">'
                slides.append(f"<section><h2>{head}</h2>{words_html}{image}</section>")
    (out / "slides").mkdir(exist_ok=True)
    deck = DECK.format(title=html.escape(name), slides="\n".join(slides))
    (out / "slides" / f"{path.stem}.html").write_text(deck, encoding="utf-8")


# ---------------------------------------------------------------- serving


def serve(out: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(out))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        where = f"http://127.0.0.1:{server.server_address[1]}/"
        print(f"{where} (Ctrl-C ends it)")
        webbrowser.open(where)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the site.")
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "build" / "site")
    parser.add_argument("--open", action="store_true", help="serve it and open the browser")
    arguments = parser.parse_args()
    sys.exit(main(arguments.out.resolve()) or (serve(arguments.out.resolve()) if arguments.open else 0))
