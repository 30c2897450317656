"""Least squares by gradient descent: where it ends, how fast it gets there, and what the answer is worth.

ŵ = A⁺y, κ = λ₁/λ_d of AᵀA/n, ρ = (κ − 1)/(κ + 1).
"""

from __future__ import annotations

import numpy as np
import torch

from lab.claim import Claim, Quantity, Run, equal
from lab.data.gaussian_regression import GaussianRegression
from lab.errors import Refusal, nearest
from lab.models.least_squares import LeastSquares
from lab.theory import least_squares as theory
from lab.types import PositiveInt


class _AboutDesign(Claim):
    """A claim about the replicates of one design of the data."""

    def __init__(self, design: str) -> None:
        self.design = design

    def check(self, data: GaussianRegression, model: LeastSquares) -> None:
        if self.design not in data.designs:
            close = nearest(self.design, data.designs)
            raise Refusal(f"design={self.design} is none of data.designs; allowed: {', '.join(data.designs)}{close}")


class _Solution(_AboutDesign):
    """A claim that training ends at A⁺y."""

    symbol, x_symbol = r"$w_j$", ""

    def predict(self, data: GaussianRegression) -> Quantity:
        design = data.designs[self.design]
        return Quantity(theory.least_squares_solution(design.x.double(), design.y.double()))

    def measure(self, run: Run) -> Quantity:
        return Quantity(run.model.nets[self.design].weight.detach().double())


class LeastSquaresSolution(_Solution):
    """Trained weights equal the least-squares solution A⁺y

    ∇(½‖Aw − y‖²) = Aᵀ(Aw − y) vanishes only at the projection of y on the column space; for full column rank ŵ = A⁺y is
    unique. Every replicate is judged by ‖w − ŵ‖/‖ŵ‖.
    """

    reference = "Strang, Introduction to Linear Algebra, ch. 4 (orthogonality)"
    relation = equal(
        "optimisation error alone: by the last step the slowest mode has shrunk below 1e-6 of where it began (float64)",
        rtol=1e-6,
        norm=True,
    )

    def __init__(self, design: str = "tall") -> None:
        super().__init__(design)

    def check(self, data: GaussianRegression, model: LeastSquares) -> None:
        super().check(data, model)
        design = data.designs[self.design]
        if min(design.samples) < design.d:
            raise Refusal(
                f"data.designs.{self.design}.samples={design.samples} must be at least d = {design.d}: "
                "below it the columns of A are dependent and the solution is not unique"
            )


class MinimumNorm(_Solution):
    """With d > n, gradient descent from 0 finds the interpolator of least norm, A⁺y

    Every gradient Aᵀ(Aw − y) lies in the row space of A, so w never leaves it, and the row space holds exactly one
    interpolator: the one of least norm. Minibatches change nothing, for at an interpolator their gradients vanish too.
    """

    reference = "Strang, Introduction to Linear Algebra, ch. 7 (pseudoinverse); Hastie et al. 2022, Prop. 1"
    relation = equal(
        "optimisation error alone: an epoch, two steps on half of the rows each, shortens what is left by 0.978 or "
        "better (the largest norm of the two steps' product on the row space, over 20 seeds, 64 replicates and 20 "
        "orders), so 750 epochs leave less than 1e-7 (float64)",
        rtol=1e-6,
        norm=True,
    )

    def __init__(self, design: str = "wide") -> None:
        super().__init__(design)

    def check(self, data: GaussianRegression, model: LeastSquares) -> None:
        super().check(data, model)
        design = data.designs[self.design]
        if max(design.samples) >= design.d:
            raise Refusal(
                f"data.designs.{self.design}.samples={design.samples} must be below d = {design.d}: "
                "where d ≤ n there is nothing to choose between"
            )


class Contraction(_AboutDesign):
    """With the optimal fixed step the error contracts by (κ−1)/(κ+1) a step

    w_t − ŵ = (I − ηH)ᵗ(w_0 − ŵ) with H = AᵀA/n. Under η* = 2/(λ₁ + λ_d) the extreme modes shrink by ρ = (κ−1)/(κ+1)
    each step and all others faster, so ln‖w_t − ŵ‖ falls on a line of slope ln ρ. Measured without ŵ: the steps
    w_{t+1} − w_t = −ηH(w_t − ŵ) decay at the same rate; ρ is fitted to ln‖w_{t+1} − w_t‖ while that is between 1e-10
    and 1e-4 of the first step.
    """

    reference = "Boyd & Vandenberghe, Convex Optimization, §9.3"
    symbol, x_symbol = r"contraction per step $\rho$", r"condition number $\kappa$"
    relation = equal(
        "rounding, 1e-15 of the first step, is δ = 1e-5 of the last one fitted; at its worst it turns a line of "
        "T = ln(1e6)·κ/2 steps by 6δ·(κ/2)/T² < 0.07 δ/κ, 5e-8 for κ > 15 (9e-9 seen over 7680 replicates). "
        "Faster modes add (ρ₂/ρ)²ᵗ < 1e-9 once ‖w_{t+1} − w_t‖ is under 1e-4 of the first",
        atol=1e-7,
    )
    window = (1e-10, 1e-4)

    def __init__(self, replicates: PositiveInt, design: str = "tall") -> None:
        super().__init__(design)
        self.replicates = replicates

    def check(self, data: GaussianRegression, model: LeastSquares) -> None:
        super().check(data, model)
        recorded = list(model.nets)[0]  # noqa: RUF015 - `lab.signature.checks` follows no next()
        if self.design != recorded:
            raise Refusal(f"design={self.design} must be {recorded}, the design whose steps are recorded")
        design = data.designs[self.design]
        if min(design.samples) < design.d:
            raise Refusal(
                f"data.designs.{self.design}.samples={design.samples} must be at least d = {design.d}: "
                "below it λ_d = 0 and κ has no meaning"
            )
        if self.replicates > model.record:
            raise Refusal(f"replicates={self.replicates} is more than model.record={model.record}, those recorded")

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


class ExcessRisk(_AboutDesign):
    """Mean excess risk of least squares over Gaussian designs is σ²d/(n−d−1)

    E_x (xᵀŵ − xᵀw*)² = (ŵ − w*)ᵀΣ(ŵ − w*), averaged over the replicates of each sample size n. Over designs it is
    distributed as σ² χ²_d/χ²_{n−d+1}, whatever Σ, so R replicates leave a relative standard error of
    √(2(n−1)/(d(n−d−3)R)), and n−d−1 differs from n−d by the fraction 1/(n−d): small n tell the two apart best.
    """

    reference = (
        "Hastie, Montanari, Rosset & Tibshirani 2022, §2; Anderson, Multivariate Statistical Analysis, §5.2, §7.7"
    )
    symbol, x_symbol = "mean excess risk", "samples $n$"
    log = "xy"
    relation = equal(
        "sampling error over the replicates: at 4.5 standard errors four sizes refute a correct run 5 times in 10⁵, "
        "the skew of the risk included, and n−d in place of n−d−1 is 9 to 11 away",
        k=4.5,
    )

    def __init__(self, design: str = "small") -> None:
        super().__init__(design)

    def check(self, data: GaussianRegression, model: LeastSquares) -> None:
        super().check(data, model)
        design, key = data.designs[self.design], f"data.designs.{self.design}"
        # (AᵀA)⁻¹ has a mean for n > d + 1 and a variance, from which the standard error is taken, for n > d + 3
        if min(design.samples) <= design.d + 3:
            raise Refusal(
                f"{key}.samples={design.samples} must be above d + 3 = {design.d + 3}: "
                "below it the excess risk has no variance to take a standard error from"
            )
        if design.noise == 0:
            raise Refusal(f"{key}.noise=0 must be above 0: without noise there is no excess risk")
        if design.replicates < 2 * len(design.samples):
            raise Refusal(
                f"{key}.replicates={design.replicates} must be at least {2 * len(design.samples)}: "
                "a standard error needs two of each size"
            )

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
