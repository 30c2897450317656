"""A comparison as one page that needs no network: sortable tables, zoomable curves, claims."""

from __future__ import annotations

import html
import math
import string
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lab import __version__
from lab.compare.figure import COLOURS, mean_curve, spread_over_decades
from lab.compare.load import Curve
from lab.compare.table import Cell, Comparison, cells, text
from lab.figures.panel import INK
from lab.rundir import write_atomically
from lab.sweep.results import ABSENT

POINTS, ALL_POINTS = 1000, 150_000
"""More points than this, of one curve or of all together, are thinned, keeping the extremes: 40 bytes each."""
_DASHES = ("solid", "dash", "dot", "dashdot")


def write(comparison: Comparison, path: Path) -> None:
    """Write the page."""
    write_atomically(path, page(comparison))


def page(comparison: Comparison) -> str:
    """The page's text: of each experiment its curves, runs and claims."""
    template = string.Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    parts = comparison.parts
    named = len(parts) > 1
    heads = [html.escape(part.runs[0].experiment or "no experiment") for part in parts]
    links = "\n".join(f'<a href="#{_id("part", i)}">{head}</a>' for i, head in enumerate(heads))
    drawn = [any(run.curves for run in part.runs) for part in parts]
    bodies = []
    for i, (part, head) in enumerate(zip(parts, heads, strict=True)):
        heading = f'<h2 id="{_id("part", i)}">{head}</h2>\n' if named else ""
        curves = _curves(part, i, load=not any(drawn[:i])) if drawn[i] else ""
        bodies.append(f"{heading}<p>{_by(part)}</p>\n{curves}\n{_runs(part, i)}\n{_claims(part, i)}")
    return template.substitute(
        title=html.escape(comparison.title()),
        parts="\n".join([f"<nav>{links}</nav>", *bodies] if named else bodies),
        version=html.escape(__version__),
        day=time.strftime("%Y-%m-%d"),
    )


def _by(part: Comparison) -> str:
    by = f"Grouped by {', '.join(part.by)}. " if part.by else ""
    return html.escape(f"{by}Compared by {part.metric or 'nothing: no run has a curve or a claim'}.")


def _id(what: str, part: int) -> str:
    """Of an element of the part: `runs`, `runs-2`, …"""
    return f"{what}-{part + 1}" if part else what


# -------------------------------------------------------------------------------------------------------------- curves


def _curves(comparison: Comparison, part: int, *, load: bool) -> str:
    """The curves; with `load` plotly itself before them."""
    names = list(dict.fromkeys(name for run in comparison.runs for name in run.curves))
    names.sort(key=lambda name: name != comparison.metric)
    figure = go.Figure()
    owner: list[str] = []
    for name in names:
        for trace in _traces(comparison, name):
            figure.add_trace(trace.update(visible=name == names[0]))
            owner.append(name)
    logarithmic = [
        spread_over_decades([run.curves[name] for run in comparison.runs if name in run.curves]) for name in names
    ]
    choose = [
        {
            "label": html.escape(name),
            "method": "update",
            "args": [
                {"visible": [name == other for other in owner]},
                {
                    "yaxis.title.text": html.escape(name),
                    "yaxis.type": "log" if log else "linear",
                    "yaxis.autorange": True,
                },
            ],
        }
        for name, log in zip(names, logarithmic, strict=True)
    ]
    scale = [
        {"label": f"{kind} y", "method": "relayout", "args": [{"yaxis.type": kind, "yaxis.autorange": True}]}
        for kind in ("log", "linear")
    ]
    at_top: dict[str, Any] = {"xanchor": "left", "y": 1.02, "yanchor": "bottom", "bgcolor": "white", "pad": {"b": 6}}
    figure.update_layout(
        template="plotly_white",
        font={"family": "system-ui, DejaVu Sans, sans-serif", "size": 13, "color": INK},
        height=540,
        margin={"l": 70, "r": 20, "t": 90, "b": 55},
        xaxis={"title": {"text": "optimiser step"}},
        yaxis={
            "title": {"text": html.escape(names[0])},
            "type": "log" if logarithmic[0] else "linear",
            "exponentformat": "power",
        },
        hovermode="closest",
        legend={"groupclick": "togglegroup", "tracegroupgap": 2},
        updatemenus=[
            {"buttons": choose, "x": 0, "showactive": True, **at_top},
            {
                "buttons": scale,
                "type": "buttons",
                "direction": "right",
                "x": 0.99,
                "showactive": False,
                **at_top | {"xanchor": "right"},
            },
        ],
    )
    plot = figure.to_html(
        full_html=False,
        include_plotlyjs=load,
        div_id=_id("curves", part),
        config={
            "displaylogo": False,
            "responsive": True,
            "scrollZoom": True,
            "showTips": False,
            "plotlyServerURL": "",
            "modeBarButtonsToRemove": ["sendChartToCloud", "sendDataToCloud"],
        },
    )
    hint = "Drag to zoom, double-click to zoom out, click a name to hide its curve, double-click to see it alone."
    return f'<h3>Curves</h3>\n<p>{hint}</p>\n<div class="curves">{plot}</div>'


def _traces(comparison: Comparison, name: str) -> Iterator[Any]:
    count = sum(len(run.curves) for run in comparison.runs)
    most = max(100, min(POINTS, ALL_POINTS // count))
    for i, group in enumerate(comparison.groups):
        colour, dash = COLOURS[i % len(COLOURS)], _DASHES[i // len(COLOURS) % len(_DASHES)]
        runs = [run for run in comparison.members(group) if name in run.curves]
        mean = mean_curve([run.curves[name] for run in runs])
        label = html.escape(comparison.name(group))
        for j, run in enumerate(runs):
            x, y = thinned(run.curves[name], most)
            yield go.Scatter(
                x=x,
                y=y,
                mode="lines" if len(x) > 1 else "markers",
                name=html.escape(run.name) if mean else label,
                legendgroup=str(i),
                showlegend=not mean and j == 0,
                line={"color": colour, "dash": dash, "width": 1 if mean else 1.8},
                opacity=0.35 if mean else 1,
            )
        if mean:
            steps, middle, error = mean
            x, y = thinned((steps, middle.tolist()), most)
            spread = dict(zip(steps, error.tolist(), strict=True))
            yield go.Scatter(
                x=x,
                y=y,
                mode="lines",
                name=f"{label} (mean of {len(runs)})",
                legendgroup=str(i),
                line={"color": colour, "dash": dash, "width": 2.6},
                customdata=[spread.get(step, math.nan) for step in x],
                hovertemplate="%{y:.6g} ± %{customdata:.2g} at %{x}",
            )


def thinned(curve: Curve, most: int = POINTS) -> tuple[list[float], list[float | None]]:
    """At most `most` points, the lowest and highest of each stretch; what is not finite is a gap."""
    steps, values = curve
    kept: Sequence[int] = range(len(values))
    if len(values) > most:
        finite = np.nan_to_num(np.array(values), nan=np.inf)
        stretches = np.array_split(np.arange(len(values)), most // 2 - 1)
        extremes = {int(part[pick(finite[part])]) for part in stretches for pick in (np.argmin, np.argmax)}
        kept = sorted(extremes | {0, len(values) - 1})
    return [steps[i] for i in kept], [values[i] if math.isfinite(values[i]) else None for i in kept]


# -------------------------------------------------------------------------------------------------------------- tables


def _runs(comparison: Comparison, part: int) -> str:
    keys = list(dict.fromkeys([*comparison.by, *comparison.differing]))
    header = ["run", *keys, comparison.metric or "–", "claims held", "seconds", "state"]
    lines = []
    for row in comparison.rows:
        mark = "good" if row.holds else "bad"
        held = (
            f'<span class="mark-{mark}">{"✓" if row.holds else "✗"}</span> {row.held}/{row.claims}'
            if row.claims
            else ""
        )
        state = row.state + (f": {row.reason}" if row.reason else "")
        lines.append(
            [
                _td(row.name),
                *(_td(row.values[key], numeric=_is_number(row.values[key])) for key in keys),
                _td(f"{row.objective:.6g}", row.objective, numeric=True)
                if math.isfinite(row.objective)
                else _td("not finite" if row.compared else ABSENT),
                f'<td class="number" data-value="{row.held / row.claims if row.claims else -1}">{held}</td>',
                _td(f"{row.seconds:.1f}", row.seconds, numeric=True) if math.isfinite(row.seconds) else _td(""),
                _td(state),
            ]
        )
    table = _table(_id("runs", part), header, lines, numeric={len(keys) + 1, len(keys) + 2, len(keys) + 3})
    return f'<h3>Runs</h3>\n<p>A click on a column\'s name sorts by it.</p>\n<div class="scroll">{table}</div>'


def _claims(comparison: Comparison, part: int) -> str:
    """A line a run or group, or where there are fewer of these than claims a line a claim."""
    if not comparison.claims:
        return ""
    lines = list(cells(comparison))
    groups, claims = [name for name, _ in lines], comparison.claims
    table = [list(across) for _, across in lines]
    names, header, first = groups, claims, "group" if comparison.by else "run"
    if len(groups) < len(claims):
        names, header, first = claims, groups, "claim"
        table = [list(column) for column in zip(*table, strict=True)]
    rows = [[_td(name), *map(_claim, row)] for name, row in zip(names, table, strict=True)]
    hint = (
        "Measured and predicted, and how many runs hold where several are grouped; the tip has the allowed difference."
    )
    claimed = _table(_id("claims", part), [first, *header], rows, numeric=set())
    return f'<h3>Claims</h3>\n<p>{hint}</p>\n<div class="scroll">{claimed}</div>'


def _claim(found: Cell | None) -> str:
    if found is None:
        return _td("")
    tip = html.escape(f"allowed difference {found.allowed}")
    value = html.escape(found.measured.partition(" ")[0])
    colour = "good" if found.holds else "bad"
    return f'<td class="{colour}" title="{tip}" data-value="{value}">{html.escape(str(found))}</td>'


def _table(id_: str, header: Sequence[str], lines: Sequence[Sequence[str]], numeric: set[int]) -> str:
    heads = "".join(
        f'<th scope="col"{" class=number" if i in numeric else ""}>'
        f'<button type="button">{html.escape(name)}</button></th>'
        for i, name in enumerate(header)
    )
    rows = "\n".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f'<table id="{id_}" class="sortable"><thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>'


def _td(shown: Any, value: float | None = None, *, numeric: bool = False) -> str:
    data = f' data-value="{value!r}"' if value is not None else ""
    return f"<td{' class=number' if numeric else ''}{data}>{html.escape(text(shown))}</td>"


def _is_number(shown: str) -> bool:
    try:
        float(shown)
    except ValueError:
        return False
    return True
