"""Images as distributions of ink over their pixels."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le, MaxLen, MinLen

from lab.data.blocks import Block, InMemoryData, Order
from lab.data.digits import read_digits
from lab.errors import Refusal
from lab.random import generator
from lab.types import NonNegativeInt, PositiveInt


class DigitHistograms(InMemoryData):
    """Handwritten digits of 8×8 pixels whose grey values sum to 1, four of them at the corners of a square of mixtures.

    A batch holds this rank's part of the `side`² mixtures, all of them at every step: (rows (r,), λ (r, 4), corners
    (r, 4, n), c). c is the scalar for which the mean over ranks of c·mean_rows(·) is that over all mixtures.

    Attributes:
        grid: (n, 2), the pixels' places; neighbours are 1 apart. n, shape: of an image.
        corners: (4, n), an image of each of `digits`. mixtures: (side², 4), λ: bilinear, rows from the first corner to
            the third. pool: (images, n), images to compare, pool_labels: (images,), in order. All in float64.

    Args:
        digits: what the corners show. seed: chooses which of the images that do.
        images: how many there are to compare, as many of one digit as of another.
    """

    n, shape = 64, (8, 8)

    def __init__(
        self,
        digits: Annotated[list[Annotated[int, Ge(0), Le(9)]], MinLen(4), MaxLen(4)] = [0, 2, 3, 7],  # noqa: B006
        side: Annotated[int, Ge(2)] = 4,
        images: PositiveInt = 20,
        seed: NonNegativeInt = 0,
        block_size: PositiveInt = 50,
    ) -> None:
        super().__init__(seed, block_size)
        self.digits, self.side, self.images = list(digits), side, images

    def load(self) -> None:
        pixels, labels = read_digits()
        ink = pixels.flatten(1) / pixels.sum((1, 2)).unsqueeze(1)
        order = torch.randperm(len(ink), generator=generator(self.seed, "DigitHistograms"))
        ink, labels = ink[order], labels[order]
        of = [(labels == digit).nonzero().squeeze(1) for digit in range(10)]
        self.corners = ink[torch.stack([of[digit][0] for digit in self.digits])]
        chosen = torch.cat([of[d][1 : 1 + self.images // 10 + (d < self.images % 10)] for d in range(10)])
        self.pool, self.pool_labels = ink[chosen], labels[chosen]
        height, width = (torch.arange(size, dtype=torch.float64) for size in self.shape)
        self.grid = torch.cartesian_prod(height, width)
        along = torch.linspace(0, 1, self.side, dtype=torch.float64)
        s, t = torch.cartesian_prod(along, along).mT
        self.mixtures = torch.stack([(1 - s) * (1 - t), (1 - s) * t, s * (1 - t), s * t], -1)
        self.order = Order(len(self.mixtures), None, self.seed)

    def check(self) -> None:
        if self.world_size > self.side**2:
            raise Refusal(
                f"trainer.devices={self.world_size} is more than the {self.side**2} mixtures there are: one has none"
            )

    def place(self, device: torch.device) -> None:
        share = self.order.share(self.rank, self.world_size)
        rows = torch.arange(share.start, share.stop, device=device)
        mixtures = self.mixtures[share].to(device, self.dtype)
        corners = self.corners.to(device, self.dtype).expand(len(rows), -1, -1)
        self.share = rows, mixtures, corners, len(rows) * self.world_size / len(self.mixtures)

    def block(self, start: int, stop: int) -> Block:
        return Block(start, stop - start, [self.share] * (stop - start))
