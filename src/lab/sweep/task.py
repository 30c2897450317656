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

from omegaconf import DictConfig, OmegaConf

from lab.errors import REFUSED, Refusal
from lab.launch import launch, on_stop, redirect
from lab.machine import check_machine
from lab.rundir import RunDir, write_atomically
from lab.sweep.local import CONSOLE
from lab.sweep.queue import JOB

WARNING = signal.SIGUSR1
"""What SLURM sends before it takes the nodes away."""


def main() -> None:
    """Execute the run; where SLURM warned that it takes the nodes away, save and queue again."""
    warned = False

    def warn(_signum: int, _frame: object) -> None:
        nonlocal warned
        warned = True
        signal.raise_signal(signal.SIGTERM)  # stops the run wherever it is, as a user would

    def leave(signum: int, _frame: object) -> NoReturn:
        sys.exit(128 + signum)

    signal.signal(WARNING, warn)
    sweep, points = Path(sys.argv[1]), Path(sys.argv[2])
    run = RunDir(sweep / points.read_text(encoding="utf-8").splitlines()[int(os.environ["SLURM_ARRAY_TASK_ID"])])
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    redirect(run.path / CONSOLE)
    write_atomically(run.path / JOB, f"{job}\n")
    try:
        with on_stop(leave):
            code = _execute(run)
    except SystemExit as stopped:
        code = int(str(stopped.code))
    except Refusal as refusal:
        print(f"lab: {refusal}", file=sys.stderr)
        code = REFUSED
    if warned and not run.finished:
        _requeue(job)
    sys.exit(code)


def _execute(run: RunDir) -> int:
    cfg = OmegaConf.load(run.config)
    assert isinstance(cfg, DictConfig)
    cfg.run_dir = str(run.path)
    check_machine(cfg, nodes=int(os.environ.get("SLURM_JOB_NUM_NODES", "1")))
    return launch(cfg, run.overrides.read_text(encoding="utf-8").splitlines(), fresh_process=True)


def _requeue(job: str) -> None:
    print(f"lab: job {job} queues again; it goes on from the last checkpoint", file=sys.stderr, flush=True)
    if subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0:
        time.sleep(300)  # until SLURM ends the job: one that ended by itself would not be queued again


if __name__ == "__main__":
    main()
