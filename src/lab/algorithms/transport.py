"""What a solution of entropic optimal transport says: its plan and its values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Transport:
    """Potentials of entropic optimal transport, and what follows from them.

    Everything is differentiable in cost and weights wherever `sinkhorn` was given what requires a gradient.

    Attributes:
        cost: C, (..., n, m). a: (..., n), b: (..., m), the weights; they sum to 1. epsilon: ε.
        f: (..., n), g: (..., m), the potentials. Where there is mass they are unique up to (f + t, g − t), and here
            ⟨a, f⟩ = ⟨b, g⟩; where a weight is 0 they are not determined, and nothing is differentiated through them.
        iterations: (...), how many were made. error: (...), ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ at the end.
        known: the plan, where the algorithm has left it.
    """

    cost: Tensor
    a: Tensor
    b: Tensor
    epsilon: float
    f: Tensor
    g: Tensor
    iterations: Tensor
    error: Tensor
    known: Tensor | None = field(default=None, repr=False)

    @property
    def plan(self) -> Tensor:
        """P = abᵀ ∘ exp((f ⊕ g − C)/ε), (..., n, m)"""
        differentiated = any(t.requires_grad for t in (self.cost, self.a, self.b, self.f))
        return self._plan(self.f, self.g) if self.known is None or differentiated else self.known

    @property
    def transport_cost(self) -> Tensor:
        """⟨P, C⟩, (...)"""
        return (self.plan * self.cost).sum((-2, -1))

    @property
    def primal(self) -> Tensor:
        """⟨P, C⟩ + ε KL(P ‖ abᵀ) of a plan that satisfies both constraints, made of P by `rounded`: (...)"""
        plan, product = rounded(self.plan, self.a, self.b), self.a.unsqueeze(-1) * self.b.unsqueeze(-2)
        ratio = torch.where(plan > 0, plan / product.clamp(min=torch.finfo(plan.dtype).tiny), 1)  # 0 ln 0 = 0
        entropy = torch.xlogy(plan, ratio)
        return (plan * self.cost + self.epsilon * entropy).sum((-2, -1))

    @property
    def dual(self) -> Tensor:
        """OT_ε as ⟨a, f⟩ + ⟨b, g⟩ − ε(ΣP − 1), never above it: (...)

        By the envelope theorem its gradient is P in C, f in a and g in b (up to constants, as Σa = 1), so the
        potentials are not differentiated.
        """
        f, g = self.f.detach(), self.g.detach()
        linear = (self.a * f).sum(-1) + (self.b * g).sum(-1)
        constant = not (self.cost.requires_grad or self.a.requires_grad or self.b.requires_grad)
        plan = self.known if constant and self.known is not None else self._plan(f, g)
        return linear - self.epsilon * (plan.sum((-2, -1)) - 1)

    def _plan(self, f: Tensor, g: Tensor) -> Tensor:
        ratio = density(self.cost, self.epsilon, f, g)
        return self.a.unsqueeze(-1) * ratio * self.b.unsqueeze(-2)


def density(cost: Tensor, epsilon: float, f: Tensor, g: Tensor) -> Tensor:
    """exp((f ⊕ g − C)/ε), (..., n, m); finite, for between weights that are 0 it may be of any size."""
    exponent = (f.unsqueeze(-1) + g.unsqueeze(-2) - cost) / epsilon
    return exponent.clamp(max=math.log(torch.finfo(exponent.dtype).max) - 1).exp()


def rounded(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A plan with the marginals a and b, within 2(‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁) of P in ‖·‖₁. (..., n, m)

    Rows that are too heavy are scaled down, then columns; what is missing is added as the product of both deficits.

    (Altschuler, Weed & Rigollet 2017, Alg. 2 and Lemma 7.)
    """
    tiny = torch.finfo(plan.dtype).tiny
    plan = plan * (a / plan.sum(-1).clamp(min=tiny)).clamp(max=1).unsqueeze(-1)
    plan = plan * (b / plan.sum(-2).clamp(min=tiny)).clamp(max=1).unsqueeze(-2)
    rows, columns = (a - plan.sum(-1)).clamp(min=0), (b - plan.sum(-2)).clamp(min=0)
    return plan + rows.unsqueeze(-1) * columns.unsqueeze(-2) / rows.sum(-1)[..., None, None].clamp(min=tiny)
