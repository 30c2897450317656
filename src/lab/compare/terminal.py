"""A comparison on the terminal: of each experiment its runs, and its claims in the table that fits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.compare.table import COLUMNS, Cell, Comparison, cells, few
from lab.sweep.results import print_table
from lab.table import stdout

WIDTH = 140
"""Columns of what is no terminal and says nothing of its width."""


def print_comparison(comparison: Comparison) -> None:
    """The runs and, below them, their claims; of several experiments one after the other."""
    for part in comparison.parts:
        if len(comparison.parts) > 1:
            print(part.title())
        print_table(part.rows, part.groups, over="the rest")
        if not part.by and len(part.differing) > COLUMNS:
            print(f"{len(part.differing) - COLUMNS} more keys differ: {few(part.differing[COLUMNS:])}\n")
        if part.claims:
            _print_claims(part)
    if len(comparison.parts) > 1:
        print(f"{comparison.title()}\n")


def _print_claims(comparison: Comparison) -> None:
    """A line a run where the width allows it, else a line a claim, else a line for each claim of each run."""
    console = Console(file=sys.stdout)
    width = console.width if console.is_terminal or "COLUMNS" in os.environ else WIDTH
    *narrower, last = _claim_tables(comparison)
    options = console.options.update(width=10_000)
    table = next((table for table in narrower if console.measure(table, options=options).maximum <= width), last)
    stdout(table).print(table)


def _claim_tables(comparison: Comparison) -> Iterator[Table]:
    lines = list(cells(comparison))
    runs, claims = [escape(name) for name, _ in lines], [escape(name) for name in comparison.claims]
    shown = [["" if cell is None else _coloured(cell) for cell in across] for _, across in lines]
    yield _table(["claims", *claims], ([run, *across] for run, across in zip(runs, shown, strict=True)))
    yield _table(["claims", *runs], ([claim, *across] for claim, *across in zip(claims, *shown, strict=True)))
    stacked = []
    for i, claim in enumerate(claims):
        found = [(run, across[i]) for run, across in zip(runs, shown, strict=True) if across[i]]
        stacked += [[claim if not j else "", *told] for j, told in enumerate(found)]
    yield _table(["claim", "run", "measured and predicted"], stacked, fold=True)


def _table(header: Sequence[str], lines: Iterable[Sequence[str]], *, fold: bool = False) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for heading in header:
        table.add_column(heading, no_wrap=not fold, overflow="fold" if fold else "ellipsis")
    for line in lines:
        table.add_row(*line)
    return table


def _coloured(cell: Cell) -> str:
    colour = "green" if cell.holds else "red"
    return f"[bold {colour}]{str(cell)[0]}[/]{str(cell)[1:]}"
