"""The distance between the Gaussians that fit two samples."""

from __future__ import annotations

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
