"""Successive over-relaxation of a linearly convergent iteration, its factor found while it runs."""

from __future__ import annotations

import math


class Relaxation:
    """The factor ω of one problem, from the errors that it is shown.

    Near its solution an alternating iteration that contracts by ρ a step contracts under ω by the λ with

        (λ + ω − 1)² = λ ω² ρ,

    Young's equation of successive over-relaxation. Its larger root falls with ω up to ω* = 2/(1 + √(1 − ρ)), where
    λ = ω* − 1, and |λ| = ω − 1 from there on. So ρ is read from how fast the error falls, ω set to ω*, and both again:
    what was read early belongs to modes that die first and is too small, which is the safe side. An iteration whose
    error rises above what it was shown before goes back to ω = 1, where it converges from anywhere, and then creeps.

    (Young 1954; Thibault, Chizat, Dossal & Papadakis 2021; Lehmann, von Renesse, Sambale & Uschmajew 2021.)

    Args:
        fixed: an ω to keep, or None to find it.
        patience: steps that are not looked at after each time.
    """

    def __init__(self, fixed: float | None = None, patience: int = 3) -> None:
        self.omega = 1.0 if fixed is None else fixed
        self.adapts, self.patience = fixed is None, patience
        self.ceiling = 2.0
        self._since, self._last, self._best = 0, math.nan, math.inf

    def observe(self, error: float, steps: int = 1) -> float:
        """Take note of the error after so many more steps; returns the ω of the next one."""
        if not self.adapts:
            return self.omega
        self._since += steps
        if error > 2 * self._best and self.omega > 1:
            self.ceiling = 1 + 0.7 * (self.omega - 1)
            self.omega, self._since, self._best = 1.0, 0, error
        elif self._since > self.patience and self._last > 0:
            rate = (error / self._last) ** (1 / steps)
            if self.omega - 1 < rate < 1:  # else λ is complex: ω is at ω* or beyond it, and says nothing of ρ
                rho = (rate + self.omega - 1) ** 2 / (rate * self.omega**2)
                self.omega = min(max(self.omega, optimal(rho)), self.ceiling)
            self._since = 0
        self._last, self._best = error, min(self._best, error)
        return self.omega


def optimal(rho: float) -> float:
    """ω* = 2/(1 + √(1 − ρ)) for an iteration that contracts by ρ a step. (Young 1954.)"""
    return 2 / (1 + math.sqrt(max(0.0, 1 - rho)))
