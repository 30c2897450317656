"""One run, in order: instantiate, fit, judge, write. The only place that knows the whole order."""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab import fastimport

fastimport.load_torchmetrics()  # before Lightning does
fastimport.defer_dynamo()

import lightning.pytorch as pl  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.strategies import ModelParallelStrategy  # noqa: E402
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

from lab.callbacks.checkpoints import Checkpoints  # noqa: E402
from lab.claim import Claim, Evidence, Run, Verdict, judge  # noqa: E402
from lab.errors import CRASHED, HOLDS, REFUTED, Refusal, nearest  # noqa: E402
from lab.loggers import Wandb  # noqa: E402
from lab.machine import accelerator, world_size  # noqa: E402
from lab.making import made, make_trainer  # noqa: E402
from lab.pictures import Picture  # noqa: E402
from lab.processes import leave, on_stop  # noqa: E402
from lab.provenance import edited_since_submit, provenance  # noqa: E402
from lab.rundir import FIGURE, MEETING, RunDir, write_atomically  # noqa: E402
from lab.runlog import logging_to  # noqa: E402

log = logging.getLogger("lab")
MEET_WITHIN = 1800.0
"""Seconds, as torch would wait for a rank that does not come."""


def execute(run: RunDir, checkpoint: Path | None = None) -> int:
    """Execute the frozen config of a run directory, as the only process or as one rank; returns the exit code.

    Args:
        run: a directory whose config.yaml is frozen.
        checkpoint: where to go on from.
    """
    started = time.perf_counter()
    cfg = run.read_config()
    rank = int(os.environ.get("RANK", "0"))
    rank_zero_only.rank = rank  # type: ignore[attr-defined]  # read at the import, before a fork had a rank
    with logging_to(run.log, rank):
        torch.set_num_threads(cfg.threads)
        threadpool_limits(cfg.threads, "blas")  # of numpy, which may be older than this run
        ranks = world_size(cfg)
        _require_ranks(ranks, started=int(os.environ.get("WORLD_SIZE", "1")))
        edited = edited_since_submit(run.path)
        if rank == 0 and edited:
            log.warning("%s; it runs what is on disk now", edited)
        if MEETING in os.environ:
            _meet(rank, ranks, cfg)
        pl.seed_everything(cfg.seed, verbose=False)
        claims = {name: made(cfg, f"claims.{name}") for name in cfg.claims}
        pictures = {name: made(cfg, f"pictures.{name}") for name in cfg.get("pictures", {})}
        trainer = make_trainer(
            cfg, run, checkpoint, rank, [_WorldSizeGuard(ranks), _BeforeTraining(claims, cfg, run.path)]
        )
        try:
            data = made(cfg, "data")
            with trainer.init_module():
                model = made(cfg, "model")
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
            whole = _gathered(cfg, trainer)
            if rank:
                return _stopped(trainer)
            return _conclude(run, cfg, trainer, whole, claims, pictures, started, edited)
        except BaseException as error:
            _finish_loggers(trainer, CRASHED)  # what is queued reaches wandb, where the run counts as failed
            if _is_out_of_memory(error):
                raise Refusal(f"there is not enough memory for this run: {' '.join(str(error).split())}") from error
            raise


def trained(run: RunDir, checkpoint: Path) -> pl.LightningModule:
    """The model of a run with the weights of one of its checkpoints, on the CPU; no data are read."""
    cfg = run.read_config()
    model: pl.LightningModule = made(cfg, "model")
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
        model.load_state_dict(state)
    except Exception as error:  # whatever a file from elsewhere makes the reader raise
        said = " ".join(str(error).split())
        raise Refusal(f"{checkpoint} does not fit the run's model: {said[:200]}") from error
    return model.eval()


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # how torch's CPU allocator says it
    )


def _meet(rank: int, ranks: int, cfg: DictConfig) -> None:
    """Join the other ranks at the file where they meet, before Lightning would at a port.

    torch waits there for those that are missing, and hears no signal. So it is not called before all have come, and who
    is told to stop by then still meets the others first.
    """
    store, told = Path(os.environ[MEETING]), list[int]()
    deadline = time.monotonic() + MEET_WITHIN
    with on_stop(lambda signum, _: told.append(signum)):
        while True:
            coming = not told
            all_there = _come(store, rank, ranks, coming)
            if all_there or not coming:
                break
            if time.monotonic() > deadline:
                raise Refusal(f"not all of {ranks} ranks came together in {MEET_WITHIN:g} s")
            time.sleep(0.005)
        if all_there:
            backend = "nccl" if accelerator(cfg) == "cuda" else "gloo"
            torch.distributed.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=ranks)
            if backend == "nccl":
                atexit.register(torch.distributed.destroy_process_group)  # torch warns of one that is left open
    if told:
        leave(told[0], None)


def _come(store: Path, rank: int, ranks: int, coming: bool) -> bool:
    """Say that this rank is there, or is so no more, unless all are; returns whether all are."""
    there = [store.with_name(f"rank-{other}") for other in range(ranks)]
    with store.with_name("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if coming:
            there[rank].touch()
        if all(path.exists() for path in there):
            return True
        if not coming:
            there[rank].unlink(missing_ok=True)
        return False


def _require_ranks(asked: int, **up: int) -> None:
    """Refuse unless as many ranks came up as were asked for: each would see part of the data, or all of it twice."""
    if wrong := {where: count for where, count in up.items() if count != asked}:
        counts = ", ".join(f"{where}: {count}" for where, count in wrong.items())
        raise Refusal(
            f"trainer.devices × trainer.num_nodes asks for {asked} {'rank' if asked == 1 else 'ranks'}, but another "
            f"number came up ({counts}); start the run once, as `lab ...`: it starts its own ranks"
        )


class _WorldSizeGuard(pl.Callback):
    """Holds that the trainer and the process group count the ranks that were asked for."""

    def __init__(self, asked: int) -> None:
        self.asked = asked

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        up = torch.distributed.get_world_size() if distributed else 1
        _require_ranks(self.asked, trainer=trainer.world_size, process_group=up)


class _BeforeTraining(pl.Callback):
    """The last refusals: of claims that the data or the model do not allow. Only then is there a run to speak of."""

    def __init__(self, claims: dict[str, Claim], cfg: DictConfig, path: Path) -> None:
        self.claims, self.cfg, self.path = claims, cfg, path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, claim in self.claims.items():
            try:
                claim.check(trainer.datamodule, pl_module)  # type: ignore[attr-defined]
            except Refusal as refusal:
                raise refusal.within(f"claims.{name}") from None
        if trainer.is_global_zero:
            where = f"{trainer.world_size} × {accelerator(self.cfg)}"
            log.info("%s · seed %d · %s · %s", self.cfg.name, self.cfg.seed, where, self.path)
        for logger in trainer.loggers:
            if isinstance(logger, Wandb):
                logger.start()
                logger.log_hyperparams(_filterable(self.cfg))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The model says only now which losses it has."""
        if batch_idx == 0 and (objective := self.cfg.objective) and not objective.startswith("claim/"):
            logged = list(outputs["metrics"][0])
            if objective not in logged:
                raise Refusal(
                    f"objective={objective} is not logged; allowed: {', '.join(logged)} or "
                    f"claim/<name>/<number>{nearest(objective, logged)}"
                )


def _gathered(cfg: DictConfig, trainer: pl.Trainer) -> pl.LightningModule:
    """The trained model, whole on rank 0; every rank takes part where its weights are spread over them."""
    model = trainer.lightning_module
    if isinstance(trainer.strategy, ModelParallelStrategy) and not _stopped(trainer):
        state = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            with trainer.init_module():
                model = made(cfg, "model")
            model.load_state_dict(state)
    return model


def _conclude(
    run: RunDir,
    cfg: DictConfig,
    trainer: pl.Trainer,
    model: pl.LightningModule,
    claims: dict[str, Claim],
    pictures: dict[str, Picture],
    started: float,
    edited: str,
) -> int:
    if code := _stopped(trainer):
        stopped = signal.Signals(code - 128).name
        log.info("%s: saved at step %d; the same command resumes", stopped, trainer.global_step)
        _finish_loggers(trainer, code)
        return code
    data = trainer.datamodule  # type: ignore[attr-defined]
    where = str(trainer.strategy.root_device)
    model.to("cpu")
    data.place(torch.device("cpu"))
    trained = Run(model, data, all(bool(torch.isfinite(p).all()) for p in model.parameters()))
    evidence = [judge(name, claim, trained) for name, claim in claims.items()]
    drawn = _draw(pictures, trained, run.path)
    timing = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 3),
    }
    verdict = Verdict(
        cfg.name,
        cfg.chapter,
        tuple(e.judged for e in evidence),
        provenance(cfg.seed, where, trainer.world_size) | timing | ({"edited_since_submit": edited} if edited else {}),
    )
    _write(run, cfg, trainer, evidence, drawn, verdict)
    return HOLDS if verdict.holds else REFUTED


def _draw(pictures: dict[str, Picture], trained: Run, folder: Path) -> dict[str, Path]:
    """Draw and save each picture; name → its png. Of weights that are not finite there is nothing to see."""
    from lab import figures

    if pictures and not trained.finite:
        log.info("no pictures: the weights are not finite")
        return {}
    for name, picture in pictures.items():
        with figures.style():
            figure = picture.draw(trained)
        figures.save(figure, folder, name)
    return {name: folder / f"{name}.png" for name in pictures}


def _write(
    run: RunDir,
    cfg: DictConfig,
    trainer: pl.Trainer,
    evidence: list[Evidence],
    drawn: dict[str, Path],
    verdict: Verdict,
) -> None:
    """Figure, then wandb, then verdict.json: the run counts as finished only when the rest is there."""
    from lab import figures, table

    figures.save(figures.draw(evidence, title=cfg.title), run.path)
    images = {FIGURE: run.path / f"{FIGURE}.png"} | {f"picture/{name}": path for name, path in drawn.items()}
    summary = {
        f"claim/{claim['name']}/{key}": claim[key]
        for claim in verdict.to_json()["claims"]
        for key in ("predicted", "measured", "standard_error", "tolerance", "holds")
    }
    for logger in trainer.loggers:
        if isinstance(logger, Wandb):
            logger.log_verdict(summary | {"holds": verdict.holds}, images, trainer.global_step)
    write_atomically(run.verdict, json.dumps(verdict.to_json(), indent=1, allow_nan=False) + "\n")
    table.print_verdict(verdict, run.path)
    _finish_loggers(trainer, HOLDS)


def _stopped(trainer: pl.Trainer) -> int:
    """128 + the signal that stopped training, or 0."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoints) and callback.stopped_by is not None:
            return 128 + int(callback.stopped_by)
    return 0


def _finish_loggers(trainer: pl.Trainer, code: int) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, Wandb):
            logger.finish(code)


def _filterable(cfg: DictConfig) -> dict[str, Any]:
    """The config with dotted keys: wandb filters and groups by leaves only when they stand at the top."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            flat[prefix] = node

    walk("", OmegaConf.to_container(cfg, resolve=True))
    return {key: value for key, value in flat.items() if key.split(".")[0] not in ("controls", "run_dir")}
