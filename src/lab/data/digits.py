"""Images as centred vectors: the handwritten digits shipped with scikit-learn."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lab.data.blocks import Block, InMemoryData, Order
from lab.errors import Refusal
from lab.types import NonNegativeInt, PositiveInt


class CentredImages(InMemoryData):
    """Vectors x ∈ ℝᵈ with their mean subtracted, served as batches (x (b, d), c).

    c is the scalar for which the mean over ranks of c·mean_rows(·) is the mean over the global batch.

    Attributes:
        x: (n, d), centred. n, d: its shape. mean: (d,), what was subtracted. shape: height and width of an image.
    """

    def __init__(
        self, batch_size: PositiveInt | None = None, seed: NonNegativeInt = 0, block_size: PositiveInt = 50
    ) -> None:
        super().__init__(seed, block_size)
        self.batch_size = batch_size

    n: int
    d: int

    def images(self) -> Tensor:
        """The raw images, (n, height, width)."""
        raise NotImplementedError

    def load(self) -> None:
        images = self.images()
        self.shape = tuple(images.shape[1:])
        x = images.flatten(1).double()
        self.mean = x.mean(0)
        self.x = (x - self.mean).to(self.dtype)
        self.n, self.d = x.shape
        self.order = Order(self.n, self.batch_size, self.seed)

    def check(self) -> None:
        if self.batch_size is not None and self.batch_size > self.n:
            raise Refusal(
                f"data.batch_size={self.batch_size} is more than the {self.n} samples there are; "
                f"allowed: 1..{self.n} or null"
            )
        if self.world_size > self.n:
            raise Refusal(
                f"trainer.devices={self.world_size} is more than the {self.n} samples there are: one has none"
            )

    def place(self, device: torch.device) -> None:
        self.x = self.x.to(device)
        share = self.order.share(self.rank, self.world_size)
        self.whole = self.x[share] if self.order.full else None
        self.weight = (share.stop - share.start) * self.world_size / self.order.batch_size

    def block(self, start: int, stop: int) -> Block:
        if self.whole is not None:
            return Block(start, stop - start, [(self.whole, self.weight)] * (stop - start))
        share = self.order.share(self.rank, self.world_size)
        rows = torch.stack([self.order.batch(step)[share] for step in range(start, stop)]).to(self.x.device)  # (S, b)
        return Block(start, stop - start, ((self.x.index_select(0, row), self.weight) for row in rows))


class Digits(CentredImages):
    """1797 handwritten digits of 8×8 pixels with values 0 … 16 (Alpaydin & Kaynak 1998), shipped with scikit-learn."""

    n, d = 1797, 64

    def images(self) -> Tensor:
        # the file that load_digits reads, without the second that importing scikit-learn takes
        package = importlib.util.find_spec("sklearn")
        assert package is not None
        assert package.origin is not None
        rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
        return torch.from_numpy(rows[:, :-1].reshape(-1, 8, 8))
