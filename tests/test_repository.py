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

import ipywidgets
import jupytext
import nbformat
import pytest
import yaml

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
    "01_diffusion",
    "02_data_preparation",
    "03_latent_encoder",
    "04_madad_from_scratch",
    "05_training",
    "06_mask_visualization",
    "07_evaluation",
    "08_paper_and_code",
    "09_own_scan",
    "10_family",
)
FOLDER = ROOT / "notebooks"
FOUND = [
    p for p in [*FOLDER.glob("[0-9]*"), *FOLDER.glob("solutions/[0-9]*")] if p.suffix in (".ipynb", ".py")
]
NOTEBOOKS = sorted({*LESSONS, *(p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOUND)})
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


def yaml_of(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


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
        stamped = restamp.with_set_up(path, restamp.stamp(text, ADDRESS), ADDRESS)
        assert stamped == text, f"{path.name}: run make restamp"
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


def test_the_page_of_recipes_shows_them_as_they_are():
    assert table() in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def anchors(page):
    """What a link may name after the "#": the headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def test_links_between_pages_lead_somewhere():
    pages = [p for p in repository_files() if p.suffix == ".md"]
    assert {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")} <= set(pages)
    wrong = []
    for page in pages:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if not link.startswith("https://") and not (
                target.exists() and (not anchor or anchor in anchors(target))
            ):
                wrong.append(f"{page.relative_to(ROOT)}: {link}")
    assert wrong == []


def test_readme_leads_to_every_page_and_is_short():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in (ROOT / "docs").glob("*.md") if f"(docs/{p.name}" not in readme] == []
    assert len(readme.splitlines()) <= 120


def test_restamp_rewrites_all_that_names_the_address(tmp_path, capsys):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}"\n')
    text = (
        "[b](https://colab.research.google.com/github/{0}/blob/main/notebooks/a.ipynb)\n"
        '%pip install -q \\"madad-lite[prep] @ git+https://github.com/{0}\\"\n'
        "git clone https://github.com/{0}.\nsee https://github.com/{0}/issues and https://github.com/other/code\n"
    )
    names = ("notebooks/a.py", "notebooks/b.py", "README.md")
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


def test_code_beside_text_is_narrow():
    """GitHub and Colab cut lines off at about 100 columns; the line that installs the package is longer."""
    long = [
        f"{path.name}, line {number}: {len(line)} columns"
        for path in [*FOLDER.glob("*.py"), *FOLDER.glob("solutions/*.py")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100 and not line.startswith("#") and "%pip install" not in line
    ]
    assert not long, long


@pytest.mark.parametrize("name", LESSONS)
def test_notebook_sets_itself_up_in_colab(name):
    path = ROOT / "notebooks" / f"{name}.py"
    source = path.read_text(encoding="utf-8")
    assert f"/blob/main/notebooks/{name}.ipynb" in source
    assert source.count("%pip install") == 1 and restamp.with_set_up(path, source, ADDRESS) == source
    # pip may change nothing that is installed, and what only our own .venv needs is not brought
    assert "    # !pip list --format=freeze > /tmp/installed.txt\n" in source
    assert f'    # %pip install -q -c /tmp/installed.txt "madad-lite[paint,prep] @ git+{ADDRESS}"\n' in source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_says_something_without_a_kernel(name):
    """No widget's name, no progress bar; every picture has words; nbval compares none of what was taken out."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        for output in cell.outputs:
            data, text = output.get("data", {}), output.get("text", "")
            text += "".join(data.get("text/plain", ""))
            assert "application/vnd.jupyter.widget-view+json" not in data
            assert not re.search(r"\d%\||VBox\(|HBox\(|Canvas\(", text), text
            if "image/png" in data:
                assert output.metadata["image/png"]["alt"]
        if re.search(r"\bwidgets\.\w+\(", cell.source):
            assert "NBVAL_IGNORE_OUTPUT" in cell.source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_jupyterlab_saves_a_notebook_as_it_is_stored(name, tmp_path):
    """Opened and saved, with jupytext's pairing as it runs in JupyterLab, neither file of the pair changes."""
    from jupyter_server.services.contents.largefilemanager import LargeFileManager

    try:
        from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class as build
    except ImportError:  # before 1.19
        from jupytext.contentsmanager import build_jupytext_contents_manager_class as build
    before = {}
    for kind in (".py", ".ipynb"):  # in this order: the outputs must be the younger file
        path = tmp_path / f"a{kind}"
        before[path] = (FOLDER / f"{name}{kind}").read_text(encoding="utf-8")
        path.write_text(before[path], encoding="utf-8")
    manager = build(LargeFileManager)(root_dir=str(tmp_path))
    model = manager.get("a.ipynb")
    # what the running kernel tells JupyterLab
    model["content"]["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    manager.save(model, "a.ipynb")
    assert {path: path.read_text(encoding="utf-8") for path in before} == before
    language = model["content"]["metadata"]["language_info"]
    assert set(language) > {"codemirror_mode", "file_extension", "mimetype", "pygments_lexer", "version"}


def test_restamp_writes_the_set_up_cell(tmp_path):
    """Over an older one, in both files of a notebook; twice is once."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}"\n')
    source = tmp_path / "notebooks" / "a.py"
    old = "try:\n    import madad_lite\nexcept ImportError:\n    # %pip install -q x\n    import madad_lite\n"
    source.write_text(f"# %% [markdown]\n# Set-up ö\n\n# %%\n{old}\n# %%\n6 * 7\n")
    notebook = source.with_suffix(".ipynb")
    jupytext.write(jupytext.read(source), notebook)
    for _ in range(2):
        restamp.main([], tmp_path)
        assert source.read_text().count("-c /tmp/installed.txt") == 1 and "-q x" not in source.read_text()
        assert python_of(notebook) == comparable(source.read_text())
        assert "6 * 7" in source.read_text() and "ö" in notebook.read_text()


@pytest.mark.skipif(
    int(ipywidgets.__version__.split(".")[0]) < 8, reason="lessons are stored with ipywidgets 8 or newer"
)
def test_run_notebooks_stores_what_ran_and_only_that(tmp_path, monkeypatch, capsys):
    """One notebook with a widget and a set-up cell, and one that fails in its second cell."""
    runner = script("run_notebooks")
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    setup = f"# %%\ntry:\n    import sys\nexcept ImportError:\n    # %pip install -q git+{ADDRESS}\n    import sys\n"
    widget = "\n# %%\nfrom madad_lite import plotting\nfrom madad_lite.plotting import widgets\n"
    widget += "import ipywidgets\nfrom tqdm.auto import tqdm\nfor i in tqdm([1]):\n    pass\n"
    widget += "widgets.explorer(lambda n: plotting.dice_by_size({'a': n}), n=ipywidgets.FloatSlider(0.5))\n"
    widget += "\n# %%\nplotting.dice_by_size({'a': 0.5})\n\n# %%\n# text after\n6 * 7\n"
    (tmp_path / "00_a.py").write_text("# %% [markdown]\n# # Title\n\n" + setup + widget)
    (tmp_path / "01_b.py").write_text("# %%\n1\n\n# %%\n1 / 0\n")
    assert runner.main([]) == 1
    assert "01_b.py: failed, not stored" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00_a.ipynb", "00_a.py", "01_b.py"]
    first = (tmp_path / "00_a.ipynb").read_text()
    notebook = json.loads(first)
    assert "widgets" not in notebook["metadata"]
    assert [c.get("execution_count") for c in notebook["cells"]] == [None, 1, 2, 3, 4]
    (shown,), (figure,) = notebook["cells"][2]["outputs"], notebook["cells"][3]["outputs"]
    assert shown["data"]["text/plain"] == ["<a widget; run the cell to use it>"]
    assert set(shown["data"]) == set(figure["data"]) == {"image/png", "text/plain"}
    assert shown["metadata"]["image/png"]["alt"] == "The widget as it is at first"
    assert figure["metadata"]["image/png"]["alt"] == "Figure: By lesion size"
    assert "".join(notebook["cells"][4]["outputs"][0]["data"]["text/plain"]) == "42"
    assert python_of(tmp_path / "00_a.ipynb") == comparable((tmp_path / "00_a.py").read_text())
    assert runner.main(["00"]) == 0
    assert (tmp_path / "00_a.ipynb").read_text() == first  # the same again
    assert runner.main(["zz"]) == 2


def test_run_notebooks_stores_a_print_in_one_piece():
    """A busy machine sends it in several."""
    new = nbformat.v4.new_output
    pieces = [
        new("stream", name="stdout", text="a"),
        new("stream", name="stdout", text="b\n"),
        new("stream", name="stderr", text="c\n"),
        new("display_data", data={"text/plain": "d"}),
        new("stream", name="stdout", text="e\n"),
    ]
    joined = script("run_notebooks")._joined(pieces)
    assert [o.get("text") for o in joined] == ["ab\n", "c\n", None, "e\n"]


# ---------------------------------------------------------------- requirements and packaging


def test_environment_yml_asks_for_the_same_as_pyproject():
    extras = PROJECT["optional-dependencies"]
    used = ("notebooks", "paint", "prep", "dicom")
    wanted = requirements(PROJECT["dependencies"] + [line for name in used for line in extras[name]])
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
    "download.pytorch.org",  # PyTorch's own builds for one kind of machine: scripts/make_env.sh
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
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_weights_are_small_and_have_cards():
    weights = ROOT / "madad_lite" / "weights"
    assert sum(p.stat().st_size for p in weights.rglob("*") if p.is_file()) <= 25e6
    models = [p for p in weights.iterdir() if p.is_dir() and list(p.rglob("*.safetensors"))]
    assert models
    assert [
        p.name for p in models if "licen" not in (p / "README.md").read_text(encoding="utf-8").lower()
    ] == []


def test_forms_and_workflows_can_be_read():
    files = [p for p in repository_files() if p.suffix in (".yml", ".yaml")]
    contents = {str(p.relative_to(ROOT)): yaml_of(p) for p in files}
    assert all(isinstance(c, dict) for c in contents.values())
    github = {name.removeprefix(".github/"): c for name, c in contents.items() if name.startswith(".github/")}
    for name, content in github.items():
        if name.startswith("ISSUE_TEMPLATE/") and not name.endswith("config.yml"):
            assert {"name", "description", "body"} <= content.keys(), name
            ids = [field["id"] for field in content["body"] if field["type"] != "markdown"]
            assert len(set(ids)) == len(ids) > 0, name
        if name.startswith("workflows/"):
            # YAML takes the key "on" for true
            assert content["jobs"] and (True in content or "on" in content), name
    assert {"workflows/ci.yml", "workflows/versions.yml"} <= github.keys()


def test_workflows_name_what_is_there():
    """Targets of make, files of constraints, and the Pythons that pyproject.toml promises."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in [*(ROOT / ".github" / "workflows").glob("*.yml"), ROOT / ".pre-commit-config.yaml"]:
        text = path.read_text()
        assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets, path.name
        for name in re.findall(r"(\.github/constraints/\w+\.txt|scripts/\w+\.\w+)", text):
            assert (ROOT / name).is_file(), f"{path.name}: {name}"
    tested = yaml_of(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["unit"]["strategy"]["matrix"]
    promised = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert tested["python"] == promised


def test_changelog_begins_with_what_is_not_released():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.startswith("# Changelog\n") and text.index("## [Unreleased]") < 400


def test_type_checkers_are_told_of_the_hints():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert "py.typed" in tools["setuptools"]["package-data"]["madad_lite"]
    assert (ROOT / "madad_lite" / "py.typed").is_file()


def test_the_slow_files_are_there():
    from conftest import SLOW_FILES

    assert SLOW_FILES <= {p.stem for p in (ROOT / "tests").rglob("test_*.py")}


def test_citation_and_licence_are_there():
    citation = (ROOT / "CITATION.cff").read_text()
    assert "MAD-AD" in citation and "2502.16943" in citation and ADDRESS in citation
    licence = (ROOT / "LICENSE").read_text()
    assert licence.startswith("MIT License") and "CC BY-SA 3.0" in licence
