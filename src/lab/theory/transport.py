"""Optimal transport between samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist


def wasserstein(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """W₂ = (min_π (1/n) Σᵢ ‖xᵢ − y_π(i)‖²)^½ of two samples of one size: a permutation is optimal. (n, d), (n, d)

    (Birkhoff 1946; Peyré & Cuturi 2019, Prop. 2.1.)
    """
    cost = cdist(x, y, "sqeuclidean")
    return float(cost[linear_sum_assignment(cost)].mean() ** 0.5)
