"""Graph networks on citation networks: the accuracies that were published, and what citations add to words.

The split and its 1000 test nodes are everyone's, so that these are few is no error; starts and dropout are, over the
copies of a net, and so are the liberties that an implementation takes.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import MinLen

from lab.claim import Claim, Quantity, Relation, Run, at_least, equal
from lab.data.planetoid import Planetoid
from lab.errors import Refusal
from lab.models.node_classification import NodeClassification
from lab.types import Fraction, NonEmptyStr


class _OverCopies(Claim):
    """A claim about means over the copies of nets."""

    def __init__(self, nets: list[str]) -> None:
        self.nets = nets

    def check(self, data: Planetoid, model: NodeClassification) -> None:
        if not isinstance(data, Planetoid):
            raise Refusal("data._target_ must be lab.data.planetoid.Planetoid: the claim is about its split")
        for net in self.nets:
            if net not in model.nets:
                raise Refusal(f"net={net} is none of model.nets: {', '.join(model.nets)}")
        if model.copies < 2:
            raise Refusal(f"model.copies={model.copies} must be at least 2: a standard error needs two")


class PublishedAccuracy(_OverCopies):
    """The network classifies as many test nodes right as its authors report

    No theory says how many. What a training run can be held against is that others' runs of the same network came to.

    Args:
        net: which one.
        accuracy: what its authors report, the mean of 100 starts.
        within: an allowance for liberties that implementations take, such as early stopping and penalties.
        because: what is known of how far others' means are apart on these data.
    """

    reference = "Kipf & Welling 2017, Table 2; Veličković et al. 2018, Table 2; Fey & Lenssen 2019, Table 1"
    symbol = "accuracy"
    relation: Relation = equal("`within`, and 4.5 standard errors over starts", k=4.5)

    def __init__(self, net: str, accuracy: Fraction, within: Fraction, because: NonEmptyStr) -> None:
        super().__init__([net])
        self.accuracy = accuracy
        self.relation = equal(
            f"{within:g} for liberties that implementations take, an allowance and no theorem: {because}; "
            "and 4.5 standard errors over starts",
            k=4.5,
            atol=within,
        )

    def predict(self, data: Planetoid) -> Quantity:
        return Quantity(self.accuracy)

    def measure(self, run: Run) -> Quantity:
        right = run.model.accuracies(self.nets[0], run.data)
        return Quantity(right.mean(), right.std() / len(right) ** 0.5)


class CitationsHelp(_OverCopies):
    """Each network that sees citations classifies more test nodes right than one that sees words alone

    Papers cite papers of their class: of edges between random nodes a mean over neighbours has noise only. Measured is
    the difference of accuracies.

    Args:
        net: that sees words alone. nets: that see citations.
    """

    reference = "Baranwal, Fountoulakis & Jagannath 2021, Thm 1; Sen et al. 2008"
    symbol = "difference of accuracies"
    relation = at_least(
        "sampling error over starts: 6 standard errors of ten, beyond which Student's t of 9 degrees is once in 10⁴",
        k=6,
    )

    def __init__(self, net: str, nets: Annotated[list[str], MinLen(1)]) -> None:
        super().__init__([net, *nets])

    def predict(self, data: Planetoid) -> Quantity:
        return Quantity([0.0] * (len(self.nets) - 1))

    def measure(self, run: Run) -> Quantity:
        alone, *others = (run.model.accuracies(net, run.data) for net in self.nets)
        gains = torch.stack([other.mean() - alone.mean() for other in others])
        errors = torch.stack([((other.var() + alone.var()) / len(alone)).sqrt() for other in others])
        return Quantity(gains, errors)
