"""The distance between the Gaussians that fit two samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """‖m − m'‖² + tr(C + C' − 2 (C^½ C' C^½)^½), the squared W₂ between N(m, C) and N(m', C') of two samples.

    (Dowson & Landau 1982; of features of a classifier: Heusel et al. 2017, eq. 6.)

    Args:
        x: (n, k). y: (n', k).
    """
    x, y = x.double(), y.double()
    apart = (x.mean(0) - y.mean(0)).square().sum()
    c, c_other = torch.cov(x.mT), torch.cov(y.mT)
    values, vectors = torch.linalg.eigh(c)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ c_other @ root).clamp(min=0).sqrt().sum()
    return float(apart + c.trace() + c_other.trace() - 2 * cross)


def jackknife_error(x: Tensor, y: Tensor, groups: int = 10) -> float:
    """Standard error of `frechet_distance` over draws of both samples, by leaving out a part at a time.

    SE² = (G − 1)/G Σ_g (D_(g) − D̄)², D_(g) of both samples without their g-th of G parts.

    (Efron & Tibshirani 1993, §11.5; groups: Shao & Tu 1995, §2.3.)

    Args:
        x: (n, k). y: (n', k). In no order, at least 2·`groups` of each.
    """
    parts = list(zip(x.tensor_split(groups), y.tensor_split(groups), strict=True))
    distances = []
    for left_out in range(groups):
        kept = (part for i, part in enumerate(parts) if i != left_out)
        distances.append(frechet_distance(*map(torch.cat, zip(*kept, strict=True))))
    spread = torch.tensor(distances, dtype=torch.float64).var(correction=0)
    return math.sqrt((groups - 1) * float(spread))
