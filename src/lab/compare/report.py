"""A report on a wandb server: the curves by group, and for each claim prediction against measurement."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

from lab.compare.figure import spread_over_decades
from lab.compare.table import Comparison, cells
from lab.compare.wandb import open_api
from lab.errors import Refusal
from lab.wandb_server import STEP, one_line

_MISSING = "--report needs the package wandb-workspaces: pip install wandb-workspaces"


def create(comparison: Comparison, project: str) -> str:
    """Save the report of these runs in entity/project; returns its address."""
    made = report(comparison, *place(project))
    open_api(f"--report {project}")
    import wandb

    try:
        made.save()
    except (wandb.Error, ValueError, OSError, KeyError, TypeError) as error:  # the last two: an answer without a report
        raise Refusal(f"--report {project}: the server did not take it ({one_line(error)})") from None
    return str(made.url)


def place(project: str) -> tuple[str, str]:
    """(entity, project), which is all that can be refused before the runs are read, the missing package apart."""
    match = re.fullmatch(r"([\w.-]+)/([\w.-]+)", project)
    if not match:
        raise Refusal(f"--report {project} is no project: write entity/project")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise Refusal(_MISSING)
    return match[1], match[2]


def report(comparison: Comparison, entity: str, project: str) -> Any:
    """The report as wandb-workspaces has it, not yet sent."""
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError:
        raise Refusal(_MISSING) from None

    from wandb_workspaces import expr

    panels: list[Any] = []
    grouped = (
        {"groupby": wr.Config(comparison.by[0]), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
        if comparison.by
        else {}
    )
    for metric in dict.fromkeys(part.metric for part in comparison.parts):
        if curves := [run.curves[metric] for run in comparison.runs if metric in run.curves]:
            panels.append(
                wr.LinePlot(
                    title=metric,
                    x=STEP,
                    y=[metric],
                    log_y=spread_over_decades(curves),
                    layout=wr.Layout(y=10 * len(panels), w=24, h=10),
                    **grouped,
                )
            )
    below = 10 * max(1, len(panels))
    panels += [
        wr.ScatterPlot(
            title=f"{name}: prediction and measurement",
            x=wr.SummaryMetric(f"claim/{name}/predicted"),
            y=wr.SummaryMetric(f"claim/{name}/measured"),
            layout=wr.Layout(x=8 * (i % 3), y=below + 8 * (i // 3), w=8, h=8),
        )
        for i, name in enumerate(comparison.claims)
    ]
    tables = [_table(part) for part in comparison.parts]
    runs = wr.Runset(entity=entity, project=project, name="compared", filters=_filters(comparison, expr))
    return wr.Report(
        entity=entity,
        project=project,
        title=comparison.title(),
        description=f"Made by lab compare, by {', '.join(dict.fromkeys(part.metric for part in comparison.parts))}.",
        width="fluid",
        blocks=[wr.PanelGrid(runsets=[runs], panels=panels), *(wr.MarkdownBlock(text=text) for text in tables)],
    )


def _filters(comparison: Comparison, expr: Any) -> list[Any]:
    """Of a sweep, its group, so that runs that are added later appear too; else the runs themselves."""
    groups = {run.config.get("logger.wandb.group") for run in comparison.runs}
    if len(groups) == 1 and (group := groups.pop()):
        return [expr.Metric("Group") == group]
    return [expr.Metric("ID").isin([run.id for run in comparison.runs])]


def _table(comparison: Comparison) -> str:
    header = ["group" if comparison.by else "run", *comparison.claims]
    lines = [header, ["---"] * len(header)]
    for name, across in cells(comparison):
        lines.append([name, *("" if cell is None else str(cell) for cell in across)])
    return "\n".join(f"| {' | '.join(_escaped(text) for text in line)} |" for line in lines)


def _escaped(text: str) -> str:
    return re.sub(r"([|<>\[\]`*_\\])", r"\\\1", text)
