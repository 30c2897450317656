"""From Enter to an answer: help, list, show, refusals, and the first training step.

Every command is a fresh process on warm file caches; `import torch` and `import lightning.pytorch` as anyone would
write them run in the same repeats as yardsticks. Enter-to-first-step is read from the run itself: the times of its
config.yaml and of the first line of its run.log, and a callback (`_probe.FirstStep`, added through the config) that
notes the clock at the first training step and ends the run after one block.

How to read it: `ratio` is the command's time over that of a plain `import lightning.pytorch` in the same repeat. Help,
list, show and refusals must stay under 1 second. With --imports the packages that cost most (python -X importtime) are
listed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.bench import _common as common
else:
    import _common as common

YARDSTICK = "import lightning.pytorch"
EXPERIMENT = "experiment=linear_regression"
ANSWERS = {
    "lab --help": (["--help"], 0),
    "lab list": (["list"], 0),
    "lab show linear_regression": (["show", "linear_regression"], 0),
    "refusal: unknown experiment": (["experiment=linear_regresion"], 2),
    "refusal: unknown key": ([EXPERIMENT, "trainer.max_step=3"], 2),
    "refusal: wrong type": ([EXPERIMENT, "data.designs.tall.d=ten"], 2),
}
"""Arguments and the exit code."""
IMPORTS = ("pass", "import hydra", "import torch", YARDSTICK, "import lab.run")
RUNS = {"first step, logger=none": ["logger=none"], "first step, wandb offline": []}
STAGES = {
    "compose": "interpreter, compose, check, freeze",
    "callbacks": "import torch, Lightning and lab.run; loggers and callbacks",
    "fit": "Trainer, data, model, and Lightning's set-up with the data drawn",
    "first step": "the rest of Lightning's set-up, the optimiser",
    "first block": "the first block of 50 steps",
}
"""Stages in order, each named by what ends it."""


def environment() -> dict[str, str]:
    """Ours, offline, and with the probe importable."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": path}


def _python(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


def seconds(arguments: list[str], code: int, folder: Path) -> float:
    """Wall-clock seconds of `python <arguments>`, which must end with exit code `code`."""
    started = time.perf_counter()
    done = _python(arguments, folder)
    took = time.perf_counter() - started
    assert done.returncode == code, f"{arguments} ended with {done.returncode}, not {code}: {done.stderr[-2000:]}"
    return took


def first_step(overrides: list[str], folder: Path) -> dict[str, float]:
    """Seconds after Enter at which each stage ended."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as path:
        run, clock = Path(path) / "run", Path(path) / "clock.json"
        probe = ["callbacks.first._target_=_probe.FirstStep", f"callbacks.first.file={clock}"]
        entered = time.time()
        seconds(["-m", "lab", EXPERIMENT, f"run_dir={run}", *probe, *overrides], 0, folder)
        stages = {"compose": (run / "config.yaml").stat().st_mtime}
        stages |= json.loads(clock.read_text())
    return {stage: stages[stage] - entered for stage in STAGES}


def heaviest(module: str, folder: Path, most: int = 12) -> list[list[str]]:
    """(package, seconds it spends in its own modules, their number) under `import module`."""
    lines = _python(["-X", "importtime", "-c", f"import {module}"], folder).stderr.splitlines()
    own: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for line in lines:
        fields = line.removeprefix("import time:").split("|")
        if len(fields) == 3 and fields[0].strip().isdigit():
            name = ".".join(fields[2].strip().split(".")[: 2 if fields[2].strip().startswith("torch.") else 1])
            own[name] += int(fields[0])
            number[name] += 1
    return [[name, f"{micro / 1e6:.2f}", str(number[name])] for name, micro in own.most_common(most)]


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__ or "", repeats=5, imports="also list what `import lab.run` spends its time on")
    started, busy = time.perf_counter(), common.BusyMeter()
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory(prefix="lab-bench-", ignore_cleanup_errors=True) as path:
        folder = Path(path)

        def run(name: str) -> float:
            stages[name].append(first_step(RUNS[name], folder))
            return stages[name][-1]["first step"]

        works: dict[str, Callable[[], float]] = {name: partial(seconds, ["-c", name], 0, folder) for name in IMPORTS}
        for name, (arguments, code) in ANSWERS.items():
            works[name] = partial(seconds, ["-m", "lab", *arguments], code, folder)
        works |= {name: partial(run, name) for name in RUNS}
        for name in (YARDSTICK, *RUNS):  # file caches, byte code
            works[name]()
        for runs in stages.values():
            runs.clear()
        found = common.interleaved(works, options.repeats)
        rows = [
            [
                name,
                common.spread(found[name]),
                common.spread(common.ratios(found[name], found[YARDSTICK])),
                _limit(name, found, stages),
            ]
            for name in works
        ]
        print(common.table(["work", "seconds", "ratio", "what limits it"], rows))
        print("\nFrom Enter to the first step, seconds (median):\n")
        names = list(RUNS)
        lines = [[what, *(f"{_spent(stages[name], stage):.2f}" for name in names)] for stage, what in STAGES.items()]
        print(common.table(["stage", *names], lines))
        if options.imports:
            print("\n`import lab.run`, seconds in a package's own modules (importtime slows them a little):\n")
            print(common.table(["package", "seconds", "modules"], heaviest("lab.run", folder)))
    common.report(options, busy, started, {"seconds": found, "stages": stages})


def _spent(runs: list[dict[str, float]], stage: str) -> float:
    """Median seconds spent in a stage."""
    order = list(STAGES)
    before = order[order.index(stage) - 1] if order.index(stage) else None
    return statistics.median(run[stage] - (run[before] if before else 0) for run in runs)


def _limit(name: str, found: dict[str, list[float]], stages: dict[str, list[dict[str, float]]]) -> str:
    if name in stages:
        spent = {stage: _spent(stages[name], stage) for stage in STAGES if stage != "first block"}
        worst = max(spent, key=lambda stage: spent[stage])
        return f"{STAGES[worst]}: {spent[worst]:.2f} s"
    if name in IMPORTS:
        return ""
    composes = "lab show" in name or "refusal" in name
    base = "import hydra" if composes else "pass"
    return f"{'Python and import hydra' if composes else 'Python'}: {statistics.median(found[base]):.2f} s"


if __name__ == "__main__":
    main()
