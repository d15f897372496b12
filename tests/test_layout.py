"""One direction: which room of the package may import from which, and no circles among the modules."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "madad_lite"
METHOD = ("masking", "diffusion", "denoiser", "autoencoder", "scoring")
# room -> the rooms that it may import from; what stands at the package's root is a room of its own.
# "method" stands for the five files of METHOD. All may use errors and files, except these two themselves.
EDGES: dict[str, str] = {
    "errors": "",
    "files": "errors",
    "threads": "",
    "settings": "",
    "scans": "",
    "slices": "scans",
    # the paper
    "masking": "",
    "diffusion": "masking settings",
    "denoiser": "",
    "autoencoder": "",
    "scoring": "masking settings",
    "extensions": "method slices",
    "pipeline": "method extensions scans settings",
    # what works with it
    "plotting": "masking scans.nifti evaluation.counts",
    "training": "method extensions slices settings pipeline",
    "family": "method extensions settings scans slices training pipeline",
    "detection": "pipeline extensions plotting scans settings training family",
    "evaluation": "pipeline scans slices training family plotting",
    "simulation": "scans slices",
    "onnx_export": "method extensions settings pipeline",
    "authors": "method pipeline scans slices training",
    "demo": "pipeline plotting scans slices training detection evaluation simulation",
}
EDGES["arguments"] = ""
EDGES["cli_family"] = "arguments pipeline slices detection evaluation family training"
EDGES["cli"] = "method " + " ".join(EDGES)
EDGES["__main__"] = "cli"


def module_of(path: Path) -> str:
    """.../madad_lite/scans/grid.py -> "scans.grid"; a room's __init__.py -> "scans"; the package's own -> ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_of(p): p for p in sorted(PACKAGE.rglob("*.py")) if "weights" not in p.relative_to(PACKAGE).parts
}


def imports(module: str) -> set[str]:
    """The package's modules that a module imports, at its top or within functions."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([x for x in ("madad_lite" if node.level else "", *above, node.module or "") if x])
            names = [f"{base}.{a.name}" for a in node.names]
        else:
            continue
        for name in names:
            # "madad_lite.scans.grid.Grid": the longest part of it that is a module
            parts = name.split(".")
            while len(parts) > 1 and parts[0] == "madad_lite" and ".".join(parts[1:]) not in MODULES:
                parts.pop()
            if len(parts) > 1 and parts[0] == "madad_lite":
                found.add(".".join(parts[1:]))
    return found - {module}


def room(module: str) -> str:
    return module.split(".")[0]


def allowed(name: str) -> set[str]:
    words = EDGES[name].split() + ([] if name in ("errors", "files", "threads") else ["errors", "files"])
    return {name, *words, *(METHOD if "method" in words else ())} - {"method"}


def test_every_room_imports_only_from_those_it_may():
    wrong = []
    for module in MODULES:
        if module:  # the package itself imports when it is asked for a name
            may = allowed(room(module))
            wrong += [f"{module} -> {x}" for x in imports(module) if room(x) not in may and x not in may]
    assert wrong == []


def test_every_room_has_its_line_and_no_other():
    assert {room(m) for m in MODULES} - {""} == {r for r in EDGES if r != "__main__" or r in MODULES}


def test_the_rooms_lie_in_one_direction():
    """No circle among the rooms; evaluation.counts alone, which imports none of them, may be used from below."""
    rooms = {name: {room(x) for x in allowed(name) if "." not in x} - {name} for name in EDGES}
    assert list(TopologicalSorter(rooms).static_order())
    assert {room(x) for x in imports("evaluation.counts")} <= {"evaluation", "errors"}


def test_no_circle_among_the_modules():
    order = list(TopologicalSorter({m: imports(m) for m in MODULES if m}).static_order())
    assert set(order) >= {m for m in MODULES if m}


def test_an_import_is_found_in_every_form(tmp_path, monkeypatch):
    texts = {
        "__init__.py": "",
        "a.py": "import madad_lite.b\nfrom madad_lite import c\n",
        "b.py": "def f():\n    from madad_lite.room.inner import Thing\n",
        "c.py": "from madad_lite.room import outer\nimport numpy\n",
        "room/__init__.py": "from .inner import Thing\n",
        "room/inner.py": "from . import outer\nfrom .. import d\n",
        "room/outer.py": "",
        "d.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "MODULES", {module_of(p): p for p in tmp_path.rglob("*.py")})
    expected = {"a": {"b", "c"}, "b": {"room.inner"}, "c": {"room.outer"}, "d": set()}
    expected |= {"room": {"room.inner"}, "room.inner": {"room.outer", "d"}, "room.outer": set()}
    assert {m: imports(m) for m in expected} == expected
