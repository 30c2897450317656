"""Conjugate gradients for the linear system that the marginals of a plan make."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    gram: Callable[[Tensor], Tensor], residual: Tensor, root: Tensor, goal: Tensor, most: int, every: int = 1
) -> tuple[Tensor, int]:
    """(x with x − Gx = `residual`, steps made), where G is symmetric, its eigenvalues between 0 and 1, and Gr = r.

    Of a plan P with the marginals a and b, G = QᵀQ with Q = diag(a)^{−½} P diag(b)^{−½}. Its eigenvalues σₖ² are 1 for
    r = √b and at most ρ beside it, ρ the rate of Sinkhorn's iteration: about ½√(1/(1 − ρ)) ln(2/tolerance) steps are
    needed, and fewer where few of the σₖ are large.

    (Hestenes & Stiefel 1952; Trefethen & Bau 1997, Thm 38.5.)

    Args:
        gram: G, (..., m) → (..., m). residual: (..., m); what it has of r is left out. root: r, (..., m).
        goal: the residual's norm ‖·‖₂ to end at, (..., 1). most: steps, at the most.
        every: after so many steps the norm is looked at. Where it has grown 10⁸-fold, or is no number, rounding has
            won: x is then good for nothing.
    """
    root = root / root.norm(dim=-1, keepdim=True)
    residual = residual - root * (root * residual).sum(-1, keepdim=True)
    x, direction = torch.zeros_like(residual), residual
    square = residual.square().sum(-1, keepdim=True)
    limit = 1e16 * square  # on its way down it may rise by the root of the condition number
    for step in range(most):
        if step % every == 0 and bool((square <= goal.square()).all() | ~(square <= limit).all()):
            return x, step
        image = direction - gram(direction)
        curvature = (direction * image).sum(-1, keepdim=True)
        length = torch.where(curvature > 0, square / curvature, 0)
        x, residual = x + length * direction, residual - length * image
        residual = residual - root * (root * residual).sum(-1, keepdim=True)
        square, before = residual.square().sum(-1, keepdim=True), square
        direction = residual + torch.where(before > 0, square / before, 0) * direction
    return x, most
