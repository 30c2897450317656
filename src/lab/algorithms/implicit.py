"""Derivatives of Sinkhorn's potentials by the implicit function theorem, whatever the number of iterations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lab.algorithms.conjugate import conjugate_gradients
from lab.algorithms.scaling import times
from lab.algorithms.transport import density


def differentiable(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The solved potentials f (..., n) and g (..., m) as functions of cost, a and b.

    What is made of them must not change under (f + t, g − t), for only up to that are they determined.
    """
    if not (cost.requires_grad or a.requires_grad or b.requires_grad):
        return f, g
    return _Potentials.apply(cost, a, b, f, g, epsilon)


class _Potentials(torch.autograd.Function):
    """At the solution Σⱼ bⱼ Eᵢⱼ = 1 and Σᵢ aᵢ Eᵢⱼ = 1, E = exp((f ⊕ g − C)/ε). Differentiated, with P = abᵀ ∘ E,

        [diag a    P  ] [df]   [ (P ∘ dC) 1 ]     [ P (db/b)  ]
        [  Pᵀ   diag b] [dg] = [ (P ∘ dC)ᵀ1 ] − ε [ Pᵀ (da/a) ].

    The matrix M is symmetric, so with (p, q) = M⁺ (f̄, ḡ) the gradients are

        C̄ᵢⱼ = Pᵢⱼ (pᵢ + qⱼ),   āᵢ = −ε Σⱼ Pᵢⱼ qⱼ/aᵢ,   b̄ⱼ = −ε Σᵢ Pᵢⱼ pᵢ/bⱼ.

    (Luise, Rudi, Pontil & Ciliberto 2018, Thm 3; Cuturi, Teboul, Niles-Weed & Vert 2020; Peyré & Cuturi 2019, §9.1.)
    """

    @staticmethod
    def forward(ctx: Any, cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Any:
        ctx.save_for_backward(cost, a, b, f, g)
        ctx.epsilon = epsilon
        return f.clone(), g.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, f_bar: Tensor, g_bar: Tensor) -> Any:
        cost, a, b, f, g = ctx.saved_tensors
        with torch.autocast(cost.device.type, enabled=False):  # of whoever calls backward in bfloat16
            ratio = density(cost, ctx.epsilon, f, g)
            plan = a.unsqueeze(-1) * ratio * b.unsqueeze(-2)
            p, q = solve(plan, a, b, f_bar, g_bar)
            cost_bar = plan * (p.unsqueeze(-1) + q.unsqueeze(-2)) if ctx.needs_input_grad[0] else None
            a_bar = -ctx.epsilon * times(ratio, b * q) if ctx.needs_input_grad[1] else None
            b_bar = -ctx.epsilon * times(ratio.mT, a * p) if ctx.needs_input_grad[2] else None
        return cost_bar, a_bar, b_bar, None, None, None


def solve(plan: Tensor, a: Tensor, b: Tensor, r: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) with ap + Pq = r and Pᵀp + bq = s, where Σr = Σs: (..., n, m), (..., n), (..., m) → (..., n), (..., m).

    p is eliminated, and in √b q the matrix is I − QᵀQ, Q = diag(a)^{−½} P diag(b)^{−½}, for `conjugate_gradients`.

    Weights that are 0 have no part in it, their p and q are 0.
    """
    inverse_a, inverse_b = (torch.where(w > 0, w.rsqrt(), 0) for w in (a, b))
    scaled = inverse_a.unsqueeze(-1) * plan * inverse_b.unsqueeze(-2)  # Q

    def gram(x: Tensor) -> Tensor:
        return times(scaled.mT, times(scaled, x))

    r = inverse_a * r
    residual = inverse_b * s - times(scaled.mT, r)
    goal = residual.norm(dim=-1, keepdim=True) * (32 * torch.finfo(plan.dtype).eps)
    x, _ = conjugate_gradients(gram, residual, b.sqrt(), goal, 2 * b.shape[-1])
    return inverse_a * (r - times(scaled, x)), inverse_b * x
