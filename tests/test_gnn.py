"""Graph nets: theory against enumeration, nets against their formulas, claims that tell right from wrong."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional

from lab.claim import Claim, Evidence, Run, judge
from lab.claims import gnn as claims
from lab.claims import gnn_structure as structure
from lab.data import graphs
from lab.data.csbm import CSBM
from lab.data.planetoid import Planetoid
from lab.errors import Refusal
from lab.models.node_classification import NodeClassification, features
from lab.nets.gat import GAT
from lab.nets.gcn import GCN, MeanAggregation
from lab.nets.geometric import GATConv, GCNConv
from lab.nets.gin import GIN
from lab.nets.graph_net import MLP, GraphNet
from lab.nets.graphs import Graph, Noise, Sparse
from lab.theory import csbm, propagation, weisfeiler_leman

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMAS = 5.0
ADAM = partial(torch.optim.Adam, lr=0.01)

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def placed(data: Any) -> Any:
    data.setup()
    data.place(torch.device("cpu"))
    return data


@pytest.fixture
def data() -> CSBM:
    return placed(CSBM(seed=3))


# --------------------------------------------------------------------------------------------------------------- theory


def enumerated(n: int, p: float, q: float, s: float) -> tuple[dict[tuple[int, int], float], dict[int, list[float]]]:
    """(P(K, D), degree → [P, E right]) of node 0, over every graph there is; the first half of the nodes is its class.

    The mean over a node and its neighbours is normal, with the sums of their signals and variances.
    """
    pairs = list(itertools.combinations(range(n), 2))
    law: dict[tuple[int, int], float] = {}
    by_degree: dict[int, list[float]] = {}
    y = [1 if v < n // 2 else -1 for v in range(n)]
    for present in itertools.product((False, True), repeat=len(pairs)):
        weight = 1.0
        for (a, b), there in zip(pairs, present, strict=True):
            chance = p if y[a] == y[b] else q
            weight *= chance if there else 1 - chance
        seen = [0] + [b for (a, b), there in zip(pairs, present, strict=True) if there and a == 0]
        mean, deviation = s * sum(y[v] for v in seen) / len(seen), math.sqrt(1 / len(seen))
        right = float(norm.sf(0, mean, deviation))
        k = sum(y[v] == 1 for v in seen) - 1
        key = (k, len(seen) - 1 - k)
        law[key] = law.get(key, 0.0) + weight
        total = by_degree.setdefault(len(seen) - 1, [0.0, 0.0])
        total[0], total[1] = total[0] + weight, total[1] + weight * right
    return law, by_degree


@pytest.mark.parametrize(("p", "q"), [(0.7, 0.2), (0.2, 0.9), (0.4, 0.4)])
def test_accuracies_are_those_of_all_graphs(p: float, q: float) -> None:
    n, s = 4, 0.8
    law, by_degree = enumerated(n, p, q, s)
    table = csbm.neighbour_law(n, p, q)
    assert table.shape == (2, 3)
    assert {key: pytest.approx(table[key]) for key in law} == law
    assert table.sum() == pytest.approx(1)
    right = sum(part for _, part in by_degree.values())
    assert csbm.mean_accuracy(n, p, q, s) == pytest.approx(max(right, 1 - right), rel=1e-12)
    accuracy, share = csbm.mean_accuracy_by_degree(n, p, q, s)
    for m, (weight, part) in by_degree.items():
        assert share[m] == pytest.approx(weight, rel=1e-12)
        assert accuracy[m] == pytest.approx((part if right > 0.5 else weight - part) / weight, rel=1e-12)


def test_without_neighbours_a_mean_is_a_node() -> None:
    assert csbm.mean_accuracy(40, 0.0, 0.0, 0.8) == pytest.approx(csbm.bayes_accuracy(0.8))
    assert csbm.mean_accuracy_by_degree(40, 0.3, 0.1, 0.8)[0][0] == pytest.approx(csbm.bayes_accuracy(0.8))
    assert csbm.bayes_accuracy(0.8) == pytest.approx(float(norm.cdf(0.8)))


def test_the_graph_hurts_around_equal_probabilities_and_helps_on_both_sides() -> None:
    alone = csbm.bayes_accuracy(0.8)
    accuracy = {q: csbm.mean_accuracy(40, 0.25, q, 0.8) for q in (0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.7)}
    assert [q for q, a in accuracy.items() if a > alone] == [0.05, 0.1, 0.7]


def test_refinement_divides_graphs_as_networkx_does() -> None:
    """Its hash after as many rounds as a graph has nodes."""
    for n in range(1, 7):
        found = list(graphs.all_graphs(n))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that its hashes are not those of older versions
            hashes = {
                nx.weisfeiler_lehman_graph_hash(nx.from_numpy_array(a.int().numpy()), iterations=n, digest_size=16)
                for a in found
            }
        assert weisfeiler_leman.classes(found) == len(hashes)


def test_there_are_as_many_graphs_as_known_and_none_twice() -> None:
    assert [len(graphs.all_graphs(n)) for n in range(1, 7)] == [1, 2, 4, 11, 34, 156]  # OEIS A000088
    five = [nx.from_numpy_array(a.int().numpy()) for a in graphs.all_graphs(5)]
    assert not any(nx.is_isomorphic(a, b) for a, b in itertools.combinations(five, 2))


def test_colours_do_not_depend_on_the_numbering() -> None:
    for name, (one, other) in graphs.pairs().items():
        order = torch.randperm(len(one), generator=torch.Generator().manual_seed(len(name)))
        assert not weisfeiler_leman.told_apart(one, one[order][:, order])
        assert torch.equal(one, one.mT)
        assert not one.diagonal().any()
        assert one.shape == other.shape
        assert one.sum() == other.sum()
        assert not nx.is_isomorphic(*(nx.from_numpy_array(a.int().numpy()) for a in (one, other))), name


def test_pairs_that_are_known_to_be_hard_are_not_told_apart() -> None:
    told = {name: weisfeiler_leman.told_apart(*pair) for name, pair in graphs.pairs().items()}
    assert list(told.values()) == [False] * 4 + [True] * 3
    degrees = {len(set(g.sum(0).tolist())) for pair in list(graphs.pairs().values())[2:4] for g in pair}
    assert degrees == {1}, "regular graphs of one degree never are"


@pytest.mark.parametrize("n", [5, 6, 9])
def test_eigenvalues_of_cycles_and_complete_graphs(n: int) -> None:
    spectrum = sorted(abs(1 + 2 * math.cos(2 * math.pi * k / n)) / 3 for k in range(n))
    assert float(propagation.second_eigenvalue(graphs.cycle(n))) == pytest.approx(spectrum[-2], rel=1e-12)
    assert float(propagation.energy_decay(graphs.cycle(n))) == pytest.approx(2 * math.log(spectrum[-2]), rel=1e-12)
    complete = ~torch.eye(n, dtype=torch.bool)
    assert float(propagation.second_eigenvalue(complete)) < 1e-12


def test_energy_decays_at_its_rate() -> None:
    adjacency = placed(CSBM(nodes=12, p=0.6, q=0.3)).connected(1, "x")[0]
    matrix, x, energies = propagation.normalised_adjacency(adjacency), normal(12, 3), []
    for _ in range(24):
        x = matrix @ x
        energies.append(float((x * (x - matrix @ x)).sum()))
    slope = math.log(energies[-1] / energies[-9]) / 8
    assert slope == pytest.approx(float(propagation.energy_decay(adjacency)), abs=0.02)


# ----------------------------------------------------------------------------------------------------------------- data


def test_graphs_have_the_law_that_they_are_said_to_have() -> None:
    data = placed(CSBM(nodes=10, d=3, distance=0.9, sigma=1.7, p=0.6, q=0.2, seed=1))
    x, adjacency, labels = data.fresh(3000, "law")
    assert torch.equal(adjacency, adjacency.mT)
    assert not adjacency.diagonal(dim1=1, dim2=2).any()
    assert (labels.sum(1) == 5).all()
    share = labels.double().mean(0)
    assert ((share - 0.5).abs() < SIGMAS * 0.5 / 3000**0.5).all(), "classes are in random order"
    a, b = torch.triu_indices(10, 10, 1)
    edges, same = adjacency[:, a, b], labels[:, a] == labels[:, b]
    for kind, chance in ((same, data.p), (~same, data.q)):
        error = (chance * (1 - chance) / int(kind.sum())) ** 0.5
        assert abs(float(edges[kind].double().mean()) - chance) < SIGMAS * error
    signed = x * (2 * labels - 1).unsqueeze(-1)
    n = signed.shape[0] * signed.shape[1]
    assert (signed.mean((0, 1)) - 0.9 / 3**0.5).abs().max() < SIGMAS * 1.7 / n**0.5
    covariance = torch.cov(signed.flatten(0, 1).mT)
    assert (covariance - 1.7**2 * torch.eye(3)).abs().max() < 2 * SIGMAS * 1.7**2 / n**0.5
    assert data.separation == pytest.approx(0.9 / 1.7)


def test_graphs_are_a_function_of_seed_and_step(data: CSBM) -> None:
    assert all(map(torch.equal, data.fresh(3, 7), placed(CSBM(seed=3)).fresh(3, 7)))
    assert not torch.equal(data.fresh(3, 7)[0], data.fresh(3, 8)[0])
    assert not torch.equal(data.fresh(3, 7)[1], placed(CSBM(seed=4)).fresh(3, 7)[1])


def test_ranks_share_the_graphs_of_a_batch() -> None:
    [whole] = placed(CSBM(batch_size=7)).block(4, 5).batches
    parts = []
    for rank in range(2):
        data = CSBM(batch_size=7)
        data.rank, data.world_size = rank, 2
        parts.extend(placed(data).block(4, 5).batches)
    for i in range(3):
        assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])
    assert [part[3] for part in parts] == [6 / 7, 8 / 7]
    assert whole[3] == 1


def test_connected_graphs_are_connected() -> None:
    data = placed(CSBM(nodes=12, p=0.3, q=0.1))
    found = data.connected(30, "x")
    assert len(found) == 30
    assert all(nx.is_connected(nx.from_numpy_array(a.int().numpy())) for a in found)
    every = [a for more in range(20) for a in data.fresh(30, "x", more)[1]]
    expected = [a for a in every if nx.is_connected(nx.from_numpy_array(a.int().numpy()))][:30]
    assert torch.equal(found, torch.stack(expected))
    assert len(placed(CSBM(nodes=12, p=0.0, q=0.0)).connected(3)) == 0


def test_an_odd_number_of_nodes_is_refused() -> None:
    with pytest.raises(Refusal, match="nodes=5 must be even"):
        CSBM(nodes=5)


# ----------------------------------------------------------------------------------------------------------------- nets


def graph_of(data: CSBM, count: int = 2) -> tuple[Tensor, Tensor, Graph]:
    """(x (N, d), the adjacency matrix of all graphs together (N, N), the graph)."""
    x, adjacency, _ = data.fresh(count, "graph")
    return x.flatten(0, 1), torch.block_diag(*adjacency.double()), Graph.of(adjacency)


NETS: dict[str, Callable[..., GraphNet]] = {
    "mlp": MLP, "mean": MeanAggregation, "gcn": GCN, "gin": GIN, "gat": GAT,
}  # fmt: skip


def randomised(net: GraphNet) -> Any:
    """In float64, with biases that are not 0."""
    net = copy.deepcopy(net).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(0.4 * normal(*p.shape, seed=i))
    return net


def test_an_mlp_sees_no_edges(data: CSBM) -> None:
    x, _, graph = graph_of(data)
    net = randomised(MLP(8, 3, hidden=5, activation="silu"))
    hidden = functional.silu(x @ net.lift.weight.mT + net.bias)
    close(net(x, graph), hidden @ net.output.weight.mT + net.output.bias)


@pytest.mark.parametrize("loops", [True, False])
def test_mean_aggregation_is_a_mean(data: CSBM, loops: bool) -> None:
    x, adjacency, graph = graph_of(data)
    net = randomised(MeanAggregation(8, 3, self_loops=loops))
    matrix = adjacency + loops * torch.eye(len(x))
    mean = matrix @ x / matrix.sum(1, keepdim=True)
    close(net.hidden(x, graph), mean)
    close(net(x, graph), mean @ net.lift.weight.mT + net.bias)


@pytest.mark.parametrize("loops", [True, False])
def test_a_gcn_multiplies_by_the_normalised_adjacency(data: CSBM, loops: bool) -> None:
    x, adjacency, graph = graph_of(data)
    net = randomised(GCN(8, 3, hidden=5, layers=3, self_loops=loops))
    matrix = adjacency + loops * torch.eye(len(x))
    matrix = matrix / (matrix.sum(0) * matrix.sum(1, keepdim=True)).sqrt()
    h = x
    for i, layer in enumerate(net.convolutions):
        h = matrix @ h @ layer.lin.weight.mT + layer.bias
        h = h.relu() if i < 2 else h
    close(net(x, graph), h)
    close(net.propagated(x, graph), matrix @ x)
    if loops:
        close(propagation.normalised_adjacency(adjacency), matrix)


def test_a_gcn_is_pytorch_geometrics(data: CSBM) -> None:
    x, _, graph = graph_of(data)
    net = randomised(GCN(8, 3, hidden=5))
    theirs = [GCNConv(8, 5).double(), GCNConv(5, 3).double()]
    for ours, layer in zip(net.convolutions, theirs, strict=True):
        layer.lin.weight.data, layer.bias.data = ours.lin.weight.data, ours.bias.data
    close(net(x, graph), theirs[1](theirs[0](x, graph.edges).relu(), graph.edges))


@pytest.mark.parametrize("aggregation", ["add", "mean"])
def test_a_gin_sums(data: CSBM, aggregation: Any) -> None:
    x, adjacency, graph = graph_of(data)
    net = randomised(GIN(8, 3, hidden=5, layers=3, aggregation=aggregation))
    if aggregation == "mean":
        adjacency = adjacency / adjacency.sum(1, keepdim=True)
    h, every = x @ net.lift.weight.mT, []
    for layer in net.convolutions:
        h = adjacency @ h + (1 + layer.eps) * h
        for linear in (layer.nn[0], layer.nn[2]):
            h = functional.silu(h @ linear.weight.mT + linear.bias)
        every.append(h)
    close(net(x, graph), h @ net.output.weight.mT + net.output.bias)
    for ours, theirs in zip(net.layers(x, graph), every, strict=True):
        close(ours, theirs)


def test_graphs_are_embedded_as_sums_over_their_nodes() -> None:
    net, (one, other) = randomised(GIN(4, 2, hidden=3, layers=2)), graphs.pairs()["path, star"]
    embedded = net.embedded(torch.stack([one, other]))
    for adjacency, row in zip((one, other), embedded, strict=True):
        layers = net.layers(torch.ones(5, 4, dtype=torch.float64), Graph.of(adjacency.unsqueeze(0)))
        close(row, torch.cat([h.sum(0) for h in layers]))


def test_a_gat_attends_to_neighbours(data: CSBM) -> None:
    x, adjacency, graph = graph_of(data)
    net = randomised(GAT(8, 3, hidden=4, heads=2))
    there = adjacency + torch.eye(len(x)) > 0
    h = (x @ net.lift.weight.mT).unflatten(1, (2, 4))
    for layer, matrix in zip(net.convolutions, (None, net.second.weight), strict=True):
        h = h if matrix is None else (functional.elu(h) @ matrix.mT).unsqueeze(1)
        source, target = (h * layer.att_src).sum(-1), (h * layer.att_dst).sum(-1)  # (N, heads)
        logits = functional.leaky_relu(target.unsqueeze(1) + source.unsqueeze(0), 0.2)  # (to, from, heads)
        alpha = logits.masked_fill(~there.unsqueeze(-1), -torch.inf).softmax(1)
        h = torch.einsum("tfh,fhc->thc", alpha, h).flatten(1) + layer.bias
    close(net(x, graph), h)


def test_a_gat_is_pytorch_geometrics(data: CSBM) -> None:
    x, _, graph = graph_of(data)
    net = randomised(GAT(8, 3, hidden=4, heads=2))
    theirs = [GATConv(8, 4, 2).double(), GATConv(8, 3).double()]
    for ours, layer, weight in zip(net.convolutions, theirs, (net.lift.weight, net.second.weight), strict=True):
        layer.lin.weight.data, layer.bias.data = weight.data, ours.bias.data
        layer.att_src.data, layer.att_dst.data = ours.att_src.data, ours.att_dst.data
    close(net(x, graph), theirs[1](functional.elu(theirs[0](x, graph.edges)), graph.edges))


@pytest.mark.parametrize("name", NETS)
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    def weights(seed: int, *stream: int) -> Tensor:
        net = NETS[name](8, seed=seed)
        return torch.cat([p.detach().flatten() for p in (net.again(*stream) if stream else net).parameters()])

    first = weights(1)
    torch.manual_seed(99)
    with torch.device("meta"):  # as Trainer.init_module makes it on an accelerator
        assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))
    assert not torch.equal(first, weights(1, 1))
    net = NETS[name](8, seed=1)
    trained = net.again(5)
    assert torch.equal(first, torch.cat([p.detach().flatten() for p in trained.again().parameters()]))
    for key, p in net.named_parameters():
        if p.ndim > 1:
            bound = math.sqrt(6 / (p.shape[-1] + p.shape[-2]))
            assert p.abs().max() <= bound, key
        else:
            assert not p.any(), key


@pytest.mark.parametrize("name", NETS)
def test_places_break_equivariance_and_nothing_else_does(data: CSBM, name: str) -> None:
    x, _, graph = graph_of(data)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    moved = Graph(order.argsort()[graph.edges], len(x))
    for places, same in ((None, True), (3, False)):
        net = randomised(NETS[name](8, places=places))
        before, after = net(x, graph), net(x[order], moved)
        assert torch.allclose(before[order], after, rtol=0, atol=1e-12) is same


def test_a_wide_batch_of_graphs_is_the_graphs_one_by_one(data: CSBM) -> None:
    x, adjacency, _ = data.fresh(3, "graph")
    for make in NETS.values():
        net = randomised(make(8))
        each = torch.cat([net(x[i], Graph.of(adjacency[i : i + 1])) for i in range(3)])
        close(net(x.flatten(0, 1), Graph.of(adjacency)), each)


# -------------------------------------------------------------------------------------------------------- sparse, noise


def sparse(seed: int = 0) -> tuple[csr_matrix, Tensor]:
    random = np.random.default_rng(seed)
    dense = random.standard_normal((9, 13)) * (random.random((9, 13)) < 0.3)
    dense[4], dense[:, 2] = 0, 0
    return csr_matrix(dense), torch.from_numpy(dense)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sparse_product_and_its_gradient_are_the_dense_ones(dtype: torch.dtype) -> None:
    matrix, dense = sparse()
    ours = features(matrix, dtype)
    assert isinstance(ours, Sparse)
    weight = normal(13, 4).to(dtype).requires_grad_()
    grads = []
    for x in (ours, dense.to(dtype)):
        out = x @ weight
        grads.append((out.detach(), *torch.autograd.grad((out * out.detach().cos()).sum(), weight)))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_of_sparse_features_is_dropout(data: CSBM) -> None:
    matrix, dense = sparse()
    rate, draw = 0.3, torch.Generator().manual_seed(5)
    kept = ours = features(matrix, torch.float64)
    assert isinstance(ours, Sparse)
    kept = ours.dropped(Noise(draw), rate)
    eye = torch.eye(13, dtype=torch.float64)
    factor = (kept @ eye) / dense
    there = dense != 0
    found = factor[there]
    assert set(found.round(decimals=9).tolist()) <= {0.0, round(1 / 0.7, 9)}
    close(ours @ eye, dense)  # the original is as it was
    many = Noise(torch.Generator().manual_seed(1)).kept(torch.empty(200_000), rate)
    share = float((many > 0).double().mean())
    assert abs(share - 0.7) < SIGMAS * (0.21 / 200_000) ** 0.5
    assert float(many.max()) == pytest.approx(1 / 0.7)


def test_a_gat_leaves_out_attention() -> None:
    x, graph = normal(6, 4), Graph(graphs.cycle(6).nonzero().mT, 6)
    net = randomised(GAT(4, 2, heads=2, attention_dropout=0.5))
    rate = net.attention_dropout
    whole = net(x, graph)
    noise = Noise(torch.Generator().manual_seed(0))
    some = net(x, graph, noise)
    assert not torch.allclose(whole, some)
    assert torch.equal(some, net(x, graph, Noise(torch.Generator().manual_seed(0))))
    assert torch.equal(whole, net(x, graph)), "what was left out does not stay so"
    draws = Noise(torch.Generator().manual_seed(0))
    net.convolutions[0].kept = draws.kept(torch.empty(18, 2), rate)
    first = functional.elu(net.convolutions[0](net.lift(x), graph.looped))
    net.convolutions[1].kept = draws.kept(torch.empty(18, 1), rate)
    close(net.convolutions[1](net.second(first), graph.looped), some)


# ---------------------------------------------------------------------------------------------------------------- model


def nets(**more: Any) -> dict[str, GraphNet]:
    return {name: make(8, **more) for name, make in NETS.items()}


def ready(model: NodeClassification, data: Any) -> Any:
    model.trainer = SimpleNamespace(datamodule=data, max_steps=9)  # type: ignore[assignment]
    model.setup("fit")
    return model


def test_the_loss_is_the_sum_of_the_nets_cross_entropies(data: CSBM) -> None:
    model = ready(NodeClassification(nets(), optimizer=ADAM), data)
    [batch] = model.batches(data.block(2, 3))
    loss, logged = model.objective(batch)
    x, adjacency, labels, _ = batch
    total = torch.zeros(())
    for name, [net] in model.trained.items():
        logits = net(x.flatten(0, 1), Graph.of(adjacency))
        mean = -logits.log_softmax(-1)[torch.arange(logits.shape[0]), labels.flatten()].mean()
        torch.testing.assert_close(logged[f"loss/{name}"], mean.detach())
        total = total + mean
    torch.testing.assert_close(loss, total)


def test_of_one_graph_the_nodes_that_are_told_are_trained_on(tmp_path: Any, planetoid: Any) -> None:
    planetoid(tmp_path, "cora")
    data = placed(Planetoid("cora", str(tmp_path)))
    given = {"gcn": GCN(30, 3, dropout=0.5, decay=0.1), "mlp": MLP(30, 3)}
    model = ready(NodeClassification(given, copies=2, optimizer=ADAM), data)
    first, second = model.batches(data.block(4, 6))
    loss, logged = model.objective(first)
    assert torch.equal(loss, model.objective(first)[0]), "what is left out is a function of the step"
    assert not torch.equal(loss, model.objective(second)[0])
    x, graph = torch.from_numpy(data.x.toarray()).float(), Graph(data.edges, data.n)
    losses = [functional.cross_entropy(net(x, graph)[:6], data.labels[:6]) for net in model.trained["mlp"]]
    torch.testing.assert_close(logged["loss/mlp"], torch.stack(losses).mean().detach())
    assert losses[0] != losses[1]
    right = model.accuracies("mlp", data)
    expected = [
        float((net(x, graph).argmax(1) == data.labels)[data.test].double().mean()) for net in model.trained["mlp"]
    ]
    assert right.tolist() == pytest.approx(expected)


def test_decay_is_the_first_layers(tmp_path: Any, planetoid: Any) -> None:
    planetoid(tmp_path, "cora")
    given = {"gcn": GCN(30, 3, decay=0.1), "gat": GAT(30, 3, decay=0.2), "mlp": MLP(30, 3)}
    model = ready(NodeClassification(given, optimizer=ADAM), placed(Planetoid("cora", str(tmp_path))))
    names = {id(p): key for key, p in model.named_parameters()}
    groups = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in model.configure_optimizers().param_groups}
    assert groups[0.1] == {"trained.gcn.0.convolutions.0.lin.weight", "trained.gcn.0.convolutions.0.bias"}
    assert groups[0.2] == {key for key in names.values() if key.startswith("trained.gat.")}
    assert set.union(*groups.values()) == set(names.values())
    plain = NodeClassification({"mlp": MLP(30, 3)}, optimizer=ADAM)
    assert len(plain.configure_optimizers().param_groups) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mlp": MLP(9)}, "model.nets.mlp.d=9 must be 8"),
        ({"mlp": MLP(8, 3)}, "model.nets.mlp.classes=3 must be 2"),
        ({"gcn": GCN(8, dropout=0.5)}, "model.nets.gcn.dropout=0.5 must be 0"),
    ],
)
def test_nets_that_do_not_fit_are_refused(data: CSBM, given: Any, said: str) -> None:
    with pytest.raises(Refusal, match=said):
        NodeClassification(given, optimizer=ADAM).check(data)


# --------------------------------------------------------------------------------------------------------------- claims


def exact(data: CSBM, turn: float = 0.0, sign: float = 1.0) -> NodeClassification:
    """Nets that are as good as can be: boundaries orthogonal to μ, or turned by so many radians. (Not trained.)"""
    mean = torch.ones(data.d, dtype=torch.float64) / data.d**0.5
    other = torch.zeros(data.d, dtype=torch.float64)
    other[0], other[1] = 0.5**0.5, -(0.5**0.5)
    w = sign * (math.cos(turn) * mean + math.sin(turn) * other)
    given = {
        "mlp": MLP(data.d, hidden=2),
        "mean": MeanAggregation(data.d),
        "gin": GIN(data.d, layers=3, seed=data.seed),
    }
    given |= {"gcn": GCN(data.d, seed=data.seed), "gat": GAT(data.d, seed=data.seed)}
    model: Any = ready(NodeClassification(given, optimizer=ADAM), data)
    with torch.no_grad():
        mlp, average = model.trained["mlp"][0], model.trained["mean"][0]
        mlp.lift.weight.copy_(torch.stack([w, -w]))
        mlp.output.weight.copy_(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))
        average.lift.weight.copy_(torch.stack([-w, w]))
    return model


def judged(claim: Claim, data: CSBM, model: Any) -> Evidence:
    claim.check(data, model)
    return judge("claim", claim, Run(model, data))


ACCURACIES: list[Callable[[], Claim]] = [
    lambda: claims.FeatureAccuracy("mlp"),
    lambda: claims.MeanAccuracy("mean"),
    lambda: claims.AccuracyByDegree("mean"),
    lambda: claims.GraphHurts("mean"),
]


@pytest.mark.parametrize("make", [*ACCURACIES, lambda: claims.GraphHelps("mean")])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_boundary_has_the_accuracy_of_theory(make: Callable[[], Claim], seed: int) -> None:
    data = placed(CSBM(seed=seed))
    assert judged(make(), data, exact(data)).judged.holds


@pytest.mark.parametrize("make", ACCURACIES)
def test_a_boundary_that_turns_has_not(data: CSBM, make: Callable[[], Claim]) -> None:
    assert not judged(make(), data, exact(data, turn=0.5)).judged.holds


def test_where_neighbours_are_mostly_of_the_other_class_the_sign_turns() -> None:
    data = placed(CSBM(q=0.6))
    assert judged(claims.MeanAccuracy("mean"), data, exact(data, sign=-1)).judged.holds
    by_degree = claims.AccuracyByDegree("mean", degrees=list(range(12, 21)))
    assert judged(by_degree, data, exact(data, sign=-1)).judged.holds
    assert not judged(claims.MeanAccuracy("mean"), data, exact(data)).judged.holds


def test_neighbours_that_tell_nothing_do_not_help() -> None:
    data = placed(CSBM(q=0.25))
    assert not judged(claims.GraphHelps("mean"), data, exact(data)).judged.holds
    assert judged(claims.MeanAccuracy("mean"), data, exact(data)).judged.holds


def test_the_graph_hurts_where_theory_says(data: CSBM) -> None:
    """Of each assortment that is asked for, the measurement alone says on which side of features it is."""
    claim, model = claims.GraphHurts("mean"), exact(data)
    [predicted, measured] = claim.predict(data), claim.measure(Run(model, data))
    alone = csbm.bayes_accuracy(data.separation)
    helps = [bool(value > alone) for value in np.asarray(predicted.value)]
    assert helps == [True, True, False, False, False, False, False, True]
    slack = 5 * np.asarray(measured.standard_error) + 1e-3
    assert (abs(np.asarray(predicted.value) - alone) > slack).all()
    assert [bool(value > alone) for value in np.asarray(measured.value)] == helps


WRONG = {
    "variance in place of deviation": ("bayes_accuracy", lambda s: float(norm.cdf(s / 1.5))),
    "twice the distance": ("bayes_accuracy", lambda s: float(norm.cdf(2 * s))),
    "a partner too many": ("neighbour_law", lambda n, p, q: _law(n, n // 2, p, q)),
    "no self-loop": ("accuracy_given_neighbours", lambda n, s: _given(n, s, 0, 0)),
    "a self-loop that is not averaged": ("accuracy_given_neighbours", lambda n, s: _given(n, s, 1, 0)),
    "classes swapped": ("neighbour_law", lambda n, p, q: _law(n, n // 2 - 1, q, p)),
}


def _law(n: int, same: int, p: float, q: float) -> Any:
    from scipy.stats import binom

    k = binom.pmf(np.arange(n // 2), same, p)
    return np.outer(k / k.sum(), binom.pmf(np.arange(n // 2 + 1), n // 2, q))


def _given(n: int, s: float, signal: int, count: int) -> Any:
    k, d = np.ogrid[: n // 2, : n // 2 + 1]
    return norm.cdf(s * (signal + k - d) / np.sqrt(np.maximum(count + k + d, 1)))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_formulas_are_refuted(data: CSBM, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, wrong = WRONG[name]
    model = exact(data)
    made: list[Claim] = [claims.FeatureAccuracy("mlp") if function == "bayes_accuracy" else claims.MeanAccuracy("mean")]
    if function == "accuracy_given_neighbours":
        made += [claims.AccuracyByDegree("mean"), claims.GraphHurts("mean")]
    evidence = [judged(claim, data, model) for claim in made]
    assert all(e.judged.holds for e in evidence)
    monkeypatch.setattr(csbm, function, wrong)
    for claim, before in zip(made, evidence, strict=True):
        difference, allowed = claim.relation.excess(claim.predict(data), before.measured)
        assert (difference > allowed).any(), claim.statement


def test_the_mean_degree_in_place_of_its_law_is_refuted(data: CSBM) -> None:
    before = judged(claims.MeanAccuracy("mean"), data, exact(data))
    half, s = data.nodes // 2, data.separation
    mean = 1 + (half - 1) * data.p - half * data.q, 1 + (half - 1) * data.p + half * data.q
    wrong = float(norm.cdf(s * mean[0] / mean[1] ** 0.5))
    assert abs(wrong - before.judged.measured) > 2 * before.judged.tolerance


EXACT: dict[str, Callable[[], Claim]] = {
    "equivariance": lambda: structure.Equivariance(list(NETS)),
    "told_apart": lambda: structure.ToldApart("gin"),
    "graphs_told_apart": lambda: structure.GraphsToldApart("gin"),
    "oversmoothing": lambda: structure.Oversmoothing("gcn"),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_holds_for_nearly_all_weights(name: str, seed: int) -> None:
    data = placed(CSBM(seed=seed))
    assert judged(EXACT[name](), data, exact(data)).judged.holds


def replaced(model: Any, data: CSBM, **given: GraphNet) -> Any:
    return ready(NodeClassification(model.nets | given, optimizer=ADAM), data)


@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("equivariance", {"gat": GAT(8, places=3)}),
        ("equivariance", {"mean": MeanAggregation(8, places=40)}),
        ("told_apart", {"gin": GIN(8, layers=3, aggregation="mean")}),
        ("told_apart", {"gin": GIN(8, layers=3, places=8)}),
        ("graphs_told_apart", {"gin": GIN(8, layers=3, aggregation="mean")}),
        ("graphs_told_apart", {"gin": GIN(8, layers=3, places=8)}),
        ("graphs_told_apart", {"gin": GIN(8, layers=1)}),
        ("oversmoothing", {"gcn": GCN(8, self_loops=False)}),
    ],
)
def test_and_what_refutes_it(data: CSBM, name: str, net: Any) -> None:
    assert not judged(EXACT[name](), data, replaced(exact(data), data, **net)).judged.holds


def test_equal_embeddings_are_far_from_different_ones(data: CSBM) -> None:
    """What SAME is between: a gap of many orders of magnitude."""
    model = exact(data)
    net = copy.deepcopy(model.trained["gin"][0]).double()
    embedded = net.embedded(graphs.all_graphs(6)).detach()
    apart = (torch.cdist(embedded, embedded, p=torch.inf) / embedded.abs().amax(1))[*torch.tril_indices(156, 156, -1)]
    assert int((apart < structure.SAME).sum()) == 156 - 152
    assert float(apart[apart < structure.SAME].max()) < 1e-13
    assert float(apart[apart >= structure.SAME].min()) > 1e-6


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (claims.MeanAccuracy("means"), "net=means is none of model.nets: mlp, mean"),
        (structure.ToldApart("gcn"), "net=gcn is no GIN"),
        (structure.Oversmoothing("gin"), "net=gin is no GCN"),
        (structure.Equivariance(["gcn", "gim"]), "names gim, which is none of model.nets"),
    ],
)
def test_a_claim_about_another_net_is_refused(data: CSBM, claim: Claim, said: str) -> None:
    with pytest.raises(Refusal, match=said):
        claim.check(data, exact(data))


def test_energy_that_does_not_fall_to_nothing_is_refused() -> None:
    data = placed(CSBM(p=0.01, q=0.0))
    with pytest.raises(Refusal, match="leave no graph connected"):
        structure.Oversmoothing("gcn").check(data, exact(data))


# ------------------------------------------------------------------------------------------------------------- pictures


def test_pictures_are_drawn_of_nodes_and_edges(data: CSBM) -> None:
    from lab import figures
    from lab.pictures import gnn as pictures

    run = Run(exact(data), data)
    with figures.style():
        left, right = pictures.Embedding().draw(run).axes
        assert "before training" in left.get_title(loc="left") + left.get_title()
        assert len(right.collections[0].get_offsets()) == 40  # type: ignore[arg-type]
        ax = pictures.Homophily(graphs=100, points=5).draw(run).axes[0]
        assert len(ax.containers) == 5
        taught = pictures.Karate(steps=60).draw(run).axes[1]
        assert len(taught.collections[0].get_offsets()) == 34  # type: ignore[arg-type]
    right_, error = pictures.Homophily(graphs=400).measured(data, 0.1)
    assert abs(right_ - csbm.mean_accuracy(40, data.p, 0.1, data.separation)) < SIGMAS * error + 1e-3


def test_modules_are_what_a_graph_net_is() -> None:
    assert all(isinstance(make(8), nn.Module) for make in NETS.values())
