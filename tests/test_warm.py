"""Many runs from one import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.errors import CRASHED, HOLDS, REFUSED, REFUTED
from lab.rundir import RunDir

JOBS = """
import sys
from pathlib import Path
from lab import compose
from lab.warm import Job, run_jobs

def job(line):
    name, *more = line.split()
    place = Path(name)
    short = ["experiment=pca_autoencoder", "logger=none", "trainer.accelerator=cpu", f"run_dir={place}", *more]
    return Job(compose.compose(short), short, place / "console.log")

for done, code in run_jobs([job(line) for line in sys.argv[1:]], at_once=2):
    print(done.console.parent, code, flush=True)
"""
CRASHES = "callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping callbacks.early.monitor=nothing"
SHORT, LONG = "trainer.max_steps=20", "trainer.max_steps=1000000 callbacks.checkpoints.every_n_steps=50"


def start(tmp_path: Path, *jobs: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", JOBS, *jobs],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.integration
def test_what_a_run_names_is_imported_before_it_is_forked(tmp_path: Path) -> None:
    code = """
import sys
from lab import loading
from lab.compose import compose
loading.load()
loading.load_named(compose(["experiment=vae", "claims.evidence._target_=lab.claims.nowhere.Claim"]))
named = ("wandb", "lab.claims.vae", "lab.data.digits", "lab.claims.nowhere", "torch._dynamo.eval_frame")
print(*(name in sys.modules for name in named))
loading.load_named(compose(["experiment=vae", "model.compiled=true"]))
print(named[-1] in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3 + ["False"] * 2 + ["True"]


@pytest.mark.integration
def test_every_job_runs_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    held = RunDir(tmp_path / "held")
    held.path.mkdir()
    with held.lock():
        process = start(
            tmp_path,
            f"crashes {SHORT} {CRASHES}",
            f"refuted {SHORT}",
            f"held {SHORT}",
            f"killed {LONG}",
            "holds trainer.max_steps=2000",
        )
        wait_for((tmp_path / "killed/checkpoints").exists)
        (pid,) = (pid for pid, owner in children(process.pid).items() if owner == "killed")
        os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    codes = {line.split()[0]: int(line.split()[1]) for line in out.splitlines()}
    assert process.returncode == 0, err
    assert codes == {
        "crashes": CRASHED,
        "refuted": REFUTED,
        "held": REFUSED,
        "killed": 128 + signal.SIGKILL,
        "holds": HOLDS,
    }
    consoles = {name: (tmp_path / name / "console.log").read_text() for name in codes}
    assert "Traceback" in consoles["crashes"]
    assert f"held is being written by process {os.getpid()}" in consoles["held"]
    assert "holds: 5 of 5 claims" in consoles["holds"]
    assert err == "", "a job writes to its own console"


@pytest.mark.integration
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_jobs_end_with_their_parent(signum: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, f"first {LONG}", f"second {LONG}", f"third {LONG}")
    wait_for(lambda: all(list(tmp_path.glob(f"{name}/checkpoints/*.ckpt")) for name in ("first", "second")))
    jobs = children(process.pid)
    assert sorted(jobs.values()) == ["first", "second"]
    process.send_signal(signum)
    process.communicate(timeout=60)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in jobs))
    assert not (tmp_path / "third").exists()
    for name in ("first", "second"):
        with RunDir(tmp_path / name).lock():
            assert RunDir(tmp_path / name).newest_checkpoint()[0] is not None


def children(parent: int) -> dict[int, str]:
    """{pid: run directory} of the jobs of a process, by what their standard output is."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found[int(stat.parent.name)] = (stat.parent / "fd/1").readlink().parent.name
        except OSError:  # it has ended
            continue
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


SIGNALLED = """
import os, signal, sys
from lab.warm import Workers

class Fires:
    def __del__(self):  # where Python prints and forgets an exception
        os.kill(os.getpid(), signal.SIGINT)

try:
    with Workers() as workers:
        Fires()
        workers.wait(1.0)
        print("went on")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.integration
def test_an_interrupt_is_not_lost_where_python_ignores_exceptions() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, check=True)
    assert done.stdout == "interrupted\n"
