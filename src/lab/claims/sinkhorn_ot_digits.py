"""Distances between images and barycentres of them, taken as distributions of ink over pixels.

The cost of moving ink is the square of how many pixels it is moved. Distances are between the images of the data's
`pool`, barycentres of its `corners`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lab.algorithms.transport import Transport
from lab.claim import Claim, Quantity, Run, at_least, at_most, equal
from lab.data.histograms import DigitHistograms
from lab.errors import Refusal
from lab.models.barycentres import Barycentres
from lab.theory import transport as theory
from lab.types import Positive


def barycentres(run: Run) -> Tensor:
    """The trained α, (mixtures, n), in float64."""
    rows = torch.arange(run.model.histograms.count)
    alpha: Tensor = run.model.histograms.double()(rows)
    return alpha.detach()


def transports(run: Run, a: Tensor, b: Tensor, epsilon: float) -> Transport:
    """The run's algorithm between histograms: (..., n), (..., n)."""
    cost = run.model.cost(run.data.grid, run.data.grid)
    shape = torch.broadcast_shapes(a.shape, b.shape)
    found: Transport = run.model.solver(
        cost.expand(*shape, shape[-1]), a.expand(shape), b.expand(shape), epsilon=epsilon
    )
    return found


def squared_distances(data: DigitHistograms) -> np.ndarray:
    """C, (n, n), whatever the run takes the cost to be."""
    distances: np.ndarray = torch.cdist(data.grid, data.grid, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    return distances**2


class _OfHistograms(Claim):
    """A claim about histograms."""

    def check(self, data: DigitHistograms, model: Barycentres) -> None:
        if not isinstance(data, DigitHistograms):
            raise Refusal("data._target_ must be lab.data.histograms.DigitHistograms: the claim is about histograms")


class _OfBarycentres(_OfHistograms):
    """A claim about barycentres at one ε."""

    def __init__(self, epsilon: Positive) -> None:
        self.epsilon = epsilon

    def check(self, data: DigitHistograms, model: Barycentres) -> None:
        super().check(data, model)
        if self.epsilon != model.epsilon:
            raise Refusal(f"epsilon={self.epsilon} must equal model.epsilon={model.epsilon}")


class Barycentre(_OfBarycentres):
    """The trained histograms are the debiased Sinkhorn barycentres, each as a vector

    Training follows the gradient of Σ_k λ_k S_ε(α, β_k); theory's are the fixed point of another iteration, which knows
    no gradient, no potential and no step: α = d Π_k (Kᵀa_k)^{λ_k} with scalings a_k and d.
    """

    reference = "Janati, Cuturi & Gramfort 2020, Alg. 1 and Thm 3"
    symbol = "ink of a pixel"
    relation = equal(
        "optimisation error of 600 steps of Adam, where the loss is flat: 0.004 of a norm of 0.19 was seen; the "
        "barycentre of OT_ε alone is 0.09 away and more",
        atol=0.015,
        norm=True,
    )

    def predict(self, data: DigitHistograms) -> Quantity:
        images, mixtures = data.corners.numpy(), data.mixtures.numpy()
        return Quantity(theory.debiased_barycentre(images, squared_distances(data), mixtures, self.epsilon))

    def measure(self, run: Run) -> Quantity:
        return Quantity(barycentres(run))


class OneImage(_OfBarycentres):
    """The barycentre of one image alone is the image

    S_ε(α, β) ≥ 0 with equality only at α = β. OT_ε alone is least at a blurred β. Judged are the corners of the square.
    """

    reference = "Feydy et al. 2019, Thm 1"
    symbol = "ink of a pixel"
    relation = equal(
        "optimisation error, as of `Barycentre`; what OT_ε alone makes of it is 0.09 away", atol=0.015, norm=True
    )

    def predict(self, data: DigitHistograms) -> Quantity:
        return Quantity(data.corners)

    def measure(self, run: Run) -> Quantity:
        corner = run.data.mixtures.max(1).values == 1
        return Quantity(barycentres(run)[corner])


class FirstOrder(_OfBarycentres):
    """The mean potential Σ_k λ_k f_k − f of a barycentre is constant wherever it has ink

    It is the gradient of the convex objective, and a histogram is optimal if and only if its gradient is constant on
    its support and nowhere below that. Measured is its deviation over the ink, √Var_α, in squares of a pixel: the
    length of the gradient in the geometry of histograms. Theory's have 1e-7. Potentials are computed in float64.
    """

    reference = "Feydy et al. 2019, Prop. 2; Boyd & Vandenberghe, §5.5.3"
    symbol = "deviation of the potential"
    relation = equal(
        "optimisation error of 600 steps of Adam, for ink vanishes slowly where none should be: 0.064 was seen; at the "
        "start it is 6",
        atol=0.2,
    )

    def predict(self, data: DigitHistograms) -> Quantity:
        return Quantity(np.zeros(len(data.mixtures)))

    def measure(self, run: Run) -> Quantity:
        alpha = barycentres(run)
        to_corners = transports(run, alpha.unsqueeze(1), run.data.corners, self.epsilon).f  # (R, 4, n)
        to_itself = transports(run, alpha, alpha, self.epsilon)
        gradient = (run.data.mixtures.unsqueeze(-1) * to_corners).sum(1) - 0.5 * (to_itself.f + to_itself.g)
        mean = (alpha * gradient).sum(1, keepdim=True)
        return Quantity((alpha * (gradient - mean).square()).sum(1).sqrt())


class _Pairs(_OfHistograms):
    """A claim about the transport between any two images of the pool."""

    def __init__(self, epsilon: Positive = 0.5) -> None:
        self.epsilon = epsilon

    def costs(self, run: Run) -> Tensor:
        """⟨P_ε, C⟩ from image i to image j, (N, N)"""
        found = transports(run, run.data.pool.unsqueeze(1), run.data.pool, self.epsilon)
        return found.transport_cost


@lru_cache(maxsize=4)
def _exact(data: DigitHistograms) -> np.ndarray:
    """W₂² of any two images of the pool, (N, N), symmetric by computing half of it."""
    pool, cost = data.pool.numpy(), squared_distances(data)
    exact = np.zeros((len(pool), len(pool)))
    for i in range(len(pool)):
        for j in range(i):
            exact[i, j] = exact[j, i] = theory.exact_cost(cost, pool[i], pool[j])
    return exact


def _apart(matrix: np.ndarray) -> np.ndarray:
    """What is off the diagonal."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


class EntropicGap(_Pairs):
    """Between any two images the entropic plan costs at most ε·min(H(a), H(b)) ≤ ε ln n more than the optimal one

    As for two clouds (`lab.claims.sinkhorn_ot.EntropicGap`); entropies are of the ink.
    """

    reference = "Peyré & Cuturi 2019, §4.1; Cover & Thomas, §2.4"
    symbol = r"$\langle P_\varepsilon, C\rangle$"
    relation = at_most("the marginals' error 1e-10 times the greatest cost, 98", atol=1e-7)

    def predict(self, data: DigitHistograms) -> Quantity:
        pool = data.pool.numpy()
        gaps = np.array([[theory.entropic_gap(a, b, self.epsilon) for b in pool] for a in pool])
        return Quantity(_apart(_exact(data) + gaps))

    def measure(self, run: Run) -> Quantity:
        return Quantity(_apart(self.costs(run).numpy()))


class NotBelowExact(_Pairs):
    """Between any two images the entropic plan costs no less than the optimal one"""

    reference = "Peyré & Cuturi 2019, §4.1"
    symbol = r"$\langle P_\varepsilon, C\rangle$"
    relation = at_least("the marginals' error 1e-10 times the greatest cost, 98", atol=1e-7)

    def predict(self, data: DigitHistograms) -> Quantity:
        return Quantity(_apart(_exact(data)))

    def measure(self, run: Run) -> Quantity:
        return Quantity(_apart(self.costs(run).numpy()))


class Symmetric(_Pairs):
    """It costs as much from one image to another as back

    C is symmetric, so the transposed plan is optimal the other way. The algorithm treats its two sides differently:
    only at its end is it so.
    """

    reference = "Cuturi 2013, Thm 1"
    symbol = "difference of both ways"
    relation = equal("the marginals' error 1e-10, of either way, times the greatest cost, 98", atol=1e-7)

    def predict(self, data: DigitHistograms) -> Quantity:
        return Quantity(0.0)

    def measure(self, run: Run) -> Quantity:
        costs = self.costs(run)
        return Quantity((costs - costs.mT).abs().max())


class Detour(_Pairs):
    """The entropic way through a third image is no shorter than the straight one: √⟨P, C⟩ + √⟨P', C⟩ ≥ W₂

    Glued at the third image the two plans make one between the outer images, which by Minkowski's inequality costs at
    most (√⟨P, C⟩ + √⟨P', C⟩)². Measured is the shortest way through any third image of the pool.
    """

    reference = "Cuturi 2013, Thm 1; Villani 2003, Lemma 7.6"
    symbol = "length of the way"
    relation = at_least("the marginals' error 1e-10 times the greatest cost, 98, over a length of 1", atol=1e-7)

    def predict(self, data: DigitHistograms) -> Quantity:
        return Quantity(_apart(np.sqrt(_exact(data))))

    def measure(self, run: Run) -> Quantity:
        lengths = self.costs(run).sqrt().numpy()
        np.fill_diagonal(lengths, np.inf)  # through a third one
        return Quantity(_apart(np.min(lengths[:, :, None] + lengths[None, :, :], axis=1)))


class Centres(_Pairs):
    """The Sinkhorn divergence of two images is at least the square of how far their centres of mass are apart

    OT_ε(α, β) = ‖m_α − m_β‖² + OT_ε of both once centred, for ‖x − y‖² is that of the centred points and terms which
    every plan averages to the same. The divergence of the centred ones is not negative; as ε → ∞ it is 0, and the bound
    is reached.
    """

    reference = "Peyré & Cuturi 2019, Rem. 2.19; Feydy et al. 2019, Thm 1"
    symbol = r"$S_\varepsilon$"
    relation = at_least("the marginals' error 1e-10 times the greatest cost, 98", atol=1e-7)

    def predict(self, data: DigitHistograms) -> Quantity:
        centres = (data.pool @ data.grid).numpy()
        return Quantity(_apart(((centres[:, None] - centres[None]) ** 2).sum(-1)))

    def measure(self, run: Run) -> Quantity:
        values = transports(run, run.data.pool.unsqueeze(1), run.data.pool, self.epsilon).dual
        own = values.diagonal()
        return Quantity(_apart((values - 0.5 * (own.unsqueeze(1) + own)).numpy()))
