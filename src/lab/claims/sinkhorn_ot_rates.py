"""How fast Sinkhorn's iteration is: near its solution, between Gaussians, and from wherever it starts.

The problems are those of `lab.claims.sinkhorn_ot`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lab.algorithms.sinkhorn import LogDomain, iterates
from lab.claim import Quantity, Run, at_most, equal
from lab.claims.sinkhorn_ot import Epsilons, Measures, _OverEpsilon, squared_distances
from lab.data.measures import GaussianPair
from lab.random import generator, normal
from lab.theory import transport as theory
from lab.types import Fraction


class _Rate(_OverEpsilon):
    """What each iteration of Sinkhorn's contracts by."""

    symbol = "contraction per iteration"
    window: tuple[float, float] = (1e-11, 1e-7)
    """Steps that are fitted, relative to the first."""

    def steps(
        self, run: Run, measures: Measures, epsilon: float, start: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """(g_{t+1} − g_t from the first on down to the window's lower end, b); g₀ is `start`, or 0"""
        (x, a), (y, b) = measures
        before = torch.zeros_like(b) if start is None else start
        iteration = LogDomain(run.model.cost(x, y), a, b, epsilon, torch.zeros_like(a), before)
        steps, first = [], 0.0
        for _, (_, g) in zip(range(5000), iterates(iteration, run.model.relaxation), strict=False):
            steps.append(g - before)
            first, before = first or float(_deviation(steps[0], b)), g
            if not self.window[0] * first < float(_deviation(steps[-1], b)) < 1e6 * first:
                break
        return steps, b

    def rate(self, run: Run, measures: Measures, epsilon: float, start: Tensor | None = None) -> float:
        """exp of the slope of ln |⟨s_t, s_T⟩_b| within the window, s_t the steps and s_T the last one.

        The iteration is self-adjoint with weights b, so of other modes the product has what both steps have left of
        them.
        """
        steps, b = self.steps(run, measures, epsilon, start)
        centred = torch.stack([step - (b * step).sum() for step in steps])  # potentials are free in a constant
        sizes, along = (centred.square() @ b).sqrt().numpy(), (centred @ (b * centred[-1])).abs().numpy()
        t = np.flatnonzero((sizes > self.window[0] * sizes[0]) & (sizes < self.window[1] * sizes[0]))
        return float(np.exp(np.polyfit(t - t.mean(), np.log(along[t]), 1)[0])) if len(t) >= 3 else float("nan")


def _deviation(step: Tensor, b: Tensor) -> Tensor:
    """√Var_b."""
    return (b * (step - (b * step).sum()).square()).sum().sqrt()


class KnightRate(_Rate):
    """Sinkhorn's iteration contracts by the squared second singular value of the scaled plan

    Linearised at the solution, one iteration is diag(b)⁻¹Pᵀ diag(a)⁻¹P, self-adjoint with weights b; its eigenvalues
    are the squares of the singular values of diag(a)^{−½} P diag(b)^{−½}. Fitted to the steps g_{t+1} − g_t between
    1e-11 and 1e-7 of the first, along the last of them; P is computed by Newton's method.

    A start from which there is nothing to go along the slowest mode shows the next one's rate. So there are several,
    g₀(y) = 2⟨u, y⟩ as if the source stood u ~ N(0, I) off, and the slowest counts: other modes are all faster.
    """

    reference = "Knight 2008, Thm 4.4"
    starts = 4
    relation = equal(
        "what the next mode has left in the window, (1 − q)q²ᵗ with q = ρ₂/ρ and ρᵗ = 1e-7, below 1e-4 unless "
        "ρ₂ > ρ^1.25 (300 seeds: ρ₂ < ρ^1.31), and rounding, where 4e-6 was seen",
        rtol=1e-4,
    )

    def __init__(self, epsilons: Epsilons = [0.25, 0.5, 1.0, 2.0, 4.0]) -> None:  # noqa: B006 - read only
        super().__init__(epsilons)

    def predict(self, data: GaussianPair) -> Quantity:
        problem = squared_distances(data.clouds)
        return Quantity([theory.knight_rate(*problem, e) for e in self.epsilons], x=self.epsilons)

    def measure(self, run: Run) -> Quantity:
        y = run.data.clouds[1][0]
        starts = 2 * normal(generator(run.data.seed, "KnightRate"), self.starts, y.shape[1]) @ y.mT
        found = [[self.rate(run, run.data.clouds, e, start) for start in starts] for e in self.epsilons]
        return Quantity(np.fmax.reduce(found, axis=1))


class GaussianRate(_Rate):
    """Between Gaussians on the line Sinkhorn's iteration contracts by the squared correlation of the optimal plan

    Between the marginals of a Gaussian plan the conditional expectation has the singular values rᵏ, on Hermite
    polynomials, so σ₂² = r² with r = ((4s₁²s₂² + σ⁴)^½ − σ²)/2s₁s₂. The next mode, r⁴, dies so much faster that steps
    of 1e-4 to 1e-8 of the first will do. Where the iteration is over-relaxed they come and go in waves, and a longer
    row of them is wanted: `least` is its end.
    """

    reference = "Mehler 1866; Knight 2008, Thm 4.4"
    relation = equal(
        "rounding of potentials below 64, 1.4e-14, in steps of at least 1e-8; the next mode, r⁴, has left less: "
        "ρᵗ = 1e-4 in a step of the window and 1e-8 in the last one that it is multiplied by",
        rtol=1e-6,
    )

    def __init__(self, epsilons: Epsilons = [0.25, 0.5, 1.0, 2.0, 4.0], least: Fraction = 1e-8) -> None:  # noqa: B006
        super().__init__(epsilons)
        self.window = (least, 1e-4)

    def predict(self, data: GaussianPair) -> Quantity:
        variances = float(data.source.covariance[0, 0]), float(data.target.covariance[0, 0])
        return Quantity([theory.gaussian_rate(*variances, e) for e in self.epsilons], x=self.epsilons)

    def measure(self, run: Run) -> Quantity:
        return Quantity([self.rate(run, run.data.grids, e) for e in self.epsilons])


class BirkhoffRate(_Rate):
    """No step is more than tanh²(Δ/4) times the one before in Hilbert's metric, Δ the projective diameter of exp(−C/ε)

    Multiplication by a positive matrix contracts Hilbert's metric max(f/ε) − min(f/ε) by tanh(Δ/4), and an iteration
    multiplies by K and by Kᵀ. Measured is the worst ratio of two successive steps, first one included.
    """

    reference = "Birkhoff 1957; Franklin & Lorenz 1989, Thm 4; Peyré & Cuturi 2019, Thm 4.2"
    symbol = "worst contraction"
    relation = at_most("rounding of steps of 1e-11 of the first", atol=1e-4)

    def __init__(self, epsilons: Epsilons = [8.0, 16.0, 32.0, 64.0]) -> None:  # noqa: B006 - read only
        super().__init__(epsilons)

    def predict(self, data: GaussianPair) -> Quantity:
        cost, _, _ = squared_distances(data.clouds)
        return Quantity([theory.birkhoff_rate(cost, e) for e in self.epsilons], x=self.epsilons)

    def measure(self, run: Run) -> Quantity:
        return Quantity([self.worst(run, e) for e in self.epsilons])

    def worst(self, run: Run, epsilon: float) -> float:
        """The greatest ratio of two successive steps."""
        steps, _ = self.steps(run, run.data.clouds, epsilon)
        spans = torch.stack([step.max() - step.min() for step in steps])
        return float((spans[1:] / spans[:-1]).max())
