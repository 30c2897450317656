"""Runs in a table: what differs between them, what came out, their claims side by side. Imports nothing heavy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from lab.compare.load import Claim, Loaded
from lab.errors import Refusal, nearest
from lab.sweep.results import ABSENT, Group, Row, by_values, final, first_loss, is_there
from lab.table import SIGN, number, resolution

OF_ONE_RUN = ("id", "run_dir", "data_root", "title", "chapter")
OF_ONE_RUN_BELOW = ("logger", "callbacks", "controls", "claims", "pictures")
"""Keys, and groups of keys, that are no reason for runs to come out differently."""
COLUMNS = 8
"""More differing keys than this are named below the table."""
_NUMBERS = ("measured", "predicted", "standard_error", "tolerance")


class Comparison:
    """Runs, by what they are compared and into what they are grouped.

    Args:
        runs: of `lab.compare.load`.
        by: keys of the config; runs that agree in these are one group. None: every run stands for itself.
        metric: a curve, whose last value counts, or `claim/<name>[/<number>]`; None: of each experiment
            the objective that its first run with one names, else the loss (`lab.sweep.results.first_loss`), else the
            first curve and else the first claim's measurement by name. Names alone decide: wandb keeps no order.
    """

    def __init__(self, runs: Sequence[Loaded], by: Sequence[str] = (), metric: str | None = None) -> None:
        self.runs, self.by = list(runs), tuple(by)
        known = list(dict.fromkeys(key for run in runs for key in run.config))
        for key in by:
            if key not in known:
                raise Refusal(
                    f"--by {key} is in no run's config{nearest(key, known)}; it takes keys such as {few(known)}"
                )
        if metric is not None:
            self._check_metric(metric)
        self._asked = metric

    def _check_metric(self, asked: str) -> None:
        curves = list(dict.fromkeys(name for run in self.runs for name in run.curves))
        claims = [f"claim/{name}" for name in self.claims]
        allowed = [*curves, *claims, *(f"{name}/{number}" for name in claims for number in _NUMBERS)]
        if asked not in allowed:
            raise Refusal(f"--metric {asked} is in no run{nearest(asked, allowed)}; allowed: {few([*curves, *claims])}")

    @cached_property
    def parts(self) -> list[Comparison]:
        """The runs of each experiment by themselves: other experiments have other keys, curves and claims."""
        experiments = dict.fromkeys(run.experiment for run in self.runs)
        if len(experiments) < 2:
            return [self]
        return [self._part([run for run in self.runs if run.experiment == name]) for name in experiments]

    def _part(self, runs: Sequence[Loaded]) -> Comparison:
        part = Comparison(runs)
        part.by, part._asked = self.by, self._asked  # which need not be in each part
        return part

    @cached_property
    def metric(self) -> str:
        """By what the runs are compared; of several experiments, what those of the first are compared by."""
        if self._asked is not None:
            return self._asked
        if len(self.parts) > 1:
            return self.parts[0].metric
        objective = next((str(run.config["objective"]) for run in self.runs if run.config.get("objective")), "")
        curves = sorted({name for run in self.runs for name in run.curves})
        return (
            objective
            or first_loss(curves)
            or next(iter([*curves, *(f"claim/{c}/measured" for c in sorted(self.claims))]), "")
        )

    @cached_property
    def claims(self) -> list[str]:
        """The names of all runs' claims."""
        return list(dict.fromkeys(claim.name for run in self.runs for claim in run.claims))

    @cached_property
    def differing(self) -> list[str]:
        """Keys of the config in which the runs differ; of several with the same values, the one a user would set."""
        keys = dict.fromkeys(key for run in self.runs for key in run.config)
        swept = {key for run in self.runs for key in run.swept}
        order = sorted(
            keys,
            key=lambda key: (
                key not in self.by,
                key not in swept,
                len({text(run.config[key]) for run in self.runs if key in run.config}) < 2,
                key.count("."),
                len(key),
            ),
        )
        seen: dict[tuple[str, ...], str] = {}
        for key in order:
            if key in OF_ONE_RUN or key.partition(".")[0] in OF_ONE_RUN_BELOW:
                continue
            texts = tuple(text(run.config.get(key, ABSENT)) for run in self.runs)
            if len(set(texts)) > 1:
                seen.setdefault(texts, key)
        return list(seen.values())

    @cached_property
    def rows(self) -> list[Row]:
        """One for each run, with everything in which it differs."""
        metrics = {run.name: part.metric for part in self.parts for run in part.runs}
        return [self._row(run, metrics[run.name]) for run in self.runs]

    def _row(self, run: Loaded, metric: str) -> Row:
        numbers = [asdict(claim) for claim in run.claims], {name: values for name, (_, values) in run.curves.items()}
        return Row(
            run.name,
            {key: text(run.config.get(key, ABSENT)) for key in dict.fromkeys([*self.by, *self.differing])},
            run.source,
            run.state,
            objective=final(metric, *numbers),
            compared=metric if is_there(metric, *numbers) else "",
            held=sum(claim.holds for claim in run.claims),
            claims=len(run.claims),
            seconds=run.seconds,
            reason=run.reason,
            measured={claim.name: claim.measured for claim in run.claims},
        )

    @cached_property
    def groups(self) -> list[Group]:
        """What `by` makes of the rows; without it each row, under its name."""
        if self.by:
            return by_values(self.rows, self.by)
        shown = self.differing[:COLUMNS]
        return [Group({"run": row.name} | {key: row.values[key] for key in shown}, [row]) for row in self.rows]

    def name(self, group: Group) -> str:
        """A group as a legend and a table call it."""
        if not self.by:
            return group.rows[0].name
        return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in group.values.items())

    def members(self, group: Group) -> list[Loaded]:
        """The runs of a group."""
        return [self._named[row.name] for row in group.rows]

    @cached_property
    def _named(self) -> dict[str, Loaded]:
        return {run.name: run for run in self.runs}

    def title(self) -> str:
        """How many runs of what, and how many of them hold."""
        experiments = list(dict.fromkeys(run.experiment for run in self.runs if run.experiment))
        named = ", ".join(experiments) if len(experiments) <= 3 else f"{len(experiments)} experiments"
        judged = [row for row in self.rows if row.claims]
        runs = f"{len(self.runs)} run{'s'[: len(self.runs) - 1]}{' of ' if named else ''}{named}"
        return f"{runs}, {sum(row.holds for row in judged)} of {len(judged)} judged hold"


@dataclass(frozen=True)
class Cell:
    """One claim in one group of runs."""

    held: int
    judged: int
    measured: str
    predicted: str
    allowed: str

    @property
    def holds(self) -> bool:
        return self.held == self.judged

    def __str__(self) -> str:
        count = f" {self.held}/{self.judged}" if self.judged > 1 else ""
        return f"{'✓' if self.holds else '✗'}{count} {self.measured} {self.predicted}"


def cell(claims: Sequence[Claim]) -> Cell | None:
    """The claims of one name in a group of runs: means, and the standard error of the mean over runs."""
    if not claims:
        return None
    measured, predicted = (_mean([getattr(claim, key) for claim in claims]) for key in ("measured", "predicted"))
    allowed = _mean([claim.tolerance for claim in claims])
    error = claims[0].standard_error if len(claims) == 1 else _standard_error([claim.measured for claim in claims])
    digits = resolution(measured - predicted, allowed, error)
    spread = f" ± {number(error, 0.0, least=2)}" if error and math.isfinite(error) else ""
    relations = {claim.relation for claim in claims}
    sign = SIGN.get(relations.pop(), "vs") if len(relations) == 1 else "vs"  # type: ignore[call-overload]
    return Cell(
        held=sum(claim.holds for claim in claims),
        judged=len(claims),
        measured=number(measured, digits) + spread,
        predicted=f"{sign} {number(predicted, digits)}",
        allowed=number(allowed, 0.0, least=3),
    )


def cells(comparison: Comparison) -> Iterator[tuple[str, list[Cell | None]]]:
    """Each group with a cell for each claim."""
    for group in comparison.groups:
        members = comparison.members(group)
        yield (
            comparison.name(group),
            [cell([c for run in members for c in run.claims if c.name == name]) for name in comparison.claims],
        )


def text(value: Any) -> str:
    """A value of a config as on the command line; a number reads the same whether it went through JSON or YAML."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.15g}" if abs(value) < 1e15 else repr(value)
    return json.dumps(value, default=str)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def few(names: Sequence[str], most: int = 12) -> str:
    """The first of many names."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
