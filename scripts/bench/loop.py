"""The lab's training loop around a tiny model, against a bare PyTorch loop.

Both train on the same tensors, in the same batch order, with the same optimiser and the same arithmetic, and must end
with bitwise equal weights. The bare loop is what one would write by hand: gather the rows, loss, zero_grad, backward,
step. The lab's is the Trainer exactly as `python -m lab` builds it, with all default logging: metrics.csv, wandb
(offline), progress, checkpoints (one is written when training ends, and counts).

How to read it: `ratio` is the lab's steps per second over the bare loop's in the same repeat; the goal is at least 0.5.
The second table adds the lab's parts to the bare loop one at a time; each line's `adds` is what that part costs a step.
Its last lines train with everything on and replace only how a step calls backward and the optimiser. The third table
varies the block (optimiser steps per training_step) and trains 64 replicates as one batch dimension.
"""

from __future__ import annotations

import itertools
import logging
import os
import statistics
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.bench import _common as common
else:
    import _common as common

PARTS = {
    "bare": "hand-written loop: gather, forward, backward, optimiser",
    "objective": "the module's objective and its blocks, still without Lightning",
    "trainer": "Lightning's Trainer, no callbacks",
    "metrics.csv": "Metrics and the local file",
    "wandb": "wandb, offline",
    "default": "Checkpoints (one at the end) and Progress: all defaults",
}
"""Rungs of the ladder: each has everything the one before has."""

STEPS = {
    "direct": "all defaults; loss.backward() and the optimiser's own step",
    "optimizer": "... with LightningOptimizer.step",
    "wrapped": "... and with manual_backward",
}
"""All defaults, with the training step replaced: what Lightning's wrappers around it cost."""

LINEAR = [
    "experiment=linear_regression",
    "~data.designs.small",
    "~data.designs.wide",
    "~model.nets.small",
    "~model.nets.wide",
    "~controls",
    "data.designs.tall.samples=[4096]",
    "data.designs.tall.batch_size=64",
    "model.record=0",
]
WORKS = {
    "linear regression, d=10, batch 64": ([*LINEAR, "data.designs.tall.replicates=1"], 4000),
    "PCA autoencoder, digits, batch 64": (["experiment=pca_autoencoder", "data.batch_size=64"], 1000),
    "PCA autoencoder, digits, full batch": (["experiment=pca_autoencoder"], 400),
}
"""Overrides and steps."""


def frozen(overrides: Sequence[str], steps: int, block_size: int) -> Any:
    """The composed config as a run directory holds it."""
    from omegaconf import OmegaConf

    from lab.compose import compose

    ours = [f"trainer.max_steps={steps}", "trainer.accelerator=cpu", f"data.block_size={block_size}"]
    cfg = compose([*overrides, *ours])
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return OmegaConf.create(plain | {"id": "bench"})


class Outcome:
    """Seconds of the training loop and the weights it ended with."""

    def __init__(self, seconds: float, weights: Sequence[Any]) -> None:
        self.seconds = seconds
        self.weights = [weight.detach().clone() for weight in weights]


def instantiated(cfg: Any) -> tuple[Any, Any]:
    """(data, model) outside any Trainer."""
    import lightning.pytorch as pl
    import torch
    from hydra.utils import instantiate

    from lab.data.blocks import DTYPES

    dtype = DTYPES.get(cfg.trainer.precision, torch.float32)
    data = instantiate(cfg.data)
    data.dtype = dtype
    data.load()
    data.place(torch.device("cpu"))
    torch.set_default_dtype(dtype)
    pl.seed_everything(cfg.seed, verbose=False)
    try:
        model = instantiate(cfg.model)
    finally:
        torch.set_default_dtype(torch.float32)
    return data, model


def bare(cfg: Any) -> Outcome:
    """The loop by hand."""
    data, model = instantiated(cfg)
    loop = _bare_linear if cfg.name == "linear_regression" else _bare_autoencoder
    return loop(cfg, data, model)


def _bare_linear(cfg: Any, data: Any, model: Any) -> Outcome:
    import torch

    from lab.theory.least_squares import optimal_step

    design, order = data.designs["tall"], data.orders["tall"]
    x, y, b = design.x, design.y, design.batch_size
    eta = (optimal_step(*design.gram_extremes()) * (b / max(design.samples))).to(x)
    w = torch.nn.Parameter(model.nets["tall"].weight.detach().clone())
    optimizer = torch.optim.SGD([w], lr=cfg.model.optimizer.lr)
    started = time.perf_counter()
    for step in range(cfg.trainer.max_steps):
        rows = order.batch(step)
        residual = (x[:, rows] @ w.unsqueeze(-1)).squeeze(-1) - y[:, rows]
        loss = (eta * (residual.square().sum(1) / (2 * b))).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Outcome(time.perf_counter() - started, [w])


def _bare_autoencoder(cfg: Any, data: Any, model: Any) -> Outcome:
    import torch

    from lab.models.reconstruction import nested_error, reconstruction_error

    whole, order = data.x, data.order
    encoder, decoder, w = parameters = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=cfg.model.optimizer.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=cfg.model.scheduler.T_max)
    started = time.perf_counter()
    for step in range(cfg.trainer.max_steps):
        x = whole if order.full else whole[order.batch(step)]
        loss = reconstruction_error(x, x @ encoder.mT @ decoder.mT) + nested_error(x, x @ w, w)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return Outcome(time.perf_counter() - started, parameters)


def with_objective(cfg: Any) -> Outcome:
    """The module's objective on the data's blocks in a plain loop: everything of ours, nothing of Lightning's."""
    from lab.data.blocks import Blocks

    data, model = instantiated(cfg)
    model._trainer = types.SimpleNamespace(datamodule=data, max_steps=cfg.trainer.max_steps)
    model.setup("fit")
    configured = model.configure_optimizers()
    scheduler = configured["lr_scheduler"] if isinstance(configured, dict) else None
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    started = time.perf_counter()
    for block in Blocks(data.block, 0, cfg.trainer.max_steps, data.block_size):
        for step, batch in enumerate(model.batches(block), block.step):
            loss, _ = model.objective(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            model.after_step(step)
    return Outcome(time.perf_counter() - started, list(model.parameters()))


def lab(cfg: Any, part: str = "default") -> Outcome:
    """`lab.run`'s own Trainer, with the callbacks, loggers and training step that `part` has."""
    import lightning.pytorch as pl
    from hydra.utils import instantiate

    from lab import run
    from lab.loggers import Wandb
    from lab.making import make_trainer
    from lab.rundir import RunDir

    class Stopwatch(pl.Callback):
        """Comes last: what the other callbacks do when training starts is set-up, what they do when it ends counts."""

        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            for logger in trainer.loggers:  # wandb starts in the background; that is no part of the loop
                while isinstance(logger, Wandb) and logger._run is None and not logger._dead:
                    time.sleep(0.01)
            self.started = time.perf_counter()

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.seconds = time.perf_counter() - self.started

    cfg = _reduced(cfg, part)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as folder:
        pl.seed_everything(cfg.seed, verbose=False)
        trainer = make_trainer(cfg, RunDir(Path(folder)), None, 0, [])
        trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, Wandb):
                logger.start()
        data = instantiate(cfg.data)
        with trainer.init_module():
            model = instantiate(cfg.model)
        if part in STEPS:
            model.training_step = types.MethodType(lambda self, block, _: _step(part, self, block), model)
        trainer.fit(model, datamodule=data)
        run._finish_loggers(trainer, 0)
    return Outcome(watch.seconds, list(model.parameters()))


def _reduced(cfg: Any, part: str) -> Any:
    from omegaconf import OmegaConf

    plain: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    if part in ("trainer", "metrics.csv"):
        plain["logger"] = {}
    if part in ("trainer", "metrics.csv", "wandb"):
        keep = set() if part == "trainer" else {"metrics"}
        plain["callbacks"] = {name: node for name, node in plain["callbacks"].items() if name in keep}
    return OmegaConf.create(plain)


def _step(how: str, model: Any, block: Any) -> dict[str, Any]:
    """SteppedModule.training_step with `how` much of Lightning around backward and the optimiser."""
    optimizer, scheduler = model.optimizers(use_pl_optimizer=how != "direct"), model.lr_schedulers()
    logged = []
    for step, batch in enumerate(model.batches(block), block.step):
        loss, metrics = model.objective(batch)
        optimizer.zero_grad()
        if how == "wrapped":
            model.manual_backward(loss)
        else:
            loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        model.after_step(step)
        logged.append(metrics)
    if how == "direct":  # what LightningOptimizer counts; the Trainer's global_step is this number
        progress = model.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.total.ready += len(block)
        progress.total.completed += len(block)
    return {"metrics": logged}


def runner(part: str) -> Callable[[Any], Outcome]:
    """What trains with the given rung of the ladder."""
    return {"bare": bare, "objective": with_objective}.get(part, partial(lab, part=part))


def _timed(part: str, cfg: Any, last: dict[str, Outcome], key: str | None = None) -> Callable[[], float]:
    def work() -> float:
        outcome = last[key or part] = runner(part)(cfg)
        return outcome.seconds

    return work


def ladder(cfg: Any, parts: Sequence[str], repeats: int) -> dict[str, list[float]]:
    """Interleaved seconds of each rung; all must end with the bare loop's weights, bit for bit."""
    import torch

    last: dict[str, Outcome] = {}
    seconds = common.interleaved({part: _timed(part, cfg, last) for part in parts}, repeats)
    for part, outcome in last.items():
        same = all(map(torch.equal, last[parts[0]].weights, outcome.weights))
        assert same, f"{cfg.name}: {part} and {parts[0]} do not end with the same weights"
    return seconds


def prepare(threads: int) -> None:
    """Import what the lab does, with so many threads, wandb offline and nothing said."""
    os.environ["WANDB_MODE"] = "offline"
    import torch

    from lab import run  # noqa: F401  before Lightning: it hides what torchmetrics would import

    torch.set_num_threads(threads)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "py.warnings", "lab"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(True)


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__ or "", repeats=5)
    prepare(options.threads)
    samples: dict[str, Any] = {}
    started, busy = time.perf_counter(), common.BusyMeter()

    rows, parts = [], []
    for name, (overrides, steps) in WORKS.items():
        steps = 150 if options.quick else steps
        full_batch = "full batch" in name  # there the loop is lost in the arithmetic
        rungs = ["bare", "default"] if full_batch else [*PARTS, *STEPS]
        seconds = samples[name] = ladder(frozen(overrides, steps, 50), rungs, options.repeats)
        added = _added(seconds, rungs, steps)
        rows.append(
            [
                name,
                common.spread([steps / s for s in seconds["bare"]], 0),
                common.spread([steps / s for s in seconds["default"]], 0),
                common.spread(common.ratios(seconds["bare"], seconds["default"])),
                "the arithmetic" if full_batch else _limit(added),
            ]
        )
        if not full_batch:
            parts += [
                [
                    name,
                    rung,
                    f"{_micro(seconds[rung], steps):.0f}",
                    f"{added[rung]:+.0f}" if rung in added else "",
                    what,
                ]
                for rung, what in {**PARTS, **STEPS}.items()
            ]
    print(common.table(["work", "bare, steps/s", "lab, steps/s", "ratio lab/bare", "what limits it"], rows))
    print("\nWhere a step's time goes:\n")
    print(common.table(["work", "up to", "µs a step", "adds", "what it is"], parts))
    print("\nThe unit of work, linear regression, d=10, batch 64:\n")
    lines = _units(options, samples)
    print(common.table(["block", "replicates", "µs a step", "µs a step and model", "ratio lab/bare"], lines))
    common.report(options, busy, started, samples)


def _micro(seconds: Sequence[float], steps: int) -> float:
    return statistics.median(seconds) / steps * 1e6


def _added(seconds: dict[str, list[float]], rungs: Sequence[str], steps: int) -> dict[str, float]:
    """Median over repeats of what a rung takes more than the one before it, µs a step."""
    pairs = [(a, b) for a, b in itertools.pairwise(rungs) if b != "direct"]  # where another ladder begins
    return {b: _micro([y - x for x, y in zip(seconds[a], seconds[b], strict=True)], steps) for a, b in pairs}


def _limit(added: dict[str, float]) -> str:
    most = sorted((part for part in added if part in PARTS), key=lambda part: -added[part])[:2]
    return ", ".join(f"{part} {added[part]:+.0f} µs" for part in most)


def _units(options: Any, samples: dict[str, Any]) -> list[list[str]]:
    """Lines for block sizes and replicates, each against a bare loop around the same model in the same repeat."""
    import torch

    steps = 150 if options.quick else 1500
    last: dict[str, Outcome] = {}
    works: dict[str, Callable[[], float]] = {}
    units = [(1, 1), (10, 1), (50, 1), (200, 1), (50, 64)]
    for block, replicates in units:
        cfg = frozen([*LINEAR, f"data.designs.tall.replicates={replicates}"], steps, block)
        works.setdefault(f"bare, {replicates}", _timed("bare", cfg, last, key=f"bare, {replicates}"))
        works[f"{block}, {replicates}"] = _timed("default", cfg, last, key=f"{block}, {replicates}")
    seconds = samples["units"] = common.interleaved(works, options.repeats)
    lines = []
    for block, replicates in units:
        key, bare_key = f"{block}, {replicates}", f"bare, {replicates}"
        per_step = _micro(seconds[key], steps)
        ratio = common.spread(common.ratios(seconds[bare_key], seconds[key]))
        lines.append([str(block), str(replicates), f"{per_step:.0f}", f"{per_step / replicates:.1f}", ratio])
        same = all(map(torch.equal, last[bare_key].weights, last[key].weights))
        assert same, f"block_size={block}, replicates={replicates}: not the bare loop's weights"
    return lines


if __name__ == "__main__":
    main()
