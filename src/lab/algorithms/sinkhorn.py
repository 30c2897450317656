"""Entropic optimal transport by Sinkhorn's algorithm.

    OT_ε(a, b) = min_P ⟨P, C⟩ + ε KL(P ‖ abᵀ)   over P ≥ 0 with P1 = a, Pᵀ1 = b
               = max_{f,g} ⟨a, f⟩ + ⟨b, g⟩ − ε ⟨abᵀ, exp((f ⊕ g − C)/ε) − 1⟩,

with KL(P‖Q) = Σ P ln(P/Q) − P + Q and (f ⊕ g)ᵢⱼ = fᵢ + gⱼ. The optimal plan is P = abᵀ ∘ exp((f ⊕ g − C)/ε). Everything
takes leading batch dimensions, and each problem of a batch is solved as if it were alone.

(Peyré & Cuturi, Computational Optimal Transport, 2019, ch. 4.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from lab.algorithms.implicit import differentiable
from lab.algorithms.newton import LIGHTEST, NEAR, polished
from lab.algorithms.problem import Method, require, weighted
from lab.algorithms.relaxation import Relaxation
from lab.algorithms.scaling import Scaling, far, looked_at, settled
from lab.algorithms.transport import Transport
from lab.types import Fraction, PositiveInt

COARSE = 1e-2
"""The error at which one level of annealing hands over to the next; from above it Newton's method is not tried."""
SINGLE = 1e-6
"""The error at which float32 hands over to float64: a little above what its rounding leaves."""
LARGE = 1 << 17
"""From so many entries on products with the matrix take the time, and Newton's method, with fewer of them, pays."""
TRIED = 32
"""Steps within Newton's that are tried, or as many as there were iterations before, lest more than those be in vain."""
LOOK = {"cpu": 1}
"""After so many iterations the error is looked at; elsewhere after 8, for looking waits for the device."""
SPREAD = 60.0
"""Up to this cost, in units of ε, the iteration may start from exp(−C/ε): in float32 none of it underflows."""


def sinkhorn(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    epsilon: float,
    tolerance: float = 1e-9,
    max_iterations: int = 10_000,
    relaxation: float | None = None,
    annealing: float | None = None,
    start: tuple[Tensor, Tensor] | None = None,
    method: Method = "scaling",
) -> Transport:
    """Solve entropic optimal transport until ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ ≤ `tolerance`.

    The products of one problem on the CPU are numpy's, with the threads that numpy has.

    Args:
        cost: C, (..., n, m), in float32 or float64.
        a: (..., n), b: (..., m), weights that sum to 1; uniform by default.
        epsilon: ε > 0, in the units of the cost.
        max_iterations: after so many it stops where it is; `error` of the result says where that is.
        relaxation: ω, between 0 and 2, or None to find it (`Relaxation`); 1 is Sinkhorn's own iteration.
        annealing: begin at ε = max C − min C (the greatest of a batch) and multiply by this factor, between 0 and 1,
            until `epsilon` is reached, each solution starting the next. It pays where ε is far below the cost.
        start: potentials (f, g) to start from, such as those of a problem near by.
        method: "scaling" multiplies by a matrix of exponentials (`Scaling`), in float32 first where the cost is
            float64; the rest is done by Newton's method (`polished`) for one large problem with weights above 0 whose ω
            is to be found, and else in float64. "log" takes a logarithm of sums of exponentials at each half step
            (`LogDomain`), several times slower.

    Raises: ValueError where shapes, weights or parameters make no problem.
    """
    if cost.dim() < 2 or cost.dtype not in (torch.float32, torch.float64):
        found = f"{cost.dtype} of shape {list(cost.shape)}"
        raise ValueError(f"cost must be (..., n, m) in float32 or float64, not {found}")
    if cost.numel() == 0:
        raise ValueError(f"cost must not be empty, but is of shape {list(cost.shape)}")
    shape = f"a cost of shape {list(cost.shape)}"
    a, b = weighted("a", a, cost[..., 0], shape), weighted("b", b, cost[..., 0, :], shape)
    quiet = np.errstate(all="ignore")  # what is no number ends the float32 part, or is the result's error
    with torch.no_grad(), quiet, torch.autocast(cost.device.type, enabled=False):  # of whoever trains in bfloat16
        require(a, b, epsilon, tolerance, max_iterations, relaxation, annealing, method)
        problem = cost.detach(), a.detach(), b.detach()
        if start is None:
            f, g = torch.zeros_like(problem[1]), torch.zeros_like(problem[2])
        else:
            f, g = (t.detach().to(cost).broadcast_to(w.shape) for t, w in zip(start, (a, b), strict=True))
        reach = SPREAD / max(1.0, relaxation or 1.0)  # a step grows by the power ω
        spread, doubtful = math.nan, None
        elsewhere = start is not None or annealing is not None
        if method == "log" or cost.dim() > 2 or elsewhere or far(problem[0], reach * epsilon):
            spread, doubtful = looked_at(problem[0], reach * epsilon)
            doubtful = doubtful | elsewhere
        loop = Loop(a, max_iterations, relaxation)
        known = None
        for level in _levels(spread, epsilon, annealing):
            last = level == epsilon
            if loop.left == 1 and not last:
                continue
            goal = tolerance if last else max(tolerance, COARSE)
            if method == "log":
                logarithmic = LogDomain(*problem, level, f, g)
                loop.run(logarithmic, goal, last)
                f, g = logarithmic.potentials
            else:
                f, g, known = _by_scaling(*problem, level, f, g, loop, goal, last, reach, doubtful)
    f, g = differentiable(cost, a, b, epsilon, f, g)
    t = ((a * f).sum(-1, keepdim=True) - (b * g).sum(-1, keepdim=True)) / 2
    return Transport(cost, a, b, epsilon, f - t, g + t, *loop.outcome, known)


def _by_scaling(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
    f: Tensor,
    g: Tensor,
    loop: Loop,
    goal: float,
    last: bool,
    reach: float,
    doubtful: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(f, g, P): solved in float32, then, where the cost is float64 and this the `last` level, in that; else P is None.

    Of one problem it may not be known yet whether it is `doubtful`, its cost beyond `reach`, in units of ε: then the
    matrix of exponentials says it. A problem whose weights float32 does not know, or that overflows there, goes on from
    the f and g that it came with; one that Newton's method leaves short of its goal from where that ended, if it is
    nearer.
    """
    fast, alone, twice = loop.fixed is None, cost.dim() == 2, cost.dtype == torch.float64 and loop.left > 1
    first = partial(Scaling, cost, a, b, epsilon, dtype=torch.float32 if twice else cost.dtype, keep=last and alone)
    scaling = _begun(first, cost, a, b, epsilon, f, g, reach, doubtful)
    f, g = scaling.f0, scaling.g0
    if twice:
        newton = last and fast and alone and cost.numel() >= LARGE and min(float(a.min()), float(b.min())) >= LIGHTEST
        loop.run(scaling, max(goal, NEAR if newton else SINGLE), last=False, stall=16, plain=not newton)
        nearer = None
        if newton and loop.left > 2 and loop.errors[0] <= COARSE:
            scaling.columns(1.0)  # `polished` begins with the other half
            most = min(loop.left // 2, max(TRIED, loop.made[0]))
            ended = polished(scaling, a, b, goal, most, loop.every)
            nearer = (ended.f, ended.g) if ended.error < loop.errors[0] else None
            loop.count(ended.made, [ended.error])
            if ended.plan is not None:
                return ended.f, ended.g, ended.plan
        there = nearer or scaling.potentials
        right = torch.stack([t.isfinite().all(-1, keepdim=True) for t in there]).all(0)
        f, g = (torch.where(right, new, old) for new, old in zip(there, (f, g), strict=True))
        if not last:
            return f, g, None
        refined = scaling.refined(a, b) if bool(right.all()) else None
        del scaling
        scaling = refined or Scaling(cost, a, b, epsilon, f, g, cost.dtype)
    loop.run(scaling, goal, last)
    f, g = scaling.potentials
    if not last:
        return f, g, None
    plan = scaling.plan()
    if scaling.grown:  # what had no iteration left to absorb it is measured as its potentials say
        sound = [scaling.sound(problem) for problem in range(len(loop.made))]
        known = torch.tensor(sound, device=cost.device).reshape(loop.shape)
        plan = torch.where(known[..., None, None], plan, Transport(cost, a, b, epsilon, f, g, *loop.outcome).plan)
        errors = ((plan.sum(-1) - a).abs().sum(-1) + (plan.sum(-2) - b).abs().sum(-1)).flatten().tolist()
        loop.count(0, [old if right else new for old, new, right in zip(loop.errors, errors, sound, strict=True)])
    return f, g, plan


def _begun(
    first: Callable[[Tensor, Tensor], Scaling],
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
    f: Tensor,
    g: Tensor,
    reach: float,
    doubtful: Tensor | None,
) -> Scaling:
    """The first `Scaling`, at f and g, or where they are no start at those that are `settled`."""
    if doubtful is None:
        scaling = first(f, g)
        if scaling.within(reach):
            return scaling
        del scaling  # its matrix, before there is another
        _, doubtful = looked_at(cost, reach * epsilon)
    return first(*settled(cost, a, b, f, g, epsilon, doubtful))


@dataclass(frozen=True)
class Sinkhorn:
    """`sinkhorn` with its parameters set, each where it has a meaning: (cost, a, b, epsilon=ε) → Transport.

    What float32 resolves is coarser than the least `tolerance` here, which is that of float64.
    """

    tolerance: Annotated[float, Ge(1e-15)] = 1e-9
    max_iterations: PositiveInt = 10_000
    relaxation: Annotated[float, Gt(0), Lt(2)] | None = None
    annealing: Fraction | None = None
    method: Method = "scaling"

    def __call__(self, cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, epsilon: float) -> Transport:
        return sinkhorn(cost, a, b, epsilon=epsilon, **asdict(self))


class Iteration(Protocol):
    """A step of Sinkhorn's algorithm in two halves, each relaxed by ω, (..., 1) or of one problem a number.

    ω = 0 leaves a problem as it is.
    """

    b: Tensor

    def sound(self, problem: int) -> bool:
        """Whether the error that `rows` has returned is to be believed."""

    def rows(self, omega: Tensor | float) -> Tensor | np.floating[Any]:
        """Renew f, so that with ω = 1 P1 = a; returns ‖Pᵀ1 − b‖₁, (...)."""

    def columns(self, omega: Tensor | float) -> None:
        """Renew g, so that with ω = 1 Pᵀ1 = b."""


class LogDomain:
    """f ← (1 − ω) f + ω softmin_b(C − g), then g ← (1 − ω) g + ω softmin_a(Cᵀ − f): nothing overflows.

    (Peyré & Cuturi 2019, eq. 4.40 f.; ω: Thibault, Chizat, Dossal & Papadakis 2021.)
    """

    def __init__(self, cost: Tensor, a: Tensor, b: Tensor, epsilon: float, f: Tensor, g: Tensor) -> None:
        self.cost, self.b, self.epsilon, self.potentials = cost, b, epsilon, (f, g)
        self._log_a, self._log_b = a.log(), b.log()

    def sound(self, problem: int) -> bool:
        return True

    def rows(self, omega: Tensor | float) -> Tensor:
        f, g = self.potentials
        f = torch.lerp(f, softmin(self.cost, g, self._log_b, self.epsilon), omega)
        self._target = softmin(self.cost.mT, f, self._log_a, self.epsilon)
        self.potentials = f, g
        return (self.b * ((g - self._target) / self.epsilon).expm1().abs()).sum(-1)

    def columns(self, omega: Tensor | float) -> None:
        f, g = self.potentials
        self.potentials = f, torch.lerp(g, self._target, omega)


def softmin(cost: Tensor, g: Tensor, log_b: Tensor, epsilon: float) -> Tensor:
    """−ε ln Σⱼ bⱼ exp((gⱼ − Cᵢⱼ)/ε): (..., n, m), (..., m), (..., m) → (..., n)"""
    return -epsilon * ((g / epsilon + log_b).unsqueeze(-2) - cost / epsilon).logsumexp(-1)


class Loop:
    """Runs iterations until every problem has reached its goal; what ω has been found stays from one to the next.

    Args:
        like: (..., any), a tensor of the problems' batch, precision and device. relaxation: ω, or None to find it.
    """

    def __init__(self, like: Tensor, max_iterations: int, relaxation: float | None) -> None:
        self.shape, self.device, self.dtype, self.fixed = like.shape[:-1], like.device, like.dtype, relaxation
        self.relaxations = [Relaxation(relaxation) for _ in range(self.shape.numel())]
        self.left = max_iterations
        self.every = LOOK.get(like.device.type, 8)
        self.made = [0] * len(self.relaxations)
        self.errors = [float("inf")] * len(self.relaxations)

    @property
    def outcome(self) -> tuple[Tensor, Tensor]:
        """(iterations made, last error), (...) each."""
        made = torch.tensor(self.made, device=self.device).reshape(self.shape)
        return made, torch.tensor(self.errors, dtype=self.dtype, device=self.device).reshape(self.shape)

    def run(self, iteration: Iteration, goal: float, last: bool, stall: int | None = None, plain: bool = True) -> None:
        """Iterate until the error of each problem is at most `goal`, or has not fallen for `stall` steps.

        One of the iterations that are left is kept for the `last` run, whose error is the result's. A problem that has
        come there under ω ≠ 1 gets one `plain` step, unless what follows begins with one: with P1 = a what is measured
        is the whole error.
        """
        running = set(range(len(self.made)))
        best, waited = [float("inf")] * len(self.made), [0] * len(self.made)
        omega = [relaxation.omega for relaxation in self.relaxations]
        weight = self._weight(omega, iteration.b)
        most, made = self.left if last else self.left - 1, 0
        while made < most and running:
            if made == most - 1:
                weight = self._weight([float(p in running) for p in range(len(omega))], iteration.b)
            error = iteration.rows(weight)
            made += 1
            if made % self.every == 0 or made == most:
                before = list(omega)
                for p, e in enumerate(error.flatten().tolist()):
                    if p not in running:
                        continue
                    self.errors[p], waited[p] = e, 0 if e < best[p] else waited[p] + self.every
                    best[p] = min(best[p], e)
                    done = e <= goal and (omega[p] == 1 or not plain) and iteration.sound(p)
                    if made == most or done or (stall and waited[p] >= stall):
                        running.discard(p)
                        self.made[p] += made
                        omega[p] = 0.0
                    else:
                        found = self.relaxations[p].observe(e, self.every)
                        omega[p] = 1.0 if e <= goal else found
                if omega != before:
                    weight = self._weight(omega, iteration.b)
            if running:
                iteration.columns(weight)
        self.left -= made

    def count(self, made: int, errors: list[float]) -> None:
        """Take note of steps that were made elsewhere for all problems, and of their errors."""
        self.made = [before + made for before in self.made]
        self.errors = errors
        self.left -= made

    def _weight(self, omega: list[float], like: Tensor) -> Tensor | float:
        if not self.shape:
            return omega[0]
        return torch.tensor(omega, dtype=like.dtype, device=like.device).reshape(*self.shape, 1)


def iterates(iteration: LogDomain, relaxation: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
    """The potentials (f, g) after each step with a fixed ω, without end."""
    omega = torch.full_like(iteration.potentials[0][..., :1], relaxation)
    while True:
        iteration.rows(omega)
        iteration.columns(omega)
        yield iteration.potentials


def _levels(spread: float, epsilon: float, annealing: float | None) -> Iterator[float]:
    """The regularisations to solve for, one after the other; `epsilon` itself is the last."""
    level = spread if annealing is not None else epsilon
    while annealing is not None and level > epsilon:
        yield level
        level *= annealing
    yield epsilon
