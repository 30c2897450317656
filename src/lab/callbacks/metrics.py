"""Metrics on the global step, averaged over ranks, to every logger."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lab.data.blocks import Block


class Metrics(Callback):
    """Logs what the steps of a block returned, every `log_every_n_steps` steps and at the last one.

    Each rank's value is already weighted by its number of samples (see `SteppedModule.objective`), so the mean over
    ranks, taken in float64, is the global batch's. Only logged values leave the device.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Block, batch_idx: int
    ) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        steps = [s for s in range(batch.step, batch.step + len(batch)) if s % every == 0 or s + 1 == trainer.max_steps]
        if not steps:
            return
        chosen = [outputs["metrics"][s - batch.step] for s in steps]
        names = list(chosen[0])
        values = torch.stack([torch.stack([metrics[name].mean() for name in names]) for metrics in chosen]).double()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(values)
            values /= trainer.world_size
        if trainer.is_global_zero:
            for step, row in zip(steps, values.tolist(), strict=True):
                metrics = dict(zip(names, row, strict=True))
                for logger in trainer.loggers:
                    logger.log_metrics(metrics, step)
        trainer.callback_metrics.update(dict(zip(names, values[-1], strict=True)))
