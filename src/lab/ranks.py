"""The ranks of a run: started on this machine or on the nodes of a SLURM job, and watched. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from lab import loading, worker
from lab.errors import CRASHED, HOLDS, REFUSED, REFUTED, Refusal
from lab.processes import STOPS, Fork, end_now, heed_children, leave, on_stop, stops_held_back
from lab.rundir import MEETING, RunDir, refuse_full_disk, release_locks

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
PATIENCE = 30.0
"""Seconds that the other ranks have once one has saved and stopped."""
Rank = Fork | subprocess.Popen[bytes]


def main() -> None:
    """`python -m lab.ranks RUN_DIR CHECKPOINT RANKS ALIVE_FD LOCK_FD`: a fresh process that imports for all ranks."""
    run, checkpoint = RunDir(Path(sys.argv[1])), Path(sys.argv[2]) if sys.argv[2] else None
    ranks, alive, lock = map(int, sys.argv[3:])
    worker.begin([alive, lock])
    code = CRASHED
    try:
        with on_stop(leave), refuse_full_disk(run.path):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            code = execute_ranks(run, checkpoint, ranks, lock, fresh=False)
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # it is decided
    except Refusal as refusal:
        print(f"lab: {refusal}", file=sys.stderr)
        code = REFUSED
    except BaseException:
        traceback.print_exc()
    end_now(code)


def execute_ranks(run: RunDir, checkpoint: Path | None, ranks: int, lock: int, *, fresh: bool) -> int:
    """A process a rank, all reading the frozen config; they end when this process does.

    Args:
        run: its config is frozen, this process holds its lock.
        checkpoint: where to go on from.
        ranks: how many.
        lock: the lock's file descriptor, which the ranks hold as well.
        fresh: start new processes, and leave this one as it is; without it this one imports and is forked.
    """
    cfg, words = run.read_config(), [str(run.path), str(checkpoint or "")]
    if fresh and ranks > 1 and loading.FORKS:
        return _watched(run, [partial(_fresh, ["lab.ranks", *words, str(ranks)], {}, lock)])
    with contextlib.ExitStack() as stack:
        if not fresh:
            stack.enter_context(on_stop(leave))
            os.environ["OMP_NUM_THREADS"] = str(cfg.threads)  # read when torch is loaded
            loading.load()
            loading.load_named(cfg)
        # the ranks find each other through a file: a port, once found free, may be taken before rank 0 listens on it
        meeting = stack.enter_context(tempfile.TemporaryDirectory(prefix="lab-ranks-"))
        shared = {
            "WORLD_SIZE": str(ranks),
            "NODE_RANK": "0",
            "OMP_NUM_THREADS": str(cfg.threads),
            MEETING: str(Path(meeting, "store")),
        }
        environments = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        if fresh:
            return _watched(run, [partial(_fresh, ["lab.worker", *words], each, lock) for each in environments])
        return _watched(run, [partial(_forked, run, checkpoint, each, lock) for each in environments])


def _forked(
    run: RunDir, checkpoint: Path | None, environment: dict[str, str], lock: int, alive: tuple[int, int]
) -> Fork:
    rank = environment["RANK"]

    def do() -> int:
        release_locks(but=lock)
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text(f"lab rank {rank}", encoding="ascii")  # what ps and top show
        for name in RANK_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(environment)
        return worker.work(run, checkpoint)

    return Fork(do, alive, run.rank_log(int(rank)) if rank != "0" else None)


def _fresh(
    command: list[str], environment: dict[str, str], lock: int, alive: tuple[int, int]
) -> subprocess.Popen[bytes]:
    fds, without = (alive[0], lock), {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
    return subprocess.Popen(
        [sys.executable, "-m", *command, *map(str, fds)],
        env=without | environment,
        stdin=subprocess.DEVNULL,
        pass_fds=fds,
        start_new_session=True,  # a Ctrl-C at the terminal reaches it by `_wait` alone
    )


def _watched(run: RunDir, starts: Sequence[Callable[[tuple[int, int]], Rank]]) -> int:
    """Start processes and wait for them; returns the exit code of the run."""
    processes, told = list[Rank](), list[int]()
    heed_children()
    with _pipe() as alive:
        try:
            with on_stop(lambda signum, _: told.append(signum)):  # and no more: not all may be there yet
                with stops_held_back():
                    for start in starts:
                        processes.append(start(alive))
                return _wait(processes, run, told)
        finally:
            for process in processes:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Its reading end sees the end of file when this process is gone."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def execute_on_nodes(run: RunDir, checkpoint: Path | None) -> int:
    """One rank a task of this SLURM job, by srun, which kills all of them when one dies or the job ends."""
    job = os.environ["SLURM_JOB_ID"]
    environment = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
    environment.setdefault("MASTER_ADDR", _own_address())
    environment.setdefault("MASTER_PORT", str(20_000 + int(job) % 12_000))  # below the ports that are lent to clients
    if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
        environment["SRUN_CPUS_PER_TASK"] = cores  # srun no longer takes it from the job
    command = ["srun", "--kill-on-bad-exit=1", "--input=none", sys.executable, "-m", "lab.worker"]
    told = 0

    def tell(signum: int, _frame: object) -> None:
        nonlocal told
        told = signum
        # not through srun, which answers SIGTERM by killing its tasks at once
        subprocess.run(["scancel", "--signal=TERM", job], check=False)

    with on_stop(tell):
        code = subprocess.Popen([*command, str(run.path), str(checkpoint or "")], env=environment).wait()
    if run.finished:  # srun gives the highest code of all ranks, some of which it may have killed
        return HOLDS if run.read_verdict()["holds"] else REFUTED
    if told:
        return 128 + told
    return code if 0 < code < 128 else CRASHED


def _own_address() -> str:
    """A name of this node that the others can resolve: SLURM's, unless only SLURM knows it."""
    name = os.environ.get("SLURMD_NODENAME", "")
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return socket.gethostname()
    return name


def _wait(processes: Sequence[Rank], run: RunDir, told: list[int]) -> int:
    """Rank 0's exit code, or 1 as soon as any rank dies of itself; a rank told to stop is followed by the others.

    Signals that come to be in `told` are passed on to all.
    """
    deadline = float("inf")
    while True:
        while told:
            signum = told.pop(0)
            for process in processes:
                process.send_signal(signum)
        codes, now = [process.poll() for process in processes], time.monotonic()
        for rank, code in enumerate(codes):
            if code is None or code in (HOLDS, REFUTED) or code >= 128:
                continue
            if rank and code == REFUSED and (codes[0] is None and now < deadline):
                deadline = min(deadline, now + PATIENCE)  # rank 0 refuses the same, and says so
                continue
            if rank == 0 and code > 0:
                return code
            log = "" if rank == 0 else f" (see {run.rank_log(rank)})"
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            print(f"lab: rank {rank} {how}{log}; the same command resumes from the last checkpoint", file=sys.stderr)
            return CRASHED
        stopped = [code for code in codes if code is not None and code >= 128]
        running = [rank for rank, code in enumerate(codes) if code is None]
        if running and now >= deadline:
            late = f"rank {running[0]} did not stop within {PATIENCE:g} s and is killed"
            print(f"lab: {late}; the same command resumes from the last checkpoint", file=sys.stderr)
        if not running or now >= deadline:
            return max(stopped, default=CRASHED if codes[0] is None else codes[0])
        if stopped and deadline == float("inf"):
            deadline = now + PATIENCE
        time.sleep(0.02)


if __name__ == "__main__":
    main()
