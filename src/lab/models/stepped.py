"""The training loop's unit of work: a block of optimiser steps per `training_step`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lab.data.blocks import Block


class SteppedModule(LightningModule):
    """Takes one optimiser step per batch of the block, so that the cost of Lightning's loop is paid once a block.

    A subclass states its loss in `objective`. Lightning synchronises gradients in every `manual_backward`, so under
    DDP each of the block's steps averages over ranks as usual.

    Args:
        optimizer: parameters → optimiser.
        scheduler: optimiser → learning-rate schedule, stepped every optimiser step.
    """

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._make_optimizer, self._make_scheduler = optimizer, scheduler

    @abstractmethod
    def objective(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """(what is minimised, what is logged) on this rank's slice; their means over ranks are the global batch's
        values."""

    def after_step(self, step: int) -> None:
        """Called after the optimiser step number `step` (counted from 0)."""

    def training_step(self, block: Block, batch_idx: int) -> dict[str, Any]:
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        logged = []
        for step, batch in enumerate(block.batches, block.step):
            loss, metrics = self.objective(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            self.after_step(step)
            logged.append(metrics)
        return {"metrics": logged}

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.parameters())
        if self._make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._make_scheduler(optimizer)}
