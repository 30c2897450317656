"""The objects that a frozen config describes: whatever its constructors raise is a Refusal that names the node.

`lab.run` imports this, after it has hidden from torchmetrics what takes seconds to import.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from omegaconf import DictConfig, OmegaConf

from lab.callbacks.checkpoints import AtomicCheckpointIO
from lab.errors import Refusal
from lab.fastimport import without_inductor
from lab.loggers import MetricsFile
from lab.machine import world_size
from lab.rundir import RunDir


def made(cfg: DictConfig, key: str, **more: Any) -> Any:
    """What the node at `key` describes; whatever its constructors raise is a Refusal that names the node."""
    try:
        return instantiate(OmegaConf.select(cfg, key), **more)
    except InstantiationException as error:
        place = re.search(r"^full_key: (\S+)", str(error), re.MULTILINE)
        raise _refusal(place[1] if place else key, error.__cause__ or error) from error


def _refusal(key: str, error: BaseException) -> Refusal:
    """An error that the values of the node at `key` led to, in one line that says where it was raised."""
    if isinstance(error, Refusal):
        return error.within(key)
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split()) or "no reason given"
    return Refusal(f"{key}: {type(error).__name__}: {said} ({Path(where.filename).name}:{where.lineno})")


def make_trainer(
    cfg: DictConfig, run: RunDir, checkpoint: Path | None, rank: int, checks: list[pl.Callback]
) -> pl.Trainer:
    """Lightning's Trainer as the config says, with `checks` before the other callbacks; rank 0 alone has loggers."""
    loggers: list[Any] = []
    if rank == 0:
        resumed_at = int(checkpoint.stem.removeprefix("step-")) if checkpoint else 0
        loggers = [MetricsFile(run.metrics, resumed_at)]
        loggers += [made(cfg, f"logger.{name}", id=cfg.id, save_dir=str(run.path)) for name in cfg.logger]
    options: dict[str, Any] = {}
    if (ranks := world_size(cfg)) == 1:
        options["strategy"] = "auto"
    elif cfg.trainer.get("strategy", "auto") == "fsdp":  # one whole checkpoint, which AtomicCheckpointIO seals
        options["strategy"] = ModelParallelStrategy(ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)
    else:
        # buffers are computed alike on every rank, there is nothing to broadcast at each forward
        options["strategy"] = DDPStrategy(broadcast_buffers=False)
    callbacks = [*checks, *(made(cfg, f"callbacks.{name}") for name in cfg.callbacks)]
    with without_inductor():
        trainer: pl.Trainer = made(
            cfg,
            "trainer",
            logger=loggers,
            callbacks=callbacks,
            plugins=[LightningEnvironment(), AtomicCheckpointIO()],
            default_root_dir=str(run.path),
            max_epochs=-1,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
    # what `deterministic` brings along is a help to find reads of memory that nobody wrote, at a write of every tensor
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Checkpoints handles signals; Lightning would put its own handler in front, which runs a collective in mid-step
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer
