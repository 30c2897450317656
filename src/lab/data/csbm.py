"""Graphs of the contextual stochastic block model, drawn anew at every step."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from lab.data.blocks import Block, InMemoryData, Order
from lab.errors import Refusal
from lab.random import generator, normal, uniform
from lab.types import NonNegativeInt, Positive, PositiveInt, Probability


class CSBM(InMemoryData):
    """Graphs of n nodes, half of each of two classes, with features x ~ N(yμ, σ²I), y = ±1.

    Two nodes of one class are joined with probability p, others with q. μ is `distance`/√d in every coordinate, so no
    coordinate is special, and the classes of a graph's nodes are in random order. Served as batches (x (b, n, d),
    adjacency (b, n, n), labels (b, n), c) of graphs that are all new; c is the scalar for which the mean over ranks of
    c·mean_graphs(·) is the mean over the global batch.

    Args:
        nodes: n, even.
        d: features of a node. distance: ‖μ‖. sigma: σ.
        p, q: probabilities of an edge, within a class and across.
        batch_size: graphs of the global batch.

    Attributes:
        classes: 2. separation: ‖μ‖/σ. labels are 0 for y = −1 and 1 for y = 1.
    """

    classes = 2

    def __init__(
        self,
        nodes: Annotated[int, Ge(4)] = 40,
        d: PositiveInt = 8,
        distance: Positive = 1.2,
        sigma: Positive = 1.5,
        p: Probability = 0.25,
        q: Probability = 0.1,
        batch_size: PositiveInt = 64,
        seed: NonNegativeInt = 0,
        block_size: PositiveInt = 50,
    ) -> None:
        super().__init__(seed, block_size)
        if nodes % 2:
            raise Refusal(f"nodes={nodes} must be even: half of the nodes are of each class")
        self.nodes, self.d, self.distance, self.sigma = nodes, d, distance, sigma
        self.p, self.q, self.batch_size = p, q, batch_size
        self.separation = distance / sigma

    def load(self) -> None:
        self.order = Order(self.batch_size, None, self.seed)
        self._device = torch.device("cpu")

    def check(self) -> None:
        if self.world_size > self.batch_size:
            raise Refusal(
                f"trainer.devices={self.world_size} is more than data.batch_size={self.batch_size}: one has no graph"
            )

    def place(self, device: torch.device) -> None:
        self._device = device

    def across(self, q: float) -> CSBM:
        """The same law, but for the probability of edges between classes."""
        return CSBM(self.nodes, self.d, self.distance, self.sigma, self.p, q, seed=self.seed)

    def fresh(self, graphs: int, *stream: int | str) -> tuple[Tensor, Tensor, Tensor]:
        """New graphs, a function of (seed, stream): (x (g, n, d) in float64, adjacency (g, n, n), labels (g, n)).

        The draws of all of them are made, whichever are looked at.
        """
        n, draw = self.nodes, generator(self.seed, "CSBM", *stream)
        labels = (uniform(draw, graphs, n).argsort(-1) < n // 2).long()
        x = (2 * labels - 1).unsqueeze(-1) * (self.distance / self.d**0.5) + self.sigma * normal(
            draw, graphs, n, self.d
        )
        a, b = torch.triu_indices(n, n, 1)
        probability = torch.tensor([self.q, self.p], dtype=torch.float64)[(labels[:, a] == labels[:, b]).long()]
        adjacency = torch.zeros(graphs, n, n, dtype=torch.bool)
        adjacency[:, a, b] = uniform(draw, graphs, len(a)) < probability
        return x, adjacency | adjacency.mT, labels

    def connected(self, graphs: int, *stream: int | str) -> Tensor:
        """Adjacency matrices of graphs that are connected: (≤ g, n, n), of at most twenty times as many draws."""
        found = []
        for more in range(20):
            adjacency = self.fresh(graphs, *stream, more)[1]
            reached = torch.eye(self.nodes) + adjacency
            for _ in range(self.nodes.bit_length()):  # twice as many steps each time
                reached = (reached @ reached).clamp(max=1)
            found += list(adjacency[reached.flatten(1).all(1)])
            if len(found) >= graphs:
                break
        return torch.stack(found[:graphs]) if found else torch.zeros(0, self.nodes, self.nodes, dtype=torch.bool)

    def example(self) -> tuple[Tensor, Tensor]:
        """One fresh graph: (x (n, d) in float64, edges (2, E))."""
        x, adjacency, _ = self.fresh(1, "example")
        return x[0], adjacency[0].nonzero().mT

    def block(self, start: int, stop: int) -> Block:
        share = self.order.share(self.rank, self.world_size)
        weight = (share.stop - share.start) * self.world_size / self.batch_size
        return Block(start, stop - start, (self._batch(step, share, weight) for step in range(start, stop)))

    def _batch(self, step: int, share: slice, weight: float) -> tuple[Tensor, Tensor, Tensor, float]:
        x, adjacency, labels = (part[share].to(self._device) for part in self.fresh(self.batch_size, step))
        return x.to(self.dtype), adjacency, labels, weight
