"""Sinkhorn's iteration as alternate scaling of the rows and columns of a positive matrix."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 21
"""Bytes of a block of rows: small enough to be still in the cache when the block is read for the second time."""
CACHE = 1 << 24
"""Up to so many bytes a matrix is read twice from the cache rather than once in blocks."""
REACH = 30.0
"""How large |ln u| and |ln v| may grow before they are absorbed into the matrix."""
EVERY = 4
"""After so many steps it is looked whether they have. In float32 they may grow to 88."""
LEAST = 1e-35
"""The least entry in float32: below it numbers are denormal and slow. It counts for e^{2·REACH} times that."""


class Scaling:
    """P = diag(au) K diag(bv) with K = exp((f₀ ⊕ g₀ − C)/ε), in which Sinkhorn's iteration is

        u ← 1/(K(bv)),   v ← 1/(Kᵀ(au)),

    relaxed as u ← u (uK(bv))^{−ω}. The potentials are f₀ + ε ln u and g₀ + ε ln v. Where u or v grow they are absorbed
    into f₀ and g₀ and K is computed anew, so that K is of size 1 where the plan has mass, whatever ε.

    (Peyré & Cuturi 2019, §4.2 and 4.4; absorption: Chizat, Peyré, Schmitzer & Vialard 2018, Alg. 2; Schmitzer 2019.)

    Args:
        f, g: f₀ and g₀, in the precision of the cost. dtype: of K, u and v.
    """

    def __init__(
        self, cost: Tensor, a: Tensor, b: Tensor, epsilon: float, f: Tensor, g: Tensor, dtype: torch.dtype
    ) -> None:
        self.cost, self.epsilon, self.f0, self.g0 = cost, epsilon, f, g
        self.a, self.b = a.to(dtype), b.to(dtype)
        self.u, self.v = torch.ones_like(self.a), torch.ones_like(self.b)
        self.kernel = empty(cost, dtype)
        self._fill()
        self._steps = 0

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        """(f, g), in the precision of the cost"""
        f, g = self.u.to(self.f0).log(), self.v.to(self.g0).log()
        return f.mul_(self.epsilon).add_(self.f0), g.mul_(self.epsilon).add_(self.g0)

    def rows(self, omega: Tensor) -> Tensor:
        """Relax u; returns ‖Pᵀ1 − b‖₁ of what is then there.

        A large K is read once: while a block of its rows is in the cache, its share of Kᵀ(au) is taken too.
        """
        weighted, power, columns = self.b * self.v, -omega, None
        if self.kernel.dim() == 2 and self.kernel.nbytes <= CACHE:
            self.u = (self.kernel @ weighted).mul_(self.u).pow_(power).mul_(self.u)
            columns = self.kernel.mT @ (self.a * self.u)
        else:
            before, self.u = self.u, torch.empty_like(self.u)
            for rows in blocks(self.kernel):
                kernel, u = self.kernel[..., rows, :], before[..., rows]
                u = times(kernel, weighted).mul_(u).pow_(power).mul_(u)
                share = times(kernel.mT, self.a[..., rows] * u)
                self.u[..., rows] = u
                columns = share if columns is None else columns.add_(share)
            assert columns is not None
        self._ratio = columns.mul_(self.v)  # of the columns' sums to what they should be
        return (self._ratio - 1).abs_().mul_(self.b).sum(-1)

    def columns(self, omega: Tensor) -> None:
        """Relax v."""
        self.v = self._ratio.pow_(-omega).mul_(self.v)
        self._steps += 1
        if self._steps % EVERY == 1:
            ends = [float(end) for scale in (self.u, self.v) for end in scale.aminmax()]
            if not (min(ends) > math.exp(-REACH) and max(ends) < math.exp(REACH)):
                self.f0, self.g0 = self.potentials
                self.u, self.v = torch.ones_like(self.u), torch.ones_like(self.v)
                self._fill()

    def plan(self) -> Tensor:
        """P, written over K: this is the end."""
        rows_scale, columns_scale = (self.a * self.u).unsqueeze(-1), (self.b * self.v).unsqueeze(-2)
        for rows in blocks(self.kernel):
            self.kernel[..., rows, :].mul_(rows_scale[..., rows, :]).mul_(columns_scale)
        return self.kernel

    def _fill(self) -> None:
        g0, same = self.g0.unsqueeze(-2), self.kernel.dtype == self.cost.dtype
        parts = blocks(self.cost)
        buffer = None if same else torch.empty_like(self.cost[..., parts[0], :])
        for rows in parts:
            kernel, cost = self.kernel[..., rows, :], self.cost[..., rows, :]
            exponent = kernel if buffer is None else buffer[..., : cost.shape[-2], :]
            torch.sub(self.f0[..., rows].unsqueeze(-1), cost, out=exponent).add_(g0).mul_(1 / self.epsilon)
            if buffer is not None:
                kernel.copy_(exponent)
            kernel.exp_()
            if kernel.dtype == torch.float32:
                kernel.clamp_(min=LEAST)


def settled(cost: Tensor, f: Tensor, g: Tensor, epsilon: float, doubtful: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials from which a `Scaling` may start: f and g, or fᵢ = min_j (Cᵢⱼ − gⱼ) and gⱼ = min_i (Cᵢⱼ − fᵢ).

    With the latter no entry of K is above 1 and every row and every column has one that is 1. f and g themselves will
    do where each greatest entry is within e^{±REACH}, or where that is not `doubtful`, (...).

    (c-transforms: Peyré & Cuturi 2019, §5.1.)
    """
    rows, columns = _least(cost, g, -1), _least(cost.mT, f, -1)
    away = torch.maximum((rows - f).abs().amax(-1), (columns - g).abs().amax(-1)) > REACH * epsilon
    away = away & doubtful
    if not bool(away.any()):
        return f, g
    away = away.unsqueeze(-1)
    f = torch.where(away, rows, f)
    return f, torch.where(away, _least(cost.mT, f, -1), g)


def _least(cost: Tensor, g: Tensor, side: int) -> Tensor:
    """min_j (Cᵢⱼ − gⱼ): (..., n, m), (..., m) → (..., n)"""
    g = g.unsqueeze(-2)
    return torch.cat([(cost[..., rows, :] - g).amin(side) for rows in blocks(cost)], -1)


def blocks(matrix: Tensor) -> list[slice]:
    """Rows of a matrix on the CPU that fit into a cache; of a batch, and on other devices, all of them."""
    n, m = matrix.shape[-2:]
    whole = matrix.dim() > 2 or matrix.device.type != "cpu"
    size = n if whole else max(1, BLOCK // (m * matrix.element_size()))
    return [slice(i, min(n, i + size)) for i in range(0, n, size)]


def empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor. A large one on the CPU is of numpy's memory, which asks the system for huge pages.

    At 128 MB these are written for the first time in a seventh of the time.
    """
    if like.device.type != "cpu" or like.nbytes < 1 << 22:
        return torch.empty(like.shape, dtype=dtype, device=like.device)
    kind = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    return torch.from_numpy(np.empty(tuple(like.shape), kind))


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector: (..., n, m), (..., m) → (..., n). A batch as rows from the left, by far faster on a CPU."""
    return matrix @ vector if matrix.dim() == 2 else (vector.unsqueeze(-2) @ matrix.mT).squeeze(-2)
