"""Stopped anywhere and started again with the same command, a run ends bitwise as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = [
    "pca_autoencoder",
    "linear_regression",
    "vae",
    "diffusion",
    "sinkhorn_ot",
    "gnn",
    "transformer",
    "diffusion_digits",
    "sinkhorn_ot_digits",
]
"""What a signal does is the same for every model; what a checkpoint must hold is not."""
BLOCK = 50


def test_sigkill_at_any_moment(start: Any, finished: Any, words: Any, steps: Any, at: Path, outcome: Any) -> None:
    experiment, moment = "vae", random.Random(0)
    first = start(at, words(experiment))
    time.sleep(moment.uniform(0.2, 3))  # composing, importing
    assert first.stop(signal.SIGKILL)[0] == -signal.SIGKILL

    second = start(at, words(experiment))  # mid-training
    second.wait_for_step(moment.randrange(BLOCK, steps[experiment] // 2, BLOCK))
    time.sleep(moment.uniform(0, 0.1))
    assert second.stop(signal.SIGKILL)[0] == -signal.SIGKILL

    third = start(at, words(experiment))  # judging
    third.wait_for_step(steps[experiment])
    time.sleep(moment.uniform(0, 0.3))
    code, err = third.stop(signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert f"resuming {at} from step-" in err
    assert not (at / "verdict.json").exists()

    reference = finished(words(experiment))
    code, err = start(at, words(experiment)).end()
    assert code == (0 if reference.verdict["holds"] else 3)
    assert f"resuming {at} from step-{steps[experiment]:09d}.ckpt" in err
    assert outcome(at).differs_from(reference) == []


def test_sigterm_and_sigint_save_first(
    start: Any, finished: Any, words: Any, steps: Any, at: Path, outcome: Any
) -> None:
    stop_and_finish("pca_autoencoder", [], start, finished, words, steps, at, outcome)


def test_sigterm_and_sigint_save_first_on_two_ranks(
    start: Any, finished: Any, words: Any, steps: Any, at: Path, outcome: Any
) -> None:
    stop_and_finish("vae", ["trainer.devices=2"], start, finished, words, steps, at, outcome)


def test_weights_split_over_two_ranks_are_trained_and_saved_whole(
    start: Any, finished: Any, words: Any, steps: Any, tmp_path: Path, outcome: Any
) -> None:
    """FSDP adds the same two halves of each gradient as DDP does, so nothing differs, however often it was stopped."""
    two = ["trainer.devices=2", "trainer.max_steps=300"]
    split, fewer = [*two, "trainer.strategy=fsdp"], steps | {"pca_autoencoder": 300}
    stop_and_finish("pca_autoencoder", split, start, finished, words, fewer, tmp_path / "run", outcome)
    assert outcome(tmp_path / "run").differs_from(finished(words("pca_autoencoder", *two))) == []


def test_average_and_weights_both_go_on(
    start: Any, finished: Any, words: Any, steps: Any, at: Path, outcome: Any
) -> None:
    at_scale = ["data.batch_size=64", "model.accumulate=3", "model.clip=50", "model.ema=0.99"]
    stop_and_finish("vae", at_scale, start, finished, words, steps, at, outcome)
    assert any(name.startswith("followed.") for name in outcome(at).state)


def stop_and_finish(
    experiment: str, more: list[str], start: Any, finished: Any, words: Any, steps: Any, at: Path, outcome: Any
) -> None:
    """SIGTERM in the first third, SIGINT in the second."""
    command = words(experiment, *more)
    seen = steps[experiment] // 3
    for signum in (signal.SIGTERM, signal.SIGINT):
        run = start(at, command)
        run.wait_for_step(seen // BLOCK * BLOCK)
        code, err = run.stop(signum)
        saved = max(int(path.stem.removeprefix("step-")) for path in at.glob("checkpoints/*.ckpt"))
        assert code == 128 + signum
        assert err.splitlines()[-1] == f"{signum.name}: saved at step {saved}; the same command resumes"
        assert "Traceback" not in err
        assert not (at / "verdict.json").exists()
        seen = min(saved + steps[experiment] // 3, steps[experiment] - BLOCK)
    _, err = start(at, command).end()
    assert (at / "verdict.json").exists(), f"the last part did not finish: {err}"
    assert outcome(at).differs_from(finished(command)) == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_from_any_checkpoint_the_rest_is_the_same(
    experiment: str, finished: Any, words: Any, steps: Any, partial: Any, execute: Any
) -> None:
    command = words(experiment)
    step = random.Random(experiment).randrange(BLOCK, steps[experiment], BLOCK)
    run = execute(partial(command, step), command)
    assert f"resuming {run.path} from step-{step:09d}.ckpt" in (run.path / "console.log").read_text()
    assert run.differs_from(finished(command)) == []


def test_a_signal_before_training_ends_the_run_at_once(start: Any, words: Any, at: Path) -> None:
    run = start(at, words("pca_autoencoder"))
    run.wait_for((at / "config.yaml").exists, "its config was frozen")
    time.sleep(0.3)
    ends_at_once(run, signal.SIGTERM)


def test_a_signal_to_ranks_before_training_ends_the_run_at_once(start: Any, words: Any, at: Path) -> None:
    run = start(at, words("pca_autoencoder", "trainer.devices=2"))
    run.wait_for(lambda: len(run.ranks()) == 2, "both ranks were there")
    ends_at_once(run, signal.SIGINT)
    assert not run.ranks()


def ends_at_once(run: Any, signum: signal.Signals) -> None:
    code, err = run.stop(signum)
    assert code == 128 + signum
    assert "Traceback" not in err
    assert f"{signum.name}: stopped; the same command goes on from the last checkpoint" in err


def test_two_ranks_killed(start: Any, finished: Any, words: Any, steps: Any, at: Path, outcome: Any) -> None:
    experiment = "pca_autoencoder"
    command, moment = words(experiment, "trainer.devices=2"), random.Random(experiment)
    first = start(at, command)
    ranks = first.wait_for(lambda: len(found := first.ranks()) == 2 and found, "both ranks were there")
    first.wait_for((at / "metrics.csv").exists, "training")
    for pid in ranks.values():
        assert not inherits_lock(pid, at), "a child of the rank, such as wandb's service, would keep the lock"
    first.wait_for_step(moment.randrange(BLOCK, steps[experiment] // 2, BLOCK))
    assert first.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in ranks.values()):
        assert time.monotonic() < deadline, "the ranks outlive the process that started them"
        time.sleep(0.02)

    second = start(at, command)
    ranks = second.wait_for(lambda: len(found := second.ranks()) == 2 and found, "both ranks were there")
    second.wait_for_step(max(int(p.stem.removeprefix("step-")) for p in at.glob("checkpoints/*.ckpt")) + BLOCK)
    os.kill(ranks[1], signal.SIGKILL)
    code, err = second.end()
    assert code == 1
    assert "lab: rank 1 was killed by signal 9" in err
    assert not second.ranks()

    code, err = start(at, command).end()
    assert f"resuming {at} from step-" in err
    assert outcome(at).differs_from(finished(command)) == []


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "run"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def inherits_lock(pid: int, run: Path) -> bool:
    """Whether a program that the process starts would hold the run directory's lock."""
    held = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink() and fd.readlink() == run / ".lock"]
    assert held, "the rank does not hold the lock"
    flags = [Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().split("flags:")[1].split()[0] for fd in held]
    return not all(int(flag, 8) & os.O_CLOEXEC for flag in flags)
