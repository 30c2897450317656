"""Euler's method."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lab.algorithms.samplers import Sampler, Velocity
from lab.algorithms.schedules import angle


class Euler(Sampler):
    """x + Δφ v(x, φ): the probability-flow ODE in the angle φ by straight lines (Song et al. 2021, §4.3)."""

    order: ClassVar[int] = 1

    def step(self, velocity: Velocity, x: Tensor, start: Tensor, stop: Tensor, noise: Tensor | None = None) -> Tensor:
        return x + (angle(stop) - angle(start)) * velocity(x, start)
