"""Images as centred vectors: the handwritten digits shipped with scikit-learn."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lab.data.blocks import Block, InMemoryData, Order
from lab.errors import Refusal
from lab.types import NonNegativeInt, PositiveInt


class Images(InMemoryData):
    """Images as vectors x ∈ ℝᵈ, served as batches (x (b, d), c).

    c is the scalar for which the mean over ranks of c·mean_rows(·) is the mean over the global batch.

    Attributes:
        x: (n, d). n, d: its shape. shape: height and width of an image. labels: (n,), what each image shows.
        mean: (d,), what was subtracted from the pixels. held_out: (n', d), images that are not trained on, or None.
    """

    def __init__(
        self, batch_size: PositiveInt | None = None, seed: NonNegativeInt = 0, block_size: PositiveInt = 50
    ) -> None:
        super().__init__(seed, block_size)
        self.batch_size = batch_size

    n: int
    d: int
    shape: tuple[int, ...]
    labels: Tensor
    held_out: Tensor | None = None

    @abstractmethod
    def images(self) -> Tensor:
        """The raw images, (n, height, width)."""

    def load(self) -> None:
        images = self.images()
        self.shape = tuple(images.shape[1:])
        self.x = images.flatten(1)
        self.n, self.d = self.x.shape
        self.mean = torch.zeros(self.d, dtype=torch.float64)
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
        self.whole = self.as_pixels(self.x[share]) if self.order.full else None
        self.weight = (share.stop - share.start) * self.world_size / self.order.batch_size

    def as_pixels(self, x: Tensor) -> Tensor:
        """Rows of `x` as they are trained on, in `self.dtype`."""
        return x

    def block(self, start: int, stop: int) -> Block:
        if self.whole is not None:
            return Block(start, stop - start, [(self.whole, self.weight)] * (stop - start))
        share = self.order.share(self.rank, self.world_size)
        rows = torch.stack([self.order.batch(step)[share] for step in range(start, stop)]).to(self.x.device)  # (S, b)
        batches = ((self.as_pixels(self.x.index_select(0, row)), self.weight) for row in rows)
        return Block(start, stop - start, batches)

    def noise(self, start: int, stop: int, *shape: int) -> Tensor:
        """N(0, 1) draws for this rank's rows of the batches of steps `start` … `stop` − 1: (S, b, *shape)."""
        share = self.order.share(self.rank, self.world_size)
        return self.order.noise(range(start, stop), share, *shape).to(self.x.device, self.dtype)

    def examples(self, n: int) -> tuple[Tensor, Tensor]:
        """(images (≤ n, d), labels) to look at and to judge by: held out from training where there are such."""
        return self.as_pixels(self.x[:n]), self.labels[:n]


class CentredImages(Images):
    """Images whose mean has been subtracted."""

    def load(self) -> None:
        super().load()
        x = self.x.double()
        self.mean = x.mean(0)
        self.x = (x - self.mean).to(self.dtype)


class GreyImages(Images):
    """Images of `grey` levels from 0 to 1, and images held out.

    They lie on the device as the bytes that they are, a quarter of their size as numbers, and a batch at a time is
    scaled.

    Attributes:
        grey: levels of grey. held_out: (n', d), held_out_labels: (n',); bytes, as `x` is.
    """

    grey: int
    held_out: Tensor
    held_out_labels: Tensor

    def as_pixels(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).div_(self.grey - 1)

    def examples(self, n: int) -> tuple[Tensor, Tensor]:
        return self.as_pixels(self.held_out[:n]), self.held_out_labels[:n]


def read_digits() -> tuple[Tensor, Tensor]:
    """(images (1797, 8, 8) of 0 … 16, labels (1797,)): the file that scikit-learn's `load_digits` reads.

    It is read without the second that importing scikit-learn takes.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return torch.from_numpy(rows[:, :-1].reshape(-1, 8, 8)), torch.from_numpy(rows[:, -1]).long()


class Digits(CentredImages):
    """1797 handwritten digits of 8×8 pixels with values 0 … 16 (Alpaydin & Kaynak 1998), shipped with scikit-learn."""

    n, d = 1797, 64
    shape = (8, 8)

    def images(self) -> Tensor:
        images, self.labels = read_digits()
        return images


class GreyDigits(GreyImages):
    """The same digits, not centred, with values from 0 to 1; every fifth, 360 of them, is held out."""

    n, d, grey = 1437, 64, 17
    shape = (8, 8)

    def images(self) -> Tensor:
        images, labels = read_digits()
        held_out = torch.arange(len(images)) % 5 == 0
        self.held_out, self.held_out_labels = images[held_out].to(torch.uint8).flatten(1), labels[held_out]
        self.labels = labels[~held_out]
        return images[~held_out].to(torch.uint8)
