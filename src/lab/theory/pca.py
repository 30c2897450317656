"""Principal component analysis: the spectrum of a sample covariance and what it says about rank-k reconstruction.

Notation: X (n×d) centred, C = XᵀX/n = UΛUᵀ with λ₁ ≥ … ≥ λ_d, U_k the first k columns of U.
"""

from __future__ import annotations

import torch
from torch import Tensor


def principal_components(x: Tensor) -> tuple[Tensor, Tensor]:
    """(λ, U): the eigenvalues in decreasing order and the eigenvectors of C = XᵀX/n. x: (n, d) → (d,), (d, d) columns.

    (Bishop, PRML, §12.1.1.)
    """
    eigenvalues, vectors = torch.linalg.eigh(x.mT @ x / len(x))
    return eigenvalues.flip(-1), vectors.flip(-1)


def best_reconstruction_error(eigenvalues: Tensor, k: int) -> Tensor:
    """min over rank-k projections P of E‖x − Px‖² = Σ_{i>k} λᵢ.

    (Eckart & Young 1936; Mirsky 1960; Bishop, PRML, §12.1.2.)
    """
    return eigenvalues[k:].sum()


def projector(vectors: Tensor, k: int) -> Tensor:
    """P_k = U_k U_kᵀ, the orthogonal projector on the top-k eigenspace. (d, d) → (d, d).

    (Strang, Introduction to Linear Algebra, ch. 4: projections.)
    """
    top = vectors[:, :k]
    return top @ top.mT
