"""One run of a sweep as a SLURM job: `python -m lab.sweep.task SWEEP POINTS`, started by the script that Slurm wrote.

The run is the one that SLURM_ARRAY_TASK_ID counts to in the file POINTS.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from lab.errors import CRASHED, REFUSED, Refusal
from lab.launch import launch
from lab.machine import check_machine
from lab.processes import on_stop, redirect
from lab.rundir import RunDir, write_atomically
from lab.sweep import queue
from lab.sweep.local import CONSOLE
from lab.sweep.queue import JOB

WARNING = signal.SIGUSR1
"""What SLURM sends before it takes the nodes away."""
UNSAVED = "unsaved_starts"
"""In a run directory: how many starts in a row were told to stop before they had saved a step, and at which one."""
MOST_UNSAVED = 3
"""After so many the job does not queue again: its time is too short for a start and a checkpoint."""


def main() -> None:
    """Execute the run; where SLURM warned that it takes the nodes away, save and queue again.

    A script that ended by itself would not be queued again, also where SLURM would have done so a moment later.
    """
    warned = False
    stopped: int | None = None

    def warn(_signum: int, _frame: object) -> None:
        nonlocal warned
        warned = True
        signal.signal(WARNING, signal.SIG_IGN)
        signal.raise_signal(signal.SIGTERM)  # stops the run wherever it is, as a user would

    def leave(signum: int, _frame: object) -> NoReturn:
        nonlocal stopped
        stopped = 128 + signum
        sys.exit(stopped)

    sweep, points = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        run = RunDir(sweep / _named(points, os.environ.get("SLURM_ARRAY_TASK_ID", "")))
    except Refusal as refusal:
        print(f"lab: {refusal}", file=sys.stderr)
        sys.exit(REFUSED)
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    redirect(run.path / CONSOLE)
    before, _ = run.newest_checkpoint()
    try:
        with on_stop(leave):
            signal.signal(WARNING, warn)
            try:
                write_atomically(run.path / JOB, f"{job}\n")
                code = _execute(run)
            finally:  # while `leave` takes what `warn` raises: later it would end a job that has still to queue again
                signal.signal(WARNING, signal.SIG_IGN)
    except SystemExit as left:
        code = int(str(left.code))
    except Exception as error:
        if stopped is not None:  # a library's `finally` failed where `leave` broke into it, and hid what that raised
            code = stopped
        elif isinstance(error, Refusal):
            print(f"lab: {error}", file=sys.stderr)
            code = REFUSED
        else:
            raise
    if run.finished:
        sys.exit(code)
    if not warned and queue.preempted(job):
        _requeue(job)
    elif warned:
        if _unsaved(run, before) < MOST_UNSAVED:
            _requeue(job)
        else:
            print(f"lab: given up: {MOST_UNSAVED} starts in a row saved no step", file=sys.stderr)
            code = CRASHED
    sys.exit(code)


def _named(points: Path, index: str) -> str:
    """The run that the array's task `index` executes."""
    names = queue.points(points)
    if not index.isdecimal() or int(index) >= len(names):
        allowed = f"0 to {len(names) - 1}" if names else "it names none"
        raise Refusal(f"SLURM_ARRAY_TASK_ID={index or 'absent'} counts to no run of {points}: {allowed}")
    return names[int(index)]


def _execute(run: RunDir) -> int:
    cfg = run.read_config()
    cfg.run_dir = str(run.path)
    check_machine(cfg, nodes=int(os.environ.get("SLURM_JOB_NUM_NODES", "1")))
    return launch(cfg, fresh_process=True)


def _unsaved(run: RunDir, before: Path | None) -> int:
    """Count this start; returns how many in a row have saved no step, of this submission alone.

    Args:
        run: whose checkpoints are looked at.
        before: its newest checkpoint when this start began.
    """
    file, newest = run.path / UNSAVED, run.newest_checkpoint()[0]
    at = newest.stem if newest else "none"
    queued_before = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    count = 0 if newest != before else 1 + (_counted(file, at) if queued_before else 0)
    write_atomically(file, f"{count} {at}\n")
    return count


def _counted(file: Path, at: str) -> int:
    """How many starts a file counts; 0 where it is none, damaged, or counts those at another checkpoint than `at`.

    A start that saved and that SLURM ended, or whose node failed, has not counted itself.
    """
    try:
        count, there = file.read_text(encoding="utf-8").split()
        return int(count) if there == at else 0
    except (FileNotFoundError, ValueError):
        return 0


def _requeue(job: str) -> None:
    print(f"lab: job {job} queues again; it goes on from the last checkpoint", file=sys.stderr, flush=True)
    if subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0:
        time.sleep(300)  # until SLURM ends the job: one that ended by itself would not be queued again


if __name__ == "__main__":
    main()
