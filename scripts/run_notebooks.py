"""Run the notebooks from their .py sources and store them, with outputs, as .ipynb.

    python scripts/run_notebooks.py          # all, the solutions too
    python scripts/run_notebooks.py 03 05    # those whose names begin so

A notebook is stored only when all of its cells ran. The .py is read, never written: it is the source. What is stored
can be looked at without a kernel: a picture stands for each widget, progress bars are gone, pictures say in words what
they show; and JupyterLab writes the same when it saves.
"""

import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
CELL_TIMEOUT = 1800  # seconds
WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = re.compile(r"^.*\d+%\|.*\n?", re.MULTILINE)  # a line of tqdm
JUPYTEXT = {
    "formats": "ipynb,py:percent",
    "notebook_metadata_filter": "-jupytext.text_representation.jupytext_version",
}

# Run in the kernel before the first cell. A picture's words, for those who cannot see it: all its titles and axes.
ALT = """
def _words(figure, **_):
    axes = figure.axes
    words = [text.get_text() for text in figure.texts] + [ax.get_title() for ax in axes]
    words += [t.get_text() for ax in axes for t in ax.texts if len(t.get_text()) > 12]  # no numbers on bars
    words += [f"{ax.get_ylabel()} against {ax.get_xlabel()}" for ax in axes if ax.get_xlabel() and ax.get_ylabel()]
    text = "; ".join(dict.fromkeys(" ".join(w.split()) for w in words if w.strip()))
    return {}, {"image/png": {"alt": f"Figure: {text}" if text else "Figure"}}
from matplotlib.figure import Figure as _Figure
_Figure._repr_mimebundle_ = _words
del _Figure
"""


def run(source: Path) -> Path:
    """notebooks/NAME.py -> notebooks/NAME.ipynb, run top to bottom in its own folder by this Python."""
    notebook = jupytext.read(source, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"  # jupytext draws random ones: every run would change every cell
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(source.parent)}},
        extra_arguments=[f"--InteractiveShellApp.exec_lines={ALT}"],
    )
    # pictures in the notebook, whatever is set outside
    client.execute(env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    tidy(notebook)
    target = source.with_suffix(".ipynb")
    part = target.with_suffix(".part")
    nbformat.write(notebook, part)
    os.replace(part, target)
    return target


def tidy(notebook) -> None:
    """Leave only what can be shown without a kernel, and the metadata that JupyterLab writes."""
    # The state of widgets, progress bars included, makes GitHub refuse to show the notebook.
    notebook.metadata.pop("widgets", None)
    name = "Python 3 (ipykernel)"
    notebook.metadata["kernelspec"] = {"display_name": name, "language": "python", "name": "python3"}
    notebook.metadata["jupytext"] = dict(JUPYTEXT)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(output for output in cell.outputs if _kept(output))


def _joined(outputs) -> list:
    """What is printed in one go: a busy machine sends it in pieces."""
    joined = []
    for output in outputs:
        if (
            joined
            and output.output_type == joined[-1].output_type == "stream"
            and output.name == joined[-1].name
        ):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _kept(output) -> bool:
    """Whether anything of the output is left to be shown; a widget becomes its picture."""
    if output.output_type == "stream":
        output.text = BAR.sub("", output.text)
        return bool(output.text.strip())
    data = output.get("data", {})
    if data.pop(WIDGET, None) is None:
        return True
    if "image/png" in data:
        data["text/plain"] = "<a widget; run the cell to use it>"
        output.metadata.setdefault("image/png", {"alt": "The widget as it is at first"})
    return "image/png" in data


def main(chosen: list[str]) -> int:
    every = sorted(FOLDER.glob("[0-9]*.py")) + sorted(FOLDER.glob("solutions/[0-9]*.py"))
    sources = [p for p in every if not chosen or p.name.startswith(tuple(chosen))]
    if not sources:
        print(
            f"{FOLDER}: no notebook whose name begins with {' or '.join(chosen) or 'anything'}",
            file=sys.stderr,
        )
        return 2
    failed = 0
    for source in sources:
        start = time.monotonic()
        try:
            target = run(source)
        except CellExecutionError as error:
            failed += 1
            print(f"{source.relative_to(FOLDER)}: failed, not stored\n{error}", file=sys.stderr)
        else:
            print(
                f"{target.relative_to(FOLDER)}: {time.monotonic() - start:.0f} s, {target.stat().st_size / 1e6:.2f} MB",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
