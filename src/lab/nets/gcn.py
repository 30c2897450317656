"""Sums over neighbours with fixed weights: a mean, and graph convolutions, through PyTorch Geometric's layers."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from lab.nets.geometric import GCNConv, SimpleConv
from lab.nets.graph_net import ACTIVATIONS, Activation, GraphNet, Lift
from lab.nets.graphs import Features, Graph, Noise, dropped
from lab.types import NonNegative, NonNegativeInt, PositiveInt, Rate


class MeanAggregation(GraphNet):
    """A linear classifier of the mean over a node and its neighbours.

    Args:
        self_loops: count the node itself.
    """

    def __init__(
        self,
        d: PositiveInt,
        classes: PositiveInt = 2,
        self_loops: bool = True,
        places: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(d, classes, places=places, seed=seed)
        self.self_loops = self_loops
        self.convolution = SimpleConv("mean")
        self.lift = Lift(d, classes, places)
        self.bias = nn.Parameter(torch.empty(classes, device="meta"))
        self.start()

    def decaying(self) -> nn.Module:
        return self.lift

    def hidden(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        return self.convolution(x, graph.looped if self.self_loops else graph.edges)

    def forward(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        edges = graph.looped if self.self_loops else graph.edges
        return self.convolution(self.lift(x), edges) + self.bias  # the mean of what is lifted: fewer numbers travel


class GCN(GraphNet):
    """H' = act(ÂHW + b), Â the normalised adjacency, two layers or more (Kipf & Welling 2017, eq. 2).

    Args:
        hidden: values of a node between layers.
        layers: how many.
        self_loops: whether Â has an edge from every node to itself.
    """

    def __init__(
        self,
        d: PositiveInt,
        classes: PositiveInt = 2,
        hidden: PositiveInt = 16,
        layers: Annotated[int, Ge(2)] = 2,
        activation: Activation = "relu",
        self_loops: bool = True,
        dropout: Rate = 0.0,
        decay: NonNegative = 0.0,
        places: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(d, classes, dropout, decay, places, seed)
        self.self_loops = self_loops
        widths = [d, *[hidden] * (layers - 1), classes]
        self.convolutions = nn.ModuleList(GCNConv(a, b, normalize=False) for a, b in itertools.pairwise(widths))
        self.convolutions[0].lin = Lift(d, hidden, places)
        self.activation = ACTIVATIONS[activation]()
        self.start()

    def decaying(self) -> nn.Module:
        return self.convolutions[0]

    def hidden(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        h: Features = x
        for convolution in list(self.convolutions)[:-1]:
            h = self.activation(self._of(convolution, dropped(h, noise, self.dropout), graph))
        assert isinstance(h, Tensor)
        return h

    def forward(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        return self._of(self.convolutions[-1], dropped(self.hidden(x, graph, noise), noise, self.dropout), graph)

    def propagated(self, x: Tensor, graph: Graph) -> Tensor:
        """Âx, as the layers have it. (N, d) → (N, d)"""
        edges, weight = graph.normalised(self.self_loops, x.dtype)
        last: Any = self.convolutions[-1]
        return last.propagate(edges, x=x, edge_weight=weight)

    def _of(self, convolution: nn.Module, h: Features, graph: Graph) -> Tensor:
        return convolution(h, *graph.normalised(self.self_loops, next(self.parameters()).dtype))
