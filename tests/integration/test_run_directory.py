"""A run directory has one writer, one config and one end; damage to it is found and a full disk leaves it whole."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from lab.errors import HOLDS, REFUSED, REFUTED
from lab.rundir import RunDir

EXPERIMENTS = ["pca_autoencoder", "linear_regression"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_damaged_checkpoints_are_found_said_and_passed_over(
    experiment: str, start: Any, finished: Any, words: Any, partial: Any, outcome: Any
) -> None:
    at = partial(words(experiment), 250)
    _, hundred, newer, torn, empty = sorted((at / "checkpoints").glob("step-*.ckpt"))
    torn.write_bytes(torn.read_bytes()[:-1000])
    empty.write_bytes(b"")
    content = bytearray(newer.read_bytes())
    content[len(content) // 2] ^= 4
    newer.write_bytes(content)
    _, err = start(at, words(experiment)).end()
    for path in (newer, torn, empty):
        assert f"lab: {path} is torn or corrupt and is not used\n" in err
    assert f"resuming {at} from {hundred.name}\n" in err
    assert "Traceback" not in err
    assert outcome(at).differs_from(finished(words(experiment))) == []


def test_a_run_whose_checkpoints_are_all_damaged_starts_over(
    start: Any, finished: Any, words: Any, partial: Any, outcome: Any
) -> None:
    at = partial(words("pca_autoencoder"), 100)
    for path in (at / "checkpoints").glob("step-*.ckpt"):
        os.truncate(path, 5000)
    _, err = start(at, words("pca_autoencoder")).end()
    assert err.count("is torn or corrupt and is not used") == 2
    assert f"starting {at} from the beginning: it holds no whole checkpoint\n" in err
    assert outcome(at).differs_from(finished(words("pca_autoencoder"))) == []


def test_a_full_disk_is_said_in_one_line_and_costs_nothing_saved(
    start: Any, finished: Any, words: Any, partial: Any, outcome: Any
) -> None:
    at = partial(words("pca_autoencoder"), 200)
    before = {path: path.read_bytes() for path in at.glob("checkpoints/*.ckpt")}
    with (at / "run.log").open("a") as log:
        log.write(" " * 20_000)  # so that this file takes no more lines either

    def limit() -> None:  # no file may grow beyond what the metrics need, and a checkpoint needs more
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))

    code, err = start(at, words("pca_autoencoder"), preexec_fn=limit).end()
    assert code == REFUSED
    assert err.splitlines()[-1].startswith(f"lab: run_dir={at}: no space left (File too large)")
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in at.glob("checkpoints/*")} == before
    assert not list(at.glob("checkpoints/.*"))
    start(at, words("pca_autoencoder")).end()
    assert outcome(at).differs_from(finished(words("pca_autoencoder"))) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["data.batch_size=5000"], "data.batch_size=5000 is more than the 1797 samples there are"),
        (["data.batch_size=5000", "trainer.devices=2"], "data.batch_size=5000 is more than the 1797 samples there are"),
        (["model.net.d=63"], "model.net.d=63 must be 64: the data have 64 dimensions"),
        (["claims.projector.k=64", "logger=wandb"], "claims.projector.k=64 must be less than the 64 dimensions"),
        (["claims.projector.k=64", "trainer.devices=2"], "claims.projector.k=64 must be less than the 64 dimensions"),
    ],
)
def test_what_the_data_refuse_leaves_nothing(more: list[str], said: str, start: Any, tmp_path: Path) -> None:
    run = start(tmp_path / "runs/here/one", ["experiment=pca_autoencoder", "logger=none", *more], cwd=tmp_path)
    code, err = run.end()
    assert code == REFUSED
    assert err.startswith(f"lab: {said}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_refused_start_takes_away_nothing_that_was_there(start: Any, words: Any, partial: Any) -> None:
    at = partial(words("pca_autoencoder"), 100)
    before = {path: path.read_bytes() for path in at.rglob("*.ckpt")}
    (at / "verdict.json").write_text("{")
    code, err = start(at, words("pca_autoencoder")).end()
    assert code == REFUSED
    assert "its verdict.json is not whole" in err
    assert {path: path.read_bytes() for path in at.rglob("*.ckpt")} == before


def test_an_unwritable_run_dir_is_refused(start: Any, words: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = start(tmp_path / "file" / "run", words("pca_autoencoder"), cwd=tmp_path)
    code, err = run.end()
    assert code == REFUSED
    assert err.startswith(f"lab: run_dir={tmp_path}/file/run ")
    assert err.count("\n") == 1


def test_a_live_run_directory_is_refused(start: Any, words: Any, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    with run.lock():
        code, err = start(run.path, words("pca_autoencoder")).end()
    assert code == REFUSED
    assert f"run_dir={run.path} is being written by process {os.getpid()} on {socket.gethostname()}" in err
    assert err.count("\n") == 1


def test_other_overrides_are_refused(start: Any, finished: Any, words: Any) -> None:
    done = finished(words("pca_autoencoder"))
    code, err = start(done.path, words("pca_autoencoder", "model.optimizer.lr=0.02")).end()
    assert code == REFUSED
    assert "model.optimizer.lr is 0.01 there and 0.02 here;" in err
    assert err.count("\n") == 1


def test_a_finished_run_shows_its_verdict_again(start: Any, finished: Any, words: Any, tmp_path: Path) -> None:
    done = finished(words("pca_autoencoder", "trainer.max_steps=2000"))
    assert done.verdict["holds"]
    shutil.copytree(done.path, tmp_path / "run")
    for verdict, code in (({}, HOLDS), (refuted(done.verdict), REFUTED)):
        content = json.dumps(done.verdict | verdict)
        (tmp_path / "run/verdict.json").write_text(content)
        again = start(tmp_path / "run", words("pca_autoencoder", "trainer.max_steps=2000"))
        assert again.end()[0] == code
        assert "run is finished; its verdict:" in again.out
        assert "reconstruction_error" in again.out
        assert (tmp_path / "run/verdict.json").read_text() == content


def test_a_refuted_run_exits_with_3_each_time(start: Any, finished: Any, words: Any) -> None:
    done = finished(words("linear_regression"))
    before = (done.path / "verdict.json").read_bytes()
    assert start(done.path, words("linear_regression")).end()[0] == REFUTED
    assert (done.path / "verdict.json").read_bytes() == before


def refuted(verdict: dict[str, Any]) -> dict[str, Any]:
    first, *others = verdict["claims"]
    return {"holds": False, "claims": [first | {"holds": False}, *others]}
