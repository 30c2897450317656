"""Sequences of symbols: what a model of the next one is trained on."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lab.data.blocks import Block, InMemoryData, Order
from lab.errors import Refusal
from lab.types import NonNegativeInt, PositiveInt


class Sequences(InMemoryData):
    """Sequences served as batches ((x (b, T+1), …), c): of each kind of sequence a tensor of symbols 0, 1, ….

    c is the scalar for which the mean over ranks of c·mean_rows(·) is the mean over the global batch.

    Args:
        context: T, how many symbols are predicted; the last of T + 1 is looked at no more.
        batch_size: of the global batch.

    Attributes:
        symbols: how many there are, known when the data are loaded. begin: a symbol that stands at the beginning of
            every sequence and nowhere else, or None. characters: what each symbol stands for, "" where for itself.
    """

    symbols: int
    begin: int | None = None
    characters: str = ""

    def __init__(
        self,
        context: PositiveInt = 64,
        batch_size: PositiveInt = 64,
        seed: NonNegativeInt = 0,
        block_size: PositiveInt = 50,
    ) -> None:
        super().__init__(seed, block_size)
        self.context, self.batch_size = context, batch_size

    def load(self) -> None:
        self.order = Order(self.batch_size, None, self.seed)
        self._device = torch.device("cpu")

    def check(self) -> None:
        if self.world_size > self.batch_size:
            raise Refusal(f"trainer.devices={self.world_size} is more than data.batch_size={self.batch_size}")

    def place(self, device: torch.device) -> None:
        self._device = device

    @abstractmethod
    def drawn(self, steps: range) -> tuple[Tensor, ...]:
        """The global batches of `steps`, of each kind of sequence: (S, B, T+1)."""

    @abstractmethod
    def held_out(self, n: int) -> Tensor:
        """n sequences of the first kind that training never sees, the same at every call: (n, T+1) on the CPU."""

    def block(self, start: int, stop: int) -> Block:
        share = self.order.share(self.rank, self.world_size)
        weight = (share.stop - share.start) * self.world_size / self.batch_size
        kinds = [x[:, share].to(self._device) for x in self.drawn(range(start, stop))]
        return Block(start, stop - start, ((rows, weight) for rows in zip(*kinds, strict=True)))
