"""The lab's variational autoencoder of MNIST against the way of the public PyTorch example.

Both train the network 784 → 400 → 20 and back with Bernoulli pixels by Adam in batches of 128. The example's way: a
torchvision dataset that turns each image into a tensor when it is asked for, a shuffling DataLoader, sigmoid and binary
cross-entropy one after the other, Adam as it comes, `loss.item()` at every step. The lab's: its Trainer as `python -m
lab experiment=vae_mnist` builds it, with all default logging; the images stay bytes on the device, the loss is taken
from the logits, Adam is fused.

How to read it: `ratio` is the lab's images a second over the example's in the same repeat, one epoch each; the goal is
3. Then each is trained to the end, on the same images; the losses of 10 000 images held out must agree.

--data-root names a folder with MNIST/raw or FashionMNIST/raw, files unpacked; without it images of the same shape are
made from scikit-learn's digits.

Two more rows are the same run with one more option: `model.matmul=medium`, by which a CPU takes products of float32
matrices through oneDNN, and, where the processor multiplies bfloat16, `trainer.precision=bf16-mixed`: weights, loss and
optimiser in float32, the layers' products in bfloat16.
"""

from __future__ import annotations

import argparse
import struct
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

EPOCHS, BATCH = 10, 128


def digits_as_mnist(root: Path, train: int, held_out: int) -> None:
    """Write files of MNIST's format: scikit-learn's digits made 28×28, each moved by up to three pixels."""
    import torch
    from torch.nn.functional import interpolate

    from lab.data.digits import Digits

    data = Digits()
    small = data.images().float().unsqueeze(1) * (255 / 16)  # (1797, 1, 8, 8)
    large = interpolate(small, size=(24, 24), mode="bilinear").clamp(0, 255).squeeze(1)
    draw = torch.Generator().manual_seed(0)
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    for name, n in (("train", train), ("t10k", held_out)):
        which = torch.randint(len(large), (n,), generator=draw)
        moved = torch.zeros(n, 28, 28, dtype=torch.uint8)
        for image, row, (down, right) in zip(moved, which, torch.randint(5, (n, 2), generator=draw), strict=True):
            image[down : down + 24, right : right + 24] = large[row]
        for what, content in (("images-idx3", moved), ("labels-idx1", data.labels[which].to(torch.uint8))):
            header = struct.pack(f">4B{content.ndim}I", 0, 0, 8, content.ndim, *content.shape)
            (folder / f"{name}-{what}-ubyte").write_bytes(header + content.numpy().tobytes())


class Example:
    """The public example's way, written out: model, data and loop."""

    def __init__(self, root: Path, source: str) -> None:
        import torch
        from torch import nn
        from torch.utils.data import DataLoader
        from torchvision import datasets, transforms

        torch.manual_seed(1)
        kind = datasets.FashionMNIST if source == "fashion_mnist" else datasets.MNIST
        self.train, self.test = (
            DataLoader(kind(root, train=train, transform=transforms.ToTensor()), batch_size=BATCH, shuffle=train)
            for train in (True, False)
        )
        self.layers = nn.ModuleDict({
            "fc1": nn.Linear(784, 400), "fc21": nn.Linear(400, 20), "fc22": nn.Linear(400, 20),
            "fc3": nn.Linear(20, 400), "fc4": nn.Linear(400, 784),
        })  # fmt: skip
        self.optimizer = torch.optim.Adam(self.layers.parameters(), lr=1e-3)

    def loss(self, x: Any) -> Any:
        """The negative bound, summed over the batch."""
        import torch
        from torch.nn import functional

        x = x.view(-1, 784)
        hidden = torch.relu(self.layers["fc1"](x))
        mean, log_variance = self.layers["fc21"](hidden), self.layers["fc22"](hidden)
        std = torch.exp(0.5 * log_variance)
        z = mean + torch.randn_like(std) * std
        output = torch.sigmoid(self.layers["fc4"](torch.relu(self.layers["fc3"](z))))
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return functional.binary_cross_entropy(output, x, reduction="sum") + divergence

    def epoch(self) -> float:
        """Seconds of one pass over the images."""
        import torch

        torch.set_float32_matmul_precision("highest")  # torch's default; a run of the lab sets its own
        started, total = time.perf_counter(), 0.0
        for x, _ in self.train:
            self.optimizer.zero_grad()
            loss = self.loss(x)
            loss.backward()
            total += loss.item()
            self.optimizer.step()
        return time.perf_counter() - started

    def held_out(self) -> float:
        """Nats an image of the test images."""
        import torch

        total, images = 0.0, 0
        with torch.no_grad():
            for x, _ in self.test:
                total, images = total + float(self.loss(x)), images + len(x)
        return total / images


def config(root: Path, source: str, steps: int, *more: str) -> Any:
    """The frozen config of so many steps of `vae_mnist`."""
    return loop.frozen(["experiment=vae_mnist", f"data_root={root}", f"data.source={source}", *more], steps, 50)


def lab_held_out(cfg: Any, weights: list[Any]) -> float:
    """Nats an image of the test images under trained weights."""
    import torch

    data, model = loop.instantiated(cfg)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
    nats: float = model.held_out_loss(data)
    return nats


def measure(root: Path, source: str, images: int, options: argparse.Namespace) -> dict[str, Any]:
    """Print both tables; returns the samples."""
    import torch

    steps, epochs = images // BATCH, 1 if options.quick else EPOCHS
    ways = {"lab": [], "lab, matmul=medium": ["model.matmul=medium"]}
    if torch.cpu._is_avx512_bf16_supported():
        ways["lab, bf16-mixed"] = ["trainer.precision=bf16-mixed"]
    example = Example(root, source)
    works: dict[str, Callable[[], float]] = {"example": example.epoch} | {
        name: partial(_epoch_of_lab, config(root, source, steps, *more)) for name, more in ways.items()
    }
    seconds = common.interleaved(works, options.repeats)
    # the example's loader serves the last, short batch too
    rate = {name: [(images if name == "example" else steps * BATCH) / s for s in seconds[name]] for name in works}

    again = Example(root, source)
    for _ in range(epochs):
        again.epoch()
    losses = {"example": again.held_out()}
    for name, more in ways.items():
        cfg = config(root, source, epochs * steps, *more)
        losses[name] = lab_held_out(cfg, loop.lab(cfg).weights)
    rows = [
        [name, common.spread(rate[name], 0), common.spread(common.ratios(rate[name], rate["example"])), f"{loss:.2f}"]
        for name, loss in losses.items()
    ]
    print(common.table(["VAE 784-400-20", "images/s", "ratio", f"nats held out after {epochs} epochs"], rows))
    return {"seconds": seconds, "losses": losses}


def _epoch_of_lab(cfg: Any) -> float:
    return loop.lab(cfg).seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data-root", type=common.data_root("MNIST/raw", "FashionMNIST/raw"), metavar="FOLDER")
    options = common.arguments(__doc__ or "", repeats=5, parents=[parser])
    loop.prepare(options.threads)
    started, busy = time.perf_counter(), common.BusyMeter()
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as folder:
        root, source, images = options.data_root, "mnist", 60_000
        if root is None:
            root, images = Path(folder), 1280 if options.quick else 60_000
            digits_as_mnist(root, images, images // 6)
        elif not (root / "MNIST/raw").is_dir():
            source = "fashion_mnist"
        samples = measure(root, source, images, options)
    common.report(options, busy, started, samples)


if __name__ == "__main__":
    main()
