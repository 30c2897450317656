"""Points in the plane from a mixture of Gaussians on a ring."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lab.data.blocks import Block, InMemoryData, Order
from lab.errors import Refusal
from lab.random import generator, normal, uniform
from lab.theory.mixture import Mixture
from lab.types import NonNegativeInt, Positive, PositiveInt


class GaussianMixture(InMemoryData):
    """x₀ ~ Σₖ πₖ N(mₖ, Cₖ): K Gaussians evenly around a ring, served as batches (x (b, 2), c), each drawn anew.

    πₖ ∝ K/2 + k, k = 1 … K; mₖ lies at the angle 2πk/K and the axes of Cₖ across the ring and along it; the ring is
    moved so that the mean is 0. c is the scalar for which the mean over
    ranks of c·mean_rows(·) is the mean over the global batch.

    Args:
        components: K.
        radius: of the ring.
        across, along: standard deviations of a Gaussian across the ring and along it.
        samples: null: every draw is new. Else so many points are drawn once, and all that follows is drawn from them.
        batch_size: of the global batch.

    Attributes:
        law: the mixture, the data's true parameters. d: 2.
    """

    d = 2

    def __init__(
        self,
        components: PositiveInt = 6,
        radius: Positive = 1.25,
        across: Positive = 0.18,
        along: Positive = 0.35,
        samples: PositiveInt | None = None,
        batch_size: PositiveInt = 512,
        seed: NonNegativeInt = 0,
        block_size: PositiveInt = 50,
    ) -> None:
        super().__init__(seed, block_size)
        self.samples, self.batch_size = samples, batch_size
        turn = 2 * math.pi / components * torch.arange(1, components + 1, dtype=torch.float64)
        outwards = torch.stack([turn.cos(), turn.sin()], -1)
        axes = torch.stack([outwards, torch.stack([-turn.sin(), turn.cos()], -1)], -1)  # (K, 2, 2), an axis a column
        weights = 0.5 * components + torch.arange(1, components + 1, dtype=torch.float64)
        weights /= weights.sum()
        means = radius * outwards
        self._roots = axes * torch.tensor([across, along], dtype=torch.float64)
        self.law = Mixture(weights, means - weights @ means, self._roots @ self._roots.mT)

    def load(self) -> None:
        self.order = Order(self.batch_size, None, self.seed)
        self.points = None if self.samples is None else self.fresh(self.samples, "points")
        self._device = torch.device("cpu")

    def check(self) -> None:
        if self.world_size > self.batch_size:
            raise Refusal(f"trainer.devices={self.world_size} is more than data.batch_size={self.batch_size}")

    def place(self, device: torch.device) -> None:
        self._device = device

    def fresh(self, n: int, *stream: int | str) -> Tensor:
        """n new points of the law, a function of (seed, stream): (n, 2) in float64 on the CPU."""
        draw = generator(self.seed, "x", *stream)
        which = torch.searchsorted(self.law.weights.cumsum(0)[:-1], uniform(draw, n), right=True)
        return self.law.means[which] + (self._roots[which] @ normal(draw, n, 2, 1)).squeeze(-1)

    def draw(self, n: int, *stream: int | str) -> Tensor:
        """The same, as training sees them: of `samples` points where there are no more."""
        if self.points is None:
            return self.fresh(n, *stream)
        which = torch.randint(len(self.points), (n,), generator=generator(self.seed, "which", *stream))
        return self.points[which]

    def block(self, start: int, stop: int) -> Block:
        share = self.order.share(self.rank, self.world_size)
        weight = (share.stop - share.start) * self.world_size / self.batch_size
        x = torch.stack([self.draw(self.batch_size, step)[share] for step in range(start, stop)])
        return Block(start, stop - start, ((row, weight) for row in x.to(self._device, self.dtype)))

    def noise(self, start: int, stop: int, *shape: int) -> Tensor:
        """N(0, 1) draws for this rank's rows of the batches of steps `start` … `stop` − 1: (S, b, *shape)."""
        share = self.order.share(self.rank, self.world_size)
        return self.order.noise(range(start, stop), share, *shape).to(self._device, self.dtype)
