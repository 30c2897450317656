"""Closed forms of transport against brute force, losses against their definitions; claims tell right from wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import optimize
from torch import Tensor, nn

from lab import paths
from lab.algorithms.costs import SquaredEuclidean
from lab.algorithms.sinkhorn import Sinkhorn, sinkhorn
from lab.claim import Claim, Evidence, Run, judge
from lab.claims import sinkhorn_ot as claims
from lab.claims import sinkhorn_ot_rates as rates
from lab.data.measures import Gaussian, GaussianPair
from lab.errors import Refusal
from lab.models import transport as model
from lab.models.transport import EntropicTransport
from lab.nets.transport import AffineMap, Potential
from lab.theory import transport as theory

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMAS = 5.0
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
SOURCE = Gaussian([0.0, 0.0], [[1.0, 0.4], [0.4, 0.3]])
TARGET = Gaussian([0.5, -0.25], [[0.4, 0.4], [0.4, 1.2]])
LAWS = SOURCE.mean, SOURCE.covariance, TARGET.mean, TARGET.covariance


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------------- theory


def test_bures_and_monge_are_those_of_pot() -> None:
    import ot

    arrays = [t.numpy() for t in (SOURCE.mean, TARGET.mean, SOURCE.covariance, TARGET.covariance)]
    distance = ot.gaussian.bures_wasserstein_distance(*arrays)
    assert float(theory.bures_wasserstein(*LAWS)) == pytest.approx(distance**2, rel=1e-10)
    matrix, shift = ot.gaussian.bures_wasserstein_mapping(*arrays)
    mine = theory.monge_map(*LAWS)
    np.testing.assert_allclose(mine[0].numpy(), matrix, atol=1e-10)
    np.testing.assert_allclose(mine[1].numpy(), np.ravel(shift), atol=1e-10)


def test_the_monge_map_is_optimal_and_pushes_forward() -> None:
    matrix, shift = theory.monge_map(*LAWS)
    close(matrix @ SOURCE.covariance @ matrix.mT, TARGET.covariance)
    close(matrix @ SOURCE.mean + shift, TARGET.mean)
    close(matrix, matrix.mT)
    moved = matrix - torch.eye(2, dtype=torch.float64)
    cost = (moved @ SOURCE.covariance @ moved.mT).trace() + (moved @ SOURCE.mean + shift).square().sum()
    close(cost, theory.bures_wasserstein(*LAWS))
    half, back = theory.root(TARGET.covariance), torch.linalg.inv(theory.root(SOURCE.covariance))
    for angle in torch.linspace(0, 2 * math.pi, 33, dtype=torch.float64)[
        :-1
    ]:  # every other linear map that pushes forward
        c, s = angle.cos(), angle.sin()
        other = half @ torch.stack([torch.stack([c, -s]), torch.stack([s, c])]) @ back
        away = other - torch.eye(2, dtype=torch.float64)
        total = (away @ SOURCE.covariance @ away.mT).trace() + (TARGET.mean - SOURCE.mean).square().sum()
        assert float(total) >= float(theory.bures_wasserstein(*LAWS)) - 1e-12


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 20.0])
def test_the_entropic_cost_is_the_least_over_gaussian_plans(epsilon: float) -> None:
    def value(flat: np.ndarray) -> float:
        c = torch.from_numpy(flat.reshape(2, 2))
        inside = torch.linalg.inv(SOURCE.covariance) @ c @ torch.linalg.inv(TARGET.covariance) @ c.mT
        sign, logdet = torch.linalg.slogdet(torch.eye(2, dtype=torch.float64) - inside)
        if sign <= 0:
            return math.inf
        apart = (SOURCE.mean - TARGET.mean).square().sum() + SOURCE.covariance.trace() + TARGET.covariance.trace()
        return float(apart - 2 * c.trace() - epsilon / 2 * logdet)

    found = optimize.minimize(
        value, np.zeros(4), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000}
    )
    assert float(theory.gaussian_entropic_cost(*LAWS, epsilon)) == pytest.approx(found.fun, abs=1e-9)
    c = theory.cross_covariance(SOURCE.covariance, TARGET.covariance, epsilon)
    np.testing.assert_allclose(c.numpy().ravel(), found.x, atol=1e-4)


def test_entropic_cost_tends_to_the_bures_distance_and_to_independence() -> None:
    exact = theory.bures_wasserstein(*LAWS)
    close(theory.gaussian_entropic_cost(*LAWS, 1e-6), exact, atol=1e-4, rtol=0)
    independent = (SOURCE.mean - TARGET.mean).square().sum() + SOURCE.covariance.trace() + TARGET.covariance.trace()
    close(theory.gaussian_entropic_cost(*LAWS, 1e6), independent, atol=1e-4, rtol=0)


def test_potentials_make_a_plan_with_the_right_marginals() -> None:
    """∫ exp((f(x) + g(y) − c)/ε) β(dy) is one constant for all x, and the same with x and y exchanged."""
    epsilon = 0.7
    (x, a), (y, b) = SOURCE.on_grid(40, 7.0), TARGET.on_grid(40, 7.0)
    f, g = exact_potential(SOURCE, TARGET, epsilon), exact_potential(TARGET, SOURCE, epsilon)
    at = (a > 1e-6).nonzero().squeeze(1)[::37], (b > 1e-6).nonzero().squeeze(1)[::37]
    cost = SquaredEuclidean()
    rows = torch.logsumexp(b.log() + (f(x[at[0]]).unsqueeze(1) + g(y) - cost(x[at[0]], y)) / epsilon, 1)
    columns = torch.logsumexp(a.log() + (g(y[at[1]]).unsqueeze(1) + f(x) - cost(y[at[1]], x)) / epsilon, 1)
    close(rows, rows[0].expand_as(rows), atol=1e-8)
    close(columns, rows[0].expand_as(columns), atol=1e-8)


def exact_potential(law: Gaussian, other: Gaussian, epsilon: float) -> Callable[[Tensor], Tensor]:
    form, slope = theory.gaussian_potential(law.mean, law.covariance, other.mean, other.covariance, epsilon)

    def potential(x: Tensor) -> Tensor:
        centred = x - law.mean
        return (centred @ form * centred).sum(-1) + 2 * centred @ slope

    return potential


def clouds(n: int = 14, m: int = 11) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cost = SquaredEuclidean()(normal(n, 2), normal(m, 2, seed=1) + 1).numpy()
    a, b = np.random.default_rng(0).uniform(0.5, 1.5, n), np.random.default_rng(1).uniform(0.5, 1.5, m)
    return cost, a / a.sum(), b / b.sum()


@pytest.mark.parametrize("epsilon", [0.02, 0.5, 10.0])
def test_newton_finds_the_plan(epsilon: float) -> None:
    cost, a, b = clouds()
    plan = theory.newton_plan(cost, a, b, epsilon)
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-12)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-12)
    found = sinkhorn(*map(torch.from_numpy, (cost, a, b)), epsilon=epsilon, tolerance=1e-12, annealing=0.5)
    np.testing.assert_allclose(found.plan.numpy(), plan, atol=1e-9)  # another algorithm for the same optimum


def test_exact_transport_is_a_linear_programme() -> None:
    cost, a, b = clouds(6, 5)
    constraints = np.vstack([np.kron(np.eye(6), np.ones(5)), np.kron(np.ones(6), np.eye(5))])
    found = optimize.linprog(cost.ravel(), A_eq=constraints, b_eq=np.concatenate([a, b]))
    assert theory.exact_cost(cost, a, b) == pytest.approx(found.fun, abs=1e-10)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0, 10.0])
def test_the_entropic_gap_is_within_its_bound(epsilon: float) -> None:
    cost, a, b = clouds()
    plan = theory.newton_plan(cost, a, b, epsilon)
    gap = np.sum(plan * cost) - theory.exact_cost(cost, a, b)
    assert -1e-10 < gap <= theory.entropic_gap(a, b, epsilon) <= epsilon * math.log(11) + 1e-12


def test_for_a_permutation_the_regularised_cost_reaches_the_bound() -> None:
    """Uniform weights, an optimal assignment well apart from the next: OT_ε = OT₀ + ε ln n, up to exp(−gap/ε)."""
    x = 4 * torch.arange(7, dtype=torch.float64).unsqueeze(1)
    found = sinkhorn(SquaredEuclidean()(x, x + 0.5), epsilon=0.2)
    assert float(found.dual) == pytest.approx(0.25 + 0.2 * math.log(7), abs=1e-9)
    assert float(found.transport_cost) == pytest.approx(0.25, abs=1e-9)


def test_knights_rate_on_a_grid_is_mehlers() -> None:
    (x, a), (y, b) = SOURCE.first().on_grid(60, 6.0), TARGET.first().on_grid(60, 6.0)
    cost = SquaredEuclidean()(x, y).numpy()
    for epsilon in (1.0, 4.0):
        rate = theory.knight_rate(cost, a.numpy(), b.numpy(), epsilon)
        assert theory.gaussian_rate(1.0, 0.4, epsilon) == pytest.approx(rate, abs=1e-6)


def test_birkhoffs_diameter_is_the_greatest_cross_ratio() -> None:
    cost, _, _ = clouds(5, 4)
    greatest = max(
        cost[i, k] + cost[j, n] - cost[j, k] - cost[i, n]
        for i in range(5)
        for j in range(5)
        for k in range(4)
        for n in range(4)
    )
    assert theory.birkhoff_rate(cost, 3.0) == pytest.approx(math.tanh(greatest / 12) ** 2, rel=1e-12)
    assert theory.knight_rate(*clouds(5, 4), 3.0) <= theory.birkhoff_rate(cost, 3.0)


@pytest.mark.parametrize("rho", [0.3, 0.9, 0.99])
def test_no_relaxation_is_faster_than_the_optimal_one(rho: float) -> None:
    def rate(omega: float) -> float:
        return float(np.abs(np.roots([1, 2 * (omega - 1) - omega**2 * rho, (omega - 1) ** 2])).max())

    best = theory.optimal_relaxation(rho)
    assert rate(best) == pytest.approx(best - 1, abs=1e-6)
    assert all(rate(omega) >= best - 1 - 1e-6 for omega in np.linspace(1, 1.99, 100))


# ----------------------------------------------------------------------------------------------------------------- data


def pair(**options: Any) -> GaussianPair:
    return GaussianPair(
        SOURCE, TARGET, **{"batch_size": 3, "points": 5, "support": 20, "grid": 40, "seed": 2, **options}
    )


def ready(data: GaussianPair, rank: int = 0, ranks: int = 1) -> GaussianPair:
    data.dtype, data.rank, data.world_size = torch.float64, rank, ranks
    data.setup()
    data.place(torch.device("cpu"))
    return data


def test_samples_are_of_the_two_laws_and_a_function_of_seed_and_step() -> None:
    data = ready(pair(batch_size=40, points=50))
    batches = list(data.block(4, 7).batches)
    again = next(iter(data.block(5, 6).batches))
    assert torch.equal(batches[1][0], again[0])
    assert not torch.equal(batches[0][0], batches[1][0])
    assert not torch.equal(
        next(iter(ready(pair(batch_size=40, points=50, seed=3)).block(4, 5).batches))[0], batches[0][0]
    )
    for side, law in ((0, SOURCE), (1, TARGET)):
        points = torch.cat([batch[side] for batch in batches]).reshape(-1, 2)
        error = (law.covariance.diagonal() / len(points)).sqrt()
        assert bool(((points.mean(0) - law.mean).abs() < SIGMAS * error).all())
        spread = (torch.cov(points.mT) - law.covariance).abs()
        assert float(spread.max()) < SIGMAS * 2 * float(law.covariance.max()) / len(points) ** 0.5
    x, y, weight = batches[0]
    assert weight == 1
    assert abs(float((x[:, 0] * x[:, 1]).mean())) < 0.1  # both clouds, and both sides, are independent
    assert abs(float(((x - SOURCE.mean) * (y - TARGET.mean)).mean())) < 0.1


def test_grids_integrate_what_the_laws_do() -> None:
    for law in (SOURCE, TARGET):
        points, weights = law.on_grid(40, 7.0)
        close(weights @ points, law.mean)
        centred = points - law.mean
        close(centred.mT @ (weights.unsqueeze(1) * centred), law.covariance, atol=1e-8)
    close(SOURCE.first().covariance, one(1.0))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Gaussian([0.0, 1.0], [[1.0, 0.0]]), r"covariance=.* must have 2 rows of 2 numbers"),
        (lambda: Gaussian([0.0, 1.0], [[1.0, 0.5], [0.4, 1.0]]), "must be symmetric and positive definite"),
        (lambda: Gaussian([0.0, 1.0], [[1.0, 2.0], [2.0, 1.0]]), "must be symmetric and positive definite"),
        (lambda: GaussianPair(SOURCE, Gaussian([0.0], [[1.0]])), "source has 2 dimensions and target 1"),
        (lambda: ready(pair(), 0, 4), "trainer.devices=4 is more than data.batch_size=3"),
    ],
)
def test_laws_that_are_none_are_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        make()


# ---------------------------------------------------------------------------------------------------------------- model

SOLVER = Sinkhorn(tolerance=1e-11)


def module(**options: Any) -> EntropicTransport:
    nets = {"source": Potential(2, 8), "target": Potential(2, 8, name="g"), "generator": AffineMap(2)}
    rest = {
        "cost": SquaredEuclidean(),
        "solver": SOLVER,
        "inner": SOLVER,
        "optimizer": partial(torch.optim.SGD, lr=0.1),
    }
    return EntropicTransport(**{**nets, **rest, **options}).double()


def test_the_dual_value_is_its_definition() -> None:
    f, g, cost = normal(4), normal(3, seed=1), normal(4, 3, seed=2).square()
    a, b = torch.arange(1, 5).double() / 10, torch.tensor([2.0, 3.0, 5.0]).double() / 10
    pairs = [(i, j) for i in range(4) for j in range(3)]
    terms = [(f[i] + g[j] - 0.7 * math.expm1((f[i] + g[j] - cost[i, j]) / 0.7)) for i, j in pairs]
    close(model.dual_value(f, g, cost, 0.7), sum(terms) / 12)  # type: ignore[arg-type]
    weighted = sum(a[i] * b[j] * term for (i, j), term in zip(pairs, terms, strict=True))
    close(model.dual_value(f, g, cost, 0.7, a, b), weighted)  # type: ignore[arg-type]


@pytest.mark.parametrize("debiased", [True, False])
def test_the_divergence_is_its_definition(debiased: bool) -> None:
    x, y = normal(3, 2, 6, 2), normal(3, 2, 6, 2, seed=1)
    cost = SquaredEuclidean()

    def value(u: Tensor, v: Tensor) -> Tensor:
        return sinkhorn(cost(u, v), epsilon=0.8, tolerance=1e-11).dual

    expected = torch.stack([value(x[:, i], y[:, j]) for i in (0, 1) for j in (0, 1)]).mean(0)
    expected = expected - 0.5 * value(x[:, 0], x[:, 1]) * debiased
    close(model.sinkhorn_divergence(x, y, cost, 0.8, SOLVER, debiased), expected, atol=1e-9)


def test_independent_clouds_are_stationary_at_the_truth_and_one_cloud_is_not() -> None:
    """d/ds of the mean loss at s = 1 for T(x) = sx, both laws N(0, 1): 0, unless one cloud is both arguments."""
    scale = torch.ones(6000, 1, 1, dtype=torch.float64, requires_grad=True)
    x, y = normal(6000, 2, 8, 1), normal(6000, 2, 8, 1, seed=1)
    moved, cost, solver = scale.unsqueeze(1) * x, SquaredEuclidean(), Sinkhorn(tolerance=1e-6)

    def slope(loss: Tensor) -> tuple[float, float]:
        each = torch.autograd.grad(loss.sum(), scale, retain_graph=True)[0].flatten()
        return float(each.mean()), float(each.std() / len(each) ** 0.5)

    mean, error = slope(model.sinkhorn_divergence(moved, y, cost, 2.0, solver))
    own = solver(cost(moved[:, 0], moved[:, 0]), epsilon=2.0).dual
    biased, biased_error = slope(solver(cost(moved[:, 0], y[:, 0]), epsilon=2.0).dual - 0.5 * own)
    assert abs(mean) < SIGMAS * error
    assert abs(biased) > 2 * SIGMAS * biased_error


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_mean_of_the_ranks_gradients_is_the_gradient(ranks: int) -> None:
    def gradient(rank: int, ranks: int) -> Tensor:
        net = module()
        batch = list(ready(pair(), rank, ranks).block(3, 5).batches)[1]
        net.objective(batch)[0].backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    close(sum(gradient(rank, ranks) for rank in range(ranks)) / ranks, gradient(0, 1), atol=1e-9)  # type: ignore[arg-type]


def test_the_objective_is_the_divergence_less_the_dual() -> None:
    net, (x, y, _) = module(epsilon=0.6), next(iter(ready(pair()).block(0, 1).batches))
    loss, logged = net.objective((x, y, 0.25))
    dual = model.dual_value(net.source(x), net.target(y), net.cost(x, y), 0.6).mean()
    divergence = model.sinkhorn_divergence(net.generator(x), y, net.cost, 0.6, SOLVER).mean()
    close(loss, 0.25 * (divergence - dual), atol=1e-9)
    close(logged["loss/potentials"], -0.25 * dual.detach())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": Potential(3)}, "model.source.d=3 must be 2"),
        ({"generator": AffineMap(1)}, "model.generator.d=1 must be 2"),
    ],
)
def test_nets_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        module(**options).check(ready(pair()))


def test_a_symmetric_map_is_positive_semidefinite() -> None:
    for seed in range(5):
        matrix = AffineMap(3, seed=seed).matrix.detach()
        assert torch.equal(matrix, matrix.mT)
        assert float(torch.linalg.eigvalsh(matrix).min()) >= -1e-6
    free = AffineMap(3, symmetric=False)
    assert free.matrix is free.factor


# --------------------------------------------------------------------------------------------------------------- claims


class Quadratic(nn.Module):
    """A potential in closed form."""

    def __init__(self, law: Gaussian, other: Gaussian, constant: float = 0.0) -> None:
        super().__init__()
        self.potential, self.constant = exact_potential(law, other, 1.0), constant

    def forward(self, x: Tensor) -> Tensor:
        return self.potential(x) + self.constant


@pytest.fixture(scope="module")
def data() -> GaussianPair:
    return ready(pair(support=40, grid=160))


@pytest.fixture
def exact(data: GaussianPair) -> SimpleNamespace:
    """A run whose nets are at their optimum."""
    generator = AffineMap(2).double()
    matrix, shift = theory.monge_map(*LAWS)
    with torch.no_grad():
        generator.factor.copy_(theory.root(matrix))
        generator.shift.copy_(shift)
    source, target = Quadratic(SOURCE, TARGET), Quadratic(TARGET, SOURCE)
    (x, a), (y, b) = SOURCE.on_grid(40, 6.0), TARGET.on_grid(40, 6.0)
    mass = a @ ((source(x).unsqueeze(1) + target(y) - SquaredEuclidean()(x, y)).exp() @ b)
    source.constant = -float(mass.log())
    solver = Sinkhorn(tolerance=1e-11, annealing=0.5)
    made = {"source": source, "target": target, "generator": generator, "cost": SquaredEuclidean()}
    return SimpleNamespace(**made, solver=solver, epsilon=1.0, relaxation=1.0)


CLAIMS: dict[str, Claim] = {
    "gaussian_cost": claims.GaussianCost([0.3, 3.0]),
    "potentials_value": claims.PotentialsValue(1.0),
    "duality": claims.Duality([0.3, 3.0]),
    "marginals": claims.Marginals([0.3, 3.0]),
    "entropic_gap": claims.EntropicGap([0.05, 1.0]),
    "not_below_exact": claims.NotBelowExact([0.05, 1.0]),
    "knight_rate": rates.KnightRate([0.5, 2.0]),
    "gaussian_rate": rates.GaussianRate([0.5, 2.0]),
    "birkhoff_rate": rates.BirkhoffRate([8.0, 32.0]),
    "monge_map": claims.MongeMap(),
    "wasserstein": claims.Wasserstein(),
    "no_better_matching": claims.NoBetterMatching(60),
}


def judged(name: str, net: SimpleNamespace, data: GaussianPair) -> Evidence:
    return judge(name, CLAIMS[name], Run(net, data))


@pytest.mark.parametrize("name", CLAIMS)
def test_the_exact_solution_holds(name: str, exact: SimpleNamespace, data: GaussianPair) -> None:
    e = judged(name, exact, data)
    assert e.judged.holds
    if name in ("potentials_value", "monge_map", "wasserstein"):
        assert e.judged.difference < 1e-7


@pytest.mark.parametrize(
    ("what", "wrong", "refuted"),
    [
        (
            "gaussian_entropic_cost",
            lambda *given: theory.bures_wasserstein(*given[:4]),
            ["gaussian_cost", "potentials_value"],
        ),
        ("entropic_gap", lambda a, b, epsilon: 0.0, ["entropic_gap"]),
        ("exact_cost", lambda cost, a, b: float((cost * np.outer(a, b)).sum()), ["not_below_exact"]),
        ("newton_plan", lambda cost, a, b, epsilon: np.outer(a, b) * (1 + 0.1 * np.eye(*cost.shape)), ["knight_rate"]),
        ("gaussian_rate", lambda a, b, epsilon: a * b / (a * b + epsilon), ["gaussian_rate"]),
        ("birkhoff_rate", lambda cost, epsilon: math.tanh(1 / epsilon) ** 4, ["birkhoff_rate"]),
        ("monge_map", lambda m, a, n, b: (theory.root(b) @ torch.linalg.inv(theory.root(a)), n - m), ["monge_map"]),
        (
            "bures_wasserstein",
            lambda m, a, n, b: (m - n).square().sum() + (theory.root(a) - theory.root(b)).square().sum(),
            ["wasserstein"],
        ),
    ],
)
def test_a_wrong_formula_is_refuted(
    what: str,
    wrong: Any,
    refuted: list[str],
    exact: SimpleNamespace,
    data: GaussianPair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(theory, what, wrong)
    for name in refuted:
        assert not judged(name, exact, data).judged.holds, name


def test_few_iterations_are_refuted(exact: SimpleNamespace, data: GaussianPair) -> None:
    exact.solver = Sinkhorn(annealing=0.5, max_iterations=1)
    for name in ("gaussian_cost", "duality", "marginals", "not_below_exact"):
        assert not judged(name, exact, data).judged.holds, name


def test_what_potentials_miss_is_the_divergence_of_their_plan(exact: SimpleNamespace, data: GaussianPair) -> None:
    """OT_ε − D(f, g) = ε KL(P‖P_fg): shifting f by t makes it e^{t/ε} − 1 − t/ε times ε."""
    before = float(judged("potentials_value", exact, data).measured.value)
    exact.source.constant += 0.3
    after = float(judged("potentials_value", exact, data).measured.value)
    assert before - after == pytest.approx(math.expm1(0.3) - 0.3, abs=1e-8)


def test_a_map_that_turns_is_refuted(exact: SimpleNamespace, data: GaussianPair) -> None:
    exact.generator = AffineMap(2, symmetric=False).double()
    with torch.no_grad():
        turned = theory.root(TARGET.covariance) @ torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()
        exact.generator.factor.copy_(turned @ torch.linalg.inv(theory.root(SOURCE.covariance)))
        exact.generator.shift.copy_(TARGET.mean)
    close(exact.generator.matrix @ SOURCE.covariance @ exact.generator.matrix.mT, TARGET.covariance)
    for name in ("monge_map", "wasserstein", "no_better_matching"):
        assert not judged(name, exact, data).judged.holds, name


def test_relaxation_is_measured_as_it_is_set(exact: SimpleNamespace, data: GaussianPair) -> None:
    rho = theory.gaussian_rate(1.0, 0.4, 1.0)
    exact.relaxation = theory.optimal_relaxation(rho) - 0.05
    measured = rates.GaussianRate([1.0]).measure(Run(exact, data)).value
    roots = np.roots([1, 2 * (exact.relaxation - 1) - exact.relaxation**2 * rho, (exact.relaxation - 1) ** 2])
    assert float(np.ravel(measured)[0]) == pytest.approx(roots.max(), abs=1e-3)
    assert not judged("gaussian_rate", exact, data).judged.holds


def test_the_sweep_is_argued_by_theory() -> None:
    """The optimum that conf/sweep/over_relaxation.yaml states is ω* of the rate of Gaussians, at its ε."""
    sweep = yaml.safe_load((paths.CONF / "sweep" / "over_relaxation.yaml").read_text(encoding="utf-8"))["hydra"][
        "sweeper"
    ]
    [epsilon] = yaml.safe_load(sweep["params"]["claims.gaussian_rate.epsilons"])
    source, target = (float(law.first().covariance) for law in (SOURCE, TARGET))
    best = theory.optimal_relaxation(theory.gaussian_rate(source, target, epsilon))
    assert sweep["optimum"]["model.relaxation"] == pytest.approx(best, abs=5e-5)


def test_a_start_that_misses_the_slowest_mode_does_not_hide_it(exact: SimpleNamespace) -> None:
    """With this seed the steps from g = 0 have so little of it that at ε = 2 they still shrink by the next rate."""
    data = ready(pair(support=80, seed=23))
    claim, run = rates.KnightRate([2.0]), Run(exact, data)
    predicted = float(np.ravel(claim.predict(data).value)[0])
    assert claim.rate(run, data.clouds, 2.0) < 0.9 * predicted
    assert judge("knight_rate", claim, run).judged.difference < 1e-5 * predicted


def test_another_epsilon_than_the_models_is_refused(exact: SimpleNamespace, data: GaussianPair) -> None:
    with pytest.raises(Refusal, match=r"epsilon=2.0 must equal model.epsilon=1.0"):
        claims.PotentialsValue(2.0).check(data, exact)  # type: ignore[arg-type]
