"""`lab -m experiment=<name> key=value,value …`: many runs, one table, one figure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import check, compose, paths
from lab.errors import HOLDS, Refusal, nearest
from lab.rundir import RunDir, write_atomically
from lab.sweep import plan
from lab.sweep.plan import Sweep


def main(overrides: Sequence[str]) -> int:
    """Run the sweep that the overrides describe, or what is left of it; returns its exit code."""
    from hydra.utils import instantiate

    _, hydra = compose.compose_with_hydra(compose.first_point(overrides))
    for part in ("launcher", "sweeper"):
        _require_ours(part, hydra)
    check.check_node("hydra.launcher", hydra.launcher)
    launcher = instantiate(hydra.launcher)
    sweep, points = plan.grid(overrides, hydra)
    for point in points:
        launcher.check(point.cfg)
    sweep.path.mkdir(parents=True, exist_ok=True)
    with RunDir(sweep.path).lock():
        sweep.add(points)
        left = [point for point in points if not RunDir(sweep.folder(point)).finished]
        finished = f", {len(points) - len(left)} of them finished" if len(left) < len(points) else ""
        print(f"{sweep.path}: {len(points)} runs{finished}", file=sys.stderr)
        code: int = launcher.run(sweep, left) if left else HOLDS
        if launcher.reports or not left:
            report(sweep)
    return code


def _require_ours(part: str, hydra: Any) -> None:
    chosen = hydra.runtime.choices[f"hydra/{part}"]
    allowed = sorted(path.stem for path in (paths.CONF / "hydra" / part).glob("*.yaml"))
    if part == "sweeper":
        allowed.append("basic")
    if chosen not in allowed:
        raise Refusal(f"hydra/{part}={chosen} is not allowed: {', '.join(allowed)}{nearest(chosen, allowed)}")


def report(sweep: Sweep) -> None:
    """results.csv, the figure and the table of what there is."""
    from lab import figures
    from lab.sweep import figure, results

    rows = results.collect(sweep.path)
    results.write_csv(rows, sweep.path / results.RESULTS)
    done = [row for row in rows if row.state == "done"]
    if done:
        title = f"{sweep.experiment}: {len(done)} runs, {sum(row.holds for row in done)} hold"
        figures.save(figure.draw(done, title=title), sweep.path)
    results.print_table(rows)
    failed = sum(row.state == "failed" for row in rows)
    print(f"{len(done)} of {len(rows)} runs finished, {sum(row.holds for row in done)} hold, {failed} failed")
    for name in (results.RESULTS, "figure.svg"):
        if (sweep.path / name).exists():
            print(f"{name:<12} {sweep.path / name}")
