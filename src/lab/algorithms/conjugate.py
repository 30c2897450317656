"""Conjugate gradients for the linear system that the marginals of a plan make."""

from __future__ import annotations

from collections.abc import Callable

from lab.algorithms.scaling import Array


def conjugate_gradients(
    gram: Callable[[Array], Array], residual: Array, root: Array, goal: Array, most: int, every: int = 1
) -> tuple[Array, int]:
    """(x with x − Gx = `residual`, steps made), where G is symmetric, its eigenvalues between 0 and 1, and Gr = r.

    Of a plan P with the marginals a and b, G = QᵀQ with Q = diag(a)^{−½} P diag(b)^{−½}. Its eigenvalues σₖ² are 1 for
    r = √b and at most ρ beside it, ρ the rate of Sinkhorn's iteration: about ½√(1/(1 − ρ)) ln(2/tolerance) steps are
    needed, and fewer where few of the σₖ are large.

    (Hestenes & Stiefel 1952; Trefethen & Bau 1997, Thm 38.5.)

    Args:
        gram: G, (..., m) → (..., m). residual: (..., m); what it has of r is left out. root: r, (..., m).
        goal: the residual's norm ‖·‖₂ to end at, (..., 1) or a number. most: steps, at the most.
        every: after so many steps the norm is looked at. Where it has grown 10⁸-fold, or is no number, rounding has
            won: x is then good for nothing.
    """
    root = root / dot(root, root) ** 0.5
    residual = residual - root * dot(root, residual)
    x, direction = 0 * residual, residual
    square = dot(residual, residual)
    limit = 1e16 * square  # on its way down it may rise by the root of the condition number
    for step in range(most):
        if step % every == 0 and bool((square <= goal**2).all() | ~(square <= limit).all()):
            return x, step
        image = direction - gram(direction)
        length = ratio(square, dot(direction, image))
        x, residual = x + length * direction, residual - length * image
        residual = residual - root * dot(root, residual)
        square, before = dot(residual, residual), square
        direction = residual + ratio(square, before) * direction
    return x, most


def dot(x: Array, y: Array) -> Array:
    """⟨x, y⟩, (..., 1)"""
    return (x * y).sum(-1)[..., None]


def ratio(x: Array, y: Array) -> Array:
    """x/y where y > 0, and else 0."""
    return x * (y > 0) / (y + (y <= 0))
