"""The repository agrees with itself: one address, one list of requirements, notebooks in step with their
sources.
"""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

from madad_lite.training.settings import table

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"]["Repository"]
LESSONS = (
    "00_quickstart",
    "01_data_preparation",
    "02_latent_encoder",
    "03_training",
    "04_mask_visualization",
    "05_evaluation",
    "06_paper_and_code",
)
NOTEBOOKS = sorted(
    {*LESSONS, *(p.stem for p in (ROOT / "notebooks").iterdir() if p.suffix in (".ipynb", ".py"))}
)
# conda-forge's names where they differ
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
# what is imported is not always called what is installed
IMPORT_NAMES = {"scikit-learn": "sklearn", "pillow": "PIL"}


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


restamp = script("restamp")


def repository_files():
    """Every file that is or could be committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def requirements(lines):
    """["torch>=2.4"] -> {"torch": ">=2.4"}, without the project's own extras."""
    found = (re.fullmatch(r"\s*-?\s*([A-Za-z0-9_.-]+)(\[.*\])?\s*([<>=!~].*)?", line) for line in lines)
    return {m[1]: m[3] or "" for m in found if m and m[1] != PROJECT["name"]}


def comparable(source):
    """The lines of a py:percent file, without its header: that speaks of jupytext and differs between its
    versions.
    """
    return re.sub(r"\A# ---\n.*?# ---\n", "", source, flags=re.DOTALL).strip().split("\n")


def python_of(notebook):
    """The same from an .ipynb file."""
    return comparable(jupytext.writes(jupytext.read(notebook), fmt="py:percent"))


# ---------------------------------------------------------------- address


def test_everything_that_names_the_repository_agrees_with_pyproject():
    for path in [*restamp.stamped_files(ROOT), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert restamp.stamp(text, ADDRESS) == text, f"{path.name}: run make restamp"
        others = set(re.findall(r"https://github\.com/[\w.-]*madad[\w.-]*/[\w-]+", text)) - {ADDRESS}
        assert not others, f"{path.name} names {others}"


def test_every_badge_points_to_a_notebook():
    badge = re.compile(r"https://colab\.research\.google\.com/github/[^\s)\"\\]+")
    start = f"https://colab.research.google.com/github/{restamp.owner_name(ADDRESS)}/blob/main/notebooks/"
    for path in [*restamp.stamped_files(ROOT), ROOT / "README.md"]:
        for link in badge.findall(path.read_text(encoding="utf-8")):
            assert link.startswith(start), f"{path.name}: {link}"
            assert (ROOT / "notebooks" / link[len(start) :]).is_file(), f"{path.name}: {link}"


def test_readme_has_a_badge_for_every_lesson():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [n for n in LESSONS if f"/blob/main/notebooks/{n}.ipynb" not in readme] == []


def test_readme_shows_the_recipes_as_they_are():
    assert table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_restamp_rewrites_all_that_names_the_address(tmp_path, capsys):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}"\n')
    text = (
        "[b](https://colab.research.google.com/github/{0}/blob/main/notebooks/a.ipynb)\n"
        '%pip install -q \\"madad-lite[prep] @ git+https://github.com/{0}\\"\n'
        "git clone https://github.com/{0}.\nsee https://github.com/{0}/issues and https://github.com/other/code\n"
    )
    names = ("notebooks/a.py", "notebooks/a.ipynb", "README.md")
    for name in names:
        (tmp_path / name).write_text(text.format(restamp.owner_name(ADDRESS)))
    restamp.main(["https://github.com/new/home.lite"], tmp_path)
    assert "4 of 4 files changed" in capsys.readouterr().out
    assert restamp.address(tmp_path) == "https://github.com/new/home.lite"
    assert all((tmp_path / n).read_text() == text.format("new/home.lite") for n in names)
    restamp.main([], tmp_path)
    assert "0 of 3 files changed" in capsys.readouterr().out
    # pyproject.toml edited by hand: all but plain links follow
    (tmp_path / "pyproject.toml").write_text(
        '[project.urls]\nRepository = "https://github.com/third/place"\n'
    )
    restamp.main([], tmp_path)
    assert (tmp_path / "README.md").read_text().count("third/place") == 3


def test_restamp_refuses_what_colab_cannot_open(tmp_path):
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}"\n')
    with pytest.raises(SystemExit, match="not of the form https://github.com/OWNER/NAME"):
        restamp.main(["https://example.org/madad"], tmp_path)
    assert restamp.address(tmp_path) == ADDRESS


# ---------------------------------------------------------------- notebooks


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_was_run_top_to_bottom_without_an_error(name):
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    code = [c for c in notebook["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c["outputs"]]
    assert outputs
    assert [o["ename"] for o in outputs if o["output_type"] == "error"] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_can_be_shown(name):
    """GitHub refuses metadata.widgets and is slow with large files."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_agrees_with_its_source(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    source = path.with_suffix(".py").read_text(encoding="utf-8")
    assert python_of(path) == comparable(source), f"{name}: edit the .py, then make notebooks ONLY={name}"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_sets_itself_up_in_colab(name):
    source = (ROOT / "notebooks" / f"{name}.py").read_text(encoding="utf-8")
    assert f"/blob/main/notebooks/{name}.ipynb" in source
    install = rf"""except ImportError:\n\s+# %pip install -q "madad-lite\[[a-z,]+\] @ git\+{re.escape(ADDRESS)}"\n"""
    assert re.search(r"try:\n\s+import madad_lite", source) and re.search(install, source)


def test_run_notebooks_stores_what_ran_and_only_that(tmp_path, monkeypatch, capsys):
    """One notebook with a widget and a set-up cell, and one that fails in its second cell."""
    runner = script("run_notebooks")
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    setup = f"# %%\ntry:\n    import sys\nexcept ImportError:\n    # %pip install -q git+{ADDRESS}\n    import sys\n"
    widget = "\n# %%\nimport ipywidgets\nipywidgets.IntSlider()\n\n# %%\n# text after\n6 * 7\n"
    (tmp_path / "a.py").write_text("# %% [markdown]\n# # Title\n\n" + setup + widget)
    (tmp_path / "b.py").write_text("# %%\n1\n\n# %%\n1 / 0\n")
    assert runner.main([]) == 1
    assert "b.py: failed, not stored" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ipynb", "a.py", "b.py"]
    first = (tmp_path / "a.ipynb").read_text()
    notebook = json.loads(first)
    assert "widgets" not in notebook["metadata"]
    assert [c.get("execution_count") for c in notebook["cells"]] == [None, 1, 2, 3]
    assert "".join(notebook["cells"][3]["outputs"][0]["data"]["text/plain"]) == "42"
    assert python_of(tmp_path / "a.ipynb") == comparable((tmp_path / "a.py").read_text())
    assert runner.main(["a"]) == 0
    # the same again, but for the widget's random name
    ids = re.compile(r'"model_id": "\w+"')
    assert ids.sub("", (tmp_path / "a.ipynb").read_text()) == ids.sub("", first)
    assert runner.main(["zz"]) == 2


# ---------------------------------------------------------------- requirements and packaging


def test_environment_yml_asks_for_the_same_as_pyproject():
    extras = PROJECT["optional-dependencies"]
    wanted = requirements(PROJECT["dependencies"] + extras["notebooks"] + extras["prep"])
    wanted = {CONDA_NAMES.get(name, name).lower(): bounds for name, bounds in wanted.items()}
    lines = (ROOT / "environment.yml").read_text().split("dependencies:\n")[1].splitlines()
    # those that conda-forge lacks come from pip, further in
    found = requirements(
        line.split("  #")[0] for line in lines if "- -e ." not in line and "pip:" not in line
    )
    assert found.pop("python") == PROJECT["requires-python"]
    assert found.pop("pip") == ""
    assert found == wanted
    assert "      - -e ." in lines


def test_what_the_package_imports_is_required():
    declared = requirements(PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), []))
    known = {IMPORT_NAMES.get(name, name) for name in declared} | {"madad_lite", *sys.stdlib_module_names}
    imported = {}
    for path in sorted((ROOT / "madad_lite").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                imported.setdefault(name.split(".")[0], path.name)
    assert {name: file for name, file in imported.items() if name not in known} == {}


def test_importing_the_package_is_light():
    code = "import madad_lite.cli, sys; print(sorted({'torch', 'diffusers', 'nilearn', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HOSTS = {
    "127.0.0.1",
    "arxiv.org",
    "biomedic.doc.ic.ac.uk",
    "brain-development.org",
    "colab.research.google.com",
    "creativecommons.org",
    "example.org",
    "github.com",
    "huggingface.co",
    "msd-for-monai.s3-us-west-2.amazonaws.com",
    "projects.nitrc.org",
    "www.synapse.org",
}


def test_files_name_no_other_hosts():
    # so that no mirror or package registry, of a lock file for one, gets in
    host = re.compile(
        r"\b[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:org|com|net|io|dev|edu|uk)\b|(?<=://)[a-z0-9-]+(?:\.[a-z0-9-]+)+",
        re.I,
    )
    binary = {".npz", ".npy", ".gz", ".png", ".safetensors"}
    texts = {p: p.read_text(encoding="utf-8") for p in repository_files() if p.suffix not in binary}
    named = {(str(p), found.lower()) for p, text in texts.items() for found in host.findall(text)}
    assert {(p, found) for p, found in named if found not in HOSTS} == set()
    assert HOSTS == {found for _, found in named}  # and none is listed that no file needs


def test_files_of_the_package_stay_small():
    lengths = {
        p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "madad_lite").rglob("*.py")
    }
    assert {name: n for name, n in lengths.items() if n > 440} == {}


def test_weights_are_small_and_have_cards():
    weights = ROOT / "madad_lite" / "weights"
    assert sum(p.stat().st_size for p in weights.rglob("*") if p.is_file()) <= 20e6
    models = [p for p in weights.iterdir() if p.is_dir() and list(p.rglob("*.safetensors"))]
    assert models
    assert [
        p.name for p in models if "licen" not in (p / "README.md").read_text(encoding="utf-8").lower()
    ] == []


def test_citation_and_licence_are_there():
    citation = (ROOT / "CITATION.cff").read_text()
    assert "MAD-AD" in citation and "2502.16943" in citation and ADDRESS in citation
    licence = (ROOT / "LICENSE").read_text()
    assert licence.startswith("MIT License") and "CC BY-SA 3.0" in licence
