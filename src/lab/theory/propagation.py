"""Repeated propagation over a graph: how fast what tells its nodes apart is lost.

Â = D̃^{−½}(A + I)D̃^{−½}, D̃ the degrees of A + I, has eigenvalues 1 = λ₁ > |λ₂| ≥ … on a connected graph.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalised_adjacency(adjacency: Tensor) -> Tensor:
    """Â = D̃^{−½}(A + I)D̃^{−½} in float64. (..., n, n) → (..., n, n)

    (Kipf & Welling 2017, eq. 2.)
    """
    looped = adjacency.double() + torch.eye(adjacency.shape[-1], dtype=torch.float64)
    scale = looped.sum(-1).rsqrt()
    return scale.unsqueeze(-1) * looped * scale.unsqueeze(-2)


def second_eigenvalue(adjacency: Tensor) -> Tensor:
    """|λ₂|, the second largest modulus of an eigenvalue of Â. (..., n, n) → (...)

    (Oono & Suzuki 2020, Prop. 1; Chung, Spectral Graph Theory, ch. 1.)
    """
    return torch.linalg.eigvalsh(normalised_adjacency(adjacency)).abs().sort(-1).values[..., -2]


def energy_decay(adjacency: Tensor) -> Tensor:
    """2 ln|λ₂|: the slope of ln E(Â^t X) over t for t → ∞, E(X) = tr Xᵀ(I − Â)X. (..., n, n) → (...)

    With X = Σᵢ uᵢcᵢᵀ in eigenvectors, E(Â^t X) = Σᵢ (1 − λᵢ)λᵢ^{2t}‖cᵢ‖²: λ₁ drops out, λ₂ is what lasts.

    (Oono & Suzuki 2020, Thm 1; Cai & Wang 2020, §3.)
    """
    return 2 * second_eigenvalue(adjacency).log()
