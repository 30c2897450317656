"""Progress in optimiser steps: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from lab.data.blocks import Block
from lab.types import Positive


class Progress(Callback):
    """Shows step, rate and remaining time on rank 0.

    Args:
        every_seconds: between two lines where standard error is not a terminal.
    """

    def __init__(self, every_seconds: Positive = 10.0) -> None:
        self.every_seconds = every_seconds
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._since = self._said = time.monotonic()
            self._first = trainer.global_step
            if sys.stderr.isatty():
                self._bar = tqdm(
                    total=trainer.max_steps, initial=self._first, unit="step", leave=False, dynamic_ncols=True
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Block, batch_idx: int
    ) -> None:
        if self._bar is not None:
            self._bar.update(len(batch))
        elif trainer.is_global_zero and (now := time.monotonic()) - self._said >= self.every_seconds:
            self._said = now
            rate = (trainer.global_step - self._first) / (now - self._since)
            left = (trainer.max_steps - trainer.global_step) / rate
            print(
                f"step {trainer.global_step}/{trainer.max_steps}, {rate:.0f} steps/s, {left:.0f} s left",
                file=sys.stderr,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
