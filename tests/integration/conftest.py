"""Real runs for the integration tests: each configuration is executed once a session, whichever worker asks first."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.compose import compose

ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "SLURM_")) and key != "WORLD_SIZE"
} | {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
COMMON = ["logger=none", "trainer.accelerator=cpu", "trainer.log_every_n_steps=10"]
EVERY, PATIENCE = 50, 120.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


class Outcome:
    """What a finished run left: the state of its last checkpoint, its metrics file and its judged claims."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """Weights (averaged and followed, where there are both), buffers and the optimiser's state at the last step."""
        last = max(self.path.glob("checkpoints/step-*.ckpt"))
        checkpoint = torch.load(last, weights_only=True)
        optimizer = checkpoint["optimizer_states"][0]["state"]
        followed = {f"followed.{name}": value for name, value in checkpoint.get("followed", {}).items()}
        return (
            checkpoint["state_dict"]
            | followed
            | {
                f"optimizer.{i}.{name}": torch.as_tensor(value)
                for i, slots in optimizer.items()
                for name, value in slots.items()
                if value is not None
            }
        )

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """What was trained: `step_norms` is a record, and `mean`, `characters` and `first` are the data's."""
        kept = ("optimizer.", "step_norms", "mean", "characters", "first")
        return {k: v for k, v in self.state.items() if not k.startswith(kept)}

    @property
    def metrics(self) -> bytes:
        return (self.path / "metrics.csv").read_bytes()

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """The columns of metrics.csv."""
        header, *rows = csv.reader(self.metrics.decode().splitlines())
        return dict(zip(header, np.array(rows, dtype=float).T, strict=True))

    @property
    def verdict(self) -> dict[str, Any]:
        verdict: dict[str, Any] = json.loads((self.path / "verdict.json").read_text())
        return verdict

    def differs_from(self, other: Outcome) -> list[str]:
        """What is not bitwise the same in two runs."""
        mine, others = self.state, other.state
        different = sorted(mine.keys() ^ others.keys())
        different += [k for k in mine.keys() & others.keys() if _bits(mine[k]) != _bits(others[k])]
        different += ["metrics.csv"] * (self.metrics != other.metrics)
        different += ["claims"] * (self.verdict["claims"] != other.verdict["claims"])
        return different


def _bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.numpy().tobytes()  # as bytes: a NaN equals itself


class Run(subprocess.Popen[str]):
    """A `python -m lab …` that has been started, with its run directory."""

    def __init__(self, path: Path, words: Sequence[str], **options: Any) -> None:
        self.path = path
        super().__init__(
            [sys.executable, "-m", "lab", *words, f"run_dir={path}"],
            cwd=options.pop("cwd", path.parent),
            env=ENVIRONMENT | options.pop("env", {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until `condition()` is true while the process lives; returns its value."""
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            if self.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the run ended with {self.poll()} before {what}:\n{self.end()[1]}")
            time.sleep(0.005)
        return value

    def wait_for_step(self, step: int) -> None:
        """Wait until the checkpoint of a step is there."""
        self.wait_for((self.path / f"checkpoints/step-{step:09d}.ckpt").exists, f"step {step}")

    def ranks(self) -> dict[int, int]:
        """{rank: pid} of the forks that execute this run, whoever their parent is."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                name = (process / "comm").read_text().strip()
                if name.startswith("lab rank ") and str(self.path).encode() in (process / "cmdline").read_bytes():
                    found[int(name.removeprefix("lab rank "))] = int(process.name)
            except OSError:  # it has ended
                continue
        return found

    def stop(self, signum: int) -> tuple[int, str]:
        """Send a signal and wait for the end: (exit code, standard error)."""
        self.send_signal(signum)
        return self.end()

    def end(self) -> tuple[int, str]:
        """Wait for the end: (exit code, standard error)."""
        try:
            self.out, err = self.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the run does not end: {self.communicate()[1]}")
        return self.returncode, err


Start = Callable[..., Run]
Finished = Callable[..., Outcome]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `python -m lab words… run_dir=path`; what still runs when the test ends is killed."""
    runs: list[Run] = []

    def begin(path: Path, words: Sequence[str], **options: Any) -> Run:
        runs.append(Run(path, words, **options))
        return runs[-1]

    yield begin
    for run in runs:
        for pid in [*run.ranks().values(), *([run.pid] if run.poll() is None else [])]:
            os.kill(pid, signal.SIGKILL)
        run.communicate()


@pytest.fixture(scope="session")
def execute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path, Sequence[str]], Outcome]]:
    """Executes a run to its end in a fork of a process that has imported everything."""
    command = [sys.executable, str(Path(__file__).with_name("forks.py"))]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path_factory.getbasetemp(), env=ENVIRONMENT, **pipes) as forks:
        asks, answers = forks.stdin, forks.stdout
        assert asks
        assert answers

        def outcome(path: Path, words: Sequence[str]) -> Outcome:
            print(json.dumps([list(words), str(path)]), file=asks, flush=True)
            ended, _, _ = select.select([answers], [], [], PATIENCE)
            code, console = answers.readline() if ended else "still running\n", path / "console.log"
            assert code in ("0\n", "3\n"), f"{code}{console.read_text() if console.exists() else ''}"
            return Outcome(path)

        try:
            yield outcome
        finally:
            forks.kill()  # its runs end with it


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, execute: Any) -> Finished:
    """The outcome of an uninterrupted run with these overrides, executed once a session; not to be written to."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"  # workers have one base each
    shared.mkdir(exist_ok=True)

    def outcome(words: Sequence[str]) -> Outcome:
        path = shared / hashlib.sha256(repr(list(words)).encode()).hexdigest()[:12]
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return Outcome(path) if (path / "verdict.json").exists() else execute(path, words)

    return outcome


@pytest.fixture(scope="session")
def outcome() -> type[Outcome]:
    """Reads a run directory."""
    return Outcome


STEPS = {
    "pca_autoencoder": 800,
    "linear_regression": 400,
    "vae": 300,
    "diffusion": 300,
    "sinkhorn_ot": 300,
    "gnn": 300,
    "transformer": 300,
    "diffusion_digits": 100,
    "sinkhorn_ot_digits": 100,
}
CHEAP: dict[str, list[str]] = {  # fewer draws to judge by, fewer panels to draw: these runs are about training
    "pca_autoencoder": [
        *(f"~controls.{name}" for name in ("relu_bottleneck", "one_more_code", "no_order")),
        *(f"~claims.{name}" for name in ("principal_angles", "ordered_eigenvectors", "ordered_variances")),
    ],
    "linear_regression": ["data.designs.tall.replicates=32", "data.designs.small.replicates=400"],
    "vae": ["claims.importance_bounds.images=16", "claims.importance_bounds.draws=64"],
    "diffusion": [
        "data.batch_size=128",
        *(f"claims.{name}.draws=256" for name in ("floor", "floor_reached", "score_error", "likelihood")),
        "claims.samples.n=100",
        "claims.samples.repeats=2",
        "claims.sampler_order.coarsest=8",
    ],
    "sinkhorn_ot": ["data.batch_size=2", "data.points=24", "data.support=12", "data.grid=60"],
    "gnn": [
        "data.batch_size=16",
        *(
            f"claims.{name}.graphs=100"
            for name in ("feature_accuracy", "mean_accuracy", "accuracy_by_degree", "graph_helps", "graph_hurts")
        ),
        "claims.graphs_told_apart.most=4",
        "claims.oversmoothing.graphs=2",
    ],
    "transformer": [
        "data.batch_size=16",
        "data.context=32",
        "claims.flops.context=32",
        *(
            f"claims.{name}.sequences=64"
            for name in ("entropy_rate", "no_better", "bayes", "unigram", "induction_head")
        ),
    ],
    "diffusion_digits": [
        "data.batch_size=16",
        "model.net.channels=[16,16]",
        "model.bound_draws=50",
        *(f"claims.{name}.images=10" for name in ("wiener", "gaussian_code", "any_schedule")),
        "claims.frechet.n=50",
        "claims.frechet.steps=2",
    ],
    "sinkhorn_ot_digits": [
        "data.side=2",
        "data.images=10",
        "model.histograms.count=4",
        "model.solver.tolerance=1e-4",
        "model.solver.max_iterations=50",
    ],
}


@pytest.fixture(scope="session")
def steps() -> dict[str, int]:
    """How long the runs of `words` are: a second or two of training."""
    return STEPS


@pytest.fixture(scope="session")
def cheap() -> dict[str, list[str]]:
    """Overrides under which a run of an experiment has less to judge and to draw."""
    return CHEAP


@pytest.fixture(scope="session")
def words() -> Callable[..., list[str]]:
    """The overrides of a short run of an experiment that keeps a checkpoint for every block of 50 steps."""

    def overrides(experiment: str, *more: str) -> list[str]:
        saving = [f"callbacks.checkpoints.every_n_steps={EVERY}", "callbacks.checkpoints.keep=99"]
        steps = f"trainer.max_steps={STEPS[experiment]}"
        drawn = [f"~pictures.{name}" for name in pictures(experiment)]
        return [f"experiment={experiment}", *COMMON, steps, *saving, *drawn, *CHEAP.get(experiment, []), *more]

    @cache
    def pictures(experiment: str) -> list[str]:
        return list(compose([f"experiment={experiment}"]).pictures)

    return overrides


@pytest.fixture
def partial(finished: Finished, tmp_path: Path) -> Callable[..., Path]:
    """A run directory as SIGKILL at `step` would leave it, made of an uninterrupted run."""

    def make(words: Sequence[str], step: int) -> Path:
        path = tmp_path / "partial"
        shutil.copytree(finished(words).path, path, ignore=shutil.ignore_patterns("verdict.json", "figure.*"))
        for checkpoint in path.glob("checkpoints/step-*.ckpt"):
            if int(checkpoint.stem.removeprefix("step-")) > step:
                checkpoint.unlink()
        return path

    return make
