"""One rank of a run: `python -m lab.worker RUN_DIR CHECKPOINT [ALIVE_FD LOCK_FD]`, started by lab.launch."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lab.errors import CRASHED, HOLDS, REFUSED, Refusal
from lab.launch import STOPS, end_with_parent, leave, on_stop, redirect, refuse_full_disk
from lab.rundir import RunDir

SLURM_NAMES = {"RANK": "PROCID", "LOCAL_RANK": "LOCALID", "NODE_RANK": "NODEID", "WORLD_SIZE": "NTASKS"}


def main() -> None:
    """Execute the run directory as the rank that the environment says."""
    code = CRASHED
    atexit.register(lambda: _leave(code))  # registered first, it runs last
    run_dir, checkpoint, fds = Path(sys.argv[1]), sys.argv[2], [int(word) for word in sys.argv[3:]]
    if not fds:
        os.environ.update({name: os.environ[f"SLURM_{slurm}"] for name, slurm in SLURM_NAMES.items()})
    rank = int(os.environ.get("RANK", "0"))
    if rank > 0:
        redirect(run_dir / f"rank{rank}.log")  # rank 0 alone speaks to the terminal
    code = _execute(RunDir(run_dir), Path(checkpoint) if checkpoint else None, fds)
    if not fds and rank > 0 and code > 128:
        code = HOLDS  # rank 0 says how the run stopped; srun would kill it for this one's code while it closes its logs
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End before Python unloads torch: its communication threads can abort a rank then, though its work was done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _execute(run: RunDir, checkpoint: Path | None, fds: Sequence[int]) -> int:
    for fd in fds:  # wandb's service and other children must not keep the run alive
        os.set_inheritable(fd, False)
    if fds:
        threading.Thread(target=end_with_parent, args=(fds[0],), daemon=True).start()
    try:
        with on_stop(leave), refuse_full_disk(run.path):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            from lab.run import execute

            return execute(run, checkpoint)
    except Refusal as refusal:
        print(f"lab: {refusal}", file=sys.stderr)
        return REFUSED


if __name__ == "__main__":
    main()
