"""One process or two: the same trajectory up to the order in which floating-point sums are taken.

The tolerance. Two ranks add the same terms of every gradient as one, in another order, so a gradient differs by a few
units of roundoff ε (1.2e-7 in float32, 2.2e-16 in float64). Gradient descent on these losses contracts what it is
disturbed by, so the difference stays a few ε of the weights however many steps are taken: after 800 steps it was
measured as at most 4.6 ε of ‖w‖ (and 1.2 ε of the first loss) in either precision. Allowed are 32 ε. A nonlinear net
far from its optimum contracts nothing: of vae, after 300 steps, it was 28 ε, and 256 are allowed. In the
transformer a few units of squared ReLU are nearly dead, and Adam divides their gradients, 10⁻⁸ where others have 10⁻⁴,
by their own size: after 300 steps the two matrices of such units were 2300 and 900 ε off, all others less than 100. As
gnn it is compared after 50 steps, when it was 25 ε. The U-Net of diffusion_digits has biases that begin at 0 and whose
gradients are next to nothing. Adam's first steps have the size of the rate whatever the gradient's, so what rounding
changes in such a gradient, relative to itself, it changes in the step, and in the bias, which is the sum of few steps
and has no larger weight to be small beside: 567 ε after 10 steps and after 50, and 2048 are allowed. Only reduction
order scales with ε: an error in what the ranks compute would show in float64 as it does in float32.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lab.compose import compose
from lab.errors import HOLDS, REFUSED, Refusal
from lab.rundir import RunDir

EPSILON = {"32-true": 2.0**-23, "64-true": 2.0**-52}
ALLOWED = {
    "pca_autoencoder": 32,
    "linear_regression": 32,
    "vae": 256,
    "diffusion": 256,
    "sinkhorn_ot": 256,
    "gnn": 256,
    "transformer": 256,
    "diffusion_digits": 2048,
    "sinkhorn_ot_digits": 32,
}
MINIBATCH = ["data.batch_size=64"]
AT_SCALE = ["model.accumulate=3", "model.clip=50", "model.ema=0.99"]
"""How a model that is larger than its device is trained; the gradients of vae are longer than 50 and shorter."""
BRIEFLY = ["trainer.max_steps=50"]
"""Of nets whose gradients have kinks, and are next to nothing for some weights, 300 steps make 10³ to 10⁵ ε of one."""
DEFAULT = {
    "pca_autoencoder": "32-true",
    "linear_regression": "64-true",
    "vae": "32-true",
    "diffusion": "32-true",
    "sinkhorn_ot": "32-true",
    "gnn": "32-true",
    "transformer": "32-true",
    "diffusion_digits": "32-true",
    "sinkhorn_ot_digits": "32-true",
}


def distance(run: Any, other: Any) -> dict[str, float]:
    """Of weights relative to their norm, of curves relative to their greatest value: a loss may well end at zero."""
    weights = {k: float((run.weights[k] - w).norm() / w.norm()) for k, w in other.weights.items()}
    curves = {k: float(abs(run.curves[k] - c).max() / abs(c).max()) for k, c in other.curves.items() if k != "step"}
    assert np.array_equal(run.curves["step"], other.curves["step"])
    return weights | curves


@pytest.mark.parametrize(
    ("experiment", "precision", "more"),
    [
        ("pca_autoencoder", "32-true", []),  # 1797 samples: ranks of 898 and 899
        ("pca_autoencoder", "64-true", []),
        ("pca_autoencoder", "32-true", MINIBATCH),
        ("linear_regression", "64-true", []),
        ("vae", "32-true", []),
        ("vae", "64-true", []),
        ("vae", "32-true", [*MINIBATCH, *AT_SCALE]),
        ("diffusion", "32-true", []),
        ("sinkhorn_ot", "32-true", []),
        ("gnn", "32-true", BRIEFLY),
        ("transformer", "32-true", BRIEFLY),
        ("transformer", "32-true", [*BRIEFLY, *AT_SCALE]),
        ("diffusion_digits", "32-true", BRIEFLY),
        ("sinkhorn_ot_digits", "32-true", BRIEFLY),
    ],
)
def test_two_ranks_train_what_one_does(
    experiment: str, precision: str, more: list[str], finished: Any, words: Any
) -> None:
    more = more + [f"trainer.precision={precision}"] * (precision != DEFAULT[experiment])
    one, two = (finished(words(experiment, *more, *devices)) for devices in ([], ["trainer.devices=2"]))
    assert one.verdict["provenance"]["world_size"] == 1
    assert two.verdict["provenance"]["world_size"] == 2
    apart = distance(two, one)
    assert max(apart.values()) > 0, "two ranks that agree bitwise have not divided the work"
    assert max(apart.values()) <= ALLOWED[experiment] * EPSILON[precision], apart


@pytest.mark.parametrize(
    ("run", "other"),
    [
        (["data.batch_size=64"], ["data.batch_size=64", "data.seed=1"]),  # other samples in each batch
        ([], ["data.batch_size=1796"]),  # in each batch one sample of 1797 is missing
    ],
)
def test_the_tolerance_would_notice_wrong_samples(run: list[str], other: list[str], finished: Any, words: Any) -> None:
    apart = distance(*(finished(words("pca_autoencoder", *more)) for more in (run, other)))
    assert min(apart.values()) > 50 * ALLOWED["pca_autoencoder"] * EPSILON["32-true"], apart


@pytest.mark.parametrize("experiment", ["pca_autoencoder", "linear_regression"])
def test_two_ranks_leave_one_run(experiment: str, finished: Any, words: Any, steps: Any) -> None:
    run = finished(words(experiment, "trainer.devices=2"))
    assert run.curves["step"].tolist() == [*range(0, steps[experiment], 10), steps[experiment] - 1]
    assert all(math.isfinite(value) for curve in run.curves.values() for value in curve)
    assert len(list(run.path.parent.rglob(f"{run.path.name}*/verdict.json"))) == 1
    log = (run.path / "run.log").read_text()
    assert log.count(f"{experiment} · seed 0 · 2 × cpu") == 1


FRESH = "import os; from lab import __main__, loading; loading.FORKS = False; del os.fork; __main__.main()"
"""As where forking a process that has loaded torch is not safe."""
ONE_FRESH = """
import sys
from lab.compose import compose
from lab.launch import launch
code = launch(compose(sys.argv[1:]), sys.argv[1:], fresh_process=True)
assert "torch" not in sys.modules
sys.exit(code)
"""
"""As in a job of SLURM, whose process has more to do than the run."""


@pytest.mark.parametrize("code", [FRESH, ONE_FRESH])
def test_ranks_train_the_same_however_they_start(
    code: str, finished: Any, words: Any, outcome: Any, tmp_path: Path
) -> None:
    command, run = words("pca_autoencoder", "trainer.devices=2"), tmp_path / "run"
    started = [sys.executable, "-c", code, *command, f"run_dir={run}"]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(started, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == HOLDS, done.stderr
    assert outcome(run).differs_from(finished(command)) == []


def test_a_rank_refuses_another_world_size_than_asked_for(tmp_path: Path, words: Any) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    overrides = words("pca_autoencoder", "trainer.devices=2")
    cfg = compose(overrides)
    cfg.id = "by-hand"
    run.freeze(cfg, overrides)
    alive, write = os.pipe()
    with run.lock() as lock:
        done = subprocess.run(
            [sys.executable, "-m", "lab.worker", str(run.path), "", str(alive), str(lock)],
            env=os.environ | {"LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            pass_fds=(alive, lock),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    os.close(alive)
    os.close(write)
    assert done.returncode == REFUSED
    assert done.stderr.count("\n") == 1
    assert "asks for 2 ranks, but another number came up (started: 1)" in done.stderr
    assert not run.metrics.exists()
    assert not run.checkpoints.exists()


@pytest.mark.parametrize(("asked", "counted"), [(2, 1), (1, 2), (2, 2)])
def test_the_guard_counts_trainer_and_process_group(asked: int, counted: int) -> None:
    from lab.run import _WorldSizeGuard

    guard, trainer = _WorldSizeGuard(asked), SimpleNamespace(world_size=counted)
    with pytest.raises(Refusal, match="process_group: 1" if asked == 2 else "trainer: 2"):
        guard.on_fit_start(trainer, torch.nn.Identity())  # type: ignore[arg-type]
    _WorldSizeGuard(1).on_fit_start(SimpleNamespace(world_size=1), torch.nn.Identity())  # type: ignore[arg-type]


THREADS = """
import numpy
from threadpoolctl import threadpool_info
from lab.compose import compose
from lab.launch import launch

def threads():
    return {pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]}

before, words = threads(), ["experiment=linear_regression", "logger=none", "trainer.max_steps=1", "run_dir=r"]
launch(compose(words), words)
print(before, threads())
"""


def test_products_of_numpy_have_the_threads_of_the_run_also_where_it_was_loaded_before(tmp_path: Path) -> None:
    several = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", THREADS], cwd=tmp_path, env=several, capture_output=True, text=True, check=False
    )
    cores = len(os.sched_getaffinity(0))
    assert ran.stdout.splitlines()[-1:] == [f"{{{min(2, cores)}}} {{1}}"], ran.stderr
