"""The lab's diffusion model of images against plain loops, and its samplers against each other.

Training and sampling: U-Nets of 28×28 images in batches of 64, each in a process of its own, in turn. `lab` is the
lab's Trainer as `python -m lab experiment=diffusion_mnist` builds it, with all default logging. `plain` is the loop one
writes by hand around the same U-Net: a DataLoader over a TensorDataset, noise as it comes, Adam as it comes but for its
rate, `loss.item()` at every step. `diffusers` is that loop around a `UNet2DModel` of about as many weights, over the
pyramid 28, 14 in place of patches. All three train the same loss, and sample by the same steps of DDIM. Their bounds of
the likelihood are those of the same held-out images after the same steps.

How to read it: `ratio` is images a second over those of `diffusers` in the same repeat (where that is not installed,
over `plain`); the goal is 1.5 at an equal bound. --peers names an interpreter that has diffusers. --data-root names a
folder with MNIST/raw or FashionMNIST/raw; without it images of the same shape are made from scikit-learn's digits.

Samplers: the experiment `diffusion` in the plane, trained for 1500 steps. For each sampler the fewest steps of 2, 3, 4,
6, 8, … whose samples are as near to fresh data as 1.1 times two fresh data sets are, and what they cost.
"""

from __future__ import annotations

import argparse
import json
import math
import os
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
    from scripts.bench import loop, vae
else:
    import _common as common
    import loop
    import vae

PEER_CHANNELS = (32, 48)
RATES = {"lab": 4e-3, "plain": 4e-3, "diffusers": 2e-3}
"""Learning rates of the best bound after 202 steps on Fashion-MNIST: the lab's of 2, 4, 8e-3, theirs of 1, 2, 4e-3."""

DRAWS = 1000
"""Of images held out, for the bound."""


def config(root: Path, source: str, steps: int, draws: int = DRAWS) -> Any:
    """The frozen config of so many steps of `diffusion_mnist` at a rate that stays; `draws` are for its bound."""
    overrides = ["experiment=diffusion_mnist", f"data_root={root}", f"data.source={source}", "model.scheduler=null"]
    rate = [f"model.optimizer.lr={RATES['lab']}", "model.ema=null"]
    return loop.frozen([*overrides, *rate, f"model.bound_draws={draws}"], steps, 10)


def peer() -> Any:
    """A `UNet2DModel` as a velocity (x (n, d), λ (n,)) → (n, d)."""
    import torch
    from diffusers import UNet2DModel

    class Peer(torch.nn.Module):
        d = 784

        def __init__(self) -> None:
            super().__init__()
            self.net = UNet2DModel(
                sample_size=28,
                in_channels=1,
                out_channels=1,
                layers_per_block=1,
                block_out_channels=PEER_CHANNELS,
                down_block_types=("DownBlock2D",) * 2,
                up_block_types=("UpBlock2D",) * 2,
                norm_num_groups=8,
                add_attention=False,
            )

        def forward(self, x: Any, log_snr: Any) -> Any:
            times = 50 * (8.0 - log_snr)  # its embedding is made for times 0 … 1000
            return self.net(x.unflatten(1, (1, 28, 28)), times).sample.flatten(1)

    torch.manual_seed(0)
    return Peer()


class Plain:
    """The loop one writes by hand."""

    def __init__(self, root: Path, source: str, net: Any, rate: float, draws: int = DRAWS) -> None:
        import torch

        cfg = config(root, source, 1, draws)
        self.data, self.model = loop.instantiated(cfg)
        if net is not None:
            self.model.net = net
        images = self.data.as_pixels(self.data.x) * 2 - 1
        self.loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=64, shuffle=True)
        self.optimizer = torch.optim.Adam(self.model.net.parameters(), lr=rate)
        self.batches: Any = iter(self.loader)

    def train(self, steps: int) -> float:
        import torch

        from lab.models.diffusion import squared_errors

        started = time.perf_counter()
        for _ in range(steps):
            try:
                (x,) = next(self.batches)
            except StopIteration:
                self.batches = iter(self.loader)
                (x,) = next(self.batches)
            levels = self.model.schedule.log_snr(torch.rand(len(x)))
            loss = squared_errors(self.model.net, x, torch.randn_like(x), levels).mean() / x.shape[1]
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
        return time.perf_counter() - started


class Lab:
    """The lab's Trainer; every call trains from the start."""

    def __init__(self, root: Path, source: str, draws: int) -> None:
        self.place = root, source
        self.draws = draws
        self.data, self.model = loop.instantiated(config(*self.place, 1, draws))

    def train(self, steps: int) -> float:
        import torch

        outcome = loop.lab(config(*self.place, steps, self.draws))
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), outcome.weights, strict=True):
                parameter.copy_(value)
        return outcome.seconds


def work(name: str, root: Path, source: str, threads: int, draws: int) -> None:
    """A worker: answers lines `train STEPS`, `sample IMAGES STEPS` and `bound` on standard output."""
    import torch

    loop.prepare(threads)
    if name == "lab":
        worker: Any = Lab(root, source, draws)
    else:
        worker = Plain(root, source, peer() if name == "diffusers" else None, RATES[name], draws)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed elsewhere goes to standard error
    weights = sum(p.numel() for p in worker.model.net.parameters())
    print(json.dumps(weights), file=out, flush=True)
    for line in sys.stdin:
        verb, *numbers = line.split()
        if verb == "train":
            answer = worker.train(int(numbers[0]))
        elif verb == "sample":
            started = time.perf_counter()
            draw = torch.Generator().manual_seed(0)
            worker.model.draw(int(numbers[0]), draw, worker.model.sampler, int(numbers[1]), torch.float32)
            answer = time.perf_counter() - started
        else:
            answer, _ = worker.model.bits(worker.data)
        print(json.dumps(answer), file=out, flush=True)


def networks(root: Path, source: str, options: argparse.Namespace) -> dict[str, Any]:
    """Print images a second and bounds; returns the samples."""
    pythons = {"lab": sys.executable, "plain": sys.executable}
    peers = options.peers or sys.executable
    if subprocess.run([peers, "-c", "import diffusers"], capture_output=True, check=False).returncode == 0:
        pythons["diffusers"] = peers
    else:
        print("diffusers is not installed; --peers names an interpreter that has it\n")
    reference = list(pythons)[-1]
    steps, images, sample_steps = (2, 8, 2) if options.quick else (options.steps, 64, 16)
    place = [str(root), source, str(options.threads), "20" if options.quick else str(DRAWS)]
    workers = {name: common.Worker([python, __file__, "--worker", name, *place]) for name, python in pythons.items()}
    for worker in workers.values():
        worker.ask("train 2")
    samples: dict[str, Any] = {"weights": {name: int(worker.first) for name, worker in workers.items()}}
    lines: dict[str, list[str]] = {name: [name, f"{worker.first:.0f}"] for name, worker in workers.items()}
    for what, line, count in (
        ("train", f"train {steps}", 64 * steps),
        ("sample", f"sample {images} {sample_steps}", images),
    ):
        works = {name: partial(worker.ask, line) for name, worker in workers.items()}
        seconds = samples[what] = common.interleaved(works, options.repeats)
        for name in workers:
            lines[name] += [
                common.spread([count / s for s in seconds[name]], 0),
                common.spread(common.ratios(seconds[reference], seconds[name])),
            ]
    total = steps * options.repeats + 2  # what the plain loops have trained by now
    workers["lab"].ask(f"train {total}")
    samples["bits"] = {name: worker.ask("bound") for name, worker in workers.items()}
    for name, worker in workers.items():
        lines[name].append(f"{samples['bits'][name]:.3f}")
        worker.close()
    head = ["U-Net", "weights", "trained images/s", "ratio", f"sampled images/s ({sample_steps} steps)", "ratio"]
    print(common.table([*head, f"bits/dim after {total} steps"], list(lines.values())))
    return samples


def samplers(options: argparse.Namespace) -> dict[str, Any]:
    """Print the steps that each sampler needs in the plane."""
    import torch

    from lab.algorithms.samplers.ancestral import Ancestral
    from lab.algorithms.samplers.ddim import DDIM
    from lab.algorithms.samplers.euler import Euler
    from lab.algorithms.samplers.heun import Heun
    from lab.algorithms.schedules import Cosine
    from lab.theory.transport import wasserstein

    n, repeats, steps = (50, 1, 20) if options.quick else (1000, 6, 1500)
    cfg = loop.frozen(["experiment=diffusion"], steps, 50)
    data, model = loop.instantiated(cfg)
    weights = loop.lab(cfg).weights
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
    model.schedule = Cosine(model.schedule.least, model.schedule.most)

    def mean_distance(make: Callable[[int], Any]) -> float:
        pairs = [(make(i), data.fresh(n, "bench", i)) for i in range(repeats)]
        return sum(wasserstein(x.double().numpy(), y.numpy()) for x, y in pairs) / repeats

    fresh = mean_distance(lambda i: data.fresh(n, "bench", "other", i))
    rows, found = [], {}
    for sampler in (Ancestral(), Euler(), DDIM(), Heun()):
        for count in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):

            def make(i: int, sampler: Any = sampler, count: int = count) -> Any:
                return model.draw(n, torch.Generator().manual_seed(i), sampler, count, torch.float32)

            distance = mean_distance(make)
            if distance <= 1.1 * fresh or options.quick:
                break
        name = type(sampler).__name__
        reached = distance <= 1.1 * fresh
        found[name] = {"steps": count, "evaluations": count * sampler.evaluations, "distance": distance}
        rows.append(
            [
                name,
                str(count) if reached else "not reached",
                str(count * sampler.evaluations),
                f"{distance / fresh:.3f}",
            ]
        )
    print(f"\nIn the plane, to 1.1 times the W2 of two fresh data sets of {n} points ({fresh:.4f}):\n")
    print(common.table(["sampler", "steps", "evaluations of the network", "W2 / W2(fresh, fresh)"], rows))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data-root", type=common.data_root("MNIST/raw", "FashionMNIST/raw"), metavar="FOLDER")
    parser.add_argument("--peers", type=common.interpreter, metavar="PYTHON", help="an interpreter that has diffusers")
    parser.add_argument("--steps", type=int, default=40, help="training steps of a repeat (40)")
    options = common.arguments(__doc__ or "", repeats=5, parents=[parser])
    loop.prepare(options.threads)
    started, busy = time.perf_counter(), common.BusyMeter()
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as folder:
        root, source = options.data_root, "mnist"
        if root is None:
            root, images = Path(folder), 1280 if options.quick else 20_000
            vae.digits_as_mnist(root, images, math.ceil(images / 6))
        elif not (root / "MNIST/raw").is_dir():
            source = "fashion_mnist"
        samples = {"networks": networks(root, source, options)}
        samples["samplers"] = samplers(options)
    common.report(options, busy, started, samples)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]), sys.argv[4], threads=int(sys.argv[5]), draws=int(sys.argv[6]))
    else:
        main()
