"""The lab's graph convolutional network of a citation network against PyTorch Geometric's example.

Both train the network 3703 → 16 → 6 with dropout ½ on words and hidden values by Adam, weight decay on the first layer,
all nodes at once. The example's way (its examples/gcn.py, without the pass over all nodes that it takes after every
epoch to print accuracies): a dense matrix of words, dropout over all of it, GCNConv that normalises the adjacency in
each call, Adam as it comes. The lab's: its Trainer as `python -m lab experiment=gnn_citeseer` builds it, with all
default logging, of this one network; the words that are there alone are stored, multiplied and dropped out, the
adjacency is normalised once, Adam is fused.

How to read it: `ratio` is the lab's epochs a second over the example's in the same repeat; the goal is 10. The second
table trains both from ten starts; the shares of test nodes that are classified right must agree.

--data-root names a folder with CiteSeer/raw; without it a network of the same sizes is made.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.bench import _common as common
    from scripts.bench import loop
else:
    import _common as common
    import loop

EPOCHS, STARTS = 200, 10
NODES, WORDS, EACH, CITATIONS, CLASSES, TOLD, TEST = 3327, 3703, 32, 4552, 6, 120, 1000


def made_network(root: Path, seed: int = 0) -> None:
    """Write files of CiteSeer's format and sizes: papers cite papers of their class and share words with them."""
    import numpy as np
    from scipy.sparse import csr_matrix

    random = np.random.default_rng(seed)
    kinds = np.concatenate([np.arange(TOLD) % CLASSES, random.integers(0, CLASSES, NODES - TOLD)])
    own = random.random((NODES, EACH)) < 0.12  # words that tell the class
    words = np.where(
        own, kinds[:, None] + CLASSES * random.integers(0, 40, own.shape), random.integers(0, WORDS, own.shape)
    )
    x = csr_matrix((np.ones(words.size, np.float32), words.ravel(), EACH * np.arange(NODES + 1)), (NODES, WORDS))
    x.sum_duplicates()
    x.data[:] = 1
    graph: dict[int, list[int]] = {node: [] for node in range(NODES)}
    for one in random.integers(0, NODES, CITATIONS):
        others = np.flatnonzero(kinds == kinds[one]) if random.random() < 0.75 else np.arange(NODES)
        graph[int(one)].append(int(random.choice(others)))
    one_hot = np.eye(CLASSES, dtype=np.int32)[kinds]
    known = NODES - TEST
    parts = {
        "x": x[:TOLD], "tx": x[known:], "allx": x[:known], "y": one_hot[:TOLD], "ty": one_hot[known:],
        "ally": one_hot[:known], "graph": graph,
    }  # fmt: skip
    folder = root / "CiteSeer/raw"
    folder.mkdir(parents=True)
    for name, value in parts.items():
        (folder / f"ind.citeseer.{name}").write_bytes(pickle.dumps(value, 2))
    (folder / "ind.citeseer.test.index").write_text("\n".join(map(str, range(known, NODES))))


class Example:
    """PyTorch Geometric's example, written out: model, data and loop."""

    def __init__(self, data: Any, seed: int = 0) -> None:
        import torch
        from torch_geometric.nn import GCNConv

        torch.manual_seed(seed)
        self.x, self.edges, self.labels = torch.from_numpy(data.x.toarray()).float(), data.edges, data.labels
        self.train, self.test = (torch.zeros(data.n, dtype=torch.bool) for _ in range(2))
        self.train[data.train], self.test[data.test] = True, True
        self.first, self.second = GCNConv(data.d, 16), GCNConv(16, data.classes)
        self.optimizer = torch.optim.Adam(
            [
                {"params": self.first.parameters(), "weight_decay": 5e-4},
                {"params": self.second.parameters(), "weight_decay": 0},
            ],
            lr=0.01,
        )

    def logits(self, training: bool) -> Any:
        """Of all nodes, (N, classes)."""
        from torch.nn import functional

        h = functional.dropout(self.x, p=0.5, training=training)
        h = self.first(h, self.edges).relu()
        h = functional.dropout(h, p=0.5, training=training)
        return self.second(h, self.edges)

    def epochs(self, epochs: int) -> float:
        """Seconds of so many."""
        from torch.nn import functional

        started = time.perf_counter()
        for _ in range(epochs):
            self.optimizer.zero_grad()
            logits = self.logits(training=True)
            loss = functional.cross_entropy(logits[self.train], self.labels[self.train])
            loss.backward()
            self.optimizer.step()
            loss.item()
        return time.perf_counter() - started

    def accuracy(self) -> float:
        """The share of test nodes classified right."""
        import torch

        with torch.no_grad():
            right = self.logits(training=False).argmax(-1) == self.labels
        return float(right[self.test].double().mean())


def config(root: Path, epochs: int, starts: int) -> Any:
    """The frozen config of so many epochs of `gnn_citeseer`, of its GCN alone."""
    others = [f"model.nets.{net}=null" for net in ("mlp", "gin", "gat")]
    overrides = ["experiment=gnn_citeseer", f"data_root={root}", f"model.copies={starts}", *others]
    return loop.frozen(overrides, epochs, 50)


def lab_accuracies(cfg: Any) -> list[float]:
    """The shares of test nodes classified right by the copies of a run."""
    import torch

    weights = loop.lab(cfg).weights
    data, model = loop.instantiated(cfg)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
    shares: list[float] = model.accuracies("gcn", data).tolist()
    return shares


def mean_and_error(values: list[float]) -> str:
    """`mean ± its standard error`, in per cent."""
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values) / len(values) ** 0.5:.1f} %"


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Print both tables; returns the samples."""
    epochs, starts = (5, 2) if options.quick else (EPOCHS, STARTS)
    one = config(root, epochs, 1)
    data, _ = loop.instantiated(one)
    example = Example(data)
    example.epochs(1)  # what is made at the first call
    works: dict[str, Callable[[], float]] = {
        "example": lambda: example.epochs(epochs),
        "lab": lambda: loop.lab(one).seconds,
    }
    seconds = common.interleaved(works, options.repeats)
    rate = {name: [epochs / s for s in values] for name, values in seconds.items()}
    row = ["GCN 3703-16-6", *(common.spread(rate[name], 1) for name in works)]
    ratio = common.spread(common.ratios(rate["lab"], rate["example"]))
    print(common.table(["work", "example, epochs/s", "lab, epochs/s", "ratio"], [[*row, ratio]]))

    shares: dict[str, list[float]] = {"example": [], "lab": lab_accuracies(config(root, epochs, starts))}
    for seed in range(starts):
        again = Example(data, seed)
        again.epochs(epochs)
        shares["example"].append(again.accuracy())
    print(f"\nTest nodes classified right after {epochs} epochs, mean of {starts} starts ± its standard error:\n")
    print(common.table(list(shares), [[mean_and_error(values) for values in shares.values()]]))
    return {"seconds": seconds, "accuracies": shares}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data-root", type=common.data_root("CiteSeer/raw"), metavar="FOLDER")
    options = common.arguments(__doc__ or "", repeats=5, parents=[parser])
    loop.prepare(options.threads)
    started, busy = time.perf_counter(), common.BusyMeter()
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as folder:
        root = options.data_root
        if root is None:
            root = Path(folder)
            made_network(root)
        samples = measure(root, options)
    common.report(options, busy, started, samples)


if __name__ == "__main__":
    main()
