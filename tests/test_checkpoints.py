"""Saving checkpoints: whole or not at all, when they are due, and when a signal asks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lab.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from lab.rundir import RunDir


@pytest.fixture
def handlers() -> Iterator[list[int]]:
    """Signals that reached the handlers which were there before the callback's."""
    received: list[int] = []
    before = {s: signal.signal(s, lambda signum, _: received.append(signum)) for s in (signal.SIGINT, signal.SIGTERM)}
    yield received
    for signum, handler in before.items():
        signal.signal(signum, handler)


class Trainer(SimpleNamespace):
    """As much of a trainer as the callback looks at."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            default_root_dir=str(folder),
            global_step=0,
            world_size=1,
            is_global_zero=True,
            should_stop=False,
            loggers=[],
        )

    def save_checkpoint(self, path: Path) -> None:
        AtomicCheckpointIO().save_checkpoint({"step": self.global_step}, path)

    def run(self, callback: Any, blocks: int, size: int = 10) -> list[int]:
        """Train for some blocks; returns the steps at which there is a checkpoint."""
        for _ in range(blocks):
            if self.should_stop:
                break
            self.global_step += size
            callback.on_train_batch_end(self)
        return saved(Path(self.default_root_dir))


def saved(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("checkpoints/step-*.ckpt"))


def begin(callback: Any, trainer: Any) -> Any:
    callback.on_fit_start(trainer, None)
    callback.on_train_start(trainer, None)
    return callback


def test_a_checkpoint_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step-000000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.ones(3)}, path)
    assert RunDir(tmp_path).newest_checkpoint() == (path, [])
    assert torch.equal(torch.load(path, weights_only=True)["w"], torch.ones(3))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step-000000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.ones(3)}, path)
    before = path.read_bytes()

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in (path.name, "step-000000002.ckpt"):
        with pytest.raises(OSError, match="No space left on device"):
            AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(3)}, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_saving_every_so_many_steps_and_at_the_end(tmp_path: Path, handlers: list[int]) -> None:
    trainer = Trainer(tmp_path)
    callback = begin(Checkpoints(every_seconds=None, every_n_steps=25, keep=99), trainer)
    assert trainer.run(callback, 8) == [30, 50, 80]
    callback.on_train_end(trainer, None)
    assert saved(tmp_path) == [30, 50, 80]
    trainer.run(callback, 1)
    callback.on_train_end(trainer, None)
    assert saved(tmp_path) == [30, 50, 80, 90]


def test_saving_every_so_many_seconds(tmp_path: Path, handlers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("lab.callbacks.checkpoints.time.monotonic", lambda: clock.now)
    trainer = Trainer(tmp_path)
    callback = begin(Checkpoints(every_seconds=30.0, keep=99), trainer)
    for clock.now in (10.0, 29.0, 31.0, 60.0, 61.0):
        trainer.run(callback, 1)
    assert saved(tmp_path) == [30, 50]


def test_only_the_newest_stay(tmp_path: Path, handlers: list[int]) -> None:
    trainer = Trainer(tmp_path)
    callback = begin(Checkpoints(every_seconds=None, every_n_steps=10, keep=2), trainer)
    assert trainer.run(callback, 5) == [40, 50]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_at_the_end_of_the_block(
    signum: signal.Signals, tmp_path: Path, handlers: list[int]
) -> None:
    trainer = Trainer(tmp_path)
    callback = begin(Checkpoints(every_seconds=None), trainer)
    assert trainer.run(callback, 2) == []
    signal.raise_signal(signum)
    assert not trainer.should_stop
    assert trainer.run(callback, 5) == [30]
    assert trainer.should_stop
    assert callback.stopped_by == signum
    callback.on_train_end(trainer, None)
    callback.teardown(trainer, None, "fit")
    assert handlers == []
    signal.raise_signal(signum)
    assert handlers == [signum], "the handlers that were there are back"


def test_a_second_sigint_does_not_wait(tmp_path: Path, handlers: list[int]) -> None:
    begin(Checkpoints(), Trainer(tmp_path))
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert handlers == []
    signal.raise_signal(signal.SIGINT)
    assert handlers == [signal.SIGINT]


def test_a_signal_after_the_last_block_is_not_lost(tmp_path: Path, handlers: list[int]) -> None:
    trainer = Trainer(tmp_path)
    callback = begin(Checkpoints(), trainer)
    trainer.run(callback, 1)
    signal.raise_signal(signal.SIGTERM)
    callback.on_train_end(trainer, None)
    assert saved(tmp_path) == [10]
    callback.teardown(trainer, None, "fit")
    assert handlers == [signal.SIGTERM]
