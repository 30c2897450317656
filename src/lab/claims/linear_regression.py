"""Least squares by gradient descent: where it ends, how fast it gets there, and what the answer is worth.

ŵ = A⁺y, κ = λ₁/λ_d of AᵀA/n, ρ = (κ − 1)/(κ + 1).
"""

from __future__ import annotations

import numpy as np
import torch

from lab.claim import Claim, Quantity, Run, equal
from lab.data.gaussian_regression import GaussianRegression
from lab.theory import least_squares as theory
from lab.types import PositiveInt


class LeastSquaresSolution(Claim):
    """Trained weights equal the least-squares solution A⁺y

    ∇(½‖Aw − y‖²) = Aᵀ(Aw − y) vanishes only at the projection of y on the column space; for full column rank ŵ = A⁺y is
    unique. Every replicate is judged by ‖w − ŵ‖/‖ŵ‖.
    """

    reference = "Strang, Introduction to Linear Algebra, ch. 4 (orthogonality)"
    symbol, x_symbol = r"$w_j$", ""
    relation = equal(
        "optimisation error alone: by the last step the slowest mode has shrunk below 1e-6 of where it began (float64)",
        rtol=1e-6,
        norm=True,
    )

    def __init__(self, design: str = "tall") -> None:
        self.design = design

    def predict(self, data: GaussianRegression) -> Quantity:
        design = data.designs[self.design]
        return Quantity(theory.least_squares_solution(design.x.double(), design.y.double()))

    def measure(self, run: Run) -> Quantity:
        return Quantity(run.model.nets[self.design].weight.detach().double())


class MinimumNorm(LeastSquaresSolution):
    """With d > n, gradient descent from 0 finds the interpolator of least norm, A⁺y

    Every gradient Aᵀ(Aw − y) lies in the row space of A, so w never leaves it, and the row space holds exactly one
    interpolator: the one of least norm. Minibatches change nothing, for at an interpolator their gradients vanish too.
    """

    reference = "Strang, Introduction to Linear Algebra, ch. 7 (pseudoinverse); Hastie et al. 2022, Prop. 1"

    def __init__(self, design: str = "wide") -> None:
        super().__init__(design)


class Contraction(Claim):
    """With the optimal fixed step the error contracts by (κ−1)/(κ+1) a step

    w_t − ŵ = (I − ηH)ᵗ(w_0 − ŵ) with H = AᵀA/n. Under η* = 2/(λ₁ + λ_d) the extreme modes shrink by ρ = (κ−1)/(κ+1)
    each step and all others faster, so ln‖w_t − ŵ‖ falls on a line of slope ln ρ. Measured without ŵ: the steps
    w_{t+1} − w_t = −ηH(w_t − ŵ) decay at the same rate; ρ is fitted to ln‖w_{t+1} − w_t‖ while that is between 1e-10
    and 1e-4 of the first step.
    """

    reference = "Boyd & Vandenberghe, Convex Optimization, §9.3"
    symbol, x_symbol = r"contraction per step $\rho$", r"condition number $\kappa$"
    relation = equal(
        "faster modes add less than (ρ₂/ρ)²ᵗ once ‖w_{t+1} − w_t‖ is under 1e-4 of the first; "
        "rounding at 1e-16 of the first "
        "step is 1e-6 of the last one fitted and averages out over the fit",
        atol=1e-5,
    )
    window = (1e-10, 1e-4)

    def __init__(self, replicates: PositiveInt, design: str = "tall") -> None:
        self.replicates, self.design = replicates, design

    def predict(self, data: GaussianRegression) -> Quantity:
        largest, smallest = data.designs[self.design].gram_extremes()
        kappa = (largest / smallest)[: self.replicates]
        return Quantity(theory.contraction(kappa), x=kappa)

    def measure(self, run: Run) -> Quantity:
        norms = run.model.step_norms[:, : self.replicates].numpy()  # (T, R)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative, logs = norms / norms[0], np.log(norms)
        low, high = self.window
        inside = (relative > low) & (relative < high)
        slopes = [_slope(np.flatnonzero(keep), logs[keep, r]) for r, keep in enumerate(inside.T)]
        return Quantity(np.exp(slopes))


def _slope(t: np.ndarray, y: np.ndarray) -> float:
    """Least-squares slope of y over t, NaN where there are too few points for one."""
    return float(np.polyfit(t - t.mean(), y, 1)[0]) if len(t) >= 5 else float("nan")


class ExcessRisk(Claim):
    """Mean excess risk of least squares over Gaussian designs is σ²d/(n−d−1)

    E_x (xᵀŵ − xᵀw*)² = (ŵ − w*)ᵀΣ(ŵ − w*), averaged over the replicates of each sample size n.
    """

    reference = "Hastie, Montanari, Rosset & Tibshirani 2022, §2"
    symbol, x_symbol = "mean excess risk", "samples $n$"
    log = "xy"
    relation = equal(
        "sampling error over the replicates: 4.5 standard errors, so that with five sample sizes "
        "and the skewness of the risk "
        "a correct run is refuted less than once in 10⁴ (3 would refute one in 70)",
        k=4.5,
    )

    def __init__(self, design: str = "tall") -> None:
        self.design = design

    def predict(self, data: GaussianRegression) -> Quantity:
        design = data.designs[self.design]
        n = torch.tensor(sorted(set(design.samples)))
        return Quantity(theory.excess_risk(design.noise, design.d, n), x=n)

    def measure(self, run: Run) -> Quantity:
        design = run.data.designs[self.design]
        delta = run.model.nets[self.design].weight.detach().double() - design.w_star  # (R, d)
        risk = (delta.square() * design.spectrum).sum(1)  # (R,)
        sizes = sorted(set(design.samples))
        groups = [risk[design.sizes == n] for n in sizes]
        mean = [group.mean() for group in groups]
        error = [group.std() / len(group) ** 0.5 for group in groups]
        return Quantity(torch.stack(mean), torch.stack(error))
