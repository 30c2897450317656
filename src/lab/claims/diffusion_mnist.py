"""Diffusion models of images, whose law nobody knows: what is known of every law with the data's mean and covariance.

x_t = α x₀ + σ ε at log-SNR λ = ln α²/σ², x₀ the pixels from −1 to 1. Losses are ‖ε − ε̂‖², summed over pixels, of images
held out from training.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from lab.algorithms.frechet import frechet_distance, jackknife_error
from lab.algorithms.schedules import Cosine, Linear
from lab.claim import Claim, Quantity, Run, at_most, equal
from lab.data.digits import GreyImages
from lab.errors import Refusal
from lab.models.diffusion import Diffusion, diffusion_bound, squared_errors, stratified
from lab.models.features import features
from lab.random import generator, normal, uniform
from lab.theory import pca, transport, wiener
from lab.types import PositiveInt

OFFSET, SCALE = 0.5, 0.5
"""Of the pixels: x₀ = (pixel − ½)/½."""


class _OfImages(Claim):
    """A claim about images with others held out."""

    def check(self, data: GreyImages, model: Diffusion) -> None:
        if not isinstance(data, GreyImages):
            raise Refusal("data._target_ must be GreyDigits or GreyMNIST: the claim is about images held out")
        if (model.offset, model.scale) != (OFFSET, SCALE):
            raise Refusal(f"model.offset must be {OFFSET} and model.scale {SCALE}: the claim takes pixels so")


@lru_cache(maxsize=1)
def _spectrum(data: GreyImages) -> tuple[Tensor, Tensor, Tensor]:
    """(mean (d,), eigenvalues (d,), eigenvectors (d, d) in columns) of x₀ over the training images, in float64."""
    x = (data.as_pixels(data.x).double() - OFFSET) / SCALE
    mean = x.mean(0)
    values, vectors = pca.principal_components(x - mean)
    return mean, values.clamp(min=0), vectors


class Wiener(_OfImages):
    """At each noise level the network tells more of the noise than the best linear filter

    E Var(ε|x_t) is at most what the best affine estimate leaves, Σᵢ e^λ μᵢ/(1 + e^λ μᵢ) with μᵢ the eigenvalues of the
    covariance of x₀: of all laws with this covariance the Gaussian hides most. A network that stays above has not found
    what the filter has. Where there is next to
    no signal the filter itself is nearly the best there is, so the levels begin at λ = −2.

    Args:
        least, most: log-SNRs, the levels are the integers between, every second.
        images: of those held out, how many.
    """

    reference = "Guo, Shamai & Verdú 2011, Prop. 15; Wiener 1949"
    symbol, x_symbol, log = r"$E\|\varepsilon - \hat\varepsilon\|^2$", r"log-SNR $\lambda$", "y"
    relation = at_most(
        "the least of the linear losses; a network that is better is so by far: of digits by 11 % at λ = 0 and by 33 % "
        "and more from λ = 2 on"
    )

    def __init__(self, least: int = -2, most: int = 6, images: PositiveInt = 200) -> None:
        if least >= most:
            raise Refusal(f"least={least} must be below most={most}")
        self.levels, self.images = tuple(range(least, most + 1, 2)), images

    def predict(self, data: GreyImages) -> Quantity:
        _, eigenvalues, _ = _spectrum(data)
        return Quantity([wiener.linear_mean_squared_error(eigenvalues, v) for v in self.levels], x=self.levels)

    def measure(self, run: Run) -> Quantity:
        field = run.model.field(torch.float32)
        x = run.model.signal(run.data.examples(self.images)[0].float())
        means, errors = [], []
        for level in self.levels:
            noise = normal(generator(run.data.seed, "Wiener", level), *x.shape).float()
            at = torch.full((len(x),), float(level))
            losses = torch.cat(
                [squared_errors(field, *rows) for rows in zip(x.split(50), noise.split(50), at.split(50), strict=True)]
            )
            means.append(losses.double().mean())
            errors.append(losses.double().std() / len(x) ** 0.5)
        return Quantity(torch.stack(means), torch.stack(errors))


def _bounds(run: Run, schedule: Linear | Cosine, repeats: int, images: int, name: str) -> Tensor:
    """½ ∫ E‖ε − ε̂‖² dλ of images held out, in bits a dimension, from times of a schedule: one mean a repeat."""
    field, means = run.model.field(torch.float32), []
    pixels = run.model.signal(run.data.examples(len(run.data.held_out))[0].float())
    for repeat in range(repeats):
        draw = generator(run.data.seed, name, repeat)
        x = pixels[torch.randint(len(pixels), (images,), generator=draw)]
        noise = normal(draw, *x.shape).float()
        times = stratified(uniform(draw, images), slice(0, images), images).float()
        parts = zip(x.split(50), noise.split(50), times.split(50), strict=True)
        means.append(torch.cat([diffusion_bound(field, schedule, *part) for part in parts]).double().mean())
    return torch.stack(means) / (pixels.shape[1] * math.log(2))


class GaussianCode(_OfImages):
    """The network needs fewer bits an image than a Gaussian with the data's covariance

    The bound of −ln p(x₀) is ½ ∫ E‖ε − ε̂‖² dλ and two terms at the ends, the same for everyone. The best linear filter
    has ½ Σᵢ ln (1 + e^most μᵢ)/(1 + e^least μᵢ). In bits a dimension.
    """

    reference = "Kingma, Salimans, Poole & Ho 2021, eq. 18; Guo, Shamai & Verdú 2005, Thm 1"
    symbol = "bits a dimension"
    relation = at_most("the code length of a Gaussian; of a trained network it is far off")

    def __init__(
        self, least: float = -6.0, most: float = 8.0, repeats: PositiveInt = 4, images: PositiveInt = 200
    ) -> None:
        self.least, self.most, self.repeats, self.images = least, most, repeats, images

    def check(self, data: GreyImages, model: Diffusion) -> None:
        super().check(data, model)
        for name in ("least", "most"):
            if getattr(self, name) != getattr(model.schedule, name):
                raise Refusal(
                    f"{name}={getattr(self, name)} must be {getattr(model.schedule, name)}, as model.schedule"
                )

    def predict(self, data: GreyImages) -> Quantity:
        _, eigenvalues, _ = _spectrum(data)
        return Quantity(wiener.linear_bound(eigenvalues, self.least, self.most) / (data.d * math.log(2)))

    def measure(self, run: Run) -> Quantity:
        each = _bounds(run, Linear(self.least, self.most), self.repeats, self.images, "GaussianCode")
        return Quantity(each.mean(), each.std() / self.repeats**0.5 if self.repeats > 1 else 0.0)


class AnySchedule(_OfImages):
    """The bound of the likelihood is the same under every schedule between the same two noise levels

    ½ ∫ E‖ε − ε̂‖² dλ has no time in it: with times of a schedule each loss counts −λ'(t) times. Measured is the
    difference between times of a linear and of a cosine schedule, with draws of its own, in bits a dimension.

    Args:
        weighted: let each loss count −λ'(t) times; false counts all alike, which is what training does.
    """

    reference = "Kingma, Salimans, Poole & Ho 2021, §5.1"
    symbol = "difference / bits a dimension"
    relation = equal(
        "sampling error: six standard errors of the difference of two means of 8 repeats each, beyond which Student's "
        "t of 14 degrees is 3 times in 10⁵",
        k=6,
    )
    repeats = 8

    def __init__(self, weighted: bool = True, images: PositiveInt = 150) -> None:
        self.weighted, self.images = weighted, images

    def predict(self, data: GreyImages) -> Quantity:
        return Quantity(0.0)

    def measure(self, run: Run) -> Quantity:
        ends = (run.model.schedule.least, run.model.schedule.most)
        linear, cosine = Linear(*ends), Cosine(*ends)
        if not self.weighted:
            cosine.speed = linear.speed  # type: ignore[method-assign]
        one, other = (_bounds(run, s, self.repeats, self.images, type(s).__name__) for s in (linear, cosine))
        error = ((one.var() + other.var()) / self.repeats).sqrt()
        return Quantity(one.mean() - other.mean(), error)


class Frechet(_OfImages):
    """Samples are nearer to images held out, in a classifier's features, than images drawn from a Gaussian are

    The Fréchet distance between the features of n samples and of n images held out, features being the last hidden
    layer of a small classifier of the training images. Theory's side is that of n images of the Gaussian with the
    data's mean and covariance, clipped to black and white: what the linear filter's diffusion would sample. The error
    is that of both draws, for the reader alone: nothing is allowed for it. The two sides look at images through the
    same classifier, a function of the data alone, and share nothing else.
    """

    reference = "Heusel et al. 2017, eq. 6; Dowson & Landau 1982"
    symbol = "Fréchet distance"
    relation = at_most(
        "the distance of the best linear model's samples; of digits a trained network's is less than half of it"
    )

    def __init__(self, n: Annotated[int, Ge(20)] = 300, steps: PositiveInt = 32) -> None:
        self.n, self.steps = n, steps

    def predict(self, data: GreyImages) -> Quantity:
        mean, values, vectors = _spectrum(data)
        draws = normal(generator(data.seed, "Gaussian"), self.n, data.d) * values.sqrt()
        drawn = features(data, OFFSET + SCALE * (mean + draws @ vectors.mT)).double()
        real = features(data, data.examples(self.n)[0]).double()
        moments = [moment for x in (drawn, real) for moment in (x.mean(0), x.mT.cov())]
        return Quantity(transport.bures_wasserstein(*moments))

    def measure(self, run: Run) -> Quantity:
        draw = generator(run.data.seed, "Frechet")
        images = run.model.draw(self.n, draw, run.model.sampler, self.steps, torch.float32)
        held_out, _ = run.data.examples(self.n)
        held_out = held_out[torch.randperm(len(held_out), generator=draw)]  # a file's order would hide the error
        samples = features(run.data, images), features(run.data, held_out)
        return Quantity(frechet_distance(*samples), jackknife_error(*samples))
