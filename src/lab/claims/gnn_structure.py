"""Graph networks: what no numbering of the nodes changes, what is never told apart, what many layers leave."""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from annotated_types import Ge, Le, MinLen

from lab.claim import Claim, Quantity, Run, equal
from lab.claims.gnn import _OfNet
from lab.data import graphs
from lab.data.csbm import CSBM
from lab.errors import Refusal
from lab.models.node_classification import NodeClassification
from lab.nets.gcn import GCN
from lab.nets.gin import GIN
from lab.nets.graphs import Graph
from lab.random import generator, normal
from lab.theory import propagation, weisfeiler_leman
from lab.types import PositiveInt


class Equivariance(Claim):
    """Numbering the nodes otherwise changes nothing but the numbers: f(PAPᵀ, PX) = P f(A, X)

    A sum or mean over neighbours does not know their order, and every node is treated by the same weights. Measured is
    max |f(PAPᵀ, PX) − P f(A, X)|/max |f(A, X)| of each net in float64, P at random.
    """

    reference = "Bronstein, Bruna, Cohen & Veličković 2021, §5.3; Maron et al. 2019"
    symbol = "difference"
    relation = equal("rounding: sums of up to a few hundred numbers in another order, 10⁻¹⁶ each", atol=1e-11)

    def __init__(self, nets: Annotated[list[str], MinLen(1)]) -> None:
        self.nets = list(nets)

    def check(self, data: CSBM, model: NodeClassification) -> None:
        for net in self.nets:
            if net not in model.nets:
                raise Refusal(f"nets={self.nets} names {net}, which is none of model.nets: {', '.join(model.nets)}")

    def predict(self, data: CSBM) -> Quantity:
        return Quantity([0.0] * len(self.nets))

    def measure(self, run: Run) -> Quantity:
        x, edges = run.data.example()
        n = x.shape[0]
        order = torch.randperm(n, generator=generator(run.data.seed, "Equivariance"))
        moved = order.argsort()[edges]
        moved = moved[:, (moved[0] * n + moved[1]).argsort()]  # as PAPᵀ lists them, so sums are taken in another order
        apart = []
        for net in self.nets:
            before = run.model.logits(net, x, Graph(edges, n))
            after = run.model.logits(net, x[order.numpy()], Graph(moved, n))
            apart.append((after - before[:, order]).abs().max() / before.abs().max())
        return Quantity(torch.stack(apart))


SAME = 1e-9
"""Embeddings that differ by less, relative to their largest number, are the same: between rounding, 10⁻¹⁵, and the
least that different ones were seen to differ by, 10⁻⁵."""


class ToldApart(_OfNet):
    """Two graphs have the same embedding if 1-WL cannot tell them apart, and different ones if it can

    Sums over neighbours see of a node what colour refinement sees, and no more: by induction, nodes of one colour have
    equal values after each layer. An injective sum also sees no less. Of seven pairs with equally many nodes and edges,
    named in `lab.data.graphs.pairs`, 1-WL tells three apart. 1 is different, 0 is equal.
    """

    reference = "Xu, Hu, Leskovec & Jegelka 2019, Lemma 2 and Thm 3"
    symbol = "told apart"
    relation = equal("none: equal embeddings differ by rounding, different ones by a million times as much")

    def check(self, data: CSBM, model: NodeClassification) -> None:
        super().check(data, model)
        if not isinstance(model.nets[self.net], GIN):
            raise Refusal(f"net={self.net} is no GIN: the claim is about embeddings of whole graphs")

    def predict(self, data: CSBM) -> Quantity:
        return Quantity([float(weisfeiler_leman.told_apart(*pair)) for pair in graphs.pairs().values()])

    def measure(self, run: Run) -> Quantity:
        net = copy.deepcopy(run.model.trained[self.net][0]).double()
        apart = []
        for pair in graphs.pairs().values():
            one, other = net.embedded(torch.stack(pair)).detach()
            apart.append(float((one - other).abs().max() > SAME * one.abs().max()))
        return Quantity(apart)


class GraphsToldApart(ToldApart):
    """Of all graphs with n nodes the network tells apart as many as 1-WL does

    Since it cannot tell more, equal numbers are equal divisions. Up to five nodes that is all graphs; of the 156 with
    six nodes four pairs are lost, the hexagon and two triangles among them.
    """

    symbol, x_symbol, log = "graphs told apart", "nodes $n$", "y"
    relation = equal("none: these are numbers of graphs")

    def __init__(self, net: str, most: Annotated[int, Ge(1), Le(6)] = 6) -> None:
        super().__init__(net)
        self.most = most

    def predict(self, data: CSBM) -> Quantity:
        nodes = range(1, self.most + 1)
        return Quantity([weisfeiler_leman.classes(list(graphs.all_graphs(n))) for n in nodes], x=list(nodes))

    def measure(self, run: Run) -> Quantity:
        net, found = copy.deepcopy(run.model.trained[self.net][0]).double(), []
        for n in range(1, self.most + 1):
            embedded = net.embedded(graphs.all_graphs(n)).detach()
            same = torch.cdist(embedded, embedded, p=torch.inf) < SAME * embedded.abs().amax(1)
            found.append(int((~same.tril(-1).any(1)).sum()))  # those that no earlier one equals
        return Quantity(found)


class Oversmoothing(_OfNet):
    """The Dirichlet energy of repeated propagation falls as |λ₂|^{2t}, λ₂ the second eigenvalue of Â in modulus

    E(X) = ½ Σ over edges ‖x_i/√(1 + d_i) − x_j/√(1 + d_j)‖² = tr Xᵀ(I − Â)X has E(Â^t X) = Σᵢ (1 − λᵢ)λᵢ^{2t}‖cᵢ‖². The
    slope of ln E between T and 2T steps is 2 ln|λ₂| + (1/T) ln((1 + r(2T))/(1 + r(T))), r the other terms' share of the
    last one's. What is constant, √(1 + d), has no energy but is all that is left, and its rounding would be the end of
    the fall at 10⁻³²: it is taken out after each step.

    Args:
        graphs: connected ones of the data's law. steps: T.
    """

    reference = "Oono & Suzuki 2020, Thm 1; Cai & Wang 2020, §3"
    symbol, x_symbol = r"slope of $\ln E$", r"$|\lambda_2|$"
    relation = equal(
        "what other eigenvalues leave after T steps: at most ln(1 + r(0))/T, and r(0) < e¹⁰ but once in 10⁸; without "
        "self-loops it is 0.1 and more away",
        atol=0.01,
    )

    def __init__(self, net: str, graphs: PositiveInt = 20, steps: Annotated[int, Ge(1000)] = 1000) -> None:
        super().__init__(net)
        self.graphs, self.steps = graphs, steps

    def check(self, data: CSBM, model: NodeClassification) -> None:
        super().check(data, model)
        if not isinstance(model.nets[self.net], GCN):
            raise Refusal(f"net={self.net} is no GCN: the claim is about its propagation")
        if not len(data.connected(self.graphs, "Oversmoothing")):
            raise Refusal(f"data.p={data.p} and data.q={data.q} leave no graph connected: energy would not fall to 0")

    def predict(self, data: CSBM) -> Quantity:
        adjacency = data.connected(self.graphs, "Oversmoothing")
        return Quantity(propagation.energy_decay(adjacency), x=propagation.second_eigenvalue(adjacency))

    @torch.no_grad()
    def measure(self, run: Run) -> Quantity:
        net, data = run.model.trained[self.net][0], run.data
        adjacency = data.connected(self.graphs, "Oversmoothing")
        graph, scale = Graph.of(adjacency), (1 + adjacency.sum(-1)).double().rsqrt().unsqueeze(-1)  # (g, n, 1)
        constant = scale.reciprocal() / scale.reciprocal().norm(dim=1, keepdim=True)
        x = normal(generator(data.seed, "Oversmoothing"), *adjacency.shape[:2], data.d)
        shrunk, energies = torch.zeros(len(adjacency), dtype=torch.float64), []
        for step in range(1, 2 * self.steps + 1):
            x = net.propagated(x.flatten(0, 1), graph).unflatten(0, adjacency.shape[:2])
            x = x - constant * (constant * x).sum(1, keepdim=True)
            size = x.flatten(1).norm(dim=1)
            x, shrunk = x / size.reshape(-1, 1, 1), shrunk + size.log()
            if step in (self.steps, 2 * self.steps):
                apart = torch.cdist(scale * x, scale * x).square()
                energies.append((0.5 * (adjacency * apart).sum((1, 2))).log() + 2 * shrunk)
        return Quantity((energies[1] - energies[0]) / self.steps)
