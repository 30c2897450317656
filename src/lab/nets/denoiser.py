"""Networks in the plane that are told how much noise there is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lab.nets.layers import linear, waves
from lab.random import generator
from lab.types import NonNegativeInt, PositiveInt


class MLPDenoiser(nn.Module):
    """v(x, λ): `layers` hidden layers of SiLU units; the log-SNR λ enters the first as waves of periods 40, 40/2, ….

    Args:
        d: dimensions of x.
        periods: of λ, how many.
    """

    def __init__(
        self,
        d: PositiveInt = 2,
        hidden: PositiveInt = 64,
        layers: PositiveInt = 3,
        periods: PositiveInt = 8,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.d = d
        draw = generator(seed, "MLPDenoiser")
        self.place = linear(draw, d, hidden)
        self.level = linear(draw, 2 * periods, hidden)
        self.hidden = nn.Sequential(*(linear(draw, hidden, hidden) for _ in range(layers - 1)))
        self.output = linear(draw, hidden, d)
        frequencies = 2 * math.pi / 40 * torch.arange(1, periods + 1, device="cpu")
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.to(torch.get_default_dtype())

    frequencies: Tensor

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """(n, d), (n,) → (n, d)"""
        h = nn.functional.silu(self.place(x) + self.level(waves(log_snr, self.frequencies)))
        for layer in self.hidden:
            h = nn.functional.silu(layer(h))
        return self.output(h)
