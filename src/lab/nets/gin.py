"""The graph isomorphism network, through PyTorch Geometric's layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lab.nets.geometric import GINConv
from lab.nets.graph_net import ACTIVATIONS, Activation, GraphNet, Lift
from lab.nets.graphs import Features, Graph, Noise, dropped
from lab.types import NonNegative, NonNegativeInt, PositiveInt, Rate


class GIN(GraphNet):
    """h' = MLP((1 + ε)h + Σ h over neighbours), which tells apart whatever 1-WL does (Xu et al. 2019, eq. 4.1).

    The features are lifted by a matrix before the first sum, which is the same as after it. With an activation that is
    analytic and no polynomial, such as tanh, nearly all weights give an injective sum (Amir et al. 2023).

    Args:
        hidden: values of a node between layers.
        layers: how many sums.
        aggregation: how neighbours are added; 1-WL needs the sum.
    """

    def __init__(
        self,
        d: PositiveInt,
        classes: PositiveInt = 2,
        hidden: PositiveInt = 16,
        layers: PositiveInt = 2,
        activation: Activation = "tanh",
        aggregation: Literal["add", "mean", "max"] = "add",
        dropout: Rate = 0.0,
        decay: NonNegative = 0.0,
        places: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(d, classes, dropout, decay, places, seed)
        self.lift = Lift(d, hidden, places)
        act = ACTIVATIONS[activation]
        self.convolutions = nn.ModuleList(
            GINConv(
                nn.Sequential(
                    nn.Linear(hidden, hidden, device="meta"), act(), nn.Linear(hidden, hidden, device="meta"), act()
                ),
                train_eps=True,
                aggr=aggregation,
            )
            for _ in range(layers)
        )
        self.output = nn.Linear(hidden, classes, device="meta")
        self.start()

    def decaying(self) -> nn.Module:
        return self

    def layers(self, x: Features, graph: Graph, noise: Noise | None = None) -> list[Tensor]:
        """The values after each sum. (N, d) → (N, h) each"""
        h, out = self.lift(dropped(x, noise, self.dropout)), list[Tensor]()
        for convolution in self.convolutions:
            h = convolution(dropped(h, noise, self.dropout) if out else h, graph.edges)
            out.append(h)
        return out

    def hidden(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        return self.layers(x, graph, noise)[-1]

    def forward(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        return self.output(dropped(self.hidden(x, graph, noise), noise, self.dropout))

    def embedded(self, adjacency: Tensor) -> Tensor:
        """Graphs whose nodes all have the same features, as sums over nodes of the values after each layer.

        (Xu et al. 2019, eq. 4.2.) (g, n, n) → (g, layers·hidden)
        """
        x = self.lift.weight.new_ones(adjacency.shape[0] * adjacency.shape[1], self.d)
        return torch.cat([h.unflatten(0, adjacency.shape[:2]).sum(1) for h in self.layers(x, Graph.of(adjacency))], -1)
