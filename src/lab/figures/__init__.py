"""The figure of a run: theory as a line, measurement as points, one panel a claim, in the colours of Okabe and Ito."""

from __future__ import annotations

import io
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lab.claim import Evidence
from lab.figures.panel import INK, panel
from lab.rundir import FIGURE, write_atomically

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

_LEGEND = (
    "theory",
    "theory, a bound",
    "theory is 0: the most allowed",
    "measured",
    "measured ± 1 standard error",
    "allowed difference",
    "beyond the bound",
    "the point that decides",
)
_CM = 1 / 2.54
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
        figure = blank(width * (0.65 if columns == 1 else 1), 5.5 * rows + 1.8)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for e, ax in zip(evidence, axes, strict=False):
            panel(ax, e, width=figure.get_figwidth() / _CM / columns)
        for ax in axes[len(evidence) :]:
            ax.remove()
        heading = textwrap.fill(f"{title}: {outcome}", round(5.2 * figure.get_figwidth() / _CM))
        figure.suptitle(heading, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
        _legend(figure, finished, columns=3 if columns > 1 else 2)
    return figure


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many centimetres, in the style that is in force, known to no window."""
    figure = Figure(figsize=(width * _CM, height * _CM))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, folder: Path, name: str = FIGURE) -> None:
    """Write <name>.svg and <name>.png (200 dpi) into `folder`; the same evidence gives the same bytes."""
    with style(), matplotlib.rc_context({"figure.constrained_layout.use": False}):
        if layout := figure.get_layout_engine():
            layout.execute(figure)
            if any(ax.get_aspect() != "auto" or ax.get_box_aspect() is not None for ax in figure.axes):
                layout.execute(figure)  # only now have they the size that their titles stand over
            figure.set_layout_engine(None)  # else every format would lay it out again, and draw it twice
        for suffix, metadata in (("svg", {"Date": None}), ("png", {})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=metadata)
            write_atomically(folder / f"{name}.{suffix}", buffer.getvalue())


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
