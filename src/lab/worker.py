"""One rank of a run: `python -m lab.worker RUN_DIR CHECKPOINT ALIVE_FD LOCK_FD`, started by lab.launch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from lab.errors import REFUSED, Refusal
from lab.launch import STOPS, end_with_parent, leave, on_stop, refuse_full_disk
from lab.rundir import RunDir


def main() -> None:
    """Execute the run directory as the rank that the environment says."""
    run_dir, checkpoint, alive, lock = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    for fd in (alive, lock):  # wandb's service and other children must not keep the run alive
        os.set_inheritable(fd, False)
    threading.Thread(target=end_with_parent, args=(alive,), daemon=True).start()
    try:
        with on_stop(leave), refuse_full_disk(Path(run_dir)):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            from lab.run import execute

            code = execute(RunDir(Path(run_dir)), Path(checkpoint) if checkpoint else None)
    except Refusal as refusal:
        print(f"lab: {refusal}", file=sys.stderr)
        code = REFUSED
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
