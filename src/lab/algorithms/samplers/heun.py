"""Heun's method."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lab.algorithms.samplers import Sampler, Velocity
from lab.algorithms.schedules import angle


class Heun(Sampler):
    """x + ½Δφ (v(x, φ) + v(x + Δφ v(x, φ), φ + Δφ)): the trapezoidal rule along Euler's step (Karras et al. 2022)."""

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def step(self, velocity: Velocity, x: Tensor, start: Tensor, stop: Tensor, noise: Tensor | None = None) -> Tensor:
        turn = angle(stop) - angle(start)
        here = velocity(x, start)
        there = velocity(x + turn * here, stop)
        return x + 0.5 * turn * (here + there)
