"""Run the notebooks from their .py sources and store them, with outputs, as .ipynb.

    python scripts/run_notebooks.py          # all
    python scripts/run_notebooks.py 03 05    # those whose names begin so

A notebook is stored only when all of its cells ran. The .py is read, never written: it is the source.
"""

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
CELL_TIMEOUT = 1800  # seconds


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
    )
    client.execute()
    # The state of widgets, progress bars included, makes GitHub refuse to show the notebook.
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}  # not the version of the one who ran it
    target = source.with_suffix(".ipynb")
    part = target.with_suffix(".part")
    nbformat.write(notebook, part)
    os.replace(part, target)
    return target


def main(chosen: list[str]) -> int:
    sources = [p for p in sorted(FOLDER.glob("[0-9]*.py")) if not chosen or p.name.startswith(tuple(chosen))]
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
            print(f"{source.name}: failed, not stored\n{error}", file=sys.stderr)
        else:
            print(
                f"{target.name}: {time.monotonic() - start:.0f} s, {target.stat().st_size / 1e6:.2f} MB",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
