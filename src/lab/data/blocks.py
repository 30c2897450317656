"""The order of the data as a function of (seed, step): the same global batches for every world size and after every
resume."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lab.random import generator, normal, uniform
from lab.types import NonNegativeInt, PositiveInt

DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


class Order:
    """Which samples make up the global batch of each step.

    An epoch is a permutation of 0 … n−1 that depends on (seed, epoch) alone, cut into ⌊n/B⌋ batches; what is left
    over sits this epoch out. `batch_size=None` is the full batch, in the data's own order; else it is at most n.
    """

    def __init__(self, n: int, batch_size: int | None, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size or n, seed
        self.full = batch_size is None
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)

    def batch(self, step: int) -> Tensor:
        """Indices of the global batch of `step`: (B,)."""
        epoch, within = divmod(step, self.n // self.batch_size)
        if epoch != self._epoch:
            self._permutation = torch.randperm(self.n, generator=generator(self.seed, "order", epoch))
            self._epoch = epoch
        return self._permutation[within * self.batch_size : (within + 1) * self.batch_size]

    def noise(self, steps: Iterable[int], share: slice, *shape: int) -> Tensor:
        """N(0, 1) draws for the rows `share` of the global batches of `steps`: (S, b, *shape), on the CPU in float64.

        Those of a row are a function of seed, step and the row's place in the global batch alone: the global batch's
        noise is drawn, and the share cut from it.
        """
        draws = [normal(generator(self.seed, "noise", step), self.batch_size, *shape)[share] for step in steps]
        return torch.stack(draws)

    def uniform(self, steps: Iterable[int], share: slice, *shape: int) -> Tensor:
        """U(0, 1) draws as `noise` has normal ones, independent of those."""
        draws = [uniform(generator(self.seed, "uniform", step), self.batch_size, *shape)[share] for step in steps]
        return torch.stack(draws)

    def share(self, rank: int, world_size: int) -> slice:
        """The part of a global batch that `rank` computes: contiguous, sizes differing by at most one."""
        cuts = [self.batch_size * r // world_size for r in (rank, rank + 1)]
        return slice(*cuts)


class Block:
    """Consecutive steps handed to one `training_step`; `batches` yields this rank's slices for `step`, `step` + 1, …

    It may be a generator, so that of large batches only one is in memory at a time.
    """

    __slots__ = ("batches", "length", "step")

    def __init__(self, step: int, length: int, batches: Iterable[Any]) -> None:
        self.step, self.length, self.batches = step, length, batches

    def __len__(self) -> int:
        return self.length


class Blocks:
    """Blocks from step `start` to `stop`, cut where a run that began at step 0 would cut them."""

    def __init__(self, fetch: Callable[[int, int], Block], start: int, stop: int, size: int) -> None:
        self.fetch, self.start, self.stop, self.size = fetch, start, stop, size

    def __iter__(self) -> Iterator[Block]:
        step = self.start
        while step < self.stop:
            end = min(self.stop, (step // self.size + 1) * self.size)
            yield self.fetch(step, end)
            step = end


class InMemoryData(LightningDataModule):
    """Data held on the training device and served in blocks.

    A subclass fills its tensors in `load` (on the CPU, in `self.dtype`), moves them in `place`, and cuts a block in
    `block`.

    Args:
        seed: of the order and of whatever the data draw.
        block_size: optimiser steps per `training_step`; the cost of the loop around a tiny model is paid once a block.
    """

    def __init__(self, seed: NonNegativeInt = 0, block_size: PositiveInt = 50) -> None:
        super().__init__()
        self.seed, self.block_size = seed, block_size
        self.dtype = torch.float32
        self.rank, self.world_size = 0, 1
        self._loaded = False

    @abstractmethod
    def load(self) -> None:
        """Draw or read the data, once."""

    def check(self) -> None:
        """Raise `Refusal` where what was loaded does not allow the parameters, or too many ranks share it."""

    @abstractmethod
    def place(self, device: torch.device) -> None:
        """Move them to the device that trains, cut to this rank's share."""

    @abstractmethod
    def block(self, start: int, stop: int) -> Block:
        """The batches of steps start … stop − 1."""

    def setup(self, stage: str | None = None) -> None:
        trainer = self.trainer
        if trainer is not None:
            self.dtype = DTYPES.get(str(trainer.precision), torch.float32)
            self.rank, self.world_size = trainer.global_rank, trainer.world_size
        if not self._loaded:
            self.load()
            self._loaded = True
            self.check()
        if trainer is not None:
            self.place(trainer.strategy.root_device)

    def train_dataloader(self) -> Blocks:
        assert self.trainer is not None
        return Blocks(self.block, self.trainer.global_step, self.trainer.max_steps, self.block_size)
