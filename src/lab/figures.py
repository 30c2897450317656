"""The figure of a run: theory as a line, measurement as points, one panel a claim, in the colours of Okabe and Ito."""

from __future__ import annotations

import io
import math
import re
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import (
    FixedLocator,
    Formatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from numpy.typing import NDArray

from lab.claim import Evidence, Floats, Judged
from lab.rundir import write_atomically
from lab.table import SIGN, written

THEORY, MEASURED, ALLOWED, FORBIDDEN, INK, REFUTED = "#0072B2", "#E69F00", "#56B4E9", "#B5B5B5", "#222222", "#A33F00"

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "hatch.linewidth": 0.4,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.05,
    "figure.constrained_layout.h_pad": 0.05,
    "svg.fonttype": "path",
    "svg.hashsalt": "lab",
    "savefig.dpi": 200,
    "figure.dpi": 200,
}

POINTS = 300
"""More points than this in one panel are thinned to as many."""

_LEGEND = (
    "theory",
    "theory, a bound",
    "measured",
    "measured ± 1 standard error",
    "allowed difference",
    "beyond the bound",
    "the point that decides",
)
_DRAWABLE = 1e150  # matplotlib squares what it draws; a diverged run's numbers beyond this count as not finite
_HALO: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
_NONE: Floats = np.zeros(0)
_CM = 1 / 2.54
Way = Literal["x", "y"]
_style_lock = threading.Lock()


@contextmanager
def style() -> Iterator[None]:
    """The lab's style and nothing of the user's; one thread at a time, as matplotlib keeps it for the process."""
    with _style_lock, matplotlib.style.context(["default", STYLE]):
        yield


def draw(evidence: Sequence[Evidence], *, title: str, finished: str = "", width: float = 16.0) -> Figure:
    """The claims of one run, a panel each.

    A claim over x is a theory line with measured points; numbers without x are measured against predicted; a single
    number is a line and a point, enlarged until their difference shows. A shaded band is what is allowed around
    theory, a hatched side what a bound forbids, error bars are one standard error.

    Args:
        evidence: what `lab.claim.judge` returned, in the order of the panels; at least one.
        title: the experiment's; the verdict is added to it.
        finished: one line about the run (steps, seed, commit), printed small at the foot.
        width: of the figure in cm; a single panel takes 0.65 of it.
    """
    columns = {1: 1, 2: 2, 4: 2}.get(len(evidence), 3)
    rows = -(-len(evidence) // columns)
    refuted = sum(not e.judged.holds for e in evidence)
    outcome = f"refuted ({refuted} of {len(evidence)} claims)" if refuted else "holds"
    with style():
        figure = Figure(figsize=(width * _CM * (0.65 if columns == 1 else 1), (5.5 * rows + 1.8) * _CM))
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for e, ax in zip(evidence, axes, strict=False):
            _panel(ax, e, width=figure.get_figwidth() / _CM / columns)
        for ax in axes[len(evidence) :]:
            ax.remove()
        heading = textwrap.fill(f"{title}: {outcome}", round(4.6 * figure.get_figwidth() / _CM))
        figure.suptitle(heading, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
        _legend(figure, finished, columns=3 if columns > 1 else 2)
    return figure


def save(figure: Figure, folder: Path, name: str = "figure") -> None:
    """Write figure.svg and figure.png (200 dpi) into `folder`; the same evidence gives the same bytes."""
    with style():
        for suffix, metadata in (("svg", {"Date": None}), ("png", {})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=metadata)
            write_atomically(folder / f"{name}.{suffix}", buffer.getvalue())


@dataclass(frozen=True)
class _Shown:
    """What a panel shows of its evidence: flat arrays of one length, NaN where a number cannot be drawn.

    `allowed` is None where the relation is not judged element by element. `worst` is the element the verdict quotes.
    """

    predicted: Floats
    measured: Floats
    error: Floats
    x: Floats | None
    allowed: Floats | None
    worst: int | None
    rows: int

    @classmethod
    def of(cls, e: Evidence) -> _Shown:
        relation, j = e.claim.relation, e.judged
        if relation.norm:  # the vector that decides, as the verdict holds it
            curve = j.curve or {}
            p, m = np.array(curve["predicted"], float), np.array(curve["measured"], float)
            error = np.array(curve.get("standard_error", np.zeros_like(p)), float)
            x = np.array(curve["x"], float) if "x" in curve else None
            return cls(_finite(p), _finite(m), _bars(error), x, None, None, 1)
        shape = np.shape(e.predicted.value)
        p, m = np.ravel(e.predicted.value), np.ravel(e.measured.value)
        difference, allowed = (np.ravel(v) for v in relation.excess(e.predicted, e.measured))
        abscissae = e.predicted.x if e.predicted.x is not None else e.measured.x
        x = None if abscissae is None or p.size == 1 else np.ravel(abscissae)
        quoted = np.flatnonzero((p == j.predicted) & (m == j.measured) & (difference == j.difference))
        return cls(
            predicted=_finite(p),
            measured=_finite(m),
            error=_bars(np.ravel(e.measured.standard_error)),
            x=x,
            allowed=_bars(allowed),
            worst=int(quoted[0]) if p.size > 1 and quoted.size else None,
            rows=math.prod(shape[:-1]),
        )

    @property
    def whiskers(self) -> Floats:
        """Both ends of every error bar."""
        return np.concatenate([self.measured - self.error, self.measured + self.error])

    def points(self) -> NDArray[np.intp]:
        """Indices of the points to draw: all, or POINTS of them evenly over x, the quoted one among them."""
        abscissae = self.predicted if self.x is None else self.x
        order = np.argsort(abscissae, kind="stable")
        if order.size > POINTS:
            order = order[np.linspace(0, order.size - 1, POINTS).round().astype(int)]
            if self.worst is not None and self.worst not in order:
                order = np.append(order, self.worst)
        return order


def _finite(values: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(values) < _DRAWABLE, values, np.nan)


def _bars(lengths: Floats) -> Floats:
    """Lengths of error bars and widths of bands; one that is not finite is not drawn."""
    return np.nan_to_num(np.abs(_finite(lengths)), nan=0.0)


def _panel(ax: Axes, e: Evidence, width: float) -> None:
    """One claim: its picture, its axes, its verdict, in `width` cm."""
    shown = _Shown.of(e)
    notes = []
    if not np.any(np.isfinite(shown.measured)):
        words = ax.text(0.5, 0.84, "measured: not finite", color=REFUTED, bbox=_HALO, zorder=7)
        words.set(transform=ax.transAxes, horizontalalignment="center", verticalalignment="center")
    elif lost := int(np.sum(~np.isfinite(shown.measured))):
        notes.append(f"{lost} of {shown.measured.size} points not finite")
    if shown.measured.size == 1:
        notes += _scalar(ax, e, shown)
    elif shown.x is None:
        notes += _agreement(ax, e, shown)
    else:
        notes += _curve(ax, e, shown, shown.x)
    if shown.measured.size > POINTS:
        notes.append(f"{POINTS} of {shown.measured.size} points drawn")
    if e.claim.relation.norm and np.ndim(e.predicted.value) > 1:
        notes.append(f"of {math.prod(np.shape(e.predicted.value)[:-1])} vectors the one that decides")
    room = width - 1.4  # beside the ticks and label of the vertical axis
    name = textwrap.fill(f"{e.name.replace('_', ' ')}: {'holds' if e.judged.holds else 'refuted'}", round(5.2 * room))
    detail = textwrap.fill("; ".join([_comparison(e.judged), *notes]), round(8 * room), break_on_hyphens=False)
    ax.set_title(name, color=INK if e.judged.holds else REFUTED, pad=5 + 8.5 * (1 + detail.count("\n")))
    ax.annotate(_typeset(detail), (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=6.5)


def _comparison(judged: Judged) -> str:
    """The comparison that was judged, in numbers; a space inside it that is no place for a line break is a hard one."""
    text = written(judged)
    if judged.relation == "equal":
        return f"difference\N{NO-BREAK SPACE}{text.difference}, allowed\N{NO-BREAK SPACE}{text.allowed}"
    slack = f" {'+' if judged.relation == 'at_most' else '−'} {text.allowed}" if judged.tolerance else ""
    return f"{text.measured} {SIGN[judged.relation]} {text.predicted}{slack}".replace(" ", "\N{NO-BREAK SPACE}")


def _typeset(text: str) -> str:
    """The numbers of a text as they are printed: 1.20e-05 as 1.20×10⁻⁵ in mathtext, with a true minus sign."""
    text = re.sub(r"(?<=\d)e([+-]\d+)", lambda found: rf"$\times10^{{{int(found[1])}}}$", text)
    return re.sub(r"(?<![\d{])-(?=\d)", "−", text)


def _curve(ax: Axes, e: Evidence, shown: _Shown, x: Floats) -> list[str]:
    """Theory as a line over x, measurement as points."""
    both = np.concatenate([shown.predicted, shown.measured])
    _scale(ax, "x", x, _NONE, log="x" in e.claim.log, label=e.claim.x_symbol)
    _scale(ax, "y", both, shown.whiskers, log="y" in e.claim.log, label=e.claim.symbol)
    for row in np.split(np.arange(x.size), shown.rows):
        row = row[np.argsort(x[row], kind="stable")]
        _theory(ax, e, x[row], shown.predicted[row])
        if shown.allowed is not None and shown.rows == 1:
            _allow(ax, e, x[row], shown.predicted[row], shown.allowed[row])
    return _points(ax, shown, x)


def _agreement(ax: Axes, e: Evidence, shown: _Shown) -> list[str]:
    """Measured against predicted; theory is the diagonal."""
    log = "y" in e.claim.log
    both = np.concatenate([shown.predicted, shown.measured])
    _scale(ax, "x", both, shown.whiskers, log, f"predicted {e.claim.symbol}")
    _scale(ax, "y", both, shown.whiskers, log, f"measured {e.claim.symbol}")
    ends = np.array(ax.get_xlim())
    _theory(ax, e, ends, ends)
    if shown.allowed is not None:
        order = np.argsort(shown.predicted, kind="stable")
        diagonal = np.concatenate([ends[:1], shown.predicted[order], ends[1:]])
        _allow(ax, e, diagonal, diagonal, np.pad(shown.allowed[order], 1, mode="edge"))
    return _points(ax, shown, shown.predicted)


def _scalar(ax: Axes, e: Evidence, shown: _Shown) -> list[str]:
    """One number: theory as a level line, the measurement as a point beside it, both written out."""
    (p,), (m,), allowed = shown.predicted, shown.measured, np.zeros(1) if shown.allowed is None else shown.allowed
    log = "y" in e.claim.log
    band = [] if log else [p - allowed, p + allowed]
    _scale(ax, "y", np.array([p, m]), np.concatenate([shown.whiskers, *band]), log, e.claim.symbol, margin=0.35)
    ax.set(xlim=(0, 1), xticks=[])
    ax.spines.bottom.set_visible(False)
    _theory(ax, e, np.array([0.0, 1.0]), np.array([p, p]))
    _allow(ax, e, np.array([0.0, 1.0]), np.array([p, p]), np.repeat(allowed, 2))
    notes = _points(ax, shown, np.array([0.25]))
    text = written(e.judged)
    above = not m < p  # the two texts stand on opposite sides of the line
    measured = f"{text.measured} ± {text.error}" if text.error else text.measured
    theory = f"{'theory' if e.claim.relation.kind == 'equal' else 'bound'} {text.predicted}"
    for words, at, align, upper in ((theory, (0.97, p), "right", not above), (measured, (0.31, m), "left", above)):
        if math.isfinite(at[1]):
            ax.annotate(
                _typeset(words),
                at,
                (0, 4 if upper else -4),
                textcoords="offset points",
                ha=align,
                va="bottom" if upper else "top",
                bbox=_HALO,
                zorder=6,
            )
    return notes


def _theory(ax: Axes, e: Evidence, x: Floats, y: Floats) -> None:
    bound = e.claim.relation.kind != "equal"
    ax.plot(
        x, y, "--" if bound else "-", color=THEORY, lw=1.2, zorder=4, label="theory, a bound" if bound else "theory"
    )


def _allow(ax: Axes, e: Evidence, x: Floats, p: Floats, allowed: Floats) -> None:
    """The band around theory, or the side of a bound on which the claim is refuted."""
    low, high = ax.get_ylim()
    below, above = np.clip(p - allowed, low, high), np.clip(p + allowed, low, high)
    if e.claim.relation.kind != "equal":
        edge, side = (above, high) if e.claim.relation.kind == "at_most" else (below, low)
        ax.fill_between(
            x, edge, side, facecolor="none", edgecolor=FORBIDDEN, hatch="////", lw=0, label="beyond the bound"
        )
    elif np.nanmax(np.abs(_height(ax, above) - _height(ax, below)), initial=0.0) > 0.015:  # wider than the line itself
        ax.fill_between(x, below, above, color=ALLOWED, alpha=0.35, lw=0, label="allowed difference")


def _height(ax: Axes, y: Floats) -> Floats:
    """`y` as a fraction of the axis, from bottom to top."""
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log":
        return np.asarray(np.log(y / low) / math.log(high / low))
    return (y - low) / (high - low)


def _points(ax: Axes, shown: _Shown, x: Floats) -> list[str]:
    """The measurement as points at x, with error bars where it has errors and a ring around the quoted one."""
    at = shown.points()
    few = at.size <= 60
    errors = shown.error[at] if np.any(shown.error) else None
    ax.errorbar(
        x[at],
        shown.measured[at],
        errors,
        fmt="o",
        color=MEASURED,
        ecolor=INK if few else MEASURED,
        ms=4 if at.size <= 20 else 3 if few else 2.4,
        mec=INK,
        mew=0.4 if few else 0,
        elinewidth=0.9 if few else 0.4,
        capsize=2 if few else 0,
        zorder=5 if few else 3,  # many points lie under the theory line, few on it
        label="measured" if errors is None else "measured ± 1 standard error",
    )
    if shown.worst is not None and np.isfinite(shown.measured[shown.worst]):
        w = shown.worst
        ax.plot(
            x[w], shown.measured[w], "o", ms=8, mfc="none", mec=INK, mew=0.8, zorder=6, label="the point that decides"
        )
    hidden = int(np.sum(shown.measured <= 0)) if ax.get_yscale() == "log" else 0
    return [f"{hidden} of {shown.measured.size} points are 0 or less"] if hidden else []


def _scale(ax: Axes, way: Way, values: Floats, ends: Floats, log: bool, label: str, margin: float = 0.08) -> None:
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
    ax.set(**{f"{way}scale": "log" if log else "linear", f"{way}lim": limits})
    if log:
        _log_ticks(ax, way, values, *limits)
    else:
        label += _linear_ticks(ax, way, values, *limits)
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
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if plain else _power(v)))


def _power(value: float) -> str:
    """value as a·10ⁿ in mathtext."""
    mantissa, exponent = f"{value:.3e}".split("e")
    front = "" if float(mantissa) == 1 else rf"{float(mantissa):g}{{\times}}"
    return rf"${front}10^{{{int(exponent)}}}$"


def _legend(figure: Figure, finished: str, columns: int) -> None:
    """One legend for all panels, which share their marks, and the line about the run."""
    handles: dict[str, Artist] = {}
    for ax in figure.axes:
        handles |= {str(label): handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    names = [name for name in _LEGEND if name in handles]
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower left",
        ncols=columns,
        handlelength=2.4,
        borderaxespad=1.6 if finished else 0.5,
    )
    layout = figure.get_layout_engine()
    if finished and isinstance(layout, ConstrainedLayoutEngine):
        strip = 0.28 * _CM / figure.get_figheight()  # below everything that is laid out
        layout.set(rect=(0, strip, 1, 1 - strip))
        figure.text(0.99, strip / 2, finished, ha="right", va="bottom", fontsize=6).set_in_layout(False)
