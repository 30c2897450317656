"""`lab status <sweep>`: what became of each run of a sweep, here or on a cluster, and why."""

from __future__ import annotations

from pathlib import Path

from lab.cli.arguments import Arguments
from lab.errors import HOLDS
from lab.sweep import results

_ORDER: tuple[results.State, ...] = ("failed", "running", "queued", "waiting", "pruned", "done")


def main(argv: list[str]) -> int:
    """Print a line for each run, those that need attention first."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from lab.table import stdout

    parser = Arguments("status", "Which runs of a sweep are queued, running, done or failed, and why.")
    parser.add_argument("sweep", type=Path, help="the sweep's folder")
    parser.add_argument("--failed", action="store_true", help="only those that failed")
    options = parser.parse_args(argv)
    rows = results.collect(options.sweep)
    shown = sorted((row for row in rows if row.state == "failed" or not options.failed), key=_rank)
    if shown:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        for column in ("run", "state", "job", "saved at step", "reason"):
            table.add_column(column, overflow="fold")
        for row in shown:
            outcome = f"{row.held} of {row.claims} claims hold" if row.state == "done" else row.reason
            table.add_row(*map(escape, (row.name, row.state, row.job, _saved(Path(row.path)), outcome)))
        stdout(table).print(table)
    counts = [(state, sum(row.state == state for row in rows)) for state in _ORDER]
    print(f"{len(rows)} runs: {', '.join(f'{count} {state}' for state, count in counts if count)}")
    return HOLDS


def _rank(row: results.Row) -> int:
    return _ORDER.index(row.state)


def _saved(run: Path) -> str:
    steps = [path.stem.removeprefix("step-") for path in run.glob("checkpoints/step-*.ckpt")]
    return str(int(max(steps))) if steps else ""
