"""How much noise there is when: the log signal-to-noise ratio λ of x_t = α x₀ + σ ε as a function of time t ∈ [0, 1].

With α² + σ² = 1 (variance preserving) all there is to know of a noise level is λ = ln α²/σ², or the angle φ of
α = cos φ, σ = sin φ.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lab.errors import Refusal


def signal_and_noise(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(α, σ) = (√sigmoid(λ), √sigmoid(−λ))"""
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def angle(log_snr: Tensor) -> Tensor:
    """φ = atan(σ/α) = atan(e^{−λ/2}), from 0 (data) to π/2 (noise)."""
    return (-0.5 * log_snr).exp().atan()


class Schedule(ABC):
    """λ falls from `most` at t = 0 (data) to `least` at t = 1 (noise).

    The bound of the likelihood in continuous time depends on a schedule through `least` and `most` alone; how λ falls
    between them says where training looks and how a sampler's steps are spread (Kingma et al. 2021, §5.1).

    Args:
        least: λ at which data are taken to be noise: what is left of them, e^{least} of the variance, is ignored.
        most: λ at which the data are taken to be clean.
    """

    def __init__(self, least: float = -6.0, most: float = 8.0) -> None:
        if least >= most:
            raise Refusal(f"least={least} must be below most={most}: noise grows with time")
        self.least, self.most = least, most

    @property
    def span(self) -> float:
        """Λ = most − least"""
        return self.most - self.least

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """λ(t)"""

    @abstractmethod
    def speed(self, t: Tensor) -> Tensor:
        """−λ'(t) > 0"""

    def levels(self, steps: int) -> Tensor:
        """λ at `steps` + 1 evenly spaced times from noise (t = 1) to data (t = 0), in float64."""
        return self.log_snr(torch.linspace(1, 0, steps + 1, dtype=torch.float64))


class Linear(Schedule):
    """λ falls linearly: every signal-to-noise ratio is looked at equally often (Kingma et al. 2021, App. B)."""

    def log_snr(self, t: Tensor) -> Tensor:
        return self.most - self.span * t

    def speed(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.span)


class Cosine(Schedule):
    """The angle φ grows linearly, λ = −2 ln tan φ (Nichol & Dhariwal 2021, §3.2; Kingma & Gao 2023, Table 1)."""

    def _angle(self, t: Tensor) -> tuple[Tensor, float]:
        start, stop = (math.atan(math.exp(-0.5 * level)) for level in (self.most, self.least))
        return start + (stop - start) * t, stop - start

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * self._angle(t)[0].tan().log()

    def speed(self, t: Tensor) -> Tensor:
        phi, rate = self._angle(t)
        return 4 * rate / (2 * phi).sin()
