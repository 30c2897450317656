"""Histograms of digits, their barycentres against POT's, and claims that tell right from wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.algorithms.costs import SquaredEuclidean
from lab.algorithms.sinkhorn import Sinkhorn
from lab.claim import Claim, Evidence, Run, judge
from lab.claims import sinkhorn_ot_digits as claims
from lab.data.histograms import DigitHistograms
from lab.errors import Refusal
from lab.models.barycentres import Barycentres, objectives
from lab.nets.transport import Histograms
from lab.theory import transport as theory

pytestmark = pytest.mark.usefixtures("one_thread")

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
EPSILON = 0.7


def ready(rank: int = 0, ranks: int = 1, **options: Any) -> DigitHistograms:
    data = DigitHistograms(**{"side": 3, "images": 6, "seed": 1, **options})
    data.dtype, data.rank, data.world_size = torch.float64, rank, ranks
    data.setup()
    data.place(torch.device("cpu"))
    return data


@pytest.fixture(scope="module")
def data() -> DigitHistograms:
    return ready()


# ----------------------------------------------------------------------------------------------------------------- data


def test_images_are_distributions_and_a_function_of_the_seed(data: DigitHistograms) -> None:
    for images in (data.corners, data.pool):
        close(images.sum(-1), torch.ones(len(images), dtype=torch.float64))
        assert float(images.min()) >= 0
    assert torch.equal(ready().corners, data.corners)
    assert not torch.equal(ready(seed=2).corners, data.corners)
    assert data.pool_labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert ready(images=23).pool_labels.bincount().tolist() == [3, 3, 3, *[2] * 7]
    apart = torch.cdist(data.corners, ready(images=30).pool)
    assert float(apart.min()) > 0, "an image is both mixed and compared"


def test_mixtures_are_bilinear(data: DigitHistograms) -> None:
    close(data.mixtures.sum(1), torch.ones(9, dtype=torch.float64))
    assert data.mixtures[0].tolist() == [1, 0, 0, 0]
    assert data.mixtures[2].tolist() == [0, 1, 0, 0]
    assert data.mixtures[6].tolist() == [0, 0, 1, 0]
    assert data.mixtures[4].tolist() == [0.25] * 4
    assert data.grid[9].tolist() == [1, 1]


def test_more_ranks_than_mixtures_are_refused() -> None:
    with pytest.raises(Refusal, match=r"trainer.devices=5 is more than the 4 mixtures there are"):
        ready(0, 5, side=2)


# --------------------------------------------------------------------------------------------------------------- theory


def test_the_fixed_point_is_pots(data: DigitHistograms) -> None:
    import ot

    cost = claims.squared_distances(data)
    mine = theory.debiased_barycentre(data.corners.numpy(), cost, data.mixtures.numpy(), 1.0)
    for weights, barycentre in zip(data.mixtures.numpy(), mine, strict=True):
        found = ot.bregman.barycenter_debiased(
            data.corners.T.numpy(), cost, 1.0, weights=weights, numItermax=4000, stopThr=1e-12, warn=False
        )
        np.testing.assert_allclose(barycentre, found, atol=1e-4)


def test_the_fixed_point_is_stationary(data: DigitHistograms, exact: SimpleNamespace) -> None:
    """A minimum of a convex function by its gradient, which the fixed point's iteration knows nothing of."""
    assert float(np.max(claims.FirstOrder(EPSILON).measure(Run(exact, data)).value)) < 1e-5


# ---------------------------------------------------------------------------------------------------------------- model

SOLVER = Sinkhorn(tolerance=1e-11)


def module(**options: Any) -> Barycentres:
    made = {"cost": SquaredEuclidean(), "solver": SOLVER, "inner": SOLVER}
    rest = {"optimizer": partial(torch.optim.SGD, lr=0.1), "histograms": Histograms(9, 64)}
    net = Barycentres(**{**made, **rest, **options}).double()
    with torch.no_grad():
        net.histograms.logits.copy_(torch.randn(9, 64, generator=torch.Generator().manual_seed(0)))
    return net


def placed(net: Barycentres, data: DigitHistograms) -> Barycentres:
    net.trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
    net.setup("fit")
    return net


@pytest.mark.parametrize("debiased", [True, False])
def test_the_objective_is_its_definition(debiased: bool, data: DigitHistograms) -> None:
    cost = SquaredEuclidean()(data.grid, data.grid)
    alpha = torch.rand(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha = alpha / alpha.sum(1, keepdim=True)
    found = objectives(alpha, data.mixtures[3:6], data.corners.expand(3, -1, -1), cost, 2.0, SOLVER, debiased)
    for a, weights, value in zip(alpha, data.mixtures[3:6], found, strict=True):
        terms = [w * SOLVER(cost, a, b, epsilon=2.0).dual for w, b in zip(weights, data.corners, strict=True)]
        own = SOLVER(cost, a, a, epsilon=2.0).dual
        close(value, sum(terms) - 0.5 * own * debiased)  # type: ignore[arg-type]


def test_the_gradient_is_a_difference(data: DigitHistograms) -> None:
    net, [batch] = placed(module(epsilon=2.0), data), data.block(0, 1).batches
    loss, _ = net.objective(batch)
    loss.backward()
    gradient, direction = net.histograms.logits.grad, torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    assert gradient is not None
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            net.histograms.logits.add_(sign * 1e-5 * direction)
            ends.append(float(net.objective(batch)[0]))
            net.histograms.logits.sub_(sign * 1e-5 * direction)
    assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_mean_of_the_ranks_gradients_is_the_gradient(ranks: int) -> None:
    def gradient(rank: int, ranks: int) -> Tensor:
        data = ready(rank, ranks)
        net, [batch] = placed(module(epsilon=2.0), data), data.block(0, 1).batches
        net.objective(batch)[0].backward()
        assert net.histograms.logits.grad is not None
        return net.histograms.logits.grad

    close(sum(gradient(rank, ranks) for rank in range(ranks)) / ranks, gradient(0, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("histograms", "said"),
    [
        (Histograms(8, 64), "model.histograms.count=8 must be 9: data.side=3 squared"),
        (Histograms(9, 63), "model.histograms.bins=63 must be 64"),
    ],
)
def test_histograms_that_do_not_fit_are_refused(histograms: Histograms, said: str, data: DigitHistograms) -> None:
    with pytest.raises(Refusal, match=said):
        Barycentres(histograms, SquaredEuclidean(), SOLVER, SOLVER, optimizer=torch.optim.SGD).check(data)


# --------------------------------------------------------------------------------------------------------------- claims

CLAIMS: dict[str, Claim] = {
    "barycentre": claims.Barycentre(EPSILON),
    "one_image": claims.OneImage(EPSILON),
    "first_order": claims.FirstOrder(EPSILON),
    "entropic_gap": claims.EntropicGap(),
    "not_below_exact": claims.NotBelowExact(),
    "symmetric": claims.Symmetric(),
    "detour": claims.Detour(),
    "centres": claims.Centres(),
}


class Given(Histograms):
    """Histograms as they are."""

    def __init__(self, alpha: Tensor) -> None:
        super().__init__(*alpha.shape)
        self.alpha = alpha

    def forward(self, rows: Tensor) -> Tensor:
        return self.alpha[rows]


@pytest.fixture(scope="module")
def barycentres(data: DigitHistograms) -> Tensor:
    """Theory's, which take seconds."""
    cost, images = claims.squared_distances(data), data.corners.numpy()
    return torch.from_numpy(theory.debiased_barycentre(images, cost, data.mixtures.numpy(), EPSILON))


@pytest.fixture
def exact(barycentres: Tensor) -> SimpleNamespace:
    """A run whose histograms are theory's."""
    solver = Sinkhorn(tolerance=1e-10, annealing=0.5)
    return SimpleNamespace(histograms=Given(barycentres), cost=SquaredEuclidean(), solver=solver, epsilon=EPSILON)


def judged(name: str, net: SimpleNamespace, data: DigitHistograms) -> Evidence:
    return judge(name, CLAIMS[name], Run(net, data))


@pytest.mark.parametrize("name", CLAIMS)
def test_the_exact_solution_holds(name: str, exact: SimpleNamespace, data: DigitHistograms) -> None:
    e = judged(name, exact, data)
    assert e.judged.holds
    if name in ("barycentre", "one_image", "first_order"):
        assert e.judged.difference < 1e-4


@pytest.mark.parametrize(
    ("what", "wrong", "refuted"),
    [
        (
            "debiased_barycentre",
            lambda images, cost, mixtures, epsilon: mixtures @ images,  # averages of grey values
            ["barycentre"],
        ),
        ("entropic_gap", lambda a, b, epsilon: 0.0, ["entropic_gap"]),
        ("exact_cost", lambda cost, a, b: float(a @ cost @ b), ["not_below_exact", "detour"]),
    ],
)
def test_a_wrong_formula_is_refuted(
    what: str,
    wrong: Callable[..., Any],
    refuted: list[str],
    exact: SimpleNamespace,
    data: DigitHistograms,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claims._exact.cache_clear()
    monkeypatch.setattr(theory, what, wrong)
    for name in refuted:
        assert not judged(name, exact, data).judged.holds, name
    claims._exact.cache_clear()


def test_blurred_histograms_are_refuted(exact: SimpleNamespace, data: DigitHistograms) -> None:
    exact.histograms = Given(0.9 * exact.histograms.alpha + 0.1 / 64)
    for name in ("barycentre", "one_image", "first_order"):
        assert not judged(name, exact, data).judged.holds, name


def test_few_iterations_are_refuted(exact: SimpleNamespace, data: DigitHistograms) -> None:
    exact.solver = Sinkhorn(annealing=0.5, max_iterations=1)
    for name in ("not_below_exact", "symmetric", "detour"):
        assert not judged(name, exact, data).judged.holds, name


def test_an_asymmetric_cost_is_refuted(exact: SimpleNamespace, data: DigitHistograms) -> None:
    exact.cost = SquaredEuclidean(left=1.3)
    for name in ("entropic_gap", "symmetric", "centres"):
        assert not judged(name, exact, data).judged.holds, name


def test_for_a_large_epsilon_the_divergence_is_that_of_the_centres(
    exact: SimpleNamespace, data: DigitHistograms
) -> None:
    claim = claims.Centres(1e5)
    bound, found = (np.asarray(q.value) for q in (claim.predict(data), claim.measure(Run(exact, data))))
    np.testing.assert_allclose(found, bound, atol=2e-3)
    assert math.isclose(float(np.max(bound)), float(np.max(found)), rel_tol=1e-2)


def test_another_epsilon_than_the_models_is_refused(exact: SimpleNamespace, data: DigitHistograms) -> None:
    with pytest.raises(Refusal, match=r"epsilon=2.0 must equal model.epsilon=0.7"):
        claims.Barycentre(2.0).check(data, exact)  # type: ignore[arg-type]
