"""`predict` sees no run, `measure` reaches no theory, and nothing is called by both: read by following every name."""

from __future__ import annotations

import ast
import importlib
import textwrap
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

import lab
from lab.errors import Refusal
from lab.signature.source import Definition, Module, expression, find, lineage

RUN = {"model", "step_norms", "trainer", "lightning_module"}
"""Names under which `predict` could see what was trained."""

COMMON = ("data", "random", "claim", "errors", "types", "models.features")
"""Modules that both sides may call: what is given to both, and the eyes that both look at images with."""

PLACES = {"lab.claims.sinkhorn_ot_digits._apart", "lab.claims.transformer.Causality.at"}
"""What both sides call to say where they are compared: at which entries, at which places. It computes no value."""


class Reach:
    """What a method of a class may call, in `<package>.theory` and elsewhere, and the names that it may look at.

    Followed are: names bound at module level, through imports, aliases and re-exports, into functions, classes and
    values of the package; `self.x` and `super().x`, into methods, class attributes and whatever any method assigns to
    `self.x`; imports inside a function. A class counts with all its methods, a module with all that it holds.
    """

    def __init__(self, package: str, cls: Definition, method: str) -> None:
        self.package, self.lineage = package, list(lineage(cls))
        self.theory: set[str] = set()
        self.called: set[str] = set()
        self.names: set[str] = set()
        self._seen: set[ast.AST] = set()
        self._own(method)

    def _own(self, name: str) -> None:
        """`self.name`, wherever the class and its bases define or set it."""
        for owner in self.lineage:
            for node in ast.walk(owner.node):
                match node:
                    case ast.FunctionDef(name=bound) if bound == name:
                        self.called.add(f"{owner.name}.{bound}")
                        self._walk(owner.module, node)
                    case ast.Assign(targets=targets, value=value):
                        if any(name in _bound(target, node in owner.node.body) for target in targets):
                            self._walk(owner.module, value)
                    case ast.AnnAssign(target=target, value=ast.expr() as value):
                        if name in _bound(target, node in owner.node.body):
                            self._walk(owner.module, value)

    def _walk(self, module: Module, node: ast.AST) -> None:
        if node in self._seen:
            return
        self._seen.add(node)
        parts: list[ast.AST] = []
        match node:
            case ast.FunctionDef(body=body, decorator_list=decorators, args=args):  # annotations call nothing
                parts = [*body, *decorators, *args.defaults, *filter(None, args.kw_defaults)]
            case ast.AnnAssign(value=ast.expr() as value):
                parts = [value]
            case ast.Import(names=names):
                for alias in names:
                    self._dotted(alias.name)
            case ast.ImportFrom(module=str() as source, names=names):
                for alias in names:
                    self._dotted(f"{source}.{alias.name}")
            case ast.Name() | ast.Attribute() if (found := expression(module, node)) is not None:
                self._definition(found)
            case ast.Attribute(value=ast.Name(id="self") | ast.Call(func=ast.Name(id="super")), attr=attr):
                self.names.add(attr)
                self._own(attr)
            case ast.Attribute(value=value, attr=attr):
                self.names.add(attr)
                parts = [value]
            case ast.Constant(value=str() as text):  # getattr(data, "trainer"), import_module("lab.theory.pca")
                self.names.add(text)
                if text.startswith(f"{self.package}.theory"):
                    self.theory.add(text)
            case _:
                parts = list(ast.iter_child_nodes(node))
        for part in parts:
            self._walk(module, part)

    def _dotted(self, name: str) -> None:
        """What an import inside a function brings in."""
        if name.startswith(f"{self.package}.theory"):
            self.theory.add(name)
        elif name.startswith(f"{self.package}."):
            try:
                found = find(name)
            except Refusal:  # a module; its attributes are looked up in a way that is not followed here
                raise AssertionError(f"import {name} at the top of the file, where it can be followed") from None
            if found is not None:
                self._definition(found)

    def _definition(self, found: Definition) -> None:
        module, called = found.module, set(self.called)
        if module.name.startswith(f"{self.package}.theory"):
            self.theory.add(".".join(filter(None, (module.name, getattr(found.node, "name", "")))))
        elif module.name.startswith(f"{self.package}."):
            if found.node is None:
                for node in module.statements():
                    self._walk(module, node)
            for owner in lineage(found):
                for node in owner.node.body:
                    self._walk(owner.module, node)
            if found.node is not None and not isinstance(found.node, ast.ClassDef):
                self._walk(module, found.node)
            if found.name.startswith(tuple(f"{self.package}.{common}." for common in COMMON)):
                self.called = called
            elif isinstance(found.node, ast.ClassDef | ast.FunctionDef):
                self.called.add(found.name)


def _bound(target: ast.AST, in_class: bool) -> set[str]:
    """The attributes of `self` that an assignment sets: `self.x = …` in a method, `x = …` in the class."""
    names = {n.id for n in ast.walk(target) if isinstance(n, ast.Name) and in_class}
    attributes = (n for n in ast.walk(target) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self")
    return names | {n.attr for n in attributes}


def definition(target: str) -> Definition:
    found = find(target)
    assert found is not None
    return found


def claims(package: str, folder: Path) -> list[str]:
    """The targets of all subclasses of Claim in `<package>.claims`; `folder` is where the package lies."""
    targets = [
        ".".join((package, *path.relative_to(folder).with_suffix("").parts, node.name))
        for path in sorted((folder / "claims").rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    ]
    return [t for t in targets if "Claim" in [owner.node.name for owner in lineage(definition(t))][1:]]


def violations(package: str, target: str) -> list[str]:
    """How a claim mixes theory and measurement, in words."""
    cls = definition(target)
    predict, measure = Reach(package, cls, "predict"), Reach(package, cls, "measure")
    shared = predict.called & measure.called
    wrong = [f"measure reaches {name}" + ", as predict does" * (name in predict.theory) for name in measure.theory]
    wrong += [f"predict looks at {name}" for name in predict.names & RUN]
    wrong += [f"predict and measure both call {name}" for name in shared - PLACES]
    for owner in lineage(cls):
        methods = (node for node in owner.node.body if isinstance(node, ast.FunctionDef) and node.name == "predict")
        for args in (method.args for method in methods):
            if [node.arg for node in ast.walk(args) if isinstance(node, ast.arg)] != ["self", "data"]:
                wrong.append(f"predict takes {ast.unparse(args)}, not (self, data)")
    return sorted(wrong)


CLAIMS = claims("lab", Path(lab.__file__).parent)


@pytest.mark.parametrize("target", CLAIMS)
def test_theory_and_measurement_are_separate(target: str) -> None:
    assert violations("lab", target) == []


def test_what_predict_reaches_is_seen() -> None:
    """An empty reach would make every claim look separate."""
    pca, regression, vae = "lab.claims.pca_autoencoder", "lab.claims.linear_regression", "lab.claims.vae"
    reached = {target: Reach("lab", definition(target), "predict").theory for target in CLAIMS}
    assert reached[f"{regression}.MinimumNorm"] == {"lab.theory.least_squares.least_squares_solution"}
    assert reached[f"{pca}.Projector"] == {"lab.theory.pca.principal_components", "lab.theory.pca.projector"}
    assert reached[f"{regression}.Contraction"] == {"lab.theory.least_squares.contraction"}
    assert reached[f"{vae}.Evidence"] == {
        "lab.theory.pca.principal_components",
        "lab.theory.ppca.maximum_log_likelihood",
    }


def test_what_says_where_sides_are_compared_is_called_by_both() -> None:
    sides = [[Reach("lab", definition(target), side).called for side in ("predict", "measure")] for target in CLAIMS]
    assert set().union(*(predict & measure for predict, measure in sides)) == PLACES


Check = Callable[..., list[str]]
_numbers = count()


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Writes a package with one claim and gives its violations; `PKG` in the sources becomes the package's name."""

    def run(body: str, *, top: str = "", helpers: str = "", base: str = "Claim") -> list[str]:
        package = f"separated_{next(_numbers)}"
        claim = f"from lab.claim import Claim\n{textwrap.dedent(top)}\nclass C({base}):\n"
        sources = {
            "__init__": "",
            "theory/__init__": "",
            "theory/forms": "def tail(x): ...\ndef head(x): ...",
            "data/__init__": "",
            "data/points": "def draw(x): return inner(x)\ndef inner(x): ...",
            "algorithms/__init__": "",
            "algorithms/levels": "def level(x): return deep(x)\ndef deep(x): ...",
            "claims/__init__": "",
            "claims/helpers": textwrap.dedent(helpers),
            "claims/one": claim + textwrap.indent(textwrap.dedent(body), "    "),
        }
        for name, source in sources.items():
            path = tmp_path / package / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source.replace("PKG", package), encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        assert f"{package}.claims.one.C" in claims(package, tmp_path / package)
        return [line.replace(f"{package}.", "") for line in violations(package, f"{package}.claims.one.C")]

    return run


RIGHT = "def predict(self, data: Any) -> Quantity:\n    return tail(data.x)\n"
TAIL = "from PKG.theory.forms import tail"


def test_a_right_claim_passes(check: Check) -> None:
    assert check(RIGHT + "def measure(self, run):\n    return run.model(run.data.x)", top=TAIL) == []


@pytest.mark.parametrize(
    ("measure", "more"),
    [
        ("return tail(run.data.x)", {}),
        ("return list(map(tail, run.data.x))", {}),
        ("return theory.tail(1)", {"top": f"{TAIL}\nfrom PKG.theory import forms as theory"}),
        ("return t.forms.tail(1)", {"top": f"{TAIL}\nimport PKG.theory as t"}),
        ("return other(1)", {"top": f"{TAIL}\nfrom PKG.theory.forms import tail as other"}),
        ("return other(1)", {"top": f"{TAIL}\nother = tail"}),
        ("return table['tail'](1)", {"top": f"{TAIL}\ntable = {{'tail': tail}}"}),
        ("return both(1)", {"top": f"{TAIL}\ndef both(x): return tail(x)"}),
        ("return both(1)", {"top": f"{TAIL}\ndef both(x): return deep(x)\ndef deep(x): return [tail(x)]"}),
        ("return both(1)", {"top": f"{TAIL}\nfrom PKG.claims.helpers import both", "helpers": f"{TAIL}\nboth = tail"}),
        (
            "return h.both(1)",
            {"top": f"{TAIL}\nfrom PKG.claims import helpers as h", "helpers": f"{TAIL}\nboth = tail"},
        ),
        ("return both(1)", {"top": f"{TAIL}\nfrom PKG.claims.helpers import *", "helpers": f"{TAIL}\nboth = tail"}),
        ("from PKG.theory.forms import tail as t\n    return t(1)", {"top": TAIL}),
        ("import PKG.theory.forms as t\n    return t.tail(1)", {"top": TAIL}),
        ("return import_module('PKG.theory.forms').tail(1)", {"top": f"{TAIL}\nfrom importlib import import_module"}),
        ("return self.predict(run.data)", {"top": TAIL}),
        ("return self.both(1)\ndef both(self, x): return tail(x)", {"top": TAIL}),
        ("return self.both(1)\nboth = staticmethod(tail)", {"top": TAIL}),
        ("return self.both(1)\ndef __init__(self): self.both = tail", {"top": TAIL}),
        ("return self.said\ndef other(self, x): self.said, _ = tail(x), 1", {"top": TAIL}),
        (
            "return self.both(1)",
            {"top": f"{TAIL}\nclass B(Claim):\n    def both(self, x): return tail(x)", "base": "B"},
        ),
        ("return super().both(1)", {"top": f"{TAIL}\nclass B(Claim):\n    def both(self): return tail", "base": "B"}),
        ("return Sum().of(1)", {"top": f"{TAIL}\nclass Sum:\n    def of(self, x): return tail(x)"}),
    ],
)
def test_theory_in_measure_is_found(check: Check, measure: str, more: dict[str, str]) -> None:
    found = check(f"{RIGHT}def measure(self, run):\n    {measure}", **{"top": TAIL, **more})
    assert [line for line in found if "measure reaches theory.forms" in line], found


def test_a_shared_function_is_called_shared(check: Check) -> None:
    assert check(f"{RIGHT}def measure(self, run):\n    return tail(1)", top=TAIL) == [
        "measure reaches theory.forms.tail, as predict does"
    ]


@pytest.mark.parametrize(
    ("predict", "measure", "top", "name"),
    [
        ("level(1)", "level(2)", "from PKG.algorithms.levels import level", "algorithms.levels.level"),
        ("deep(1)", "level(2)", "from PKG.algorithms.levels import deep, level", "algorithms.levels.deep"),
        ("level(1)", "other(2)", "from PKG.algorithms.levels import level\nother = level", "algorithms.levels.level"),
        ("both(1)", "both(2)", "def both(x): ...", "claims.one.both"),
        ("self.both(1)", "self.both(2)", "class B(Claim):\n    def both(self, x): ...", "claims.one.B.both"),
        ("Sum(1)", "Sum(2)", "class Sum: ...", "claims.one.Sum"),
    ],
)
def test_what_both_sides_call_is_found(check: Check, predict: str, measure: str, top: str, name: str) -> None:
    body = f"def predict(self, data): return {predict}\ndef measure(self, run): return {measure}"
    found = check(body, top=top, base="B" if "class B" in top else "Claim")
    assert f"predict and measure both call {name}" in found


def test_both_sides_may_draw_data(check: Check) -> None:
    body = "def predict(self, data): return draw(1)\ndef measure(self, run): return draw(2)"
    assert check(body, top="from PKG.data.points import draw") == []


@pytest.mark.parametrize(
    ("predict", "said"),
    [
        ("def predict(self, data, run): ...", "predict takes self, data, run"),
        ("def predict(self, run): ...", "predict takes self, run"),
        ("def predict(self, data, *, run=None): ...", "predict takes self, data, *, run=None"),
        ("def predict(self, data, *rest): ...", "predict takes self, data, *rest"),
        ("def predict(self, data, **rest): ...", "predict takes self, data, **rest"),
        ("def predict(self, data): return data.trainer.x", "predict looks at trainer"),
        ("def predict(self, data): return getattr(data, 'model')", "predict looks at model"),
        ("def predict(self, data): return self.both(data)\ndef both(self, d): return d.step_norms", "at step_norms"),
    ],
)
def test_a_prediction_that_sees_the_run_is_found(check: Check, predict: str, said: str) -> None:
    [line] = check(f"{predict}\ndef measure(self, run): return run.model.step_norms")
    assert said in line
