"""Many runs, one import: each run is a fork of a process that has loaded everything and computed nothing."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from omegaconf import DictConfig

from lab import compose
from lab.devices import Devices, Need, confine
from lab.errors import CRASHED, REFUSED, Refusal
from lab.launch import end_with_parent, launch

STOPS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10.0
"""Seconds in which a run that is told to stop may save."""


@dataclass(frozen=True, eq=False)
class Job:
    """One run: a composed and checked config, the overrides it came from, and where its console output goes."""

    cfg: DictConfig
    overrides: Sequence[str]
    console: Path


@dataclass(frozen=True)
class _Running:
    job: Job
    need: Need
    devices: tuple[int, ...]


class Workers:
    """Executes jobs in forks of this process, each on devices of its own, at most `at_once` (None: while devices last).

    Leaving the context, however it is left, tells the jobs that still run to save and stop, and kills those that take
    longer than `GRACE`; when this process is killed they are killed too. Where forking a loaded process is not safe
    (macOS), every job imports for itself.
    """

    def __init__(self, at_once: int | None = None) -> None:
        self.at_once = at_once
        self.forks = sys.platform == "linux"
        self._devices = Devices()
        self._running: dict[int, _Running] = {}
        self._interrupted = False
        self._imported: set[str] = set()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Workers:
        if self.forks:
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            _load()
        self._alive = os.pipe()
        if _is_main():
            self._before = {signum: signal.signal(signum, self._interrupt) for signum in STOPS}
        return self

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Only remember it: an exception here would be lost where Python ignores one, such as around a fork."""
        if self._interrupted:  # again: whatever takes so long is given up
            raise KeyboardInterrupt
        self._interrupted = True

    def _end_if_interrupted(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for running in list(self._running.values()):
                self.stop(running.job)
            deadline = time.monotonic() + GRACE
            while self._running and time.monotonic() < deadline:
                self._reap()
                time.sleep(0.01)
        finally:
            for pid in self._running:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            for signum, before in self._before.items():
                signal.signal(signum, before)
            os.close(self._alive[0])
            os.close(self._alive[1])
        if kind is None:
            self._end_if_interrupted()

    @property
    def running(self) -> list[Job]:
        return [running.job for running in self._running.values()]

    def start(self, job: Job) -> bool:
        """Start `job` if there is room for it now."""
        self._end_if_interrupted()
        if self.at_once is not None and len(self._running) >= self.at_once:
            return False
        need = Need.of(job.cfg)
        devices = self._devices.take(need)
        if devices is None:
            return False
        if self.forks:
            self._prepare(job)
        sys.stdout.flush()
        sys.stderr.flush()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # in the fork until it has handlers of its own
        pid = os.fork()
        if not pid:
            _be(job, need, devices, self._alive, held, fresh_process=not self.forks)
        self._running[pid] = _Running(job, need, devices)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return True

    def _prepare(self, job: Job) -> None:
        """Import here what the job and its like would each import; a class that cannot be is theirs to refuse."""
        modules = {target.rpartition(".")[0] for target in _targets(compose.plain(job.cfg))} - self._imported
        modules |= {"torch._dynamo.eval_frame"} - self._imported if job.cfg.model.get("compiled") else set()
        modules |= {"wandb"} & job.cfg.logger.keys() - self._imported  # its logger imports it when it begins
        if not modules:
            return
        self._imported |= modules
        for module in sorted(modules):
            with suppress(Exception):
                importlib.import_module(module)
        gc.freeze()  # what is loaded by now is no job's garbage: none looks through it, and its pages stay shared

    def stop(self, job: Job) -> None:
        """Tell a job to save and stop; it ends as every other, with 128 + SIGTERM."""
        for pid, running in self._running.items():
            if running.job is job:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def wait(self, seconds: float | None = None) -> list[tuple[Job, int]]:
        """(job, exit code) of those that ended, as soon as there is one; none when so many seconds have passed."""
        self._end_if_interrupted()
        deadline = None if seconds is None else time.monotonic() + seconds
        while not (ended := self._reap()) and self._running and (deadline is None or time.monotonic() < deadline):
            self._end_if_interrupted()
            time.sleep(0.005)
        return ended

    def _reap(self) -> list[tuple[Job, int]]:
        ended: list[tuple[Job, int]] = []
        for pid in list(self._running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                running = self._running.pop(pid)
                self._devices.give(running.need, running.devices)
                code = os.waitstatus_to_exitcode(status)
                ended.append((running.job, code if code >= 0 else 128 - code))
        return ended


def run_jobs(jobs: Iterable[Job], at_once: int | None = None) -> Iterator[tuple[Job, int]]:
    """Execute jobs in their order, as many at a time as there is room for; yields (job, exit code) as they end."""
    waiting = iter(jobs)
    with Workers(at_once) as workers:
        job = next(waiting, None)
        while job is not None or workers.running:
            while job is not None and workers.start(job):
                job = next(waiting, None)
            yield from workers.wait()


def _load() -> None:
    """What every run needs, paid once here and not in every fork."""
    import matplotlib.backends.backend_svg  # noqa: F401 - figures are saved by it
    from PIL import Image

    import lab.figures
    import lab.run  # noqa: F401

    Image.preinit()


def _targets(node: Any) -> Iterator[str]:
    """The classes that a config names, wherever they stand."""
    match node:
        case dict():
            if isinstance(target := node.get("_target_"), str):
                yield target
            for value in node.values():
                yield from _targets(value)
        case list():
            for value in node:
                yield from _targets(value)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _be(
    job: Job,
    need: Need,
    devices: tuple[int, ...],
    alive: tuple[int, int],
    held: set[int | signal.Signals],
    *,
    fresh_process: bool,
) -> None:
    """In the fork: execute the job and end."""
    code = CRASHED
    try:
        os.setsid()  # a Ctrl-C at the terminal is the parent's to pass on
        for signum in STOPS:
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        os.close(alive[1])
        threading.Thread(target=end_with_parent, args=(alive[0],), daemon=True).start()
        job.console.parent.mkdir(parents=True, exist_ok=True)
        console = os.open(job.console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(console, 1)
        os.dup2(console, 2)
        confine(need, devices)
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
