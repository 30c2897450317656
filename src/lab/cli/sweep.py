"""`lab -m experiment=<name> key=value,value …`: many runs, one table, one figure."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lab import check, compose, paths
from lab.compose.overrides import chooses_group, parse
from lab.errors import HOLDS, Refusal, nearest
from lab.rundir import RunDir, refuse_full_disk
from lab.sweep import plan
from lab.sweep.grid import Grid, Optimum
from lab.sweep.plan import Composer, Sweep

_GRID = f"{Grid.__module__}.{Grid.__qualname__}"
_READ = ("hydra/launcher", "hydra/sweeper", "hydra.sweep.dir")
"""Of Hydra's own keys those that a sweep reads, beside the parameters of its launcher and its sweeper."""


def main(overrides: Sequence[str]) -> int:
    """Run the sweep that the overrides describe, or what is left of it; returns its exit code."""
    for text in overrides:
        _refuse_ignored(text)
    groups = [next(plan.choices_of(text)) for text in overrides if chooses_group(text)]
    _, hydra = compose.compose_with_hydra(groups)
    for part in ("launcher", "sweeper"):
        _require_ours(part, hydra)
    launcher = _made("launcher", hydra)
    if hydra.runtime.choices["hydra/sweeper"] == "basic":  # Hydra's default, in whose place ours stands
        given = {key: value for key, value in compose.plain(hydra.sweeper).items() if value is not None}
        OmegaConf.update(hydra, "sweeper", given | {"_target_": _GRID}, merge=False, force_add=True)
    sweeper = _made("sweeper", hydra)
    texts = plan.with_params(overrides, hydra)
    swept = {parse(text).key_or_group for text in texts if parse(text).is_sweep_override()}
    for key in sweeper.optimum.values.keys() - swept:
        raise Refusal(
            f"hydra.sweeper.optimum.{key} is not swept; swept: {', '.join(swept) or 'nothing'}{nearest(key, swept)}"
        )
    return (_grid if isinstance(sweeper, Grid) else _search)(texts, hydra, launcher, sweeper)


def _refuse_ignored(text: str) -> None:
    """Refuse a key of Hydra's that would change nothing, and several values where a sweep has one."""
    override = parse(text)
    key = override.key_or_group
    if override.is_sweep_override() and (key == "sweep" or key.startswith("hydra")):
        raise Refusal(f"{text} is not allowed: a sweep has one {key}")
    parts = [*key.replace("/", ".").split("."), ""]
    if parts[0] != "hydra" or key in _READ or (len(parts) > 3 and parts[1] in ("launcher", "sweeper")):
        return
    allowed = [*_READ, "hydra.launcher.<parameter>", "hydra.sweeper.<parameter>"]
    close = nearest(key, _READ) if parts[1] in ("launcher", "sweeper") else ""
    raise Refusal(f"{text} changes nothing in a sweep; of Hydra's keys it reads {', '.join(allowed)}{close}")


def _grid(texts: list[str], hydra: Any, launcher: Any, sweeper: Any) -> int:
    points = plan.grid(texts)
    first = points[0].cfg
    path = plan.folder(hydra, first.name, [point.digest for point in points])
    sweep = Sweep(path, first.name, tuple(texts), first.objective)
    for point in points:
        sweep.place(point)
        launcher.check(point.cfg)
    with _held(path):
        sweep.add(points)
        left = [point for point in points if not RunDir(sweep.folder(point)).finished]
        finished = f", {len(points) - len(left)} of them finished" if len(left) < len(points) else ""
        print(f"{path}: {len(points)} runs{finished}", file=sys.stderr)
        code: int = launcher.run(sweep, left) if left else HOLDS
        if not launcher.reports and left:
            return code
        rows = report(sweep, sweeper.optimum)
    return code or sweeper.optimum.judge(rows)


def _search(texts: list[str], hydra: Any, launcher: Any, search: Any) -> int:
    from lab.sweep.space import corners, space_of

    if not launcher.reports:
        raise Refusal("a search needs the results of its trials: hydra.launcher.wait=true, dry_run=false")
    space, fixed = space_of(texts)
    composer = Composer()
    tried = [
        composer.point([*fixed, *(f"{key}={value}" for key, value in values.items())], values)
        for values in corners(space)
    ]
    last = tried[-1]
    if len({corner.cfg.name for corner in tried}) > 1 and last.cfg.objective is None:
        raise Refusal("a search among experiments needs objective=<name>: the first loss of each is another number")
    same = search.identity() | {key: repr(dimension) for key, dimension in space.items()}
    same |= {"objective": str(last.cfg.objective), plan.CONFIG: plan.shared_digest(last.cfg)}
    path = plan.folder(hydra, last.cfg.name, [f"{key} {value}" for key, value in same.items()])
    sweep = Sweep(path, last.cfg.name, tuple(texts), last.cfg.objective, same)
    for corner in tried:
        sweep.place(corner)
        launcher.check(corner.cfg)
    with _held(path):
        sweep.add([])
        print(f"{path}: {search.n_trials} trials", file=sys.stderr)
        code: int = search.run(sweep, space, fixed, launcher)
        rows = report(sweep, search.optimum)
    return code or search.optimum.judge(rows)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """The sweep's folder, made and held by this process alone."""
    with refuse_full_disk(path, "hydra.sweep.dir"):
        path.mkdir(parents=True, exist_ok=True)
        with RunDir(path).lock("hydra.sweep.dir"):
            yield


def _made(part: str, hydra: Any) -> Any:
    """The launcher or sweeper that Hydra's part of the composition describes."""
    from hydra.utils import get_class

    check.check_node(f"hydra.{part}", hydra[part])
    parameters = compose.plain(hydra[part])
    return get_class(parameters.pop("_target_"))(**parameters)


def _require_ours(part: str, hydra: Any) -> None:
    chosen = hydra.runtime.choices[f"hydra/{part}"]
    allowed = sorted(path.stem for path in (paths.CONF / "hydra" / part).glob("*.yaml"))
    if part == "sweeper":
        allowed.append("basic")
    if chosen not in allowed:
        raise Refusal(f"hydra/{part}={chosen} is not allowed: {', '.join(allowed)}{nearest(chosen, allowed)}")


def report(sweep: Sweep, optimum: Optimum) -> list[Any]:
    """results.csv, the figure and the table of what there is; returns the rows."""
    from lab import figures
    from lab.sweep import figure, queue, results

    try:
        jobs = queue.jobs(sweep.path)
    except Refusal as refusal:
        print(f"lab: {refusal}: the table shows what the run directories say", file=sys.stderr)
        jobs = {}
    rows = results.collect(sweep.path, jobs)
    results.write_csv(rows, sweep.path / results.RESULTS)
    done = [row for row in rows if row.state == "done"]
    if done:
        title = f"{sweep.experiment}: {len(done)} runs, {sum(row.holds for row in done)} hold"
        figures.save(figure.draw(done, title=title, optimum=optimum.values), sweep.path)
    results.print_table(rows, file=sweep.path / results.TABLE)
    failed, pruned = (sum(row.state == state for row in rows) for state in ("failed", "pruned"))
    gave_up = f", {pruned} pruned" if pruned else ""
    print(f"{len(done)} of {len(rows)} runs finished, {sum(row.holds for row in done)} hold, {failed} failed{gave_up}")
    for name in (results.RESULTS, results.TABLE, "figure.svg"):
        if (sweep.path / name).exists():
            print(f"{name:<12} {sweep.path / name}")
    return rows
