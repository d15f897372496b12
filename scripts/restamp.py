"""Write the repository's address from pyproject.toml wherever it is needed; with an argument, change it
first.

    python scripts/restamp.py                               # after pyproject.toml was edited
    python scripts/restamp.py https://github.com/new/home   # edits pyproject.toml too

Touched are Colab badges, `pip install git+...`, `git clone ...` and plain links to the repository in the
notebooks (.py and .ipynb), README.md and CITATION.cff, and the whole set-up cell of the notebooks.
"""

import json
import re
import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
OWNER_NAME = r"[\w.-]+/[\w-]+(?:\.[\w-]+)*"  # does not take the full stop that ends a sentence

# With a list of what is installed as constraints pip may add to Colab's packages, but change none of them.
# Colab opens a notebook without the files beside it: the exercises' checks are fetched. Threads are counted before
# torch is imported.
SET_UP = """\
try:
    import madad_lite
except ImportError:  # as in Colab, where what is installed stays as it is
    !pip list --format=freeze > /tmp/installed.txt
    %pip install -q -c /tmp/installed.txt "madad-lite[paint,prep] @ git+{url}"
    !wget -q {url}/raw/main/notebooks/checks.py
    import madad_lite

from madad_lite.threads import use_free_cores

use_free_cores()  # beside other work PyTorch is faster in fewer threads
"""
SET_UP_FORM = (
    r"try:\n    import madad_lite\nexcept ImportError:.*\n(?:    (?:# )?[%!]\w+ .*\n)+    import madad_lite\n"
    r"(?:\nfrom madad_lite.threads .*\n\nuse_free_cores\(\).*\n)?"
)


def address(root: Path = ROOT) -> str:
    """The repository's address: [project.urls] Repository in pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"][
        "Repository"
    ]


def owner_name(url: str) -> str:
    """https://github.com/madad-lite/madad-lite -> madad-lite/madad-lite. Colab opens notebooks from GitHub
    only.
    """
    found = re.fullmatch(rf"https://github\.com/({OWNER_NAME})", url)
    if not found or url.endswith(".git"):
        raise SystemExit(f"{url}: not of the form https://github.com/OWNER/NAME, which the Colab badges need")
    return found[1]


def stamped_files(root: Path = ROOT) -> list[Path]:
    """The files that name the address."""
    notebooks = sorted(p for p in (root / "notebooks").rglob("*.*") if p.suffix in (".py", ".ipynb"))
    return [*notebooks, *(p for p in (root / "README.md", root / "CITATION.cff") if p.exists())]


def stamp(text: str, url: str, old: str | None = None) -> str:
    """The text with this address in badges, installations, clones and citations; `old` is replaced
    everywhere.
    """
    new = owner_name(url)
    if old:
        text = re.sub(rf"github\.com/{re.escape(owner_name(old))}(?![\w-])", f"github.com/{new}", text)
    text = re.sub(rf"(colab\.research\.google\.com/github/){OWNER_NAME}(/blob/)", rf"\g<1>{new}\g<2>", text)
    before = r'(git\+|git clone |repository-code: ")'
    return re.sub(rf"{before}https://github\.com/{OWNER_NAME}", rf"\g<1>{url}", text)


def with_set_up(path: Path, text: str, url: str) -> str:
    """The text of a notebook (.py or .ipynb) with this set-up cell; of any other file as it is."""
    cell = SET_UP.format(url=url)
    if path.suffix == ".py":
        cell = re.sub(r"(?m)^    (?=[%!])", "    # ", cell)  # as jupytext writes magics
        return re.sub(SET_UP_FORM, lambda _: cell, text)
    if path.suffix != ".ipynb":
        return text
    content = json.loads(text)
    for found in content["cells"]:
        if re.fullmatch(SET_UP_FORM, "".join(found["source"]) + "\n"):
            found["source"] = cell.rstrip("\n").splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"  # as nbformat writes it


def main(arguments: list[str], root: Path = ROOT) -> None:
    old = address(root)
    url = arguments[0].rstrip("/") if arguments else old
    owner_name(url)
    files = stamped_files(root) + ([root / "pyproject.toml"] if url != old else [])
    changed = 0
    for path in files:
        before = path.read_text(encoding="utf-8")
        after = with_set_up(path, stamp(before, url, old), url)
        if after != before:
            path.write_text(after, encoding="utf-8", newline="\n")
            changed += 1
            print(f"  {path.relative_to(root)}")
    print(f"{url}: {changed} of {len(files)} files changed")


if __name__ == "__main__":
    main(sys.argv[1:])
