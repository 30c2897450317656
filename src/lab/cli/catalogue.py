"""What the experiments' own files say, read without composing them: enough for a list of all of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import paths
from lab.compose.files import experiments, lineage, source
from lab.errors import Refusal, nearest
from lab.signature import first_docstring_line

CHAPTERS = {
    1: "Introduction to Computing",
    2: "Basics of Machine Learning",
    3: "Linear Algebra",
    4: "Calculus and Optimization",
    5: "Probability and Statistics",
    6: "Advanced",
}


FREE = (
    "experiment",
    "seed",
    "run_dir",
    "id",
    "data_root",
    "data.path",  # of a text; an experiment that reads one has none of its own
    "threads",
    "logger",
    "trainer.devices",
    "trainer.accelerator",
)
"""Overrides under which a run is still the experiment's own."""


def foreign_override(overrides: Path) -> str | None:
    """The first of a run's overrides (its file of that name) under which it is not the experiment's own, or None."""
    lines = overrides.read_text(encoding="utf-8").splitlines() if overrides.is_file() else []
    return next((line for line in filter(None, lines) if line.lstrip("+").partition("=")[0] not in FREE), None)


@dataclass(frozen=True)
class Entry:
    """An experiment as its file states it."""

    name: str
    title: str
    chapter: int
    claims: dict[str, str]
    """Claim → the class that states it."""
    controls: dict[str, Any]
    pictures: tuple[str, ...] = ()

    def statement(self, claim: str) -> str:
        """The claim in one line: the first line of its class's docstring, or what is wrong with the class."""
        try:
            return first_docstring_line(self.claims[claim])
        except Refusal as refusal:
            return str(refusal)

    @property
    def page(self) -> Path | None:
        """Its theory page: its own, or that of the experiment it varies."""
        pages = (paths.EXPERIMENTS / name / "README.md" for name in lineage(self.name))
        return next((page for page in pages if page.is_file()), None)


def entry(name: str) -> Entry:
    """The experiment called `name`; a Refusal when there is none."""
    known = experiments()
    if name not in known:
        raise Refusal(f"there is no experiment {name}{nearest(name, known)}; allowed: {', '.join(known)}")
    said = source(name)
    claims = {claim: str(node.get("_target_", "")) for claim, node in _mapping(said, "claims").items()}
    return Entry(
        name,
        str(said.get("title", "")),
        int(said.get("chapter") or 0),
        claims,
        dict(_mapping(said, "controls")),
        tuple(_mapping(said, "pictures")),
    )


def by_chapter() -> dict[int, list[Entry]]:
    """All experiments, chapter by chapter."""
    chapters: dict[int, list[Entry]] = {}
    for found in sorted(map(entry, experiments()), key=lambda e: (e.chapter, e.name)):
        chapters.setdefault(found.chapter, []).append(found)
    return chapters


def heading(chapter: int) -> str:
    """`3 · Linear Algebra`"""
    return f"{chapter} · {CHAPTERS[chapter]}" if chapter in CHAPTERS else f"{chapter}"


def refuted_by(controls: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """(control, the claims it must refute) for each control."""
    for name, control in controls.items():
        yield name, ", ".join(control.get("refutes", []))


def _mapping(said: dict[str, Any], key: str) -> dict[str, Any]:
    value = said.get(key) or {}
    return value if isinstance(value, dict) else {}
