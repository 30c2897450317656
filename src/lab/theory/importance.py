"""Importance-weighted bounds of an evidence whose posterior is Gaussian, under a proposal of the wrong width."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln


def importance_weighted_bound(samples: int, k: int, width: float) -> float:
    """E ln (1/K) Σᵢ wᵢ ≤ 0 for the weights w = p(z|x)/q(z) of K = `samples` draws: how far the bound is from ln p(x).

    The posterior is N(m, S) in k dimensions, the proposal N(m, s²S) with s = `width` ≥ 1. With z = m + sS^½ε

        ln w = k ln s − ½(s² − 1)‖ε‖²,  ‖ε‖² ~ χ²_k,  E w = 1,

    whatever m and S. ln W = ∫₀^∞ (e^{−t} − e^{−tW}) dt/t (Frullani) turns the logarithm of a mean of independent
    weights into a power:

        E ln (1/K) Σᵢ wᵢ = ∫₀^∞ (e^{−t} − φ(t/K)^K) dt/t,  φ(t) = E e^{−tw}.

    For K = 1 this is −KL(q‖p) = k(ln s − ½(s² − 1)); for K → ∞ it goes to 0 as −Var(w)/2K. Both integrals are taken by
    the trapezoidal rule, in ln t and in ln ½‖ε‖², where it converges faster than any power of the step.

    (Burda, Grosse & Salakhutdinov 2016, Thm 1; Nowozin 2018, Prop. 1.)
    """
    if width == 1:
        return 0.0
    log_y, dy = np.linspace(-80, 6, 1721, retstep=True)  # y = ½‖ε‖² is Gamma(k/2)
    density = dy * np.exp(0.5 * k * log_y - np.exp(log_y) - gammaln(0.5 * k))
    weight = np.exp(k * math.log(width) - (width**2 - 1) * np.exp(log_y))
    end = 60 * max(1.0, width**2 - 1)  # φ falls as t^(−1/(s² − 1))
    log_t, dt = np.linspace(-40, end, round(5 * (end + 40)), retstep=True)
    t = np.exp(log_t)
    phi = np.exp(-np.outer(t / samples, weight)) @ density
    return float(dt * np.sum(np.exp(-t) - phi**samples))
