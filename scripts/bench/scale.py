"""What collecting and comparing costs at 1 000 and at 10 000 finished runs, on this machine's local disk.

One short run of pca_autoencoder is copied into the folder of a sweep so many times, each with its own k (ten of them)
and seed; figures and checkpoints, which nothing here reads, are hard links. So the numbers are of files that lie beside
each other on one disk, warm in its cache, and not of a shared file system. Timed is what reads them: what the end of a
sweep and `lab status` collect, and the parts of `lab compare`; `figure` is drawn and saved.

Seconds are the processor's, of all threads, which others on the machine disturb less than the clock. `a run` is what
one more run adds: the difference of the two sizes in the same repeat over that of their runs. What grew with the square
of the runs would show there, as more than the smaller size's seconds over its runs.

The second table is of a run's files and of a sweep's points before the first one starts: composing and checking the
smaller size's points, the memory that a tenth of them hold (Python's objects alone), and the larger size's sweep.json.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.bench import _common as common
    from scripts.bench import sweep
else:
    import _common as common
    import sweep

SIZES, QUICK = (1_000, 10_000), (20, 40)
WIDTHS = 10
"""Different k, which are the groups of the table by k."""
LINKED = {".ckpt", ".png", ".svg"}
LEFT_OUT = {".lock"}


def copies(run: Path, folder: Path, count: int) -> None:
    """A sweep's folder with copies of a finished run, `count` of them and a `sweep.json` that names them."""
    files = [file for file in run.rglob("*") if file.is_file() and file.name not in LEFT_OUT]
    config = (run / "config.yaml").read_text()
    points = []
    for i in range(count):
        values = {"k": str(1 + i % WIDTHS), "seed": str(i // WIDTHS)}
        name = ",".join(f"{key}={value}" for key, value in values.items())
        points.append({"name": name, "values": values, "digest": f"{i:064x}"})
        for file in files:
            copy = folder / name / file.relative_to(run)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix in LINKED:
                os.link(file, copy)
            else:
                shutil.copyfile(file, copy)
        own = config
        for key, value in values.items():
            own = re.sub(rf"^( *{key}:) \d+$", rf"\1 {value}", own, flags=re.MULTILINE)
        (folder / name / "config.yaml").write_text(own)
    record = {"experiment": "pca_autoencoder", "overrides": sweep.TINY, "objective": None, "points": points}
    (folder / "sweep.json").write_text(json.dumps(record, indent=1))


def works(folder: Path, count: int) -> dict[str, Callable[[], object]]:
    """What is timed, each checked to have seen all runs."""
    from lab import figures
    from lab.compare.figure import draw
    from lab.compare.load import load
    from lab.compare.table import Comparison
    from lab.compare.terminal import print_comparison
    from lab.sweep import results

    runs = load([str(folder)])
    assert len(runs) == count

    def collect() -> None:
        assert sum(row.state == "done" for row in results.collect(folder, {})) == count

    def table(*by: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            print_comparison(Comparison(runs, by))
        assert printed.getvalue().count("\n") > (WIDTHS if by else count)

    return {
        "rows of a sweep": collect,
        "lab compare: read": partial(load, [str(folder)]),
        "table, a line a run": table,
        "table, by k": partial(table, "model.net.k"),
        "figure": lambda: figures.save(draw(Comparison(runs)), folder.parent, folder.name),
    }


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of `work`."""
    started = time.process_time()
    work()
    return time.process_time() - started


def points(count: int) -> int:
    """Compose and check so many points; returns the bytes that they hold, where Python's memory is followed."""
    from lab.sweep import plan

    before = tracemalloc.get_traced_memory()[0]
    texts = [*sweep.TINY, f"k=range(1,{WIDTHS + 1})", f"seed=range({count // WIDTHS})"]
    held = plan.grid(texts)
    assert len(held) == count
    return tracemalloc.get_traced_memory()[0] - before


def memory(count: int) -> float:
    """Bytes that a point holds."""
    points(WIDTHS)  # what is read once
    tracemalloc.start()
    try:
        return points(count) / count
    finally:
        tracemalloc.stop()


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__ or "", repeats=3)
    started, busy = time.perf_counter(), common.BusyMeter()
    small, large = sizes = QUICK if options.quick else SIZES
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as path:
        run, folder = Path(path) / "run", Path(path)
        sweep.python(["-m", "lab", *sweep.TINY, f"run_dir={run}"], codes=(0, 3))
        parts: dict[str, Callable[[], float]] = {}
        for count in sizes:
            copies(run, folder / str(count), count)
            parts |= {
                f"{name}, {count}": partial(seconds, work) for name, work in works(folder / str(count), count).items()
            }
        parts["points"] = partial(seconds, partial(points, small))
        samples = common.interleaved(parts, options.repeats)
        files = [file for file in run.rglob("*") if file.is_file()]
        inodes, size = 1 + len(list(run.rglob("*"))), sum(file.stat().st_size for file in files)
        record = (folder / str(large) / "sweep.json").stat().st_size
    rows = []
    for name in dict.fromkeys(name.rpartition(", ")[0] for name in parts if name != "points"):
        few, many = (samples[f"{name}, {count}"] for count in sizes)
        each = [(b - a) / (large - small) for a, b in zip(few, many, strict=True)]
        rows.append([name, *(common.spread(spent) for spent in (few, many)), common.spread(each, 2, 1000)])
    print(common.table(["CPU s", f"{small} runs", f"{large} runs", "a run, ms"], rows), end="\n\n")
    held = memory(max(WIDTHS, small // 10))
    rows = [
        ["files of a run; with folders", f"{len(files)}; {inodes}"],
        ["MB of a run", f"{size / 1e6:.2f}"],
        ["composing and checking a point, CPU ms", common.spread(samples["points"], 1, 1000 / small)],
        ["a point in memory, kB", f"{held / 1000:.0f}"],
        [f"sweep.json of {large}, MB", f"{record / 1e6:.2f}"],
    ]
    print(common.table(["one", ""], rows))
    common.report(options, busy, started, samples | {"memory": held})


if __name__ == "__main__":
    main()
