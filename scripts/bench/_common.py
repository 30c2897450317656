"""What the benchmarks share: interleaved repeats, how busy the machine was, tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MALLOC = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=268435456"
"""Every worker's: large tensors are not given back to the system at every step, which gains up to 1.45 times."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def pin_threads(threads: int) -> None:
    """Fix the thread count of every BLAS loaded after this call, here and in child processes."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


def interpreter(word: str) -> str:
    """An argument that names a program, such as another environment's Python."""
    if shutil.which(word) is None:
        raise argparse.ArgumentTypeError(f"{word} is no program that can be run")
    return word


def data_root(*folders: str) -> Callable[[str], Path]:
    """An argument that names a folder in which one of these has files that are not packed."""

    def root(word: str) -> Path:
        if not any(file.suffix != ".gz" for folder in folders for file in Path(word, folder).glob("*")):
            raise argparse.ArgumentTypeError(f"{word} has no unpacked files in {' or '.join(folders)}")
        return Path(word)

    return root


def arguments(
    doc: str, repeats: int, parents: Sequence[argparse.ArgumentParser] = (), **flags: str
) -> argparse.Namespace:
    """--quick, --repeats, --threads, --json, the named boolean flags and what `parents` take; pins the threads."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, parents=parents
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny sizes, numbers mean nothing")
    parser.add_argument("--repeats", type=int, help=f"paired repeats ({repeats})")
    parser.add_argument("--threads", type=int, default=1, help="BLAS and OpenMP threads of everyone (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    for flag, text in flags.items():
        parser.add_argument(f"--{flag}", action="store_true", help=text)
    chosen = parser.parse_args()
    chosen.repeats = chosen.repeats or (1 if chosen.quick else repeats)
    pin_threads(chosen.threads)
    return chosen


def interleaved(works: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work per repeat. All works run in every repeat, each time starting with another one."""
    names = list(works)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(works[name]())
    return seconds


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Ratio within each repeat: what disturbs the machine for longer than a repeat cancels."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def spread(values: Sequence[float], digits: int = 2, scale: float = 1) -> str:
    """`median [min..max]`."""
    low, middle, high = (f"{scale * v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} [{low}..{high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table with aligned columns."""
    cells = [list(head), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


class Worker:
    """A process that answers each line on its standard input with a number, as JSON, on its standard output.

    Attributes:
        first: what it said before it was asked.
    """

    def __init__(self, command: Sequence[str]) -> None:
        environment = os.environ | {"GLIBC_TUNABLES": MALLOC}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.first = self._answer()

    def ask(self, line: str) -> float:
        """Have a line answered."""
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with exit code {self.process.wait()}: {self.process.args!r}")
        return float(json.loads(line))

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


class BusyMeter:
    """Whose the processor time was between start and now: ours or others' (Linux; elsewhere the load alone)."""

    def __init__(self) -> None:
        self._before = self._read()

    def __str__(self) -> str:
        load = "load average " + " ".join(f"{x:.1f}" for x in os.getloadavg())
        cores = os.cpu_count()
        if self._before is None or (now := self._read()) is None:
            return f"{cores} cores, {load}"
        total, idle, mine = (b - a for a, b in zip(self._before, now, strict=True))
        ours = mine / total
        others = max(0.0, 1 - idle / total - ours)
        return f"{cores} cores: {ours:.0%} used by this benchmark, {others:.0%} by others; {load}"

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Processor seconds: (all, idle, this process and its ended children)."""
        try:
            fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return None
        tick = os.sysconf("SC_CLK_TCK")
        return sum(fields) / tick, (fields[3] + fields[4]) / tick, sum(os.times()[:4])


def report(options: argparse.Namespace, busy: BusyMeter, started: float, samples: Mapping[str, Any]) -> None:
    """Print where and how the numbers came about; write the samples where --json says."""
    about = {
        "machine": f"{platform.machine()}, {busy}",
        "threads": options.threads,
        "repeats": options.repeats,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(f"\nMeasured on {about['machine']}; {options.threads} thread(s), {options.repeats} paired repeats, ", end="")
    print(f"{about['seconds']} s in all." + (" QUICK: the numbers mean nothing." if options.quick else ""))
    if options.json:
        options.json.write_text(json.dumps({**about, "samples": samples}, indent=1) + "\n")
