"""What nets of the nodes of a graph share, and the baseline that sees no edges.

All begin with the product of the features and one matrix, which knows zeros when the features are sparse.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

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
