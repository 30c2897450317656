"""Every closed form against an oracle that does not share its algebra: brute force, another algorithm, sampling."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from lab.theory import least_squares, pca

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -------------------------------------------------------------------------------------------------------- least squares


def test_the_solution_solves_the_normal_equations() -> None:
    a, y = normal(4, 20, 5), normal(4, 20, seed=1)
    gram, moment = a.mT @ a, (a.mT @ y.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(least_squares.least_squares_solution(a, y), torch.linalg.solve(gram, moment))


@pytest.mark.parametrize(("n", "d"), [(12, 5), (5, 12), (6, 6), (1, 4), (4, 1)])
def test_the_solution_is_the_pseudoinverse(n: int, d: int) -> None:
    a, y = normal(3, n, d, seed=n), normal(3, n, seed=d)
    expected = (torch.linalg.pinv(a) @ y.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(least_squares.least_squares_solution(a, y), expected)


def test_of_many_solutions_it_is_the_shortest() -> None:
    """Rank 3 in 6 dimensions: whatever of the null space is added fits as well and is longer."""
    a, y = normal(10, 3) @ normal(3, 6, seed=1), normal(10, seed=2)
    w = least_squares.least_squares_solution(a, y)
    residual = a @ w - y
    assert (a.mT @ residual).abs().max() < 1e-12  # the gradient vanishes
    null = torch.linalg.svd(a).Vh[3:]  # (3, 6)
    assert (null @ w).abs().max() < 1e-12
    for direction in null:
        other = w + 0.1 * direction
        torch.testing.assert_close(a @ other - y, residual)
        assert other.norm() > w.norm()


def test_a_repeated_column_shares_its_weight() -> None:
    a, y = normal(9, 2), normal(9, seed=1)
    single = least_squares.least_squares_solution(a, y)
    doubled = least_squares.least_squares_solution(a[:, [0, 0, 1]], y)
    torch.testing.assert_close(doubled, torch.stack([single[0] / 2, single[0] / 2, single[1]]))


def test_rows_of_zeros_change_nothing() -> None:
    a, y = normal(7, 3), normal(7, seed=1)
    padded = least_squares.least_squares_solution(
        torch.cat([a, torch.zeros(5, 3, dtype=a.dtype)]), torch.cat([y, torch.zeros(5, dtype=y.dtype)])
    )
    torch.testing.assert_close(padded, least_squares.least_squares_solution(a, y))


# ----------------------------------------------------------------------------------------------------- gradient descent


def quadratic(eigenvalues: list[float]) -> Tensor:
    """A symmetric matrix with these eigenvalues in a random basis."""
    basis = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=5)).Q
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.mT


def spectral_radius(matrix: Tensor) -> float:
    return float(torch.linalg.eigvals(matrix).abs().max())


@pytest.mark.parametrize("eigenvalues", [[8.0, 2.0, 2.0, 0.25], [1.0, 1.0], [100.0, 1.0], [3.0, 2.9, 0.01]])
def test_the_optimal_step_contracts_fastest(eigenvalues: list[float]) -> None:
    a, identity = quadratic(eigenvalues), torch.eye(len(eigenvalues), dtype=torch.float64)
    top, bottom = torch.tensor(max(eigenvalues)), torch.tensor(min(eigenvalues))
    best = float(least_squares.optimal_step(top.double(), bottom.double()))
    rho = float(least_squares.contraction(top.double() / bottom.double()))
    assert spectral_radius(identity - best * a) == pytest.approx(rho, abs=1e-12)
    for factor in (0.5, 0.9, 0.99, 0.999, 1.001, 1.01, 1.1, 1.5):
        assert spectral_radius(identity - factor * best * a) > rho + 1e-6


def test_no_step_of_gradient_descent_contracts_less_and_the_last_ones_reach_it() -> None:
    a = quadratic([8.0, 2.0, 2.0, 0.25])
    step = least_squares.optimal_step(torch.tensor(8.0), torch.tensor(0.25))
    rho = float(least_squares.contraction(torch.tensor(32.0)))
    error = normal(4, seed=6)
    ratios = []
    for _ in range(60):
        after = error - step * (a @ error)
        ratios.append(float(after.norm() / error.norm()))
        error = after
    assert max(ratios) <= rho * (1 + 1e-6)
    assert ratios[-1] == pytest.approx(rho, rel=1e-6)
    assert ratios[0] < rho


# --------------------------------------------------------------------------------------------------------- excess risk

SIGMAS = 5.0
"""Standard errors that a sampled mean may lie off: a correct program is beyond them less than once in 10⁶."""


def sampled(values: Tensor) -> tuple[float, float]:
    """(mean, its standard error)."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


@pytest.mark.parametrize(("n", "d", "noise"), [(12, 4, 0.5), (20, 6, 1.0), (14, 3, 2.0)])
def test_the_excess_risk_is_what_sampling_gives(n: int, d: int, noise: float) -> None:
    root = normal(d, d, seed=d)  # Σ = root·rootᵀ, far from the identity: the formula does not depend on it
    a = normal(20_000, n, d, seed=n) @ root.mT
    w_star = normal(d, seed=1)
    y = a @ w_star + noise * normal(20_000, n, seed=n + 1)
    w = torch.linalg.solve(a.mT @ a, (a.mT @ y.unsqueeze(-1)).squeeze(-1))
    mean, error = sampled(((w - w_star) @ root).square().sum(1))
    theory = float(least_squares.excess_risk(noise, d, torch.tensor(n)))
    assert abs(mean - theory) < SIGMAS * error
    for fixed_design in (noise**2 * d / (n - d), noise**2 * d / n):
        assert abs(fixed_design - mean) > SIGMAS * error  # the test can tell


def test_the_excess_risk_is_the_mean_of_an_inverse_wishart_matrix() -> None:
    """E tr (AᵀA)⁻¹ of white A, computed without noise, targets or a solution."""
    n, d = 15, 5
    a = normal(20_000, n, d, seed=2)
    mean, error = sampled(torch.linalg.svdvals(a).pow(-2).sum(1))
    assert abs(mean - float(least_squares.excess_risk(1.0, d, torch.tensor(n)))) < SIGMAS * error


@pytest.mark.parametrize(("n", "d", "noise"), [(20, 4, 0.5), (30, 8, 1.0)])
def test_the_variance_of_the_excess_risk_is_what_sampling_gives(n: int, d: int, noise: float) -> None:
    scale = torch.linspace(0.5, 3, d, dtype=torch.float64)  # Σ^½: neither does the variance depend on Σ
    a = normal(40_000, n, d, seed=n) * scale
    w = torch.linalg.lstsq(a, noise * normal(40_000, n, 1, seed=n + 1)).solution.squeeze(-1)  # ŵ − w*
    risk = (w * scale).square().sum(1)
    variance, error = sampled((risk - least_squares.excess_risk(noise, d, torch.tensor(n))).square())
    assert abs(variance - float(least_squares.excess_risk_variance(noise, d, torch.tensor(n)))) < SIGMAS * error
    assert error < 0.1 * variance


def test_the_excess_risk_has_the_law_of_a_ratio_of_chi_squares() -> None:
    n, d = 12, 4
    a = normal(20_000, n, d, seed=3)
    w = torch.linalg.lstsq(a, normal(20_000, n, 1, seed=4)).solution.squeeze(-1)
    ratio = w.square().sum(1).numpy() * (n - d + 1) / d
    assert stats.kstest(ratio, stats.f(d, n - d + 1).cdf).pvalue > 1e-6


def test_the_variance_of_the_excess_risk_is_infinite_up_to_d_plus_three_samples() -> None:
    variance = least_squares.excess_risk_variance(1.0, 4, torch.tensor([8, 13]))
    assert variance.tolist() == pytest.approx([(4 / 3) ** 2 * 14 / 4, 0.25 * 24 / 24])
    with pytest.raises(ValueError, match=r"n > d \+ 3 = 7, not n = 7"):
        least_squares.excess_risk_variance(1.0, 4, torch.tensor([7, 13]))


def test_the_excess_risk_is_infinite_up_to_d_plus_one_samples() -> None:
    assert least_squares.excess_risk(2.0, 4, torch.tensor([6, 14])).tolist() == pytest.approx([16.0, 16 / 9])
    with pytest.raises(ValueError, match=r"n > d \+ 1 = 5, not n = 5"):
        least_squares.excess_risk(2.0, 4, torch.tensor([14, 5]))


# ---------------------------------------------------------------------------------------------------------------- PCA


@pytest.fixture
def x() -> Tensor:
    """Centred samples with a spectrum that falls off, in a basis that is not the coordinates'."""
    x = normal(200, 6, seed=3) * torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5, 0.1]) @ normal(6, 6, seed=4)
    return x - x.mean(0)


def test_principal_components_are_singular_vectors(x: Tensor) -> None:
    eigenvalues, vectors = pca.principal_components(x)
    _, singular, right = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(eigenvalues, singular.square() / len(x))
    torch.testing.assert_close((vectors * right.mT).sum(0).abs(), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(torch.cov(x.mT, correction=0) @ vectors, vectors * eigenvalues)
    assert (eigenvalues.diff() <= 0).all()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_no_projection_reconstructs_better(x: Tensor, k: int) -> None:
    eigenvalues, _ = pca.principal_components(x)
    least = float(pca.best_reconstruction_error(eigenvalues, k))
    left, singular, right = torch.linalg.svd(x, full_matrices=False)
    truncated = left[:, :k] * singular[:k] @ right[:k]
    assert float((x - truncated).square().sum(1).mean()) == pytest.approx(least, rel=1e-12)
    bases = torch.linalg.qr(normal(2000, 6, k, seed=k)).Q
    projected = x @ bases @ bases.mT  # (2000, 200, 6)
    errors = (x - projected).square().sum(2).mean(1)
    assert float(errors.min()) > least
    near = torch.linalg.qr(right[:k].mT + 1e-3 * normal(100, 6, k, seed=k)).Q  # nor one close to the best
    errors = (x - x @ near @ near.mT).square().sum(2).mean(1)
    assert least < float(errors.min()) < 1.001 * least + 1e-3


def test_the_errors_at_the_ends(x: Tensor) -> None:
    eigenvalues, _ = pca.principal_components(x)
    assert float(pca.best_reconstruction_error(eigenvalues, 6)) == 0
    assert math.isclose(float(pca.best_reconstruction_error(eigenvalues, 0)), float(x.square().sum(1).mean()))


def test_the_projector_projects_on_the_first_components(x: Tensor) -> None:
    _, vectors = pca.principal_components(x)
    p = pca.projector(vectors, 2)
    torch.testing.assert_close(p @ p, p)
    torch.testing.assert_close(p, p.mT)
    assert float(p.trace()) == pytest.approx(2)
    right = torch.linalg.svd(x).Vh
    torch.testing.assert_close(right[:2] @ p, right[:2])
    assert (right[2:] @ p).abs().max() < 1e-12
