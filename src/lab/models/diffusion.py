"""Diffusion models: the denoising loss, samples along the reverse process, bounds of the likelihood."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from lab.algorithms.samplers import Sampler, Velocity, denoised, sample
from lab.algorithms.schedules import Schedule, signal_and_noise
from lab.data.blocks import Block, InMemoryData
from lab.data.digits import GreyImages, Images
from lab.errors import Refusal
from lab.models.stepped import SteppedModule
from lab.nets.denoiser import MLPDenoiser
from lab.nets.unet import UNet
from lab.random import generator, normal, uniform
from lab.types import Positive, PositiveInt

log = logging.getLogger("lab")


def broadcast(log_snr: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(α, σ) of each row of x. (n,), (n, ...) → (n, 1, ...) twice"""
    alpha, sigma = signal_and_noise(log_snr)
    shape = (-1, *[1] * (x.ndim - 1))
    return alpha.reshape(shape), sigma.reshape(shape)


def squared_errors(velocity: Velocity, x: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    """‖ε − ε̂(α x + σ ε, λ)‖², ε̂(x_t, λ) = σ x_t + α v(x_t, λ). (n, ...), (n, ...), (n,) → (n,)

    The network gives v, from which ε̂ is made: so it is x_t itself where there is nothing but noise.

    (Ho, Jain & Abbeel 2020, eq. 14; v: Salimans & Ho 2022, eq. 9.)
    """
    alpha, sigma = broadcast(log_snr, x)
    noisy = alpha * x + sigma * noise
    predicted = sigma * noisy + alpha * velocity(noisy, log_snr)
    return (noise - predicted).square().flatten(1).sum(1)


def stratified(uniform: Tensor, share: slice, batch_size: int) -> Tensor:
    """t = (i + u)/B for the rows i of `share` of a batch of B: uniform on [0, 1], and evenly spread over the batch.

    (Kingma, Salimans, Poole & Ho 2021, App. I.1.)
    """
    place = torch.arange(share.start, share.stop, device=uniform.device)
    return (place + uniform) / batch_size


class Diffusion(SteppedModule):
    """Trains `net` to tell the noise in x_t = α x₀ + σ ε, x₀ = (x − offset)/scale, at all log-SNRs of `schedule`.

    Args:
        net: (x_t, λ) → v.
        schedule: at which noise levels, and how often.
        sampler, sample_steps: how samples are drawn.
        shape: height and width of an image; null where x is no image.
        offset, scale: of the data, so that x₀ has mean 0 and variance 1, roughly.
        antithetic: look at each x₀ with ε and with −ε. Where there is little noise the two errors cancel, and with them
            nearly all that a gradient varies by from batch to batch.
        bound_draws: of (image held out, t, ε), over which the bound of −log₂ p that is logged at the end is a mean.
        octaves: samples, likelihoods and claims tell the network an SNR 2^octaves times that of x_t. 0 is right.
        training: optimizer, scheduler and the other parameters of a `SteppedModule`.
    """

    def __init__(
        self,
        net: MLPDenoiser | UNet,
        schedule: Schedule,
        sampler: Sampler,
        shape: list[PositiveInt] | None = None,
        offset: float = 0.0,
        scale: Positive = 1.0,
        antithetic: bool = False,
        octaves: float = 0.0,
        sample_steps: PositiveInt = 32,
        bound_draws: Annotated[int, Ge(2)] = 1000,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.bound_draws = bound_draws
        self.net, self.schedule, self.sampler, self.sample_steps = net, schedule, sampler, sample_steps
        self.shape = None if shape is None else tuple(shape)
        self.offset, self.scale, self.antithetic, self.octaves = offset, scale, antithetic, octaves

    def check(self, data: InMemoryData) -> None:
        """Refuse data of another size than the net's."""
        d = getattr(data, "d", None)
        if d is None:
            raise Refusal("data._target_ must make points or images, such as GaussianMixture: Diffusion needs such")
        if self.net.d != d:
            raise Refusal(f"model.net.d={self.net.d} must be {d}: the data have {d} dimensions")
        if isinstance(data, Images) and (self.shape is None or list(self.shape) != list(data.shape)):
            shape = None if self.shape is None else list(self.shape)
            raise Refusal(f"shape={shape} must be {list(data.shape)}, the height and width of the images")

    def batches(self, block: Block) -> Iterable[Any]:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        share, steps = data.order.share(data.rank, data.world_size), range(block.step, block.step + len(block))
        draws = data.noise(steps.start, steps.stop, self.net.d)  # (S, b, d)
        times = stratified(data.order.uniform(steps, share), share, data.order.batch_size)
        levels = self.schedule.log_snr(times).to(draws)  # (S, b)
        return (
            (x, weight, noise, level) for (x, weight), noise, level in zip(block.batches, draws, levels, strict=True)
        )

    def objective(self, batch: tuple[Tensor, float, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x, weight, noise, log_snr = batch
        x = self.signal(x)
        if self.antithetic:
            x, noise, log_snr = torch.cat([x, x]), torch.cat([noise, -noise]), torch.cat([log_snr, log_snr])
        loss = weight * squared_errors(self.net, x, noise, log_snr).mean() / self.net.d
        return loss, {"loss/net": loss.detach()}

    def signal(self, x: Tensor) -> Tensor:
        """x₀ of data x."""
        return (x - self.offset) / self.scale

    def on_fit_end(self) -> None:
        super().on_fit_end()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, GreyImages) and self.trainer.is_global_zero:
            said = "bound of %d draws of %d images held out: %.3f ± %.3f bits a dimension"
            log.info(said, self.bound_draws, len(data.held_out), *self.bits(data))

    @torch.no_grad()
    def bits(self, data: GreyImages) -> tuple[float, float]:
        """(mean, standard error) of the bound of −log₂ p, in bits a dimension, over draws of (image held out, t, ε).

        The error is that of independent draws; times spread evenly make it somewhat less.
        """
        draw, field, draws = generator(data.seed, "held out"), self.field(torch.float32), self.bound_draws
        rows = data.held_out[torch.randint(len(data.held_out), (draws,), generator=draw).to(data.held_out.device)]
        times = stratified(uniform(draw, draws), slice(0, draws), draws).float()
        grey = self.signal(torch.linspace(0, 1, data.grey, device=self.device))
        bounds = []
        for pixels, t in zip(rows.split(50), times.split(50), strict=True):
            x = self.signal(data.as_pixels(pixels.to(self.device)).float())
            noise, last = (normal(draw, *x.shape).to(x) for _ in range(2))
            terms = prior_divergence(x, self.schedule.least), reconstruction_loss(x, last, grey, self.schedule.most)
            bounds.append((sum(terms) + diffusion_bound(field, self.schedule, x, noise, t.to(x))).double())
        each = torch.cat(bounds) / (data.d * math.log(2))
        return float(each.mean()), float(each.std()) / draws**0.5

    def field(self, dtype: torch.dtype = torch.float64) -> Velocity:
        """The trained network as a sampler sees it, its weights fixed: (x (n, d), λ () or (n,)) → v (n, d)."""
        net = copy.deepcopy(self.net).to(dtype).eval().requires_grad_(False)
        shift = self.octaves * math.log(2)
        return lambda x, log_snr: net(x, (log_snr + shift).expand(len(x)))

    def draw(self, n: int, draw: torch.Generator, sampler: Sampler, steps: int, dtype: torch.dtype) -> Tensor:
        """n samples of x by so many steps of a sampler, in the units of the data: (n, d)."""
        field, levels = self.field(dtype), self.schedule.levels(steps)
        x = sample(sampler, field, normal(draw, n, self.net.d).to(self.device, dtype), levels, draw)
        return self.offset + self.scale * denoised(field, x, levels[-1])

    def sample(self, n: int, draw: torch.Generator) -> Tensor:
        """n samples, all randomness drawn on the CPU: (n, height, width) of images, (n, d) of points."""
        x = self.draw(n, draw, self.sampler, self.sample_steps, torch.float32)
        return x if self.shape is None else x.unflatten(-1, self.shape)


def prior_divergence(x: Tensor, least: float) -> Tensor:
    """KL(N(α x₀, σ²I) ‖ N(0, I)) at the log-SNR `least`, in nats. (n, d) → (n,)

    (Kingma, Salimans, Poole & Ho 2021, eq. 13.)
    """
    alpha, sigma = signal_and_noise(torch.tensor(least, dtype=x.dtype, device=x.device))
    return 0.5 * (alpha.square() * x.square() + sigma.square() - 1 - 2 * sigma.log()).sum(1)


def diffusion_bound(velocity: Velocity, schedule: Schedule, x: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """½ (−λ'(t)) ‖ε − ε̂‖²: its mean over t and ε is ½ ∫ E‖ε − ε̂‖² dλ, whatever the schedule between its ends. Nats.

    (Kingma, Salimans, Poole & Ho 2021, eq. 17 and 18.)

    Args:
        x: x₀, (n, d). noise: (n, d). times: (n,).

    Returns: (n,)
    """
    return 0.5 * schedule.speed(times) * squared_errors(velocity, x, noise, schedule.log_snr(times))


def reconstruction_loss(x: Tensor, noise: Tensor, grey: Tensor, most: float) -> Tensor:
    """−ln p(x₀ | x₀ + e^{−λ/2} ε), each pixel one of the values `grey`, at the log-SNR λ = `most`, in nats. → (n,)

    p(x₀|y) ∝ exp(−½ e^λ (y − x₀)²): what is left to be told of the data at the level of the least noise.

    (Kingma, Salimans, Poole & Ho 2021, App. A.)

    Args:
        x: x₀, (n, d). noise: (n, d). grey: (g,).
    """
    seen = x + math.exp(-0.5 * most) * noise
    told = -0.5 * math.exp(most) * (seen.unsqueeze(-1) - grey).square()
    exact = -0.5 * math.exp(most) * (seen - x).square()
    return (told.logsumexp(-1) - exact).sum(1)
