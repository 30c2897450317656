"""What was run, read from what it left: run directories, sweeps, wandb's files. Imports nothing heavy.

The files may come from another machine, another version of the lab or a process that was killed, so nothing in them is
taken for granted: what cannot be read is a Refusal of one line.
"""

from __future__ import annotations

import glob
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lab.errors import Refusal, nearest
from lab.machine import usable_cores
from lab.rundir import RunDir, flat
from lab.sweep import results
from lab.sweep.plan import RECORD, read_record
from lab.sweep.results import State

DEPTH = 4
"""Levels below a folder at which runs are looked for: outputs/sweeps/<experiment>/<sweep>."""
LARGEST_CONFIG = 4_000_000
_KINDS = (
    "a run directory has config.yaml or verdict.json, a sweep's folder sweep.json, wandb's folder of a run a .wandb "
    "file"
)

Curve = tuple[list[float], list[float]]
"""Steps and values."""


@dataclass(frozen=True)
class Claim:
    """One judged claim as a record tells it; a number that it lacks is NaN."""

    name: str
    predicted: float
    measured: float
    standard_error: float
    tolerance: float
    holds: bool
    relation: str = ""
    """`equal`, `at_most`, `at_least`, or nothing where the record does not say."""


@dataclass(frozen=True)
class Loaded:
    """One run, whatever it was read from."""

    name: str
    source: Path | str
    """A run directory, a .wandb file, or the address of a run in the app."""
    state: State
    config: dict[str, Any] = field(default_factory=dict)
    """With dotted keys."""
    swept: dict[str, str] = field(default_factory=dict)
    """What its sweep varied, as on the command line."""
    claims: tuple[Claim, ...] = ()
    curves: dict[str, Curve] = field(default_factory=dict)
    seconds: float = math.nan
    reason: str = ""
    """Why there is no verdict."""
    id: str = ""

    @property
    def experiment(self) -> str:
        return str(self.config.get("name", ""))


def load(words: Sequence[str]) -> list[Loaded]:
    """The runs that paths, patterns and wandb:// addresses stand for, each under a name of its own.

    What is named and cannot be read is refused; what lies in a folder that is named, or matches a pattern, is left out
    with a line on standard error.
    """
    runs: list[Loaded] = []
    for word in words:
        if word.startswith("wandb:"):
            from lab.compare.wandb import online

            runs += online(word)
        else:
            runs += _local(word)
    return _under_own_names(_furthest_segments(_once(runs)))


def _local(word: str) -> list[Loaded]:
    path = Path(word)
    if path.exists():
        sources = list(_sources(path, DEPTH))
        if not sources:
            raise Refusal(f"{word} is no run and holds none: {_KINDS}")
    elif glob.has_magic(word):
        matches = (Path(found) for found in sorted(glob.glob(word, recursive=True)))  # noqa: PTH207 - may be absolute
        sources = [source for match in matches for source in _sources(match, 0)]
        if not sources:
            raise Refusal(f"{word} matches no run: {_KINDS}")
    else:
        beside = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise Refusal(f"{word} does not exist{nearest(str(path), beside)}")
    with ThreadPoolExecutor(len(usable_cores())) as pool:  # wandb's files are read by processes of wandb's
        read = list(pool.map(lambda source: _read(*source, named=source[0] == path), sources))
    runs = [run for run in read if run is not None]
    if not runs:
        raise Refusal(f"{word} holds no run that can be read")
    return runs


Source = tuple[Path, dict[str, str] | None, str]
"""A run directory or a .wandb file, and what its sweep says that it varied, and of which experiment."""


def _sources(path: Path, depth: int) -> Iterator[Source]:
    if path.is_file():
        if path.suffix == ".wandb":
            yield path, None, ""
        elif path.name in (RECORD, "config.yaml", "verdict.json"):
            yield from _sources(path.parent, 0)
        return
    if (path / RECORD).exists():
        record = read_record(path)
        for point in record["points"]:
            yield path / point["name"], point["values"], point["values"].get("experiment", record["experiment"])
    elif any((path / file).exists() for file in ("config.yaml", "verdict.json")):
        yield path, None, ""
    elif files := sorted(path.glob("*.wandb")):
        yield files[0], None, ""
    elif depth:
        for child in sorted(path.iterdir()):
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _sources(child, depth - 1)


def _read(path: Path, swept: dict[str, str] | None, experiment: str, *, named: bool) -> Loaded | None:
    try:
        if path.suffix == ".wandb":
            from lab.compare.wandb import offline

            return offline(path)
        return run_directory(path, swept or {}, experiment)
    except Refusal as refusal:
        if named:
            raise
        print(f"lab: left out: {' '.join(str(refusal).split())}", file=sys.stderr)
        return None


def run_directory(path: Path, swept: dict[str, str] | None = None, experiment: str = "") -> Loaded:
    """What a run directory holds, or what `lab record` kept of one.

    Args:
        swept: what its sweep varied, which is all that is known of a point that has not begun.
        experiment: what its sweep is of.
    """
    run = RunDir(path)
    config = read_config(run.config) if run.config.exists() else dict(swept or {})
    if experiment:
        config.setdefault("name", printable(experiment))
    name = path.resolve().name
    columns = results.metrics(run.metrics)
    steps = columns.pop("step", [])
    curves = {printable(column): (steps, values) for column, values in columns.items()}
    if not run.finished:
        there = results.row(name, {}, path, None)
        return Loaded(
            name, path, there.state, config, swept or {}, curves=curves, reason=printable(there.reason), id=name
        )
    record = read_verdict(run.verdict)
    provenance = record["provenance"]
    config.setdefault("name", printable(record["experiment"]))
    config.setdefault("seed", provenance.get("seed"))
    claims = tuple(claim(entry["name"], entry) for entry in record["claims"])
    seconds = number(provenance.get("seconds"))
    return Loaded(name, path, "done", config, swept or {}, claims, curves, seconds, id=str(config.get("id") or name))


def read_verdict(path: Path) -> dict[str, Any]:
    """verdict.json with what every version of it has; a Refusal where it lacks that."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise Refusal(f"{path} is torn: it is not JSON") from None
    match record:
        case {"experiment": str(), "claims": list(claims), "provenance": dict()}:
            if all(isinstance(c, dict) and isinstance(c.get("name"), str) and "holds" in c for c in claims):
                return dict(record)
    raise Refusal(f"{path} is not a verdict: it has no experiment, claims and provenance")


def read_config(path: Path) -> dict[str, Any]:
    """A frozen config.yaml with dotted keys; a Refusal where it is none."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError
        text = path.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=loader)):
            raise ValueError  # aliases of aliases are small here and endless once written out
        content = yaml.load(text, Loader=loader)
        if isinstance(content, dict) and content:
            return {printable(key): _clean(value) for key, value in flat(content).items()}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        pass
    raise Refusal(f"{path} is torn or not the config of a run")


def claim(name: str, record: dict[str, Any]) -> Claim:
    """A claim from whatever numbers there are."""
    numbers = {key: number(record.get(key)) for key in ("predicted", "measured", "standard_error", "tolerance")}
    relation = record.get("relation")
    known = relation if relation in ("equal", "at_most", "at_least") else ""
    return Claim(printable(name), **numbers, holds=record.get("holds") is True, relation=known)


def number(value: Any) -> float:
    """A number from a record; NaN for everything else. "NaN" and "Infinity" are how some of them write these."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def printable(text: Any) -> str:
    """`text` without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    return [_clean(item) for item in value] if isinstance(value, list) else value


def _once(runs: Iterable[Loaded]) -> list[Loaded]:
    by_source = {run.source.resolve() if isinstance(run.source, Path) else run.source: run for run in runs}
    return list(by_source.values())


def _furthest_segments(runs: Iterable[Loaded]) -> list[Loaded]:
    """Of the folders that a resumed run leaves with wandb, the one that got furthest, and of equals the newest.

    Each repeats the curves from the beginning, so that is the newest, unless it is torn.
    """
    kept: dict[Any, Loaded] = {}
    for run in runs:
        path = run.source
        segment = isinstance(path, Path) and path.suffix == ".wandb"
        key = (path.resolve().parent.parent, run.id) if segment and isinstance(path, Path) else str(path)
        there = kept.get(key)
        if there is None or _reached(there) < _reached(run):
            kept[key] = run
    return list(kept.values())


def _reached(segment: Loaded) -> tuple[float, bool, str]:
    """How far a segment got: its last step, whether it came to claims, and when it began, as its folder's name says."""
    last = max((steps[-1] for steps, _ in segment.curves.values() if steps), default=-math.inf)
    folder = segment.source.resolve().parent.name if isinstance(segment.source, Path) else ""
    return last, bool(segment.claims), folder.removeprefix("offline-")


def _under_own_names(runs: Sequence[Loaded]) -> list[Loaded]:
    """Longer names, with the folders above, where two runs would have the same."""
    for depth in range(2, 6):
        names = Counter(run.name for run in runs)
        if len(names) == len(runs):
            break
        runs = [replace(run, name=_longer(run, depth)) if names[run.name] > 1 else run for run in runs]
    seen: dict[str, int] = {}
    unique = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        unique.append(replace(run, name=f"{run.name} ({seen[run.name]})") if seen[run.name] > 1 else run)
    return unique


def _longer(run: Loaded, depth: int) -> str:
    if isinstance(run.source, str):
        return f"{run.name} {run.id}" if run.id not in run.name else run.name
    return printable("/".join(run.source.resolve().parts[-depth:]))
