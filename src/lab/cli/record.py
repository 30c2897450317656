"""`lab record <run directory>`: keep a finished run's verdict and pictures, and write the index of what is recorded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lab import paths
from lab.cli.arguments import Arguments
from lab.cli.catalogue import Entry, by_chapter, foreign_override, heading
from lab.compose.files import experiments
from lab.errors import CRASHED, HOLDS, Refusal, nearest
from lab.rundir import FIGURE, RunDir, write_atomically

DESCRIPTION = """\
Keep the verdict, the figure and the pictures of a finished run in experiments/<name>/ and write
experiments/README.md anew.

Only what can be reproduced is kept: the run must be finished, hold, stem from a clean commit, and be that of the
experiment's own config (seed, devices, logger and folders are free)."""

SUFFIXES = (".svg", ".png")


def main(argv: list[str]) -> int:
    """Record a run, or only write or check the index."""
    arguments = Arguments("record", DESCRIPTION)
    arguments.add_argument("run_directory", nargs="?", type=Path, help="the folder of the run, outputs/<name>/<id>")
    arguments.add_argument(
        "--index-only", action="store_true", help="write experiments/README.md from what is recorded"
    )
    arguments.add_argument(
        "--check", action="store_true", help="exit with 1 if experiments/README.md is not up to date"
    )
    arguments.add_argument("--dirty", action="store_true", help="also keep a run of a tree with uncommitted changes")
    given = arguments.parse_args(argv)
    if given.index_only + given.check + (given.run_directory is not None) != 1:
        raise Refusal("record: say one of <run directory>, --index-only and --check; see lab record --help")
    readme = paths.EXPERIMENTS / "README.md"
    if given.check:
        if readme.is_file() and readme.read_text(encoding="utf-8") == index():
            return HOLDS
        print("experiments/README.md is not what is recorded: write it with lab record --index-only")
        return CRASHED
    if given.run_directory is not None:
        print(f"recorded in {_here(record(given.run_directory, allow_dirty=given.dirty))}")
    readme.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(readme, index())
    print(f"wrote {_here(readme)}")
    return HOLDS


def record(path: Path, *, allow_dirty: bool = False) -> Path:
    """Copy verdict and figures of the run in `path` to its experiment's folder, which is returned."""
    run = RunDir(path)
    if not run.config.is_file():
        raise Refusal(f"{path} is not a run directory: it has no config.yaml")
    if not run.finished:
        raise Refusal(f"{path} is not finished: it has no verdict.json; go on with {run.continued}")
    try:
        verdict = run.read_verdict()
        name, holds, provenance = str(verdict["experiment"]), bool(verdict["holds"]), dict(verdict["provenance"])
    except (ValueError, KeyError, TypeError):
        raise Refusal(f"{run.verdict} is not a verdict") from None
    cfg = run.read_config()
    _refuse_unfit(run, name, cfg.get("control"), holds, provenance, allow_dirty)
    drawn = [f"{picture}{suffix}" for picture in (FIGURE, *cfg.get("pictures", {})) for suffix in SUFFIXES]
    for file in drawn:
        if not (path / file).is_file():
            raise Refusal(f"{path} has no {file}")
    folder = paths.EXPERIMENTS / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in drawn:
        write_atomically(folder / file, (path / file).read_bytes())
    write_atomically(folder / "verdict.json", run.verdict.read_bytes())
    return folder


def _refuse_unfit(
    run: RunDir, name: str, control: str | None, holds: bool, provenance: dict[str, Any], allow_dirty: bool
) -> None:
    """Refuse what would not be a fair record of the experiment."""
    known = experiments()
    if name not in known:
        raise Refusal(f"{run.path} is a run of {name}, which is no experiment here{nearest(name, known)}")
    if control is not None:
        raise Refusal(f"{run.path} is a run of the control {control}, which is there to be refuted")
    if not holds:
        raise Refusal(f"{run.path}: a claim was refuted; only a verdict that holds is recorded")
    if (override := foreign_override(run.overrides)) is not None:
        raise Refusal(f"{run.path} was run with {override}; the record is of the experiment's own config")
    if not allow_dirty and (provenance.get("dirty") is not False or not provenance.get("commit")):
        raise Refusal(f"{run.path} stems from uncommitted changes: commit and run again, or say --dirty")


def index() -> str:
    """experiments/README.md: chapter → experiment → claims → last recorded verdict."""
    lines = [
        "# Experiments",
        "",
        "Written by `lab record`; do not edit. Every experiment by chapter, its claims, and the verdict recorded last.",
    ]
    for chapter, entries in by_chapter().items():
        lines += ["", f"## Chapter {heading(chapter)}"]
        for found in entries:
            lines += ["", *_section(found)]
    return "\n".join(lines) + "\n"


def _section(found: Entry) -> list[str]:
    link = f"[{found.name}]({os.path.relpath(found.page, paths.EXPERIMENTS)})" if found.page else found.name
    lines = [f"### {link}", "", f"{found.title}.", ""]
    recorded = paths.EXPERIMENTS / found.name / "verdict.json"
    if not recorded.is_file():
        lines += ["Not recorded yet.", "", "| claim | |", "| --- | --- |"]
        return lines + [f"| {claim} | {_cell(found.statement(claim))} |" for claim in found.claims]
    from lab.claim import Verdict
    from lab.table import SIGN, written

    verdict = Verdict.from_json(json.loads(recorded.read_text(encoding="utf-8")))
    judged = {claim.name: claim for claim in verdict.claims}
    lines += ["| claim | | predicted | measured | ± | allowed | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for claim in found.claims:
        said = _cell(found.statement(claim))
        if claim not in judged:
            lines.append(f"| {claim} | {said} | | | | | not recorded |")
            continue
        numbers = written(judged[claim])
        cells = [
            f"{SIGN[judged[claim].relation]} {numbers.predicted}",
            numbers.measured,
            numbers.error,
            numbers.allowed,
        ]
        lines.append(f"| {claim} | {said} | {' | '.join(cells)} | {'holds' if judged[claim].holds else 'refuted'} |")
    links = [f"[Figure]({found.name}/{FIGURE}.svg)"]
    links += [f"[{picture.replace('_', ' ')}]({found.name}/{picture}.svg)" for picture in found.pictures]
    return [*lines, "", f"{_provenance(verdict.provenance)} {', '.join(links)}."]


def _provenance(provenance: dict[str, Any]) -> str:
    """When, from which commit and on what the verdict was reached."""
    commit = str(provenance.get("commit") or "unknown")[:12] + (" with changes" if provenance.get("dirty") else "")
    day = str(provenance.get("finished", "unknown"))[:10]
    torch = provenance.get("versions", {}).get("torch", "unknown")
    return (
        f"Recorded {day}, commit {commit}, seed {provenance.get('seed')}, {provenance.get('world_size')} × "
        f"{provenance.get('device')}, {provenance.get('seconds')} s, torch {torch}."
    )


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _here(path: Path) -> str:
    """A path as short as it can be written from here."""
    return os.path.relpath(path)
