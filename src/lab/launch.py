"""Execute a run directory: here, or in several ranks. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from lab import loading
from lab.errors import HOLDS, REFUSED, REFUTED, Refusal
from lab.machine import ranks_per_node, world_size
from lab.paths import OUTPUTS
from lab.processes import leave, on_stop
from lab.ranks import execute_on_nodes, execute_ranks
from lab.rundir import RunDir, refuse_full_disk


def launch(cfg: DictConfig, overrides: Sequence[str] = (), *, fresh_process: bool = False) -> int:
    """Start the run that `cfg` describes, or go on with it where its directory exists; returns the exit code.

    Args:
        cfg: composed and checked.
        overrides: as the user gave them, kept in the run directory.
        fresh_process: leave this process as it is. Without it a run of one rank is executed here, and for several
            this process imports what they need and is forked, so it must not have computed anything.
    """
    run = RunDir.choose(cfg, OUTPUTS)
    with refuse_full_disk(run.path):
        made = [folder for folder in (run.path, *run.path.parents) if not os.path.lexists(folder)]
        run.path.mkdir(parents=True, exist_ok=True)
        with run.lock() as lock:
            frozen = run.freeze(cfg, list(overrides))
            if run.finished:
                return report_finished(run)
            checkpoint = _checkpoint(run, frozen and run.log.exists())  # a submitted run is frozen, not begun
            try:
                code, refusal = _execute(run, checkpoint, cfg, lock, fresh_process=fresh_process), None
            except Refusal as error:
                code, refusal = REFUSED, error
            if code == REFUSED and not frozen and not run.checkpoints.exists():
                run.discard(made)
            if refusal is not None:
                raise refusal
            return code


def _execute(run: RunDir, checkpoint: Path | None, cfg: DictConfig, lock: int, *, fresh_process: bool) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", str(cfg.threads))  # read when torch is loaded
    ranks = world_size(cfg)
    if ranks > ranks_per_node(cfg):
        return execute_on_nodes(run, checkpoint)
    if ranks > 1 or fresh_process:
        return execute_ranks(run, checkpoint, ranks, lock, fresh=fresh_process or not loading.FORKS)
    with on_stop(leave):
        from lab.run import execute

        return execute(run, checkpoint)


def report_finished(run: RunDir) -> int:
    """Say that the run is finished, show its verdict again, and give the exit code it had."""
    from lab.claim import Verdict
    from lab.table import print_verdict

    verdict = Verdict.from_json(run.read_verdict())
    print(f"{run.path} is finished; its verdict:")
    print_verdict(verdict, run.path)
    return HOLDS if verdict.holds else REFUTED


def _checkpoint(run: RunDir, continued: bool) -> Path | None:
    checkpoint, broken = run.newest_checkpoint()
    for path in broken:
        print(f"lab: {path} is torn or corrupt and is not used", file=sys.stderr)
        path.replace(path.with_suffix(".corrupt"))
    if checkpoint is not None:
        print(f"resuming {run.path} from {checkpoint.name}", file=sys.stderr)
    elif continued or broken:
        print(f"starting {run.path} from the beginning: it holds no whole checkpoint", file=sys.stderr)
    return checkpoint
