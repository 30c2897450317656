"""Two Gaussians: samples drawn from them for ever, weights on a grid, and two clouds of weighted points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from annotated_types import Ge, Le, MinLen
from torch import Tensor

from lab.data.blocks import Block, InMemoryData, Order
from lab.errors import Refusal
from lab.random import generator, normal
from lab.types import NonNegativeInt, PositiveInt


class Gaussian:
    """N(m, Σ) in d dimensions.

    Attributes:
        mean: m, (d,). covariance: Σ, (d, d). d. Both in float64.
    """

    def __init__(
        self,
        mean: Annotated[list[float], MinLen(1)],
        covariance: Annotated[list[Annotated[list[float], MinLen(1)]], MinLen(1)],
    ) -> None:
        d = len(mean)
        if len(covariance) != d or any(len(row) != d for row in covariance):
            raise Refusal(f"covariance={covariance} must have {d} rows of {d} numbers, as mean={mean} has {d}")
        self.d = d
        self.mean = torch.tensor(list(mean), dtype=torch.float64)
        self.covariance = torch.tensor([list(row) for row in covariance], dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(self.covariance)
        if int(failed) or not torch.equal(self.covariance, self.covariance.mT):
            raise Refusal(f"covariance={covariance} must be symmetric and positive definite")
        self.factor = factor

    def of(self, noise: Tensor) -> Tensor:
        """m + Lε, Σ = LLᵀ: standard normal draws become draws of this law. (..., d) → (..., d)"""
        return noise @ self.factor.to(noise).mT + self.mean.to(noise)

    def first(self) -> Gaussian:
        """The law of the first coordinate."""
        return Gaussian(self.mean[:1].tolist(), self.covariance[:1, :1].tolist())

    def on_grid(self, points: int, reach: float) -> tuple[Tensor, Tensor]:
        """(nodes (points^d, d), weights (points^d,)) of the trapezoidal rule within ± `reach` deviations.

        For a smooth integrand its error falls faster than any power of the spacing, down to what lies beyond the ends.
        """
        axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
        z = torch.cartesian_prod(*[axis] * self.d).reshape(-1, self.d)
        weights = (-0.5 * z.square().sum(-1)).exp()
        return self.of(z), weights / weights.sum()


class GaussianPair(InMemoryData):
    """Two Gaussians, `source` and `target`, of the same number of dimensions.

    A batch holds `batch_size` problems: (x (r, 2, p, d), y (r, 2, p, d), c), two independent clouds of p = `points`
    samples of either law for each of this rank's r problems, drawn anew as a function of (seed, step, problem). c is
    the scalar for which the mean over ranks of c·mean_problems(·) is that over the global batch.

    Attributes:
        clouds: two discrete measures (points (n, d), weights (n,)): points drawn from either law, with uneven weights.
        grids: the same of the laws of the first coordinate, on a grid each. All in float64.

    Args:
        support: points of each discrete measure; the target has three quarters of them.
        grid: points of each grid. reach: how many deviations it goes to either side.
    """

    def __init__(
        self,
        source: Gaussian,
        target: Gaussian,
        batch_size: PositiveInt = 4,
        points: PositiveInt = 64,
        support: Annotated[int, Ge(4), Le(2000)] = 80,
        grid: Annotated[int, Ge(16), Le(5000)] = 240,
        reach: Annotated[float, Ge(3), Le(30)] = 8.0,
        seed: NonNegativeInt = 0,
        block_size: PositiveInt = 50,
    ) -> None:
        super().__init__(seed, block_size)
        if source.d != target.d:
            raise Refusal(f"source has {source.d} dimensions and target {target.d}: they must be the same")
        self.source, self.target, self.batch_size, self.points = source, target, batch_size, points
        self.d = source.d
        self.support, self.grid, self.reach = support, grid, reach

    def load(self) -> None:
        self.order = Order(self.batch_size, None, self.seed)
        draw = generator(self.seed, "GaussianPair")
        self.clouds = (
            self._cloud(draw, self.source, self.support),
            self._cloud(draw, self.target, self.support * 3 // 4),
        )
        self.grids = tuple(law.on_grid(self.grid, self.reach) for law in (self.source.first(), self.target.first()))

    def check(self) -> None:
        if self.world_size > self.batch_size:
            raise Refusal(
                f"trainer.devices={self.world_size} is more than data.batch_size={self.batch_size}: one has no problem"
            )

    def place(self, device: torch.device) -> None:
        self.device = device
        self.share = self.order.share(self.rank, self.world_size)
        self.weight = (self.share.stop - self.share.start) * self.world_size / self.batch_size

    def block(self, start: int, stop: int) -> Block:
        return Block(start, stop - start, self._batches(start, stop))

    def _batches(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        for step in range(start, stop):
            noise = self.order.noise([step], self.share, 2, 2, self.points, self.d)[0].to(self.device, self.dtype)
            yield self.source.of(noise[:, 0]), self.target.of(noise[:, 1]), self.weight

    @staticmethod
    def _cloud(draw: torch.Generator, law: Gaussian, n: int) -> tuple[Tensor, Tensor]:
        points = law.of(normal(draw, n, law.d))
        weights = 0.5 + torch.rand(n, generator=draw, dtype=torch.float64)
        return points, weights / weights.sum()
