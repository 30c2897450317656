"""From noise to data: one step of a sampler a file, each class states its order.

A sampler sees the network as the velocity v = α ε̂ − σ x̂₀ of the probability-flow ODE: with the angle φ of α = cos φ,
σ = sin φ it reads dx/dφ = v(x, φ), without singularity at either end (Salimans & Ho 2022, App. D). In terms of v the
data are x̂₀ = α x − σ v and the noise is ε̂ = σ x + α v.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from lab.algorithms.schedules import signal_and_noise
from lab.random import normal

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x (n, ...), log-SNR λ ()) → v (n, ...)"""


class Sampler(ABC):
    """One step of a sampler."""

    order: ClassVar[int]
    """p: with N steps the law that is sampled is off by O(N⁻ᵖ)."""
    evaluations: ClassVar[int] = 1
    """Of the network, a step."""
    random: ClassVar[bool] = False
    """Whether a step draws noise."""

    @abstractmethod
    def step(self, velocity: Velocity, x: Tensor, start: Tensor, stop: Tensor, noise: Tensor | None = None) -> Tensor:
        """x at log-SNR `stop` from x at log-SNR `start`. (n, ...) → (n, ...)

        Args:
            noise: N(0, 1) of the shape of x, for a sampler that is random.
        """


@torch.no_grad()
def sample(
    sampler: Sampler, velocity: Velocity, x: Tensor, levels: Tensor, draw: torch.Generator | None = None
) -> Tensor:
    """Take x from log-SNR `levels[0]` through all of `levels`. (n, ...) → (n, ...)

    Args:
        levels: (N + 1,), in the order in which they are passed through: rising towards data.
        draw: of the noise of a random sampler, on the CPU: the same on every device.
    """
    levels = levels.to(x)
    for start, stop in itertools.pairwise(levels):
        noise = normal(draw, *x.shape).to(x) if sampler.random and draw is not None else None
        x = sampler.step(velocity, x, start, stop, noise)
    return x


@torch.no_grad()
def denoised(velocity: Velocity, x: Tensor, level: Tensor) -> Tensor:
    """x̂₀ = α x − σ v: what the network takes the data to be. (n, ...) → (n, ...)"""
    level = level.to(x)
    alpha, sigma = signal_and_noise(level)
    return alpha * x - sigma * velocity(x, level)
