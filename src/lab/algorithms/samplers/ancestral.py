"""Ancestral sampling, the sampler of denoising diffusion probabilistic models."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lab.algorithms.samplers import Sampler, Velocity
from lab.algorithms.schedules import signal_and_noise


def posterior(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, s) of q(x_stop | x_start, x₀) = N(a x_start + b x₀, s²): the step that an exact x₀ would allow.

    With c = 1 − e^{λ_start − λ_stop}: a = (1 − c) α_stop/α_start, b = c α_stop, s² = c σ_stop².

    (Ho, Jain & Abbeel 2020, eq. 7; Kingma et al. 2021, eq. 32.)
    """
    (alpha, _), (alpha_to, sigma_to) = signal_and_noise(start), signal_and_noise(stop)
    c = -torch.expm1(start - stop)
    return (1 - c) * alpha_to / alpha, c * alpha_to, c.sqrt() * sigma_to


class Ancestral(Sampler):
    """x_stop ~ q(x_stop | x_start, x̂₀), x̂₀ what the network takes the data to be (Ho, Jain & Abbeel 2020, Alg. 2)."""

    order: ClassVar[int] = 1
    random: ClassVar[bool] = True

    def step(self, velocity: Velocity, x: Tensor, start: Tensor, stop: Tensor, noise: Tensor | None = None) -> Tensor:
        assert noise is not None
        a, b, s = posterior(start, stop)
        alpha, sigma = signal_and_noise(start)
        return a * x + b * (alpha * x - sigma * velocity(x, start)) + s * noise
