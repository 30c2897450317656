"""Graph networks: what averaging over neighbours is worth, what no numbering changes, what is never told apart.

A node has K neighbours of its own class and D of the other one; s = ‖μ‖/σ is the signal of its features. Accuracies are
measured on graphs that were not trained on; their standard error is over graphs, for the nodes of one share edges.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated

import torch
from annotated_types import Ge, Le, MinLen
from torch import Tensor

from lab.claim import Claim, Quantity, Run, at_least, equal
from lab.data import graphs
from lab.data.csbm import CSBM
from lab.errors import Refusal
from lab.models.node_classification import NodeClassification
from lab.nets.gcn import GCN
from lab.nets.gin import GIN
from lab.nets.graphs import Graph
from lab.random import generator, normal
from lab.theory import csbm, propagation, weisfeiler_leman
from lab.types import NonNegativeInt, PositiveInt, Probability


class _OfNet(Claim):
    """A claim about one of the nets."""

    def __init__(self, net: str) -> None:
        self.net = net

    def check(self, data: CSBM, model: NodeClassification) -> None:
        if not isinstance(data, CSBM):
            raise Refusal("data._target_ must be lab.data.csbm.CSBM: the claim is about graphs of known law")
        if self.net not in model.nets:
            raise Refusal(f"net={self.net} is none of model.nets: {', '.join(model.nets)}")


class _Accuracy(_OfNet):
    """A claim about how many nodes of fresh graphs are classified right."""

    def __init__(self, net: str, graphs: Annotated[int, Ge(100)] = 4000) -> None:
        super().__init__(net)
        self.graphs = graphs

    def right(self, run: Run, data: CSBM | None = None) -> tuple[Tensor, Tensor]:
        """(which nodes are classified right, their degrees), of fresh graphs, of the run's law or another: (g, n)."""
        parts = []
        for part in range(math.ceil(self.graphs / 500)):
            size = min(500, self.graphs - 500 * part)
            x, adjacency, labels = (data or run.data).fresh(size, "held out", part)
            logits = run.model.logits(self.net, x.flatten(0, 1), Graph.of(adjacency))[0]
            parts.append((logits.argmax(-1).reshape(labels.shape) == labels, adjacency.sum(-1)))
        right, degree = (torch.cat(column) for column in zip(*parts, strict=True))
        return right.double(), degree

    def accuracy(self, run: Run) -> Quantity:
        each = self.right(run)[0].mean(1)
        return Quantity(each.mean(), each.std() / len(each) ** 0.5)


class FeatureAccuracy(_Accuracy):
    """Without edges, a network is right as often as the best classifier of features alone: Φ(‖μ‖/σ)

    The log-odds of the classes are 2μᵀx/σ², and yμᵀx/(‖μ‖σ) is normal with mean ‖μ‖/σ and variance 1: no function of x
    is right more often than its sign is.
    """

    reference = "Bishop, PRML, §1.5.1 and §4.2.1"
    symbol = "accuracy"
    relation = equal(
        "sampling error, 4.5 standard errors: a correct run is refuted 7 times in 10⁶; and optimisation error: a "
        "boundary that turns by θ costs φ(s)s θ²/2, at most 10⁻³ for θ = 0.09; Φ(‖μ‖/σ²) is 0.085 away",
        k=4.5,
        atol=1e-3,
    )

    def predict(self, data: CSBM) -> Quantity:
        return Quantity(csbm.bayes_accuracy(data.separation))

    def measure(self, run: Run) -> Quantity:
        return self.accuracy(run)


class MeanAccuracy(_Accuracy):
    """One mean over a node and its neighbours is right with probability E Φ(‖μ‖(1 + K − D)/(σ√(K + D + 1)))

    The mean has the signal (1 + K − D)/(1 + K + D) of a node and 1/(1 + K + D) of its variance; K ~ Bin(n/2 − 1, p) and
    D ~ Bin(n/2, q). By symmetry the best linear classifier of it is the sign of μᵀh.
    """

    reference = "Baranwal, Fountoulakis & Jagannath 2021, §3"
    symbol = "accuracy"
    relation = equal(
        "sampling error, 4.5 standard errors: a correct run is refuted 7 times in 10⁶; and optimisation error, as of a "
        "boundary that turns; K ~ Bin(n/2, p) is 0.012 away, no self-loop 0.062, the mean degrees in place of the law "
        "0.04",
        k=4.5,
        atol=1e-3,
    )

    def predict(self, data: CSBM) -> Quantity:
        return Quantity(csbm.mean_accuracy(data.nodes, data.p, data.q, data.separation))

    def measure(self, run: Run) -> Quantity:
        return self.accuracy(run)


class AccuracyByDegree(_Accuracy):
    """Nodes with m neighbours are classified right with probability E[Φ(‖μ‖(1 + K − D)/(σ√(1 + m))) | K + D = m]

    One neighbour is worse than none: it may cancel the node's own signal. Then the signal grows as m and the noise as
    √m, up to the degrees that a node has only if it has many neighbours of the other class.
    """

    reference = "Baranwal, Fountoulakis & Jagannath 2021, §3"
    symbol, x_symbol = "accuracy", "neighbours $m$"
    relation = equal(
        "sampling error over graphs, 5 standard errors at 13 degrees: a correct run is refuted once in 10⁵; and "
        "optimisation error, as of a boundary that turns; without self-loops it is 0.04 to 0.14 away",
        k=5,
        atol=1e-3,
    )

    def __init__(
        self,
        net: str,
        graphs: Annotated[int, Ge(100)] = 4000,
        degrees: Annotated[list[NonNegativeInt], MinLen(1)] = list(range(1, 14)),  # noqa: B006 - read only
    ) -> None:
        super().__init__(net, graphs)
        self.degrees = list(degrees)

    def predict(self, data: CSBM) -> Quantity:
        right, _ = csbm.mean_accuracy_by_degree(data.nodes, data.p, data.q, data.separation)
        return Quantity(right[self.degrees], x=self.degrees)

    def measure(self, run: Run) -> Quantity:
        right, degree = self.right(run)
        of_degree = degree.unsqueeze(-1) == torch.tensor(self.degrees)  # (g, n, m)
        nodes, hits = of_degree.sum(1).double(), (right.unsqueeze(-1) * of_degree).sum(1)  # (g, m)
        share = hits.sum(0) / nodes.sum(0)
        return Quantity(share, (hits - share * nodes).square().sum(0).sqrt() / nodes.sum(0))


class GraphHelps(_Accuracy):
    """Where classes are joined unequally enough, one mean over neighbours tells more than the features of a node can

    E Φ(s(1 + K − D)/√(K + D + 1)) > Φ(s): neighbours of a node's own class must outnumber the others by more than what
    their noise takes. Where p = q they are no help and all harm.
    """

    reference = "Baranwal, Fountoulakis & Jagannath 2021, Thm 1"
    symbol = "accuracy"
    relation = at_least(
        "sampling error, 4.5 standard errors: what theory says of the mean is 0.032 above the bound, 25 of them", k=4.5
    )

    def predict(self, data: CSBM) -> Quantity:
        return Quantity(csbm.bayes_accuracy(data.separation))

    def measure(self, run: Run) -> Quantity:
        return self.accuracy(run)


class GraphHurts(_Accuracy):
    """As more edges join different classes, the mean falls below features alone where theory says, and rises again

    The best boundary is orthogonal to μ however nodes are joined, so a net that has found it on graphs of one q is, on
    graphs of another, right with probability F = E Φ(s(1 + K − D)/√(K + D + 1)), D ~ Bin(n/2, q); or, read the other
    way round where neighbours are mostly of the other class, 1 − F. Measured is the better of the two.
    """

    reference = "Baranwal, Fountoulakis & Jagannath 2021, §3 and Thm 1"
    symbol, x_symbol = "accuracy", "$p - q$"
    relation = equal(
        "sampling error, 5 standard errors at 8 assortments: a correct run is refuted 5 times in 10⁶; and optimisation "
        "error, as of a boundary that turns. At each, theory is further from Φ(s) than is allowed",
        k=5,
        atol=1e-3,
    )

    def __init__(
        self,
        net: str,
        graphs: Annotated[int, Ge(100)] = 500,
        across: Annotated[list[Probability], MinLen(1)] = [0.0, 0.05, 0.15, 0.2, 0.25, 0.35, 0.45, 0.6],  # noqa: B006 - read only
    ) -> None:
        super().__init__(net, graphs)
        self.across = list(across)

    def predict(self, data: CSBM) -> Quantity:
        right = [csbm.mean_accuracy(data.nodes, data.p, q, data.separation) for q in self.across]
        return Quantity(right, x=[data.p - q for q in self.across])

    def measure(self, run: Run) -> Quantity:
        right, errors = [], []
        for q in self.across:
            each = self.right(run, run.data.across(q))[0].mean(1)
            right.append(max(float(each.mean()), 1 - float(each.mean())))
            errors.append(float(each.std()) / len(each) ** 0.5)
        return Quantity(right, errors, x=[run.data.p - q for q in self.across])


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
