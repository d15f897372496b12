"""What is installed: scripts/make_env.sh chooses PyTorch's build, requirements admit Colab's versions, the lowest
versions are those that are promised."""

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONSTRAINTS = ROOT / ".github" / "constraints"


def pinned(name: str) -> dict[str, str]:
    """A file of "name==version" lines -> {canonical name: version}."""
    lines = (CONSTRAINTS / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(key): version for key, version in pairs}


# ---------------------------------------------------------------- versions


def test_colab_has_what_the_set_up_cell_asks_for():
    """Nothing that Colab has installed is too old or too new, so that pip need not touch it."""
    wanted = [Requirement(line) for line in PROJECT["dependencies"] + EXTRAS["paint"] + EXTRAS["prep"]]
    colab = pinned("colab.txt")
    checked = [r for r in wanted if canonicalize_name(r.name) in colab]
    assert {"torch", "numpy", "diffusers", "accelerate", "scipy"} <= {r.name for r in checked}
    assert [str(r) for r in checked if colab[canonicalize_name(r.name)] not in r.specifier] == []


def test_there_are_lower_bounds_only():
    """ruff apart: another minor version formats otherwise."""
    for line in PROJECT["dependencies"] + sum(EXTRAS.values(), []):
        requirement = Requirement(line)
        if requirement.name not in (PROJECT["name"], "ruff"):
            assert [s.operator for s in requirement.specifier] == [">="]


def test_the_run_with_the_lowest_versions_has_exactly_the_bounds():
    lowest = pinned("lowest.txt")
    for line in PROJECT["dependencies"] + sum(EXTRAS.values(), []):
        requirement = Requirement(line)
        if requirement.name != PROJECT["name"]:
            (bound,) = (s for s in requirement.specifier if s.operator == ">=")
            assert Version(lowest.pop(canonicalize_name(requirement.name))) == Version(bound.version)
    assert lowest == {}


# ---------------------------------------------------------------- make_env.sh


@pytest.fixture
def make_env(tmp_path):
    """make_env(VARIABLE=value...) runs the script with a fake python (pip is only noted), uv and nvidia-smi; returns
    (what it printed, the installation's command)."""
    tools, venv = tmp_path / "tools", tmp_path / "venv" / "bin"
    tools.mkdir()
    venv.mkdir(parents=True)
    note = f'echo "$0 $* constraint=${{UV_CONSTRAINT:-}} backend=${{UV_TORCH_BACKEND:-}}" >> {tmp_path}/calls'

    def tool(path: Path, text: str) -> None:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    tool(venv / "python", f'case "$*" in "-m pip install"*) {note} ;; *) exec {sys.executable} "$@" ;; esac')
    tool(tools / "uv", note)
    tool(tools / "uname", "echo Linux")

    def run(gpu: bool = False, system: str = "Linux", **variables) -> tuple[str, str]:
        (tmp_path / "calls").unlink(missing_ok=True)
        tool(tools / "nvidia-smi", f"exit {0 if gpu else 9}")  # 9: there, but no driver
        tool(tools / "uname", f"echo {system}")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "TORCH", "PIP_"))}
        settings = {"PATH": f"{tools}:{kept['PATH']}", "VENV": str(tmp_path / "venv"), "no_proxy": "*"}
        command = ["bash", str(ROOT / "scripts" / "make_env.sh")]
        done = subprocess.run(
            command, env={**kept, **settings, **variables}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        calls = (tmp_path / "calls").read_text().splitlines()
        assert len(calls) == 1
        return done.stdout, calls[0]

    return run


@pytest.fixture
def index(tmp_path):
    """The address of a server on this machine with PyTorch's builds cpu and cu126."""
    for build in ("cpu", "cu126"):
        (tmp_path / "index" / build / "torch").mkdir(parents=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "index"))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_without_a_gpu_linux_gets_the_cpu_build(make_env, index):
    _, pip = make_env(INSTALLER="pip", TORCH_INDEX=index)
    assert f"--extra-index-url {index}/cpu -e .[dev]" in pip
    _, uv = make_env(INSTALLER="uv", TORCH_INDEX=index)
    assert "-e .[dev]" in uv and uv.endswith("backend=cpu")


def test_others_get_the_default_build(make_env, index):
    for machine in ({"gpu": True}, {"system": "Darwin"}, {"TORCH": "default"}):
        _, pip = make_env(INSTALLER="pip", TORCH_INDEX=index, **machine)
        assert "index" not in pip and "-e .[dev]" in pip
    _, uv = make_env(INSTALLER="uv", TORCH_INDEX=index, UV_TORCH_BACKEND="auto")
    assert uv.endswith("backend=auto")


def test_another_build_can_be_chosen(make_env, index):
    _, pip = make_env(INSTALLER="pip", TORCH_INDEX=index, TORCH="cu126")
    assert f"--extra-index-url {index}/cu126" in pip
    _, uv = make_env(INSTALLER="uv", TORCH_INDEX=index, TORCH="cu126")
    assert uv.endswith("backend=cu126")


def test_an_index_that_cannot_be_reached_is_said_and_left_out(make_env, index):
    nobody = "http://127.0.0.1:9"  # the discard port
    for installer in ("pip", "uv"):
        said, call = make_env(INSTALLER=installer, TORCH_INDEX=nobody)
        assert f"{nobody}/cpu cannot be reached: taking the default build of PyTorch" in said
        assert "--extra-index-url" not in call and call.endswith("backend=")
    said, _ = make_env(INSTALLER="pip", TORCH_INDEX=index, TORCH="cu999")
    assert f"{index}/cu999 cannot be reached" in said


def test_constraints_hold_for_uv_too(make_env):
    """uv does not read pip's variable."""
    _, uv = make_env(INSTALLER="uv", TORCH="default", PIP_CONSTRAINT="a.txt")
    assert "constraint=a.txt" in uv
    _, uv = make_env(INSTALLER="uv", TORCH="default", PIP_CONSTRAINT="a.txt", UV_CONSTRAINT="b.txt")
    assert "constraint=b.txt" in uv


def test_ci_tests_the_newest_versions_without_the_constraint():
    lines = [x for x in (ROOT / ".ci" / "run").read_text().splitlines() if not x.startswith("#")]
    pinned_run, newest = lines.index("make test"), lines.index("timeout 1200 make test-quick")
    assert lines.index("make lint") < pinned_run < lines.index("unset PIP_CONSTRAINT") < newest
