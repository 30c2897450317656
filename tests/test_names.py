"""One name for one thing: experiment, file, page, claim and control correspond, and say where they are from."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lab
from lab import paths
from lab.compose import files as conf_files
from lab.signature import attribute, docstring, first_docstring_line, signature
from lab.signature.source import find, lineage

PACKAGE = Path(lab.__file__).parent
EXPERIMENTS = conf_files.experiments()
ORIGINALS = [name for name in EXPERIMENTS if conf_files.lineage(name) == (name,)]
"""The experiments that vary no other."""
CLAIM_FILES = sorted(path.stem for path in (PACKAGE / "claims").glob("*.py") if path.stem != "__init__")


def experiment_of(stem: str) -> str:
    """The experiment whose claims a file has: that of its name, or in a part of them, `<experiment>_<part>`."""
    return max((name for name in EXPERIMENTS if f"{stem}_".startswith(f"{name}_")), key=len, default="")


def claims_of(name: str) -> dict[str, str]:
    """Claim → target, as the experiment's files say."""
    return {claim: node["_target_"] for claim, node in conf_files.source(name)["claims"].items()}


def bases(target: str) -> set[str]:
    found = find(target)
    assert found is not None
    return {owner.node.name for owner in lineage(found)} - {target.rpartition(".")[2]}


def public(path: Path) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of every public class and function that a file of the package defines."""
    module = ".".join(("lab", *path.relative_to(PACKAGE).with_suffix("").parts))
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{module}.{node.name}", ast.get_docstring(node) or ""


CLAIMS = [
    target
    for path in sorted((PACKAGE / "claims").glob("*.py"))
    for target, _ in public(path)
    if "Claim" in bases(target)
]
THEORY = {name: text for path in sorted((PACKAGE / "theory").rglob("*.py")) for name, text in public(path)}


def test_there_is_something_to_hold() -> None:
    assert {"linear_regression", "pca_autoencoder"} <= set(ORIGINALS)
    assert len(CLAIMS) >= 9
    assert len(THEORY) >= 7


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_called_the_same_everywhere(name: str) -> None:
    family = conf_files.lineage(name)
    assert conf_files.source(name)["name"] == name
    assert any(member in CLAIM_FILES for member in family), f"src/lab/claims/{name}.py is missing"
    assert (paths.EXPERIMENTS / family[-1] / "README.md").is_file(), f"experiments/{family[-1]}/README.md is missing"
    for target in claims_of(name).values():
        module = target.rpartition(".")[0]
        package, _, stem = module.rpartition(".")
        assert package == "lab.claims"
        assert experiment_of(stem) in family, f"{target} is not of {' or '.join(family)}"
        assert "Claim" in bases(target), f"{target} is no Claim"
        assert signature(target)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_picture_is_of_its_experiment(name: str) -> None:
    for target in (node["_target_"] for node in conf_files.source(name).get("pictures", {}).values()):
        module = target.rpartition(".")[0]
        assert module in {f"lab.pictures.{member}" for member in conf_files.lineage(name)}, target
        assert "Picture" in bases(target), f"{target} is no Picture"
        assert docstring(target), f"{target} has no caption"


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_experiment_is_recorded(name: str) -> None:
    folder = paths.EXPERIMENTS / name
    drawn = ["figure", *conf_files.source(name).get("pictures", {})]
    files = {"verdict.json", *(f"{picture}{suffix}" for picture in drawn for suffix in (".svg", ".png"))}
    there = {path.name for path in folder.iterdir()} - {"README.md"}
    assert files <= there, f"lab record has not put {', '.join(files - there)} into experiments/{name}"
    assert there <= files, f"experiments/{name} has {', '.join(there - files)}, which no config draws"
    verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    assert verdict["experiment"] == name
    assert verdict["holds"] is True
    assert [claim["name"] for claim in verdict["claims"]] == list(claims_of(name))


def test_nothing_is_left_over() -> None:
    assert {experiment_of(stem) for stem in CLAIM_FILES} <= set(EXPERIMENTS)
    assert {target.split(".")[2] for target in CLAIMS} == set(CLAIM_FILES)
    assert {path.stem for path in (PACKAGE / "pictures").glob("*.py")} - {"__init__"} <= set(EXPERIMENTS)
    assert {path.name for path in paths.EXPERIMENTS.iterdir() if path.is_dir()} <= set(EXPERIMENTS)


@pytest.mark.parametrize("target", CLAIMS)
def test_a_claim_is_made_by_its_experiment(target: str) -> None:
    assert target in claims_of(experiment_of(target.split(".")[2])).values()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_claim_can_be_refuted(name: str) -> None:
    claims, controls = set(claims_of(name)), conf_files.source(name)["controls"]
    refuted = {claim for control in controls.values() for claim in control["refutes"]}
    assert refuted <= claims, f"controls name {refuted - claims}, which {name} does not claim"
    assert claims <= refuted, f"no control of {name} refutes {claims - refuted}"


REFERENCE = re.compile(r"\((?=[^()]*(?:\b1[89]\d\d\b|\b20\d\d\b|§|\bch\.|\bThm\b|\bProp\.))[^()]*[A-Z][^()]*\)")
"""`(Boyd & Vandenberghe, Convex Optimization, §9.3)`: in parentheses, with a name and a year, section or theorem."""


@pytest.mark.parametrize("name", THEORY)
def test_theory_says_where_it_is_from(name: str) -> None:
    assert REFERENCE.search(THEORY[name]), f"{name} has no reference in parentheses"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(Eckart & Young 1936; Mirsky 1960)", True),
        ("(Boyd & Vandenberghe, §9.3.)", True),
        ("ρ = (κ − 1)/(κ + 1)", False),
        ("(d, d) → (d,)", False),
        ("Boyd & Vandenberghe, §9.3", False),
        ("(in 1936)", False),
    ],
)
def test_what_counts_as_a_reference(text: str, found: bool) -> None:
    assert bool(REFERENCE.search(text)) is found


@pytest.mark.parametrize("target", CLAIMS)
def test_a_claim_is_one_line_with_a_reference(target: str) -> None:
    statement, _, rest = docstring(target).partition("\n")
    assert statement == first_docstring_line(target) != ""
    assert not rest or rest.startswith("\n"), f"the statement of {target} runs over its first line"
    assert re.search(r"[A-Z]\w+.*(\d|§)", attribute(target, "reference")), f"{target} has no reference"
    assert re.match(r"(equal|at_most|at_least)\(", attribute(target, "relation"))
