"""Starting a run: what is said when the disk is full, and whose refusal counts where there are several ranks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import ranks
from lab.errors import CRASHED, HOLDS, REFUSED, Refusal
from lab.rundir import RunDir, refuse_full_disk


@pytest.mark.parametrize(
    ("error", "file", "said"),
    [
        (errno.ENOSPC, "run/metrics.csv", "run_dir={at}/run: no space left"),
        (errno.ENOSPC, None, "run_dir={at}/run: no space left"),
        (errno.ENOSPC, "cache/part", "{at}/cache/part, while running run_dir={at}/run: no space left"),
        (errno.EACCES, "run/metrics.csv", "run_dir={at}/run cannot be written"),
        (errno.ENAMETOOLONG, "run", "run_dir={at}/run cannot be written"),
    ],
)
def test_a_full_disk_is_said_of_the_file_that_found_it(error: int, file: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused, refuse_full_disk(tmp_path / "run"):
        raise OSError(error, os.strerror(error), *([str(tmp_path / file)] if file else []))
    assert str(refused.value).startswith(said.format(at=tmp_path))


def started(*programs: str) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen([sys.executable, "-c", f"import sys, time; {program}"]) for program in programs]


@pytest.mark.parametrize(
    ("programs", "code", "said"),
    [
        (["sys.exit(0)", "sys.exit(0)"], HOLDS, ""),
        (["time.sleep(1); sys.exit(2)", "sys.exit(2)"], REFUSED, ""),  # rank 0 says the same a little later
        (["time.sleep(60)", "sys.exit(2)"], CRASHED, "rank 1 ended with exit code 2"),
        (["time.sleep(60)", "sys.exit(1)"], CRASHED, "rank 1 ended with exit code 1"),
        (["time.sleep(60)", "sys.exit(143)"], 143, "rank 0 did not stop within 3 s and is killed"),
    ],
)
def test_a_refusal_of_several_ranks_is_that_of_the_first(
    programs: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ranks, "PATIENCE", 3.0)
    processes = started(*programs)
    begun = time.monotonic()
    try:
        assert ranks._wait(processes, RunDir(tmp_path), []) == code
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert time.monotonic() - begun < 30
    assert said in capsys.readouterr().err


TOLD = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from lab import loading, ranks, worker
from lab.rundir import RunDir

def work(run, checkpoint):
    time.sleep(60)
    return 0

loading.load, loading.load_named, worker.work = (lambda: None), (lambda cfg: None), work
RunDir.read_config = lambda self: SimpleNamespace(threads=1)
forks, made = os.fork, 0

def fork():
    global made
    if sys.argv[1] == f"before {made}":
        told()
    pid = forks()
    if pid and sys.argv[1] == f"after {made}":
        told()
    made += 1
    return pid

def told():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)

os.fork = fork
run = RunDir(Path("run"))
run.path.mkdir()
with run.lock() as lock:  # whose thread may be given the signal
    print(ranks.execute_ranks(run, None, 2, lock, fresh=False))
"""


@pytest.mark.parametrize("moment", ["before 0", "after 0", "before 1", "after 1"])
def test_a_signal_reaches_ranks_that_are_only_being_started(moment: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOLD, moment], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == f"{128 + signal.SIGTERM}\n", done.stderr
    for said in (done.stderr, (tmp_path / "run/rank1.log").read_text()):
        assert said == "SIGTERM: stopped; the same command goes on from the last checkpoint\n"


RANKS = """
import os
from pathlib import Path
from types import SimpleNamespace
from lab import loading, ranks, worker
from lab.rundir import RunDir

def work(run, checkpoint):
    os.fstat(lock)
    try:
        os.fstat(sweep)
    except OSError:
        return 3 if os.environ["OMP_NUM_THREADS"] == "5" else 4

loading.load, loading.load_named, worker.work = (lambda: None), (lambda cfg: None), work
RunDir.read_config = lambda self: SimpleNamespace(threads=5)
with RunDir(Path("sweep")).lock() as sweep, RunDir(Path("run")).lock() as lock:
    print(ranks.execute_ranks(RunDir(Path("run")), None, 2, lock, fresh=False))
"""


def test_a_rank_has_the_threads_of_its_run_and_of_all_locks_its_own(tmp_path: Path) -> None:
    """Not the sweep's, which may end, and be started again, while a rank is still ending."""
    for name in ("sweep", "run"):
        (tmp_path / name).mkdir()
    env = os.environ | {"OMP_NUM_THREADS": "7"}
    command = [sys.executable, "-c", RANKS]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout == "3\n", done.stderr
