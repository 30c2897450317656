"""A verdict on the terminal, and many verdicts in one table."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lab.claim import Judged, Kind, Verdict

Outcome = Literal["holds", "refuted", "refuted as it must", "holds but must be refuted", "crashed"]

SIGN: dict[Kind, str] = {"equal": "=", "at_most": "≤", "at_least": "≥"}
_ASCII = str.maketrans({"≤": "<=", "≥": ">=", "±": "+/-", "✓": "ok", "✗": "FAIL", "·": "-"})


def number(value: float, resolution: float, *, least: int = 4) -> str:
    """`value` with so many significant digits that a change of `resolution` shows: at least `least`, at most 15."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    digits = least
    if 0 < resolution < math.inf:
        digits = max(least, math.floor(math.log10(abs(value))) - math.floor(math.log10(resolution) + 1e-3) + 2)
    return f"{value:#.{min(digits, 15)}g}".replace(".e", "e").rstrip(".")


def resolution(difference: float, allowed: float, error: float = 0.0) -> float:
    """What must show in a claim's numbers: difference and error, but nothing below a hundredth of what is allowed."""
    seen = min((abs(v) for v in (difference, error) if v and math.isfinite(v)), default=0.0)
    return max(seen, allowed / 100 if math.isfinite(allowed) else 0.0)


@dataclass(frozen=True)
class Written:
    """The numbers of one judged claim as text, each with the digits the comparison needs."""

    predicted: str
    measured: str
    error: str
    difference: str
    allowed: str


def written(judged: Judged) -> Written:
    """The numbers of `judged` as text; no error, or none that is a number, is the empty string."""
    error = judged.standard_error
    shown = resolution(judged.difference, judged.tolerance, error)
    return Written(
        predicted=number(judged.predicted, shown),
        measured=number(judged.measured, shown),
        error=number(error, 0.0, least=2) if error and math.isfinite(error) else "",
        difference=number(judged.difference, 0.0, least=3),
        allowed=number(judged.tolerance, 0.0, least=3),
    )


class VerdictTable:
    """The claims of a verdict: a table where its numbers fit into the width, else one short paragraph a claim."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._table(options.ascii_only)
        if _width(table, console, options) <= options.max_width:
            yield table
            yield Text()
        else:
            yield self._paragraphs(options.ascii_only)
        yield self._conclusion()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, _width(self._table(options.ascii_only), console, options))

    def _table(self, ascii_only: bool) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        table.add_column("claim", no_wrap=True)
        for heading in ("predicted", _plain("measured ± error", ascii_only), "difference", "allowed"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for judged in self.verdict.claims:
            predicted, measured, difference, allowed = _cells(judged, ascii_only)
            mark = _mark(judged.holds, ascii_only)
            if judged.note:
                mark.append(f"  {_plain(judged.note, ascii_only)}", style="dim")
            table.add_row(judged.name, predicted, measured, difference, allowed, mark)
        return table

    def _paragraphs(self, ascii_only: bool) -> Text:
        text = Text()
        for judged in self.verdict.claims:
            text.append(f"{judged.name}  ").append(_mark(judged.holds, ascii_only)).append("\n")
            cells = zip(("predicted", "measured", "difference", "allowed"), _cells(judged, ascii_only), strict=True)
            for heading, cell in cells:
                text.append(f"  {heading:<10} ", style="dim").append(f"{cell}\n")
            if judged.note:
                text.append(f"  {_plain(judged.note, ascii_only)}\n", style="dim")
        return text

    def _conclusion(self) -> Text:
        count = len(self.verdict.claims)
        refuted = [judged.name for judged in self.verdict.claims if not judged.holds]
        if not refuted:
            return Text.assemble(("holds", "bold green"), f": {count} of {count} claims")
        return Text.assemble(("refuted", "bold red"), f": {len(refuted)} of {count} claims ({', '.join(refuted)})")


def render(verdict: Verdict) -> VerdictTable:
    """The verdict as something rich can print, at any width and in any encoding."""
    return VerdictTable(verdict)


def print_verdict(verdict: Verdict, run_dir: Path, console: Console | None = None) -> None:
    """Print the table and, under it, where the run's record, figure and directory are.

    Without a console it goes to standard output; where that is no terminal it is as wide as its numbers need.
    """
    table = render(verdict)
    console = console or stdout(table)
    console.print(Text(f"{verdict.experiment}\n", style="bold"), table, sep="\n")
    console.print()
    for heading, path in (
        ("verdict", run_dir / "verdict.json"),
        ("figure", run_dir / "figure.png"),
        ("run", run_dir),
    ):
        if path.exists():
            line = Text.assemble((f"{heading:<8}", "dim"), _encodable(_from_here(path), console))
            console.print(line, soft_wrap=True)


def _cells(judged: Judged, ascii_only: bool) -> tuple[str, str, str, str]:
    """Predicted with its relation, measured with its error, difference, allowed."""
    text = written(judged)
    predicted = f"{SIGN[judged.relation]} {text.predicted}"
    measured = f"{text.measured} ± {text.error}" if text.error else text.measured
    return _plain(predicted, ascii_only), _plain(measured, ascii_only), text.difference, text.allowed


def _mark(good: bool, ascii_only: bool) -> Text:
    return Text.assemble((_plain("✓" if good else "✗", ascii_only), "bold green" if good else "bold red"))


def _plain(text: str, ascii_only: bool) -> str:
    return text.translate(_ASCII) if ascii_only else text


def _encodable(text: str, console: Console) -> str:
    """`text` with what the console's encoding lacks written as escapes."""
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)


def _from_here(path: Path) -> str:
    """`path` relative to the working directory when it lies below it."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


@dataclass(frozen=True, kw_only=True)
class VerifyRow:
    """One claim of one verified run. Of a control's run, only the claims it must refute are rows.

    `difference` and `tolerance` are those of `lab.claim.Judged`. A run that crashed is one row whose numbers are NaN.
    """

    experiment: str
    seed: int
    control: str | None
    claim: str
    outcome: Outcome
    predicted: float = math.nan
    measured: float = math.nan
    standard_error: float = math.nan
    difference: float = math.nan
    tolerance: float = math.nan

    @property
    def as_theory_says(self) -> bool:
        return self.outcome == ("holds" if self.control is None else "refuted as it must")

    @property
    def ratio(self) -> float:
        """difference / allowed, a pure number: at most 1 where the claim holds; 0 or ∞ where nothing is allowed."""
        if not self.tolerance:
            return math.nan if math.isnan(self.difference) else math.inf if self.difference > 0 else 0.0
        return self.difference / self.tolerance


def verify_table(rows: Iterable[VerifyRow], console: Console | None = None) -> bool:
    """Print one line per experiment, control and claim, its seeds together; True if all is as theory says.

    `worst` is difference/allowed of the seed nearest to the wrong side of 1: the largest for a claim, the smallest for
    a control. No rows at all is not as theory says.
    """
    rows = list(rows)
    table = _VerifyTable(rows)
    (console or stdout(table)).print(table)
    return table.as_theory_says


class _VerifyTable:
    """Rows by experiment and control, the seeds of a claim in one line, and what they come to."""

    def __init__(self, rows: Sequence[VerifyRow]) -> None:
        self.rows = rows
        self.wrong = sum(not row.as_theory_says for row in rows)
        self.as_theory_says = bool(rows) and not self.wrong

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table(options.ascii_only)
        yield Text.assemble("\n", self._conclusion())

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, _width(self._table(options.ascii_only), console, options))

    def _table(self, ascii_only: bool) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("experiment", overflow="fold")
        table.add_column("claim", overflow="fold")
        table.add_column("seeds", justify="right", overflow="fold")
        table.add_column("worst", justify="right", overflow="fold")
        table.add_column("")
        groups: dict[tuple[str, str | None], dict[str, list[VerifyRow]]] = {}
        for row in self.rows:
            groups.setdefault((row.experiment, row.control), {}).setdefault(row.claim, []).append(row)
        for (experiment, control), claims in groups.items():
            heading = experiment if control is None else _plain(f"  · {control}", ascii_only)
            for claim, seeds in claims.items():
                good = sum(row.as_theory_says for row in seeds)
                mark = _mark(good == len(seeds), ascii_only).append(f" {_outcome(seeds)}")
                table.add_row(heading, claim, f"{good}/{len(seeds)}", _worst(seeds), mark)
                heading = ""
        return table

    def _conclusion(self) -> Text:
        count = len(self.rows)
        if not count:
            return Text("nothing was verified", style="bold red")
        if not self.wrong:
            return Text.assemble(("as theory says", "bold green"), f": {count} of {count}")
        return Text.assemble(("not as theory says", "bold red"), f": {self.wrong} of {count}")


def _worst(seeds: Sequence[VerifyRow]) -> str:
    """difference/allowed nearest to the wrong side of 1; empty when every run crashed."""
    ratios = [row.ratio for row in seeds if row.outcome != "crashed"]
    if not ratios:
        return ""
    finite = [ratio for ratio in ratios if not math.isnan(ratio)]
    if seeds[0].control is None:
        return f"{max(ratios):.3g}" if len(finite) == len(ratios) else "not finite"
    return f"{min(finite):.3g}" if finite else "not finite"


def _outcome(seeds: Sequence[VerifyRow]) -> str:
    """What came out, if it is as theory says for every seed; else what went wrong, with its seeds."""
    wrong: dict[str, list[str]] = {}
    for row in seeds:
        if not row.as_theory_says:
            wrong.setdefault(row.outcome, []).append(str(row.seed))
    if not wrong:
        return seeds[0].outcome
    return "; ".join(f"{what} (seed{'s'[: len(at) - 1]} {', '.join(at)})" for what, at in wrong.items())


def _width(table: Table, console: Console, options: ConsoleOptions) -> int:
    """Columns `table` takes when nothing in it is wrapped."""
    return Measurement.get(console, options.update(width=10_000), table).maximum


def stdout(table: RenderableType) -> Console:
    """Standard output; where it is no terminal, wide enough for all of `table`."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        natural = Measurement.get(console, console.options.update(width=10_000), table).maximum
        console.width = max(console.width, natural)
    return console
