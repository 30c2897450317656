"""The graph attention network, through PyTorch Geometric's layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lab.nets.geometric import GATConv
from lab.nets.graph_net import GraphNet, Lift
from lab.nets.graphs import Features, Graph, Noise, dropped
from lab.types import NonNegative, NonNegativeInt, PositiveInt, Rate


class _Attention(GATConv):  # type: ignore[misc]
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

    def _of(self, convolution: Any, lifted: Tensor, graph: Graph, noise: Noise | None) -> Tensor:
        edges = graph.looped
        kept = lifted.new_empty(()).expand(edges.shape[1], convolution.heads)
        dropping = noise is not None and self.attention_dropout > 0
        convolution.kept = noise.kept(kept, self.attention_dropout) if dropping and noise else None
        return convolution(lifted, edges)
