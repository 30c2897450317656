"""The figure of a sweep: the objective over what was swept, in the style of the runs' own figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lab.figures import style
from lab.figures.panel import INK, MEASURED, REFUTED, THEORY
from lab.sweep.results import Group, Row, by_values, shared_objective

_INCH = 1 / 2.54
_DIVERGED = 1e6
"""Objectives beyond so many times the smallest are drawn at the edge, as triangles."""
_COLOURS = (THEORY, MEASURED, "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", INK)


def draw(rows: Sequence[Row], *, title: str, optimum: Mapping[str, float] = MappingProxyType({})) -> Figure:
    """One swept parameter: points over it, mean ± standard error over seeds; two: a map; more: lines over the first.

    Args:
        rows: of `results.collect`.
        title: said above the figure.
        optimum: parameter → the value that theory predicts, drawn as a line.
    """
    groups = by_values(rows)
    keys = list(dict.fromkeys(key for group in groups for key in group.values))
    with style():
        figure = Figure(figsize=(13 * _INCH, 8 * _INCH))
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        label = shared_objective(rows) or "objective"
        if len(keys) == 2 and _is_grid(groups, keys):
            _map(figure, ax, groups, keys, label)
        else:
            _lines(ax, groups, keys, label)
            if keys and keys[0] in optimum:
                ax.axvline(optimum[keys[0]], color=THEORY, lw=1.2, label="optimum that theory predicts")
                ax.legend()
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    return figure


def _is_grid(groups: Sequence[Group], keys: Sequence[str]) -> bool:
    """Whether most pairs of values were run, as in a grid and unlike in a search."""
    sides = [len({group.values.get(key) for group in groups}) for key in keys]
    return min(sides) > 1 and len(groups) > 0.5 * sides[0] * sides[1]


def _positions(texts: Sequence[str]) -> tuple[NDArray[np.float64], bool, list[str]]:
    """(where each value stands, on a log axis or not, tick labels where the values are no numbers)."""
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        names = list(dict.fromkeys(texts))
        return np.array([names.index(text) for text in texts], float), False, names
    distinct = np.unique(numbers)
    spread = distinct.size > 2 and distinct[0] > 0 and distinct[-1] / distinct[0] >= 30
    return numbers, spread, []


def _lines(ax: Axes, groups: Sequence[Group], keys: Sequence[str], label: str) -> None:
    first, rest = (keys[0], keys[1:]) if keys else ("", [])
    cap = _cap(np.array([group.mean for group in groups]))
    x, log, names = _positions([group.values.get(first, "") for group in groups])
    series: dict[tuple[str, ...], list[int]] = {}
    for i, group in enumerate(groups):
        series.setdefault(tuple(group.values.get(key, "") for key in rest), []).append(i)
    many = len(series) > len(_COLOURS)
    shown = {(): list(range(len(groups)))} if many else series
    for colour, (values, members) in zip(_COLOURS, shown.items(), strict=False):
        order = sorted(members, key=lambda i: x[i])
        y = np.array([groups[i].mean for i in order])
        beyond = y > cap
        y[beyond] = cap
        error = np.nan_to_num([groups[i].standard_error for i in order])
        name = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in zip(rest, values, strict=False))
        joined = "-" if not many and not names and len(order) > 1 else ""
        ax.plot(x[order][beyond], y[beyond], "^", ms=4, color=colour, zorder=3)
        ax.errorbar(
            x[order][~beyond],
            y[~beyond],
            error[~beyond],
            fmt=f"o{joined}",
            ms=3.5,
            lw=0.8,
            color=colour,
            capsize=2,
            label=name or None,
        )
    for i, group in enumerate(groups):
        if not all(row.holds for row in group.rows) and math.isfinite(group.mean):
            ax.plot(x[i], min(group.mean, cap), "o", ms=7, mfc="none", mec=REFUTED, mew=0.8)
    if log:
        ax.set_xscale("log")
    if names:
        ax.set_xticks(range(len(names)), names)
    means = np.array([group.mean for group in groups])
    if _spans_decades(means):
        ax.set_yscale("log")
    ax.set_xlabel(first)
    ax.set_ylabel(label)
    if any(not all(row.holds for row in group.rows) for group in groups):
        ax.plot([], [], "o", ms=7, mfc="none", mec=REFUTED, mew=0.8, label="a claim is refuted, or no verdict")
    if len(shown) > 1 or ax.get_legend_handles_labels()[1]:
        ax.legend()


def _spans_decades(values: NDArray[np.float64]) -> bool:
    finite = values[np.isfinite(values)]
    return bool(finite.size) and finite.min() > 0 and finite.max() / finite.min() > 100


def _cap(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    smallest = np.abs(finite[finite != 0]).min(initial=math.inf)
    return float(min(smallest * _DIVERGED, finite.max(initial=-math.inf)))


def _map(figure: Figure, ax: Axes, groups: Sequence[Group], keys: Sequence[str], label: str) -> None:
    sides = [_sorted(list(dict.fromkeys(group.values[key] for group in groups))) for key in keys]
    field = np.full((len(sides[1]), len(sides[0])), math.nan)
    held = np.zeros_like(field, dtype=bool)
    for group in groups:
        at = sides[1].index(group.values[keys[1]]), sides[0].index(group.values[keys[0]])
        field[at], held[at] = group.mean, all(row.holds for row in group.rows)
    norm = LogNorm() if _spans_decades(field) else Normalize()
    image = ax.imshow(field, origin="lower", aspect="auto", cmap="cividis", norm=norm)
    figure.colorbar(image, label=label)
    dark = np.ma.filled(norm(np.ma.masked_invalid(field)), 1.0) < 0.5
    if field.size <= 120:
        for (j, i), value in np.ndenumerate(field):
            said = f"{value:.3g}" if math.isfinite(value) else "–"
            ax.text(i, j, said, ha="center", va="center", fontsize=6, color="white" if dark[j, i] else INK)
    for j, i in np.argwhere(~held):
        ax.add_patch(Rectangle((i - 0.47, j - 0.47), 0.94, 0.94, fill=False, ec=REFUTED, lw=0.9))
    ax.set_xticks(range(len(sides[0])), sides[0])
    ax.set_yticks(range(len(sides[1])), sides[1])
    ax.set_xlabel(keys[0])
    ax.set_ylabel(keys[1])
    ax.spines[:].set_visible(False)
    if not held.all():
        ax.set_title("framed: a claim is refuted, or there is no verdict", fontsize=7, fontweight="normal")


def _sorted(texts: list[str]) -> list[str]:
    try:
        return sorted(texts, key=float)
    except ValueError:
        return texts
