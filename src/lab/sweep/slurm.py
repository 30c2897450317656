"""The points of a sweep, executed by SLURM: frozen and submitted here, executed by `lab.sweep.task` there."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig, OmegaConf

from lab import paths
from lab.errors import CRASHED, HOLDS, REFUTED, Refusal
from lab.machine import check_machine
from lab.processes import on_stop
from lab.provenance import SUBMITTED, code, tree_diff
from lab.rundir import RunDir, write_atomically
from lab.sweep import queue
from lab.sweep.local import Progress, exit_code
from lab.sweep.options import refuse_written
from lab.sweep.plan import Point, Sweep
from lab.types import NonEmptyStr, NonNegativeInt, Positive, PositiveInt

LARGEST_ARRAY = 1000
"""SLURM's own default, MaxArraySize, is 1001."""
DEFAULTS = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "time": "SBATCH_TIMELIMIT",
    "mem": "SBATCH_MEM_PER_NODE",
}
"""Setting → the variable of `sbatch` that stands in for it where it is null: the script then says it as well."""


@dataclass(frozen=True)
class Shape:
    """What a job asks for on account of its config: the same numbers that Lightning's Trainer is given."""

    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    threads: int


class Slurm:
    """Submits points as job arrays, one array for all that ask for the same nodes, ranks and cores.

    `--nodes` is `trainer.num_nodes` and `--ntasks-per-node` is `trainer.devices`: they are set there.

    Args:
        partition: as in `sbatch --partition`; this and the next five, where they are null, are what `SBATCH_PARTITION`
            and its like say here, else left to the cluster.
        account: to be charged.
        qos: quality of service.
        constraint: features that the nodes must have.
        time: limit, in minutes or as SLURM writes it ("1-12:00:00").
        mem: per node ("16G").
        cpus_per_task: cores of one rank; null: `threads`.
        gpus_per_node: null: `trainer.devices` where `trainer.accelerator` is gpu. With `trainer.accelerator=auto` a
            job has GPUs if this says so.
        gpu_type: as the cluster names it ("a100").
        options: whatever else `sbatch` is to be told ("--exclusive"); nothing that the script says already.
        setup: shell lines before the run: modules, environment variables.
        python: the interpreter on the nodes; null: this one; or more words: "apptainer exec lab.sif python".
        max_running: jobs of an array at a time.
        signal_seconds: how long before the end a run is told to save and queue again; 0: never.
        wait: until all jobs have ended, and report.
        poll_seconds: between two looks at the queue.
        batch: trials of a search that are proposed and submitted together.
        dry_run: write the scripts and submit nothing.
    """

    def __init__(
        self,
        partition: NonEmptyStr | None = None,
        account: NonEmptyStr | None = None,
        qos: NonEmptyStr | None = None,
        constraint: NonEmptyStr | None = None,
        time: PositiveInt | NonEmptyStr | None = None,
        mem: NonEmptyStr | None = None,
        cpus_per_task: PositiveInt | None = None,
        gpus_per_node: PositiveInt | None = None,
        gpu_type: NonEmptyStr | None = None,
        options: list[str] | None = None,
        setup: list[str] | None = None,
        python: NonEmptyStr | None = None,
        max_running: PositiveInt | None = None,
        signal_seconds: NonNegativeInt = 90,
        wait: bool = False,
        poll_seconds: Positive = 5.0,
        batch: PositiveInt = 8,
        dry_run: bool = False,
    ) -> None:
        asked = {
            "partition": partition, "account": account, "qos": qos, "constraint": constraint, "time": time, "mem": mem,
        }  # fmt: skip
        said = {key: os.environ.get(name) or None for key, name in DEFAULTS.items()}  # an empty one says nothing
        self.asked = {key: said[key] if value is None else value for key, value in asked.items()}
        self.cpus_per_task, self.gpus_per_node, self.gpu_type = cpus_per_task, gpus_per_node, gpu_type
        self.options, self.setup, self.python = list(options or []), list(setup or []), python
        refuse_written(self.options)
        self.max_running, self.signal_seconds = max_running, signal_seconds
        self.wait, self.poll_seconds, self.batch, self.dry_run = wait, poll_seconds, batch, dry_run

    @property
    def reports(self) -> bool:
        """Whether there are results when `run` returns."""
        return self.wait and not self.dry_run

    def check(self, cfg: DictConfig) -> None:
        """Refuse what no node could execute, and settle what the nodes must not decide each for itself."""
        trainer = cfg.trainer
        devices = trainer.get("devices", "auto")
        if not isinstance(devices, int):
            raise Refusal(f"trainer.devices={devices} is not allowed with hydra/launcher=slurm: say how many a node")
        if trainer.get("accelerator", "auto") == "auto":
            OmegaConf.update(cfg, "trainer.accelerator", "gpu" if self.gpus_per_node else "cpu", force_add=True)
        if self.gpus_per_node and trainer.accelerator in ("gpu", "cuda") and self.gpus_per_node < devices:
            raise Refusal(
                f"hydra.launcher.gpus_per_node={self.gpus_per_node} is fewer than trainer.devices={devices}; null asks "
                "for as many"
            )
        check_machine(cfg, elsewhere=True)

    def run(
        self,
        sweep: Sweep,
        points: list[Point],
        progress: Progress | None = None,
        to_stop: Callable[[set[str]], set[str]] | None = None,
    ) -> int:
        """Freeze and submit the points that are not in the queue already; returns the sweep's exit code.

        Args:
            sweep: which they belong to.
            points: what is to be executed.
            progress: of a search, where this is one batch of several.
            to_stop: asked, while waiting, which of the runs that still run are to be cancelled.
        """
        known = queue.jobs(sweep.path)
        live = {name for name, job in known.items() if job.live}
        new = [point for point in points if point.name not in live]
        if len(new) < len(points):
            print(f"{len(points) - len(new)} runs are queued or running already", file=sys.stderr)
        self._freeze(sweep, new)
        for script in self._write_scripts(sweep, new, live):
            names = queue.points(script)
            if self.dry_run:
                print(f"{script}: {len(names)} runs, not submitted; sbatch {script}")
                continue
            job = submit(script)
            queue.add_submission(sweep.path, script, job)
            print(f"submitted {len(names)} runs as job {job}: {script}")
        if self.dry_run:
            return HOLDS
        if progress is not None:
            return self._wait_for(sweep, points, progress, to_stop)
        print(
            f"follow: lab status {sweep.path}   output: {sweep.path}/<run>/console.log   stop: lab cancel {sweep.path}"
        )
        if not self.wait:
            return HOLDS
        progress = Progress(len(sweep.points), self.max_running or len(points), len(sweep.points) - len(points))
        try:
            return self._wait_for(sweep, points, progress)
        finally:
            progress.close()

    def _freeze(self, sweep: Sweep, points: Sequence[Point]) -> None:
        """Write down what each run is and which code it was submitted with: later edits change nothing unnoticed."""
        now, diff = code(), tree_diff()
        patch: str | None = "not known: git does not say" if diff is None else None
        if diff:
            patch = f"tree-{sha256(diff).hexdigest()[:8]}.diff"
            write_atomically(sweep.path / patch, diff)
        submitted = {"submitted": datetime.now(UTC).isoformat(timespec="seconds"), "code": now, "diff": patch}
        for point in points:
            run = RunDir.choose(point.cfg, paths.OUTPUTS)
            run.path.mkdir(parents=True, exist_ok=True)
            run.freeze(point.cfg, list(point.overrides))
            write_atomically(run.path / SUBMITTED, json.dumps(submitted, indent=1) + "\n")

    def _write_scripts(self, sweep: Sweep, points: Sequence[Point], live: set[str]) -> Iterator[Path]:
        """One script an array; those that were submitted, by the lab or by hand, stay as they are."""
        alike: dict[Shape, list[Point]] = {}
        for point in points:
            alike.setdefault(self.shape(point.cfg), []).append(point)
        taken = set(queue.submissions(sweep.path))
        taken |= {script.name for script in sweep.path.glob("job-*.sbatch") if live & set(queue.points(script))}
        number = 0
        (sweep.path / queue.LOGS).mkdir(exist_ok=True)
        for shape, group in alike.items():
            for start in range(0, len(group), LARGEST_ARRAY):
                while f"job-{number}.sbatch" in taken:
                    number += 1
                names = [point.name for point in group[start : start + LARGEST_ARRAY]]
                script = sweep.path.absolute() / f"job-{number}.sbatch"
                write_atomically(script.with_suffix(".points"), "".join(f"{name}\n" for name in names))
                write_atomically(script, self.script(script, shape, len(names)))
                number += 1
                yield script

    def shape(self, cfg: DictConfig) -> Shape:
        """What the job of this config asks for."""
        devices: int = cfg.trainer.devices
        gpus = (self.gpus_per_node or devices) if cfg.trainer.accelerator in ("gpu", "cuda") else 0
        return Shape(cfg.trainer.get("num_nodes", 1), devices, gpus, self.cpus_per_task or cfg.threads)

    def script(self, path: Path, shape: Shape, count: int) -> str:
        """The batch script of an array of `count` runs, as it stands at `path`."""
        points, python = path.with_suffix(".points"), self.python or shlex.quote(sys.executable)
        limit = f"%{self.max_running}" if self.max_running else ""
        log = str(path.parent / queue.LOGS).replace("%", "%%") + "/%A_%a.log"
        asked = {
            "job-name": f"lab-{path.parent.name}",
            "array": f"0-{count - 1}{limit}",
            "nodes": shape.nodes,
            "ntasks-per-node": shape.ranks_per_node,
            "cpus-per-task": shape.threads,
            "gpus-per-node": f"{self.gpu_type + ':' if self.gpu_type else ''}{shape.gpus_per_node}",
            **self.asked,
            "chdir": Path.cwd(),
            "output": log,
            "open-mode": "append",
            "signal": f"B:USR1@{self.signal_seconds}" if self.signal_seconds else None,
        }
        if not shape.gpus_per_node:
            del asked["gpus-per-node"]
        options = [f"--{name}={shlex.quote(str(value))}" for name, value in asked.items() if value is not None]
        environment = (
            [f"export PYTHONPATH={shlex.quote(os.environ['PYTHONPATH'])}"] if "PYTHONPATH" in os.environ else []
        )
        lines = [
            "#!/bin/bash",
            f"# {count} runs, those in {points.name}. Submit by hand: sbatch {path.name}",
            *(f"#SBATCH {option}" for option in [*options, "--requeue", *self.options]),
            "",
            "trap '' USR1  # until the run can take it",
            *queue.lines_that_say_who_runs(path.parent, points),
            *environment,
            *self.setup,
            f"exec {python} -m lab.sweep.task {shlex.quote(str(path.parent))} {shlex.quote(str(points))}",
        ]
        return "".join(f"{line}\n" for line in lines)

    def _wait_for(
        self,
        sweep: Sweep,
        points: Sequence[Point],
        progress: Progress,
        to_stop: Callable[[set[str]], set[str]] | None = None,
    ) -> int:
        waiting = {point.name for point in points}
        stopped: set[str] = set()
        try:
            with on_stop(_interrupt):
                while waiting:
                    time.sleep(self.poll_seconds)
                    try:
                        live = {name: job for name, job in queue.jobs(sweep.path).items() if job.live}
                        if to_stop and (chosen := to_stop(waiting & live.keys()) & live.keys() - stopped):
                            queue.cancel([live[name] for name in chosen])
                            stopped |= chosen
                    except Refusal as refusal:  # a controller that restarts is no reason to give up
                        print(f"lab: {refusal}", file=sys.stderr)
                        continue
                    for name in sorted(waiting - live.keys()):
                        progress.ended(name, *_outcome(RunDir(sweep.path / name), stopped=name in stopped))
                    waiting &= live.keys()
        except KeyboardInterrupt:
            print(f"\nlab: the jobs go on; lab status {sweep.path}, lab cancel {sweep.path}", file=sys.stderr)
            return 128 + signal.SIGINT
        return exit_code(progress.codes)


def _interrupt(_signum: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _outcome(run: RunDir, *, stopped: bool) -> tuple[int, str]:
    """(exit code, what to say in its place) of a run whose job has ended."""
    if run.finished:
        try:
            return (HOLDS if run.read_verdict()["holds"] else REFUTED), ""
        except Refusal as refusal:
            return CRASHED, str(refusal)
    return (HOLDS, "pruned") if stopped else (CRASHED, "")


def submit(script: Path) -> str:
    """Hand a script to `sbatch`; returns the job's id.

    Without the `SBATCH_*` of the environment, which would win over the script's own lines.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SBATCH_")}
    command = ["sbatch", "--parsable", str(script)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Refusal(
            "sbatch is not on the PATH: submit from a machine of the cluster; hydra.launcher.dry_run=true only writes "
            "the scripts"
        ) from None
    if done.returncode:
        raise Refusal(f"sbatch {script}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]
