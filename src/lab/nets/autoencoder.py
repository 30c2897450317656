"""Linear autoencoders."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lab.errors import Refusal
from lab.random import generator, normal
from lab.types import NonNegativeInt, PositiveInt


class LinearAutoencoder(nn.Module):
    """x̂ = D φ(E x): encoder E (k×d), decoder D (d×k), φ the identity (or ReLU, which is no longer PCA)."""

    def __init__(
        self,
        d: PositiveInt,
        k: PositiveInt,
        activation: Literal["identity", "relu"] = "identity",
        seed: NonNegativeInt = 0,
    ) -> None:
        if k >= d:
            raise Refusal(f"k={k} must be less than d={d}: as many codes as inputs leave nothing to discard")
        super().__init__()
        self.d, self.k = d, k
        draw = generator(seed, "LinearAutoencoder")
        self.encoder = nn.Parameter(normal(draw, k, d) / math.sqrt(d))
        self.decoder = nn.Parameter(normal(draw, d, k) / math.sqrt(d))
        self.activation = torch.relu if activation == "relu" else nn.Identity()
        self.to(torch.get_default_dtype())

    def forward(self, x: Tensor) -> Tensor:
        """(B, d) → (B, d)"""
        return self.activation(x @ self.encoder.mT) @ self.decoder.mT


class OrderedAutoencoder(nn.Module):
    """Tied weights W (d×k), codes z = Wᵀx in an order: code i is worth keeping only after codes 1 … i−1."""

    def __init__(self, d: PositiveInt, k: PositiveInt, seed: NonNegativeInt = 0) -> None:
        if k > d:
            raise Refusal(f"k={k} must be at most d={d}: there are no more directions")
        super().__init__()
        self.d, self.k = d, k
        draw = generator(seed, "OrderedAutoencoder")
        start = normal(draw, d, k) / math.sqrt(d)
        self.weight = nn.Parameter(start.to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, d) → codes (B, k)"""
        return x @ self.weight
