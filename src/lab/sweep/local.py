"""The points of a sweep, executed on this machine."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass, field

from tqdm import tqdm

from lab.errors import CRASHED, HOLDS, REFUSED, REFUTED
from lab.machine import check_machine, usable_cores, visible_gpus
from lab.sweep import queue
from lab.sweep.plan import Point, Sweep
from lab.types import PositiveInt
from lab.warm import Job, run_jobs

CONSOLE = "console.log"


@dataclass
class Progress:
    """Done, running, failed and the time that remains: a bar on a terminal, a line a job elsewhere."""

    total: int
    at_once: int
    before: int = 0
    """Jobs that an earlier start has finished."""
    codes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        tqdm.monitor_interval = 0  # its thread would be forked with every job
        self._began = time.monotonic()
        self._bar = tqdm(
            total=self.total,
            initial=self.before,
            disable=not sys.stderr.isatty(),
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} {postfix}",
            leave=False,
        )
        self._show()

    def ended(self, name: str, code: int, said: str = "") -> None:
        self.codes.append(code)
        self._bar.update()
        self._show()
        if self._bar.disable:
            done = self.before + len(self.codes)
            print(
                f"{done}/{self.total} {name}: {said or OUTCOMES.get(code, 'failed')}{self._remaining()}",
                file=sys.stderr,
            )

    def close(self) -> None:
        self._bar.close()

    def _show(self) -> None:
        left = self.total - self.before - len(self.codes)
        failed = sum(code not in (HOLDS, REFUTED) for code in self.codes)
        self._bar.set_postfix_str(f"{min(left, self.at_once)} running, {failed} failed{self._remaining()}")

    def _remaining(self) -> str:
        left = self.total - self.before - len(self.codes)
        if not self.codes or not left:
            return ""
        seconds = (time.monotonic() - self._began) / len(self.codes) * left
        return f", {seconds / 60:.0f} min left" if seconds > 90 else f", {seconds:.0f} s left"


OUTCOMES = {HOLDS: "holds", REFUTED: "refuted", REFUSED: "refused"}


class Local:
    """Runs points on this machine, each in a process of its own, on devices of its own.

    Args:
        n_jobs: how many at a time; null: as many as there are devices for.
    """

    reports = True
    """Whether there are results when `run` returns."""
    check = staticmethod(check_machine)

    def __init__(self, n_jobs: PositiveInt | None = None) -> None:
        self.n_jobs = n_jobs

    @property
    def slots(self) -> int:
        """How many runs of one device each there is room for at once."""
        return self.n_jobs or visible_gpus() or len(usable_cores())

    def run(self, sweep: Sweep, points: list[Point]) -> int:
        """Execute the points; returns the sweep's exit code."""
        if queued := queue.live(sweep.path):
            points = [point for point in points if point.name not in queued]
            way_out = f"lab cancel {sweep.path} takes them off"
            print(f"{len(queued)} runs are queued or running in SLURM and left to it; {way_out}", file=sys.stderr)
        if not points:
            return HOLDS
        jobs = {Job(point.cfg, point.overrides, sweep.folder(point) / CONSOLE): point for point in points}
        progress = Progress(len(sweep.points), self.slots, len(sweep.points) - len(points))
        try:
            for job, code in run_jobs(jobs, self.n_jobs):
                progress.ended(jobs[job].name, code)
        except KeyboardInterrupt:
            print(f"\nlab: the sweep was stopped; the same command goes on in {sweep.path}", file=sys.stderr)
            return 128 + signal.SIGINT
        finally:
            progress.close()
        return exit_code(progress.codes)


def exit_code(codes: list[int]) -> int:
    """0 when every job reached its verdict, 1 when one crashed or was killed, 2 when one was refused."""
    if all(code in (HOLDS, REFUTED) for code in codes):
        return HOLDS
    return REFUSED if all(code in (HOLDS, REFUTED, REFUSED) for code in codes) else CRASHED
