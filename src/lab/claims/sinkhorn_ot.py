"""Entropic optimal transport: its values, its limit ε → 0, and what nets learn of it.

The problem is min_P ⟨P, C⟩ + ε KL(P ‖ abᵀ) with C_ij = ‖x_i − y_j‖². Discrete measures are the data's `clouds`, points
drawn from two Gaussians with uneven weights, or its `grids`, the laws of the first coordinates at evenly spaced
points.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from annotated_types import MinLen
from torch import Tensor

from lab.algorithms.transport import Transport
from lab.claim import Claim, Quantity, Run, at_least, at_most, equal
from lab.data.measures import GaussianPair
from lab.errors import Refusal
from lab.models.transport import EntropicTransport, dual_value
from lab.random import generator, normal
from lab.theory import transport as theory
from lab.types import Positive, PositiveInt

Epsilons = Annotated[list[Positive], MinLen(1)]
Measures = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def solved(run: Run, measures: Measures, epsilon: float) -> Transport:
    """The run's algorithm on two discrete measures."""
    (x, a), (y, b) = measures
    transport: Transport = run.model.solver(run.model.cost(x, y), a, b, epsilon=epsilon)
    return transport


def squared_distances(measures: Measures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C, a, b), C_ij = ‖x_i − y_j‖²: what is predicted about, whatever the run takes the cost to be."""
    (x, a), (y, b) = measures
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square().numpy(), a.numpy(), b.numpy()


class _OverEpsilon(Claim):
    """A claim about one number for each of several ε."""

    x_symbol, log = r"regularisation $\varepsilon$", "x"

    def __init__(self, epsilons: Epsilons) -> None:
        self.epsilons = list(epsilons)


class GaussianCost(_OverEpsilon):
    """Entropic transport between two Gaussians on a grid costs what its closed form says

    OT_ε = Δm² + s₁² + s₂² − D + σ²(1 − ln 2σ²) + σ² ln(D + σ²) with σ² = ε/2, D² = 4s₁²s₂² + σ⁴: the optimal plan is
    Gaussian, of covariance (D − σ²)/2. Measured is the dual value of the potentials that Sinkhorn's algorithm finds.
    """

    reference = "Janati, Muzellec, Peyré & Cuturi 2020, Thm 1"
    symbol = r"$OT_\varepsilon$"
    relation = equal(
        "the trapezoidal rule and what lies beyond 8 deviations, below 1e-13, and ε times the marginals' error 1e-11",
        atol=1e-9,
    )

    def __init__(self, epsilons: Epsilons = [0.1, 0.3, 1.0, 3.0, 10.0]) -> None:  # noqa: B006 - read only
        super().__init__(epsilons)

    def predict(self, data: GaussianPair) -> Quantity:
        source, target = data.source.first(), data.target.first()
        laws = source.mean, source.covariance, target.mean, target.covariance
        return Quantity([float(theory.gaussian_entropic_cost(*laws, e)) for e in self.epsilons], x=self.epsilons)

    def measure(self, run: Run) -> Quantity:
        return Quantity([float(solved(run, run.data.grids, e).dual) for e in self.epsilons])


class PotentialsValue(Claim):
    """The dual value of the learned potentials is the closed form of the entropic cost

    D(f, g) = E f(x) + E g(y) − ε E(exp((f(x) + g(y) − c)/ε) − 1) is at most OT_ε, and what is missing is exactly
    ε KL(P‖P_fg), P the optimal plan and P_fg = αβ exp((f ⊕ g − c)/ε), for KL(P‖P_fg) = (E_P(f* + g* − f − g))/ε − 1 +
    ΣP_fg. The potentials are trained on samples; D is taken by quadrature, with no sampling error.
    """

    reference = "Seguy et al. 2018, §3; Janati, Muzellec, Peyré & Cuturi 2020, Thm 1"
    symbol = r"$OT_\varepsilon$"
    relation = equal(
        "optimisation error: 0.03 nats between the optimal plan and the learned one, times ε = 1 (10 seeds: at most "
        "0.012); the cost without its entropic terms is 2.2 away",
        atol=0.03,
    )

    def __init__(self, epsilon: Positive, points: PositiveInt = 40, reach: Positive = 6.0) -> None:
        self.epsilon, self.points, self.reach = epsilon, points, reach

    def check(self, data: GaussianPair, model: EntropicTransport) -> None:
        if self.epsilon != model.epsilon:
            raise Refusal(f"epsilon={self.epsilon} must equal model.epsilon={model.epsilon}")
        if data.source.d > 2:
            raise Refusal(
                f"data.source must have 1 or 2 dimensions, not {data.source.d}: the value is an integral on a grid"
            )

    def predict(self, data: GaussianPair) -> Quantity:
        laws = data.source.mean, data.source.covariance, data.target.mean, data.target.covariance
        return Quantity(theory.gaussian_entropic_cost(*laws, self.epsilon))

    @torch.no_grad()
    def measure(self, run: Run) -> Quantity:
        (x, a), (y, b) = (law.on_grid(self.points, self.reach) for law in (run.data.source, run.data.target))
        f, g = (net.double()(points) for net, points in ((run.model.source, x), (run.model.target, y)))
        return Quantity(dual_value(f, g, run.model.cost(x, y), self.epsilon, a, b))


class Duality(_OverEpsilon):
    """Primal and dual value of the computed potentials agree: the duality gap is 0

    Whatever f and g, the dual value is at most OT_ε, and the value of any plan with the right marginals at least. The
    plan is made of P by scaling down what is too heavy and spreading what is missing, so the gap bounds how far both
    values are from OT_ε: a certificate that needs no other solver.
    """

    reference = "Peyré & Cuturi 2019, Prop. 4.4; Altschuler, Weed & Rigollet 2017, Lemma 7"
    symbol = "primal − dual"
    relation = equal("the marginals' error, 1e-11, times the greatest cost, below 100, and rounding", atol=1e-8)

    def __init__(self, epsilons: Epsilons = [0.1, 0.3, 1.0, 3.0, 10.0]) -> None:  # noqa: B006 - read only
        super().__init__(epsilons)

    def predict(self, data: GaussianPair) -> Quantity:
        return Quantity([0.0] * len(self.epsilons), x=self.epsilons)

    def measure(self, run: Run) -> Quantity:
        transports = [solved(run, run.data.clouds, e) for e in self.epsilons]
        return Quantity([float(transport.primal - transport.dual) for transport in transports])


class Marginals(_OverEpsilon):
    """Both marginals of the computed plan are those that were asked for, to 1e-9

    ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ of the plan itself, in float64.
    """

    reference = "Peyré & Cuturi 2019, eq. 4.14"
    symbol = "error of the marginals"
    relation = at_most("none: the bound is the claim, and the algorithm stops at 1e-11")

    def __init__(self, epsilons: Epsilons = [0.1, 0.3, 1.0, 3.0, 10.0]) -> None:  # noqa: B006 - read only
        super().__init__(epsilons)

    def predict(self, data: GaussianPair) -> Quantity:
        return Quantity([1e-9] * len(self.epsilons), x=self.epsilons)

    def measure(self, run: Run) -> Quantity:
        (_, a), (_, b) = run.data.clouds
        plans = [solved(run, run.data.clouds, e).plan for e in self.epsilons]
        return Quantity([float((p.sum(1) - a).abs().sum() + (p.sum(0) - b).abs().sum()) for p in plans])


class _NearExact(_OverEpsilon):
    symbol = r"$\langle P_\varepsilon, C\rangle$"

    def __init__(self, epsilons: Epsilons = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]) -> None:  # noqa: B006 - read only
        super().__init__(epsilons)

    def measure(self, run: Run) -> Quantity:
        return Quantity([float(solved(run, run.data.clouds, e).transport_cost) for e in self.epsilons])


class EntropicGap(_NearExact):
    """The entropic plan costs at most ε·min(H(a), H(b)) ≤ ε ln n more than the optimal one

    With P₀ optimal, ⟨P_ε, C⟩ + ε KL(P_ε‖abᵀ) ≤ ⟨P₀, C⟩ + ε KL(P₀‖abᵀ): the gap is at most ε KL(P₀‖abᵀ), the mutual
    information of variables with entropies H(a) and H(b). With `NotBelowExact` it follows that the cost tends to the
    exact one as ε → 0. P₀ is found by POT's network simplex.
    """

    reference = "Peyré & Cuturi 2019, §4.1; Cover & Thomas, §2.4"
    relation = at_most("rounding, and the marginals' error 1e-11 times the greatest cost, below 100", atol=1e-8)

    def predict(self, data: GaussianPair) -> Quantity:
        cost, a, b = squared_distances(data.clouds)
        exact = theory.exact_cost(cost, a, b)
        return Quantity([exact + theory.entropic_gap(a, b, e) for e in self.epsilons], x=self.epsilons)


class NotBelowExact(_NearExact):
    """The entropic plan costs no less than the optimal one

    It has the same marginals, and P₀ is optimal among all that have them. A plan whose marginals are wrong can cost
    less: before the first iteration every point goes to its nearest.
    """

    reference = "Peyré & Cuturi 2019, §4.1"
    relation = at_least("rounding, and the marginals' error 1e-11 times the greatest cost, below 100", atol=1e-8)

    def predict(self, data: GaussianPair) -> Quantity:
        exact = theory.exact_cost(*squared_distances(data.clouds))
        return Quantity([exact] * len(self.epsilons), x=self.epsilons)


class MongeMap(Claim):
    """The learned affine map is the Monge map between the two Gaussians, T = A^{−½}(A^½BA^½)^½A^{−½}, t = m₂ − Tm₁

    The Sinkhorn divergence is 0 only where the image of N(m₁, A) is N(m₂, B), that is TAT = B; and of all matrices
    that do this one is symmetric positive semidefinite, the gradient of a convex function. Judged is (T, t) as one
    vector.
    """

    reference = "Peyré & Cuturi 2019, eq. 2.40 and Thm 2.1; Feydy et al. 2019, Thm 1"
    symbol = "entries of $T$ and $t$"
    relation = equal(
        "noise of training on samples: over 10 seeds an entry of t has the deviation 0.005, of T 0.003, and "
        "0.011 is the longest difference; the matrix B^½A^{−½}, which carries N(0, A) to N(0, B) too, is 0.6 away",
        atol=0.03,
        norm=True,
    )

    def predict(self, data: GaussianPair) -> Quantity:
        laws = data.source.mean, data.source.covariance, data.target.mean, data.target.covariance
        matrix, shift = theory.monge_map(*laws)
        return Quantity(torch.cat([matrix.flatten(), shift]))

    def measure(self, run: Run) -> Quantity:
        generator = run.model.generator
        return Quantity(torch.cat([generator.matrix.detach().flatten(), generator.shift.detach()]).double())


class Wasserstein(Claim):
    """The learned map carries the source as far as W₂ says: E‖Tx + t − x‖² = ‖m₁ − m₂‖² + tr A + tr B − 2 tr(A^½BA^½)^½

    Measured exactly, from the source's own moments: tr (T − I)A(T − I)ᵀ + ‖(T − I)m₁ + t‖².
    """

    reference = "Dowson & Landau 1982; Peyré & Cuturi 2019, eq. 2.41"
    symbol = r"$W_2^2$"
    relation = equal(
        "noise of training on samples, a deviation of 0.4 % over 10 seeds; ‖A^½ − B^½‖² in place of the traces, "
        "right only if A and B commute, is 7 % away",
        rtol=0.025,
    )

    def predict(self, data: GaussianPair) -> Quantity:
        laws = data.source.mean, data.source.covariance, data.target.mean, data.target.covariance
        return Quantity(theory.bures_wasserstein(*laws))

    def measure(self, run: Run) -> Quantity:
        generator, law = run.model.generator, run.data.source
        moved = generator.matrix.detach().double() - torch.eye(law.d, dtype=torch.float64)
        drift = moved @ law.mean + generator.shift.detach().double()
        return Quantity((moved @ law.covariance @ moved.mT).trace() + drift.square().sum())


class NoBetterMatching(Claim):
    """No rearrangement of where the learned map sends a sample costs less than the map itself

    The gradient of a convex function is cyclically monotone: among all assignments of {xᵢ} to {T(xᵢ)}, i → i is the
    cheapest. Measured is what the best assignment saves, found exactly.
    """

    reference = "Rockafellar 1966; Peyré & Cuturi 2019, §2.2 and Thm 2.1"
    symbol = "saved by the best matching"
    relation = equal("rounding: it is exact for any symmetric positive semidefinite T, trained or not", atol=1e-9)

    def __init__(self, samples: PositiveInt = 300) -> None:
        self.samples = samples

    def predict(self, data: GaussianPair) -> Quantity:
        return Quantity(0.0)

    @torch.no_grad()
    def measure(self, run: Run) -> Quantity:
        from scipy.optimize import linear_sum_assignment

        law = run.data.source
        x = law.of(normal(generator(run.data.seed, "NoBetterMatching"), self.samples, law.d))
        cost = torch.cdist(x, run.model.generator.double()(x)).square().numpy()
        return Quantity(np.trace(cost) / self.samples - cost[linear_sum_assignment(cost)].mean())
