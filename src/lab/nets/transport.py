"""What neural optimal transport is made of: dual potentials, and an affine generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lab.nets.layers import linear, softplus
from lab.random import generator, normal
from lab.types import NonNegativeInt, PositiveInt


class Potential(nn.Module):
    """f: ℝᵈ → ℝ with two hidden layers of softplus units: as smooth as the potentials of entropic transport are.

    Args:
        name: tells apart the draws of two potentials with the same seed.
    """

    def __init__(self, d: PositiveInt, hidden: PositiveInt = 64, seed: NonNegativeInt = 0, name: str = "f") -> None:
        super().__init__()
        self.d, draw = d, generator(seed, "Potential", name)
        sizes = ((d, hidden), (hidden, hidden), (hidden, 1))
        self.layers = nn.ModuleList(linear(draw, inputs, outputs) for inputs, outputs in sizes)
        self.to(torch.get_default_dtype())

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) → (...)"""
        first, second, last = self.layers
        value: Tensor = last(softplus(second(softplus(first(x)))))
        return value.squeeze(-1)


class AffineMap(nn.Module):
    """x ↦ Tx + t, with T = BBᵀ symmetric and positive semidefinite, or any matrix.

    A symmetric positive semidefinite T makes the map the gradient of the convex ½xᵀTx + tᵀx, and by Brenier's theorem
    only one of those carries one measure to another. Of all matrices many do.

    Args:
        symmetric: T = BBᵀ; else T = B.
    """

    def __init__(self, d: PositiveInt, symmetric: bool = True, seed: NonNegativeInt = 0) -> None:
        super().__init__()
        self.d, self.symmetric = d, symmetric
        draw = generator(seed, "AffineMap")
        self.factor = nn.Parameter(torch.eye(d, dtype=torch.float64, device="cpu") + 0.3 * normal(draw, d, d))
        self.shift = nn.Parameter(torch.zeros(d, device="cpu"))
        self.to(torch.get_default_dtype())

    @property
    def matrix(self) -> Tensor:
        """T, (d, d)"""
        return self.factor @ self.factor.mT if self.symmetric else self.factor

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) → (..., d)"""
        return x @ self.matrix.mT + self.shift


class Histograms(nn.Module):
    """`count` distributions over `bins` places, α = softmax(logits), even at the start."""

    def __init__(self, count: PositiveInt, bins: PositiveInt) -> None:
        super().__init__()
        self.count, self.bins = count, bins
        self.logits = nn.Parameter(torch.zeros(count, bins))

    def forward(self, rows: Tensor) -> Tensor:
        """(r,) → (r, bins)"""
        return self.logits[rows].softmax(-1)
