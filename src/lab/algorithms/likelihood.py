"""The density of what a probability-flow ODE makes of Gaussian noise."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from lab.algorithms.samplers import Velocity
from lab.algorithms.samplers.euler import Euler
from lab.algorithms.samplers.heun import Heun


def divergence(velocity: Velocity, x: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(v, ∇·v), exactly, by one backward pass a dimension: for few dimensions. (n, d) → (n, d), (n,)"""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x, log_snr)
        rows = [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])]
    return v.detach(), torch.stack(rows).sum(0).detach()


@torch.no_grad()
def log_density(velocity: Velocity, x: Tensor, levels: Tensor, solver: Euler | Heun) -> Tensor:
    """ln p(x), in nats, of x taken to be at log-SNR `levels[0]`. (n, d) → (n,)

    Along dx/dφ = v the density changes as d ln p/dφ = −∇·v, so ln p(x) = ln N(x_T; 0, I) + ∫ ∇·v dφ, the integral
    taken beside x by the same steps.

    (Chen et al. 2018, Thm 1; Song et al. 2021, eq. 39.)

    Args:
        levels: (N + 1,), falling towards noise.
    """

    def both(state: Tensor, log_snr: Tensor) -> Tensor:
        v, spread = divergence(velocity, state[:, :-1], log_snr)
        return torch.cat([v, spread.unsqueeze(-1)], -1)

    state, levels = torch.nn.functional.pad(x, (0, 1)), levels.to(x)
    for start, stop in itertools.pairwise(levels):
        state = solver.step(both, state, start, stop)
    end, change = state[:, :-1], state[:, -1]
    return change - 0.5 * (end.square().sum(-1) + end.shape[1] * math.log(2 * math.pi))
