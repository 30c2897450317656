"""Least squares, the pseudoinverse and gradient descent on a quadratic.

Notation: A (n×d) has the samples as rows, y (n) the targets, ŵ the least-squares solution, λ₁ ≥ … ≥ λ_d the
eigenvalues of AᵀA/n and κ = λ₁/λ_d. Every function takes leading batch dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares_solution(a: Tensor, y: Tensor) -> Tensor:
    """ŵ = A⁺y: the minimiser of ‖Aw − y‖², the one of least norm when there are many.

    (Strang, Introduction to Linear Algebra, ch. 4 and 7: orthogonality, pseudoinverse.)

    Args:
        a: (..., n, d). Rows of zeros, with y = 0 there, change nothing.
        y: (..., n).

    Returns: (..., d)
    """
    return torch.linalg.lstsq(a, y.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)


def optimal_step(largest: Tensor, smallest: Tensor) -> Tensor:
    """η* = 2/(λ₁ + λ_d), the fixed step under which the slowest mode of gradient descent contracts fastest.

    (Boyd & Vandenberghe, Convex Optimization, §9.3; Polyak, Introduction to Optimization, §1.4.)
    """
    return 2 / (largest + smallest)


def contraction(condition_number: Tensor) -> Tensor:
    """ρ = (κ − 1)/(κ + 1): the factor by which ‖w_t − ŵ‖ shrinks a step under η*.

    Under η* the modes of λ₁ and λ_d shrink by |1 − η*λ| = (κ − 1)/(κ + 1), all others by less, so ρ bounds every step
    and is reached as t → ∞.

    (Boyd & Vandenberghe, §9.3.)
    """
    return (condition_number - 1) / (condition_number + 1)


def excess_risk(noise: float, d: int, n: Tensor) -> Tensor:
    """E (ŵ − w*)ᵀΣ(ŵ − w*) = σ² d/(n − d − 1) for Gaussian design, n > d + 1, whatever Σ.

    Conditionally on A the covariance of ŵ is σ²(AᵀA)⁻¹; Σ^½(AᵀA)⁻¹Σ^½ is inverse Wishart with mean I/(n − d − 1).

    (Hastie, Montanari, Rosset & Tibshirani 2022, §2; Anderson, Multivariate Statistical Analysis, §7.7.)
    """
    if int(n.min()) <= d + 1:
        raise ValueError(f"the mean excess risk is finite only for n > d + 1 = {d + 1}, not n = {int(n.min())}")
    return noise**2 * d / (n - d - 1)


def excess_risk_variance(noise: float, d: int, n: Tensor) -> Tensor:
    """Var (ŵ − w*)ᵀΣ(ŵ − w*) = m²·2(n − 1)/(d(n − d − 3)) for Gaussian design, m = σ²d/(n − d − 1) its mean, n > d + 3.

    Given A, Σ^½(ŵ − w*) = σW^{−½}g with W = Σ^{−½}AᵀAΣ^{−½} white Wishart and g ~ N(0, I_d) independent of it, so the
    risk is Hotelling's σ²gᵀW⁻¹g = σ² χ²_d/χ²_{n−d+1}, numerator and denominator independent. With
    E χ²_d = d, E χ⁴_d = d(d + 2), E 1/χ²_q = 1/(q − 2), E 1/χ⁴_q = 1/((q − 2)(q − 4)) and q = n − d + 1 this is it.

    (Anderson, Multivariate Statistical Analysis, §5.2.)
    """
    if int(n.min()) <= d + 3:
        raise ValueError(f"the variance is finite only for n > d + 3 = {d + 3}, not n = {int(n.min())}")
    mean: Tensor = excess_risk(noise, d, n)
    return mean.square() * 2 * (n - 1) / (d * (n - d - 3))
