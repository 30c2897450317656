"""Nets of the nodes of a graph, through PyTorch Geometric's layers, and the baseline that sees no edges.

All begin with the product of the features and one matrix, which knows zeros when the features are sparse.
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import abstractmethod
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from lab.nets.geometric import GATConv, GCNConv, GINConv, SimpleConv
from lab.nets.graphs import Features, Graph, Noise, dropped
from lab.random import generator, uniform
from lab.types import NonNegative, NonNegativeInt, PositiveInt, Rate

Activation = Literal["relu", "elu", "tanh", "silu"]
ACTIVATIONS = {"relu": nn.ReLU, "elu": nn.ELU, "tanh": nn.Tanh, "silu": nn.SiLU}


class Lift(nn.Module):
    """x ↦ xWᵀ, the first matrix of a net; with `places`, plus a vector for each node's place in the graph, in turn."""

    def __init__(self, d: int, outputs: int, places: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, d, device="meta"))
        self.place = None if places is None else nn.Parameter(torch.empty(places, outputs, device="meta"))

    def forward(self, x: Features) -> Tensor:
        """(N, d) → (N, outputs)"""
        out: Tensor = x @ self.weight.mT
        if self.place is None:
            return out
        return out + self.place[torch.arange(len(out), device=out.device) % len(self.place)]


class GraphNet(nn.Module):
    """A net that gives each node of a graph a logit for every class.

    A subclass makes its layers and then calls `start`. Weights are uniform within ±√(6/(inputs + outputs)), biases 0
    (Glorot & Bengio 2010, eq. 16), as functions of the seed alone.

    Args:
        d: features of a node.
        classes: logits.
        dropout: the share of features and of hidden values that is left out in training.
        decay: λ of the penalty ½λ‖W‖² on the weights of `decaying`, the first layer's or all, by the optimiser.
        places: null, or the number of vectors that are learned for places in the graph and make the net depend on how
            its nodes are numbered.
    """

    def __init__(
        self,
        d: PositiveInt,
        classes: PositiveInt = 2,
        dropout: Rate = 0.0,
        decay: NonNegative = 0.0,
        places: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.d, self.classes, self.dropout, self.decay = d, classes, dropout, decay
        self.places, self.seed = places, seed

    def start(self, *stream: int | str) -> None:
        """Draw the weights, a function of (seed, class, stream), in float64 on the CPU."""
        draw = generator(self.seed, type(self).__name__, *stream)
        for module in self.modules():
            for name, p in module.named_parameters(recurse=False):
                bound = math.sqrt(6 / sum(p.shape[-2:])) if p.ndim > 1 else 0.0
                fresh = bound * (2 * uniform(draw, *p.shape) - 1)
                setattr(module, name, nn.Parameter(fresh.to(torch.get_default_dtype())))

    def again(self, *stream: int | str) -> GraphNet:
        """The same net with weights drawn anew; without a stream those that it began with."""
        other = copy.deepcopy(self)
        other.start(*stream)
        return other

    @abstractmethod
    def decaying(self) -> nn.Module:
        """The part whose weights decay."""

    @abstractmethod
    def hidden(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        """What the last layer sees. (N, d) → (N, h)"""

    @abstractmethod
    def forward(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        """(N, d) → logits (N, classes); without noise nothing is left out."""


class MLP(GraphNet):
    """One hidden layer, no edges."""

    def __init__(
        self,
        d: PositiveInt,
        classes: PositiveInt = 2,
        hidden: PositiveInt = 16,
        activation: Activation = "relu",
        dropout: Rate = 0.0,
        decay: NonNegative = 0.0,
        places: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(d, classes, dropout, decay, places, seed)
        self.lift = Lift(d, hidden, places)
        self.bias = nn.Parameter(torch.empty(hidden, device="meta"))
        self.activation = ACTIVATIONS[activation]()
        self.output = nn.Linear(hidden, classes, device="meta")
        self.start()

    def decaying(self) -> nn.Module:
        return self.lift

    def hidden(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        return self.activation(self.lift(dropped(x, noise, self.dropout)) + self.bias)

    def forward(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        return self.output(dropped(self.hidden(x, graph, noise), noise, self.dropout))


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
        return self.convolutions[-1].propagate(edges, x=x, edge_weight=weight)

    def _of(self, convolution: nn.Module, h: Features, graph: Graph) -> Tensor:
        dtype = self.convolutions[0].lin.weight.dtype
        return convolution(h, *graph.normalised(self.self_loops, dtype))


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
        return self.lift

    def layers(self, x: Features, graph: Graph, noise: Noise | None = None) -> list[Tensor]:
        """The values after each sum. (N, d) → (N, h) each"""
        h, out = self.lift(dropped(x, noise, self.dropout)), []
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


class _Attention(GATConv):
    """PyTorch Geometric's layer, given what its matrix makes of the features, and its dropout drawn by us."""

    kept: Tensor | None = None

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        return super().message(x_j, alpha if self.kept is None else alpha * self.kept)


class GAT(GraphNet):
    """Two layers of attention to neighbours, α_ij ∝ exp LeakyReLU(aᵀ[Wh_i ‖ Wh_j]) (Veličković et al. 2018, eq. 3).

    Args:
        hidden: values of a head.
        heads: of the first layer, side by side; the second has one.
        attention_dropout: the share of the α_ij that is left out in training.
    """

    def __init__(
        self,
        d: PositiveInt,
        classes: PositiveInt = 2,
        hidden: PositiveInt = 8,
        heads: PositiveInt = 8,
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        decay: NonNegative = 0.0,
        places: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(d, classes, dropout, decay, places, seed)
        self.attention_dropout = attention_dropout
        width = heads * hidden
        self.lift, self.second = Lift(d, width, places), nn.Linear(width, classes, bias=False, device="meta")
        self.convolutions = nn.ModuleList(
            [
                _Attention(d, hidden, heads, add_self_loops=False),
                _Attention(width, classes, 1, add_self_loops=False),
            ]
        )
        for convolution in self.convolutions:
            convolution.lin = nn.Identity()
        self.start()

    def decaying(self) -> nn.Module:
        return self

    def hidden(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        return nn.functional.elu(
            self._of(self.convolutions[0], self.lift(dropped(x, noise, self.dropout)), graph, noise)
        )

    def forward(self, x: Features, graph: Graph, noise: Noise | None = None) -> Tensor:
        h = dropped(self.hidden(x, graph, noise), noise, self.dropout)
        return self._of(self.convolutions[1], self.second(h), graph, noise)

    def _of(self, convolution: nn.Module, lifted: Tensor, graph: Graph, noise: Noise | None) -> Tensor:
        edges = graph.looped
        kept = lifted.new_empty(()).expand(edges.shape[1], convolution.heads)
        dropping = noise is not None and self.attention_dropout > 0
        convolution.kept = noise.kept(kept, self.attention_dropout) if dropping and noise else None
        return convolution(lifted, edges)
