"""Diffusion models in the plane, where the score of the data is known at every noise level.

x_t = α x₀ + σ ε at log-SNR λ = ln α²/σ², x₀ from a mixture of Gaussians. Losses are ‖ε − ε̂‖², summed over the two
dimensions; entropies are in nats.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from lab.algorithms import likelihood
from lab.algorithms.samplers import Sampler, Velocity, sample
from lab.algorithms.samplers.ddim import DDIM
from lab.algorithms.samplers.euler import Euler
from lab.algorithms.samplers.heun import Heun
from lab.algorithms.schedules import Cosine, signal_and_noise
from lab.claim import Claim, Quantity, Run, at_least, at_most, equal
from lab.data.gaussian_mixture import GaussianMixture
from lab.errors import Refusal
from lab.models.diffusion import Diffusion, squared_errors
from lab.random import generator, normal
from lab.theory import mixture, transport
from lab.types import Positive, PositiveInt

NATS = 0.05
"""What the learned density may lose of the data's."""

PART = 4096
"""Rows that a network is given at once: what they become stays in the cache."""


class _InThePlane(Claim):
    """A claim about a mixture whose law is known."""

    def check(self, data: GaussianMixture, model: Diffusion) -> None:
        if not isinstance(data, GaussianMixture):
            raise Refusal("data._target_ must be GaussianMixture: the claim is about a law that is known")
        if (model.offset, model.scale) != (0, 1):
            raise Refusal("model.offset must be 0 and model.scale 1: the law is that of the data as they are")


class _PerLevel(_InThePlane):
    """A claim at several noise levels.

    Args:
        least, most: log-SNRs, the levels are the integers between.
        draws: of x₀ and ε at each level; ε is taken with both signs.
    """

    x_symbol = r"log-SNR $\lambda$"

    def __init__(self, least: int = -4, most: int = 6, draws: PositiveInt = 2**15) -> None:
        if least >= most:
            raise Refusal(f"least={least} must be below most={most}")
        self.levels, self.draws = tuple(range(least, most + 1)), draws

    def check(self, data: GaussianMixture, model: Diffusion) -> None:
        super().check(data, model)
        for name, level, inside in (
            ("least", self.levels[0], self.levels[0] >= model.schedule.least),
            ("most", self.levels[-1], self.levels[-1] <= model.schedule.most),
        ):
            if not inside:
                span = f"{model.schedule.least:g} to {model.schedule.most:g}"
                raise Refusal(f"{name}={level} lies outside model.schedule, which trains λ from {span}")

    def floors(self, data: GaussianMixture) -> list[float]:
        return [mixture.minimum_mean_squared_error(data.law, level) for level in self.levels]


class _Loss(_PerLevel):
    """A claim about the loss of draws that training has not seen."""

    reference = "Ho, Jain & Abbeel 2020, eq. 14; Guo, Shamai & Verdú 2005, eq. 6"
    symbol = r"$E\|\varepsilon - \hat\varepsilon\|^2$"

    def predict(self, data: GaussianMixture) -> Quantity:
        return Quantity(self.floors(data), x=self.levels)

    def measure(self, run: Run) -> Quantity:
        field, means, errors = run.model.field(torch.float32), [], []
        for level in self.levels:
            stream = (type(self).__name__, level)
            x = run.data.draw(self.draws, *stream).float()
            noise = normal(generator(run.data.seed, "noise", *stream), *x.shape).float()
            at = torch.tensor(float(level)).expand(PART)
            losses = [
                0.5
                * (squared_errors(field, rows, ε, at[: len(rows)]) + squared_errors(field, rows, -ε, at[: len(rows)]))
                for rows, ε in zip(x.split(PART), noise.split(PART), strict=True)
            ]
            mean, error = _with_known_mean(torch.cat(losses).double(), noise.double().square().sum(1), run.data.d)
            means.append(mean)
            errors.append(error)
        return Quantity(torch.stack(means), torch.stack(errors))


def _with_known_mean(values: Tensor, others: Tensor, mean: float) -> tuple[Tensor, Tensor]:
    """(mean, standard error) of values that were drawn with `others`, whose mean is known.

    A control variate (Owen 2013, §8.9): most of what ‖ε − ε̂‖² varies by is ‖ε‖², whose mean is d.
    """
    slope = torch.cov(torch.stack([values, others]))[0, 1] / others.var()
    each = values - slope * (others - mean)
    return each.mean(), each.std() / len(each) ** 0.5


class Floor(_Loss):
    """At no noise level is the denoising loss below its floor E Var(ε|x_t)

    The mean of ε given x_t minimises E‖ε − ε̂(x_t)‖², and what it leaves is the mean of the conditional variance,
    d − E‖E[ε|x_t]‖², with E[ε|x_t] = −σ ∇ ln p_t(x_t) in closed form; its expectation by quadrature.
    """

    relation = at_least(
        "sampling error, one-sided 4.5 standard errors at 11 levels: a correct run, which lies above, is refuted less "
        "than 4 times in 10⁵",
        k=4.5,
    )


class FloorReached(_Loss):
    """At each noise level the denoising loss is within 2 % of its floor E Var(ε|x_t)

    What is above the floor is E‖ε̂ − E[ε|x_t]‖²: the error of the learned score.
    """

    relation = equal(
        "optimisation error, 2 % of the floor, and sampling error, 4.5 standard errors at 11 levels, beyond which a "
        "correct run is 7 times in 10⁵",
        rtol=0.02,
        k=4.5,
    )


class ScoreError(_PerLevel):
    """At each noise level the learned score's relative L² error is below what would cost 0.05 nats at all levels

    ‖s − s*‖/‖s*‖ in L²(p_t), s = −ε̂/σ, s* = ∇ ln p_t. The learned reverse process is KL = ½∫ E‖ε̂ − E[ε|x_t]‖² dλ from
    the true one, so with E‖ε̂ − E[ε|x_t]‖² = 2·0.05/Λ at every level, Λ the span of λ, it is 0.05 nats away: the bound
    is √(0.1/(Λ E‖E[ε|x_t]‖²)). Measured against the score by automatic differentiation of the mixture's density.

    Args:
        span: Λ.
    """

    reference = "Song, Durkan, Murray & Ermon 2021, Thm 1; Kingma, Salimans, Poole & Ho 2021, eq. 18"
    symbol, log = r"$\|s - s^*\| / \|s^*\|$", "y"
    relation = at_most(
        "the error, made at all levels, that would use up what `likelihood` allows; of 8192 draws it is known to 2 %"
    )

    def __init__(self, least: int = -4, most: int = 6, draws: PositiveInt = 2**13, span: Positive = 14.0) -> None:
        super().__init__(least, most, draws)
        self.span = span

    def check(self, data: GaussianMixture, model: Diffusion) -> None:
        super().check(data, model)
        if self.span != model.schedule.span:
            raise Refusal(f"span={self.span:g} must be {model.schedule.span:g}, the span of model.schedule")

    def predict(self, data: GaussianMixture) -> Quantity:
        explained = [data.d - floor for floor in self.floors(data)]
        return Quantity([mixture.relative_score_error(NATS, self.span, e) for e in explained], x=self.levels)

    def measure(self, run: Run) -> Quantity:
        field, errors = run.model.field(), []
        for level in self.levels:
            at = torch.tensor(float(level), dtype=torch.float64)
            alpha, sigma = signal_and_noise(at)
            stream = ("ScoreError", level)
            x = run.data.draw(self.draws, *stream)
            x = alpha * x + sigma * normal(generator(run.data.seed, "noise", *stream), *x.shape)
            exact = -sigma * _exact_score(run.data, x, at)
            learned = sigma * x + alpha * field(x, at)
            errors.append((learned - exact).square().sum() / exact.square().sum())
        return Quantity(torch.stack(errors).sqrt())


class Samples(_InThePlane):
    """W₂ of samples to fresh data is at most 1.5 times that between two fresh data sets of the same size

    Two samples of one law are not at distance 0: in the plane E W₂² ~ ln n/n. Were the learned law another, at a
    distance δ, W₂² would be larger by about δ². Means over `repeats`; theory's by the assignment problem, the run's by
    the network simplex.
    """

    reference = "Ambrosio, Stra & Trevisan 2019, Thm 1.1; Peyré & Cuturi 2019, Prop. 2.1"
    symbol = r"$W_2$"
    relation = at_most(
        "1.5 leaves δ = 1.1 W₂(fresh, fresh) = 0.14, a little less than a component's deviations, 0.18 and 0.35; the "
        "means of 6 distances vary by 5 %, so a correct law is beyond 1.5 less than once in 10⁵"
    )

    def __init__(self, n: PositiveInt = 1000, repeats: PositiveInt = 6, factor: Positive = 1.5) -> None:
        self.n, self.repeats, self.factor = n, repeats, factor

    def predict(self, data: GaussianMixture) -> Quantity:
        pairs = [[data.fresh(self.n, "Samples", i, j).numpy() for j in "ab"] for i in range(self.repeats)]
        return Quantity(self.factor * sum(transport.wasserstein(x, y) for x, y in pairs) / self.repeats)

    def measure(self, run: Run) -> Quantity:
        import ot

        distances = []
        for i in range(self.repeats):
            draw = generator(run.data.seed, "Samples", i)
            x = run.model.draw(self.n, draw, run.model.sampler, run.model.sample_steps, torch.float32).double()
            y = run.data.fresh(self.n, "Samples", i, "measured")
            distances.append(float(ot.emd2([], [], ot.dist(x.numpy(), y.numpy()), numItermax=10**7)) ** 0.5)
        each = torch.tensor(distances, dtype=torch.float64)
        error = each.std() / self.repeats**0.5 if self.repeats > 1 else 0.0
        return Quantity(each.mean(), error)


class _ByODE(_InThePlane):
    """A claim about densities through the probability-flow ODE."""

    reference = "Song et al. 2021, §4.3; Chen et al. 2018, Thm 1"

    def __init__(self, draws: PositiveInt, steps: PositiveInt) -> None:
        self.draws, self.steps = draws, steps

    def log_density(self, schedule: Any, velocity: Velocity, x: Tensor) -> Tensor:
        """ln p(x) of data x: of α x at the level of the least noise, and the change of volume d ln α."""
        levels = schedule.levels(self.steps).flip(0)
        alpha, _ = signal_and_noise(levels[0])
        parts = [likelihood.log_density(velocity, alpha.to(x) * rows, levels, Heun()) for rows in x.split(PART)]
        return torch.cat(parts) + x.shape[1] * alpha.log()


class Likelihood(_ByODE):
    """The negative log-likelihood of fresh data through the probability-flow ODE is the mixture's entropy

    −E ln p̂(x₀) = h + KL(p ‖ p̂), and the divergence is what the score's error costs. The data are taken to be at the
    level of the least noise, σ² = e^{−8}: its blur of p changes −E ln p by ½ E(½σ²Δp/p)² < 10⁻⁴ only.
    """

    symbol = "entropy / nats"
    relation = equal(
        "0.05 nats, of which 4.5 standard errors of 16384 draws are 0.03, beyond which a correct run is 7 times in "
        "10⁶; the rest is the divergence that `score_error` bounds and the integrator's error",
        atol=NATS,
    )

    def __init__(self, draws: PositiveInt = 2**14, steps: PositiveInt = 40) -> None:
        super().__init__(draws, steps)

    def predict(self, data: GaussianMixture) -> Quantity:
        return Quantity(mixture.entropy(data.law))

    def measure(self, run: Run) -> Quantity:
        x = run.data.fresh(self.draws, "Likelihood").float()
        nll = -self.log_density(run.model.schedule, run.model.field(torch.float32), x).double()
        return Quantity(nll.mean(), nll.std() / self.draws**0.5)


class Integrator(_ByODE):
    """With the exact score the same ODE gives the exact log-density, point by point

    So that the likelihood of the learned score says something about the score. The exact score is taken by automatic
    differentiation of the mixture's density, its divergence by another.
    """

    symbol = r"$\ln p(x)$"
    relation = equal(
        "root mean square over 400 points of a tenth of what `likelihood` allows, so √400·0.005: the error of 48 steps "
        "of Heun's method, which half as many steps make four times larger",
        atol=400**0.5 * NATS / 10,
        norm=True,
    )
    most = 8.0
    """The log-SNR at which densities are taken."""

    def __init__(self, steps: PositiveInt = 48) -> None:
        super().__init__(400, steps)

    def check(self, data: GaussianMixture, model: Diffusion) -> None:
        super().check(data, model)
        if model.schedule.most != self.most:
            raise Refusal(
                f"model.schedule.most={model.schedule.most:g} must be {self.most:g}, where this claim's ODE ends"
            )

    def predict(self, data: GaussianMixture) -> Quantity:
        return Quantity(mixture.log_density(mixture.blurred(data.law, self.most), data.fresh(self.draws, "Integrator")))

    def measure(self, run: Run) -> Quantity:
        def velocity(x: Tensor, log_snr: Tensor) -> Tensor:
            alpha, sigma = signal_and_noise(log_snr)
            noise = -sigma * _exact_score(run.data, x, log_snr)
            return (noise - sigma * x) / alpha

        return Quantity(self.log_density(run.model.schedule, velocity, run.data.fresh(self.draws, "Integrator")))


class SamplerOrder(_InThePlane):
    """With N steps Euler's method and DDIM are O(N⁻¹) from where the learned ODE leads, and Heun's is O(N⁻²)

    In the angle φ the ODE is dx/dφ = v(x, φ) with a smooth right side at either end, and with evenly spread angles
    every step is alike: the global error of a method of order p is c N⁻ᵖ(1 + O(1/N)). Measured is the slope of the root
    mean square distance of where the same noise leads, against many more steps of Heun's method, over ln N.
    """

    reference = "Hairer, Nørsett & Wanner 1993, Thm II.3.4; Song, Meng & Ermon 2021, §4.3; Karras et al. 2022, §3"
    symbol = "order"
    relation = equal(
        "from N = 96 to 384 the next term of the error's expansion in 1/N bends the line; 0.1 is a tenth of what "
        "tells the orders apart",
        atol=0.1,
    )
    solvers: ClassVar = (Euler(), DDIM(), Heun())

    def __init__(self, draws: PositiveInt = 64, coarsest: PositiveInt = 96, doublings: PositiveInt = 2) -> None:
        self.draws, self.steps = draws, [coarsest * 2**i for i in range(doublings + 1)]

    def predict(self, data: GaussianMixture) -> Quantity:
        return Quantity([1.0, 1.0, 2.0])

    def measure(self, run: Run) -> Quantity:
        field, schedule = run.model.field(), Cosine(run.model.schedule.least, run.model.schedule.most)
        noise = normal(generator(run.data.seed, "SamplerOrder"), self.draws, run.data.d)

        def end(solver: Sampler, steps: int) -> Tensor:
            return sample(solver, field, noise, schedule.levels(steps))

        exact = end(Heun(), 8 * self.steps[-1])
        errors = [[(end(solver, n) - exact).square().sum(1).mean() for n in self.steps] for solver in self.solvers]
        return Quantity([self.slope(0.5 * torch.stack(squares).log()) for squares in errors])

    def slope(self, log_errors: Tensor) -> float:
        """−d ln error/d ln N by least squares."""
        x = torch.tensor(self.steps, dtype=torch.float64).log()
        x = x - x.mean()
        return -float((x * log_errors).sum() / x.square().sum())


def _exact_score(data: GaussianMixture, x: Tensor, log_snr: Tensor) -> Tensor:
    """∇ ln p_t(x) by automatic differentiation; of it a derivative can be taken again. (n, 2) → (n, 2)"""
    alpha, sigma = signal_and_noise(log_snr)
    weights, means, covariances = data.law
    noisy = alpha**2 * covariances + sigma**2 * torch.eye(2, dtype=x.dtype)
    law = MixtureSameFamily(Categorical(weights), MultivariateNormal(alpha * means, noisy))
    again = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        at = x if x.requires_grad else x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(law.log_prob(at).sum(), at, create_graph=again)
    return gradient
