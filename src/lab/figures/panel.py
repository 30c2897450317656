"""One panel: theory as a line, measurement as points, what is allowed as a band or a side that is hatched."""

from __future__ import annotations

import math
import re
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lab.claim import Evidence, Floats, Judged
from lab.figures.axes import scale
from lab.table import SIGN, written

THEORY, MEASURED, ALLOWED, FORBIDDEN, INK, REFUTED = "#0072B2", "#E69F00", "#56B4E9", "#B5B5B5", "#222222", "#A33F00"

POINTS = 500
"""More points than this in one panel are thinned to as many."""

_DRAWABLE = 1e150  # matplotlib squares what it draws; a diverged run's numbers beyond this count as not finite
_HALO: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
_NONE: Floats = np.zeros(0)


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

    def ceiling(self, e: Evidence) -> Floats | None:
        """p + allowed where a logarithmic axis cannot show theory itself, because it predicts 0 throughout."""
        if "y" not in e.claim.log or e.claim.relation.kind == "at_least" or self.allowed is None:
            return None
        top = self.predicted + self.allowed
        return top if np.all(self.predicted == 0) and np.all(top > 0) else None

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


def panel(ax: Axes, e: Evidence, width: float) -> None:
    """One claim: its picture, its axes, its verdict, in `width` cm."""
    shown = _Shown.of(e)
    notes = []
    if not np.any(np.isfinite(shown.measured)):
        notes.append("measured:\N{NO-BREAK SPACE}not\N{NO-BREAK SPACE}finite")
    elif lost := int(np.sum(~np.isfinite(shown.measured))):
        notes.append(f"{lost} of {shown.measured.size} points not finite")
    if shown.measured.size == 1:
        notes += _scalar(ax, e, shown)
    elif shown.x is not None:
        notes += _curve(ax, e, shown, shown.x)
    elif shown.ceiling(e) is not None:
        notes += _curve(ax, e, shown, np.arange(1.0, shown.measured.size + 1))
    else:
        notes += _agreement(ax, e, shown)
    if shown.measured.size > POINTS:
        notes.append(f"{POINTS} of {shown.measured.size} points drawn")
    if e.claim.relation.norm and np.ndim(e.predicted.value) > 1:
        notes.append(f"of {math.prod(np.shape(e.predicted.value)[:-1])} vectors the one that decides")
    room = width - 1.4  # beside the ticks and label of the vertical axis
    name = textwrap.fill(f"{e.name.replace('_', ' ')}: {'holds' if e.judged.holds else 'refuted'}", round(5.8 * room))
    detail = textwrap.fill(
        "; ".join([_comparison(e.judged), *notes]), round(7 * room), break_on_hyphens=False, break_long_words=False
    )
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
    ceiling = shown.ceiling(e)
    both = np.concatenate([shown.predicted if ceiling is None else ceiling, shown.measured])
    scale(ax, "x", x, _NONE, log="x" in e.claim.log, label=e.claim.x_symbol)
    scale(ax, "y", both, shown.whiskers, log="y" in e.claim.log, label=e.claim.symbol)
    if ceiling is not None:
        order = np.argsort(x, kind="stable")
        _ceiling(ax, x[order], ceiling[order])
        return _points(ax, shown, x)
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
    scale(ax, "x", both, shown.whiskers, log, f"predicted {e.claim.symbol}")
    scale(ax, "y", both, shown.whiskers, log, f"measured {e.claim.symbol}")
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
    ceiling = shown.ceiling(e)
    p = p if ceiling is None else float(ceiling[0])
    band = [] if log else [p - allowed, p + allowed]
    scale(ax, "y", np.array([p, m]), np.concatenate([shown.whiskers, *band]), log, e.claim.symbol, margin=0.35)
    ax.set(xlim=(0, 1), xticks=[])
    ax.spines.bottom.set_visible(False)
    across, level = np.array([0.0, 1.0]), np.array([p, p])
    if ceiling is None:
        _theory(ax, e, across, level)
        _allow(ax, e, across, level, np.repeat(allowed, 2))
    else:
        _ceiling(ax, across, level)
    notes = _points(ax, shown, np.array([0.25]))
    text = written(e.judged)
    above = not m < p  # the two texts stand on opposite sides of the line
    measured = f"{text.measured} ± {text.error}" if text.error else text.measured
    theory = f"{'theory' if e.claim.relation.kind == 'equal' else 'bound'} {text.predicted}"
    theory = theory if ceiling is None else f"allowed {text.allowed}"
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
        _forbid(ax, x, edge, side)
    elif np.nanmax(np.abs(_height(ax, above) - _height(ax, below)), initial=0.0) > 0.015:  # wider than the line itself
        ax.fill_between(x, below, above, color=ALLOWED, alpha=0.35, lw=0, label="allowed difference")


def _ceiling(ax: Axes, x: Floats, top: Floats) -> None:
    """The largest number allowed where theory predicts 0, across the whole axis when it is the same everywhere."""
    if np.all(top == top[0]):
        x, top = np.array(ax.get_xlim()), top[:1].repeat(2)
    ax.plot(x, top, "--", color=THEORY, lw=1.2, zorder=4, label="theory is 0: the most allowed")
    _forbid(ax, x, top, ax.get_ylim()[1])


def _forbid(ax: Axes, x: Floats, edge: Floats, side: float) -> None:
    """Hatch what lies between the edge of a bound and that side of the panel."""
    ax.fill_between(x, edge, side, facecolor="none", edgecolor=FORBIDDEN, hatch="////", lw=0, label="beyond the bound")


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
        ms=4 if at.size <= 20 else 3 if few else 5,
        alpha=None if few else 0.4,
        mec=INK,
        mew=0.4 if few else 0,
        elinewidth=0.9 if few else 0.4,
        capsize=2 if few else 0,
        zorder=5 if few else 3,  # many points are wider than the theory line, which is drawn through their middles
        label="measured" if errors is None else "measured ± 1 standard error",
    )
    if shown.worst is not None and np.isfinite(shown.measured[shown.worst]):
        w = shown.worst
        ax.plot(
            x[w], shown.measured[w], "o", ms=8, mfc="none", mec=INK, mew=0.8, zorder=6, label="the point that decides"
        )
    hidden = int(np.sum(shown.measured <= 0)) if ax.get_yscale() == "log" else 0
    return [f"{hidden} of {shown.measured.size} points are 0 or less"] if hidden else []
