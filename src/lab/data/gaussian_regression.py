"""y = xᵀw* + σε with Gaussian design: replicated data sets whose true parameters are known."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le, MinLen
from torch import Tensor

from lab.data.blocks import Block, InMemoryData, Order
from lab.errors import Refusal
from lab.random import generator, normal
from lab.types import NonNegativeInt, PositiveInt, Scale


class Design:
    """R data sets of x ~ N(0, Σ), y = xᵀw* + N(0, σ²), all with the same w* of length 1.

    Σ is diagonal with eigenvalues (top, bulk, …, bulk, bottom). Isolated extremes make the asymptotic rate of gradient
    descent visible early: the modes between them have died out long before.

    Replicate r has samples[r mod len(samples)] rows; shorter ones are padded with rows of zeros, which carry no
    gradient.

    Attributes:
        x: (R, n, d), y: (R, n), sizes: (R,) the true number of rows n_r.
        w_star: (d,), spectrum: (d,) the diagonal of Σ, noise: σ.
    """

    def __init__(
        self,
        d: PositiveInt,
        samples: Annotated[list[PositiveInt], MinLen(1)],
        replicates: PositiveInt = 1,
        top: Scale = 1.0,
        bulk: Scale = 1.0,
        bottom: Scale = 1.0,
        noise: Annotated[float, Ge(0), Le(1e12)] = 0.5,
        batch_size: PositiveInt | None = None,
    ) -> None:
        if batch_size is not None and len(set(samples)) > 1:
            raise Refusal(
                f"batch_size={batch_size} needs one sample size; samples={samples} has several: use batch_size=null"
            )
        if batch_size is not None and batch_size > samples[0]:
            raise Refusal(f"batch_size={batch_size} is more than samples={samples}; allowed: 1..{samples[0]} or null")
        if replicates < len(set(samples)):
            raise Refusal(f"replicates={replicates} is less than the {len(set(samples))} sizes in samples={samples}")
        if replicates * max(samples) * d > 10**10:
            raise Refusal(
                f"replicates={replicates} is too many: with samples={samples} and d={d} the designs would hold more "
                "than 10^10 numbers, 80 GB in float64"
            )
        self.d, self.samples, self.replicates, self.noise, self.batch_size = d, samples, replicates, noise, batch_size
        self.spectrum = torch.full((d,), bulk, dtype=torch.float64)
        self.spectrum[0], self.spectrum[-1] = top, bottom
        self.sizes = torch.tensor(samples)[torch.arange(replicates) % len(samples)]

    def draw(self, seed: int, name: str, dtype: torch.dtype) -> None:
        """Draw w*, x and y in float64 and keep them in `dtype`."""
        random = generator(seed, "GaussianRegression", name)
        rows = torch.arange(max(self.samples)) < self.sizes[:, None]  # (R, n)
        w_star = normal(random, self.d)
        self.w_star = w_star / w_star.norm()
        x = normal(random, *rows.shape, self.d) * self.spectrum.sqrt()
        noise = self.noise * normal(random, *rows.shape)
        self.x = (x * rows[..., None]).to(dtype)
        self.y = ((x @ self.w_star + noise) * rows).to(dtype)

    def gram_extremes(self) -> tuple[Tensor, Tensor]:
        """(λ₁, λ_min) of the sample second moments xᵀx/n_r over their non-zero modes: (R,), (R,)."""
        x, n = self.x.cpu().double(), self.sizes[:, None]
        eigenvalues = torch.linalg.svdvals(x) ** 2 / n  # (R, min(n, d)), decreasing
        last = n.clamp(max=self.d) - 1  # fewer rows than dimensions: as many modes as rows
        return eigenvalues[:, 0], eigenvalues.gather(1, last).squeeze(1)


class GaussianRegression(InMemoryData):
    """Several designs side by side, each with its own batch size, e.g. one tall (n > d) and one wide (d > n).

    A batch is {design: (x (R, b, d), y (R, b), c (R,))}: this rank's rows of the global batch, and the weights c for
    which the mean over ranks of c·Σ_rows(·) is the mean over the global batch. `batch_size` of a design is the global
    batch; null is all rows.
    """

    def __init__(self, designs: dict[str, Design], seed: NonNegativeInt = 0, block_size: PositiveInt = 50) -> None:
        super().__init__(seed, block_size)
        self.designs = dict(designs)

    def load(self) -> None:
        self.orders = {}
        for name, design in self.designs.items():
            design.draw(self.seed, name, self.dtype)
            self.orders[name] = Order(max(design.samples), design.batch_size, self.seed)

    def place(self, device: torch.device) -> None:
        self.shares = {}
        for name, design in self.designs.items():
            design.x, design.y = design.x.to(device), design.y.to(device)
            share = self.orders[name].share(self.rank, self.world_size)
            order = self.orders[name]
            rows = design.sizes if order.full else torch.full_like(design.sizes, order.batch_size)
            weight = (self.world_size / rows.double()).to(device, design.x.dtype)
            self.shares[name] = (design.x[:, share].contiguous(), design.y[:, share].contiguous(), weight)

    def block(self, start: int, stop: int) -> Block:
        columns = {name: self._column(name, start, stop) for name in self.designs}
        batches = [{name: column[s] for name, column in columns.items()} for s in range(stop - start)]
        return Block(start, stop - start, batches)

    def _column(self, name: str, start: int, stop: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        order, design, weight = self.orders[name], self.designs[name], self.shares[name][2]
        if order.full:
            return [self.shares[name]] * (stop - start)
        share = order.share(self.rank, self.world_size)
        rows = torch.stack([order.batch(step)[share] for step in range(start, stop)]).to(design.x.device)  # (S, b)
        x, y = design.x[:, rows], design.y[:, rows]  # (R, S, b, d), (R, S, b): one gather for the block
        return [(x[:, s], y[:, s], weight) for s in range(stop - start)]
