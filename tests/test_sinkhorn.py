"""Sinkhorn's algorithm against POT and its optimality conditions, its derivatives against others' and differences."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.algorithms import clouds, newton
from lab.algorithms import scaling as scaling_form
from lab.algorithms import sinkhorn as sinkhorn_module
from lab.algorithms.conjugate import conjugate_gradients
from lab.algorithms.costs import SquaredEuclidean
from lab.algorithms.implicit import solve
from lab.algorithms.relaxation import Relaxation, optimal
from lab.algorithms.sinkhorn import LogDomain, Sinkhorn, iterates, sinkhorn
from lab.algorithms.transport import Transport, rounded

pytestmark = pytest.mark.usefixtures("one_thread")

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
METHODS = ("scaling", "log")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2
    return drawn / drawn.sum(-1, keepdim=True)


def problem(*batch: int, n: int = 30, m: int = 20, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Costs between random points of the plane, and weights."""
    cost = SquaredEuclidean()(normal(*batch, n, 2, seed=seed), normal(*batch, m, 2, seed=seed + 1) + 0.5)
    return cost, weights(*batch, n, seed=seed), weights(*batch, m, seed=seed + 1)


def error(transport: Transport) -> Tensor:
    plan = transport.plan
    return (plan.sum(-1) - transport.a).abs().sum(-1) + (plan.sum(-2) - transport.b).abs().sum(-1)


# ------------------------------------------------------------------------------------------------------------- solution


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epsilon", [5.0, 0.5, 0.1])
def test_plan_and_value_are_those_of_pot(method: Any, epsilon: float) -> None:
    import ot

    cost, a, b = problem(n=60, m=45)
    found = sinkhorn(cost, a, b, epsilon=epsilon, tolerance=1e-12, method=method)
    arrays = (a.numpy(), b.numpy(), cost.numpy())
    plan = ot.bregman.sinkhorn_log(*arrays, epsilon, stopThr=1e-14, numItermax=200_000)
    np.testing.assert_allclose(found.plan.numpy(), plan, rtol=0, atol=1e-9)
    value = np.sum(plan * arrays[2]) + epsilon * np.sum(plan * np.log(plan / np.outer(*arrays[:2])))
    assert float(found.dual) == pytest.approx(value, abs=1e-9)
    assert float(found.transport_cost) == pytest.approx(np.sum(plan * arrays[2]), abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("relaxation", [None, 1.0, 1.3])
@pytest.mark.parametrize("annealing", [None, 0.5])
def test_every_way_ends_at_the_same_potentials(method: Any, relaxation: float | None, annealing: float | None) -> None:
    cost, a, b = problem()
    options = {"method": method, "relaxation": relaxation, "annealing": annealing}
    found = sinkhorn(cost, a, b, epsilon=0.3, tolerance=1e-12, **options)
    plain = sinkhorn(cost, a, b, epsilon=0.3, tolerance=1e-13, method="log", relaxation=1.0)
    close(found.f, plain.f)
    close(found.g, plain.g)
    close((a * found.f).sum(), (b * found.g).sum())
    assert float(error(found)) <= 1.1e-12
    close(error(found), found.error, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cost_scale", [1.0, 1e3, 1e6])
def test_a_small_epsilon_neither_overflows_nor_underflows(method: Any, cost_scale: float) -> None:
    """Up to costs of 2000ε, of which float64 has no exponential, and an offset that changes nothing."""
    cost, a, b = problem(n=12, m=12, seed=5)
    epsilon = 0.01 * cost_scale
    found = sinkhorn(
        cost * cost_scale + 7 * cost_scale, a, b, epsilon=epsilon, annealing=0.5, tolerance=1e-8, method=method
    )
    assert float(error(found)) < 2e-8
    close(found.primal / cost_scale, found.dual / cost_scale, atol=1e-7, rtol=0)


def test_absorption_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cost, a, b = problem()
    expected = sinkhorn(cost, a, b, epsilon=0.1, tolerance=1e-12)
    monkeypatch.setattr(scaling_form, "REACH", 0.1)
    monkeypatch.setattr(scaling_form, "BLOCK", 1000)  # and no more does reading the matrix in blocks
    found = sinkhorn(cost, a, b, epsilon=0.1, tolerance=1e-12)
    close(found.f, expected.f)
    close(found.g, expected.g)


@pytest.mark.parametrize("method", METHODS)
def test_a_problem_is_solved_as_if_it_were_alone(method: Any) -> None:
    cost, a, b = problem(2, 3)
    cost[1, 2] *= 5  # needs more iterations than the others
    options: dict[str, Any] = {"epsilon": 0.5, "tolerance": 1e-12, "method": method, "relaxation": 1.2}
    together = sinkhorn(cost, a, b, **options)
    for i in range(2):
        for j in range(3):
            alone = sinkhorn(cost[i, j], a[i, j], b[i, j], **options)
            close(together.f[i, j], alone.f, atol=1e-9)  # both to the tolerance; float32 adds in another order
            assert abs(int(together.iterations[i, j]) - int(alone.iterations)) <= 3 * (method == "scaling")
    assert together.iterations[1, 2] == together.iterations.max() > together.iterations.min()


@pytest.mark.parametrize("method", METHODS)
def test_a_problem_in_float32_does_not_depend_on_who_is_beside_it(method: Any) -> None:
    """A problem that needs another start than its neighbour leaves that where it is."""
    cost, a, b = (t.float() for t in problem(2))
    beside = cost.clone()
    beside[1] *= 40
    options: dict[str, Any] = {"epsilon": 0.5, "tolerance": 1e-3, "method": method}
    torch.testing.assert_close(sinkhorn(beside, a, b, **options).f[0], sinkhorn(cost, a, b, **options).f[0])


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_around_it_changes_nothing(method: Any) -> None:
    cost, a, b = (t.float() for t in problem())
    options: dict[str, Any] = {"epsilon": 0.5, "tolerance": 1e-5, "method": method}
    plain = sinkhorn(cost, a, b, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = sinkhorn(cost, a, b, **options)
    assert torch.equal(within.f, plain.f)
    assert torch.equal(within.iterations, plain.iterations)


def test_the_derivative_is_the_same_within_autocast() -> None:
    cost, a, b = (t.float() for t in problem())
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        c, w = cost.clone().requires_grad_(), a.clone().requires_grad_()
        found = sinkhorn(c, w, b, epsilon=0.5, tolerance=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            gradients.append(torch.autograd.grad((found.f * w).sum(), (c, w)))
    assert all(torch.equal(plain, within) for plain, within in zip(*gradients, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_errors_that_are_looked_at_seldom_change_nothing(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: up to seven iterations more."""
    cost, a, b = problem(2)
    options: dict[str, Any] = {"epsilon": 0.3, "tolerance": 1e-11, "method": method}
    often = sinkhorn(cost, a, b, **options)
    monkeypatch.setitem(sinkhorn_module.LOOK, "cpu", 8)
    seldom = sinkhorn(cost, a, b, **options)
    assert float(error(seldom).max()) <= 1.1e-11
    assert bool((seldom.iterations % 8 == 0).all())
    close(seldom.f, often.f, atol=1e-9)


@pytest.mark.parametrize("n", [1500, 3000])
def test_a_large_matrix_is_worked_through_in_blocks(n: int) -> None:
    """In float32 of 9 MB at once, and of 36 MB in blocks of rows: what comes out are the marginals."""
    x, y = normal(n, 2), normal(n, 2, seed=1)
    found = sinkhorn(SquaredEuclidean()(x, y), epsilon=2.0)
    assert float(found.error) <= 1e-9
    close(found.plan.sum(0), torch.full_like(found.b, 1 / n), atol=1e-9)
    close(found.plan[::97], found._plan(found.f, found.g)[::97], atol=1e-15, rtol=1e-9)


@pytest.mark.parametrize("reach", [scaling_form.REACH, 0.1])
def test_newtons_steps_end_where_sinkhorns_do(reach: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a matrix that was kept or, where it was absorbed into, from the cost: and with fewer products."""
    monkeypatch.setattr(scaling_form, "REACH", reach)
    monkeypatch.setattr(sinkhorn_module, "LARGE", 0)
    cost, a, b = problem(n=60, m=40)
    found = sinkhorn(cost, a, b, epsilon=0.2, tolerance=1e-12)
    close(found.plan, found._plan(found.f, found.g), atol=1e-15)
    monkeypatch.setattr(newton, "STEPS", 0)
    expected = sinkhorn(cost, a, b, epsilon=0.2, tolerance=1e-12)
    close(found.f, expected.f, atol=1e-10)
    close(found.g, expected.g, atol=1e-10)
    assert float(error(found)) <= 1e-12 >= float(found.error)
    assert int(found.iterations) < int(expected.iterations)


def test_newtons_method_squares_its_error() -> None:
    """From 1e-2 to 1e-12 in four steps, and what it began from is as it was."""
    cost, a, b = problem(n=60, m=40)
    scaling = scaling_form.Scaling(cost, a, b, 0.3, torch.zeros_like(a), torch.zeros_like(b), torch.float32, keep=True)
    while float(scaling.rows(1.0)) > 1e-2:
        scaling.columns(1.0)
    before = scaling.u.clone(), scaling.v.clone()
    ended = newton.polished(scaling, a, b, 1e-12, 1000, 1)
    assert ended.plan is not None
    assert ended.error <= 1e-12
    close(ended.plan.sum(-1), a, atol=1e-15)
    assert torch.equal(scaling.u, before[0])
    assert torch.equal(scaling.v, before[1])


def line(reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Two Gaussians on a grid so wide that weights at its ends are next to nothing."""
    x = torch.linspace(-reach, reach, 120, dtype=torch.float64)
    a, b = (-(x**2) / 2).exp(), (-((x - 0.5) ** 2) / 2).exp()
    return SquaredEuclidean()(x.unsqueeze(-1), x.unsqueeze(-1)), a / a.sum(), b / b.sum()


@pytest.mark.parametrize("reach", [12.0, 13.5, 16.0, 24.0])
def test_weights_that_float32_does_not_know_are_weights(reach: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 12 the least are 1e-32, at 13.5 below what float32 knows, at 16 denormal there, at 24 zero."""
    monkeypatch.setattr(sinkhorn_module, "LARGE", 0)
    found = sinkhorn(*line(reach), epsilon=1.0, max_iterations=100)
    assert float(error(found)) <= 1.01e-9
    assert float(found.error) <= 1e-9


@pytest.mark.parametrize(("seed", "epsilon", "tries"), [(1, 0.1, 1), (5, 0.02, 0), (1, 1.0, 1)])
def test_what_newton_cannot_solve_sinkhorn_goes_on_with(
    seed: int, epsilon: float, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of all sizes, of which float32 knows too little. Where that has come nowhere near it is not tried."""
    cost, a, b = problem(n=40, m=30, seed=seed)
    a, b = (w**8 / (w**8).sum() for w in (a - 0.19 * a.min(), b - 0.19 * b.min()))
    ends: list[Any] = []

    def watched(*arguments: Any) -> Any:
        ends.append(newton.polished(*arguments))
        return ends[-1]

    monkeypatch.setattr(sinkhorn_module, "polished", watched)
    monkeypatch.setattr(sinkhorn_module, "LARGE", 0)
    monkeypatch.setattr(newton, "PART", 1e-12)  # it asks of float32 what that cannot give
    monkeypatch.setattr(newton, "STEPS", 1)
    found = sinkhorn(cost, a, b, epsilon=epsilon, tolerance=1e-13)
    assert [end.plan for end in ends] == [None] * tries
    assert sum(end.made for end in ends) <= max(sinkhorn_module.TRIED, int(found.iterations) / 2)
    assert float(found.error) <= 1e-13
    close(found.plan, found._plan(found.f, found.g), atol=1e-14)


def test_what_newton_has_reached_is_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Towards a goal that is finer than float64 resolves, with too few iterations left for Sinkhorn's own way there."""
    monkeypatch.setattr(sinkhorn_module, "LARGE", 0)
    options: dict[str, Any] = {"epsilon": 0.05, "tolerance": 1e-15, "max_iterations": 300}
    found = sinkhorn(*problem(n=60, m=40, seed=2), **options)
    monkeypatch.setattr(newton, "STEPS", 0)
    assert float(found.error) < 0.1 * float(sinkhorn(*problem(n=60, m=40, seed=2), **options).error)


@pytest.mark.parametrize("offset", [20.0, 40.0, 55.0, -40.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_a_step_that_is_relaxed_by_much_does_not_overflow(offset: float, dtype: Any, tolerance: float) -> None:
    cost, a, b = (t.to(dtype) for t in problem(n=20))
    found = sinkhorn(cost + offset, a, b, epsilon=1.0, relaxation=1.9, tolerance=tolerance, max_iterations=600)
    assert float(found.error) <= tolerance


def test_conjugate_gradients_stop_where_they_are_told() -> None:
    q = normal(9, 9)
    q = q / (1.1 * torch.linalg.matrix_norm(q, 2))
    right, root = normal(9, seed=1), torch.zeros(9, dtype=torch.float64)
    root[0], q[:, 0], q[0] = 1, 0, 0
    right[0] = 0

    def solved(goal: float, most: int, every: int = 1) -> tuple[float, int]:
        x, made = conjugate_gradients(lambda x: q.T @ (q @ x), right, root, torch.tensor([goal]), most, every)
        return float((right - x + q.T @ (q @ x)).norm()), made

    left, steps = solved(1e-3, 100)
    assert left <= 1e-3 < solved(0.0, steps - 1)[0]
    assert solved(1e-3, 100, every=4)[1] == 4 * math.ceil(steps / 4)
    assert solved(0.0, 3)[1] == 3
    assert solved(1e-12, 100)[0] <= 1e-12
    assert conjugate_gradients(lambda x: x * math.nan, right, root, torch.tensor([1e-12]), 100)[1] == 1


def test_weights_are_uniform_by_default_and_shared_by_a_batch() -> None:
    cost, a, b = problem(3)
    even = torch.full_like(a, 1 / 30)
    close(sinkhorn(cost, epsilon=1.0).f, sinkhorn(cost, even, torch.full_like(b[0], 0.05), epsilon=1.0).f)
    options: dict[str, Any] = {"epsilon": 1.0, "tolerance": 1e-12}
    close(sinkhorn(cost, a[0], b[0], **options).f[2], sinkhorn(cost[2], a[0], b[0], **options).f)


def test_a_point_without_weight_takes_no_mass() -> None:
    cost, a, b = problem()
    a = torch.cat([a, a.new_zeros(1)])
    cost = torch.cat([cost, cost.new_full((1, 20), 9.0)])
    for method in METHODS:
        found = sinkhorn(cost, a, b, epsilon=0.5, method=method)  # type: ignore[arg-type]
        assert float(found.plan[-1].abs().sum()) == 0
        close(found.plan[:-1], sinkhorn(cost[:-1], a[:-1], b, epsilon=0.5).plan, atol=1e-9)
        assert bool(found.primal.isfinite())


@pytest.mark.parametrize("method", METHODS)
def test_float32_ends_where_it_resolves(method: Any) -> None:
    cost, a, b = problem(n=200, m=150)
    found = sinkhorn(cost.float(), a.float(), b.float(), epsilon=0.5, tolerance=1e-5, method=method)
    assert found.f.dtype == torch.float32
    assert float(found.error) <= 1e-5
    exact = sinkhorn(cost, a, b, epsilon=0.5).dual
    torch.testing.assert_close(found.dual.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_start_near_by_saves_iterations() -> None:
    cost, a, b = problem()
    cold = sinkhorn(cost, a, b, epsilon=0.2)
    warm = sinkhorn(cost * 1.001, a, b, epsilon=0.2, start=(cold.f, cold.g))
    again = sinkhorn(cost, a, b, epsilon=0.2, start=(cold.f, cold.g))
    assert int(again.iterations) <= 3 < int(warm.iterations) < int(cold.iterations)
    close(again.f, cold.f, atol=1e-8)


def test_it_stops_where_it_is_told() -> None:
    cost, a, b = problem()
    for method in METHODS:
        found = sinkhorn(cost, a, b, epsilon=0.1, max_iterations=5, method=method)  # type: ignore[arg-type]
        assert int(found.iterations) == 5
        assert float(found.error) > 1e-3
        close(error(found), found.error)


def test_the_duality_gap_is_a_certificate() -> None:
    """However few the iterations, primal and dual enclose the value."""
    cost, a, b = problem()
    value = float(sinkhorn(cost, a, b, epsilon=0.1, tolerance=1e-13).dual)
    for iterations in (1, 3, 10, 30):
        found = sinkhorn(cost, a, b, epsilon=0.1, max_iterations=iterations)
        assert float(found.dual) < value + 1e-12 < float(found.primal) + 2e-12


def test_rounding_keeps_what_is_right() -> None:
    _, a, b = problem(4)
    plan = a.unsqueeze(-1) * b.unsqueeze(-2)
    close(rounded(plan, a, b), plan)
    wrong = plan * (1 + 0.3 * normal(4, 30, 20).clamp(-2, 2))
    right = rounded(wrong, a, b)
    close(right.sum(-1), a)
    close(right.sum(-2), b)
    assert float(right.min()) >= 0
    moved = (right - wrong).abs().sum((-2, -1))
    assert bool((moved <= 2 * ((wrong.sum(-1) - a).abs().sum(-1) + (wrong.sum(-2) - b).abs().sum(-1))).all())


def test_potentials_that_outgrow_float32_are_absorbed_before_they_count() -> None:
    """Nearly all mass has to go where exp(−C/ε) is least: with what stood there for it the marginals were right too."""
    cost, w = torch.tensor([[0.0, 80.0], [80.0, 240.0]]), torch.tensor([1e-6, 1 - 1e-6])
    found = sinkhorn(cost.requires_grad_(), w, w, epsilon=1.0, tolerance=1e-4)
    plain = sinkhorn(cost.detach().double(), *(2 * [w.double() / w.double().sum()]), epsilon=1.0, method="log")
    close(found.dual.double(), plain.dual, atol=1e-3)
    (gradient,) = torch.autograd.grad(found.dual, cost)
    close(gradient.double(), plain.plan, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (2, 3), (4, 3)])
def test_lines_without_mass_are_no_harm_however_far_they_are(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Costs up to 1000 ε, a row and a column of weight 0: errors are the plan's, and the value is right."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        cost = 100 * torch.randint(0, 11, shape, generator=generator).to(dtype)
        a, b = torch.ones(shape[0], dtype=dtype), torch.ones(shape[1], dtype=dtype)
        a[0], b[-1] = seed % 2, 0
        a, b = a / a.sum(), b / b.sum()
        for most in (1, 2, 3, 200):
            found = sinkhorn(cost, a, b, epsilon=1.0, max_iterations=most, tolerance=1e-5)
            close(error(found), found.error, atol=2e-5)
        if float(found.error) <= 1e-5:
            plain = sinkhorn(cost, a, b, epsilon=1.0, max_iterations=2000, tolerance=1e-5, method="log")
            close(found.dual, plain.dual, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("far", [0.0, 1000.0])
@pytest.mark.parametrize("value", ["dual", "primal", "transport_cost"])
def test_lines_without_mass_leave_derivatives_numbers(value: str, far: float) -> None:
    cost = torch.tensor([[1.0, 2.0, far], [2.0, 1.0, far], [far, far, 0.0]], dtype=torch.float64)
    a, b = (torch.tensor(w, dtype=torch.float64) for w in ([0.4, 0.6, 0.0], [0.5, 0.5, 0.0]))
    inputs = cost, a, b
    found = sinkhorn(*(t.requires_grad_() for t in inputs), epsilon=1.0)
    gradients = torch.autograd.grad(getattr(found, value), inputs)
    less = [t[:2, :2] if t.dim() == 2 else t[:2] for t in (t.detach().clone() for t in inputs)]
    plain = sinkhorn(*(t.requires_grad_() for t in less), epsilon=1.0)
    expected = torch.autograd.grad(getattr(plain, value), less)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    close(gradients[0][:2, :2], expected[0], atol=1e-8)
    close(gradients[1][:2].diff(), expected[1].diff(), atol=1e-8)
    close(gradients[2][:2].diff(), expected[2].diff(), atol=1e-8)


def test_an_error_that_rests_on_entries_out_of_reach_is_not_accepted() -> None:
    """One row is so far that its scale outgrows float32 in the half step that is looked at."""
    cost, a, b = (t.float() for t in problem(n=20, m=15))
    cost[0] += 20.0
    scaling = scaling_form.Scaling(cost, a, b, 0.5, torch.zeros_like(a), torch.zeros_like(b), torch.float32)
    loop = sinkhorn_module.Loop(a, 50, None)
    loop.run(scaling, 10.0, last=True)
    assert not scaling.grown
    assert loop.made == [2]


def test_a_problem_that_is_lost_does_not_keep_the_others_of_its_batch() -> None:
    """One that begins from what is no number, beside one that is at its goal after a few iterations."""
    cost, a, b = (t.float() for t in problem(2))
    options: dict[str, Any] = {"epsilon": 1.0, "tolerance": 1e-5, "max_iterations": 50}
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    alone = sinkhorn(cost[0], a[0], b[0], start=(f[0], g[0]), **options)
    f[1] = math.nan
    found = sinkhorn(cost, a, b, start=(f, g), **options)
    assert found.error.isfinite().tolist() == [True, False]
    assert int(found.iterations[0]) == int(alone.iterations)
    close(found.f[0], alone.f, atol=1e-5)


@pytest.mark.parametrize("entry", [math.nan, math.inf, -math.inf])
def test_a_cost_that_is_not_finite_anywhere_is_refused(entry: float) -> None:
    cost, a, b = problem()
    cost[17, 11] = entry
    with pytest.raises(ValueError, match="cost must be finite"):
        sinkhorn(cost, a, b, epsilon=100.0)


@pytest.mark.parametrize("hidden", [0.0, 300.0, -300.0])
def test_a_cost_out_of_reach_is_found_in_the_matrix(hidden: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lines through it show nothing, and so it is looked for in the exponentials."""
    cost, a, b = problem()
    cost /= cost.max()
    cost[0, 0], cost[3, 0] = 2.0, 3.0  # the three lines are row 0, column 0 and row 3
    cost[7:9, 5:9] += hidden
    settled, looks = scaling_form.settled, []
    monkeypatch.setattr(sinkhorn_module, "settled", lambda *given: (looks.append(0), settled(*given))[1])
    assert not scaling_form.far(cost, 60.0)
    found = sinkhorn(cost, a, b, epsilon=1.0)
    assert len(looks) == (hidden != 0)
    close(found.plan, sinkhorn(cost, a, b, epsilon=1.0, method="log").plan, atol=1e-9)
    assert scaling_form.far(cost, 2.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0 must be above 0"),
        ({"epsilon": 1.0, "tolerance": 1e-17}, "tolerance=1e-17 must be at least 9e-16, what torch.float64 resolves"),
        ({"epsilon": 1.0, "max_iterations": 0}, "max_iterations=0 must be at least 1"),
        ({"epsilon": 1.0, "relaxation": 2.0}, "relaxation=2.0 must be between 0 and 2"),
        ({"epsilon": 1.0, "annealing": 1.0}, "annealing=1.0 must be between 0 and 1"),
        ({"epsilon": 1.0, "method": "fast"}, "method=fast must be one of scaling, log"),
        ({"epsilon": 1.0, "a": torch.ones(7)}, r"a must have 30 weights for a cost of shape \[30, 20\], not \[7\]"),
        ({"epsilon": 1.0, "b": torch.ones(20)}, "b must sum to 1 within the tolerance 1e-09, but is 1.9e.01 away"),
        ({"epsilon": 1.0, "a": -weights(30)}, "a must not be negative"),
        ({"epsilon": 1.0, "cost": torch.full((30, 20), math.nan).double()}, "cost must be finite"),
        (
            {"epsilon": 1.0, "cost": torch.ones(30)},
            r"cost must be \(..., n, m\) in float32 or float64, not torch.float32 of shape \[30\]",
        ),
        ({"epsilon": 1.0, "cost": torch.ones(30, 0)}, r"cost must not be empty, but is of shape \[30, 0\]"),
        ({"epsilon": 1.0, "cost": torch.ones(0, 30, 20)}, r"cost must not be empty, but is of shape \[0, 30, 20\]"),
    ],
)
def test_what_is_no_problem_is_refused(options: dict[str, Any], said: str) -> None:
    cost, a, b = problem()
    with pytest.raises(ValueError, match=said):
        sinkhorn(**{"cost": cost, "a": a, "b": b, **options})


def test_the_algorithm_as_an_object_is_the_function() -> None:
    """Its defaults are the function's, and the least tolerances that it and a run allow are what a number resolves."""
    cost, a, b = problem()
    options: dict[str, Any] = {"max_iterations": 7, "relaxation": 1.2, "annealing": 0.5, "method": "log"}
    assert torch.equal(Sinkhorn(**options)(cost, a, b, epsilon=0.2).f, sinkhorn(cost, a, b, epsilon=0.2, **options).f)
    defaults = {name: p.default for name, p in inspect.signature(sinkhorn).parameters.items()}
    assert asdict(Sinkhorn()) == {name: defaults[name] for name in asdict(Sinkhorn())}
    Sinkhorn(tolerance=1e-15, max_iterations=1)(cost, a, b, epsilon=1.0)
    Sinkhorn(tolerance=5e-7, max_iterations=1)(cost.float(), a.float(), b.float(), epsilon=1.0)


# ---------------------------------------------------------------------------------------------------------- derivatives


def functions() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Of potentials, plan and values, each invariant under (f + t, g − t)."""
    u, v, w = normal(12, seed=8), normal(9, seed=9), normal(12, 9, seed=10)
    v = v + (u.sum() - v.sum()) / 9

    def of(what: Callable[[Transport], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda *given: what(sinkhorn(*given, epsilon=0.7, tolerance=1e-13))

    return {
        "potentials": of(lambda t: u @ t.f + v @ t.g),
        "gauged": of(lambda t: u @ t.f.square() + (v @ t.g).exp()),
        "plan": of(lambda t: (w * t.plan).sum()),
        "cost": of(lambda t: t.transport_cost),
        "dual": of(lambda t: t.dual),
        "primal": of(lambda t: t.primal),
    }


def small() -> tuple[Tensor, Tensor, Tensor]:
    cost, a, b = problem(n=12, m=9, seed=3)
    return tuple(t.requires_grad_() for t in (cost, a, b))  # type: ignore[return-value]


def on_simplex(gradient: Tensor) -> Tensor:
    """Weights sum to 1, so only differences of their gradient mean anything."""
    return gradient - gradient.mean()


@pytest.mark.parametrize("name", functions())
def test_implicit_derivatives_are_finite_differences(name: str) -> None:
    function, given = functions()[name], small()
    gradients = torch.autograd.grad(function(*given), given)
    for place in range(3):
        direction = normal(*given[place].shape, seed=20 + place)
        if place:
            direction = 0.02 * (direction - direction.mean())
        h = 1e-5
        ends = []
        for sign in (1, -1):
            moved = [t.detach() for t in given]
            moved[place] = moved[place] + sign * h * direction
            ends.append(float(function(*moved)))
        slope = (ends[0] - ends[1]) / (2 * h)
        assert float((gradients[place] * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", functions())
def test_implicit_derivatives_are_those_of_the_unrolled_iteration(name: str) -> None:
    given = small()
    cost, a, b = given
    implicit = torch.autograd.grad(functions()[name](*given), given)
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(400):  # autograd through every step
        f = -0.7 * ((g / 0.7 + b.log()).unsqueeze(-2) - cost / 0.7).logsumexp(-1)
        g = -0.7 * ((f / 0.7 + a.log()).unsqueeze(-2) - cost.mT / 0.7).logsumexp(-1)
    t = ((a * f).sum() - (b * g).sum()) / 2
    unrolled = Transport(cost, a, b, 0.7, f - t, g + t, torch.tensor(400), torch.tensor(0.0))
    u, v, w = normal(12, seed=8), normal(9, seed=9), normal(12, 9, seed=10)
    v = v + (u.sum() - v.sum()) / 9
    value = {
        "potentials": lambda: u @ unrolled.f + v @ unrolled.g,
        "gauged": lambda: u @ unrolled.f.square() + (v @ unrolled.g).exp(),
        "plan": (w * unrolled.plan).sum,
        "cost": lambda: unrolled.transport_cost,
        "dual": lambda: (a * unrolled.f).sum() + (b * unrolled.g).sum(),
        "primal": lambda: unrolled.primal,
    }[name]()
    expected = torch.autograd.grad(value, given)
    close(implicit[0], expected[0], atol=1e-8, rtol=1e-7)
    for mine, theirs in zip(implicit[1:], expected[1:], strict=True):
        close(on_simplex(mine), on_simplex(theirs), atol=1e-7, rtol=1e-6)


def test_derivatives_of_a_batch_are_those_of_each() -> None:
    cost, a, b = problem(3, n=12, m=9)
    target = normal(3, 12, 9)
    cost.requires_grad_()
    together = torch.autograd.grad((target * sinkhorn(cost, a, b, epsilon=0.7).plan).sum(), cost)[0]
    for i in range(3):
        one = cost[i].detach().requires_grad_()
        plan = sinkhorn(one, a[i], b[i], epsilon=0.7).plan
        close(together[i], torch.autograd.grad((target[i] * plan).sum(), one)[0], atol=1e-8)


def test_gradients_with_respect_to_points_move_them_together() -> None:
    x, y = normal(15, 2).requires_grad_(), normal(15, 2, seed=1) + 3
    sinkhorn(SquaredEuclidean()(x, y), epsilon=0.5, tolerance=1e-11).dual.backward()
    assert x.grad is not None
    close(x.grad.sum(0), 2 * (x.mean(0) - y.mean(0)), atol=1e-7)  # translation: the derivative of ‖mean x − mean y‖²


@pytest.mark.parametrize("zero", [False, True])
def test_the_linear_system_is_solved(zero: bool) -> None:
    cost, a, b = problem(2, n=12, m=9)
    if zero:
        a, b = a.clone(), b.clone()
        a[:, 3], b[:, 2] = 0, 0
        a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    plan = sinkhorn(cost, a, b, epsilon=0.5, tolerance=1e-13).plan
    r, s = normal(2, 12) * (a > 0), normal(2, 9, seed=1) * (b > 0)
    s = s + (b > 0) * ((r.sum(-1) - s.sum(-1)) / (b > 0).sum(-1)).unsqueeze(-1)
    p, q = solve(plan, a, b, r, s)
    close(a * p + (plan @ q.unsqueeze(-1)).squeeze(-1), r, atol=1e-9)
    close((plan.mT @ p.unsqueeze(-1)).squeeze(-1) + b * q, s, atol=1e-9)


# --------------------------------------------------------------------------------------------------------------- clouds


class Counted(SquaredEuclidean):
    """Remembers the largest matrix that it was asked for."""

    most = 0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        found = super().__call__(x, y)
        self.most = max(self.most, found.numel())
        return found


@pytest.mark.parametrize("batch", [(), (3,)])
def test_clouds_are_solved_without_their_matrix(batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(*batch, 40, 2), normal(*batch, 30, 2, seed=1) + 0.5
    a, b = weights(*batch, 40), weights(*batch, 30, seed=1)
    given = [t.requires_grad_() for t in (x, y, a, b)]
    dense = sinkhorn(SquaredEuclidean()(x, y), a, b, epsilon=0.3, tolerance=1e-12)
    expected = torch.autograd.grad(dense.dual.sum(), given)
    monkeypatch.setattr(clouds, "ENTRIES", 200)
    cost = Counted()
    found = clouds.sinkhorn_of_clouds(x, y, a, b, cost=cost, epsilon=0.3, tolerance=1e-12)
    gradients = torch.autograd.grad(found.dual.sum(), given)
    assert cost.most <= 210
    assert float(found.error.max()) <= 1e-12
    close(found.f, dense.f, atol=1e-9)
    close(found.g, dense.g, atol=1e-9)
    close(found.dual, dense.dual)
    for mine, theirs in zip(gradients[:2], expected[:2], strict=True):
        close(mine, theirs, atol=1e-9)
    for mine, theirs in zip(gradients[2:], expected[2:], strict=True):
        close(mine - mine.mean(-1, keepdim=True), theirs - theirs.mean(-1, keepdim=True), atol=1e-9)


def test_clouds_start_from_what_they_are_given() -> None:
    x, y = normal(40, 2), normal(30, 2, seed=1)
    solve = partial(clouds.sinkhorn_of_clouds, x, y, cost=SquaredEuclidean(), epsilon=0.5)
    first = solve()
    assert int(solve(start=(first.f, first.g)).iterations) <= 2 < int(first.iterations)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": -1.0}, "epsilon=-1.0 must be above 0"),
        ({"epsilon": 0.0}, "epsilon=0.0 must be above 0"),
        ({"tolerance": 1e-17}, "tolerance=1e-17 must be at least 9e-16, what torch.float64 resolves"),
        ({"max_iterations": 0}, "max_iterations=0 must be at least 1"),
        ({"relaxation": 2.0}, "relaxation=2.0 must be between 0 and 2"),
        ({"a": -weights(40)}, "a must not be negative"),
        ({"b": torch.ones(30)}, "b must sum to 1 within the tolerance 1e-09, but is 2.9e.01 away"),
        ({"a": torch.ones(7)}, r"a must have 40 weights for x of shape \[40, 2\], not \[7\]"),
        ({"x": normal(40)}, r"not torch.float64 of shape \[40\] and torch.float64 of shape \[30, 2\]"),
        ({"y": normal(30, 2).float()}, r"not torch.float64 of shape \[40, 2\] and torch.float32 of shape \[30, 2\]"),
        ({"x": normal(40, 2).half(), "y": normal(30, 2).half()}, "in float32 or float64, not torch.float16"),
        ({"y": normal(0, 2)}, r"x and y must not be empty, but are of shape \[40, 2\] and \[0, 2\]"),
    ],
)
def test_clouds_that_are_no_problem_are_refused(options: dict[str, Any], said: str) -> None:
    given = {"x": normal(40, 2), "y": normal(30, 2, seed=1), "cost": SquaredEuclidean(), "epsilon": 1.0}
    with pytest.raises(ValueError, match=said):
        clouds.sinkhorn_of_clouds(**{**given, **options})


# ----------------------------------------------------------------------------------------------------------- relaxation


def rate(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, omega: float) -> float:
    """How the steps shrink, from their size after 20 and 60 iterations."""
    states = iterates(LogDomain(cost, a, b, epsilon, torch.zeros_like(a), torch.zeros_like(b)), omega)
    gs = [next(states)[1] for _ in range(62)]
    sizes = [float((gs[t + 1] - gs[t]).std()) for t in (20, 60)]
    return (sizes[1] / sizes[0]) ** (1 / 40)


def test_the_best_relaxation_is_where_youngs_equation_says() -> None:
    cost, a, b = problem()
    plan = sinkhorn(cost, a, b, epsilon=0.3, tolerance=1e-13).plan
    rho = float(torch.linalg.svdvals(plan / (a.unsqueeze(1) * b).sqrt())[1] ** 2)
    best = optimal(rho)
    assert rate(cost, a, b, 0.3, 1.0) == pytest.approx(rho, abs=2e-3)
    for omega in (1.05, 0.5 + best / 2):  # below ω*: the larger root of (λ + ω − 1)² = λω²ρ
        roots = np.roots([1, 2 * (omega - 1) - omega**2 * rho, (omega - 1) ** 2])
        assert rate(cost, a, b, 0.3, omega) == pytest.approx(np.max(roots.real), abs=5e-3)
    beyond = best + 0.1
    assert rate(cost, a, b, 0.3, beyond) == pytest.approx(beyond - 1, abs=0.03)


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.3])
def test_relaxation_saves_iterations(epsilon: float) -> None:
    cost, a, b = problem(n=60, m=60)
    plain = sinkhorn(cost, a, b, epsilon=epsilon, relaxation=1.0, max_iterations=50_000)
    found = sinkhorn(cost, a, b, epsilon=epsilon)
    assert float(found.error) <= 1e-9
    assert int(found.iterations) < 0.6 * int(plain.iterations)


def test_relaxation_finds_the_factor_from_the_errors() -> None:
    """Fed with errors that fall as Young's equation says, ω ends at ω*."""
    rho, relaxation, error = 0.9, Relaxation(), 1.0
    for _ in range(60):
        omega = relaxation.omega
        roots = np.roots([1, 2 * (omega - 1) - omega**2 * rho, (omega - 1) ** 2])
        error *= float(np.abs(roots).max())
        relaxation.observe(error)
    assert relaxation.omega == pytest.approx(optimal(rho), abs=0.02)


def test_relaxation_that_diverges_is_taken_back() -> None:
    relaxation = Relaxation()
    for t in range(12):
        relaxation.observe(0.95**t)
    fast = relaxation.omega
    assert fast > 1.3
    relaxation.observe(1.0)
    relaxation.observe(2.5)
    assert relaxation.omega == 1
    for t in range(40):
        relaxation.observe(2.5 * 0.95**t)
    assert 1 < relaxation.omega < fast


def test_a_fixed_factor_stays() -> None:
    relaxation = Relaxation(1.2)
    for e in (1.0, 9.0, 0.1, 5.0, 0.01):
        assert relaxation.observe(e) == 1.2


# ----------------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize("d", [1, 3, 5])
def test_the_cost_is_the_squared_distance(d: int) -> None:
    x, y = normal(2, 7, d), normal(2, 4, d, seed=1)
    close(SquaredEuclidean()(x, y), torch.cdist(x, y).square())
    close(SquaredEuclidean(left=2.0, right=0.5)(x, y), torch.cdist(2 * x, y / 2).square())


@pytest.mark.parametrize("n", [30, 800])
def test_the_default_device_is_of_no_account(n: int) -> None:
    """Small problems end in float64, large ones with a step of Newton's."""
    cost, a, b = problem(n=n, m=700)
    here = sinkhorn(cost, a, b, epsilon=1.0)
    with torch.device("meta"):
        there = sinkhorn(cost, a, b, epsilon=1.0)
    assert torch.equal(here.plan, there.plan)


def test_weights_may_be_a_view_that_numpy_does_not_know() -> None:
    cost, a, b = problem()
    negative = (0 - 1j * a).conj().imag
    assert negative.is_neg()
    assert torch.equal(sinkhorn(cost, negative, b, epsilon=1.0).plan, sinkhorn(cost, a, b, epsilon=1.0).plan)
