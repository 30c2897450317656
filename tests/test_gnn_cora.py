"""Claims about citation networks: they hold where words and citations tell the class, and are refuted where not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lab.claim import Claim, Run, judge
from lab.claims.gnn_cora import CitationsHelp, PublishedAccuracy
from lab.data.csbm import CSBM
from lab.data.planetoid import Planetoid
from lab.errors import Refusal
from lab.models.node_classification import NodeClassification
from lab.nets.gcn import GCN
from lab.nets.graph_net import MLP

HELP = CitationsHelp("mlp", ["gcn"])


def published(accuracy: float, net: str = "gcn") -> PublishedAccuracy:
    return PublishedAccuracy(net, accuracy, within=0.02, because="made here")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, planetoid: Any) -> dict[bool, Run]:
    """Ten copies of an MLP and a GCN after 60 steps on a network that tells, and on one with its edges at random."""
    torch.set_num_threads(1)
    root: Path = tmp_path_factory.mktemp("data")
    planetoid(root, "cora", tested=200, telling=True)
    runs = {}
    for rewired in (False, True):
        data = Planetoid("cora", str(root), rewired=rewired)
        data.setup()
        data.place(torch.device("cpu"))
        given: Any = {"mlp": MLP(30, 3), "gcn": GCN(30, 3)}
        model: Any = NodeClassification(given, copies=10, optimizer=partial(torch.optim.Adam, lr=0.02))
        model.trainer = SimpleNamespace(datamodule=data, max_steps=60)
        model.setup("fit")
        optimizer = model.configure_optimizers()
        for batch in model.batches(data.block(0, 60)):
            optimizer.zero_grad()
            model.objective(batch)[0].backward()
            optimizer.step()
        runs[rewired] = Run(model, data)
    return runs


def holds(claim: Claim, run: Run) -> bool:
    claim.check(run.data, run.model)
    return judge("claim", claim, run).judged.holds


def test_citations_help_where_they_are_within_classes(trained: dict[bool, Run]) -> None:
    assert holds(HELP, trained[False])
    assert not holds(HELP, trained[True])


def test_published_accuracies_are_held_on_both_sides(trained: dict[bool, Run]) -> None:
    right = trained[False].model.accuracies("gcn", trained[False].data)
    mean, allowed = float(right.mean()), 0.02 + 4.5 * float(right.std()) / 10**0.5
    assert holds(published(mean + 0.9 * allowed), trained[False])
    assert holds(published(mean - 0.9 * allowed), trained[False])
    assert not holds(published(mean - 1.1 * allowed), trained[False])
    assert mean + 1.1 * allowed < 1
    assert not holds(published(mean + 1.1 * allowed), trained[False])
    assert not holds(published(mean), trained[True])
    assert "0.02 for liberties" in published(mean).relation.because
    assert "made here" in published(mean).relation.because


def test_what_no_such_claim_is_about_is_refused(trained: dict[bool, Run]) -> None:
    data, model = trained[False].data, trained[False].model
    with pytest.raises(Refusal, match="the claim is about its split"):
        HELP.check(CSBM(), model)  # type: ignore[arg-type]
    with pytest.raises(Refusal, match=r"net=gat is none of model.nets: mlp, gcn"):
        published(0.5, "gat").check(data, model)
    one: Any = SimpleNamespace(nets=model.nets, copies=1)
    with pytest.raises(Refusal, match=r"model.copies=1 must be at least 2"):
        HELP.check(data, one)
