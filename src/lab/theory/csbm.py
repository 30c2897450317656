"""The contextual stochastic block model: how well a node's class can be told from features, alone or averaged.

n nodes, half of class y = 1 and half of class y = −1; features x ~ N(yμ, σ²I). Two nodes are joined with probability
p if they are of one class and q if not. K and D are how many neighbours of its own class and of the other one a node
has; s = ‖μ‖/σ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binom


def bayes_accuracy(s: float) -> float:
    """Φ(s): the accuracy of sign(μᵀx), and the greatest that any function of x alone has.

    ln p(x|1)/p(x|−1) = 2μᵀx/σ², and yμᵀx/(‖μ‖σ) ~ N(s, 1).

    (Bishop, PRML, §1.5.1 and §4.2.1.)
    """
    return float(ndtr(s))


def neighbour_law(n: int, p: float, q: float) -> NDArray[np.float64]:
    """P(K = k, D = d): (n/2, n/2 + 1). K ~ Bin(n/2 − 1, p) and D ~ Bin(n/2, q) are independent.

    A node has n/2 − 1 possible neighbours of its own class, itself left out, and n/2 of the other one.

    (Deshpande, Sen, Montanari & Mossel 2018, §1; Holland, Laskey & Leinhardt 1983.)
    """
    half = n // 2
    return np.outer(binom.pmf(np.arange(half), half - 1, p), binom.pmf(np.arange(half + 1), half, q))


def accuracy_given_neighbours(n: int, s: float) -> NDArray[np.float64]:
    """Φ(s(1 + k − d)/√(1 + k + d)), the accuracy of sign(μᵀh) for h the mean over a node and its neighbours.

    h ~ N(yμ(1 + k − d)/(1 + k + d), σ²I/(1 + k + d)): signals cancel, noise averages.

    Returns: (n/2, n/2 + 1), by k and d

    (Baranwal, Fountoulakis & Jagannath 2021, §3.)
    """
    k, d = np.ogrid[: n // 2, : n // 2 + 1]
    return ndtr(s * (1 + k - d) / np.sqrt(1 + k + d))


def mean_accuracy(n: int, p: float, q: float, s: float) -> float:
    """max(F, 1 − F), F = E Φ(s(1 + K − D)/√(1 + K + D)): the accuracy of the better of sign(±μᵀh).

    Where F < ½ neighbours are so often of the other class that the sign turns.

    (Baranwal, Fountoulakis & Jagannath 2021, §3.)
    """
    right = float((neighbour_law(n, p, q) * accuracy_given_neighbours(n, s)).sum())
    return max(right, 1 - right)


def mean_accuracy_by_degree(n: int, p: float, q: float, s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(E[Φ(s(1 + K − D)/√(1 + K + D)) | K + D = m], P(K + D = m)), m = 0 … n − 1, of sign(μᵀh). (n,), (n,)

    At m = 0 it is Φ(s), what features alone tell.

    (Baranwal, Fountoulakis & Jagannath 2021, §3.)
    """
    law = neighbour_law(n, p, q)
    k, d = np.indices(law.shape)
    degree = (k + d).ravel()
    weight, right, accuracy = np.zeros(n), np.zeros(n), np.full(n, 0.5)
    np.add.at(weight, degree, law.ravel())
    np.add.at(right, degree, (law * accuracy_given_neighbours(n, s)).ravel())
    np.divide(right, weight, out=accuracy, where=weight > 0)
    return accuracy, weight
