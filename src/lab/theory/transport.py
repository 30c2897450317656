"""Optimal transport: between Gaussians in closed form, exact on discrete measures, and Sinkhorn's rates.

The cost is ‖x − y‖² where points are given, else any matrix C. The regularised problem is min_P ⟨P, C⟩ + ε KL(P ‖ αβ).
Gaussians are N(m₁, A) and N(m₂, B) in d dimensions; σ² = ε/2 and D = (4A^½BA^½ + σ⁴I)^½.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

Matrix = NDArray[np.float64]


def root(a: Tensor) -> Tensor:
    """The symmetric positive semidefinite square root A^½. (Horn & Johnson, Matrix Analysis, Thm 7.2.6.)"""
    values, vectors = torch.linalg.eigh(a)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


# ------------------------------------------------------------------------------------------------ Gaussians, ε = 0


def bures_wasserstein(m1: Tensor, a: Tensor, m2: Tensor, b: Tensor) -> Tensor:
    """W₂² = ‖m₁ − m₂‖² + tr A + tr B − 2 tr (A^½BA^½)^½.

    (Dowson & Landau 1982; Givens & Shortt 1984; Peyré & Cuturi 2019, eq. 2.41.)
    """
    half = root(a)
    return (m1 - m2).square().sum() + a.trace() + b.trace() - 2 * root(half @ b @ half).trace()


def monge_map(m1: Tensor, a: Tensor, m2: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(T, t) of the optimal map x ↦ Tx + t: T = A^{−½}(A^½BA^½)^½A^{−½}, t = m₂ − Tm₁.

    T is symmetric positive definite, so the map is the gradient of a convex function, and TAT = B; Brenier's theorem
    says that there is one such map only and that it is optimal.

    (Peyré & Cuturi 2019, eq. 2.40 and Thm 2.1.)
    """
    half = root(a)
    inverse = torch.linalg.inv(half)
    t = inverse @ root(half @ b @ half) @ inverse
    return t, m2 - t @ m1


# ------------------------------------------------------------------------------------------------ Gaussians, ε > 0


def cross_covariance(a: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """Cov(x, y) = ½(A^½ D A^{−½} − σ²I) under the optimal plan, which is Gaussian.

    Among Gaussian plans of cross-covariance C the problem is min −2 tr C − σ² ln det(I − A⁻¹CB⁻¹Cᵀ); in one dimension
    2C² + εC − 2AB = 0 at its minimum.

    (Janati, Muzellec, Peyré & Cuturi 2020, Thm 1.)
    """
    half, sigma2 = root(a), epsilon / 2
    d = root(4 * half @ b @ half + sigma2**2 * torch.eye(len(a), dtype=a.dtype))
    return 0.5 * (half @ d @ torch.linalg.inv(half) - sigma2 * torch.eye(len(a), dtype=a.dtype))


def gaussian_entropic_cost(m1: Tensor, a: Tensor, m2: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """OT_ε = ‖m₁ − m₂‖² + tr A + tr B − tr D + dσ²(1 − ln 2σ²) + σ² ln det(D + σ²I).

    In one dimension with C = (D − σ²)/2 the terms after tr A + tr B are −2C − σ² ln(1 − C²/AB), where AB − C² = σ²C at
    the minimum, so 1 − C²/AB = σ²/(C + σ²) = 2σ²/(D + σ²).

    (Janati, Muzellec, Peyré & Cuturi 2020, Thm 1, with ε = 2σ².)
    """
    half, sigma2, identity = root(a), epsilon / 2, torch.eye(len(a), dtype=a.dtype)
    d = root(4 * half @ b @ half + sigma2**2 * identity)
    plain = (m1 - m2).square().sum() + a.trace() + b.trace() - d.trace()
    return plain + len(a) * sigma2 * (1 - math.log(2 * sigma2)) + sigma2 * torch.logdet(d + sigma2 * identity)


def gaussian_potential(m1: Tensor, a: Tensor, m2: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(F, δ) of the potential f(x) = (x − m₁)ᵀF(x − m₁) + 2δᵀ(x − m₁) + constant: F = I − σ²((A − CB⁻¹Cᵀ)⁻¹ − A⁻¹).

    (f ⊕ g − c)/ε is the log ratio of the Gaussian plan to the product, whose quadratic form in x is −½ of the xx block
    of the inverse covariance less A⁻¹; δ = m₁ − m₂ is what is left of the cost once both are centred.

    (Janati, Muzellec, Peyré & Cuturi 2020, Thm 1.)
    """
    c = cross_covariance(a, b, epsilon)
    conditional = a - c @ torch.linalg.inv(b) @ c.mT
    f = torch.eye(len(a), dtype=a.dtype) - epsilon / 2 * (torch.linalg.inv(conditional) - torch.linalg.inv(a))
    return f, m1 - m2


def gaussian_rate(variance: float, other: float, epsilon: float) -> float:
    """ρ = r² for two Gaussians on the line, r = ((4AB + σ⁴)^½ − σ²)/2√(AB) the correlation under the optimal plan.

    y ↦ E[h(y) | x] between the two marginals of a Gaussian plan has the singular values rᵏ, on Hermite polynomials
    (Mehler), so σ₂ = r in `knight_rate`.

    (Mehler 1866; Knight 2008.)
    """
    product, sigma2 = variance * other, epsilon / 2
    r = (math.sqrt(4 * product + sigma2**2) - sigma2) / (2 * math.sqrt(product))
    return r**2


# ------------------------------------------------------------------------------------------------- discrete measures


def wasserstein(x: Matrix, y: Matrix) -> float:
    """W₂ = (min_π (1/n) Σᵢ ‖xᵢ − y_π(i)‖²)^½ of two samples of one size: a permutation is optimal. (n, d), (n, d)

    (Birkhoff 1946; Peyré & Cuturi 2019, Prop. 2.1.)
    """
    cost = cdist(x, y, "sqeuclidean")
    return float(cost[linear_sum_assignment(cost)].mean() ** 0.5)


def exact_cost(cost: Matrix, a: Matrix, b: Matrix) -> float:
    """min ⟨P, C⟩ over plans, by the network simplex of POT. (Bonneel, van de Panne, Paris & Heidrich 2011, §5.)"""
    import ot

    return float(ot.emd2(a, b, cost, numItermax=10_000_000))


def entropic_gap(a: Matrix, b: Matrix, epsilon: float) -> float:
    """ε min(H(a), H(b)) ≤ ε ln n: the most by which ⟨P_ε, C⟩ is above min ⟨P, C⟩, and OT_ε as well.

    With P₀ an exact plan ⟨P_ε, C⟩ + ε KL(P_ε‖abᵀ) ≤ ⟨P₀, C⟩ + ε KL(P₀‖abᵀ), and KL(P₀‖abᵀ) is the mutual information
    of two variables with entropies H(a) and H(b).

    (Peyré & Cuturi 2019, §4.1; Cover & Thomas, §2.4.)
    """
    return epsilon * min(float(special.entr(a).sum()), float(special.entr(b).sum()))


def debiased_barycentre(images: Matrix, cost: Matrix, mixtures: Matrix, epsilon: float) -> Matrix:
    """argmin_α Σ_k λ_k S_ε(α, β_k) for each mixture λ: (k, n), (n, n), (r, k) → (r, n).

    The fixed point of a_k = β_k/(K b_k), α = d Π_k (Kᵀa_k)^{λ_k}, b_k = α/Kᵀa_k, d = √(d α/(K d)), with K = exp(−C/ε).

    (Janati, Cuturi & Gramfort 2020, Alg. 1 and Thm 3.)
    """
    kernel = np.exp(-cost / epsilon)
    b = np.ones((len(mixtures), *images.shape))
    d = np.ones((len(mixtures), images.shape[1]))
    alpha = d
    for _ in range(20_000):
        spread = (images / (b @ kernel.T)) @ kernel
        last, alpha = alpha, d * np.exp((mixtures[..., None] * np.log(spread)).sum(1))
        if np.abs(alpha - last).max() < 1e-12:
            break
        b = alpha[:, None] / spread
        d = np.sqrt(d * alpha / (d @ kernel))
    return alpha / alpha.sum(-1, keepdims=True)


def knight_rate(cost: Matrix, a: Matrix, b: Matrix, epsilon: float) -> float:
    """ρ = σ₂², σ₂ the second singular value of diag(a)^{−½} P diag(b)^{−½}, P the optimal plan: the asymptotic rate.

    One iteration, linearised at the solution, is diag(b)⁻¹Pᵀ diag(a)⁻¹P, whose eigenvalues are the squares of the
    singular values; the first, 1, is the constant that the potentials are free in. P is computed by Newton's method.

    (Knight 2008, Thm 4.4; Peyré & Cuturi 2019, Rem. 4.15.)
    """
    plan = newton_plan(cost, a, b, epsilon)
    return float(np.linalg.svd(plan / np.sqrt(np.outer(a, b)), compute_uv=False)[1] ** 2)


def newton_plan(cost: Matrix, a: Matrix, b: Matrix, epsilon: float) -> Matrix:
    """The optimal plan by damped Newton on the dual: no iteration of Sinkhorn's.

    The Hessian of the negative dual, times ε, is [diag P1, P; Pᵀ, diag Pᵀ1]; g_m = 0 takes out its null vector. The
    regularisation falls to ε in steps, each solution starting the next.

    (Brauer, Clason, Lorenz & Wirth 2017.)
    """
    m = cost.shape[1]
    target = np.concatenate([a, b])[:-1]
    z = np.concatenate([cost @ b, np.zeros(m - 1)])
    level = max(epsilon, float(np.ptp(cost)))
    while True:
        z, plan = _newton(cost, a, b, level, z, target)
        if level == epsilon:
            return plan
        level = max(epsilon, level / 2)


def _newton(cost: Matrix, a: Matrix, b: Matrix, epsilon: float, z: Matrix, target: Matrix) -> tuple[Matrix, Matrix]:
    n = len(a)
    log_product = np.log(np.outer(a, b))

    def state(z: Matrix) -> tuple[Matrix, float]:
        potentials = z[:n, None] + np.append(z[n:], 0)[None, :]
        with np.errstate(over="ignore"):
            plan = np.exp(log_product + (potentials - cost) / epsilon)
        return plan, float(epsilon * plan.sum() - target @ z)

    plan, value = state(z)
    for _ in range(200):
        rows, columns = plan.sum(1), plan.sum(0)
        residual = target - np.concatenate([rows, columns])[:-1]
        if np.abs(residual).sum() < 1e-13:
            break
        hessian = np.diag(np.concatenate([rows, columns])[:-1])
        hessian[:n, n:] = plan[:, :-1]
        hessian[n:, :n] = plan[:, :-1].T
        step, size = epsilon * np.linalg.solve(hessian, residual), 1.0
        decrease = float(residual @ step)
        while size > 1e-8:
            candidate, lower = state(z + size * step)
            if lower <= value - 1e-4 * size * decrease + 1e-14 * abs(value):
                break
            size /= 2
        z, plan, value = z + size * step, candidate, lower
    return z, plan


def birkhoff_rate(cost: Matrix, epsilon: float) -> float:
    """tanh²(Δ/4), Δ = max (C_ik + C_jl − C_jk − C_il)/ε: a step is at most so many times the one before.

    Steps are measured in Hilbert's metric. Multiplication by K = exp(−C/ε) contracts it by tanh(Δ/4), and an
    iteration multiplies by K and by Kᵀ.

    (Birkhoff 1957; Franklin & Lorenz 1989, Thm 4; Peyré & Cuturi 2019, Thm 4.1 and 4.2.)
    """
    differences = cost[:, None, :] - cost[None, :, :]  # (n, n, m): C_ik − C_jk
    diameter = float(np.max(np.ptp(differences, axis=-1))) / epsilon
    return math.tanh(diameter / 4) ** 2


def optimal_relaxation(rho: float) -> float:
    """ω* = 2/(1 + √(1 − ρ)), under which Sinkhorn's iteration goes fastest: by ω* − 1 a step instead of ρ.

    The optimum that the sweep `over_relaxation` is to find.

    (Young 1954; Thibault, Chizat, Dossal & Papadakis 2021, §4; Lehmann et al. 2021, Thm 2.)
    """
    return 2 / (1 + math.sqrt(1 - rho))
