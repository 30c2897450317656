"""Barycentres of histograms by gradient descent on the Sinkhorn divergence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lab.algorithms.costs import SquaredEuclidean
from lab.algorithms.sinkhorn import Sinkhorn
from lab.data.blocks import InMemoryData
from lab.data.histograms import DigitHistograms
from lab.errors import Refusal
from lab.models.transport import Solver, TransportModule
from lab.nets.transport import Histograms
from lab.types import Positive


def objectives(
    alpha: Tensor, mixtures: Tensor, corners: Tensor, cost: Tensor, epsilon: float, solver: Solver, debiased: bool
) -> Tensor:
    """F(α) = Σ_k λ_k OT_ε(α, β_k) − ½ OT_ε(α, α) for each mixture λ, the second term if `debiased`: (r,)

    Up to a constant it is Σ_k λ_k S_ε(α, β_k), S_ε the Sinkhorn divergence. It is convex in α. Its gradient is
    Σ_k λ_k f_k − f, the potentials on α's side, by the envelope theorem.

    (Janati, Cuturi & Gramfort 2020, eq. 4; Feydy et al. 2019, Thm 1.)

    Args:
        alpha: α, (r, n). mixtures: λ, (r, k). corners: β, (r, k, n). cost: (n, n).
    """
    k = corners.shape[1]
    a, b = alpha.unsqueeze(1).expand(-1, k, -1), corners
    if debiased:
        a = torch.cat([a, alpha.unsqueeze(1)], 1)
        b = torch.cat([b, alpha.unsqueeze(1)], 1)
    values = solver(cost.expand(*a.shape[:2], *cost.shape), a, b, epsilon=epsilon).dual  # (r, k or k + 1)
    value = (mixtures * values[:, :k]).sum(1)
    return value - 0.5 * values[:, k] if debiased else value


class Barycentres(TransportModule):
    """Trains a histogram for each mixture λ of the data towards argmin_α Σ_k λ_k S_ε(α, β_k).

    Args:
        histograms: α, one a mixture.
        cost: between two pixels, from their places.
        solver: Sinkhorn's algorithm as the claims use it. inner: as a training step does.
        epsilon: ε, in squares of the distance of neighbours.
        debiased: minimise S_ε, or OT_ε alone.
        training: optimizer, scheduler and the other parameters of a `SteppedModule`.
    """

    splits = False  # a single table

    def __init__(
        self,
        histograms: Histograms,
        cost: SquaredEuclidean,
        solver: Sinkhorn,
        inner: Sinkhorn,
        epsilon: Positive = 0.7,
        debiased: bool = True,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.histograms, self.cost, self.solver, self.inner = histograms, cost, solver, inner
        self.epsilon, self.debiased = epsilon, debiased
        self._costs: Tensor | None = None

    def check(self, data: InMemoryData) -> None:
        """Refuse data that are no histograms, and another number of mixtures or pixels than theirs."""
        super().check(data)
        if not isinstance(data, DigitHistograms):
            raise Refusal("data._target_ must make a lab.data.histograms.DigitHistograms: Barycentres are of those")
        if self.histograms.count != data.side**2:
            raise Refusal(
                f"model.histograms.count={self.histograms.count} must be {data.side**2}: data.side={data.side} squared"
            )
        if self.histograms.bins != data.n:
            raise Refusal(f"model.histograms.bins={self.histograms.bins} must be {data.n}: the pixels of an image")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        grid = self.trainer.datamodule.grid  # type: ignore[attr-defined]
        self._costs = self.cost(grid, grid)

    def objective(self, batch: tuple[Tensor, Tensor, Tensor, float]) -> tuple[Tensor, dict[str, Tensor]]:
        rows, mixtures, corners, weight = batch
        assert self._costs is not None
        cost = self._costs.to(mixtures)
        values = objectives(
            self.histograms(rows), mixtures, corners, cost, self.epsilon, self.inner, self.debiased
        )  # (r,)
        loss = weight * values.mean()
        return loss, {"loss": loss.detach()}
