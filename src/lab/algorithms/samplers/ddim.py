"""Denoising diffusion implicit models, without noise."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lab.algorithms.samplers import Sampler, Velocity
from lab.algorithms.schedules import angle


class DDIM(Sampler):
    """α' x̂₀ + σ' ε̂ at the new (α', σ') = x cos Δφ + v sin Δφ: exact where x̂₀ and ε̂ stay what they are.

    (Song, Meng & Ermon 2021, eq. 12 with η = 0; as a rotation: Salimans & Ho 2022, eq. 19.)
    """

    order: ClassVar[int] = 1

    def step(self, velocity: Velocity, x: Tensor, start: Tensor, stop: Tensor, noise: Tensor | None = None) -> Tensor:
        turn = angle(stop) - angle(start)
        return turn.cos() * x + turn.sin() * velocity(x, start)
