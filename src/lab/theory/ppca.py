"""Probabilistic PCA: z ~ N(0, I_k), x|z ~ N(Wz + μ, σ²I_d), at its maximum of likelihood on a sample.

Notation: λ₁ ≥ … ≥ λ_d the eigenvalues of the sample covariance XᵀX/n (X centred), U_k the first k eigenvectors. The
maximum is at μ = mean of the sample, W = U_k(Λ_k − σ²I)^½R with any rotation R. Likelihoods are means over the sample,
in nats.
"""

from __future__ import annotations

import math

from torch import Tensor


def noise_variance(eigenvalues: Tensor, k: int) -> Tensor:
    """σ² = (1/(d − k)) Σ_{i>k} λᵢ: what the model cannot explain, spread evenly over the d − k directions left.

    (Tipping & Bishop 1999, eq. 8.)
    """
    return eigenvalues[k:].mean()


def maximum_log_likelihood(eigenvalues: Tensor, k: int) -> Tensor:
    """(1/n) Σ ln p(x) = −½ (d ln 2π + Σ_{i≤k} ln λᵢ + (d − k) ln σ² + d).

    With C = WWᵀ + σ²I = U diag(λ₁, …, λ_k, σ², …, σ²) Uᵀ it is −½ (d ln 2π + ln|C| + tr C⁻¹S), and tr C⁻¹S = d.

    (Tipping & Bishop 1999, eq. 4 and 9; Bishop, PRML, §12.2.1.)
    """
    d, sigma2 = len(eigenvalues), noise_variance(eigenvalues, k)
    return -0.5 * (d * math.log(2 * math.pi) + eigenvalues[:k].log().sum() + (d - k) * sigma2.log() + d)
