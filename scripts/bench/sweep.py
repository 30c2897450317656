"""What a sweep costs beside its runs: `lab -m` against Hydra's own launchers, and against its runs alone.

The first table runs the same tiny job (20 steps of an autoencoder, judged and drawn) under four launchers. `lab -m`
forks a process a job from one that has imported everything; Hydra's basic launcher runs the jobs one after the other in
its own process, which shares whatever a job leaves behind; its joblib launcher (loky) in two processes, each with
imports of its own. `a job` is what one more job adds, times the jobs at once. The ratios are the lab's over the other's
in the same repeat, at the same number of jobs at once: of seconds on the clock, and of the processor's, which others on
the machine disturb less. joblib's launcher is left out where it is not installed (`pip install hydra-joblib-launcher`).

The second table is linear_regression as it stands, 32 and 64 seeds. `ratio` is a sweep's time, from Enter to its
figure, over 1 import + points × fit / n_jobs, with the import and the fit of a run alone (the `seconds` of its verdict:
data, training and judging; composing and the run's figure are on top). The goal is at most 1.3. `at once` is the same
with the fit of n_jobs such runs at once, which share the machine's memory as those of a sweep do, and `CPU` the same of
processor seconds, where a run's is all that it uses after the import.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scripts.bench import _common as common
else:
    import _common as common

COMMON = ["logger=none", "trainer.accelerator=cpu"]
TINY = ["experiment=pca_autoencoder", "trainer.max_steps=20", *COMMON]
WORK = ["experiment=linear_regression", *COMMON]
QUICK = ["trainer.max_steps=5", "data.designs.small.replicates=8600"]
IMPORT = "import lab.figures, lab.run"
APP = str(Path(__file__).parent / "_app.py")
LAB = ["-m", "lab", "-m"]
OURS, OTHERS = "lab -m", "Hydra"


def hydra(launcher: str, folder: Path) -> list[str]:
    """The command that sweeps with one of Hydra's launchers and leaves what `lab -m` leaves."""
    where = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${hydra.job.num}", "run_dir=${hydra:runtime.output_dir}"]
    return [APP, "-m", f"hydra/launcher={launcher}", "hydra/sweeper=basic", *where]


def ours(folder: Path) -> list[str]:
    """The command that sweeps with the lab."""
    return [*LAB, f"hydra.sweep.dir={folder}"]


class Cost(NamedTuple):
    """Seconds of a command."""

    wall: float
    cpu: float
    """Of the processor, with all children."""


def python(arguments: Sequence[str], codes: tuple[int, ...] = (0,)) -> Cost:
    """What `python <arguments>` costs."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    started, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    took = Cost(time.perf_counter() - started, cpu)
    assert done.returncode in codes, f"{arguments} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
    return took


def sweep(command: Callable[[Path], list[str]], overrides: Sequence[str], points: int) -> Cost:
    """A sweep over seeds in a new folder, every point of which must reach its verdict."""
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as path:
        took = python([*command(Path(path) / "sweep"), *overrides, f"seed=range({points})"])
        verdicts = list(Path(path).glob("sweep/*/verdict.json"))
        assert len(verdicts) == points, f"{len(verdicts)} verdicts of {points}"
    return took


def alone(overrides: Sequence[str]) -> tuple[Cost, float]:
    """(a run from Enter to its end, seconds of data, training and judging)."""
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as path:
        took = python(["-m", "lab", *overrides, f"run_dir={path}/run"], codes=(0, 3))
        verdict = json.loads((Path(path) / "run" / "verdict.json").read_text())
    return took, verdict["provenance"]["seconds"]


def launchers(n_jobs: int) -> dict[str, tuple[Callable[[Path], list[str]], list[str]]]:
    """Launcher → its command and the overrides that make it run so many jobs at once."""
    at_once = [f"hydra.launcher.n_jobs={n_jobs}"]
    if n_jobs == 1:
        return {OURS: (ours, at_once), f"{OTHERS}'s basic": (partial(hydra, "basic"), [])}
    plugins = importlib.util.find_spec("hydra_plugins")
    if plugins is None or importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        return {OURS: (ours, at_once)}
    return {OURS: (ours, at_once), f"{OTHERS}'s joblib": (partial(hydra, "joblib"), at_once)}


def overhead(n_jobs: int, few: int, many: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Launcher → seconds of start-up, and what each further job adds: on the clock times the jobs at once, and CPU."""
    known = launchers(n_jobs)
    found: dict[str, dict[str, list[float]]] = {name: {"start": [], "job": [], "cpu": []} for name in known}

    def work(name: str) -> float:
        command, at_once = known[name]
        first, all_ = (sweep(command, [*TINY, *at_once], points) for points in (few, many))
        wall, cpu = ((b - a) / (many - few) for a, b in zip(first, all_, strict=True))
        for key, value in {"start": first.wall - few * wall, "job": n_jobs * wall, "cpu": cpu}.items():
            found[name][key].append(value)
        return all_.wall

    common.interleaved({name: partial(work, name) for name in known}, repeats)
    return found


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__ or "", repeats=5, short="leave out the sweeps of linear_regression")
    started, busy = time.perf_counter(), common.BusyMeter()
    few, many = (2, 4) if options.quick else (2, 18)
    python(["-c", IMPORT])  # file caches, byte code
    tiny, rows = {}, []
    for n_jobs in (1, 2):
        tiny[n_jobs] = found = overhead(n_jobs, few, many, options.repeats)
        for name, seconds in found.items():
            spent = [common.spread(seconds[key]) for key in ("start", "job", "cpu")]
            ratios = [common.spread(common.ratios(found[OURS][key], seconds[key])) for key in ("job", "cpu")]
            rows.append([name, str(n_jobs), *spent, *(ratios if name != OURS else ["", ""])])
    head = ["launcher", "at once", "start, s", "a job, s", "a job, CPU s", "lab/other", "lab/other, CPU"]
    print(common.table(head, rows))
    samples: dict[str, object] = {"tiny": tiny}
    if not options.short:
        print()
        samples["linear_regression"] = _linear_regression(quick=options.quick)
    common.report(options, busy, started, samples)


def _linear_regression(*, quick: bool, n_jobs: int = 2) -> dict[str, list[Cost]]:
    """Sweeps of 32 and 64 points, once each, between runs without a sweep; prints the table."""
    overrides = [*WORK, *QUICK] if quick else WORK
    sweeps = {f"{points} seeds": points for points in ((2, 4) if quick else (32, 64))}
    found: dict[str, list[Cost]] = {name: [] for name in ("import", "fit alone", "fit, at once", *sweeps)}

    def yardsticks() -> None:
        found["import"].append(python(["-c", IMPORT]))
        load = found["import"][-1].cpu
        whole, fit = alone(overrides)
        found["fit alone"].append(Cost(fit, whole.cpu - load))
        before = sum(os.times()[2:4])
        with ThreadPoolExecutor(n_jobs) as pool:
            fits = [fit for _, fit in pool.map(alone, [overrides] * n_jobs)]
        spent = sum(os.times()[2:4]) - before
        found["fit, at once"].append(Cost(statistics.mean(fits), spent / n_jobs - load))

    yardsticks()
    for name, points in sweeps.items():
        found[name] = [sweep(ours, [*overrides, f"hydra.launcher.n_jobs={n_jobs}"], points)]
        yardsticks()
    load, one, pair = (
        Cost(*map(statistics.median, zip(*seconds, strict=True))) for seconds in list(found.values())[:3]
    )
    rows = []
    for name, costs in found.items():
        wall, cpu = zip(*costs, strict=True)
        ratios = ["", "", ""]
        if points := sweeps.get(name, 0):
            expected = (load.wall + points * fit / n_jobs for fit in (one.wall, pair.wall))
            ratios = [f"{wall[0] / seconds:.2f}" for seconds in expected]
            ratios.append(f"{cpu[0] / (load.cpu + points * pair.cpu):.2f}")
        rows.append([name, common.spread(wall, 1), common.spread(cpu, 1), *ratios])
    head = [f"linear_regression, {n_jobs} at once", "seconds", "CPU s", "ratio", "at once", "CPU"]
    print(common.table(head, rows))
    return found


if __name__ == "__main__":
    main()
