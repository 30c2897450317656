"""Execute a run directory: here, or in fresh processes, one a rank. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig, OmegaConf

from lab.errors import CRASHED, HOLDS, REFUSED, REFUTED, Refusal
from lab.machine import ranks_per_node, world_size
from lab.paths import OUTPUTS
from lab.rundir import MEETING, RunDir

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
PATIENCE = 30.0
"""Seconds that the other ranks have once one has saved and stopped."""
STOPS = (signal.SIGINT, signal.SIGTERM)
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


def launch(cfg: DictConfig, overrides: Sequence[str] = (), *, fresh_process: bool = False) -> int:
    """Start the run that `cfg` describes, or go on with it where its directory exists; returns the exit code.

    Args:
        cfg: composed and checked.
        overrides: as the user gave them, kept in the run directory.
        fresh_process: leave this process as it is; without it a run of one rank is executed here.
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
        return _execute_on_nodes(run, checkpoint)
    if ranks > 1 or fresh_process:
        return _execute_ranks(run, checkpoint, ranks, lock)
    with on_stop(leave):
        from lab.run import execute

        return execute(run, checkpoint)


@contextlib.contextmanager
def refuse_full_disk(path: Path, key: str = "run_dir") -> Iterator[None]:
    """Say a full disk or an unwritable folder, which `key` names, in one line; what was written before it stays."""
    try:
        yield
    except OSError as error:
        where = f"{key}={path}"
        file = error.filename if isinstance(error.filename, str) else ""
        if file and not Path(file).absolute().is_relative_to(path.absolute()):
            where = f"{file}, while running {where}"
        if error.errno in FULL_DISK:
            raise Refusal(
                f"{where}: no space left ({error.strerror}); what is saved in the run directory stays whole: "
                "free space and run the same command again"
            ) from error
        if error.errno in _UNWRITABLE:
            raise Refusal(f"{where} cannot be written: {error.strerror} ({error.filename})") from error
        raise


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


@contextlib.contextmanager
def on_stop(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Hand SIGINT and SIGTERM to `handler`; outside the main thread, whose owner handles them, nothing changes."""
    main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.signal(signum, handler) for signum in STOPS} if main else {}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)


def leave(signum: int, _frame: FrameType | None) -> None:
    """What SIGINT and SIGTERM do while there is nothing to save: end the process at once and without a traceback."""
    line = f"{signal.Signals(signum).name}: stopped; the same command goes on from the last checkpoint\n"
    os.write(2, line.encode())  # print may have been interrupted by this very signal
    os._exit(128 + signum)


@contextlib.contextmanager
def _stops_held_back() -> Iterator[None]:
    """Processes started within take SIGINT and SIGTERM only once they ask for them, when they can say so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def redirect(output: Path) -> None:
    """Send what this process and its children print to the end of a file."""
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def end_with_parent(alive: int) -> None:
    """Kill this process when the other end of the pipe `alive` is gone, however its owner ended."""
    os.read(alive, 1)  # nothing is ever written
    os.kill(os.getpid(), signal.SIGKILL)


def _execute_ranks(run: RunDir, checkpoint: Path | None, ranks: int, lock: int) -> int:
    """One fresh process a rank, all reading the frozen config; they end when this process does."""
    cfg = OmegaConf.load(run.config)
    alive_read, alive_write = os.pipe()  # its reading end sees the end of file when this process is gone
    environment = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
    environment |= {
        "WORLD_SIZE": str(ranks),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": str(cfg.threads),
    }
    command = [sys.executable, "-m", "lab.worker", str(run.path), str(checkpoint or ""), str(alive_read), str(lock)]
    processes: list[subprocess.Popen[bytes]] = []

    def forward(signum: int, _frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signum)

    # the ranks find each other through a file: a port, once found free, may be taken before rank 0 listens on it
    meeting = tempfile.TemporaryDirectory(prefix="lab-ranks-")
    environment[MEETING] = str(Path(meeting.name) / "store")
    try:
        with on_stop(forward):
            with _stops_held_back():
                processes += [
                    subprocess.Popen(
                        command,
                        env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.DEVNULL,
                        pass_fds=(alive_read, lock),
                        start_new_session=True,  # a Ctrl-C at the terminal reaches the ranks by `forward` alone
                    )
                    for rank in range(ranks)
                ]
            return _wait(processes, run)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        meeting.cleanup()
        os.close(alive_read)
        os.close(alive_write)


def _execute_on_nodes(run: RunDir, checkpoint: Path | None) -> int:
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


def _wait(processes: Sequence[subprocess.Popen[bytes]], run: RunDir) -> int:
    """Rank 0's exit code, or 1 as soon as any rank dies of itself; a rank told to stop is followed by the others."""
    deadline = float("inf")
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code is None or code in (HOLDS, REFUTED) or code >= 128:
                continue
            if rank and code == REFUSED and (codes[0] is None and time.monotonic() < deadline):
                deadline = min(deadline, time.monotonic() + PATIENCE)  # rank 0 refuses the same, and says so
                continue
            if rank == 0 and code > 0:
                return code
            log = "" if rank == 0 else f" (see {run.path / f'rank{rank}.log'})"
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            print(f"lab: rank {rank} {how}{log}; the same command resumes from the last checkpoint", file=sys.stderr)
            return CRASHED
        stopped = [code for code in codes if code is not None and code >= 128]
        if all(code is not None for code in codes) or time.monotonic() > deadline:
            return max(stopped, default=codes[0] or HOLDS)
        if stopped and deadline == float("inf"):
            deadline = time.monotonic() + PATIENCE
        time.sleep(0.02)
