"""Sinkhorn's iteration as alternate scaling of the rows and columns of a positive matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 20
"""Bytes of a block of rows: small enough to be still in a core's cache when the block is read for the second time."""
REACH = 30.0
"""How large |ln u| and |ln v| may grow before they are absorbed into the matrix. In float32 they may grow to 88."""
LEAST = 1e-33
"""The least entry in float32: its products with weights above 1e-5 are not yet denormal, which is slow. To an entry
of P it adds at most e^{2·REACH} = 10²⁶ times that and the two weights."""
LIMITS = {torch.float32: (LEAST, 1e30), torch.float64: (1e-290, 1e290)}
"""What an entry is at the least and at the most: P is at most the lesser weight, so beyond both are next to nothing."""

Rows = slice | EllipsisType
"""Some rows of a matrix, or all of them as they are."""
Array = Any
"""A tensor, or what `at_hand` makes of it."""


class Hand(NamedTuple):
    """What an iteration works with, `at_hand`."""

    kernel: Array
    a: Array
    b: Array
    u: Array
    v: Array


class Scaling:
    """P = diag(au) K diag(bv) with K = exp((f₀ ⊕ g₀ − C)/ε), in which Sinkhorn's iteration is

        u ← 1/(K(bv)),   v ← 1/(Kᵀ(au)),

    relaxed as u ← u (uK(bv))^{−ω}. The potentials are f₀ + ε ln u and g₀ + ε ln v. Where u or v grow they are absorbed
    into f₀ and g₀ and K is computed anew, so that K is of size 1 where the plan has mass, whatever ε.

    (Peyré & Cuturi 2019, §4.2 and 4.4; absorption: Chizat, Peyré, Schmitzer & Vialard 2018, Alg. 2; Schmitzer 2019.)

    Args:
        f, g: f₀ and g₀, in the precision of the cost. dtype: of K, u and v.
        keep: where its precision is another, K is computed in that of the cost first, for `refined`.

    Attributes:
        ratio: Pᵀ1/b as `rows` has left it, `at_hand`, (..., m); `columns` uses it up.
    """

    def __init__(
        self,
        cost: Tensor,
        a: Tensor,
        b: Tensor,
        epsilon: float,
        f: Tensor,
        g: Tensor,
        dtype: torch.dtype,
        keep: bool = False,
    ) -> None:
        self.cost, self.epsilon, self.f0, self.g0 = cost, epsilon, f, g
        a, b = a.to(dtype), b.to(dtype)
        self._take(empty(cost, dtype), a, b, torch.ones_like(a), torch.ones_like(b))
        self._kept = empty(cost, cost.dtype) if keep and cost.dtype != dtype else None
        self._fill()

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        """(f, g), in the precision of the cost"""
        f, g = self.u.to(self.f0).log(), self.v.to(self.g0).log()
        return f.mul_(self.epsilon).add_(self.f0), g.mul_(self.epsilon).add_(self.g0)

    @property
    def grown(self) -> bool:
        """Whether u or v of any problem are beyond e^{±REACH}, where the entries at `LEAST` come to carry mass."""
        return _beyond(self.u, self.v)

    def sound(self, problem: int) -> bool:
        """Whether u and v of this problem are not."""
        return not _beyond(*(t.reshape(-1, t.shape[-1])[problem] for t in (self.u, self.v)))

    def rows(self, omega: Tensor | float) -> Array:
        """Relax u; returns ‖Pᵀ1 − b‖₁ of what is then there."""
        _, a, b, u, v = self.hand

        def relaxed(product: Array, rows: Rows) -> Array:
            part = u[rows]
            product *= part
            product **= -omega
            part *= product
            return a[rows] * part

        self.ratio = self.through(b * v, relaxed)
        self.ratio *= v
        return abs(b * self.ratio - b).sum(-1)

    def columns(self, omega: Tensor | float) -> None:
        """Relax v; absorb u and v where they have grown."""
        v = self.hand.v
        self.ratio **= -omega
        v *= self.ratio
        if self.grown:
            self.f0, self.g0, self._kept = *self.potentials, None
            self.u.fill_(1.0)
            self.v.fill_(1.0)
            self._fill()

    def within(self, reach: float) -> bool:
        """Whether the cost of this one problem, that starts at f₀ = g₀ = 0, is within ±reach ε."""
        least, most = math.exp(-reach), math.exp(reach)
        return bool(self._extents) and all(least <= low and high <= most for low, high in self._extents)

    def through(self, vector: Array, middle: Callable[[Array, Rows], Array]) -> Array:
        """Kᵀ middle(K vector), (..., m), where `middle` is told which rows it is given; all are `at_hand`.

        A large K is read once: while a block of its rows is in the cache, its share of the second product is taken too.
        """
        kernel = self.hand.kernel
        total: Array = None
        for rows in self._parts:
            block = kernel[rows]
            share = times(block.mT, middle(times(block, vector), rows))
            if total is None:
                total = share
            else:
                total += share
        return total

    def refined(self, a: Tensor, b: Tensor) -> Scaling | None:
        """This in the precision of the cost, as a (..., n) and b (..., m) are, once; None where K was not kept."""
        if self._kept is None:
            return None
        fine = copy(self)
        fine._take(self._kept, a, b, self.u.to(a), self.v.to(b))
        fine._kept = self._kept = None
        return fine

    def plan(self) -> Tensor:
        """P, written over K: this is the end."""
        left, right = self.a * self.u, self.b * self.v
        for rows in self._parts:
            self.kernel[rows].mul_(left[rows].unsqueeze(-1)).mul_(right.unsqueeze(-2))
        return self.kernel

    def at_hand(self, tensor: Tensor) -> Array:
        """The tensor, or where this is one problem on the CPU the same memory as a numpy array.

        To call an operation then costs a third, and OpenBLAS makes the products: on a processor without AVX-512 up to
        twice as fast as what PyTorch has.
        """
        return tensor.resolve_neg().numpy() if self._alone else tensor

    def _take(self, kernel: Tensor, a: Tensor, b: Tensor, u: Tensor, v: Tensor) -> None:
        """From here on these are written in place, for `hand` is the same memory."""
        self.kernel, self.a, self.b, self.u, self.v = kernel, a, b, u, v
        self._parts = blocks(kernel)
        self._alone = kernel.dim() == 2 and kernel.device.type == "cpu"
        self.hand = Hand(*map(self.at_hand, (kernel, a, b, u, v)))

    def _fill(self) -> None:
        g0, same, parts = self.g0.unsqueeze(-2), self.kernel.dtype == self.cost.dtype, blocks(self.cost)
        whole = self.kernel if same else self._kept
        buffer = torch.empty_like(self.cost[parts[0]]) if whole is None else whole
        plain = not (self.f0.any() or self.g0.any())
        look = plain and self.kernel.dim() == 2
        self._extents: list[tuple[float, float]] = []
        for rows in parts:
            kernel, cost = self.kernel[rows], self.cost[rows]
            exact = buffer[..., : cost.shape[-2], :] if whole is None else whole[rows]
            if plain:
                torch.mul(cost, -1 / self.epsilon, out=exact)
            else:
                torch.sub(self.f0[rows].unsqueeze(-1), cost, out=exact).add_(g0).mul_(1 / self.epsilon)
            if whole is not None:
                exact.exp_()
            if not same:
                kernel.copy_(exact)
            if whole is None:
                kernel.exp_()
            if look:
                seen = self.at_hand(kernel)
                self._extents.append((float(seen.min()), float(seen.max())))
            least, most = LIMITS[kernel.dtype]
            if not (look and least <= self._extents[-1][0] and self._extents[-1][1] <= most):
                for matrix in (kernel,) if same or whole is None else (kernel, exact):
                    matrix.clamp_(*LIMITS[matrix.dtype])


def _beyond(u: Tensor, v: Tensor) -> bool:
    least, most = torch.cat([u, v], -1).aminmax()
    return not (float(least) > math.exp(-REACH) and float(most) < math.exp(REACH))


def looked_at(cost: Tensor, reach: float) -> tuple[float, Tensor]:
    """(max C − min C, the greatest of a batch; whether |C| goes beyond `reach`, (...)).

    Raises: ValueError where the cost is not finite.
    """
    least, most = cost.aminmax() if cost.dim() == 2 else cost.flatten(-2).aminmax(dim=-1)
    spread = float((most - least).max())
    if not math.isfinite(spread):
        raise ValueError("cost must be finite")
    return spread, torch.maximum(most, -least) > reach


def far(cost: Tensor, reach: float) -> bool:
    """Whether |C| of one problem is seen beyond `reach` in three lines: a row, the column and then the row through
    what is greatest, as one finds the diameter of a tree. Where it is not seen it may still be.
    """
    lines: Array = cost.resolve_neg().numpy() if cost.device.type == "cpu" else cost
    column = abs(lines[:, abs(lines[0]).argmax()])
    return bool(column.max() > reach) or bool(abs(lines[column.argmax()]).max() > reach)


def settled(
    cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, epsilon: float, doubtful: Tensor
) -> tuple[Tensor, Tensor]:
    """Potentials from which a `Scaling` may start: f and g, or fᵢ = min_j (Cᵢⱼ − gⱼ) and gⱼ = min_i (Cᵢⱼ − fᵢ).

    The minima are over what has mass. With them no entry of K between lines that have any is above 1, and each of these
    lines has one that is 1. f and g themselves will do where each greatest entry is within e^{±REACH}, or where that is
    not `doubtful`, (...).

    (c-transforms: Peyré & Cuturi 2019, §5.1.)
    """
    if not bool(doubtful.any()):
        return f, g
    rows, columns = _least(cost, g, b), _least(cost.mT, f, a)
    away = torch.maximum((rows - f).abs().amax(-1), (columns - g).abs().amax(-1)) > REACH * epsilon
    away = away & doubtful
    if not bool(away.any()):
        return f, g
    away = away.unsqueeze(-1)
    f = torch.where(away, rows, f)
    g = torch.where(away, _least(cost.mT, f, a), g)
    empty_rows = away & (a == 0)  # g has not seen them
    return torch.where(empty_rows, _least(cost, g, b), f) if bool(empty_rows.any()) else f, g


def _least(cost: Tensor, g: Tensor, b: Tensor) -> Tensor:
    """min_j (Cᵢⱼ − gⱼ) over bⱼ > 0: (..., n, m), (..., m), (..., m) → (..., n)"""
    if not g.any() and bool((b > 0).all()):
        return cost.amin(-1)
    g = torch.where(b > 0, g, -torch.inf).unsqueeze(-2)
    return torch.cat([(cost[rows] - g).amin(-1) for rows in blocks(cost)], -1)


def blocks(matrix: Tensor) -> list[Rows]:
    """Rows of a matrix on the CPU that fit into a cache; of a small one, a batch, and on other devices, all of them."""
    n, m = matrix.shape[-2:]
    size = max(1, BLOCK // (m * matrix.element_size()))
    if size >= n or matrix.dim() > 2 or matrix.device.type != "cpu":
        return [...]
    return [slice(i, min(n, i + size)) for i in range(0, n, size)]


def empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor. A large one on the CPU is of numpy's memory, which asks the system for huge pages.

    At 128 MB these are written for the first time in a seventh of the time.
    """
    if like.device.type != "cpu" or like.nbytes < 1 << 22:
        return torch.empty(like.shape, dtype=dtype, device=like.device)
    kind = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    return torch.from_numpy(np.empty(tuple(like.shape), kind))


def times(matrix: Array, vector: Array) -> Array:
    """Matrix times vector: (..., n, m), (..., m) → (..., n). A batch as rows from the left, by far faster on a CPU."""
    return matrix @ vector if matrix.ndim == 2 else (vector.unsqueeze(-2) @ matrix.mT).squeeze(-2)


def like(array: Array, other: Array) -> Array:
    """The array in the precision of the other; both are `at_hand`."""
    return array.astype(other.dtype) if isinstance(array, np.ndarray) else array.to(other)
