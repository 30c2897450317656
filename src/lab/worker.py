"""One rank of a run, started by `lab.ranks`.

In a fork of a process that has loaded all, or as `python -m lab.worker RUN_DIR CHECKPOINT [ALIVE_FD LOCK_FD]`.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path

from lab.errors import CRASHED, HOLDS, REFUSED, Refusal
from lab.processes import STOPS, end_now, end_with_parent, leave, on_stop, redirect
from lab.rundir import RunDir, refuse_full_disk

SLURM_NAMES = {"RANK": "PROCID", "LOCAL_RANK": "LOCALID", "NODE_RANK": "NODEID", "WORLD_SIZE": "NTASKS"}


def main() -> None:
    """Execute the run directory as the rank that the environment says."""
    code = CRASHED
    atexit.register(lambda: end_now(code))  # registered first, it runs last
    run, checkpoint, fds = RunDir(Path(sys.argv[1])), sys.argv[2], [int(word) for word in sys.argv[3:]]
    if fds:
        begin(fds)
    else:
        os.environ.update({name: os.environ[f"SLURM_{slurm}"] for name, slurm in SLURM_NAMES.items()})
    rank = int(os.environ.get("RANK", "0"))
    if rank > 0:
        redirect(run.rank_log(rank))
    with on_stop(leave):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        code = work(run, Path(checkpoint) if checkpoint else None)
    if not fds and rank > 0 and code > 128:
        code = HOLDS  # rank 0 says how the run stopped; srun would kill it for this one's code while it closes its logs
    sys.exit(code)


def begin(fds: list[int]) -> None:
    """In a fresh process that was given (ALIVE_FD, LOCK_FD): end with its parent, and hand neither on."""
    for fd in fds:  # wandb's service and other children must not keep the run alive
        os.set_inheritable(fd, False)
    end_with_parent(fds[0])


def work(run: RunDir, checkpoint: Path | None) -> int:
    """Execute the run directory as the rank that the environment says; returns the exit code."""
    try:
        with refuse_full_disk(run.path):
            from lab.run import execute

            return execute(run, checkpoint)
    except Refusal as refusal:
        print(f"lab: {refusal}", file=sys.stderr)
        return REFUSED


if __name__ == "__main__":
    main()
