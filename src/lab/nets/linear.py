"""R linear models trained as one batch dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lab.random import generator, normal
from lab.types import NonNegative, NonNegativeInt, PositiveInt


class ReplicatedLinear(nn.Module):
    """ŷ_ri = x_riᵀ w_r for R independent models.

    They start from w = init_scale · N(0, I); the default is the origin, which lies in the row space of every design.
    """

    def __init__(
        self, replicates: PositiveInt, features: PositiveInt, init_scale: NonNegative = 0.0, seed: NonNegativeInt = 0
    ) -> None:
        super().__init__()
        self.replicates, self.features = replicates, features
        start = normal(generator(seed, "ReplicatedLinear"), replicates, features)
        self.weight = nn.Parameter((init_scale * start).to(torch.get_default_dtype()))  # (R, d)

    def forward(self, x: Tensor) -> Tensor:
        """(R, n, d) → (R, n)"""
        return (x @ self.weight.unsqueeze(-1)).squeeze(-1)
