"""`lab compare <runs or sweeps …>`: runs made anywhere in one table, one figure and, with --html, one page."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from lab import paths
from lab.cli.arguments import Arguments
from lab.compare.load import load
from lab.compare.table import Comparison
from lab.compare.terminal import print_comparison
from lab.errors import HOLDS, Refusal
from lab.machine import check_output

DESCRIPTION = """\
Compare runs: what differs between their configs, what came out, curves over each other and claims side by side.

A run is a run directory, a sweep's folder, a folder that holds either, one of wandb's offline folders or .wandb files,
a quoted pattern of such paths, or wandb://entity/project[?filters] for runs on a wandb server; filters are key=value
joined by & (state=finished, config.seed=0) or a JSON object with MongoDB's operators.

Runs of several experiments are compared within each of them. Without --metric they are compared by the objective that
the first run with one names; else by the loss: loss, loss/net or the first loss by its name; else by the first curve by
its name; else by the first claim's measurement. So it is for run directories, wandb's files and its server alike."""


def main(argv: list[str]) -> int:
    """Load, print, draw."""
    arguments = Arguments("compare", DESCRIPTION)
    arguments.add_argument("runs", nargs="+", metavar="run", help="run, sweep, folder, pattern or wandb:// address")
    arguments.add_argument(
        "--by",
        nargs="+",
        action="extend",
        default=[],
        metavar="key",
        help="group runs that agree in these keys of the config: mean ± SE",
    )
    arguments.add_argument("--metric", help="a column of metrics.csv or claim/<name>[/<number>]; default: see above")
    arguments.add_argument("--html", type=Path, metavar="FILE", help="write one page that needs nothing else")
    arguments.add_argument("--csv", type=Path, metavar="FILE", help="write the table, a line a run")
    arguments.add_argument(
        "--report",
        metavar="ENTITY/PROJECT",
        help="create a report of these runs on the wandb server (needs the package wandb-workspaces)",
    )
    given = arguments.parse_args(argv)
    for option, file in (("--html", given.html), ("--csv", given.csv)):
        if file is not None:
            _check_writable(option, file)
    if given.report is not None:
        from lab.compare.report import create, place

        place(given.report)
    comparison = Comparison(load(given.runs), given.by, given.metric)
    print_comparison(comparison)
    if given.csv is not None:
        from lab.sweep.results import write_csv

        with _written(given.csv):
            write_csv(comparison.rows, given.csv)
    if given.html is not None:
        from lab.compare.page import write

        with _written(given.html):
            write(comparison, given.html)
    if given.report is not None:
        print(f"report  {create(comparison, given.report)}")
    try:
        _draw(comparison)
    except Refusal as refusal:  # nobody asked for it
        print(f"lab: {refusal}", file=sys.stderr)
    return HOLDS


def _draw(comparison: Comparison) -> None:
    with _written(paths.OUTPUTS / "compare.svg"):
        from lab import figures
        from lab.compare import figure

        paths.OUTPUTS.mkdir(parents=True, exist_ok=True)
        figures.save(figure.draw(comparison), paths.OUTPUTS, "compare")


def _check_writable(option: str, file: Path) -> None:
    if not file.parent.is_dir():
        raise Refusal(f"{option} {file} cannot be written: there is no such folder")
    if file.exists() and not file.is_file():
        raise Refusal(f"{option} {file} cannot be written: it is {'a folder' if file.is_dir() else 'no file'}")
    check_output(f"{option} {file}", file.parent)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Say where the file is, or why it cannot be written."""
    try:
        yield
    except OSError as error:
        raise Refusal(f"{path} cannot be written: {error.strerror}") from None
    print(f"{path.suffix.removeprefix('.'):<7} {path}")
