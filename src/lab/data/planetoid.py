"""Citation networks with the public split of Planetoid: Cora and CiteSeer."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any, Literal
from urllib.request import urlopen

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from torch import Tensor

from lab.data import pickled
from lab.data.blocks import Block, InMemoryData, Order
from lab.data.sources import SOURCES, missing, require
from lab.errors import Refusal
from lab.random import generator
from lab.types import NonNegativeInt, PositiveInt

VALIDATION = 500
"""Nodes after those that are trained on, which the public split keeps for choosing by."""


class Planetoid(InMemoryData):
    """Papers, the words in each, which of them cite one another, and what 20 of each class are about.

    Looks for Planetoid's files under `root` in PyTorch Geometric's layout, plain or gzipped; what is missing is
    downloaded. All nodes are seen in every step; served are batches (nodes (b,), their labels (b,), c) of those whose
    class is told, c as elsewhere. Words count in shares of their paper's, edges go both ways, once, and none to itself.

    (Sen et al. 2008; the split: Yang, Cohen & Salakhutdinov 2016.)

    Args:
        source: which network.
        rewired: put as many random edges in place of the citations.

    Attributes:
        x: (n, d), SciPy's matrix in compressed rows, float64. edges: (2, E). labels: (n,). n, d, classes.
        train, validation, test: nodes.
    """

    n: int
    d: int
    classes: int

    def __init__(
        self,
        source: Literal["cora", "citeseer"] = "cora",
        root: str = "data",
        rewired: bool = False,
        seed: NonNegativeInt = 0,
        block_size: PositiveInt = 50,
    ) -> None:
        super().__init__(seed, block_size)
        self.source, self.root, self.rewired = source, Path(root), rewired

    def prepare_data(self) -> None:
        absent = missing(self.source, self.root)
        if not absent:
            return
        require(self.source, self.root)
        known = SOURCES[self.source]
        folder = self.root / known.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in absent:
                with urlopen(known.mirror + name, timeout=30) as answer:
                    content = answer.read()
                part = folder / f".{name}.{os.getpid()}.tmp"
                part.write_bytes(content)
                part.replace(folder / name)
        except OSError as error:
            raise Refusal(f"data_root={self.root}: {known.title} could not be downloaded: {error}") from error

    def load(self) -> None:
        parts = {name: self._part(name) for name in ("x", "tx", "allx", "y", "ty", "ally", "graph")}
        test = self._test()
        try:
            x, classes, edges = _assembled(parts, test)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            said = " ".join(str(error).split())
            raise Refusal(f"the files in {self._folder()} do not belong together: {said}") from error
        self.n, self.d = x.shape
        self.classes = classes.shape[1]
        self.labels = torch.from_numpy(classes.argmax(1))
        self.edges = torch.from_numpy(edges)
        if self.rewired:
            self.edges = self._random_edges(self.edges.shape[1] // 2)
        words = np.asarray(x.sum(1)).ravel()
        x.data /= np.repeat(np.where(words == 0, 1, words), np.diff(x.indptr))
        self.x = x
        told = len(parts["y"])
        self.train = torch.arange(told)
        self.validation = torch.arange(told, min(told + VALIDATION, parts["allx"].shape[0]))
        self.test = torch.from_numpy(np.sort(test))
        self.order = Order(told, None, self.seed)

    def check(self) -> None:
        if self.world_size > len(self.train):
            raise Refusal(f"trainer.devices={self.world_size} is more than the {len(self.train)} nodes that are told")

    def place(self, device: torch.device) -> None:
        self.edges, self.labels = self.edges.to(device), self.labels.to(device)
        share = self.order.share(self.rank, self.world_size)
        self._rows = self.train[share].to(device)
        self._weight = len(self._rows) * self.world_size / len(self.train)

    def block(self, start: int, stop: int) -> Block:
        batch = self._rows, self.labels[self._rows], self._weight
        return Block(start, stop - start, [batch] * (stop - start))

    def example(self) -> tuple[csr_matrix, Tensor]:
        """The graph: (x (n, d), edges (2, E))."""
        return self.x, self.edges

    def _folder(self) -> Path:
        return self.root / SOURCES[self.source].folder

    def _path(self, part: str) -> Path:
        plain = self._folder() / f"ind.{self.source}.{part}"
        return plain if plain.exists() else plain.with_name(f"{plain.name}.gz")

    def _part(self, name: str) -> Any:
        value = pickled.read(self._path(name))
        wanted = dict if name == "graph" else np.ndarray if name.endswith("y") else csr_matrix
        if not isinstance(value, wanted) or (isinstance(value, np.ndarray) and value.ndim != 2):
            raise Refusal(f"{self._path(name)} holds no {wanted.__name__}, as Planetoid's {name} is")
        return value

    def _test(self) -> NDArray[np.int64]:
        path = self._path("test.index")
        try:
            content = path.read_bytes()
            lines = (gzip.decompress(content) if path.suffix == ".gz" else content).split()
            test = np.array([int(line) for line in lines], dtype=np.int64)
        except (OSError, EOFError, ValueError) as error:
            raise Refusal(f"{path} is no list of nodes ({error})") from error
        if not len(test):
            raise Refusal(f"{path} is empty")
        return test

    def _random_edges(self, edges: int) -> Tensor:
        """So many pairs of different nodes, each in both directions."""
        draw = generator(self.seed, "rewired")
        one = torch.randint(self.n, (2 * edges,), generator=draw)
        other = (one + torch.randint(1, self.n, (2 * edges,), generator=draw)) % self.n
        pairs = torch.unique(torch.stack([torch.minimum(one, other), torch.maximum(one, other)]), dim=1)
        pairs = pairs[:, torch.randperm(pairs.shape[1], generator=draw)[:edges]]
        return torch.cat([pairs, pairs.flip(0)], 1)


def _assembled(parts: dict[str, Any], test: NDArray[np.int64]) -> tuple[csr_matrix, NDArray[Any], NDArray[np.int64]]:
    """(x (n, d), classes (n, c) as 0 and 1, edges (2, E)) of all nodes in the order of the graph.

    The files of the test nodes have a row for each line of test.index; nodes between their least and greatest number
    that it leaves out, as in CiteSeer, have no words and no class.
    """
    least, greatest = test.min(), test.max()
    known = parts["allx"].shape[0]
    if least != known or len(test) != parts["tx"].shape[0] or len(np.unique(test)) != len(test):
        raise ValueError(f"test.index does not number the rows of tx from {known}")
    if parts["ally"].shape[0] != known or len(parts["ty"]) != len(test) or len(parts["y"]) > known:
        raise ValueError("there are not as many classes as nodes")
    place = csr_matrix((np.ones(len(test)), (test - least, np.arange(len(test)))), (greatest - least + 1, len(test)))
    x = vstack([parts["allx"], place @ parts["tx"]]).tocsr().astype(np.float64)
    x.sort_indices()
    classes = np.concatenate([parts["ally"], place @ parts["ty"]])
    n = x.shape[0]
    ends = [(node, other) for node, others in parts["graph"].items() for other in others if node != other]
    edges = np.array(ends, dtype=np.int64).reshape(-1, 2)
    if len(edges) and (edges.min() < 0 or edges.max() >= n):
        raise ValueError(f"an edge ends at {edges.max()}, of {n} nodes")
    both = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    return x, classes, np.ascontiguousarray(both.T)
