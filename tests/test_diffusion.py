"""Scores, floors, samplers and bounds against brute force and exact solutions; claims tell right from wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise, permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from lab.algorithms import likelihood
from lab.algorithms.frechet import frechet_distance, jackknife_error
from lab.algorithms.samplers import Sampler, denoised, sample
from lab.algorithms.samplers.ancestral import Ancestral, posterior
from lab.algorithms.samplers.ddim import DDIM
from lab.algorithms.samplers.euler import Euler
from lab.algorithms.samplers.heun import Heun
from lab.algorithms.schedules import Cosine, Linear, Schedule, angle, signal_and_noise
from lab.claim import Claim, Evidence, Run, judge
from lab.claims import diffusion as claims
from lab.data.digits import GreyDigits
from lab.data.gaussian_mixture import GaussianMixture
from lab.errors import Refusal
from lab.models import diffusion as model
from lab.models.diffusion import Diffusion
from lab.nets.denoiser import MLPDenoiser
from lab.nets.unet import UNet, in_units_of_noise
from lab.theory import mixture, transport, wiener
from lab.theory.mixture import Mixture

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMAS = 5.0
"""Standard errors that a sampled mean may lie off: a correct program is beyond them less than once in 10⁶."""

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def three() -> Mixture:
    """Three Gaussians of different weights, shapes and directions."""
    roots = normal(3, 2, 2, seed=1)
    covariances = 0.2 * roots @ roots.mT + 0.05 * torch.eye(2, dtype=torch.float64)
    return Mixture(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), 1.5 * normal(3, 2, seed=2), covariances)


def torch_law(law: Mixture) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(law.weights), MultivariateNormal(law.means, law.covariances))


# --------------------------------------------------------------------------------------------------------------- theory


def test_density_and_score_are_those_of_the_mixture() -> None:
    law, x = three(), 2 * normal(50, 2).requires_grad_()
    exact = torch_law(law).log_prob(x)
    close(mixture.log_density(law, x.detach()), exact.detach())
    close(mixture.score(law, x.detach()), torch.autograd.grad(exact.sum(), x)[0])


def test_the_expected_noise_is_the_mean_of_the_noise_given_what_is_seen() -> None:
    """By integrating over all x₀: E[ε|x] = ∫ ε p(x₀) N(x; αx₀, σ²) dx₀ / p(x)."""
    law, alpha, sigma, log_snr = three(), 0.8, 0.6, 2 * math.log(0.8 / 0.6)
    axis = torch.linspace(-9, 9, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    prior = torch_law(law).log_prob(grid)
    for x in normal(5, 2, seed=3):
        noise = (x - alpha * grid) / sigma
        weight = (prior + Normal(0.0, 1.0).log_prob(noise).sum(-1)).softmax(0)
        close(mixture.expected_noise(law, x[None], log_snr)[0], weight @ noise)


@pytest.mark.parametrize("log_snr", [-5.0, 0.7, 8.0])
def test_noise_leaves_the_law_of_a_scaled_and_blurred_mixture(log_snr: float) -> None:
    """p(x_t = αx) α^d is the density of x₀ + (σ/α) ε at x; and of both by the mixture's components."""
    law, x = three(), normal(20, 2)
    alpha, sigma = signal_and_noise(number(log_snr))
    noisy = mixture.with_noise(law, log_snr)
    close(noisy.means, alpha * law.means)
    close(noisy.covariances, alpha**2 * law.covariances + sigma**2 * torch.eye(2, dtype=torch.float64))
    seen = mixture.log_density(mixture.blurred(law, log_snr), x)
    close(seen, mixture.log_density(noisy, alpha * x) + 2 * alpha.log())


@pytest.mark.parametrize("log_snr", [-5.0, 0.0, 2.0, 6.0])
def test_the_floor_is_the_loss_of_the_expected_noise(log_snr: float) -> None:
    law = three()
    alpha, sigma = (float(v) for v in signal_and_noise(number(log_snr)))
    floor = mixture.minimum_mean_squared_error(law, log_snr)
    torch.manual_seed(0)
    x, noise = torch_law(law).sample((100_000,)), normal(100_000, 2)
    errors = (noise - mixture.expected_noise(law, alpha * x + sigma * noise, log_snr)).square().sum(1)
    assert abs(float(errors.mean()) - floor) < SIGMAS * float(errors.std()) / 100_000**0.5
    finer = mixture.minimum_mean_squared_error(law, log_snr, resolution=6.0)
    assert floor == pytest.approx(finer, rel=1e-9)


def test_a_single_gaussian_has_the_floor_and_entropy_of_a_gaussian() -> None:
    root = normal(2, 2)
    covariance = root @ root.mT
    law = Mixture(torch.ones(1, dtype=torch.float64), normal(1, 2, seed=1), covariance[None])
    floor = wiener.linear_mean_squared_error(torch.linalg.eigvalsh(covariance), 1.3)
    assert mixture.minimum_mean_squared_error(law, 1.3) == pytest.approx(floor, rel=1e-10)
    exact = float(MultivariateNormal(law.means[0], covariance).entropy())
    assert mixture.entropy(law) == pytest.approx(exact, rel=1e-10)


def test_information_grows_with_the_signal_by_half_the_floor() -> None:
    """dI(x₀; x_t)/dλ = ½ E Var(ε|x_t) (Guo, Shamai & Verdú 2005), I = h(x_t) − h(σε): entropy against floor."""
    law = three()

    def information(log_snr: float) -> float:
        _, sigma = signal_and_noise(number(log_snr))
        return mixture.entropy(mixture.with_noise(law, log_snr)) - math.log(2 * math.pi * math.e * float(sigma) ** 2)

    expected, _ = integrate.quad(partial(mixture.minimum_mean_squared_error, law), -1, 2, epsrel=1e-8)
    assert information(2) - information(-1) == pytest.approx(0.5 * expected, rel=1e-7)


def test_the_score_error_that_is_allowed_costs_what_it_says() -> None:
    """½ ∫ E‖ε̂ − E[ε|x_t]‖² dλ over a span of 14, with ‖ε̂ − E[ε|x_t]‖/‖E[ε|x_t]‖ at the bound everywhere."""
    explained = torch.linspace(0.1, 2, 9, dtype=torch.float64)
    relative = torch.tensor([mixture.relative_score_error(0.05, 14, float(e)) for e in explained])
    assert 0.5 * 14 * (relative**2 * explained).numpy() == pytest.approx(0.05)


def test_transport_between_samples_is_the_best_of_all_permutations() -> None:
    x, y = normal(5, 2).numpy(), normal(5, 2, seed=1).numpy()
    best = min(((x - y[list(p)]) ** 2).sum(1).mean() for p in permutations(range(5)))
    assert transport.wasserstein(x, y) == pytest.approx(best**0.5, rel=1e-12)


def test_the_linear_estimate_is_the_best_of_all_linear_ones() -> None:
    root = normal(4, 4)
    covariance, log_snr = root @ root.mT, 0.7
    alpha, sigma = signal_and_noise(number(log_snr))
    seen = alpha**2 * covariance + sigma**2 * torch.eye(4, dtype=torch.float64)
    best = 4 - float((sigma**2 * seen.inverse()).trace())  # tr(I − Cov(ε, x) Var(x)⁻¹ Cov(x, ε))
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert wiener.linear_mean_squared_error(eigenvalues, log_snr) == pytest.approx(best, rel=1e-12)
    integral, _ = integrate.quad(lambda level: wiener.linear_mean_squared_error(eigenvalues, level), -3, 5)
    assert wiener.linear_bound(eigenvalues, -3, 5) == pytest.approx(0.5 * integral, rel=1e-8)


# ----------------------------------------------------------------------------------------------- schedules and samplers


@pytest.mark.parametrize("schedule", [Linear(-5, 7), Cosine(-5, 7)])
def test_a_schedule_falls_from_most_to_least_at_its_speed(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64).requires_grad_()
    levels = schedule.log_snr(t)
    close(levels[[0, -1]].detach(), torch.tensor([7.0, -5.0], dtype=torch.float64))
    close(schedule.speed(t.detach()), -torch.autograd.grad(levels.sum(), t)[0])
    close(schedule.levels(10), levels.detach().flip(0))
    assert schedule.span == 12


def test_signal_and_noise_are_an_angle() -> None:
    levels = torch.linspace(-8, 9, 20, dtype=torch.float64)
    alpha, sigma = signal_and_noise(levels)
    close(alpha, angle(levels).cos())
    close(sigma, angle(levels).sin())
    close((alpha / sigma).square().log(), levels)
    close(Cosine(-5, 7).levels(9).flip(0).exp().rsqrt().atan().diff().diff(), torch.zeros(8, dtype=torch.float64))


def test_a_schedule_that_rises_is_refused() -> None:
    with pytest.raises(Refusal, match=r"least=3 must be below most=1"):
        Linear(3, 1)


MEAN, WIDTH = 0.7, 0.4
"""Of a Gaussian in one dimension, where every sampler is affine and all is known."""


def gaussian_velocity(x: Tensor, log_snr: Tensor) -> Tensor:
    """α E[ε|x] − σ E[x₀|x] for x₀ ~ N(MEAN, WIDTH²)."""
    alpha, sigma = signal_and_noise(log_snr)
    noise = sigma * (x - alpha * MEAN) / ((alpha * WIDTH) ** 2 + sigma**2)
    return alpha * noise - sigma * (x - sigma * noise) / alpha


def law_of(sampler: Sampler, steps: int) -> tuple[float, float]:
    """(mean, standard deviation) at the end of samples that begin right, by following both through the steps."""
    levels = Cosine(-6.0, 6.0).levels(steps)
    alpha, sigma = signal_and_noise(levels[0])
    mean, variance = alpha * MEAN, (alpha * WIDTH) ** 2 + sigma**2
    probe = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for start, stop in pairwise(levels):
        at_0, at_1 = sampler.step(gaussian_velocity, probe, start, stop, torch.zeros_like(probe))
        kick = sampler.step(gaussian_velocity, probe, start, stop, torch.ones_like(probe))[0] - at_0
        mean, variance = at_0 + (at_1 - at_0) * mean, (at_1 - at_0) ** 2 * variance + kick**2
    return float(mean), float(variance.sqrt())


@pytest.mark.parametrize("sampler", [Euler(), DDIM(), Heun(), Ancestral()])
def test_a_sampler_has_the_order_that_it_states(sampler: Sampler) -> None:
    """Of the distance W₂ = ((m − m')² + (s − s')²)^½ of the law that it samples from that of x at the last level."""
    alpha, sigma = (float(v) for v in signal_and_noise(number(6.0)))
    exact = alpha * MEAN, math.hypot(alpha * WIDTH, sigma)
    steps = [256, 512, 1024]
    errors = [math.dist(law_of(sampler, n), exact) for n in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-sampler.order, abs=0.05)


def test_ancestral_steps_are_those_of_an_exact_posterior() -> None:
    """q(x_s|x_t, x₀) by Bayes' rule for jointly Gaussian (x_s, x_t) given x₀."""
    here, there = number(-1.0), number(1.5)
    (alpha, sigma), (alpha_to, sigma_to) = signal_and_noise(here), signal_and_noise(there)
    a, b, s = posterior(here, there)
    ratio = alpha / alpha_to  # x_t = ratio x_s + noise
    gain = ratio * sigma_to**2 / sigma**2
    close(a, gain)
    close(b, alpha_to - gain * alpha)
    close(s, (sigma_to**2 * (1 - gain * ratio)).sqrt())


def test_a_random_sampler_draws_the_same_for_the_same_generator() -> None:
    x, levels = normal(6, 1), Cosine(-5, 5).levels(7)
    ends = [sample(Ancestral(), gaussian_velocity, x, levels, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_where_nothing_is_to_be_guessed_ddim_is_exact_in_one_step() -> None:
    """For a single point x₀ the noise is known, and a rotation leads to it."""
    point = normal(1, 3)

    def velocity(x: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = signal_and_noise(log_snr)
        return alpha * (x - alpha * point) / sigma - sigma * point

    levels = torch.tensor([-6.0, 3.0], dtype=torch.float64)
    (alpha, sigma), (alpha_to, sigma_to) = signal_and_noise(levels[0]), signal_and_noise(levels[1])
    noise = normal(5, 3, seed=1)
    x = alpha * point + sigma * noise
    close(sample(DDIM(), velocity, x, levels), alpha_to * point + sigma_to * noise)
    close(denoised(velocity, x, levels[0]), point.expand(5, 3))


def test_the_divergence_is_the_trace_of_the_jacobian() -> None:
    net, x = MLPDenoiser(hidden=8).double(), normal(7, 2)
    velocity = lambda x, log_snr: net(x, log_snr.expand(len(x)))  # noqa: E731
    v, spread = likelihood.divergence(velocity, x, number(0.5))
    jacobian = torch.stack([torch.func.jacrev(lambda row: velocity(row[None], number(0.5))[0])(row) for row in x])
    close(v, velocity(x, number(0.5)).detach())
    close(spread, jacobian.detach().diagonal(dim1=1, dim2=2).sum(1))


def test_the_ode_of_a_gaussian_gives_its_density() -> None:
    x, levels = normal(20, 1), Cosine(-22.0, 6.0).levels(400).flip(0)
    alpha, sigma = (float(v) for v in signal_and_noise(levels[0]))
    exact = Normal(alpha * MEAN, math.hypot(alpha * WIDTH, sigma)).log_prob(x).squeeze(1)
    errors = likelihood.log_density(gaussian_velocity, x, levels, Heun()) - exact
    assert errors.abs().max() < 1e-3


def test_the_frechet_distance_is_that_of_gaussians() -> None:
    """Exact for commuting covariances: ‖m − m'‖² + Σ (√λ − √λ')²; and for two samples that differ by a shift."""
    x = normal(500, 3)
    close(number(frechet_distance(x, x + torch.tensor([3.0, 4.0, 0.0]))), number(25.0))
    stretched = x - x.mean(0)
    values = torch.linalg.eigvalsh(torch.cov(x.mT))
    close(number(frechet_distance(stretched, 2 * stretched)), values.sum())
    other = normal(400, 3, seed=1) @ normal(3, 3, seed=2)
    roots = torch.linalg.eigvals(torch.cov(x.mT) @ torch.cov(other.mT)).real.sqrt().sum()
    expected = (x.mean(0) - other.mean(0)).square().sum() + torch.cov(x.mT).trace() + torch.cov(other.mT).trace()
    close(number(frechet_distance(x, other)), expected - 2 * roots)


def test_the_error_of_the_frechet_distance_is_its_spread_over_draws() -> None:
    draw = torch.Generator().manual_seed(0)
    shift = torch.tensor([0.5, 0.0, 0.0])

    def pair() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(200, 3, generator=draw), torch.randn(200, 3, generator=draw) + shift

    pairs = [pair() for _ in range(400)]
    spread = torch.tensor([frechet_distance(*each) for each in pairs]).std()
    said = torch.tensor([jackknife_error(*each) for each in pairs]).square().mean().sqrt()
    assert float(said / spread) == pytest.approx(1, abs=0.2)  # each ratio is known to about 4 %


# ----------------------------------------------------------------------------------------------------------------- nets


def test_the_net_in_the_plane_is_what_it_says() -> None:
    net, x, level = MLPDenoiser(d=3, hidden=5, layers=2, periods=2).double(), normal(4, 3), normal(4)
    turns = level[:, None] * 2 * math.pi / 40 * torch.tensor([1.0, 2.0])
    told = torch.cat([turns.sin(), turns.cos()], 1) @ net.level.weight.mT + net.level.bias
    h = torch.nn.functional.silu(x @ net.place.weight.mT + net.place.bias + told)
    h = torch.nn.functional.silu(h @ net.hidden[0].weight.mT + net.hidden[0].bias)
    torch.testing.assert_close(net(x, level), h @ net.output.weight.mT + net.output.bias, rtol=1e-6, atol=1e-6)


def unet(*args: Any, **options: Any) -> UNet:
    """A U-Net in float64, none of whose weights is 0 as some are at the start."""
    net = UNet(*args, **options).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)
    return net


@pytest.mark.parametrize(("shape", "patch"), [([8, 8], 1), ([12, 8], 2)])
def test_the_unet_keeps_the_shape_and_looks_at_everything(shape: list[int], patch: int) -> None:
    net = unet(shape, [8, 16], patch=patch, fine=4, groups=4)
    x = normal(3, math.prod(shape)).requires_grad_()
    level = normal(3).requires_grad_()
    out = net(x, level)
    assert out.shape == x.shape
    gradient, told = torch.autograd.grad(out.square().sum(), [x, level])
    assert (gradient != 0).all()
    assert (told != 0).all()
    close(net(x[1:2], level[1:2]), out[1:2])  # no image sees another


def test_the_unet_moves_with_the_image() -> None:
    """Away from the edge a shift by the coarsest place shifts what comes out: it reads a picture, not a vector."""
    net = unet([48, 48], [8], groups=8)
    with torch.no_grad():  # it sees eleven pixels far; what the edge does must not meet what the image does
        image = torch.zeros(1, 48, 48, dtype=torch.float64)
        image[:, 22:25, 22:25] = normal(1, 3, 3)
        moved = image.roll(2, dims=-1)
        out, out_moved = (net(x.flatten(1), number(0.0)[None]).reshape(48, 48) for x in (image, moved))
    close(out.roll(2, dims=-1)[12:36, 12:36], out_moved[12:36, 12:36])


def test_the_unet_starts_with_no_velocity() -> None:
    assert not UNet([8, 8], [8, 16], patch=2)(normal(3, 64).float(), normal(3).float()).any()


def test_pixels_are_seen_in_units_of_the_noise() -> None:
    x, level = normal(2, 1, 3, 4), torch.tensor([-1.0, 2.0], dtype=torch.float64)
    shown = in_units_of_noise(x, level)
    alpha, sigma = (float(v) for v in signal_and_noise(level[1]))
    assert shown.shape == (2, 7, 3, 4)
    close(shown[:, :1], x)
    here, right, left, below, above = (float(x[1, 0, i, j]) for i, j in [(1, 2), (1, 3), (1, 1), (2, 2), (0, 2)])
    near = [(other - here) / math.sqrt(2) for other in (right, left, below, above)]
    expected = [3 * math.tanh(d / (3 * sigma)) for d in (here - alpha, here + alpha, *near)]
    close(shown[1, 1:, 1, 2], torch.tensor(expected, dtype=torch.float64))
    assert (shown[:, 3, :, -1] == 0).all()  # beyond the edge there is no neighbour
    assert (shown[:, 6, 0] == 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": [28, 30], "channels": [8, 8], "patch": 2}, r"shape=\[28, 30\] must be multiples of 4"),
        ({"shape": [8, 8], "channels": [8, 12]}, "groups=8 must divide all of channels, and does not divide 12"),
    ],
)
def test_a_unet_that_does_not_halve_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        UNet(**options)


# ----------------------------------------------------------------------------------------------------------------- data


def test_the_data_have_the_law_that_they_state() -> None:
    data = GaussianMixture(seed=4)
    data.load()
    law, x = data.law, data.fresh(100_000, "test")
    assert law.weights.sum() == pytest.approx(1)
    assert float(law.weights[-1] / law.weights[0]) == pytest.approx(9 / 4)
    close(law.weights @ law.means, torch.zeros(2, dtype=torch.float64))
    second = (law.weights[:, None, None] * (law.covariances + law.means[:, :, None] * law.means[:, None])).sum(0)
    products = torch.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2])
    expected = torch.cat([torch.zeros(2), second[[0, 0, 1], [0, 1, 1]]])
    apart = (products.mean(1) - expected).abs() / (products.std(1) / 100_000**0.5)
    assert apart.max() < SIGMAS
    surprise = -mixture.log_density(law, x)
    assert abs(float(surprise.mean()) - mixture.entropy(law)) < SIGMAS * float(surprise.std()) / 100_000**0.5
    widths = torch.linalg.eigvalsh(law.covariances).sqrt()
    close(widths, torch.tensor([0.18, 0.35], dtype=torch.float64).expand(6, 2))


def test_a_few_points_are_all_that_is_drawn() -> None:
    data = GaussianMixture(samples=5, batch_size=64)
    data.load()
    drawn = data.draw(200, "test")
    assert len(drawn.unique(dim=0)) == 5
    (x, _), *_ = data.block(0, 1).batches
    assert {tuple(row) for row in x.tolist()} <= {tuple(row) for row in drawn.float().tolist()}
    assert len(data.fresh(200, "test").unique(dim=0)) == 200


def test_every_fifth_digit_is_held_out() -> None:
    from lab.data.digits import read_digits

    data = GreyDigits()
    data.load()
    images, labels = read_digits()
    assert len(data.x) == data.n == 1437
    assert len(data.held_out) == 360
    close(data.as_pixels(data.held_out).double() * 16, images[::5].flatten(1))
    assert torch.equal(data.held_out_labels, labels[::5])
    rows = {tuple(row) for row in data.x.tolist()}
    assert not rows & {tuple(row) for row in data.held_out.tolist()}


# ---------------------------------------------------------------------------------------------------------------- model


def diffusion(**options: Any) -> Diffusion:
    parts = {"net": MLPDenoiser(hidden=8), "schedule": Linear(), "sampler": Heun()}
    return Diffusion(**{**parts, "optimizer": partial(torch.optim.SGD, lr=0.1), **options}).double()


def ready(data: Any, module: Diffusion, rank: int = 0, ranks: int = 1) -> Diffusion:
    """What Trainer.fit does before the first step."""
    data.dtype, data.rank, data.world_size = torch.float64, rank, ranks
    data.setup()
    data.place(torch.device("cpu"))
    module.trainer = SimpleNamespace(datamodule=data, max_steps=7)  # type: ignore[assignment]
    module.setup("fit")
    return module


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_objective_is_the_denoising_loss(antithetic: bool) -> None:
    data, module = GaussianMixture(batch_size=16), diffusion(antithetic=antithetic, offset=0.3, scale=2.0)
    ready(data, module)
    x, weight, noise, log_snr = next(iter(module.batches(data.block(3, 5))))
    assert weight == 1
    loss, logged = module.objective((x, 0.25, noise, log_snr))
    total = 0.0
    for sign in (1, -1) if antithetic else (1,):
        alpha, sigma = (v[:, None] for v in signal_and_noise(log_snr))
        start = (x - 0.3) / 2
        noisy = alpha * start + sigma * sign * noise
        predicted = sigma * noisy + alpha * module.net(noisy, log_snr)
        total = total + (sign * noise - predicted).square().mean() / (2 if antithetic else 1)
    close(loss, 0.25 * total)
    close(logged["loss/net"], loss.detach())


def test_times_are_uniform_and_spread_over_the_batch() -> None:
    data, module = GaussianMixture(batch_size=10), diffusion()
    ready(data, module)
    levels = torch.stack([batch[3] for batch in module.batches(data.block(0, 400))])
    times = (8.0 - levels) / 14  # of the linear schedule from 8 to −6
    assert torch.equal((10 * times).floor().long(), torch.arange(10).expand(400, 10))
    assert stats.kstest(times.flatten().numpy(), "uniform").pvalue > 1e-6
    again = torch.stack([batch[3] for batch in module.batches(data.block(100, 400))])
    torch.testing.assert_close(again, levels[100:], rtol=0, atol=0)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_mean_of_the_ranks_gradients_is_the_gradient(ranks: int) -> None:
    def gradient(rank: int, ranks: int) -> Tensor:
        data, module = GaussianMixture(batch_size=7, seed=2), diffusion(antithetic=True)
        ready(data, module, rank, ranks)
        batch = list(module.batches(data.block(3, 6)))[1]
        module.objective(batch)[0].backward()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    close(sum(gradient(rank, ranks) for rank in range(ranks)) / ranks, gradient(0, 1))


def test_both_signs_of_the_noise_make_gradients_vary_less() -> None:
    """Where there is little noise, by its order: at λ = 8 more than ten times less."""
    data = GaussianMixture(batch_size=64)

    def spread(antithetic: bool) -> float:
        module = ready(data, diffusion(antithetic=antithetic, schedule=Linear(7.9, 8.0)))
        gradients = []
        for batch in module.batches(data.block(0, 40)):
            module.zero_grad()
            module.objective(batch)[0].backward()
            gradients.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
        return float(torch.stack(gradients).var(0).sum())

    assert spread(True) < 0.1 * spread(False)


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (GaussianMixture(), {"net": MLPDenoiser(d=3)}, "model.net.d=3 must be 2: the data have 2 dimensions"),
        (GreyDigits(), {"net": MLPDenoiser(d=64)}, r"model.shape=None must be \[8, 8\]"),
        (GreyDigits(), {"net": UNet([8, 8], [8]), "shape": [4, 16]}, r"model.shape=\[4, 16\] must be \[8, 8\]"),
    ],
)
def test_nets_that_do_not_fit_the_data_are_refused(data: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        ready(data, diffusion(**options))


def test_the_network_is_told_another_level_where_it_is_asked_to() -> None:
    module, x = diffusion(octaves=2.0), normal(4, 2)
    close(module.field()(x, number(0.3)), module.net(x, number(0.3 + 2 * math.log(2)).expand(4)).detach())


def test_samples_are_in_the_units_of_the_data() -> None:
    plain, scaled = diffusion(sample_steps=5), diffusion(sample_steps=5, offset=3.0, scale=2.0)
    scaled.load_state_dict(plain.state_dict())
    points, moved = (m.sample(10, torch.Generator().manual_seed(1)) for m in (plain, scaled))
    torch.testing.assert_close(moved, 3 + 2 * points)
    images = diffusion(net=UNet([8, 8], [8]), shape=[8, 8], sampler=Ancestral(), sample_steps=3)
    assert images.sample(2, torch.Generator().manual_seed(0)).shape == (2, 8, 8)


# --------------------------------------------------------------------------------------------------------------- bounds


def test_the_prior_divergence_is_that_of_normal_laws() -> None:
    x = normal(4, 3)
    alpha, sigma = signal_and_noise(number(-2.0))
    exact = kl_divergence(Normal(alpha * x, sigma), Normal(torch.zeros_like(x), torch.ones_like(x))).sum(1)
    close(model.prior_divergence(x, -2.0), exact)


def test_the_bound_in_continuous_time_is_that_of_many_steps_under_every_schedule() -> None:
    """½ ∫ E‖ε − ε̂‖² dλ by quadrature over λ, from one draw of x₀ and ε."""
    net, x, noise = MLPDenoiser(hidden=8).double(), normal(1, 2), normal(1, 2, seed=1)

    def loss(level: float) -> float:
        return model.squared_errors(net, x, noise, number(level)[None]).item()

    exact = 0.5 * integrate.quad(loss, -6, 8, epsrel=1e-9)[0]
    times = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for schedule in (Linear(), Cosine()):
        many = model.diffusion_bound(net, schedule, x.expand(4000, 2), noise.expand(4000, 2), times)
        assert many.mean().item() == pytest.approx(exact, rel=2e-4)


def test_the_bound_in_continuous_time_is_that_of_many_ancestral_steps() -> None:
    """Σ KL(q(x_s|x_t, x₀) ‖ q(x_s|x_t, x̂₀)) over 4000 steps, from one draw of x₀ and ε (Kingma et al. 2021, eq. 11)."""
    net, x, noise, steps = MLPDenoiser(hidden=8).double(), normal(1, 2), normal(1, 2, seed=1), 4000
    levels = Cosine().levels(steps).flip(0)
    at, before = levels[1:], levels[:-1]
    alpha, sigma = (v[:, None] for v in signal_and_noise(at))
    noisy = alpha * x + sigma * noise
    guess = alpha * noisy - sigma * net(noisy, at)
    a, b, s = (v[:, None] for v in posterior(at, before))
    exact = kl_divergence(Normal(a * noisy + b * x, s), Normal(a * noisy + b * guess, s)).sum()
    times = (torch.arange(steps, dtype=torch.float64) + 1) / steps
    bound = model.diffusion_bound(net, Cosine(), x.expand(steps, 2), noise.expand(steps, 2), times).mean()
    assert bound.item() == pytest.approx(exact.item(), rel=5e-3)


def test_what_is_left_to_tell_of_a_grey_value() -> None:
    grey = torch.linspace(-1, 1, 5, dtype=torch.float64)
    x, noise, most = grey[[0, 3, 4]][None], normal(1, 3), 2.0
    seen = x + math.exp(-1.0) * noise
    densities = Normal(grey, math.exp(-1.0)).log_prob(seen[..., None])
    chosen = Normal(x, math.exp(-1.0)).log_prob(seen)
    close(model.reconstruction_loss(x, noise, grey, most), (densities.logsumexp(-1) - chosen).sum(1))


def test_the_bound_that_a_run_tells_is_that_of_the_averaged_weights(caplog: pytest.LogCaptureFixture) -> None:
    """Also of a run that resumes at its last step, and so ends without training."""
    options = {"net": UNet([8, 8], [8]), "shape": [8, 8], "offset": 0.5, "scale": 0.5}
    data, module = GreyDigits(batch_size=8), diffusion(ema=0.9, **options)
    ready(data, module)
    module.trainer.is_global_zero = True  # type: ignore[misc]
    module.on_fit_start()
    average = module._average["net.say.bias"]
    average += 0.5
    raw = module.bits(data)
    with caplog.at_level("INFO", logger="lab"):
        module.on_fit_end()
    averaged = module.bits(data)
    assert averaged[0] > raw[0] + averaged[1]
    assert torch.equal(module.net.say.bias, average)
    said = f"bound of 1000 draws of 360 images held out: {averaged[0]:.3f} ± {averaged[1]:.3f} bits a dimension"
    assert caplog.messages == [said]


def test_the_bound_of_images_has_the_error_of_its_draws() -> None:
    """Twenty means of other draws vary as the standard error says, or less: their times are spread evenly."""
    options = {"net": UNet([8, 8], [8]), "shape": [8, 8], "offset": 0.5, "scale": 0.5}
    means, errors = [], []
    for seed in range(20):
        data = GreyDigits(seed=seed)
        mean, error = ready(data, diffusion(bound_draws=100, **options)).bits(data)
        means.append(mean)
        errors.append(error)
    assert 0.2 < np.std(means, ddof=1) / np.mean(errors) < 2  # chi-squared of 19 degrees: above 2 less than once in 10⁶


# --------------------------------------------------------------------------------------------------------------- claims


class Exact(torch.nn.Module):
    """The velocity of the mixture's own score, or of it seen wrongly."""

    d = 2

    def __init__(self, law: Mixture, wrong: Callable[[Tensor], Tensor] = lambda v: v) -> None:
        super().__init__()
        self.law, self.wrong = law, wrong

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for level in log_snr.unique():
            alpha, sigma = signal_and_noise(level.double())
            rows = log_snr == level
            at = x[rows].double()
            noise = mixture.expected_noise(self.law, at, float(level))
            out[rows] = ((noise - sigma * at) / alpha).to(x)
        return self.wrong(out)


@pytest.fixture(scope="module")
def plane() -> GaussianMixture:
    data = GaussianMixture()
    data.load()
    return data


CLAIMS: dict[str, Claim] = {
    "floor": claims.Floor(draws=4096),
    "floor_reached": claims.FloorReached(draws=4096),
    "score_error": claims.ScoreError(draws=1024),
    "samples": claims.Samples(n=300, repeats=4),
    "likelihood": claims.Likelihood(draws=8192),
    "integrator": claims.Integrator(),
    "sampler_order": claims.SamplerOrder(draws=16),
}


def judged(name: str, data: GaussianMixture, **options: Any) -> Evidence:
    net = options.pop("net", None) or Exact(data.law)
    module = Diffusion(net, Linear(), Heun(), optimizer=partial(torch.optim.SGD, lr=0.1), **options)
    return judge(name, CLAIMS[name], Run(module, data))


@pytest.mark.parametrize("name", CLAIMS)
def test_the_exact_score_holds(name: str, plane: GaussianMixture) -> None:
    e = judged(name, plane)
    assert e.judged.holds, e.judged


@pytest.mark.parametrize("name", ["floor_reached", "score_error", "likelihood"])
def test_an_octave_is_refuted(name: str, plane: GaussianMixture) -> None:
    assert not judged(name, plane, octaves=1.0).judged.holds


def test_a_score_that_is_off_is_refuted(plane: GaussianMixture) -> None:
    wrong = Exact(plane.law, lambda v: v + 0.3)
    for name in ("floor_reached", "score_error", "likelihood"):
        assert not judged(name, plane, net=wrong).judged.holds, name


@pytest.mark.parametrize(
    ("where", "what", "wrong", "name"),
    [
        (mixture, "minimum_mean_squared_error", lambda *_: 1.0, "floor_reached"),
        (mixture, "minimum_mean_squared_error", lambda *_: 2.0, "floor"),
        (mixture, "relative_score_error", lambda *_: 1e-9, "score_error"),
        (mixture, "entropy", lambda _: 1.5, "likelihood"),
        (mixture, "log_density", lambda law, x: MultivariateNormal(x, torch.eye(2).double()).log_prob(x), "integrator"),
        (transport, "wasserstein", lambda x, y: 0.01, "samples"),
    ],
)
def test_a_wrong_formula_is_refuted(
    where: Any, what: str, wrong: Any, name: str, plane: GaussianMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, what, wrong)
    nearly = Exact(plane.law, lambda v: 1.001 * v)
    assert not judged(name, plane, net=nearly).judged.holds


def test_a_control_variate_leaves_the_mean_and_takes_the_spread() -> None:
    known = normal(4000).square()
    values = 3 * known + 0.1 * normal(4000, seed=1)
    mean, error = claims._with_known_mean(values, known, 1.0)
    assert float(error) < 0.05 * float(values.std()) / 4000**0.5
    assert abs(float(mean) - 3) < SIGMAS * float(error)


@pytest.mark.parametrize(
    ("claim", "options", "said"),
    [
        (claims.ScoreError(most=9), {}, "most=9 lies outside model.schedule"),
        (claims.ScoreError(span=9.0), {}, "span=9 must be 14, the span of model.schedule"),
        (claims.Floor(), {"scale": 2.0}, "model.offset must be 0 and model.scale 1"),
    ],
)
def test_claims_that_cannot_be_judged_are_refused(
    claim: Claim, options: dict[str, Any], said: str, plane: GaussianMixture
) -> None:
    with pytest.raises(Refusal, match=said):
        claim.check(plane, diffusion(**options))
