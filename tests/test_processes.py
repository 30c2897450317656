"""Forks: their exit codes, what they print and to where, and their end with the process that made them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.errors import CRASHED

START = """
import atexit, os, signal, sys, time
from pathlib import Path
from lab.processes import Fork
alive = os.pipe()
"""


def run(then: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A process that makes forks; pytest's own threads and streams are not for them."""
    command = [sys.executable, "-c", START + then]
    return subprocess.run(command, cwd=folder, input="typed", capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("do", "code", "said"),
    [
        ("lambda: 3", 3, ""),
        ("lambda: print('out') or 0", 0, "out\n"),
        ("lambda: 1 / 0", CRASHED, "ZeroDivisionError"),
        ("lambda: None", CRASHED, "TypeError"),
        ("lambda: os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("lambda: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(9)", 128 + signal.SIGTERM, "SIGTERM: stopped;"),
        ("lambda: len(sys.stdin.read())", 0, ""),
        ("lambda: int(os.getsid(0) != os.getpid())", 0, ""),
    ],
)
def test_a_fork_ends_with_the_code_of_what_it_does(do: str, code: int, said: str, tmp_path: Path) -> None:
    made = run(
        f"fork = Fork({do}, alive, Path('folder/console'))\nprint(fork.wait(), fork.wait(), fork.poll())", tmp_path
    )
    assert made.stdout.split() == [str(code)] * 3, made.stderr
    assert made.stderr == ""
    assert said in (tmp_path / "folder/console").read_text()


def test_what_ends_the_parent_is_not_for_the_fork_to_do(tmp_path: Path) -> None:
    own = "def do():\n    atexit.register(print, 'of the fork', flush=True)\n    return 0\n"
    made = run(f"atexit.register(print, 'of the parent')\n{own}Fork(do, alive).wait()", tmp_path)
    assert made.stdout.splitlines() == ["of the fork", "of the parent"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_fork_is_signalled_and_after_its_end_no_other(signum: signal.Signals, tmp_path: Path) -> None:
    then = f"""
fork = Fork(lambda: time.sleep(600), alive)
print(fork.poll())
fork.send_signal({int(signum)})
print(fork.wait())
fork.send_signal({int(signum)})
fork.kill()
"""
    made = run(then, tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == ["None", str(-signum if signum == signal.SIGKILL else 128 + signum)]


def test_an_exit_code_is_known_where_children_were_of_no_concern(tmp_path: Path) -> None:
    made = run("signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nprint(Fork(lambda: 3, alive).wait())", tmp_path)
    assert made.stdout == "3\n", made.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_nowhere_and_no_file_takes_their_place(closed: str, tmp_path: Path) -> None:
    code = """
import os, subprocess, sys
from lab.processes import Fork, open_standard_streams
open_standard_streams()
with open("file", "w") as file:
    print("printed", file=sys.stdout, flush=True)
    print("printed", file=sys.stderr, flush=True)
    fork = Fork(lambda: int(sys.stdin.read() != "") + 2, os.pipe())
    child = subprocess.run([sys.executable, "-c", "import os; [os.fstat(fd) for fd in range(3)]; os._exit(4)"])
    file.write(f"{fork.wait()} {child.returncode}")
"""
    shell = f'exec "{sys.executable}" -c "$CODE" {closed}'
    environment = os.environ | {"CODE": code}
    subprocess.run(["sh", "-c", shell], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=60)
    assert (tmp_path / "file").read_text() == "2 4"


def test_forks_end_with_their_parent_however_it_ended(tmp_path: Path) -> None:
    then = """
forks = [Fork(lambda: time.sleep(600), alive) for _ in range(2)]
print(*(fork.pid for fork in forks), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    made = run(then, tmp_path)
    assert made.returncode == -signal.SIGKILL
    pids = [int(word) for word in made.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
