"""The evidence lower bound: with reparametrised noise, in closed form for a linear model, and importance-weighted."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lab.data.blocks import Block, InMemoryData
from lab.data.digits import CentredImages, Images
from lab.errors import Refusal
from lab.models.stepped import SteppedModule
from lab.nets.likelihoods import Bernoulli, Gaussian
from lab.nets.vae import MLPVAE, LinearVAE
from lab.random import generator, normal
from lab.types import NonNegative, PositiveInt

log = logging.getLogger("lab")


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(m, diag v) ‖ N(0, I)) = ½ Σⱼ (mⱼ² + vⱼ − 1 − ln vⱼ). (..., k), (..., k) → (...)

    (Kingma & Welling 2014, App. B.)
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def sampled_elbo(net: MLPVAE, x: Tensor, noise: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """(ln p(x|z) − β KL(q(z|x) ‖ p(z)) at z = m + v^½ε, its second term's KL): an unbiased estimate of the bound.

    (Kingma & Welling 2014, eq. 10; β: Higgins et al. 2017.)

    Args:
        x: (B, d). noise: ε ~ N(0, I), (B, k).

    Returns: (B,), (B,)
    """
    mean, log_variance = net.encode(x)
    z = mean + (0.5 * log_variance).exp() * noise
    kl = kl_divergence(mean, log_variance)
    return net.likelihood(x, net.decode(z)) - beta * kl, kl


def linear_elbo(net: LinearVAE, x: Tensor, beta: float = 1.0) -> Tensor:
    """E_q ln p(x|z) − β KL(q(z|x) ‖ p(z)) of a linear model, its expectation taken exactly. (B, d) → (B,)

    z = Vx + v^½ε makes x − Wz Gaussian, so E‖x − Wz‖² = ‖x − WVx‖² + tr W diag(v) Wᵀ, the latter Σⱼ vⱼ‖wⱼ‖².

    (Lucas, Tucker, Grosse & Norouzi 2019, §4.)
    """
    mean, log_variance = net.encode(x)
    spread = (log_variance.exp() * net.weight.square().sum(0)).sum(-1)  # (B,)
    squares = (x - net.decode(mean)).square().sum(-1) + spread
    return net.likelihood.of_squares(squares, net.d) - beta * kl_divergence(mean, log_variance)


def log_weights(net: LinearVAE | MLPVAE, x: Tensor, noise: Tensor, width: float = 1.0) -> Tensor:
    """ln w = ln p(x|z) + ln p(z) − ln q(z|x) at z = m + s v^½ε, q the encoder's Gaussian made s = `width` times wider.

    ln p(z) − ln q(z|x) = ½(‖ε‖² − ‖z‖²) + Σⱼ ln (s vⱼ^½): the constants of the two densities cancel.

    Args:
        x: (B, d). noise: ε, (..., B, k).

    Returns: (..., B)
    """
    mean, log_variance = net.encode(x)
    z = mean + width * (0.5 * log_variance).exp() * noise
    log_ratio = 0.5 * (noise.square() - z.square()).sum(-1) + (0.5 * log_variance + math.log(width)).sum(-1)
    return net.likelihood(x, net.decode(z)) + log_ratio


def importance_weighted(log_weights: Tensor) -> Tensor:
    """ln (1/K) Σᵢ wᵢ, stable for weights of any size. (K, ...) → (...)

    (Burda, Grosse & Salakhutdinov 2016, eq. 8.)
    """
    return log_weights.logsumexp(0) - math.log(len(log_weights))


@torch.no_grad()
def evidence_by_quadrature(net: MLPVAE, x: Tensor, reach: float = 8.0, step: float = 0.04) -> Tensor:
    """ln p(x) = ln ∫ p(x|z) p(z) dz of a net with one or two codes and a Gaussian likelihood, in float64.

    By the trapezoidal rule on the grid of spacing h = `step` from −`reach` to `reach`. Its error falls as
    exp(−2π²s²/h²) in the width s of the integrand, so it is below 10⁻⁴ where the posterior is wider than 0.03.

    (Trefethen & Weideman 2014, Thm 5.1.)

    Args:
        x: (B, d)

    Returns: (B,)
    """
    net = copy.deepcopy(net).double()
    assert isinstance(net.likelihood, Gaussian)
    axis = torch.linspace(-reach, reach, 2 * round(reach / step) + 1, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * net.k).reshape(-1, net.k)  # (G, k)
    log_prior = -0.5 * z.square().sum(-1) + net.k * (math.log(step) - 0.5 * math.log(2 * math.pi))
    output = net.decode(z)  # (G, d)
    joint = (
        net.likelihood.of_squares(torch.cdist(rows, output).square(), net.d) + log_prior
        for rows in x.double().split(32)
    )
    return torch.cat([density.logsumexp(-1) for density in joint])


class VAE(SteppedModule):
    """Trains `net` by the sampled bound and, beside it, `linear` by the exact one; they share no parameter.

    Args:
        net: encoder, decoder and likelihood.
        shape: height and width of an image.
        linear: a linear model to train on the same batches.
        beta: the weight of KL(q(z|x) ‖ p(z)); 1 is the bound, 0 an autoencoder with noise in its codes.
        training: optimizer, scheduler and the other parameters of a `SteppedModule`.
    """

    splits = False  # encoder and decoder are called one by one
    mean: Tensor

    def __init__(
        self,
        net: MLPVAE,
        shape: list[PositiveInt],
        linear: LinearVAE | None = None,
        beta: NonNegative = 1.0,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.net, self.linear, self.beta, self.shape = net, linear, beta, tuple(shape)
        self.register_buffer("mean", torch.zeros(net.d, device="cpu"))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.mean.copy_(self.trainer.datamodule.mean)  # type: ignore[attr-defined]

    def check(self, data: InMemoryData) -> None:
        """Refuse data that are no images, of another size than the nets', or of pixels that the loss cannot take."""
        if not isinstance(data, Images):
            raise Refusal("data._target_ must make a lab.data.digits.Images, such as Digits: VAE trains on no other")
        if self.net.d != data.d:
            raise Refusal(f"model.net.d={self.net.d} must be {data.d}: the data have {data.d} dimensions")
        if self.linear is not None and self.linear.d != data.d:
            raise Refusal(f"model.linear.d={self.linear.d} must be {data.d}: the data have {data.d} dimensions")
        if self.linear is not None and not isinstance(data, CentredImages):
            raise Refusal("model.linear must be null: the linear model has no bias, so its data must be centred")
        if isinstance(self.net.likelihood, Bernoulli) and isinstance(data, CentredImages):
            raise Refusal("model.net.likelihood must be a Gaussian: centred pixels are no probabilities")
        if list(self.shape) != list(data.shape):
            raise Refusal(f"shape={list(self.shape)} must be {list(data.shape)}, the height and width of the images")

    def batches(self, block: Block) -> Iterable[Any]:
        noise = self.trainer.datamodule.noise(block.step, block.step + len(block), self.net.k)  # type: ignore[attr-defined]
        return ((x, weight, draws) for (x, weight), draws in zip(block.batches, noise, strict=True))

    def objective(self, batch: tuple[Tensor, float, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x, weight, noise = batch
        bound, kl = sampled_elbo(self.net, x, noise, self.beta)
        loss = -weight * bound.mean()
        logged = {"loss/net": loss.detach(), "kl/net": weight * kl.detach().mean()}
        if self.linear is not None:
            exact = -weight * linear_elbo(self.linear, x, self.beta).mean()
            loss, logged = loss + exact, logged | {"loss/linear": exact.detach()}
        return loss, logged

    def on_fit_end(self) -> None:
        super().on_fit_end()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.held_out is not None and self.trainer.is_global_zero:
            log.info("loss/net of the %d images held out: %.2f nats", len(data.held_out), self.held_out_loss(data))

    @torch.no_grad()
    def held_out_loss(self, data: Images) -> float:
        """The loss of `net` on the images held out, one draw each: nats an image."""
        assert data.held_out is not None
        draw, total = generator(data.seed, "held out"), 0.0
        for rows in data.held_out.split(1000):
            x = data.as_pixels(rows.to(self.mean.device))
            total -= float(sampled_elbo(self.net, x, normal(draw, len(x), self.net.k).to(x), self.beta)[0].sum())
        return total / len(data.held_out)

    @torch.no_grad()
    def sample(self, n: int, draw: torch.Generator) -> Tensor:
        """n images E[x|z], z ~ N(0, I) drawn on the CPU: (n, height, width), in the units of the pixels."""
        z = normal(draw, n, self.net.k).to(self.mean)
        x = self.net.likelihood.mean(self.net.decode(z)) + self.mean
        return x.unflatten(-1, self.shape)
