"""Entropic transport between two clouds of points whose matrix of costs is never in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lab.algorithms.problem import require, weighted
from lab.algorithms.sinkhorn import Loop

Cost = Callable[[Tensor, Tensor], Tensor]
"""(..., n, d), (..., m, d) → (..., n, m), differentiable, such as `lab.algorithms.costs.SquaredEuclidean`."""
ENTRIES = 1 << 20
"""Entries of the cost that are in memory at a time."""


@dataclass(frozen=True, eq=False)
class CloudTransport:
    """Potentials between two clouds and what they are worth.

    Attributes:
        f: (..., n), g: (..., m), constants to autograd. iterations, error: (...), as of `Transport`.
        dual: OT_ε, (...), differentiable in points and weights: its gradient is Σⱼ Pᵢⱼ ∂c(xᵢ, yⱼ) in x, f in a.
    """

    f: Tensor
    g: Tensor
    dual: Tensor
    iterations: Tensor
    error: Tensor


def sinkhorn_of_clouds(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    cost: Cost,
    epsilon: float,
    tolerance: float = 1e-9,
    max_iterations: int = 10_000,
    relaxation: float | None = None,
    start: tuple[Tensor, Tensor] | None = None,
) -> CloudTransport:
    """Solve as `sinkhorn` does, in the log domain, by rows of the cost that are computed anew in every iteration.

    Memory is n + m and `ENTRIES`, of the gradient too. Where the matrix fits in memory `sinkhorn` is faster. There is
    no ε-scaling here: where ε is far below the cost, `start` from the potentials at a larger ε.

    Args:
        x: (..., n, d), y: (..., m, d), in float32 or float64.
        a: (..., n), b: (..., m), weights that sum to 1; uniform by default.
        The others are those of `sinkhorn`.

    Raises: ValueError where shapes, weights or parameters make no problem.
    """
    if min(x.dim(), y.dim()) < 2 or x.dtype != y.dtype or x.dtype not in (torch.float32, torch.float64):
        found = " and ".join(f"{points.dtype} of shape {list(points.shape)}" for points in (x, y))
        raise ValueError(f"x and y must be (..., n, d) and (..., m, d) in float32 or float64, not {found}")
    if x.numel() == 0 or y.numel() == 0:
        raise ValueError(f"x and y must not be empty, but are of shape {list(x.shape)} and {list(y.shape)}")
    a = weighted("a", a, x[..., 0], f"x of shape {list(x.shape)}")
    b = weighted("b", b, y[..., 0], f"y of shape {list(y.shape)}")
    with torch.no_grad():
        require(a, b, epsilon, tolerance, max_iterations, relaxation)
        f, g = start or (torch.zeros_like(a), torch.zeros_like(b))
        streamed = Streamed(cost, (x.detach(), y.detach()), a.detach(), b.detach(), epsilon, f, g)
        loop = Loop(a, max_iterations, relaxation)
        loop.run(streamed, tolerance, last=True)
        f, g = streamed.potentials
        t = ((a * f).sum(-1, keepdim=True) - (b * g).sum(-1, keepdim=True)) / 2
        f, g = f - t, g + t
    return CloudTransport(f, g, _Value.apply(x, y, a, b, f, g, epsilon, cost), *loop.outcome)


class Streamed:
    """`LogDomain` by blocks of rows: each block gives its part of f, and its share of the sums of g's next value."""

    def __init__(
        self,
        cost: Cost,
        points: tuple[Tensor, Tensor],
        a: Tensor,
        b: Tensor,
        epsilon: float,
        f: Tensor,
        g: Tensor,
    ) -> None:
        self.cost, self.points, self.b, self.epsilon, self.potentials = cost, points, b, epsilon, (f, g)
        self._log_a, self._log_b = a.log(), b.log()

    def sound(self, problem: int) -> bool:
        return True

    def rows(self, omega: Tensor | float) -> Tensor:
        (x, y), (f, g) = self.points, self.potentials
        f, sums = f.clone(), torch.full_like(g, -torch.inf)
        for rows in parts(x, y):
            exponent = self.cost(x[..., rows, :], y).div_(-self.epsilon)  # (..., block, m)
            softmin = -self.epsilon * (exponent + (g / self.epsilon + self._log_b).unsqueeze(-2)).logsumexp(-1)
            f[..., rows] = torch.lerp(f[..., rows], softmin, omega)
            weighted = f[..., rows] / self.epsilon + self._log_a[..., rows]
            sums = torch.logaddexp(sums, (exponent + weighted.unsqueeze(-1)).logsumexp(-2))
        self._target = -self.epsilon * sums
        self.potentials = f, g
        return (self.b * ((g - self._target) / self.epsilon).expm1().abs()).sum(-1)

    def columns(self, omega: Tensor | float) -> None:
        f, g = self.potentials
        self.potentials = f, torch.lerp(g, self._target, omega)


class _Value(torch.autograd.Function):
    """⟨a, f⟩ + ⟨b, g⟩: OT_ε, as the last half step has made P1 = a. By the envelope theorem P stays as it is."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, epsilon: float, cost: Cost
    ) -> Tensor:
        ctx.save_for_backward(x, y, a, b, f, g)
        ctx.epsilon, ctx.cost = epsilon, cost
        return (a * f).sum(-1) + (b * g).sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, bar: Tensor) -> Any:
        x, y, a, b, f, g = ctx.saved_tensors
        x_bar, y_bar = torch.zeros_like(x), torch.zeros_like(y)
        for rows in parts(x, y):
            with torch.enable_grad():
                ends = x[..., rows, :].detach().requires_grad_(), y.detach().requires_grad_()
                costs = ctx.cost(*ends)
            ratio = ((f[..., rows].unsqueeze(-1) + g.unsqueeze(-2) - costs.detach()) / ctx.epsilon).exp()
            plan = a[..., rows].unsqueeze(-1) * ratio * b.unsqueeze(-2)
            of_x, of_y = torch.autograd.grad(costs, ends, bar[..., None, None] * plan)
            x_bar[..., rows, :] = of_x
            y_bar += of_y
        return x_bar, y_bar, bar.unsqueeze(-1) * f, bar.unsqueeze(-1) * g, None, None, None, None


def parts(x: Tensor, y: Tensor) -> list[slice]:
    """Rows of the cost of which `ENTRIES` or one are in memory at a time."""
    n = x.shape[-2]
    size = max(1, ENTRIES // max(1, x.shape[:-2].numel() * y.shape[-2]))
    return [slice(i, min(n, i + size)) for i in range(0, n, size)]
