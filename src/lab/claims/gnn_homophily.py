"""When neighbours hurt: what a mean over neighbours is worth on graphs of other assortment than it was trained on."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, MinLen

from lab.claim import Quantity, Run, equal
from lab.claims.gnn import Accuracy
from lab.data.csbm import CSBM
from lab.theory import csbm
from lab.types import Probability


class GraphHurts(Accuracy):
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
            given = run.data
            data = CSBM(given.nodes, given.d, given.distance, given.sigma, given.p, q, seed=given.seed)
            each = self.right(run, data)[0].mean(1)
            right.append(max(float(each.mean()), 1 - float(each.mean())))
            errors.append(float(each.std()) / len(each) ** 0.5)
        return Quantity(right, errors, x=[run.data.p - q for q in self.across])
