"""Newton's method for a plan that is nearly right: residuals in float64, steps in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.algorithms.conjugate import conjugate_gradients
from lab.algorithms.scaling import Array, Rows, Scaling, times

NEAR = 1e-4
"""The error from which it goes on: a step squares it, and ends a problem with few slow modes in fewer products."""
STEPS = 4
"""Steps at the most; one or two are the rule."""
LIGHTEST = 1e-30
"""The least weight: what is made of it in float32 must not be denormal."""
SIZE = 1e8
"""‖·‖₁ of a step's right-hand side: products of smaller numbers with the matrix's least would be denormal, and slow."""
PART = 1e-4
"""What a step leaves of the error at the least: float32 resolves no more of it."""


@dataclass
class Polished:
    """Where `polished` ended; the plan is None where it did not reach its goal."""

    plan: Tensor | None
    f: Tensor
    g: Tensor
    error: Tensor
    made: int


@torch.no_grad()
def polished(rough: Scaling, a: Tensor, b: Tensor, goal: float, most: int, every: int) -> Polished:
    """The plan of `rough`, one problem whose iteration has ended in float32, with its marginals made right to `goal`.

    With r = P1 and c = Pᵀ1 the plan diag(eˢ) P diag(eᵗ) has the marginals a and b up to terms of second order if

        [diag r    P  ] [s]   [a − r]
        [  Pᵀ   diag c] [t] = [b − c],

    the matrix of `lab.algorithms.implicit`. The right-hand side is taken in float64. s and t are as small as it is, so
    a solution to four digits will do, and that is found in float32, from the matrix that is there.

    (Newton's method: Brauer, Clason, Lorenz & Wirth 2017. Refinement in two precisions: Higham 2002, ch. 12.)

    Args:
        a, b: the weights in float64, none below `LIGHTEST`. goal: for ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁.
        most: steps of conjugate gradients, at the most; each is two products with the matrix, like one of Sinkhorn's.
        every: after so many it is looked whether they are enough.
    """
    fine = rough.refined(a, b) or Scaling(rough.cost, a, b, rough.epsilon, *rough.potentials, rough.cost.dtype)
    made, before = 0, math.inf
    for step in range(STEPS + 1):
        r, c = fine.marginals()
        error = (r - a).abs().sum() + (c - b).abs().sum()
        here = float(error)
        done = here <= goal
        if done or step == STEPS or made >= most or not here <= before / 4:
            break
        unit = here / SIZE
        least = max(PART * SIZE, goal / unit / 4)
        s, t, steps = _step(rough, r, c, (a - r) / unit, (b - c) / unit, least, most - made, every)
        s, t = unit * s, unit * t
        fine.u *= s.exp()
        fine.v *= t.exp()
        made, before = made + steps, here
    return Polished(fine.plan() if done else None, *fine.potentials, error, made)


def _step(
    rough: Scaling, r: Tensor, c: Tensor, at_rows: Tensor, at_columns: Tensor, goal: float, most: int, every: int
) -> tuple[Tensor, Tensor, int]:
    """(s, t, steps made) to ‖·‖₁ ≤ `goal` of the second equation; the first holds.

    In x = √c t, as ‖√c ∘ x‖₁ ≤ ‖x‖₂ for weights of sum 1.
    """
    kernel, a, b, u, v = rough.hand
    r, c, at_rows, at_columns = (rough.at_hand(t.to(rough.kernel.dtype)) for t in (r, c, at_rows, at_columns))
    left, right, root = a * u, b * v, c**0.5
    share, inverse = left / r, right / root

    def mean(product: Array, rows: Rows) -> Array:
        return product * left[rows] * share[rows]

    def gram(x: Array) -> Array:
        return inverse * rough.through(inverse * x, mean)

    residual = at_columns / root - inverse * times(kernel.mT, left * (at_rows / r))
    x, made = conjugate_gradients(gram, residual, root, goal, most, every)
    t = x / root
    s = (at_rows - left * times(kernel, right * t)) / r
    s, t = (torch.as_tensor(y, device=rough.kernel.device).double() for y in (s, t))
    return s, t, made
