"""Images as centred vectors: the handwritten digits shipped with scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor

from lab.data.blocks import Block, InMemoryData, Order
from lab.types import NonNegativeInt, PositiveInt


class CentredImages(InMemoryData):
    """Vectors x ∈ ℝᵈ with their mean subtracted, served as batches (x (b, d), c).

    c is the scalar for which the mean over ranks of c·mean_rows(·) is the mean over the global batch.

    Attributes:
        x: (n, d), centred. mean: (d,), what was subtracted. shape: height and width of an image.
    """

    def __init__(
        self, batch_size: PositiveInt | None = None, seed: NonNegativeInt = 0, block_size: PositiveInt = 50
    ) -> None:
        super().__init__(seed, block_size)
        self.batch_size = batch_size

    def images(self) -> Tensor:
        """The raw images, (n, height, width)."""
        raise NotImplementedError

    def load(self) -> None:
        images = self.images()
        self.shape = tuple(images.shape[1:])
        x = images.flatten(1).double()
        self.mean = x.mean(0)
        self.x = (x - self.mean).to(self.dtype)
        self.order = Order(len(x), self.batch_size, self.seed)

    def place(self, device: torch.device) -> None:
        self.x = self.x.to(device)
        share = self.order.share(self.rank, self.world_size)
        self.whole = self.x[share] if self.order.full else None
        self.weight = (share.stop - share.start) * self.world_size / self.order.batch_size

    def block(self, start: int, stop: int) -> Block:
        if self.whole is not None:
            return Block(start, [(self.whole, self.weight)] * (stop - start))
        share = self.order.share(self.rank, self.world_size)
        rows = torch.stack([self.order.batch(step)[share] for step in range(start, stop)]).to(self.x.device)  # (S, b)
        return Block(start, [(x, self.weight) for x in self.x[rows].unbind(0)])


class Digits(CentredImages):
    """1797 handwritten digits of 8×8 pixels with values 0 … 16 (Alpaydin & Kaynak 1998), shipped with scikit-learn."""

    def images(self) -> Tensor:
        from sklearn.datasets import load_digits

        return torch.from_numpy(load_digits().images)
