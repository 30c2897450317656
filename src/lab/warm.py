"""Many runs, one import: each run is a fork of a process that has loaded everything and computed nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from lab.errors import CRASHED, REFUSED, Refusal
from lab.launch import end_with_parent, launch


@dataclass(frozen=True)
class Job:
    """One run: a composed and checked config, the overrides it came from, and where its console output goes."""

    cfg: DictConfig
    overrides: Sequence[str]
    console: Path


def run_jobs(jobs: Sequence[Job], at_once: int) -> Iterator[tuple[Job, int]]:
    """Execute jobs, `at_once` at a time, each in a process of its own; yields (job, exit code) as they end.

    Closing the iterator, an interrupt or the death of this process ends the jobs that still run. Where forking a loaded
    process is not safe (macOS), every job imports for itself.
    """
    forks = sys.platform == "linux"
    if forks:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        import lab.run  # noqa: F401 - paid here once, not in every fork
    waiting, running = list(reversed(jobs)), dict[int, Job]()
    alive_read, alive_write = os.pipe()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # an interrupt too
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop()
                running[_fork(job, fresh_process=not forks, pipe=(alive_read, alive_write))] = job
            pid, status = os.wait()
            if pid in running:
                code = os.waitstatus_to_exitcode(status)
                yield running.pop(pid), code if code >= 0 else 128 - code
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        signal.signal(signal.SIGTERM, before)
        os.close(alive_read)
        os.close(alive_write)


def _fork(job: Job, *, fresh_process: bool, pipe: tuple[int, int]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = CRASHED
    try:
        os.setsid()  # a Ctrl-C at the terminal is the parent's to pass on
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        os.close(pipe[1])
        threading.Thread(target=end_with_parent, args=(pipe[0],), daemon=True).start()
        job.console.parent.mkdir(parents=True, exist_ok=True)
        console = os.open(job.console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(console, 1)
        os.dup2(console, 2)
        code = launch(job.cfg, job.overrides, fresh_process=fresh_process)
    except Refusal as refusal:
        print(f"lab: {refusal}", file=sys.stderr)
        code = REFUSED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
