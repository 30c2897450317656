"""Newton's method for a plan that is nearly right: residuals in float64, steps in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lab.algorithms.conjugate import conjugate_gradients
from lab.algorithms.scaling import Array, Rows, Scaling, like

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
    error: float
    made: int


def polished(rough: Scaling, a: Tensor, b: Tensor, goal: float, most: int, every: int) -> Polished:
    """The plan of `rough`, one problem whose iteration has ended in float32, with its marginals made right to `goal`.

    A plain half step makes P1 = a. With c = Pᵀ1 then, v ← v eᵗ and another such half step the columns' sums are b up to
    terms of second order if

        (diag c − Pᵀ diag(1/a) P) t = b − c,

    what is left of the matrix of `lab.algorithms.implicit` where the rows are eliminated. The half steps and c are of
    float64. t is as small as b − c, so a solution to four digits will do, and that is found in float32, from the matrix
    that is there.

    (Newton's method: Brauer, Clason, Lorenz & Wirth 2017. Refinement in two precisions: Higham 2002, ch. 12.)

    Args:
        a, b: the weights in float64, none below `LIGHTEST`. goal: for ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁.
        most: steps of conjugate gradients, at the most; each is two products with the matrix, like one of Sinkhorn's.
        every: after so many it is looked whether they are enough.
    """
    fine = rough.refined(a, b) or Scaling(rough.cost, a, b, rough.epsilon, *rough.potentials, rough.cost.dtype)
    _, _, weights, u, v = fine.hand
    rough_u, rough_v = 1 * rough.hand.u, 1 * rough.hand.v  # should it fail, `rough` is gone on from
    made, before = 0, math.inf
    for step in range(STEPS + 1):
        old = 1 * u
        error = float(fine.rows(1.0))
        if error <= goal or step == STEPS or made >= most or not error <= before / 4:
            break
        rough_u *= like(u / old, rough_u)  # what the half step has made of u
        unit = error / SIZE
        least = max(PART * SIZE, goal / unit / 4)
        at_columns = weights * (1 - fine.ratio) / unit
        t, steps = _step(rough, rough_u, rough_v, fine.ratio, at_columns, least, most - made, every)
        growth = math.e ** (unit * like(t, v))
        v *= growth
        rough_v *= like(growth, rough_v)
        made, before = made + steps, error
    return Polished(fine.plan() if error <= goal else None, *fine.potentials, error, made)


def _step(
    rough: Scaling, u: Array, v: Array, ratio: Array, at_columns: Array, goal: float, most: int, every: int
) -> tuple[Array, int]:
    """(t, steps made) to ‖·‖₁ ≤ `goal` of the equation, with c/b and b − c, where these are u and v.

    In x = √c t, as ‖√c ∘ x‖₁ ≤ ‖x‖₂ for weights of sum 1.
    """
    a, b = rough.hand.a, rough.hand.b
    root, rows = (b * like(ratio, b)) ** 0.5, a * u * u
    inverse = b * v / root

    def mean(product: Array, part: Rows) -> Array:
        return rows[part] * product

    def gram(x: Array) -> Array:
        return inverse * rough.through(inverse * x, mean)

    x, made = conjugate_gradients(gram, like(at_columns, b) / root, root, goal, most, every)
    return x / root, made
