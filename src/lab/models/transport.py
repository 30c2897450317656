"""Optimal transport by stochastic gradients: dual potentials, and a generator trained on the Sinkhorn divergence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from lab.algorithms.costs import SquaredEuclidean
from lab.algorithms.sinkhorn import Sinkhorn
from lab.algorithms.transport import Transport
from lab.data.blocks import InMemoryData
from lab.data.measures import GaussianPair
from lab.errors import Refusal
from lab.models.stepped import SteppedModule
from lab.nets.transport import AffineMap, Potential
from lab.types import Positive

Solver = Callable[..., Transport]
"""(cost, a, b, epsilon=ε) → Transport, such as `lab.algorithms.sinkhorn.Sinkhorn`."""


def dual_value(
    f: Tensor, g: Tensor, cost: Tensor, epsilon: float, a: Tensor | None = None, b: Tensor | None = None
) -> Tensor:
    """E[f(x) + g(y) − ε(exp((f(x) + g(y) − c(x, y))/ε) − 1)] over all pairs of two clouds: the dual objective.

    Of clouds drawn independently it is an unbiased estimate of that of their laws, whose greatest value is OT_ε.

    (Genevay, Cuturi, Peyré & Bach 2016, §2; Seguy et al. 2018, eq. 6.)

    Args:
        f: (..., n), g: (..., m), the potentials at the points. cost: (..., n, m). a: (n,), b: (m,), weights; uniform
            by default.

    Returns: (...)
    """
    excess = ((f.unsqueeze(-1) + g.unsqueeze(-2) - cost) / epsilon).expm1()
    if a is None or b is None:
        return f.mean(-1) + g.mean(-1) - epsilon * excess.mean((-2, -1))
    return f @ a + g @ b - epsilon * (excess @ b) @ a


def sinkhorn_divergence(
    x: Tensor, y: Tensor, cost: SquaredEuclidean, epsilon: float, solver: Solver, debiased: bool = True
) -> Tensor:
    """OT_ε(α, β) − ½ OT_ε(α, α) − ½ OT_ε(β, β), estimated from two clouds of either law: (..., 2, n, d)² → (...)

    The cross term is the mean over the four pairs of clouds, the second one that of the two clouds of α. With one
    cloud as both arguments the α where the expectation is least would lie off β by O(1/n), for the noise of a cloud
    costs in OT_ε(α̂, β̂) what it does not in OT_ε(α̂, α̂); with independent ones these terms cancel at α = β to first
    order. The last term does not depend on α and is left out.

    (Genevay, Peyré & Cuturi 2018, eq. 7; Salimans, Zhang, Radford & Metaxas 2018, eq. 4; Feydy et al. 2019.)

    Args:
        debiased: with the second term. Without it OT_ε(α, β) is least at an α that has shrunk.
    """
    costs = [cost(x[..., i, :, :], y[..., j, :, :]) for i in (0, 1) for j in (0, 1)]
    if debiased:
        costs.append(cost(x[..., 0, :, :], x[..., 1, :, :]))
    values = solver(torch.stack(costs), epsilon=epsilon).dual  # (5, ...): one batch of problems
    return values[:4].mean(0) - 0.5 * values[4] if debiased else values.mean(0)


class TransportModule(SteppedModule):
    """A model whose steps solve transport problems in the precision that it is trained in.

    Attributes:
        inner: Sinkhorn's algorithm as a training step uses it.
    """

    inner: Sinkhorn

    def check(self, data: InMemoryData) -> None:
        """Refuse a precision that Sinkhorn's algorithm does not work in, and a tolerance that it does not resolve."""
        if data.trainer is not None and data.trainer.precision == "bf16-true":
            raise Refusal(
                "trainer.precision=bf16-true is not allowed: exp(−c/ε) would have two digits; allowed: 32-true, "
                "bf16-mixed, 64-true"
            )
        if data.trainer is not None and data.trainer.precision != "64-true" and self.inner.tolerance < 5e-7:
            raise Refusal(
                f"model.inner.tolerance={self.inner.tolerance} must be at least 5e-07 with trainer.precision="
                f"{data.trainer.precision}: training steps are in float32, which resolves no less"
            )


class EntropicTransport(TransportModule):
    """Trains potentials of `source` and `target` on the dual and, beside them, `generator` on the Sinkhorn divergence.

    They see the same samples and share no parameter.

    Args:
        source, target: f and g.
        generator: x ↦ Tx + t, which is to carry the source to the target.
        cost: c(x, y).
        solver: Sinkhorn's algorithm as the claims use it. inner: as a training step does.
        epsilon: ε, in squares of the data's unit.
        debiased: whether the generator's loss is the divergence or OT_ε alone.
        relaxation: ω of the iteration whose rate is measured.
        training: optimizer, scheduler and the other parameters of a `SteppedModule`.
    """

    splits = False  # the generator's matrix is read outside its forward

    def __init__(
        self,
        source: Potential,
        target: Potential,
        generator: AffineMap,
        cost: SquaredEuclidean,
        solver: Sinkhorn,
        inner: Sinkhorn,
        epsilon: Positive = 1.0,
        debiased: bool = True,
        relaxation: Annotated[float, Gt(0), Lt(2)] = 1.0,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.source, self.target, self.generator = source, target, generator
        self.cost, self.solver, self.inner = cost, solver, inner
        self.epsilon, self.debiased, self.relaxation = epsilon, debiased, relaxation

    def check(self, data: InMemoryData) -> None:
        """Refuse data that are no pair of Gaussians, or of another dimension than the nets'."""
        super().check(data)
        if not isinstance(data, GaussianPair):
            raise Refusal(
                "data._target_ must make a lab.data.measures.GaussianPair: EntropicTransport trains on no other"
            )
        for name, net in (("source", self.source), ("target", self.target), ("generator", self.generator)):
            if net.d != data.d:
                raise Refusal(f"model.{name}.d={net.d} must be {data.d}: the data have {data.d} dimensions")

    def objective(self, batch: tuple[Tensor, Tensor, float]) -> tuple[Tensor, dict[str, Tensor]]:
        x, y, weight = batch  # (r, 2, p, d) each: two clouds a problem
        dual = dual_value(self.source(x), self.target(y), self.cost(x, y), self.epsilon)  # (r, 2)
        generated = self.generator(x)
        divergence = sinkhorn_divergence(generated, y, self.cost, self.epsilon, self.inner, self.debiased)  # (r,)
        losses = {"loss/potentials": -weight * dual.mean(), "loss/generator": weight * divergence.mean()}
        return losses["loss/potentials"] + losses["loss/generator"], {k: v.detach() for k, v in losses.items()}
