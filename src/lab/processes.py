"""Processes: forks of this one, how they end with it, and what SIGINT and SIGTERM do. Imports nothing heavy."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lab.errors import CRASHED

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def on_stop(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Hand SIGINT and SIGTERM to `handler`; outside the main thread, whose owner handles them, nothing changes."""
    before = {signum: signal.signal(signum, handler) for signum in STOPS} if is_main_thread() else {}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)


def is_main_thread() -> bool:
    """Whether signal handlers may be set here."""
    return threading.current_thread() is threading.main_thread()


def leave(signum: int, _frame: FrameType | None) -> None:
    """What SIGINT and SIGTERM do while there is nothing to save: end the process at once and without a traceback."""
    line = f"{signal.Signals(signum).name}: stopped; the same command goes on from the last checkpoint\n"
    os.write(2, line.encode())  # print may have been interrupted by this very signal
    os._exit(128 + signum)


@contextlib.contextmanager
def stops_held_back() -> Iterator[None]:
    """Processes started within take SIGINT and SIGTERM only once they ask for them, when they can say so.

    This process may still be told: where it has other threads the kernel gives a signal to one of those, and Python
    calls the handler in this one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def redirect(output: Path) -> None:
    """Send what this process and its children print to the end of a file."""
    _put(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 1, 2)


def _put(fd: int, *places: int) -> None:
    """Have an open file in other places than its own; where it is in one of them already it stays there."""
    for place in places:
        os.dup2(fd, place)
        os.set_inheritable(place, True)
    if fd not in places:
        os.close(fd)


def open_standard_streams() -> None:
    """Lead closed standard streams to /dev/null: their numbers would be the next files', and take what is said."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            _put(os.open(os.devnull, os.O_RDWR), fd)
        if getattr(sys, name) is None:  # Python found it closed
            setattr(sys, name, os.fdopen(fd, mode, encoding="utf-8", closefd=False))


def heed_children() -> None:
    """Have the system keep how children end, also where whoever started this process had no use for it."""
    if is_main_thread() and signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def end_with_parent(alive: int) -> None:
    """Kill this process when the other end of the pipe `alive` is gone, however its owner ended."""

    def wait() -> None:
        os.read(alive, 1)  # nothing is ever written
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


class Fork:
    """A fork of this process, in a session of its own, that does one thing and ends.

    It has loaded whatever this process had. This process must not have computed anything with it: threads that
    compute, and a GPU that was spoken to, do not survive a fork. What was registered to be done at this process's end
    is not done at the fork's; what it registers itself with `atexit` is.

    Args:
        do: what the fork executes; what it returns is its exit code, an exception is printed and is `CRASHED`.
        alive: a pipe that this process never writes to; when its writing end is gone, so is the fork.
        output: the file that takes what it prints; None: what this process prints to.
    """

    def __init__(self, do: Callable[[], int], alive: tuple[int, int], output: Path | None = None) -> None:
        self.returncode: int | None = None
        heed_children()
        sys.stdout.flush()
        sys.stderr.flush()
        with stops_held_back():
            self.pid = os.fork()
            if not self.pid:
                _be(do, alive, output)

    def poll(self) -> int | None:
        """The exit code, -n where signal n ended it; None while it runs. Not for signal handlers."""
        if self.returncode is None:
            self._reap(os.WNOHANG)
        return self.returncode

    def wait(self) -> int:
        """Wait for the end; returns the exit code. Not for signal handlers."""
        if self.returncode is None:
            self._reap(0)
        assert self.returncode is not None
        return self.returncode

    def _reap(self, options: int) -> None:
        done, status = os.waitpid(self.pid, options)
        if done:
            self.returncode = os.waitstatus_to_exitcode(status)

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless it was found to have ended."""
        if self.returncode is None:  # so that its number is no other's yet
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """Send SIGKILL, unless it was found to have ended."""
        self.send_signal(signal.SIGKILL)


def _be(do: Callable[[], int], alive: tuple[int, int], output: Path | None) -> NoReturn:
    code = CRASHED
    try:
        atexit._clear()
        os.setsid()  # a Ctrl-C at the terminal is the parent's to pass on
        os.close(alive[1])
        end_with_parent(alive[0])
        _put(os.open(os.devnull, os.O_RDONLY), 0)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            redirect(output)
        for signum in STOPS:
            signal.signal(signum, leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        code = int(do())
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
        finally:
            end_now(code)


def end_now(code: int) -> NoReturn:
    """End before Python unloads torch: its communication threads can abort a rank then, though its work was done."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
