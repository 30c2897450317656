"""The walls of the house, read from the source: who imports whom, what stays light, what one place alone may do."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import lab

PACKAGE = Path(lab.__file__).parent
HEAVY = {"torch", "lightning", "torchvision", "torchmetrics", "wandb", "scipy", "sklearn", "matplotlib", "plotly"}

LAYERS: list[dict[str, str]] = [
    # A module imports from the layers above its own line here, and from itself if it is a package; never from its own
    # layer's other members. `light`: importing it loads nothing of HEAVY.
    {"lab": "light", "lab.errors": "light", "lab.types": "light", "lab.paths": "light", "lab.fastimport": "light"},
    {"lab.wandb_server": "light"},
    {"lab.random": "heavy", "lab.theory": "heavy"},
    {"lab.algorithms": "heavy", "lab.nets": "heavy", "lab.data": "heavy"},
    {"lab.models": "heavy"},
    {"lab.claim": "light"},
    {"lab.claims": "heavy"},
    {"lab.signature": "light", "lab.compose": "light", "lab.table": "light"},
    {"lab.machine": "light", "lab.processes": "light"},
    {"lab.rundir": "light"},
    {"lab.callbacks": "heavy", "lab.loggers": "heavy", "lab.figures": "heavy"},
    {"lab.pictures": "heavy"},
    {"lab.binding": "light"},
    {"lab.check": "light", "lab.provenance": "light", "lab.devices": "light"},
    {"lab.making": "heavy", "lab.runlog": "light"},
    {"lab.run": "heavy"},
    {"lab.loading": "light", "lab.worker": "light"},
    {"lab.ranks": "light"},
    {"lab.launch": "light"},
    {"lab.warm": "light"},
    {"lab.sweep": "light"},
    {"lab.sweep.figure": "heavy"},
    {"lab.compare": "light"},
    {"lab.compare.figure": "heavy"},
    {"lab.compare.page": "heavy", "lab.compare.report": "heavy"},
    {"lab.reproduce": "light"},
    {"lab.cli": "light"},
    {"lab.__main__": "light"},
]
LIGHT_INSIDE_HEAVY = {"lab.data.sources", "lab.data"}
"""What `lab.machine` asks whether data files are there; so the packages' own `__init__` are light as well."""

THEORY_MAY_IMPORT = {"__future__", "typing", "collections", "math", "numpy", "scipy", "ot", "torch", "lab"}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("lab", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str() as module, names=names):
                yield from (f"{module}.{alias.name}" for alias in names)


def place(name: str) -> tuple[int, str] | None:
    """(layer, member of it) that a dotted name of the lab belongs to, None for one that LAYERS does not know."""
    members = {member: i for i, layer in enumerate(LAYERS) for member in layer}
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        if (member := ".".join(parts[:length])) in members:
            return members[member], member
    return (0, "lab") if name == "lab" or parts[1].startswith("__") else None  # lab.__version__


def wrong_imports(trees: Mapping[str, ast.Module]) -> list[str]:
    """Every import against the direction, in words."""
    wrong = []
    for module, tree in trees.items():
        here = place(module)
        if here is None:
            wrong.append(f"{module} has no place: say in LAYERS of {Path(__file__).name} where it stands")
            continue
        for imported in imports(tree):
            if imported.partition(".")[0] != "lab":
                continue
            there = place(imported)
            if there is None:
                wrong.append(f"{module} imports {imported}, which has no place in LAYERS")
            elif there[1] != here[1] and there[0] >= here[0]:
                wrong.append(f"{module} (layer {here[0]}) imports {imported} (layer {there[0]})")
    return wrong


def test_imports_run_one_way() -> None:
    assert wrong_imports(modules()) == []


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("lab.theory.x", "from lab.claims import linear_regression", "lab.theory.x (layer 2) imports lab.claims"),
        ("lab.nets.x", "from lab.data.blocks import Block", "lab.nets.x (layer 3) imports lab.data.blocks.Block"),
        ("lab.models.x", "def f():\n    import lab.run", "lab.models.x (layer 4) imports lab.run"),
        ("lab.data.x", "from lab import compose", "lab.data.x (layer 3) imports lab.compose"),
        ("lab.newcomer", "", "lab.newcomer has no place: say in LAYERS of test_architecture.py"),
        ("lab.models.x", "import lab.newcomer", "lab.models.x imports lab.newcomer, which has no place"),
        ("lab.launch", "if True:\n    from lab.cli.run import main", "imports lab.cli.run.main"),
    ],
)
def test_an_import_the_wrong_way_is_found(module: str, source: str, said: str) -> None:
    wrong = wrong_imports({module: ast.parse(source)})
    assert len(wrong) == 1
    assert said in wrong[0]


@pytest.mark.parametrize("source", ["from lab.theory.pca import f", "from lab import __version__", "import torch.nn"])
def test_an_import_the_right_way_is_not_found(source: str) -> None:
    assert wrong_imports({"lab.models.x": ast.parse(source)}) == []


def test_no_place_is_kept_for_what_is_gone() -> None:
    members = {member for layer in LAYERS for member in layer}
    assert members <= set(modules()), members - set(modules())


def test_theory_imports_mathematics_only() -> None:
    for module, tree in modules().items():
        if place(module) == place("lab.theory"):
            packages = {name.partition(".")[0] for name in imports(tree)}
            assert packages <= THEORY_MAY_IMPORT, f"{module} imports {packages - THEORY_MAY_IMPORT}"


def test_light_modules_load_nothing_heavy() -> None:
    kind = {member: kind for layer in LAYERS for member, kind in layer.items()}
    light = {m for m in modules() if (found := place(m)) and kind[found[1]] == "light"} | LIGHT_INSIDE_HEAVY
    code = """
import importlib, json, sys
heavy, loaded = set(json.loads(sys.argv[1])), {}
for name in json.loads(sys.argv[2]):
    importlib.import_module(name)
    if new := sorted(heavy & set(sys.modules)):
        loaded[name] = new
        heavy -= set(new)
print(json.dumps(loaded))
"""
    words = [sys.executable, "-c", code, json.dumps(sorted(HEAVY)), json.dumps(sorted(light))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {}


# ----------------------------------------------------------------------------------------------------- one place only


def test_instantiate_is_called_in_one_place() -> None:
    users = {
        module
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if getattr(node, "id", getattr(node, "attr", getattr(node, "name", None))) == "instantiate"
    }
    assert users == {"lab.making"}


UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe_loading(tree: ast.AST) -> Iterator[str]:
    """Whatever may run code that lies in a file."""
    yield from (name for name in imports(tree) if name.partition(".")[0] in UNSAFE)
    yield from (name for name in imports(tree) if name == "torch.load")  # a bare name would hide what it loads
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="load", value=ast.Name(id="torch")), keywords=keywords):
                safe = {k.arg: k.value for k in keywords}.get("weights_only")
                if not (isinstance(safe, ast.Constant) and safe.value is True):
                    yield ast.unparse(node)
            case ast.Call(func=ast.Attribute(attr="load_from_checkpoint" | "unsafe_load" | "full_load")):
                yield ast.unparse(node)
            case ast.keyword(arg="allow_pickle" | "weights_only", value=ast.Constant(value=value)):
                if value is (node.arg == "allow_pickle"):
                    yield ast.unparse(node)


@pytest.mark.parametrize("module", sorted(modules()))
def test_nothing_is_unpickled(module: str) -> None:
    assert list(unsafe_loading(modules()[module])) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "Model.load_from_checkpoint(path)",
    ],
)
def test_unpickling_is_found(source: str) -> None:
    assert list(unsafe_loading(ast.parse(source)))
    assert not list(unsafe_loading(ast.parse("torch.load(path, weights_only=True)")))
