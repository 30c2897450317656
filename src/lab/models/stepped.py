"""The training loop's unit of work: a block of optimiser steps per `training_step`."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lab.data.blocks import Block, InMemoryData
from lab.errors import Refusal
from lab.types import Fraction, Positive, PositiveInt


class SteppedModule(LightningModule):
    """Takes one optimiser step per batch of the block, so that the cost of Lightning's loop is paid once a block.

    A subclass states its loss in `objective`. Within a block nothing stands between PyTorch and the step: Lightning's
    `manual_backward` and optimiser wrapper would call the backward and step hooks of every callback each time, which
    costs as much as a tiny step itself. What they do beside that is done here: the strategy readies DDP's reducer
    before each backward, so every step averages gradients over ranks, and each step counts in `trainer.global_step`.
    Callbacks see whole blocks. There is no gradient scaler; `lab.check` refuses the precisions that need one.

    A subclass hands these on as keywords:

    Args:
        optimizer: parameters → optimiser.
        scheduler: optimiser → learning-rate schedule, stepped every optimiser step.
        clip: the longest gradient that is followed, ‖g‖₂ over all weights; a longer one is shortened to it.
        accumulate: parts that this rank's rows of a batch are worked through in, each with a backward pass of its own:
            the same step with the activations of one part in memory at a time.
        ema: decay of the exponential moving average θ̄ ← δθ̄ + (1 − δ)θ of the weights, δ = min(ema, (1 + t)/(10 + t))
            at step t, so that the first weights are soon forgotten. The average is what checkpoints give to `lab
            sample` and what the claims judge; training goes on from θ, which checkpoints hold too.
        compiled: let `torch.compile` compile `objective`: minutes at the start for a faster step.
        matmul: what a product of float32 matrices may be: `highest` is float32; with `high` a GPU may round factors to
            TensorFloat32; with `medium` a CPU goes through oneDNN, which rounds factors to bfloat16 where the processor
            multiplies such (AMX), and is float32 elsewhere.
    """

    splits = True
    """Whether it trains with its weights spread over the ranks."""

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        clip: Positive | None = None,
        accumulate: PositiveInt = 1,
        ema: Fraction | None = None,
        compiled: bool = False,
        matmul: Literal["highest", "high", "medium"] = "highest",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self.clip, self.accumulate, self.ema, self.compiled = clip, accumulate, ema, compiled
        self.matmul = matmul
        self._average: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        try:
            self.check(self.trainer.datamodule)  # type: ignore[attr-defined]
        except Refusal as refusal:
            raise refusal.within("model") from None
        torch.set_float32_matmul_precision(self.matmul)
        self._objective = torch.compile(self.objective) if self.compiled else self.objective

    def configure_model(self) -> None:
        """Under `trainer.strategy=fsdp`, split every network over the ranks.

        `objective` may read the weights of a network that it has called; at all other times a rank has its part alone.
        """
        mesh: Any = self.device_mesh
        if mesh is None:
            return
        if not self.splits:
            raise Refusal(f"trainer.strategy=fsdp is not allowed: {type(self).__name__} needs its weights whole")
        if self.ema is not None:
            raise Refusal(f"model.ema={self.ema} is not allowed with trainer.strategy=fsdp: weights are averaged whole")
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

    def groups(self) -> Iterable[Any]:
        """What the optimiser is given: all parameters, or groups of them with settings of their own."""
        return self.parameters()

    def after_step(self, step: int) -> None:
        """Called after the optimiser step number `step` (counted from 0)."""

    def training_step(self, block: Block, batch_idx: int) -> dict[str, Any]:
        """Train on the block; returns what `objective` gave to be logged, one entry a step."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        counted = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        logged = []
        for step, batch in enumerate(self.batches(block), block.step):
            optimizer.zero_grad()
            metrics = self._backward(batch)
            if self.clip is not None:
                norm: Any = clip_grad_norm_(self.parameters(), self.clip)
                metrics["gradient_norm"] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            counted.increment_ready()
            optimizer.step()
            counted.increment_completed()
            if scheduler is not None:
                scheduler.step()
            if self.ema is not None:
                self._follow(step, self.ema)
            self.after_step(step)
            logged.append(metrics)
        return {"metrics": logged}

    def _backward(self, batch: Any) -> dict[str, Tensor]:
        """The gradient of `objective`, averaged over ranks, is added to the weights'; returns what is logged."""
        strategy: Any = self.trainer.strategy
        if self.accumulate == 1:
            loss, metrics = self._objective(batch)
            strategy.pre_backward(loss)
            loss.backward()
            return metrics
        rows = _rows(batch)
        cuts = [rows * i // self.accumulate for i in range(self.accumulate + 1)]
        parts = [(start, stop) for start, stop in itertools.pairwise(cuts) if stop > start]
        total: dict[str, Tensor] = {}
        for start, stop in parts:
            alone = stop < rows and hasattr(strategy, "block_backward_sync")  # ranks add up with the last part
            with strategy.block_backward_sync() if alone else nullcontext():
                loss, metrics = self._objective(_cut(batch, start, stop))
                share = (stop - start) / rows
                strategy.pre_backward(loss)
                (share * loss).backward()
            for name, value in metrics.items():
                part = share * value.mean()
                total[name] = total[name] + part if name in total else part
        return total

    def _follow(self, step: int, decay: float) -> None:
        """θ̄ ← δθ̄ + (1 − δ)θ after step `step`."""
        follow = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
        weights = dict(self.named_parameters())
        follow([self._average[name] for name in weights], [p.detach() for p in weights.values()], step)

    def on_fit_start(self) -> None:
        if self.ema is not None:  # a checkpoint has been restored by now, on the CPU
            start = {name: self._average.get(name, p) for name, p in self.named_parameters()}
            self._average = {name: start[name].detach().to(p, copy=True) for name, p in self.named_parameters()}

    def on_fit_end(self) -> None:  # also where a run resumes at its last step and trains no more
        with torch.no_grad():
            for name, p in self.named_parameters():
                if name in self._average:
                    p.copy_(self._average[name])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._average:
            state = checkpoint["state_dict"]
            checkpoint["followed"] = {name: state[name] for name in self._average}
            checkpoint["state_dict"] = state | self._average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "followed" in checkpoint:
            state = checkpoint["state_dict"]
            self._average = {name: state[name] for name in checkpoint["followed"]}
            checkpoint["state_dict"] = state | checkpoint["followed"]

    def configure_optimizers(self) -> Any:
        """The optimiser over all parameters, with its schedule where there is one."""
        optimizer = _made("model.optimizer", self._make_optimizer, self.groups())
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


def _rows(batch: Any) -> int:
    """How many rows the tensors of a batch have."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    if isinstance(batch, tuple | list):
        return max(map(_rows, batch), default=0)
    return 0


def _cut(batch: Any, start: int, stop: int) -> Any:
    """Rows `start` … `stop` − 1 of every tensor of a batch; numbers stay as they are."""
    if isinstance(batch, Tensor):
        return batch[start:stop] if batch.ndim else batch
    if isinstance(batch, tuple | list):
        return tuple(_cut(one, start, stop) for one in batch)
    return batch


def _made(key: str, make: Callable[[Any], Any], what: Any) -> Any:
    """`make(what)`; what it refuses is the fault of the values that the node at `key` gave it."""
    try:
        return make(what)
    except Exception as error:
        said = " ".join(str(error).split())
        raise Refusal(f"{key} cannot be made: {type(error).__name__}: {said}") from error
