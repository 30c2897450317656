"""What the best linear estimate tells of the noise: all that a Gaussian with the data's mean and covariance has.

x_t = α x₀ + σ ε with α² + σ² = 1, λ = ln α²/σ²; μᵢ are the eigenvalues of the covariance of x₀.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear_mean_squared_error(eigenvalues: Tensor, log_snr: float) -> float:
    """min over affine ε̂ of E‖ε − ε̂(x_t)‖² = Σᵢ e^λ μᵢ/(1 + e^λ μᵢ), which no data of this covariance exceed.

    Along an axis ε and x_t have covariance σ and variances 1 and α²μ + σ², so 1 − σ²/(α²μ + σ²) is left.

    (Wiener 1949; Guo, Shamai & Verdú 2011, Prop. 15.)
    """
    signal = math.exp(log_snr) * eigenvalues
    return float((signal / (1 + signal)).sum())


def linear_bound(eigenvalues: Tensor, least: float, most: float) -> float:
    """½ ∫ of it from λ = `least` to `most` = ½ Σᵢ ln (1 + e^most μᵢ)/(1 + e^least μᵢ), in nats.

    It is the information that x_t at the one level has of x₀ beyond the other, were x₀ Gaussian.

    (Guo, Shamai & Verdú 2005, Thm 1; Cover & Thomas, §9.4.)
    """
    high, low = (torch.log1p(math.exp(level) * eigenvalues).sum() for level in (most, least))
    return 0.5 * float(high - low)
