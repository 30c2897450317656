"""Variational autoencoders: a linear one is probabilistic PCA, and importance weights close the gap to the evidence.

λ₁ ≥ … ≥ λ_d are the eigenvalues of the sample covariance and σ² the mean of λ_{k+1} … λ_d. The linear model has encoder
N(Vx, diag v) and decoder N(Wz, σ²I). Evidences and bounds are means over images, in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lab.claim import Claim, Quantity, Run, at_least, equal
from lab.data.digits import CentredImages, Images
from lab.errors import Refusal
from lab.models.vae import (
    VAE,
    evidence_by_quadrature,
    importance_weighted,
    linear_elbo,
    log_weights,
    sampled_elbo,
)
from lab.nets.likelihoods import Gaussian
from lab.random import generator, normal
from lab.theory import importance, pca, ppca
from lab.types import PositiveInt

GAP = 2e-3
"""Nats an image that optimisation may leave; 0.0001 is the most that was seen."""


class _AboutLinear(Claim):
    """A claim about the linear model with k codes."""

    def __init__(self, k: PositiveInt) -> None:
        self.k = k

    def check(self, data: CentredImages, model: VAE) -> None:
        if model.linear is None:
            raise Refusal("model.linear=null is not allowed: this claim is about the linear model")
        if self.k != model.linear.k:
            raise Refusal(f"k={self.k} must equal model.linear.k={model.linear.k}: the claim is about its codes")

    def eigenvalues(self, data: CentredImages) -> Tensor:
        return pca.principal_components(data.x.double())[0]


class Evidence(_AboutLinear):
    """The linear model's bound is the greatest evidence of pPCA, −½(d ln 2π + Σ_{i≤k} ln λᵢ + (d−k) ln σ² + d)

    For W = U_k(Λ_k − σ²I)^½ the posterior N(M⁻¹Wᵀx, σ²M⁻¹), M = WᵀW + σ²I = Λ_k, has a diagonal covariance: the encoder
    can be exactly it, and the bound is then ln p(x) itself. Any rotation of W has the same evidence but a posterior
    that is not diagonal, so of all maxima of likelihood the bound picks the principal axes. Measured by the exact
    bound, nothing is sampled.
    """

    reference = "Tipping & Bishop 1999, eq. 9; Lucas, Tucker, Grosse & Norouzi 2019, §4"
    symbol = "bound / nats"
    relation = equal(
        "optimisation error: nats that are left where two eigenvalues are close and turning their axes costs next to "
        "nothing; a covariance divided by n − 1 would be d/2n = 0.018 away",
        atol=GAP,
    )

    def predict(self, data: CentredImages) -> Quantity:
        return Quantity(ppca.maximum_log_likelihood(self.eigenvalues(data), self.k))

    def measure(self, run: Run) -> Quantity:
        return Quantity(linear_elbo(run.model.linear, run.data.x).detach().double().mean())


class DecoderVariance(_AboutLinear):
    """The learned decoder variance is the mean of the discarded eigenvalues

    At the maximum σ² = (1/(d − k)) Σ_{i>k} λᵢ. Where the encoder is not the posterior, as under another weight β of the
    divergence, it is not: σ²(d − βk′) = Σ_{i>k′} λᵢ then, k′ the number of λᵢ above βσ².
    """

    reference = "Tipping & Bishop 1999, eq. 8"
    symbol = r"$\sigma^2$"
    relation = equal(
        "optimisation error; below the 1/n by which a covariance divided by n − 1 would differ",
        rtol=2e-4,
    )

    def predict(self, data: CentredImages) -> Quantity:
        return Quantity(ppca.noise_variance(self.eigenvalues(data), self.k))

    def measure(self, run: Run) -> Quantity:
        return Quantity(run.model.linear.likelihood.log_variance.detach().double().exp())


class AggregatePosterior(_AboutLinear):
    """The aggregate posterior (1/n) Σ q(z|xᵢ) of the linear model has mean 0 and covariance I

    Its covariance is V S Vᵀ + diag v = (Λ_k − σ²I)Λ_k⁻¹ + σ²Λ_k⁻¹ = I, in every direction, collapsed ones included, and
    its mean is V times that of the data, 0. It is a mixture of n Gaussians and itself a Gaussian only if the data are:
    the first two moments are all that is N(0, I) here.
    """

    reference = "Tipping & Bishop 1999, §3.2; Hoffman & Johnson 2016"
    symbol = r"moments of $q(z)$"
    relation = equal(
        "optimisation error: of all ways to be wrong, a code stretched by 1 + e moves the moments most for what it "
        "costs, 2e for e² nats, so the gap that evidence allows leaves 2√0.002 = 0.089; the covariance of the means "
        "alone, without the codes' own variance, is 0.28 away",
        atol=2 * GAP**0.5,
        norm=True,
    )

    def predict(self, data: CentredImages) -> Quantity:
        return Quantity([0.0] * self.k + torch.eye(self.k).flatten().tolist())

    def measure(self, run: Run) -> Quantity:
        mean, log_variance = (t.detach().double() for t in run.model.linear.encode(run.data.x))
        covariance = torch.cov(mean.mT, correction=0) + log_variance.exp().mean(0).diag()
        return Quantity(torch.cat([mean.mean(0), covariance.flatten()]))


class ImportanceWeighted(_AboutLinear):
    """Under a proposal s times wider than the posterior, the bound of K importance weights follows its exact curve

    The weights of the linear model are ln w = ln p(x) + k ln s − ½(s² − 1)χ²_k, whatever x, so E ln (1/K) Σ wᵢ is one
    curve of K: it begins KL(q‖p) = k(½(s² − 1) − ln s) below the evidence and ends in it as Var(w)/2K. The standard
    error is that of the draws alone, from `repeats` draws of each image: both sides are about the same images.
    """

    reference = "Burda, Grosse & Salakhutdinov 2016, Thm 1; Nowozin 2018, Prop. 1"
    symbol, x_symbol, log = "bound / nats", "weights $K$", "x"
    relation = equal(
        "sampling error of the draws, 4.5 standard errors at 7 points, which refutes a correct run 5 times in 10⁵, and "
        "what optimisation leaves of the evidence; for K > 1 the mean of logarithms is 60 to 900 standard errors away",
        k=4.5,
        atol=GAP,
    )
    samples = (1, 2, 4, 8, 16, 32, 64)

    def __init__(self, k: PositiveInt, width: float = 1.5, repeats: PositiveInt = 8) -> None:
        if width <= 1:
            raise Refusal(f"width={width} must be above 1: the weights of a narrower proposal have no bound")
        if repeats < 2:
            raise Refusal(f"repeats={repeats} must be at least 2: a standard error needs two")
        super().__init__(k)
        self.width, self.repeats = width, repeats

    def predict(self, data: CentredImages) -> Quantity:
        evidence = ppca.maximum_log_likelihood(self.eigenvalues(data), self.k)
        below = [importance.importance_weighted_bound(n, self.k, self.width) for n in self.samples]
        return Quantity([float(evidence) + gap for gap in below], x=self.samples)

    def measure(self, run: Run) -> Quantity:
        draw, x, bounds = generator(run.data.seed, "ImportanceWeighted"), run.data.x, []
        for _ in range(self.repeats):
            noise = normal(draw, max(self.samples), len(x), self.k).to(x)
            weights = log_weights(run.model.linear, x, noise, self.width).detach().double()  # (K, n)
            bounds.append(torch.stack([importance_weighted(weights[:n]) for n in self.samples]))
        each = torch.stack(bounds)  # (repeats, points, n)
        error = (each.var(0).mean(-1) / (self.repeats * len(x))).sqrt()
        return Quantity(each.mean((0, 2)), error)


class ImportanceBounds(Claim):
    """Of the nonlinear model, trained bound ≤ bound of K weights ≤ bound of 2K weights ≤ evidence

    Jensen's inequality: the mean of more independent weights, each of mean p(x), varies less, so its logarithm has a
    greater mean. Measured are the gains along the chain, K = 1, 2, 4, …, each from draws of its own, for with shared
    draws they could not be negative. The trained bound is what training maximised, with its own β; the evidence, last
    in the chain, is ∫ p(x|z) p(z) dz by quadrature, which two codes allow.

    Args:
        images: how many of the data's examples.
        draws: of each image and each bound.
        evidence: end the chain with the evidence.
    """

    reference = "Burda, Grosse & Salakhutdinov 2016, Thm 1"
    symbol, x_symbol, log = "gain / nats", "weights $K$ (the last: evidence)", "x"
    relation = at_least(
        "sampling error over images and draws, one-sided 4.5 standard errors at up to 7 points: a correct run whose "
        "gains were all 0 would be refuted 3 times in 10⁵",
        k=4.5,
    )
    samples = (2, 4, 8, 16, 32, 64)

    def __init__(self, images: PositiveInt = 256, draws: PositiveInt = 512, evidence: bool = True) -> None:
        if draws < 64:
            raise Refusal(f"draws={draws} must be at least 64: that many weights are in one bound")
        self.images, self.draws, self.evidence = images, draws, evidence

    def check(self, data: Images, model: VAE) -> None:
        if self.evidence and model.net.k > 2:
            raise Refusal(f"evidence=true needs model.net.k of 1 or 2, not {model.net.k}: it is an integral on a grid")
        if self.evidence and not isinstance(model.net.likelihood, Gaussian):
            raise Refusal("evidence=true needs a Gaussian at model.net.likelihood: it has a peak that a grid resolves")

    def predict(self, data: Images) -> Quantity:
        x = [*self.samples, 2 * max(self.samples)] if self.evidence else self.samples
        return Quantity([0.0] * len(x), x=x)

    def measure(self, run: Run) -> Quantity:
        bounds = torch.stack(self.chain(run))  # (points + 1, n)
        gains = bounds.diff(dim=0)
        return Quantity(gains.mean(1), gains.std(1) / gains.shape[1] ** 0.5)

    @torch.no_grad()
    def chain(self, run: Run) -> list[Tensor]:
        """The trained bound, those of more and more weights and the evidence, image by image: (n,) each."""
        net, (x, _), draw = run.model.net, run.data.examples(self.images), generator(run.data.seed, "ImportanceBounds")

        def noise() -> Tensor:
            return normal(draw, self.draws, len(x), net.k).to(x)

        chain = [torch.stack([sampled_elbo(net, x, one, run.model.beta)[0] for one in noise()]).double().mean(0)]
        for n in self.samples:
            weights = torch.stack([log_weights(net, x, one) for one in noise()]).double()  # (draws, n)
            whole = weights[: self.draws // n * n].unflatten(0, (n, -1))  # (K, repeats, n)
            chain.append(importance_weighted(whole).mean(0))
        return [*chain, evidence_by_quadrature(net, x)] if self.evidence else chain
