"""The design of the excess risk: what it can tell apart, and that gradient descent converges on all of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from lab.claim import Evidence, Run, judge
from lab.claims.linear_regression import ExcessRisk
from lab.compose import compose
from lab.data.gaussian_regression import Design, GaussianRegression
from lab.theory import least_squares

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = range(3)


@pytest.fixture(scope="module")
def config() -> Any:
    return compose(["experiment=linear_regression"])


def drawn(config: Any, name: str, seed: int) -> Design:
    design: Design = instantiate(config.data.designs[name])
    design.draw(seed, name, torch.float64)
    return design


def modes(design: Design) -> tuple[Tensor, Tensor, Tensor]:
    """Of every replicate: 1 − ηλᵢ (R, d) of H = AᵀA/n under the optimal step, its eigenvectors, and ŵ in them."""
    n = design.sizes[:, None]
    eigenvalues, vectors = torch.linalg.eigh(design.x.mT @ design.x / n[..., None])  # increasing
    moment = (design.x.mT @ design.y.unsqueeze(-1)).squeeze(-1) / n
    solution = (vectors.mT @ moment.unsqueeze(-1)).squeeze(-1) / eigenvalues
    eta = 2 / (eigenvalues[:, :1] + eigenvalues[:, -1:])
    return 1 - eta * eigenvalues, vectors, solution


def after(steps: float, factors: Tensor, vectors: Tensor, solution: Tensor) -> Tensor:
    """w after so many steps from 0: ŵ − (I − ηH)ᵗŵ."""
    return (vectors @ ((1 - factors**steps) * solution).unsqueeze(-1)).squeeze(-1)


def judged(design: Design, weight: Tensor) -> Evidence:
    data = GaussianRegression({"small": design})
    return judge(
        "excess_risk", ExcessRisk(), Run(SimpleNamespace(nets={"small": SimpleNamespace(weight=weight)}), data)
    )


def apart(e: Evidence) -> np.ndarray[Any, Any]:
    """|measured − predicted| in standard errors."""
    return np.abs(np.asarray(e.measured.value) - e.predicted.value) / np.asarray(e.measured.standard_error)


def wrong(noise: float, d: int, n: Tensor) -> Tensor:
    return noise**2 * d / (n - d)


def test_every_sample_size_tells_the_two_formulas_apart(config: Any) -> None:
    design: Design = instantiate(config.data.designs.small)
    n = torch.tensor(design.samples)
    right = least_squares.excess_risk(design.noise, design.d, n)
    replicates = design.replicates / len(design.samples)
    error = (least_squares.excess_risk_variance(design.noise, design.d, n) / replicates).sqrt()
    assert ((right - wrong(design.noise, design.d, n)) / error).min() > 9
    assert n.min() >= design.d + 8, "the fourth moment of the risk, on which its standard error rests, must be finite"


@pytest.mark.parametrize("seed", SEEDS)
def test_exact_solutions_hold_and_refute_the_wrong_formula(
    config: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A false alarm has odds of 5 in 10⁵; the wrong formula passed at no size in 2·10⁶ simulated ones."""
    design = drawn(config, "small", seed)
    exact = torch.linalg.lstsq(design.x, design.y.unsqueeze(-1)).solution.squeeze(-1)
    assert judged(design, exact).judged.holds
    monkeypatch.setattr(least_squares, "excess_risk", wrong)
    refuted = judged(design, exact)
    assert not refuted.judged.holds
    assert apart(refuted).min() > ExcessRisk.relation.k, "every sample size alone refutes it"


@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_descent_converges_on_the_worst_replicate(config: Any, seed: int) -> None:
    """In closed form: what the last step leaves of the start in the slowest mode, and what that does to the risk."""
    steps = config.trainer.max_steps
    factors, *_ = modes(drawn(config, "tall", seed))
    assert factors.abs().max() ** steps < 1e-7  # ‖w_T − ŵ‖ ≤ ρᵀ‖ŵ‖, ten times below what least_squares_solution allows
    small = drawn(config, "small", seed)
    spectrum = modes(small)
    trained, exact = (judged(small, after(t, *spectrum)) for t in (steps, np.inf))
    bias = np.asarray(trained.measured.value) - exact.measured.value
    assert np.abs(bias / np.asarray(exact.measured.standard_error)).max() < 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_stopping_early_is_refuted(config: Any, seed: int) -> None:
    (override,) = config.controls.stopped_early.overrides
    steps = int(override.partition("trainer.max_steps=")[2])
    small = drawn(config, "small", seed)
    assert apart(judged(small, after(steps, *modes(small)))).max() > 20


def test_correct_runs_are_not_refuted(config: Any) -> None:
    """1000 runs from the exact law of the risk, σ² χ²_d/χ²_{n−d+1}; the draws are fixed."""
    design: Design = instantiate(config.data.designs.small)
    random, shape = np.random.default_rng(0), (250, design.replicates // len(design.samples))
    worst = []
    for n in design.samples:
        mean = float(least_squares.excess_risk(design.noise, design.d, torch.tensor(n)))
        for _ in range(4):
            risk = design.noise**2 * random.chisquare(design.d, shape) / random.chisquare(n - design.d + 1, shape)
            worst.append(np.abs(risk.mean(1) - mean) / (risk.std(1, ddof=1) / shape[1] ** 0.5))
    assert np.max(worst) < ExcessRisk.relation.k
    assert np.mean(np.array(worst) > 3) < 0.01  # 0.0027 if the risk were not skewed
