"""Many runs, one import: each run is a fork of a process that has loaded everything and computed nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from omegaconf import DictConfig

from lab import loading
from lab.devices import Devices, Need, confine
from lab.errors import REFUSED, Refusal
from lab.launch import launch
from lab.processes import STOPS, Fork, is_main_thread

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
    fork: Fork
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
        self._devices = Devices()
        self._running: list[_Running] = []
        self._interrupted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Workers:
        if loading.FORKS:
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            loading.load()
        self._alive = os.pipe()
        if is_main_thread():
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
            for running in self._running:
                self.stop(running.job)
            deadline = time.monotonic() + GRACE
            while self._running and time.monotonic() < deadline:
                self._reap()
                time.sleep(0.01)
        finally:
            for running in self._running:
                running.fork.kill()
                running.fork.wait()
            for signum, before in self._before.items():
                signal.signal(signum, before)
            os.close(self._alive[0])
            os.close(self._alive[1])
        if kind is None:
            self._end_if_interrupted()

    @property
    def running(self) -> list[Job]:
        return [running.job for running in self._running]

    def start(self, job: Job) -> bool:
        """Start `job` if there is room for it now."""
        self._end_if_interrupted()
        if self.at_once is not None and len(self._running) >= self.at_once:
            return False
        need = Need.of(job.cfg)
        devices = self._devices.take(need)
        if devices is None:
            return False
        if loading.FORKS:
            loading.load_named(job.cfg)
        fork = Fork(partial(_execute, job, need, devices), self._alive, job.console)
        self._running.append(_Running(job, fork, need, devices))
        return True

    def stop(self, job: Job) -> None:
        """Tell a job to save and stop; it ends as every other, with 128 + SIGTERM."""
        for running in self._running:
            if running.job is job:
                running.fork.send_signal(signal.SIGTERM)

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
        for running in list(self._running):
            if (code := running.fork.poll()) is not None:
                self._running.remove(running)
                self._devices.give(running.need, running.devices)
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


def _execute(job: Job, need: Need, devices: tuple[int, ...]) -> int:
    """In the fork: the job on the devices it was lent."""
    try:
        confine(need, devices)
        return launch(job.cfg, job.overrides, fresh_process=not loading.FORKS)
    except Refusal as refusal:
        print(f"lab: {refusal}", file=sys.stderr)
        return REFUSED
