"""Every combination of the values a sweep gives; and what theory says about which is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lab.errors import HOLDS, REFUTED
from lab.sweep.results import Row, shared_objective
from lab.types import NonNegative

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Optimum:
    """Where theory predicts the best objective: key → value, found if the best row's value lies `within` of it."""

    values: Mapping[str, float]
    direction: Direction
    within: float
    because: str

    def best(self, rows: Iterable[Row]) -> Row | None:
        """The row with the best finite objective."""
        sign = 1 if self.direction == "minimize" else -1
        finite = [row for row in rows if math.isfinite(row.objective)]
        return min(finite, key=lambda row: sign * row.objective, default=None)

    def judge(self, rows: Sequence[Row]) -> int:
        """Say which row is best and whether that is what theory says; returns the exit code.

        Of rows that are not compared by the same number none is best.
        """
        if not shared_objective(rows):
            return HOLDS
        best = self.best(rows)
        if best is None:
            return HOLDS
        values = ", ".join(f"{key}={value}" for key, value in best.values.items())
        print(f"{'best':<12} {values}: {best.compared} {best.objective:.6g}")
        holds = True
        for key, value in self.values.items():
            near = abs(float(best.values[key]) - value) <= self.within * abs(value)
            holds = holds and near
            allowed = f"{value:g} ± {self.within:.0%}" if self.within else f"{value:g}"
            said = "as theory says" if near else "not as theory says"
            print(f"{'optimum':<12} {key} = {best.values[key]}, theory {allowed}: {said}")
        if self.values and self.because:
            print(f"{'':<12} {self.because}")
        return HOLDS if holds else REFUTED


class Grid:
    """Runs every combination.

    Args:
        params: key → values, as on the command line, which wins.
        direction: which objective is best.
        optimum: key → the value at which theory predicts the best objective.
        within: how far, relatively, the best value may lie from it.
        because: the argument for `within`.
    """

    def __init__(
        self,
        params: dict[str, str] | None = None,
        direction: Direction = "minimize",
        optimum: dict[str, float] | None = None,
        within: NonNegative = 0.0,
        because: str = "",
    ) -> None:
        self.params = params or {}
        self.optimum = Optimum(optimum or {}, direction, within, because)
