"""What makes a problem of entropic transport: parameters in their ranges, and weights that sum to 1."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Method = Literal["scaling", "log"]


def weighted(name: str, weights: Tensor | None, like: Tensor, shape: str) -> Tensor:
    """Weights in the shape, precision and place of `like`, (..., n); uniform where none are given.

    Args:
        name: what to call them, and `shape` what they are of, where they are not as many.
    """
    n = like.shape[-1]
    if weights is None:
        return torch.full(like.shape, 1 / n, dtype=like.dtype, device=like.device)
    if weights.shape[-1:] != like.shape[-1:]:
        raise ValueError(f"{name} must have {n} weights for {shape}, not {list(weights.shape)}")
    return weights.to(like).broadcast_to(like.shape)


def require(
    a: Tensor,
    b: Tensor,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
    relaxation: float | None,
    annealing: float | None = None,
    method: str = "log",
) -> None:
    """Raise ValueError where parameters are out of range, or weights negative or not of sum 1."""
    resolved = 4 * torch.finfo(a.dtype).eps
    for name, value, right, wanted in (
        ("epsilon", epsilon, epsilon > 0, "above 0"),
        ("tolerance", tolerance, tolerance >= resolved, f"at least {resolved:.0e}, what {a.dtype} resolves"),
        ("max_iterations", max_iterations, max_iterations >= 1, "at least 1"),
        ("relaxation", relaxation, relaxation is None or 0 < relaxation < 2, "between 0 and 2"),
        ("annealing", annealing, annealing is None or 0 < annealing < 1, "between 0 and 1"),
        ("method", method, method in get_args(Method), f"one of {', '.join(get_args(Method))}"),
    ):
        if not right:
            raise ValueError(f"{name}={value} must be {wanted}")
    for name, weights in (("a", a), ("b", b)):
        if (least := float(weights.min())) < 0:
            raise ValueError(f"{name} must not be negative, but its least is {least}")
        away = float((weights.sum(-1) - 1).abs().max())
        if not away <= max(tolerance, resolved * weights.shape[-1]):
            raise ValueError(f"{name} must sum to 1 within the tolerance {tolerance}, but is {away:.1e} away")
