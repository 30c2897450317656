"""Sinkhorn's algorithm against POT, geomloss and OTT at equal accuracy.

Two clouds of n points in the plane with uneven weights, squared distances divided by their greatest, one ε for
everyone. Timed is all between the cost matrix (geomloss: the points) in memory and a plan in memory whose marginals
are off by at most 1e-9, ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁, in float64; that is verified on each plan, outside the clock. Stopping
rules differ (POT looks at one marginal in ‖·‖₂ every tenth iteration, OTT at one in ‖·‖₁ every tenth, geomloss makes as
many iterations as its schedule has), so everyone stops at the loosest setting that reaches the target, found
beforehand.

Everyone works in a process of their own with the same number of threads and a heap that keeps what it was given; OTT
compiles before the clock starts. A sample is the mean of as many solutions in a row as take a tenth of a second: one of
500 points takes milliseconds, and the first after another process had the processor is as much about whose code has
left the cache. Methods that compute in the log domain are timed too: they are what works where ε is small, and several
times slower here. At ε = 0.05 of the greatest cost nine iterations are enough, and a third to a half of the lab's time
is what everybody needs: exponentials and a plan in memory.

How to read it: `ratio` is the method's time over the lab's in the same repeat, so above 1 the lab is faster; the goal
is 2.5 for the fastest peer. --peer-python names an interpreter that has geomloss and ott-jax; who is missing is said
in one line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.bench import _common as common
else:
    import _common as common

TARGET = 1e-9
SAMPLE = 0.1
"""Seconds that the solutions of a sample take together, at the least."""
SIZES = (500, 1000, 2000, 4000)
EPSILONS = (0.05, 0.01, 0.002)

Solver = Callable[[float], Any]
"""Setting → plan, an array (n, n)."""
Method = tuple[Solver, list[float]]
"""A solver and the settings to try, loosest first."""

TOLERANCES = [TARGET * 10.0**-k for k in (-2, -1.5, -1, -0.5, 0, 0.5, 1, 2)]


def write_problem(folder: Path, n: int, epsilon: float) -> None:
    """Points, weights, cost and ε, as everyone reads them."""
    import numpy as np

    random = np.random.default_rng(n)
    x = random.standard_normal((n, 2))
    y = random.standard_normal((n, 2)) @ np.array([[1.0, 0.5], [0.0, 0.7]]) + 0.5
    a, b = random.uniform(0.5, 1.5, n), random.uniform(0.5, 1.5, n)
    cost = ((x[:, None, :] - y[None, :, :]) ** 2).sum(-1)
    scale = cost.max()
    arrays = {"x": x / scale**0.5, "y": y / scale**0.5, "a": a / a.sum(), "b": b / b.sum(), "cost": cost / scale}
    np.savez(folder / "problem.npz", epsilon=epsilon, **arrays)


def error(plan: Any, a: Any, b: Any) -> float:
    """‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁"""
    return float(abs(plan.sum(1) - a).sum() + abs(plan.sum(0) - b).sum())


def lab(problem: dict[str, Any]) -> dict[str, Method]:
    """`lab.algorithms.sinkhorn.sinkhorn`."""
    import torch

    from lab.algorithms.sinkhorn import sinkhorn

    cost, a, b = (torch.from_numpy(problem[name]) for name in ("cost", "a", "b"))

    def solve(method: Any, tolerance: float) -> Any:
        found = sinkhorn(cost, a, b, epsilon=problem["epsilon"], tolerance=tolerance, method=method)
        return found.plan.numpy()

    return {"lab": (partial(solve, "scaling"), [TARGET]), "lab, log domain": (partial(solve, "log"), [TARGET])}


def pot(problem: dict[str, Any], backend: str) -> dict[str, Method]:
    """POT's kernel form and, under torch, its log-domain form."""
    import ot
    import torch

    arrays = [problem[name] for name in ("a", "b", "cost")]
    if backend == "torch":
        arrays = [torch.from_numpy(array) for array in arrays]

    def solve(method: str, tolerance: float) -> Any:
        return ot.sinkhorn(
            *arrays, problem["epsilon"], method=method, stopThr=tolerance, numItermax=100_000, warn=False
        )

    methods: dict[str, Method] = {f"POT, {backend}": (partial(solve, "sinkhorn"), TOLERANCES)}
    if backend == "torch":
        methods["POT, torch, log domain"] = (partial(solve, "sinkhorn_log"), TOLERANCES)
    return methods


def geomloss(problem: dict[str, Any]) -> dict[str, Method]:
    """geomloss's `SamplesLoss`: annealing from the diameter down to ε by a factor, then it stops."""
    import torch
    from geomloss import SamplesLoss

    a, b, x, y = (torch.from_numpy(problem[name]) for name in ("a", "b", "x", "y"))
    cost, epsilon = torch.from_numpy(problem["cost"]), float(problem["epsilon"])

    def solve(scaling: float) -> Any:
        # its cost is ‖x − y‖²/2 and its ε blur², so half of both is the same plan
        loss = SamplesLoss(
            "sinkhorn",
            p=2,
            blur=(epsilon / 2) ** 0.5,
            scaling=scaling,
            debias=False,
            potentials=True,
            backend="tensorized",
        )
        f, g = (2 * potential.reshape(-1) for potential in loss(a, x, b, y))
        return (a[:, None] * ((f[:, None] + g - cost) / epsilon).exp() * b).numpy()

    return {"geomloss": (solve, [0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99])}


def ott(problem: dict[str, Any]) -> dict[str, Method]:
    """OTT's `Sinkhorn` in both forms, compiled."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import numpy as np
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    a, b, cost = (jnp.asarray(problem[name]) for name in ("a", "b", "cost"))
    compiled: dict[tuple[bool, float], Any] = {}

    def solve(log_domain: bool, tolerance: float) -> Any:
        def plan(cost: Any, a: Any, b: Any) -> Any:
            solver = sinkhorn.Sinkhorn(threshold=tolerance, max_iterations=100_000, lse_mode=log_domain)
            return solver(
                linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=problem["epsilon"]), a, b)
            ).matrix

        function = compiled.setdefault((log_domain, tolerance), jax.jit(plan))
        return np.asarray(function(cost, a, b).block_until_ready())

    return {"OTT": (partial(solve, False), TOLERANCES), "OTT, log domain": (partial(solve, True), TOLERANCES)}


WORKERS: dict[str, Callable[[dict[str, Any]], dict[str, Method]]] = {
    "lab": lab,
    "POT, numpy": partial(pot, backend="numpy"),
    "POT, torch": partial(pot, backend="torch"),
    "geomloss": geomloss,
    "OTT": ott,
}
PEERS_OF_THEIR_OWN = {"geomloss": "geomloss", "OTT": "ott"}
"""Workers whose packages --peer-python has, and what they import."""


def work(name: str, folder: Path, threads: int, skip: str) -> None:
    """A worker: says which methods reach the target at which setting, then runs the method named on each input line."""
    import warnings

    import numpy as np

    warnings.simplefilter("ignore")
    if name != "POT, numpy":
        import torch

        torch.set_num_threads(threads)
    with np.load(folder / "problem.npz") as file:
        problem = {key: file[key] for key in file.files}
    problem["epsilon"] = float(problem["epsilon"])
    methods = {key: value for key, value in WORKERS[name](problem).items() if not (skip and skip in key)}
    settings: dict[str, float] = {}
    for method, (solve, choices) in methods.items():
        best = float("inf")
        for choice in choices:
            best = min(best, error(np.asarray(solve(choice)), problem["a"], problem["b"]))
            if best <= TARGET:
                settings[method] = choice
                break
        print(json.dumps({"method": method, "setting": settings.get(method), "reached": best}), flush=True)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        method = line.strip()
        solve = methods[method][0]
        number, started = 0, time.perf_counter()
        while number == 0 or time.perf_counter() - started < SAMPLE:
            plan = solve(settings[method])
            number += 1
        seconds = (time.perf_counter() - started) / number
        reached = error(np.asarray(plan), problem["a"], problem["b"])
        print(json.dumps({"seconds": seconds, "reached": reached}), flush=True)


class Worker:
    """A process that solves on command, one method at a time."""

    def __init__(self, name: str, folder: Path, options: argparse.Namespace, skip: str) -> None:
        python = options.peer_python if name in PEERS_OF_THEIR_OWN else sys.executable
        command = [python, __file__, "--worker", name, str(folder), str(options.threads), skip]
        pipe = subprocess.PIPE
        single = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if options.threads == 1 else {}
        environment = os.environ | single | {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": common.MALLOC}
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.found: dict[str, dict[str, Any]] = {}
        while "ready" not in (answer := self._answer()):
            self.found[answer.pop("method")] = answer

    def solve(self, method: str) -> float:
        """Seconds of one solution."""
        assert self.process.stdin is not None
        self.process.stdin.write(method + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.found[method]["reached"] = answer["reached"]
        return float(answer["seconds"])

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with exit code {self.process.wait()}: {self.process.args!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def missing(python: str, module: str) -> bool:
    """Whether that interpreter does not have that module."""
    found = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    return found.returncode != 0


def compare(
    names: list[str], folder: Path, options: argparse.Namespace, skip: str
) -> tuple[list[list[str]], dict[str, Any]]:
    """(lines of the table, samples) for one problem."""
    workers = [Worker(name, folder, options, skip) for name in names]
    owner = {method: worker for worker in workers for method in worker.found}
    reached = [method for method, worker in owner.items() if worker.found[method]["setting"] is not None]
    works = {method: partial(owner[method].solve, method) for method in reached}
    seconds = common.interleaved(works, options.repeats)
    for worker in workers:
        worker.close()
    lines = []
    for method in sorted(reached, key=lambda method: (method != "lab", statistics.median(seconds[method]))):
        found = owner[method].found[method]
        assert found["reached"] <= TARGET, f"{method} reached {found['reached']:.1e} only"
        ratio = common.spread(common.ratios(seconds[method], seconds["lab"]))
        lines.append([method, common.spread(seconds[method], 4), ratio, f"{found['reached']:.1e}"])
    missed = sorted(owner.keys() - set(reached))
    lines += [[method, "not reached", "", f"{owner[method].found[method]['reached']:.1e}"] for method in missed]
    return lines, {"seconds": seconds, "found": {method: owner[method].found[method] for method in owner}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--peer-python",
        type=common.interpreter,
        default=sys.executable,
        metavar="PYTHON",
        help="an interpreter with geomloss and ott-jax",
    )
    parser.add_argument("--sizes", type=int, nargs="+", help=f"numbers of points ({' '.join(map(str, SIZES))})")
    parser.add_argument("--epsilons", type=float, nargs="+", help=f"({' '.join(map(str, EPSILONS))})")
    options = common.arguments(
        __doc__ or "", repeats=5, parents=[parser], kernel="leave out what computes in the log domain"
    )
    sizes = options.sizes or ((40,) if options.quick else SIZES)
    epsilons = options.epsilons or ((0.05,) if options.quick else EPSILONS)
    absent = {name for name, module in PEERS_OF_THEIR_OWN.items() if missing(options.peer_python, module)}
    if absent:
        print(f"Not installed for {options.peer_python}, and left out: {', '.join(sorted(absent))}.\n")
    names = [name for name in WORKERS if name not in absent]
    samples: dict[str, Any] = {}
    started, busy = time.perf_counter(), common.BusyMeter()
    for n in sizes:
        for epsilon in epsilons:
            with tempfile.TemporaryDirectory(prefix="lab-bench-") as path:
                write_problem(Path(path), n, epsilon)
                left_out = {"geomloss"} if options.kernel else set()  # it has no other form
                chosen = [name for name in names if name not in left_out]
                lines, samples[f"{n}, {epsilon}"] = compare(
                    chosen, Path(path), options, "log domain" if options.kernel else ""
                )
            print(f"n = {n}, ε = {epsilon:g} of the greatest cost, error of the marginals ≤ {TARGET:.0e}:\n")
            print(common.table(["method", "seconds", "ratio", "error"], lines) + "\n", flush=True)
    common.report(options, busy, started, samples)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
