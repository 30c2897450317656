"""The ranks of a run: started on this machine or on the nodes of a SLURM job, and watched. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from lab import loading, worker
from lab.errors import CRASHED, HOLDS, REFUSED, REFUTED
from lab.processes import Fork, leave, on_stop, stops_held_back
from lab.rundir import MEETING, RunDir, release_locks

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
PATIENCE = 30.0
"""Seconds that the other ranks have once one has saved and stopped."""
Rank = Fork | subprocess.Popen[bytes]


def execute_ranks(run: RunDir, checkpoint: Path | None, ranks: int, lock: int, *, fresh: bool) -> int:
    """A process a rank, all reading the frozen config; they end when this process does.

    Args:
        run: its config is frozen, this process holds its lock.
        checkpoint: where to go on from.
        ranks: how many.
        lock: the lock's file descriptor, which the ranks hold as well.
        fresh: start new processes, and leave this one as it is; without it this one imports and is forked.
    """
    threads, processes, told = str(run.read_config().threads), list[Rank](), list[int]()
    if not fresh:
        os.environ["OMP_NUM_THREADS"] = threads  # read when torch is loaded
        with on_stop(leave):
            loading.load()
            loading.load_named(run.read_config())
    start = partial(_fresh, lock=lock, threads=threads) if fresh else partial(_forked, lock=lock)
    with _pipe() as alive, tempfile.TemporaryDirectory(prefix="lab-ranks-") as meeting:
        # the ranks find each other through a file: a port, once found free, may be taken before rank 0 listens on it
        shared = {"WORLD_SIZE": str(ranks), "NODE_RANK": "0", MEETING: str(Path(meeting, "store"))}
        try:
            with on_stop(lambda signum, _: told.append(signum)):  # and no more: not all ranks may be there yet
                with stops_held_back():
                    for rank in range(ranks):
                        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                        processes.append(start(run, checkpoint, environment, alive))
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


def _forked(
    run: RunDir, checkpoint: Path | None, environment: dict[str, str], alive: tuple[int, int], lock: int
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
    run: RunDir,
    checkpoint: Path | None,
    environment: dict[str, str],
    alive: tuple[int, int],
    lock: int,
    threads: str,
) -> subprocess.Popen[bytes]:
    fds, without = (alive[0], lock), {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
    return subprocess.Popen(
        [sys.executable, "-m", "lab.worker", str(run.path), str(checkpoint or ""), *map(str, fds)],
        env=without | environment | {"OMP_NUM_THREADS": threads},
        stdin=subprocess.DEVNULL,
        pass_fds=fds,
        start_new_session=True,  # a Ctrl-C at the terminal reaches the ranks by `_wait` alone
    )


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
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code is None or code in (HOLDS, REFUTED) or code >= 128:
                continue
            if rank and code == REFUSED and (codes[0] is None and time.monotonic() < deadline):
                deadline = min(deadline, time.monotonic() + PATIENCE)  # rank 0 refuses the same, and says so
                continue
            if rank == 0 and code > 0:
                return code
            log = "" if rank == 0 else f" (see {run.rank_log(rank)})"
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            print(f"lab: rank {rank} {how}{log}; the same command resumes from the last checkpoint", file=sys.stderr)
            return CRASHED
        stopped = [code for code in codes if code is not None and code >= 128]
        if all(code is not None for code in codes) or time.monotonic() > deadline:
            return max(stopped, default=codes[0] or HOLDS)
        if stopped and deadline == float("inf"):
            deadline = time.monotonic() + PATIENCE
        time.sleep(0.02)
