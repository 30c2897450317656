"""Gaussian mixtures seen through Gaussian noise: x_t = α x₀ + σ ε, x₀ ~ Σₖ πₖ N(mₖ, Cₖ), ε ~ N(0, I_d).

α² = 1/(1 + e^{−λ}) and σ² = 1/(1 + e^λ), λ = ln α²/σ² being the log signal-to-noise ratio `log_snr`. With noise a
mixture stays a mixture, so the score, the best guess of the noise and, in the plane, all expectations of them are
known. Entropies and densities are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Mixture(NamedTuple):
    """Σₖ πₖ N(mₖ, Cₖ), in float64 (Bishop, PRML, §2.3.9).

    weights: πₖ > 0 with sum 1, (K,). means: (K, d). covariances: (K, d, d).
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor


def _variances(log_snr: float) -> tuple[float, float]:
    """(α², σ²)"""
    return 1 / (1 + math.exp(-log_snr)), 1 / (1 + math.exp(log_snr))


def with_noise(law: Mixture, log_snr: float) -> Mixture:
    """The law of x_t = α x₀ + σ ε: Σₖ πₖ N(α mₖ, α² Cₖ + σ² I) (Song & Ermon 2019, §2)."""
    signal, noise = _variances(log_snr)
    identity = torch.eye(law.means.shape[1], dtype=law.means.dtype)
    return Mixture(law.weights, math.sqrt(signal) * law.means, signal * law.covariances + noise * identity)


def blurred(law: Mixture, log_snr: float) -> Mixture:
    """The law of x_t/α = x₀ + e^{−λ/2} ε: Σₖ πₖ N(mₖ, Cₖ + e^{−λ} I) (Song & Ermon 2019, §2)."""
    identity = torch.eye(law.means.shape[1], dtype=law.means.dtype)
    return Mixture(law.weights, law.means, law.covariances + math.exp(-log_snr) * identity)


def _components(law: Mixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """(ln πₖ N(x; mₖ, Cₖ) (n, K), Cₖ⁻¹(mₖ − x) (n, K, d))."""
    d = law.means.shape[1]
    apart = law.means - x.unsqueeze(-2)  # (n, K, d)
    pull = (law.covariances.inverse() @ apart.unsqueeze(-1)).squeeze(-1)
    log_density = -0.5 * ((apart * pull).sum(-1) + law.covariances.logdet() + d * math.log(2 * math.pi))
    return law.weights.log() + log_density, pull


def log_density(law: Mixture, x: Tensor) -> Tensor:
    """ln p(x) = ln Σₖ πₖ N(x; mₖ, Cₖ). (n, d) → (n,)  (Bishop, PRML, §2.3.9, eq. 2.188)"""
    return _components(law, x)[0].logsumexp(-1)


def score(law: Mixture, x: Tensor) -> Tensor:
    """∇ ln p(x) = Σₖ rₖ(x) Cₖ⁻¹ (mₖ − x), rₖ ∝ πₖ N(x; mₖ, Cₖ). (n, d) → (n, d)  (Bishop, PRML, §9.2.2)"""
    joint, pull = _components(law, x)
    return (joint.softmax(-1).unsqueeze(-1) * pull).sum(-2)


def expected_noise(law: Mixture, x: Tensor, log_snr: float) -> Tensor:
    """E[ε | x_t = x] = −σ ∇ ln p_t(x): the best guess of the noise in x. (n, d) → (n, d)

    (Tweedie's formula; Robbins 1956; Efron 2011, eq. 2.8.)
    """
    return -math.sqrt(_variances(log_snr)[1]) * score(with_noise(law, log_snr), x)


def _plane(law: Mixture, resolution: float) -> Iterator[tuple[Tensor, float]]:
    """A grid over all of a law in the plane, in parts: (points (n, 2), area of each).

    Its spacing is the narrowest width of a component over `resolution`, its edge 9 widths beyond every component.
    """
    assert law.means.shape[1] == 2
    variances = torch.linalg.eigvalsh(law.covariances)  # (K, 2)
    spacing = float(variances.min().sqrt()) / resolution
    reach = 9 * variances.max().sqrt()
    low, high = law.means.amin(0) - reach, law.means.amax(0) + reach
    sides = zip(low.tolist(), high.tolist(), strict=True)
    axes = [torch.arange(start, stop + spacing, spacing, dtype=torch.float64) for start, stop in sides]
    for column in axes[0].split(64):
        yield torch.cartesian_prod(column, axes[1]), spacing**2


def minimum_mean_squared_error(law: Mixture, log_snr: float, resolution: float = 3.0) -> float:
    """E‖ε − E[ε|x_t]‖² = d − E‖E[ε|x_t]‖², the floor of every denoising loss, for d = 2.

    The expectation is a sum over a grid, the trapezoidal rule, whose error falls as exp(−2π²r²) in the points r =
    `resolution` per width of the narrowest component: below 10⁻¹² at 2 already, for components that are Gaussian; of
    the ratios between them the tests show less than 10⁻⁹ at 3.

    (Orthogonality of the conditional mean: Guo, Shamai & Verdú 2005, eq. 6; Trefethen & Weideman 2014, Thm 5.1.)
    """
    noisy = with_noise(law, log_snr)
    explained = sum(
        float((log_density(noisy, x).exp() * expected_noise(law, x, log_snr).square().sum(-1)).sum() * area)
        for x, area in _plane(noisy, resolution)
    )
    return law.means.shape[1] - explained


def entropy(law: Mixture, resolution: float = 3.0) -> float:
    """h = −∫ p ln p dx of a law in the plane, by the trapezoidal rule as above.

    (Cover & Thomas, §8.1; Trefethen & Weideman 2014, Thm 5.1.)
    """
    total = 0.0
    for x, area in _plane(law, resolution):
        log_p = log_density(law, x)
        total -= float((log_p.exp() * log_p).sum() * area)
    return total


def relative_score_error(nats: float, log_snr_span: float, explained: float) -> float:
    """√(2·nats/(Λ E‖E[ε|x_t]‖²)): the relative L² error of the score that, at all noise levels, costs so many nats.

    The path measures of the true and the learned reverse diffusion are KL = ½ ∫ E‖ε̂ − E[ε|x_t]‖² dλ apart, λ the
    log-SNR, which bounds what the learned density loses. Spread evenly over a span Λ of λ it is
    E‖ε̂ − E[ε|x_t]‖² = 2·nats/Λ at each level, and the score is −E[ε|x_t]/σ.

    (Song, Durkan, Murray & Ermon 2021, Thm 1; Kingma, Salimans, Poole & Ho 2021, eq. 18.)
    """
    return math.sqrt(2 * nats / (log_snr_span * explained))
