"""The training loop's unit of work: a block of optimiser steps per `training_step`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lab.data.blocks import Block, InMemoryData
from lab.errors import Refusal


class SteppedModule(LightningModule):
    """Takes one optimiser step per batch of the block, so that the cost of Lightning's loop is paid once a block.

    A subclass states its loss in `objective`. Within a block nothing stands between PyTorch and the step: Lightning's
    `manual_backward` and optimiser wrapper would call the backward and step hooks of every callback each time, which
    costs as much as a tiny step itself. What they do beside that is done here: the strategy readies DDP's reducer
    before each backward, so every step averages gradients over ranks, and each step counts in `trainer.global_step`.
    Callbacks see whole blocks. There is no gradient scaler; `lab.check` refuses the precisions that need one.

    Args:
        optimizer: parameters → optimiser.
        scheduler: optimiser → learning-rate schedule, stepped every optimiser step.
    """

    splits = True
    """Whether it trains with its weights spread over the ranks."""

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._make_optimizer, self._make_scheduler = optimizer, scheduler

    def setup(self, stage: str) -> None:
        try:
            self.check(self.trainer.datamodule)  # type: ignore[attr-defined]
        except Refusal as refusal:
            raise refusal.within("model") from None

    def configure_model(self) -> None:
        """Under `trainer.strategy=fsdp`, split every network over the ranks.

        `objective` may read the weights of a network that it has called; at all other times a rank has its part alone.
        """
        mesh: Any = self.device_mesh
        if mesh is None:
            return
        if not self.splits:
            raise Refusal(f"trainer.strategy=fsdp is not allowed: {type(self).__name__} needs its weights whole")
        if any(True for _ in self.parameters(recurse=False)):
            raise Refusal("trainer.strategy=fsdp is not allowed: the model has weights outside its networks")
        for network in _networks(self):
            _shard(network, mesh["data_parallel"])

    def check(self, data: InMemoryData) -> None:
        """Raise `Refusal` where this model cannot be trained on these data.

        `lab.signature.checks` reads it before anything is imported, so it speaks of parameters as far as it can.
        """

    def batches(self, block: Block) -> Iterable[Any]:
        """What `objective` is given at each step: the block's batches, with the draws of a loss that is random.

        Draws belong here, a block's at once, and come from `Order.noise`: the same for every world size and after
        every resume.
        """
        return block.batches

    @abstractmethod
    def objective(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """(what is minimised, what is logged) on this rank's slice; their means over ranks are the global batch's.

        Of a logged tensor with several elements the mean is logged.
        """

    def after_step(self, step: int) -> None:
        """Called after the optimiser step number `step` (counted from 0)."""

    def training_step(self, block: Block, batch_idx: int) -> dict[str, Any]:
        """Train on the block; returns what `objective` gave to be logged, one entry a step."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        ready = self.trainer.strategy.pre_backward
        counted = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        logged = []
        for step, batch in enumerate(self.batches(block), block.step):
            loss, metrics = self.objective(batch)
            optimizer.zero_grad()
            ready(loss)
            loss.backward()
            counted.increment_ready()
            optimizer.step()
            counted.increment_completed()
            if scheduler is not None:
                scheduler.step()
            self.after_step(step)
            logged.append(metrics)
        return {"metrics": logged}

    def configure_optimizers(self) -> Any:
        """The optimiser over all parameters, with its schedule where there is one."""
        optimizer = _made("model.optimizer", self._make_optimizer, self.parameters())
        if self._make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": _made("model.scheduler", self._make_scheduler, optimizer)}


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """What is called as one: children, or where those are in a list or a dictionary, its entries."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _networks(child)
        elif any(True for _ in child.parameters()):
            yield child


def _shard(network: nn.Module, mesh: Any) -> None:
    """Split a network's weights; those of layers that it keeps in a list are gathered one layer at a time."""
    from torch.distributed.fsdp import fully_shard

    for inner in network.modules():
        if isinstance(inner, nn.ModuleList | nn.Sequential):
            for layer in _networks(inner):
                fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _made(key: str, make: Callable[[Any], Any], what: Any) -> Any:
    """`make(what)`; what it refuses is the fault of the values that the node at `key` gave it."""
    try:
        return make(what)
    except Exception as error:
        said = " ".join(str(error).split())
        raise Refusal(f"{key} cannot be made: {type(error).__name__}: {said}") from error
