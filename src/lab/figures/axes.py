"""One axis of a panel: its scale, limits, ticks and label, chosen from the numbers it has to show."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    Formatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from lab.claim import Floats

Way = Literal["x", "y"]

WIDTH = 26
"""Letters in a line of an axis' label: about as many as a panel is wide."""
POWER = 8
"""Letters that a power of ten takes of it."""


def scale(ax: Axes, way: Way, values: Floats, ends: Floats, log: bool, label: str, margin: float = 0.08) -> None:
    """Scale, limits, ticks and label of one axis, so that `values` and the `ends` of their bars are in view.

    A logarithmic axis with nothing above 0 to show becomes linear.
    """
    seen = np.concatenate([values, ends])
    seen = seen[np.isfinite(seen)]
    log = log and bool(np.any(values > 0))
    if log:
        # a bar that reaches down to 0 would push everything else to the top
        seen = seen[seen >= np.min(values[values > 0]) / 3]
        low, high = np.log10(np.min(seen)), np.log10(np.max(seen))
        pad = margin * max(high - low, 0.3)
        limits = 10 ** (low - pad), 10 ** (high + pad)
    else:
        low, high = (np.min(seen), np.max(seen)) if seen.size else (0.0, 1.0)
        size = max(abs(low), abs(high))
        span = max(high - low, 1e-12 * size) if high > low else 0.1 * size or 1.0
        pad = margin * span
        limits = low - pad, high + pad
    if "$" not in label:  # a formula cannot be broken
        label = textwrap.fill(label, WIDTH, break_long_words=False)
    ax.set(**{f"{way}scale": "log" if log else "linear", f"{way}lim": limits})
    if log:
        _log_ticks(ax, way, values, *limits)
    else:
        taken = _linear_ticks(ax, way, values, *limits)
        full = len(label.rpartition("\n")[2]) + POWER > WIDTH
        label += f"\n{taken.lstrip()}" if full and taken.startswith("  ") else taken
    ax.set(**{f"{way}label": label})


def _linear_ticks(ax: Axes, way: Way, values: Floats, low: float, high: float) -> str:
    """Few ticks with short numbers; what was taken out of the numbers to make them short, for the axis label."""
    axis = ax.xaxis if way == "x" else ax.yaxis
    known = values[np.isfinite(values)]
    whole = bool(known.size) and bool(np.all(known == np.round(known)))
    axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=whole))
    shift = 0.0
    if known.size and high - low < 1e-5 * max(abs(low), abs(high)):
        shift = round(float(known[0]), -math.floor(math.log10(high - low)))
    exponent = math.floor(math.log10(max(abs(low - shift), abs(high - shift))))
    exponent = 0 if -3 <= exponent < 4 else exponent
    axis.set_major_formatter(_Ticks(shift, exponent))
    taken = f" − {shift:.15g}\n" if shift else "  "
    return (taken if shift else "") if not exponent else rf"{taken}($\times 10^{{{exponent}}}$)"


class _Ticks(Formatter):
    """(tick − shift) / 10^exponent, all ticks with the same number of decimals."""

    def __init__(self, shift: float, exponent: int) -> None:
        self.shift, self.exponent = shift, exponent

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        short = (np.asarray(values, float) - self.shift) / 10.0**self.exponent
        step = np.min(np.abs(np.diff(short)), initial=np.inf) if short.size > 1 else np.max(np.abs(short), initial=1.0)
        decimals = next((d for d in range(15) if np.all(np.abs(short - short.round(d)) < 1e-3 * step)), 15)
        return [f"{v:.{decimals}f}".replace("-", "−") for v in short.round(decimals) + 0.0]


def _log_ticks(ax: Axes, way: Way, values: Floats, low: float, high: float) -> None:
    """Ticks at the abscissae where there are few of them, else at powers of ten or, over a short range, between."""
    axis = ax.xaxis if way == "x" else ax.yaxis
    distinct = np.unique(values[values > 0])
    decades = math.log10(high / low)
    plain = low >= 1e-3 and high <= 1e5
    axis.set_minor_locator(NullLocator())
    if way == "x" and distinct.size <= 6 and np.all(distinct[1:] / distinct[:-1] > 10 ** (decades / 12)):
        axis.set_major_locator(FixedLocator(distinct.tolist()))
    elif decades < 0.6:
        axis.set_major_locator(MaxNLocator(nbins=4))
    else:
        steps = (1, 2, 5) if decades < 1.6 else (1, 3) if decades < 3 and plain else (1,)
        axis.set_major_locator(LogLocator(subs=steps, numticks=6))
        if decades < 6:
            axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=100))
    axis.set_minor_formatter(NullFormatter())
    if decades < 0.6 and plain and not isinstance(axis.get_major_locator(), FixedLocator):
        axis.set_major_formatter(_Ticks(0.0, 0))
        return
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if plain else _power(v)))


def _power(value: float) -> str:
    """value as a·10ⁿ in mathtext."""
    mantissa, exponent = f"{value:.3e}".split("e")
    front = "" if float(mantissa) == 1 else rf"{float(mantissa):g}{{\times}}"
    return rf"${front}10^{{{int(exponent)}}}$"
