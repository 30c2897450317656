"""Variational autoencoders: a Gaussian encoder q(z|x) = N(m(x), diag v(x)) and a decoder whose output p(x|z) reads."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from lab.errors import Refusal
from lab.nets.likelihoods import Bernoulli, Gaussian
from lab.random import generator, normal, uniform
from lab.types import NonNegativeInt, Positive, PositiveInt


class LinearVAE(nn.Module):
    """q(z|x) = N(Vx, diag v), p(x|z) = N(Wz, σ²I), for centred x: encoder V (k×d), decoder W (d×k), v (k) without x.

    Kept are sV, W/s and ln v, with s = `scale` the standard deviation along the data's longest axes: so all that is
    learned is of the size that a step of the optimiser is. σ² starts at s², from where it falls below one axis after
    another; from below, the axes would come in no good order.
    """

    def __init__(
        self,
        d: PositiveInt,
        k: PositiveInt,
        scale: Positive = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        if k >= d:
            raise Refusal(
                f"k={k} must be less than d={d}: where nothing is discarded σ² is 0 and the evidence infinite"
            )
        super().__init__()
        self.d, self.k, self.scale, self.likelihood = d, k, scale, Gaussian(scale**2)
        draw = generator(seed, "LinearVAE")
        self.encoder = nn.Parameter(normal(draw, k, d) / math.sqrt(d))
        self.decoder = nn.Parameter(normal(draw, d, k) / math.sqrt(d))
        self.log_variance = nn.Parameter(torch.zeros(k, device="cpu"))
        self.to(torch.get_default_dtype())

    @property
    def weight(self) -> Tensor:
        """W, (d, k)"""
        return self.scale * self.decoder

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log-variance) of q(z|x): (B, d) → (B, k), (B, k)"""
        mean = x @ (self.encoder / self.scale).mT
        return mean, self.log_variance.expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        """(..., k) → (..., d)"""
        return z @ self.weight.mT


class MLPVAE(nn.Module):
    """Encoder and decoder with one hidden layer each: d → hidden → (k, k) and k → hidden → d.

    Weights and biases start uniform within ±1/√inputs, as `torch.nn.Linear` has them.

    Args:
        likelihood: what the decoder's output means.
        scale: the size of a pixel; what enters is divided by it. A Gaussian decoder's output is multiplied by it.
    """

    def __init__(
        self,
        d: PositiveInt,
        k: PositiveInt,
        likelihood: Gaussian | Bernoulli,
        hidden: PositiveInt = 400,
        activation: Literal["relu", "tanh"] = "relu",
        scale: Positive = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.d, self.k, self.scale, self.likelihood = d, k, scale, likelihood
        draw = generator(seed, "MLPVAE")
        self.activation = torch.relu if activation == "relu" else torch.tanh
        self.encoder = _linear(draw, d, hidden)
        self.posterior = _linear(draw, hidden, 2 * k)  # mean and log-variance side by side: one product
        self.decoder = _linear(draw, k, hidden)
        self.output = _linear(draw, hidden, d)
        self.to(torch.get_default_dtype())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log-variance) of q(z|x): (B, d) → (B, k), (B, k)"""
        if self.scale != 1:
            x = x / self.scale
        mean, log_variance = self.posterior(self.activation(self.encoder(x))).chunk(2, -1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """(..., k) → (..., d)"""
        output = self.output(self.activation(self.decoder(z)))
        return output * self.scale if self.scale != 1 else output


def _linear(draw: Generator, inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device="meta")
    for name, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
        setattr(layer, name, nn.Parameter((2 * uniform(draw, *shape) - 1) / math.sqrt(inputs)))
    return layer
