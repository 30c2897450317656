"""The figure of a comparison: curves over each other, or a claim's measurements beside what was predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from lab.claim import Floats
from lab.compare.load import Curve
from lab.compare.table import Comparison
from lab.figures import style
from lab.figures.panel import MEASURED, REFUTED, THEORY

COLOURS = (THEORY, MEASURED, "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C7A00", "#777777")
LEGEND = 16
"""Groups that a legend can name."""
_CM = 1 / 2.54


def draw(comparison: Comparison) -> Figure:
    """Of each experiment the metric's curves, coloured by group, with the mean where its runs share their steps."""
    parts = comparison.parts
    with style():
        figure = Figure(figsize=(17 * _CM, 9 * _CM * len(parts)))
        FigureCanvasAgg(figure)
        for place, part in zip(figure.subfigures(len(parts), 1, squeeze=False)[:, 0], parts, strict=True):
            ax = place.subplots()
            if any(part.metric in run.curves for run in part.runs):
                _curves(place, ax, part)
            else:
                _claim(place, ax, part)
            place.suptitle(part.title(), x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    return figure


def mean_curve(curves: Sequence[Curve]) -> tuple[list[float], Floats, Floats] | None:
    """(steps, mean, standard error) of at least two curves with the same steps."""
    if len(curves) < 2 or any(steps != curves[0][0] for steps, _ in curves):
        return None
    values = np.array([values for _, values in curves])
    with np.errstate(invalid="ignore", over="ignore"):
        return curves[0][0], values.mean(0), values.std(0, ddof=1) / math.sqrt(len(curves))


def spread_over_decades(curves: Sequence[Curve]) -> bool:
    """Whether a logarithmic axis shows more: all positive, over more than a factor of 30."""
    finite = [v for _, values in curves for v in values if math.isfinite(v)]
    return bool(finite) and min(finite) > 0 and max(finite) > 30 * min(finite)


def _curves(figure: SubFigure, ax: Axes, comparison: Comparison) -> None:
    drawn: list[Curve] = []
    for i, group in enumerate(comparison.groups):
        colour = COLOURS[i % len(COLOURS)]
        dashes = ("-", "--", ":", "-.")[i // len(COLOURS) % 4]
        curves = [run.curves[comparison.metric] for run in comparison.members(group) if comparison.metric in run.curves]
        mean = mean_curve(curves)
        name: str | None = comparison.name(group)
        for steps, values in curves:
            width, alpha = (0.5, 0.35) if mean else (1.0, 1.0)
            ax.plot(steps, values, dashes, color=colour, lw=width, alpha=alpha, label=None if mean else name)
            name = None if not mean else name
        if mean:
            steps, middle, error = mean
            ax.plot(steps, middle, dashes, color=colour, lw=1.4, label=f"{name} (mean of {len(curves)} ± SE)")
            ax.fill_between(steps, middle - error, middle + error, color=colour, alpha=0.2, lw=0)
        drawn += curves
    if spread_over_decades(drawn):
        ax.set_yscale("log")
    ax.set_xlabel("optimiser step")
    ax.set_ylabel(comparison.metric)
    if len(comparison.groups) <= LEGEND:
        figure.legend(loc="outside right upper")


def _claim(figure: SubFigure, ax: Axes, comparison: Comparison) -> None:
    """A point a run, a bar of theory behind each group; rings around what was refuted."""
    name = comparison.metric.removeprefix("claim/").partition("/")[0]
    names = [comparison.name(group) for group in comparison.groups]
    for i, group in enumerate(comparison.groups):
        found = [claim for run in comparison.members(group) for claim in run.claims if claim.name == name]
        for j, claim in enumerate(found):
            x = i + (0.5 * (j + 0.5) / len(found) - 0.25)
            first = "theory" if not ax.get_legend_handles_labels()[1] else None
            ax.plot([i - 0.35, i + 0.35], [claim.predicted] * 2, color=THEORY, lw=1.4, label=first)
            ax.errorbar(x, claim.measured, claim.standard_error, fmt="o", ms=3, lw=0.8, color=MEASURED)
            if not claim.holds:
                ax.plot(x, claim.measured, "o", ms=7, mfc="none", mec=REFUTED, mew=0.8)
    ax.plot([], [], "o", ms=3, color=MEASURED, label="measured")
    ax.plot([], [], "o", ms=7, mfc="none", mec=REFUTED, mew=0.8, label="refuted")
    ax.set_xticks(
        range(len(names)), names, rotation=30 if len(names) > 4 else 0, ha="right" if len(names) > 4 else "center"
    )
    numbers = [v for run in comparison.runs for c in run.claims if c.name == name for v in (c.predicted, c.measured)]
    if spread_over_decades([([], numbers)]):
        ax.set_yscale("log")
    ax.set_ylabel(comparison.metric)
    figure.legend(loc="outside right upper")
