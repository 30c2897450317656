"""Saving whole checkpoints, now and then and when the run is told to stop."""

from __future__ import annotations

import io
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from lab.rundir import RunDir, sealed, write_atomically
from lab.types import NonNegativeInt, Positive, PositiveInt


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, sealed with a digest by which damage is found before one is used."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        archive = io.BytesIO()  # torch hides why a write failed, so it writes where none can
        torch.save(checkpoint, archive)
        write_atomically(path, sealed(archive.getvalue()))


class Checkpoints(Callback):
    """Saves at the end of a block every so many seconds (or steps), at SIGTERM and SIGINT, and when training ends.

    A signal handler runs between any two instructions, where a collective would deadlock the ranks; it only sets a
    flag. At the end of each block the ranks agree on what to do: nothing, save, or save and stop.

    Args:
        every_seconds: of wall clock on any rank; null for never.
        every_n_steps: of the optimiser, rounded up to the end of the block; null for never.
        keep: how many of the newest checkpoints stay.

    Attributes:
        stopped_by: the signal that ended training, or None.
    """

    def __init__(
        self,
        every_seconds: Positive | None = 30.0,
        every_n_steps: PositiveInt | None = None,
        keep: PositiveInt = 2,
    ) -> None:
        self.every_seconds, self.every_n_steps, self.keep = every_seconds, every_n_steps, keep
        self.stopped_by: signal.Signals | None = None
        self._signal: NonNegativeInt = 0
        self._handlers: Mapping[int, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handlers = {s: signal.signal(s, self._flag) for s in (signal.SIGINT, signal.SIGTERM)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        save, signum = self._agree(trainer, self._is_due(trainer.global_step), self._signal)
        if save or signum:
            self._save(trainer)
        if signum:
            self.stopped_by = signal.Signals(signum)
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._saved_step:
            self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        if self._signal and self.stopped_by is None:  # it came after the last block
            signal.raise_signal(self._signal)

    def _flag(self, signum: int, frame: FrameType | None) -> None:
        if self._signal == signal.SIGINT == signum:  # asked twice: now
            signal.signal(signum, self._handlers[signum])
            signal.raise_signal(signum)
        self._signal = signum

    def _is_due(self, step: int) -> bool:
        by_time = self.every_seconds is not None and time.monotonic() - self._saved_at >= self.every_seconds
        by_step = self.every_n_steps is not None and step // self.every_n_steps > self._saved_step // self.every_n_steps
        return by_time or by_step

    @staticmethod
    def _agree(trainer: Trainer, due: bool, signum: int) -> tuple[bool, int]:
        if trainer.world_size == 1:
            return due, signum
        wish = torch.tensor([int(due), signum], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(wish, op=torch.distributed.ReduceOp.MAX)
        due_somewhere, signum_somewhere = wish.tolist()
        return bool(due_somewhere), signum_somewhere

    def _save(self, trainer: Trainer) -> None:
        folder = RunDir(Path(trainer.default_root_dir)).checkpoints
        for logger in trainer.loggers:
            logger.save()  # what is logged up to this step is on disk before the step is
        trainer.save_checkpoint(folder / f"step-{trainer.global_step:09d}.ckpt")
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            for old in sorted(folder.glob("step-*.ckpt"))[: -self.keep]:
                old.unlink()
