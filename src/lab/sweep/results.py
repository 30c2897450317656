"""What came out of a sweep, read from its folder: rows, `results.csv`, a table. Imports nothing heavy."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lab.errors import Refusal
from lab.rundir import RunDir, write_atomically
from lab.sweep import queue
from lab.sweep.local import CONSOLE
from lab.sweep.plan import read_record

State = Literal["done", "running", "queued", "failed", "pruned", "waiting"]
RESULTS, TABLE = "results.csv", "table.txt"
ABSENT = "–"
PRUNED = "pruned"
"""The file in the run directory of a trial that a search gave up: says why."""


@dataclass(frozen=True)
class Row:
    """One point: what set it apart and what came out."""

    name: str
    values: dict[str, str]
    path: Path | str
    state: State
    objective: float = math.nan
    compared: str = ""
    """The name of the objective; "" where the run has no number of that name."""
    loss_of: str = ""
    """The experiment whose first loss the objective is; "" where one was asked for."""
    held: int = 0
    claims: int = 0
    seconds: float = math.nan
    reason: str = ""
    """Why there is no verdict."""
    job: str = ""
    """SLURM's, where it has one."""
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return self.state == "done" and self.held == self.claims


def collect(sweep: Path, jobs: Mapping[str, queue.Job] | None = None) -> list[Row]:
    """A row for each point of the sweep in this folder.

    Args:
        sweep: its folder.
        jobs: of its runs, where SLURM has been asked for them.
    """
    record = read_record(sweep)
    jobs = queue.jobs(sweep) if jobs is None else jobs
    rows = (
        row(entry["name"], entry["values"], sweep / entry["name"], record["objective"]) for entry in record["points"]
    )
    return [_with_job(found, jobs[found.name]) if found.name in jobs else found for found in rows]


def _with_job(row: Row, job: queue.Job) -> Row:
    """What SLURM knows better than the run directory: whether a run waits or runs, and what ended it."""
    row = replace(row, job=job.id)
    if row.state in ("done", "pruned"):
        return row
    if job.live:
        return replace(row, state="queued" if job.pending else "running", reason=job.why)
    log = Path(row.path).parent / queue.LOGS / f"{job.id}.log"
    return replace(row, state="failed", reason=job.why or row.reason or _last_line(log) or f"SLURM says {job.state}")


def row(name: str, values: dict[str, str], path: Path, objective: str | None) -> Row:
    """What the run directory `path` says."""
    run = RunDir(path)
    if not run.finished:
        if not run.log.exists() and not (path / CONSOLE).exists():  # perhaps frozen, but not begun
            return Row(name, values, path, "waiting")
        if run.is_held():
            return Row(name, values, path, "running")
        if (path / PRUNED).exists():
            return Row(name, values, path, "pruned", reason=_last_line(path / PRUNED))
        return Row(name, values, path, "failed", reason=_last_line(path / CONSOLE))
    try:
        verdict, history = run.read_verdict(), metrics(run.metrics)
    except Refusal as refusal:  # hides no other run
        return Row(name, values, path, "failed", reason=str(refusal))
    claims = verdict["claims"]
    compared = objective or first_loss(history)
    return Row(
        name,
        values,
        path,
        "done",
        objective=final(compared, claims, history),
        compared=compared if is_there(compared, claims, history) else "",
        loss_of="" if objective else verdict["experiment"],
        held=sum(claim["holds"] for claim in claims),
        claims=len(claims),
        seconds=seconds if isinstance(seconds := verdict["provenance"].get("seconds"), int | float) else math.nan,
        measured={claim["name"]: _number(claim["measured"]) for claim in claims},
    )


def first_loss(history: Iterable[str]) -> str:
    """The column by which runs are compared where nothing else is said: `loss`, `loss/net`, or the first by its name.

    Not the first in order: wandb's files do not keep that of metrics.csv.
    """
    losses = (name for name in history if name.startswith("loss"))
    return min(losses, key=lambda name: (name not in ("loss", "loss/net"), name), default="")


def final(name: str, claims: Sequence[Mapping[str, Any]], history: Mapping[str, Sequence[float]]) -> float:
    """The number by which runs are compared; NaN where the run has none of that name.

    `claim/<name>/measured` (or another of its numbers) is the verdict's; every other name is a column of metrics.csv,
    whose last value counts.
    """
    if name.startswith("claim/"):
        found, number = _claim(name, claims)
        return _number(found.get(number))
    return history[name][-1] if history.get(name) else math.nan


def is_there(name: str, claims: Sequence[Mapping[str, Any]], history: Mapping[str, Sequence[float]]) -> bool:
    """Whether a run has a number of this name, be it finite or not."""
    if name.startswith("claim/"):
        found, number = _claim(name, claims)
        return number in found
    return bool(history.get(name))


def _claim(name: str, claims: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], str]:
    """(the claim, empty where there is none; which of its numbers) that `claim/<name>[/<number>]` means."""
    claim, _, number = name.removeprefix("claim/").partition("/")
    return next((entry for entry in claims if entry["name"] == claim), {}), number or "measured"


def shared_objective(rows: Iterable[Row]) -> str:
    """The name of the number that all these runs have been compared by; "" where they share none.

    The first losses of two experiments are two numbers, even under one name.
    """
    names = {(row.compared, row.loss_of) for row in rows if row.compared}
    return names.pop()[0] if len(names) == 1 else ""


def metrics(path: Path) -> dict[str, list[float]]:
    """The columns of a metrics.csv, `step` among them; none where there is no whole row yet."""
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
        header, whole = (rows[0], [r for r in rows[1:] if len(r) == len(rows[0])]) if rows else ([], [])
        return {name: [float(r[i]) for r in whole] for i, name in enumerate(header)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as error:
        raise Refusal(f"{path} is torn or no table of numbers: {error}") from None


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line a point, every swept value and every claim's measurement in a column of its own.

    What the objective is stands beside it: runs of several experiments are not all compared by the same number.
    """
    swept = list(dict.fromkeys(key for row in rows for key in row.values))
    claims = list(dict.fromkeys(name for row in rows for name in row.measured))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    columns = ["state", "objective", "objective_name", "claims_held", "claims", "holds", "seconds", "run_dir", "reason"]
    writer.writerow(["run", *swept, *columns, *(f"claim/{name}/measured" for name in claims)])
    for row in rows:
        said = [row.state, _cell(row.objective), row.compared, row.held, row.claims]
        said += [str(row.holds).lower(), _cell(row.seconds)]
        measured = [_cell(row.measured.get(name, math.nan)) for name in claims]
        values = [row.values.get(key, "") for key in swept]
        writer.writerow([row.name, *values, *said, row.path, row.reason, *measured])
    write_atomically(path, text.getvalue())


@dataclass(frozen=True)
class Group:
    """Points that differ in the seed alone, or in all but what they are grouped by."""

    values: dict[str, str]
    rows: list[Row]

    @property
    def mean(self) -> float:
        seen = self._seen()
        return sum(seen) / len(seen) if seen else math.nan

    @property
    def standard_error(self) -> float:
        """Of the mean over seeds; NaN for fewer than two."""
        seen, mean = self._seen(), self.mean
        if len(seen) < 2:
            return math.nan
        return math.sqrt(sum((value - mean) ** 2 for value in seen) / (len(seen) - 1) / len(seen))

    def _seen(self) -> list[float]:
        return [row.objective for row in self.rows if math.isfinite(row.objective)]


def by_values(rows: Iterable[Row], by: Sequence[str] = ()) -> list[Group]:
    """Rows grouped by some of their values; by none: over seeds, where something else is swept as well."""
    groups: dict[Any, Group] = {}
    for row in rows:
        rest = {key: value for key, value in row.values.items() if key != "seed"}
        over_seeds = 0 < len(rest) < len(row.values)
        values = {key: row.values.get(key, "") for key in by} if by else rest if over_seeds else row.values
        key = tuple(values.items()) if by or over_seeds else row.name
        groups.setdefault(key, Group(values, [])).rows.append(row)
    return list(groups.values())


def print_table(
    rows: Sequence[Row], groups: Sequence[Group] | None = None, over: str = "seeds", file: Path | None = None
) -> None:
    """What varies, the objective and the claims held, a line for each combination of values.

    Args:
        rows: all of them.
        groups: the lines of the table; rows grouped over seeds where none are given.
        over: what the rows of a group differ in.
        file: where the table is written as well, as wide as it is.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lab.table import stdout

    groups = by_values(rows) if groups is None else groups
    compared = shared_objective(rows)
    several = any(len(group.rows) > 1 for group in groups)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for key in dict.fromkeys(key for group in groups for key in group.values):
        table.add_column(escape(key), overflow="fold")
    if several:
        table.add_column("runs", justify="right")
    table.add_column(
        escape(compared or "objective") + (f" (mean ± SE over {over})" if several else ""), justify="right"
    )
    table.add_column("claims held", justify="right")
    table.add_column("s", justify="right")
    table.add_column("", overflow="fold")
    for group in groups:
        done = [row for row in group.rows if row.state == "done"]
        missing = [row for row in group.rows if row.state != "done"]
        spread = f" ± {group.standard_error:.2g}" if math.isfinite(group.standard_error) else ""
        claims = f"{sum(row.held for row in done)}/{sum(row.claims for row in done)}" if done else ""
        said = "; ".join(dict.fromkeys(f"{row.state}{': ' if row.reason else ''}{row.reason}" for row in missing))
        seconds = f"{sum(row.seconds for row in done) / len(done):.1f}" if done else ""
        names = dict.fromkeys(row.compared for row in group.rows if row.compared)
        mean = f"{group.mean:.6g}{spread}" if math.isfinite(group.mean) else "not finite" if names else ABSENT
        mean = mean if done or names else ""
        mean = f"{', '.join(names)} {mean}" if names and not compared else mean
        counted = [str(len(group.rows))] if several else []
        cells = [*map(_short, group.values.values()), *counted, mean, claims, seconds, said]
        table.add_row(*map(escape, cells))
    stdout(table).print(table)
    if file is not None:
        text = io.StringIO()
        Console(file=text, width=Console(width=10_000).measure(table).maximum).print(table)
        write_atomically(file, text.getvalue())


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return said.removeprefix("lab: ")


def _short(text: str) -> str:
    """A number with more digits than anyone reads, shortened."""
    try:
        return f"{float(text):.6g}" if len(text) > 9 else text
    except ValueError:
        return text


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _cell(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""
