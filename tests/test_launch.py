"""Starting a run: what is said when the disk is full, and whose refusal counts where there are several ranks."""

from __future__ import annotations

import errno
import os
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
        assert ranks._wait(processes, RunDir(tmp_path)) == code
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert time.monotonic() - begun < 30
    assert said in capsys.readouterr().err
