"""Graph networks: what averaging over neighbours is worth.

A node has K neighbours of its own class and D of the other one; s = ‖μ‖/σ is the signal of its features. Accuracies are
measured on graphs that were not trained on; their standard error is over graphs, for the nodes of one share edges.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from lab.claim import Claim, Quantity, Run, at_least, equal
from lab.data.csbm import CSBM
from lab.errors import Refusal
from lab.models.node_classification import NodeClassification
from lab.nets.graphs import Graph
from lab.theory import csbm
from lab.types import NonNegativeInt, Probability


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
