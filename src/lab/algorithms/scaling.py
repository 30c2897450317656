"""Sinkhorn's iteration as alternate scaling of the rows and columns of a positive matrix."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

BLOCK = 1 << 22
"""Bytes of a block of rows: small enough to be still in the cache when the block is read for the second time."""
REACH = 30.0
"""How large |ln u| and |ln v| may grow before they are absorbed into the matrix."""
LEAST = 1e-35
"""The least entry in float32: below it numbers are denormal and slow. It counts for e^{2·REACH} times that."""


class Scaling:
    """P = diag(au) K diag(bv) with K = exp((f₀ ⊕ g₀ − C)/ε), in which Sinkhorn's iteration is

        u ← 1/(K(bv)),   v ← 1/(Kᵀ(au)),

    relaxed as ln u ← (1 − ω) ln u − ω ln K(bv). The potentials are f₀ + ε ln u and g₀ + ε ln v. Where u or v grow they
    are absorbed into f₀ and g₀ and K is computed anew, so that K is of size 1 where the plan has mass, whatever ε.

    (Peyré & Cuturi 2019, §4.2 and 4.4; absorption: Chizat, Peyré, Schmitzer & Vialard 2018, Alg. 2; Schmitzer 2019.)
    """

    def __init__(self, cost: Tensor, a: Tensor, b: Tensor, epsilon: float, f: Tensor, g: Tensor) -> None:
        self.cost, self.epsilon, self.a, self.b, self.f0, self.g0 = cost, epsilon, a, b, f, g
        self.log_u, self.log_v = torch.zeros_like(a), torch.zeros_like(b)
        self.kernel = self._kernel()

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        """(f, g), in the precision of the cost"""
        return self.f0 + self.epsilon * self.log_u, self.g0 + self.epsilon * self.log_v

    def to(self, dtype: torch.dtype) -> Scaling:
        """The same in another precision."""
        other = copy.copy(self)
        for name in ("a", "b", "log_u", "log_v"):
            setattr(other, name, getattr(self, name).to(dtype))
        other.kernel = _lifted(self.kernel.to(dtype, copy=True))
        return other

    def go_on_from(self, other: Scaling) -> None:
        """Take over what `other` has come to; the matrix is computed anew only if that has absorbed anything."""
        self.log_u, self.log_v = other.log_u.to(self.a), other.log_v.to(self.b)
        if other.f0 is not self.f0:
            self.f0, self.g0 = other.f0, other.g0
            self.kernel = self._kernel()

    def rows(self, omega: Tensor) -> Tensor:
        """Relax u; returns ‖Pᵀ1 − b‖₁ of what is then there.

        K is read once: while a block of its rows is in the cache, its share of Kᵀ(au) is taken too.
        """
        omega = omega.to(self.a)
        weighted, before, columns = self.b * self.log_v.exp(), self.log_u, None
        self.log_u = torch.empty_like(before)
        for rows in self._blocks():
            kernel = self.kernel[..., rows, :]
            target = times(kernel, weighted).log_().neg_()
            log_u = torch.lerp(before[..., rows], target, omega)
            self.log_u[..., rows] = log_u
            share = times(kernel.mT, self.a[..., rows] * log_u.exp())
            columns = share if columns is None else columns.add_(share)
        assert columns is not None
        self._target = columns.log_().neg_()
        return (self.b * (self.log_v - self._target).expm1_().abs_()).sum(-1)

    def columns(self, omega: Tensor) -> None:
        """Relax v."""
        self.log_v = torch.lerp(self.log_v, self._target, omega.to(self.a))
        if max(float(self.log_u.abs().amax()), float(self.log_v.abs().amax())) > REACH:
            self.f0, self.g0 = self.potentials
            self.log_u, self.log_v = torch.zeros_like(self.log_u), torch.zeros_like(self.log_v)
            self.kernel = _lifted(self._kernel().to(self.a.dtype))

    def _blocks(self) -> list[slice]:
        n, m = self.cost.shape[-2:]
        whole = self.cost.dim() > 2 or self.cost.device.type != "cpu"
        size = n if whole else max(1, BLOCK // (m * self.a.element_size()))
        return [slice(i, i + size) for i in range(0, n, size)]

    def _kernel(self) -> Tensor:
        kernel, g0 = torch.empty_like(self.cost), self.g0.unsqueeze(-2)
        for rows in self._blocks():
            block = torch.sub(self.f0[..., rows].unsqueeze(-1), self.cost[..., rows, :], out=kernel[..., rows, :])
            block.add_(g0).div_(self.epsilon).exp_()
        return _lifted(kernel)


def _lifted(kernel: Tensor) -> Tensor:
    return kernel.clamp_(min=LEAST) if kernel.dtype == torch.float32 else kernel


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector: (..., n, m), (..., m) → (..., n). A batch as rows from the left, by far faster on a CPU."""
    return matrix @ vector if matrix.dim() == 2 else (vector.unsqueeze(-2) @ matrix.mT).squeeze(-2)
