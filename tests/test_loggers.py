from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lab import loggers
from lab.loggers import MetricsFile, Wandb


def test_metrics_file_has_a_row_a_step_in_full_precision(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.log_metrics({"loss": 0.1, "b": float("nan")}, 0)
    file.log_metrics({"b": 1e-300, "loss": 1 / 3}, 50)
    file.save()
    assert file.path.read_text().split() == ["step,loss,b", "0,0.1,nan", "50,0.3333333333333333,1e-300"]


def test_resumed_metrics_file_drops_the_steps_to_come_and_the_torn_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n0,3.0\n50,2.0\n100,1.5\n150")
    file = MetricsFile(path, resumed_at=100)
    file.log_metrics({"loss": 1.0}, 100)
    file.save()
    assert path.read_text().split() == ["step,loss", "0,3.0", "50,2.0", "100,1.0"]


def test_rows_are_seen_by_others_within_moments_and_without_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    for first in (0, 2):
        for step in (first, first + 1):
            file.log_metrics({"loss": 0.5}, step)
        assert f"\n{first}," not in path.read_text(), "rows are written together"
        deadline = time.monotonic() + 10
        while f"\n{first + 1}," not in path.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert path.read_text().split() == ["step,loss", *(f"{step},0.5" for step in range(4))]
    assert MetricsFile(path, resumed_at=2).path.read_text().split() == ["step,loss", "0,0.5", "1,0.5"]


@pytest.mark.parametrize("left", ["", "step,loss\n", "step,loss\n100,1.5\n", "st"])
def test_metrics_file_with_nothing_to_keep_starts_afresh(tmp_path: Path, left: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(left)
    file = MetricsFile(path)
    file.log_metrics({"accuracy": 1.0}, 0)
    file.save()
    assert path.read_text().split() == ["step,accuracy", "0,1.0"]


def test_service_does_not_inherit_the_terminal() -> None:
    """What a child started meanwhile writes, and the pipe it would hold open, is not the parent's."""
    program = (
        "import subprocess, sys; from lab.loggers import _terminal_not_inherited\n"
        "with _terminal_not_inherited(): subprocess.run(['sh', '-c', 'echo service; echo service >&2'])\n"
        "subprocess.run(['sh', '-c', 'echo child; echo child >&2'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("child\n", "child\n")


def test_rows_that_wandb_cannot_take_in_time_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(loggers, "BACKLOG", 100)
    free = threading.Event()
    monkeypatch.setattr(Wandb, "_start", lambda self: free.wait())
    wandb = Wandb(save_dir=str(tmp_path))
    wandb.start()
    for step in range(1000):
        wandb.log_metrics({"loss": 0.0}, step)
    with caplog.at_level(logging.WARNING, logger="lab"):
        free.set()
        wandb.finish(0)
    line = caplog.messages[-1]
    assert "could not keep up" in line
    assert int(line.split()[5]) in range(890, 903)  # the row that the thread holds is not in the queue any more


def test_finish_is_idempotent_and_a_crash_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(Wandb, "_start", lambda self: None)
    monkeypatch.setattr(Wandb, "_finish", lambda self, exit_code: codes.append(exit_code))
    wandb = Wandb(save_dir=str(tmp_path))
    wandb.finalize("failed")
    assert codes == [], "a run that was refused before it began"
    wandb.start()
    wandb.finalize("success")
    assert codes == []
    wandb.finalize("failed")
    wandb.finish(0)
    assert codes == [1]
    assert not list(tmp_path.iterdir())
