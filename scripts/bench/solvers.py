"""Training against direct solvers: least squares and principal components.

Least squares: 100 000 × 100, float64, eigenvalues of AᵀA/n from 0.1 to 10 (condition number about 100). Time to a
relative excess risk (L(w) − L(ŵ))/L(ŵ) ≤ 1e-6 on the sample, ŵ the exact minimiser. Principal components: time until
the largest principal angle between what was found and the top-8 eigenspace is ≤ 1e-2 rad, on the digits; with --full
also on 60 000×784 with a spectrum like MNIST's.

Everyone works in a process of their own, with the same number of threads, on the same data already in memory; what is
timed is all that comes after. Iterative methods stop at the fewest steps, or the loosest tolerance, that reach the
target, found beforehand and not timed, the lab's as everyone's. The lab's time is that of its Trainer, from
construction to the end of training, with the step size (two singular values) it computes and the checkpoint it writes.

How to read it: `ratio` is the method's time over the reference's (the first line of its table) in the same repeat, so
above 1 is slower. Training is not a direct solver; this says what the detour costs.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
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
    from scripts.bench import loop
else:
    import _common as common
    import loop

EXCESS, ANGLE, K = 1e-6, 1e-2, 8
TOP, BOTTOM = 10.0, 0.1

Solver = Callable[[float], Any]
"""Tolerance or number of steps → solution."""
Method = tuple[Solver, list[float], str]


class Problem:
    """What a worker solves: how good a solution is, and the methods that find one."""

    def __init__(self, target: float, quality: Callable[[Any], float], methods: dict[str, Method]):
        self.target, self.quality = target, quality
        self.methods = methods
        """name → (solver, settings to try, cheapest first, what a setting is: "" for a direct solver)."""


# ------------------------------------------------------------------------------------------------------- least squares


def least_squares_config(n: int, steps: int, overrides: list[str]) -> Any:
    """The experiment linear_regression with one tall design of the benchmark's size."""
    ours = [
        "experiment=linear_regression",
        "~data.designs.small",
        "~data.designs.wide",
        "~model.nets.small",
        "~model.nets.wide",
        "~controls",
        "logger=none",
        "model.record=0",
        "data.designs.tall.replicates=1",
        "data.designs.tall.d=100",
        f"data.designs.tall.samples=[{n}]",
        f"data.designs.tall.top={TOP}",
        "data.designs.tall.bulk=1",
        f"data.designs.tall.bottom={BOTTOM}",
        *overrides,
    ]
    return loop.frozen(ours, steps, 50)


def momentum(nesterov: bool) -> tuple[float, float]:
    """(learning rate in units of 2/(λ₁+λ_d), momentum) that are optimal for the spectrum the config states.

    Heavy ball: α = 4/(√λ₁+√λ_d)², β = ((√κ−1)/(√κ+1))² (Polyak 1964).
    Nesterov: α = 4/(3λ₁+λ_d), β = (√(3κ+1)−2)/(√(3κ+1)+2) (Lessard, Recht & Packard 2016, Prop. 1).
    """
    kappa, unit = TOP / BOTTOM, 2 / (TOP + BOTTOM)
    if nesterov:
        root = math.sqrt(3 * kappa + 1)
        return 4 / (3 * TOP + BOTTOM) / unit, (root - 2) / (root + 2)
    root = math.sqrt(kappa)
    return 4 / (math.sqrt(TOP) + math.sqrt(BOTTOM)) ** 2 / unit, ((root - 1) / (root + 1)) ** 2


def least_squares(x: Any, y: Any, solution: Any) -> Callable[[Any], float]:
    """w → (L(w) − L(ŵ))/L(ŵ), from ‖A(w − ŵ)‖²/‖Aŵ − y‖²: the residual of ŵ is orthogonal to A's columns."""
    least = float(((x @ solution - y) ** 2).sum())
    return lambda w: float(((x @ (w - solution)) ** 2).sum()) / least


def lab_least_squares(folder: Path, how: str) -> Problem:
    """Gradient descent by the lab's Trainer; the data it draws are saved for everyone else."""
    import numpy as np
    import torch

    n = json.loads((folder / "size.json").read_text())
    overrides = []
    if how != "plain":
        lr, beta = momentum(nesterov=how == "nesterov")
        overrides = [f"model.optimizer.lr={lr}", f"model.optimizer.momentum={beta}"]
        overrides += [f"model.optimizer.nesterov={str(how == 'nesterov').lower()}"]
    data = drawn(least_squares_config(n, 1, overrides))
    x, y = data.designs["tall"].x[0].numpy(), data.designs["tall"].y[0].numpy()
    if not (folder / "solution.npy").exists():
        np.save(folder / "x.npy", x)
        np.save(folder / "y.npy", y)
        q, r = np.linalg.qr(x)
        np.save(folder / "solution.npy", np.linalg.solve(r, q.T @ y))
    quality = least_squares(x, y, np.load(folder / "solution.npy"))

    def train(steps: float) -> Any:
        model = lab_train(least_squares_config(n, int(steps), overrides), data)
        return model.nets["tall"].weight.detach()[0].numpy()

    def fewest() -> int:
        """On the Gram matrix, where a step costs nothing, the iterates are the same but for rounding."""
        gram, moment = x.T @ x / len(x), x.T @ y / len(x)
        extremes = np.linalg.eigvalsh(gram)[[0, -1]]
        eta, lr, beta = 2 / extremes.sum(), *(momentum(nesterov=how == "nesterov") if how != "plain" else (1.0, 0.0))
        w, velocity = np.zeros(len(gram)), np.zeros(len(gram))
        for step in range(100_000):
            if step % 5 == 0 and quality(w) < 0.98 * EXCESS:
                return step
            gradient = eta * (gram @ w - moment)
            velocity = beta * velocity + gradient
            w = w - lr * (gradient + beta * velocity if how == "nesterov" else velocity)
        raise RuntimeError(f"{how}: the excess risk stays at {quality(w):.1e}")

    methods: dict[str, Method] = {"": (train, [fewest()], "steps")}
    if how == "plain":
        from lab.theory.least_squares import least_squares_solution

        a, b = torch.from_numpy(x), torch.from_numpy(y)
        methods["lab.theory least_squares_solution (gelsd)"] = (lambda _: least_squares_solution(a, b).numpy(), [0], "")
    return Problem(EXCESS, quality, methods)


def sklearn_least_squares(folder: Path) -> Problem:
    """Scikit-learn's solvers."""
    import numpy as np
    from sklearn.linear_model import LinearRegression, Ridge, SGDRegressor

    x, y, solution = (np.load(folder / f"{name}.npy") for name in ("x", "y", "solution"))

    def ridge(solver: str, tol: float) -> Any:
        model = Ridge(alpha=1e-6, solver=solver, tol=tol, fit_intercept=False, max_iter=2000, random_state=0)
        return model.fit(x, y).coef_

    def sgd(_: float) -> Any:
        model = SGDRegressor(penalty=None, fit_intercept=False, tol=1e-9, max_iter=20, average=True, random_state=0)
        return model.fit(x, y).coef_

    tolerances = [10.0**-e for e in range(1, 13)]
    methods: dict[str, Method] = {
        "scikit-learn Ridge cholesky": (partial(ridge, "cholesky"), [0], ""),
        "scikit-learn LinearRegression": (
            lambda _: LinearRegression(fit_intercept=False).fit(x, y).coef_,
            [0],
            "",
        ),
        "scikit-learn Ridge svd": (partial(ridge, "svd"), [0], ""),
    }
    for solver in ("lsqr", "sparse_cg", "sag", "saga"):
        methods[f"scikit-learn Ridge {solver}"] = (partial(ridge, solver), tolerances, "tol")
    methods["scikit-learn SGDRegressor (averaged, 20 epochs)"] = (sgd, [0], "")
    return Problem(EXCESS, least_squares(x, y, solution), methods)


# ------------------------------------------------------------------------------------------------ principal components


def principal_angle(x: Any) -> Callable[[Any], float]:
    """Basis (d, k) → its largest principal angle to the span of the top-k right singular vectors of x."""
    import numpy as np

    _, vectors = np.linalg.eigh(x.T.astype(np.float64) @ x.astype(np.float64))
    top = vectors[:, -K:]

    def angle(basis: Any) -> float:
        q = np.linalg.qr(np.asarray(basis, dtype=np.float64))[0]
        sines = np.linalg.svd(top - q @ (q.T @ top), compute_uv=False)
        return float(np.arcsin(min(1.0, sines[0])))

    return angle


def lab_components(folder: Path) -> Problem:
    """The linear autoencoder of experiment pca_autoencoder, at its own settings but for the number of steps."""
    import numpy as np

    images = folder / "images.npy"
    overrides = ["experiment=pca_autoencoder", "logger=none"]
    if images.exists():
        overrides += ["model.net.d=784", "data.batch_size=1024"]
    data = drawn(loop.frozen(overrides, 1, 50), np.load(images) if images.exists() else None)
    if not (folder / "components.npy").exists():
        np.save(folder / "components.npy", data.x.numpy())

    def train(steps: float) -> Any:
        return lab_train(loop.frozen(overrides, int(steps), 50), data).net.decoder.detach().numpy()

    return Problem(
        ANGLE,
        principal_angle(data.x.numpy()),
        {"": (train, [100, 150, 250, 400, 600, 1000, 1500, 2000, 4000], "steps")},
    )


def sklearn_components(folder: Path) -> Problem:
    """Scikit-learn's PCA on the same centred float32 images."""
    import numpy as np
    from sklearn.decomposition import PCA

    x = np.load(folder / "components.npy")

    def pca(solver: str, iterations: float) -> Any:
        power = "auto" if iterations < 0 else int(iterations)
        return PCA(K, svd_solver=solver, iterated_power=power, random_state=0).fit(x).components_.T

    methods: dict[str, Method] = {
        f"scikit-learn PCA {solver}": (partial(pca, solver), [-1], "") for solver in ("full", "covariance_eigh")
    }
    methods["scikit-learn PCA randomized"] = (
        partial(pca, "randomized"),
        [0, 1, 2, 3, 4, 6, 8, 12, 16, 32],
        "power iterations",
    )
    return Problem(ANGLE, principal_angle(x), methods)


def write_images(folder: Path) -> None:
    """60 000 Gaussian vectors of 784 numbers whose variances fall like MNIST's: 5 at the head, as i^-1.5 after that."""
    import numpy as np

    random = np.random.default_rng(0)
    deviations = np.sqrt(5.0 * np.arange(1, 785) ** -1.5)
    rotation = np.linalg.qr(random.standard_normal((784, 784)))[0]
    images = (random.standard_normal((60_000, 784)) * deviations) @ rotation
    np.save(folder / "images.npy", images.reshape(-1, 28, 28).astype(np.float32))


# ------------------------------------------------------------------------------------------------------------- the lab


def drawn(cfg: Any, images: Any = None) -> Any:
    """The data of a config, drawn and loaded; `images` in place of its own."""
    import torch
    from hydra.utils import instantiate

    from lab.data.blocks import DTYPES

    data = instantiate(cfg.data)
    if images is not None:
        data.images = lambda: torch.from_numpy(images)
    data.dtype = DTYPES.get(cfg.trainer.precision, torch.float32)
    data.load()
    data._loaded = True
    return data


def lab_train(cfg: Any, data: Any) -> Any:
    """Train as `lab.run` does; returns the model."""
    from hydra.utils import instantiate

    from lab.making import make_trainer
    from lab.rundir import RunDir

    with tempfile.TemporaryDirectory(prefix="lab-bench-") as folder:
        trainer = make_trainer(cfg, RunDir(Path(folder)), None, 0, [])
        with trainer.init_module():
            model = instantiate(cfg.model)
        trainer.fit(model, datamodule=data)
    return model


# ------------------------------------------------------------------------------------------------------------- workers

WORKERS: dict[str, Callable[[Path], Problem]] = {
    "lab gradient descent, optimal step": partial(lab_least_squares, how="plain"),
    "lab gradient descent, heavy ball": partial(lab_least_squares, how="heavy ball"),
    "lab gradient descent, Nesterov": partial(lab_least_squares, how="nesterov"),
    "sklearn least squares": sklearn_least_squares,
    "lab autoencoder": lab_components,
    "sklearn components": sklearn_components,
}


def work(name: str, folder: Path, threads: int) -> None:
    """A worker: says which methods reach the target at which setting, then runs the method named on each input line."""
    if name.startswith("lab"):
        import torch

        from lab import run  # noqa: F401  before Lightning: it hides what torchmetrics would import

        torch.set_num_threads(threads)
        for logger in ("lightning", "lightning.pytorch", "lightning.fabric", "py.warnings", "lab"):
            logging.getLogger(logger).setLevel(logging.ERROR)
    import warnings

    warnings.simplefilter("ignore")
    problem = WORKERS[name](folder)
    methods = {method or name: found for method, found in problem.methods.items()}
    settings: dict[str, float] = {}
    for method, (solver, choices, what) in methods.items():
        best = math.inf
        for choice in choices:
            best = min(best, problem.quality(solver(choice)))
            if best <= problem.target:
                settings[method] = choice
                break
        found = {"method": method, "setting": settings.get(method), "what": what, "reached": best}
        print(json.dumps(found), flush=True)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        method = line.strip()
        started = time.perf_counter()
        solution = methods[method][0](settings[method])
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "reached": problem.quality(solution)}), flush=True)


class Worker:
    """A process that solves on command, one method at a time."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        command = [sys.executable, __file__, "--worker", name, str(folder), str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
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


def compare(
    names: list[str], folder: Path, reference: str, options: argparse.Namespace, target: float
) -> tuple[list[list[str]], dict[str, Any]]:
    """(lines of the table, samples) for the methods of the named workers."""
    workers = [Worker(name, folder, options.threads) for name in names]  # the first, the lab's, writes everyone's data
    owner = {method: worker for worker in workers for method in worker.found}
    reached = [method for method, worker in owner.items() if worker.found[method]["setting"] is not None]
    works = {method: partial(owner[method].solve, method) for method in reached}
    seconds = common.interleaved(works, options.repeats)
    for worker in workers:
        worker.close()
    lines = []
    for method in sorted(reached, key=lambda method: (method != reference, statistics.median(seconds[method]))):
        found = owner[method].found[method]
        assert found["reached"] <= target, f"{method} reached {found['reached']:.1e} only"
        ratio = common.spread(common.ratios(seconds[method], seconds[reference]))
        limit = f"{found['what']} {found['setting']:g}" if found["what"] else "direct"
        lines.append([method, common.spread(seconds[method], 3), ratio, f"{found['reached']:.1e}", limit])
    missed = owner.keys() - set(reached)
    lines += [[method, "not reached", "", f"{owner[method].found[method]['reached']:.1e}", ""] for method in missed]
    return lines, {"seconds": seconds, "found": {method: owner[method].found[method] for method in owner}}


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__ or "", repeats=5, full="also principal components of 60 000×784")
    samples: dict[str, Any] = {}
    started, busy = time.perf_counter(), common.BusyMeter()
    names = list(WORKERS)
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as path:
        folder = Path(path)
        n = 2000 if options.quick else 100_000
        (folder / "size.json").write_text(json.dumps(n))
        head = ["work", "seconds", "ratio", "excess risk", "what limits it: stopped at"]
        lines, samples["least squares"] = compare(names[:4], folder, "scikit-learn Ridge cholesky", options, EXCESS)
        print(f"Least squares, {n}×100, to {EXCESS:.0e} relative excess risk:\n")
        print(common.table(head, lines))
        head[3] = "angle / rad"
        reference = "scikit-learn PCA full"
        lines, samples["digits"] = compare(names[4:], folder, reference, options, ANGLE)
        print(f"\nTop-{K} principal subspace of the digits (1797×64), to {ANGLE:.0e} rad:\n")
        print(common.table(head, lines))
        if options.full:
            (folder / "components.npy").unlink()
            write_images(folder)
            lines, samples["images"] = compare(names[4:], folder, reference, options, ANGLE)
            print(f"\nTop-{K} principal subspace of 60 000×784, to {ANGLE:.0e} rad (the lab: batch 1024):\n")
            print(common.table(head, lines))
    common.report(options, busy, started, samples)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
