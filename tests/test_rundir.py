"""Run directories: atomic writes, the frozen config, whole checkpoints, one writer."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from lab import rundir
from lab.errors import Refusal
from lab.machine import device_kind
from lab.rundir import RunDir, sealed, write_atomically


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return RunDir(tmp_path / "run")


def config(**more: object) -> DictConfig:
    return OmegaConf.create({"name": "x", "id": None, "run_dir": None, "model": {"lr": 0.1, "sizes": [1, 2]}} | more)


# -------------------------------------------------------------------------------------------------------------- writing


def test_a_write_replaces_the_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a much longer text than the new one")
    write_atomically(path, "σ")
    assert path.read_text(encoding="utf-8") == "σ"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failing_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# --------------------------------------------------------------------------------------------------------------- config


def test_a_run_has_a_directory_of_its_own_unless_it_names_one(tmp_path: Path) -> None:
    cfg = config()
    first, second = RunDir.choose(cfg, tmp_path), RunDir.choose(config(), tmp_path)
    assert first.path == tmp_path / "x" / cfg.id
    assert first.path != second.path
    assert RunDir.choose(config(run_dir="here"), tmp_path).path == Path("here")


def test_the_config_is_frozen_at_the_first_start(run: RunDir) -> None:
    assert run.freeze(config(seed="${model.lr}", id="first"), ["seed=1"]) is False
    assert run.overrides.read_text() == "seed=1\n"
    assert OmegaConf.load(run.config).seed == 0.1, "resolved"
    before = run.config.read_bytes()
    assert run.freeze(config(seed=0.1, id="second", run_dir="elsewhere"), []) is True
    assert run.config.read_bytes() == before


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model": {"lr": 0.2, "sizes": [1, 2]}}, "model.lr is 0.1 there and 0.2 here;"),
        ({"model": {"lr": 0.1, "sizes": [1, 2, 3]}}, "model.sizes is [1, 2] there and [1, 2, 3] here;"),
        ({"model": {"sizes": [1, 2]}}, "model.lr is 0.1 there and absent here;"),
        ({"extra": None}, "extra is absent there and None here;"),
        ({"seed": 7, "model": {"lr": 7}}, "seed is "),
        ({"model": {"lr": 1, "sizes": []}}, r"model.lr is 0.1 there and 1 here (and 1 more keys);"),
    ],
)
def test_another_config_is_refused(run: RunDir, other: dict[str, object], said: str) -> None:
    run.freeze(config(), [])
    with pytest.raises(Refusal) as refusal:
        run.freeze(config(**other), [])
    assert said in str(refusal.value)
    assert f"run_dir={run.path} holds another run" in str(refusal.value)


def test_an_accelerator_is_compared_as_what_it_means_here(run: RunDir) -> None:
    means = device_kind("auto")
    other = "mps" if means != "mps" else "cpu"
    run.freeze(config(trainer={"accelerator": "auto"}), [])
    with pytest.raises(Refusal, match=f"trainer.accelerator is auto there and {other} here"):
        run.freeze(config(trainer={"accelerator": other}), [])
    assert run.freeze(config(trainer={"accelerator": means}), [])
    assert run.read_config().trainer.accelerator == means, "once it was said it stays"
    assert run.freeze(config(trainer={"accelerator": "auto"}), [])
    assert run.read_config().trainer.accelerator == means


def test_a_run_is_finished_when_its_verdict_is_there(run: RunDir) -> None:
    assert not run.finished
    verdict = a_verdict()
    run.verdict.write_text(json.dumps(verdict))
    assert run.finished
    assert run.read_verdict() == verdict


def a_verdict(**changed: object) -> dict[str, object]:
    numbers = dict.fromkeys(("predicted", "measured", "standard_error", "difference", "tolerance"), 0.5)
    texts = dict.fromkeys(("statement", "reference", "because", "note"), "a text")
    claim = {"name": "c", **texts, "relation": "equal", **numbers, "holds": True} | changed
    return {"experiment": "x", "chapter": 3, "holds": True, "claims": [claim], "provenance": {}}


@pytest.mark.parametrize(
    "changed",
    [{"holds": "yes"}, {"holds": False}, {"predicted": "x"}, {"measured": True}, {"relation": "foo"}, {"name": None}],
    ids=repr,
)
def test_a_verdict_that_the_lab_did_not_write_is_refused(run: RunDir, changed: dict[str, object]) -> None:
    run.verdict.write_text(json.dumps(a_verdict(**changed)))
    with pytest.raises(Refusal, match=r"its verdict.json is not whole \(ValueError: "):
        run.read_verdict()


def test_a_verdict_without_claims_is_refused(run: RunDir) -> None:
    run.verdict.write_text(json.dumps(a_verdict() | {"claims": []}))
    with pytest.raises(Refusal, match="it has no claims"):
        run.read_verdict()


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", "null", b"\xff", None], ids=repr)
@pytest.mark.parametrize("name", ["config.yaml", "verdict.json"])
def test_a_damaged_file_is_refused_by_name(run: RunDir, name: str, content: str | bytes | None) -> None:
    file = run.path / name
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    assert run.exists if name == "config.yaml" else run.finished
    with pytest.raises(Refusal) as refusal:
        run.freeze(config(), []) if name == "config.yaml" else run.read_verdict()
    assert f"run_dir={run.path}: its {name} is not whole (" in str(refusal.value)
    assert "()" not in str(refusal.value)


def test_a_first_start_that_is_refused_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    new = RunDir(tmp_path / "outputs" / "x" / "id")
    new.path.mkdir(parents=True)
    new.freeze(config(), [])
    new.discard([new.path, new.path.parent])
    assert list(tmp_path.rglob("*")) == [tmp_path / "outputs"]

    mine = RunDir(tmp_path)
    (tmp_path / "notes").touch()
    mine.freeze(config(), [])
    mine.discard([])
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "notes"}, "what was there stays"


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def archive() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.arange(100.0)}, "global_step": 3}, buffer)
    return sealed(buffer.getvalue())


def test_a_sealed_archive_is_still_one(archive: bytes) -> None:
    loaded = torch.load(io.BytesIO(archive), weights_only=True)
    assert torch.equal(loaded["state_dict"]["w"], torch.arange(100.0))


def test_the_newest_whole_checkpoint_is_used(run: RunDir, archive: bytes) -> None:
    assert run.newest_checkpoint() == (None, [])
    paths = [run.checkpoints / f"step-{step:09d}.ckpt" for step in (50, 100, 1000, 20000)]
    for path in paths:
        path.write_bytes(archive)
    (run.checkpoints / ".step-000030000.ckpt.1.tmp").write_bytes(archive)
    assert run.newest_checkpoint() == (paths[3], [])
    paths[3].write_bytes(b"")
    paths[2].write_bytes(archive[:-1])
    assert run.newest_checkpoint() == (paths[1], [paths[3], paths[2]])
    for path in paths:
        path.write_bytes(archive[: len(archive) // 2])
    assert run.newest_checkpoint() == (None, paths[::-1])


def test_a_changed_bit_and_a_cut_are_found_wherever_they_are(run: RunDir, archive: bytes) -> None:
    path, draw = run.checkpoints / "step-000000001.ckpt", random.Random(0)
    for position in [*range(0, len(archive), 5), *range(len(archive) - 64, len(archive))]:
        damaged = bytearray(archive)
        damaged[position] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        assert run.newest_checkpoint() == (None, [path]), f"byte {position}"
    for length in [*range(64), *draw.sample(range(len(archive)), 200)]:
        path.write_bytes(archive[:length])
        assert run.newest_checkpoint() == (None, [path]), f"cut at {length}"


# ----------------------------------------------------------------------------------------------------------------- lock

OWNER = """
import subprocess, sys, time
from pathlib import Path
from lab.rundir import RunDir
with RunDir(Path(sys.argv[1])).lock() as fd:
    child = subprocess.Popen(["sleep", sys.argv[3]], pass_fds=[fd] if sys.argv[2] == "inherits" else [])
    print("locked", child.pid, flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def owner(run: RunDir, child: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, with a child that does or does not inherit it."""
    command = [sys.executable, "-c", OWNER, str(run.path), child, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        _, child_pid = process.stdout.readline().split()
        try:
            yield process
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child_pid), signal.SIGKILL)


def lock_is_free(run: RunDir) -> bool:
    with (run.path / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_live_owner_is_refused_and_a_dead_one_followed(run: RunDir) -> None:
    with owner(run, "does not inherit", 60) as process:
        with pytest.raises(Refusal, match=f"by process {process.pid} on {socket.gethostname()};"), run.lock():
            pass
        process.kill()
        process.wait()
        assert json.loads((run.path / ".lock").read_text())["pid"] == process.pid, "it left without a word"
        with run.lock():
            assert json.loads((run.path / ".lock").read_text())["pid"] == os.getpid()
    assert (run.path / ".lock").read_bytes() == b""


def test_children_that_inherit_the_lock_keep_it_for_a_killed_owner(run: RunDir) -> None:
    with owner(run, "inherits", 1) as process:
        process.kill()
        process.wait()
        assert not lock_is_free(run)
        with run.lock():  # waits for the child
            assert not lock_is_free(run)


def test_what_is_still_ending_after_an_owner_that_left_in_order_is_waited_for(run: RunDir) -> None:
    with owner(run, "inherits", 1) as process:
        (run.path / ".lock").write_bytes(b"")
        process.kill()
        process.wait()
        assert not lock_is_free(run)
        with run.lock():
            assert json.loads((run.path / ".lock").read_text())["pid"] == os.getpid()


def test_a_child_that_outlives_a_killed_owner_is_refused_in_the_end(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 6.0])
    with owner(run, "inherits", 60) as process:
        process.kill()
        process.wait()
        monkeypatch.setattr(rundir.time, "monotonic", lambda: next(clock, 6.0))
        with pytest.raises(Refusal, match=f"process {process.pid}"), run.lock():
            pass


@pytest.fixture
def elsewhere(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock file of an owner on another host, whose kernel's lock does not reach this one."""
    monkeypatch.setattr(rundir, "HEARTBEAT", 0.2)
    lock = run.path / ".lock"
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    return lock


def test_an_owner_on_another_host_that_beats_is_refused(run: RunDir, elsewhere: Path) -> None:
    stop = threading.Event()
    beat = threading.Thread(target=rundir._heartbeat, args=(elsewhere, stop))
    beat.start()
    try:
        with pytest.raises(Refusal, match="by process 7 on elsewhere;"), run.lock():
            pass
    finally:
        stop.set()
        beat.join()
    assert json.loads(elsewhere.read_text())["pid"] == 7


def test_an_owner_on_another_host_that_has_stopped_is_followed(run: RunDir, elsewhere: Path) -> None:
    with run.lock():
        assert json.loads(elsewhere.read_text())["host"] == socket.gethostname()


def test_the_owner_beats(run: RunDir, elsewhere: Path) -> None:
    elsewhere.write_text("")
    with run.lock():
        before = elsewhere.stat().st_mtime_ns
        time.sleep(5 * rundir.HEARTBEAT)
        assert elsewhere.stat().st_mtime_ns > before


def test_what_a_killed_owner_was_writing_is_removed(run: RunDir) -> None:
    for folder in (run.path, run.checkpoints):
        (folder / ".some.file.123.tmp").touch()
    with run.lock():
        assert [path.name for path in run.path.rglob("*") if path.is_file()] == [".lock"]
