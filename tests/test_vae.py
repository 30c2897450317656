"""Bounds of the evidence against brute force, exact solutions and sampling; claims tell right from wrong."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Bernoulli as BernoulliLaw
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from lab.claim import Claim, Evidence, Run, judge
from lab.claims import vae as claims
from lab.data.digits import CentredImages, Digits, Images
from lab.errors import Refusal
from lab.models import vae as model
from lab.models.vae import VAE
from lab.nets.layers import softplus
from lab.nets.likelihoods import Bernoulli, Gaussian
from lab.nets.vae import MLPVAE, LinearVAE
from lab.theory import importance, pca, ppca

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMAS = 5.0
"""Standard errors that a sampled mean may lie off: a correct program is beyond them less than once in 10⁶."""

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def x() -> Tensor:
    """Centred samples in 6 dimensions whose eigenvalues are far apart."""
    x = normal(200, 6, seed=3) * torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5, 0.3]) @ torch.linalg.qr(normal(6, 6, seed=4)).Q
    return x - x.mean(0)


def solved(x: Tensor, k: int, beta: float = 1.0) -> LinearVAE:
    """The linear model at its optimum, in closed form: pPCA of the noise βσ², the encoder its posterior."""
    eigenvalues, vectors = torch.linalg.eigh(x.mT @ x / len(x))
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    for kept in range(k, -1, -1):
        sigma2 = float(eigenvalues[kept:].sum()) / (len(eigenvalues) - beta * kept)
        if sigma2 > 0 and (kept == 0 or beta * sigma2 < eigenvalues[kept - 1]):
            break
    noise = beta * sigma2
    signal = (eigenvalues[:k] - noise).clamp(min=0)
    net = LinearVAE(x.shape[1], k, scale=2.0).double()
    with torch.no_grad():
        net.decoder.copy_(vectors[:, :k] * signal.sqrt() / net.scale)
        net.encoder.copy_((vectors[:, :k] * signal.sqrt() / (signal + noise)).mT * net.scale)
        net.log_variance.copy_((noise / (signal + noise)).log())
        net.likelihood.log_variance.fill_(math.log(sigma2))
    return net


def exact_evidence(net: LinearVAE, x: Tensor) -> Tensor:
    """ln N(x; 0, WWᵀ + σ²I), row by row."""
    covariance = net.weight @ net.weight.mT + net.likelihood.log_variance.exp() * torch.eye(net.d, dtype=x.dtype)
    return MultivariateNormal(torch.zeros(net.d, dtype=x.dtype), covariance).log_prob(x).detach()


def sampled(values: Tensor) -> tuple[float, float]:
    """(mean, its standard error)."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


# --------------------------------------------------------------------------------------------------------------- theory


@pytest.mark.parametrize("k", [1, 3, 5])
def test_no_parameters_of_ppca_are_likelier(x: Tensor, k: int) -> None:
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(x.mT, correction=0))
    sigma2 = eigenvalues[: 6 - k].mean()
    w = vectors[:, 6 - k :] * (eigenvalues[6 - k :] - sigma2).sqrt()

    def likelihood(w: Tensor, sigma2: Tensor) -> float:
        law = MultivariateNormal(torch.zeros(6, dtype=x.dtype), w @ w.mT + sigma2 * torch.eye(6, dtype=x.dtype))
        return float(law.log_prob(x).mean())

    spectrum = eigenvalues.flip(0)
    best = likelihood(w, sigma2)
    assert float(ppca.maximum_log_likelihood(spectrum, k)) == pytest.approx(best, rel=1e-12)
    assert float(ppca.noise_variance(spectrum, k)) == pytest.approx(float(sigma2), rel=1e-12)
    rotation = torch.linalg.qr(normal(k, k, seed=1)).Q
    assert likelihood(w @ rotation, sigma2) == pytest.approx(best, rel=1e-12)
    for seed in range(50):
        assert likelihood(w + 0.01 * normal(6, k, seed=seed), sigma2) < best
        assert likelihood(w, sigma2 * (1 + 0.01 * normal(1, seed=seed)[0])) < best


@pytest.mark.parametrize(("k", "width"), [(1, 1.2), (2, 1.5), (8, 1.5), (3, 3.0)])
def test_one_weight_is_the_divergence_below(k: int, width: float) -> None:
    posterior = Independent(Normal(torch.zeros(k, dtype=torch.float64), 1.0), 1)
    proposal = Independent(Normal(torch.zeros(k, dtype=torch.float64), width), 1)
    expected = -float(kl_divergence(proposal, posterior))
    assert importance.importance_weighted_bound(1, k, width) == pytest.approx(expected, rel=1e-9)


def test_two_weights_are_an_integral_over_two_chi_squares() -> None:
    k, width = 3, 1.7
    u, weight = np.polynomial.legendre.leggauss(200)
    u, weight = 4 * (u + 1), 4 * weight  # y = u² up to 64, in which the density is smooth
    logs = k * math.log(width) - 0.5 * (width**2 - 1) * u**2
    mass = stats.chi2(k).pdf(u**2) * 2 * u * weight
    expected = mass @ (np.logaddexp.outer(logs, logs) - math.log(2)) @ mass
    assert importance.importance_weighted_bound(2, k, width) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("samples", [4, 32])
def test_more_weights_are_what_sampling_gives(samples: int) -> None:
    k, width = 8, 1.5
    chi2 = torch.from_numpy(np.random.default_rng(0).chisquare(k, (50_000, samples)))
    logs = k * math.log(width) - 0.5 * (width**2 - 1) * chi2
    mean, error = sampled(logs.logsumexp(1) - math.log(samples))
    assert abs(mean - importance.importance_weighted_bound(samples, k, width)) < SIGMAS * error


def test_many_weights_approach_the_evidence_as_their_variance_over_2k() -> None:
    k, width = 2, 1.3
    variance = (width**2 / math.sqrt(2 * width**2 - 1)) ** k - 1
    bounds = {n: importance.importance_weighted_bound(n, k, width) for n in (1, 10, 100, 1000)}
    assert list(bounds.values()) == sorted(bounds.values())
    assert -bounds[1000] * 2000 == pytest.approx(variance, rel=1e-2)
    assert importance.importance_weighted_bound(5, k, 1.0) == 0


# ----------------------------------------------------------------------------------------------------------------- nets


def test_the_gaussian_likelihood_is_a_normal_law() -> None:
    likelihood, image, output = Gaussian(2.5).double(), normal(4, 5), normal(3, 4, 5, seed=1)
    width = (0.5 * likelihood.log_variance.detach()).exp()
    assert float(width) == pytest.approx(2.5**0.5)
    close(likelihood(image, output), Normal(output, width).log_prob(image).sum(-1))
    close(likelihood.mean(output), output)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 2**-23), (torch.float64, 2**-52)])
def test_softplus_is_right_to_rounding_however_large_its_argument(dtype: torch.dtype, unit: float) -> None:
    x = torch.tensor([-1000.0, -90, -20, -1e-3, 0, 1e-3, 3, 20, 90, 1000], dtype=dtype)
    exact = torch.nn.functional.softplus(x.double(), threshold=1e4)
    assert ((softplus(x) - exact).abs() <= 2 * unit * exact.clamp(min=1)).all()
    x.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(softplus(x).sum(), x)[0], x.detach().sigmoid())


def test_softplus_has_the_derivatives_of_its_values() -> None:
    x = normal(20, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(softplus, (x,))
    assert torch.autograd.gradgradcheck(softplus, (x,))


def test_the_bernoulli_likelihood_is_a_law_of_binary_pixels() -> None:
    likelihood, output = Bernoulli(), normal(3, 4, 5, seed=1)
    image = (normal(4, 5) > 0).double()
    close(likelihood(image, output), BernoulliLaw(logits=output).log_prob(image.expand(3, 4, 5)).sum(-1))
    grey, p = torch.rand(4, 5, dtype=torch.float64), output.sigmoid()
    close(likelihood(grey, output), (grey * p.log() + (1 - grey) * (1 - p).log()).sum(-1))
    close(likelihood.mean(output), p)
    extreme = torch.tensor([[-1000.0, -90.0, 90.0, 1000.0]])
    pixels = torch.tensor([[0.25, 0.5, 0.5, 0.75]])
    close(likelihood(pixels, extreme), torch.tensor([-250.0 - 45 - 45 - 250]))


def test_the_bernoulli_likelihood_has_the_derivatives_of_its_values() -> None:
    image, output = torch.rand(4, 5, dtype=torch.float64).requires_grad_(), normal(3, 4, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(Bernoulli(), (image, output))
    assert torch.autograd.gradgradcheck(Bernoulli(), (image, output))


def test_scaling_changes_what_is_kept_and_not_what_is_computed() -> None:
    net = MLPVAE(5, 2, Gaussian(), hidden=3, activation="tanh", scale=4.0).double()
    x, z = normal(7, 5), normal(7, 2)
    hidden = torch.tanh(x / 4 @ net.encoder.weight.mT + net.encoder.bias)
    both = hidden @ net.posterior.weight.mT + net.posterior.bias
    close(torch.cat(net.encode(x), -1), both)
    output = torch.tanh(z @ net.decoder.weight.mT + net.decoder.bias) @ net.output.weight.mT + net.output.bias
    close(net.decode(z), 4 * output)
    linear = LinearVAE(5, 2, scale=4.0).double()
    close(linear.encode(x)[0], x @ linear.encoder.mT / 4)
    close(linear.decode(z), 4 * z @ linear.decoder.mT)


def test_a_linear_model_that_discards_nothing_is_refused() -> None:
    with pytest.raises(Refusal, match="k=5 must be less than d=5"):
        LinearVAE(5, 5)


# --------------------------------------------------------------------------------------------------------------- bounds


def random_linear(seed: int = 0) -> LinearVAE:
    net = LinearVAE(6, 3, scale=1.5, seed=seed).double()
    with torch.no_grad():
        net.log_variance.copy_(0.5 * normal(3, seed=seed))
    return net


def test_the_divergence_is_that_of_normal_laws() -> None:
    mean, log_variance = normal(7, 3), normal(7, 3, seed=1)
    laws = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros_like(mean), 1.0)
    close(model.kl_divergence(mean, log_variance), kl_divergence(*laws).sum(-1))


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_the_exact_bound_and_its_gradient_are_what_sampling_gives(x: Tensor, beta: float) -> None:
    net, few, draws = random_linear(), x[:5], 40_000
    parameters = list(net.parameters())

    def gradient(bound: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(bound, parameters, retain_graph=True)])

    exact = model.linear_elbo(net, few, beta).mean()
    bounds = [
        model.sampled_elbo(net, few.expand(draws // 20, 5, 6), normal(draws // 20, 5, 3, seed=s), beta)[0].mean(-1)
        for s in range(20)
    ]
    mean, error = sampled(torch.cat(bounds).detach())
    assert abs(mean - exact.item()) < SIGMAS * error
    gradients = torch.stack([gradient(b.mean()) for b in bounds])  # of 20 groups
    apart = (gradients.mean(0) - gradient(exact)).abs() / (gradients.std(0) / 20**0.5 + 1e-12)
    assert apart.max() < 8  # Student's t of 19 degrees: beyond 8 once in 10⁷


def test_the_bound_is_the_evidence_at_the_optimum_and_below_elsewhere(x: Tensor) -> None:
    net = solved(x, 3)
    eigenvalues, _ = pca.principal_components(x)
    close(model.linear_elbo(net, x), exact_evidence(net, x))  # image by image
    assert float(model.linear_elbo(net, x).detach().mean()) == pytest.approx(
        float(ppca.maximum_log_likelihood(eigenvalues, 3)), rel=1e-12
    )
    for seed in range(5):
        other = random_linear(seed)
        assert (model.linear_elbo(other, x) < exact_evidence(other, x)).all()
    gradients = torch.autograd.grad(model.linear_elbo(net, x).mean(), list(net.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-12


def test_a_rotation_costs_the_bound_what_its_posterior_is_not_diagonal(x: Tensor) -> None:
    """With the best diagonal variances: ½(Σ ln Mⱼⱼ − ln det M), M = WᵀW + σ²I."""
    net = solved(x, 3)
    rotation = torch.linalg.qr(normal(3, 3, seed=2)).Q
    with torch.no_grad():
        net.decoder.copy_(net.decoder @ rotation)
        m = net.weight.mT @ net.weight + net.likelihood.log_variance.exp() * torch.eye(3, dtype=x.dtype)
        net.encoder.copy_(net.scale * torch.linalg.solve(m, net.weight.mT))
        net.log_variance.copy_(net.likelihood.log_variance - m.diagonal().log())
    gap = (exact_evidence(net, x) - model.linear_elbo(net, x)).mean()
    close(gap, 0.5 * (m.diagonal().log().sum() - m.logdet()))
    assert gap > 0.01


@pytest.mark.parametrize(("beta", "left"), [(0.5, 3), (1.5, 3), (2.5, 1), (4.0, 0)])
def test_the_optimum_under_another_weight_of_the_divergence(x: Tensor, beta: float, left: int) -> None:
    """σ²(d − βk′) = Σ_{i>k′} λᵢ; codes with λᵢ < βσ² collapse; the aggregate posterior still has covariance I."""
    net = solved(x, 3, beta)
    gradients = torch.autograd.grad(model.linear_elbo(net, x, beta).mean(), list(net.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-10
    mean, log_variance = net.encode(x)
    covariance = mean.mT @ mean / len(x) + log_variance.exp().mean(0).diag()
    close(covariance, torch.eye(3, dtype=x.dtype))
    kept = int((net.weight.norm(dim=0) > 0).sum())
    assert kept == left
    eigenvalues, _ = pca.principal_components(x)
    assert abs(float(net.likelihood.log_variance.detach().exp() / ppca.noise_variance(eigenvalues, 3)) - 1) > 0.1


def test_nothing_moves_the_aggregate_posterior_more_cheaply_than_a_stretched_code(x: Tensor) -> None:
    """The largest ‖change of moments‖² a nat, to second order at the optimum, is 4: what aggregate_posterior allows."""
    net = solved(x, 3)
    names, start = zip(*((n, p.detach()) for n, p in net.named_parameters()), strict=True)
    sizes = [p.numel() for p in start]

    def with_parameters(theta: Tensor, what: Any) -> Tensor:
        parts = {n: t.view_as(p) for n, t, p in zip(names, theta.split(sizes), start, strict=True)}
        return torch.func.functional_call(_Call(net, what), {f"net.{n}": t for n, t in parts.items()}, (x,))

    def moments(net: LinearVAE, x: Tensor) -> Tensor:
        mean, log_variance = net.encode(x)
        return (mean.mT @ mean / len(x) + log_variance.exp().mean(0).diag()).flatten()

    theta = torch.cat([p.flatten() for p in start])
    gap = -torch.func.hessian(partial(with_parameters, what=lambda net, x: model.linear_elbo(net, x).mean()))(theta) / 2
    change = torch.func.jacrev(partial(with_parameters, what=moments))(theta)
    values, vectors = torch.linalg.eigh(gap)
    assert values.min() > 1e-6  # distinct eigenvalues leave no flat direction
    whitened = change @ vectors / values.sqrt()
    assert 3.99 < float(torch.linalg.svdvals(whitened)[0] ** 2) < 4 + 1e-6


class _Call(torch.nn.Module):
    """A function of a net as a module, whose parameters `functional_call` replaces."""

    def __init__(self, net: torch.nn.Module, what: Any) -> None:
        super().__init__()
        self.net, self.what = net, what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self.net, x)


@pytest.mark.parametrize("width", [1.0, 1.5])
def test_log_weights_are_three_densities(x: Tensor, width: float) -> None:
    net, noise = MLPVAE(6, 2, Gaussian(1.0), hidden=4).double(), normal(9, 200, 2, seed=1)
    mean, log_variance = net.encode(x)
    proposal = Normal(mean, width * (0.5 * log_variance).exp())
    z = mean + proposal.scale * noise
    expected = Normal(net.decode(z), 1.0).log_prob(x).sum(-1)
    expected = expected + (Normal(0.0, 1.0).log_prob(z) - proposal.log_prob(z)).sum(-1)
    close(model.log_weights(net, x, noise, width), expected)
    close(model.importance_weighted(expected), expected.exp().mean(0).log())


def test_weights_average_to_the_evidence(x: Tensor) -> None:
    net, few = random_linear(), x[:8]
    weights = (model.log_weights(net, few, normal(100_000, 8, 3), 2.0).detach() - exact_evidence(net, few)).exp()
    apart = (weights.mean(0) - 1).abs() / (weights.std(0) / 100_000**0.5)
    assert apart.max() < SIGMAS


def test_the_quadrature_is_exact_where_the_evidence_is_known(x: Tensor) -> None:
    for k in (1, 2):
        net = solved(x, k)
        close(model.evidence_by_quadrature(net, x), exact_evidence(net, x))  # type: ignore[arg-type]


def test_the_quadrature_does_not_depend_on_its_grid(x: Tensor) -> None:
    net = MLPVAE(6, 2, Gaussian(0.5), hidden=8, activation="tanh").double()
    fine = model.evidence_by_quadrature(net, x[:3], reach=9.0, step=0.03)
    close(model.evidence_by_quadrature(net, x[:3]), fine)
    weights = model.log_weights(net, x[:3], normal(200_000, 3, 2)).detach()
    assert (model.importance_weighted(weights) - fine).abs().max() < 0.02


# ---------------------------------------------------------------------------------------------------------------- model


class Handful(CentredImages):
    """Twelve images of two rows."""

    shape = (2, 3)

    def images(self) -> Tensor:
        self.labels = torch.arange(12) % 3
        return normal(12, 2, 3, seed=7)


class Grey(Images):
    """Twelve images of pixels between 0 and 1."""

    def images(self) -> Tensor:
        self.labels = torch.arange(12) % 3
        return torch.rand(12, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def vae(**options: Any) -> VAE:
    nets = {"net": MLPVAE(6, 2, Gaussian(), hidden=4), "linear": LinearVAE(6, 3)}
    return VAE(**{"shape": [2, 3], "optimizer": partial(torch.optim.SGD, lr=0.1), **nets, **options}).double()


def ready(data: Images, module: VAE, rank: int = 0, ranks: int = 1) -> VAE:
    """What Trainer.fit does before the first step."""
    data.dtype, data.rank, data.world_size = torch.float64, rank, ranks
    data.setup()
    data.place(torch.device("cpu"))
    module.trainer = SimpleNamespace(datamodule=data, max_steps=7)  # type: ignore[assignment]
    module.setup("fit")
    return module


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_the_objective_is_the_sum_of_both_bounds(beta: float) -> None:
    data = Handful(seed=2)
    module = ready(data, vae(beta=beta))
    (x, weight, noise), *_ = module.batches(data.block(4, 6))
    assert weight == 1
    loss, logged = module.objective((x, 0.25, noise))
    bound, kl = model.sampled_elbo(module.net, x, noise, beta)
    linear = model.linear_elbo(module.linear, x, beta)  # type: ignore[arg-type]
    close(loss, -0.25 * (bound + linear).mean())
    expected = {"loss/net": -0.25 * bound.mean(), "kl/net": 0.25 * kl.mean(), "loss/linear": -0.25 * linear.mean()}
    close(logged, {name: value.detach() for name, value in expected.items()})
    alone = ready(Handful(), vae(linear=None))
    assert set(alone.objective((x, 1.0, noise))[1]) == {"loss/net", "kl/net"}


def test_noise_is_a_function_of_seed_step_and_place() -> None:
    data = Handful(batch_size=5, seed=2)
    ready(data, vae())
    whole = data.noise(0, 8, 2)
    assert whole.shape == (8, 5, 2)
    torch.manual_seed(99)
    torch.testing.assert_close(data.noise(3, 8, 2), whole[3:], rtol=0, atol=0)
    assert not torch.equal(whole[0], whole[1])
    other = Handful(batch_size=5, seed=3)
    ready(other, vae())
    assert not torch.equal(other.noise(0, 8, 2), whole)
    many = data.noise(0, 4000, 2).flatten()
    assert stats.kstest(many.numpy(), "norm").pvalue > 1e-6


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_mean_of_the_ranks_gradients_is_the_gradient(batch_size: int | None, ranks: int) -> None:
    """Each rank has its rows of the global noise, also where the rows do not divide evenly."""

    def gradient(rank: int, ranks: int) -> Tensor:
        data, module = Handful(batch_size, seed=2), vae()
        ready(data, module, rank, ranks)
        batch = list(module.batches(data.block(3, 6)))[1]
        module.objective(batch)[0].backward()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    close(sum(gradient(rank, ranks) for rank in range(ranks)) / ranks, gradient(0, 1))


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (Handful(), {"net": MLPVAE(5, 2, Gaussian())}, "model.net.d=5 must be 6: the data have 6 dimensions"),
        (Handful(), {"linear": LinearVAE(5, 2)}, "model.linear.d=5 must be 6"),
        (Handful(), {"shape": [3, 2]}, r"model.shape=\[3, 2\] must be \[2, 3\]"),
        (Grey(), {}, "model.linear must be null"),
        (Handful(), {"net": MLPVAE(6, 2, Bernoulli())}, "model.net.likelihood must be a Gaussian"),
    ],
)
def test_nets_that_do_not_fit_the_data_are_refused(data: Images, options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        ready(data, vae(**options))


def test_the_loss_of_images_held_out_is_the_trained_bound() -> None:
    data, module = Grey(), vae(net=MLPVAE(6, 2, Bernoulli(), hidden=4), linear=None)
    ready(data, module)
    assert data.held_out is None
    data.held_out = data.x.repeat(500, 1)
    noise = torch.randn(6000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bounds = model.sampled_elbo(module.net, data.held_out, noise)[0].detach()
    apart = module.held_out_loss(data) + float(bounds.mean())
    assert abs(apart) < SIGMAS * 2**0.5 * float(bounds.std()) / 6000**0.5


def test_samples_are_decoded_codes_in_the_units_of_the_pixels() -> None:
    data, module = Handful(), vae()
    ready(data, module)
    images = module.sample(50, torch.Generator().manual_seed(3))
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    close(images, (module.net.decode(z).detach() + data.mean).reshape(50, 2, 3))
    assert torch.equal(images, module.sample(50, torch.Generator().manual_seed(3)))
    copy = vae()
    copy.load_state_dict(module.state_dict())
    assert torch.equal(copy.sample(50, torch.Generator().manual_seed(3)), images)  # the mean comes with the weights
    grey = ready(Grey(), vae(net=MLPVAE(6, 2, Bernoulli()), linear=None)).sample(50, torch.Generator().manual_seed(3))
    assert 0 < float(grey.min()) < float(grey.max()) < 1


# --------------------------------------------------------------------------------------------------------------- claims

K = 8


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits()
    data.dtype = torch.float64
    data.setup()
    return data


@pytest.fixture
def exact(digits: Digits) -> SimpleNamespace:
    """A run whose linear model is at its optimum."""
    return SimpleNamespace(linear=solved(digits.x, K), net=MLPVAE(64, 2, Gaussian(20.0)).double(), beta=1.0)


LINEAR: dict[str, Claim] = {
    "evidence": claims.Evidence(K),
    "decoder_variance": claims.DecoderVariance(K),
    "aggregate_posterior": claims.AggregatePosterior(K),
    "importance_weighted": claims.ImportanceWeighted(K, repeats=2),
}


def judged(name: str, module: SimpleNamespace, data: Digits) -> Evidence:
    return judge(name, LINEAR[name], Run(module, data))


@pytest.mark.parametrize("name", LINEAR)
def test_the_exact_solution_holds(name: str, exact: SimpleNamespace, digits: Digits) -> None:
    e = judged(name, exact, digits)
    assert e.judged.holds
    if name != "importance_weighted":
        assert e.judged.difference < 1e-10


def of_all(eigenvalues: Tensor, k: int) -> Tensor:
    """Wrong: the discarded eigenvalues over d."""
    return eigenvalues[k:].sum() / len(eigenvalues)


def unbiased(x: Tensor) -> tuple[Tensor, Tensor]:
    """Wrong: the eigenvalues of XᵀX/(n − 1)."""
    eigenvalues, vectors = torch.linalg.eigh(x.mT @ x / (len(x) - 1))
    return eigenvalues.flip(0), vectors.flip(1)


def of_one(samples: int, k: int, width: float) -> float:
    """Wrong: the mean of the logarithms of the weights."""
    return k * (math.log(width) - 0.5 * (width**2 - 1))


@pytest.mark.parametrize(
    ("where", "what", "wrong", "refuted"),
    [
        (ppca, "noise_variance", of_all, ["evidence", "decoder_variance", "importance_weighted"]),
        (pca, "principal_components", unbiased, ["evidence", "decoder_variance"]),
        (importance, "importance_weighted_bound", of_one, ["importance_weighted"]),
    ],
)
def test_a_wrong_formula_is_refuted(
    where: Any,
    what: str,
    wrong: Any,
    refuted: list[str],
    exact: SimpleNamespace,
    digits: Digits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(where, what, wrong)
    for name in refuted:
        assert not judged(name, exact, digits).judged.holds, name


def test_codes_without_their_own_variance_are_refuted(exact: SimpleNamespace, digits: Digits) -> None:
    with torch.no_grad():
        exact.linear.log_variance.fill_(-30.0)
    e = judged("aggregate_posterior", exact, digits)
    assert e.judged.difference > 3 * e.judged.tolerance


def test_a_proposal_of_another_width_is_refuted(exact: SimpleNamespace, digits: Digits) -> None:
    claim = claims.ImportanceWeighted(K, width=1.5, repeats=2)
    predicted = claim.predict(digits)
    claim.width = 1.6
    assert np.any(np.abs(np.subtract(claim.measure(Run(exact, digits)).value, predicted.value)) > 0.3)


def test_the_standard_errors_of_importance_weighting_are_right(digits: Digits, exact: SimpleNamespace) -> None:
    """Over 30 sets of draws, deviations in standard errors have the variance 1."""
    claim = claims.ImportanceWeighted(K, repeats=2)
    few = SimpleNamespace(x=digits.x[:100])
    evidence = float(exact_evidence(exact.linear, few.x).mean())
    theory = np.array([evidence + importance.importance_weighted_bound(n, K, claim.width) for n in claim.samples])
    apart = []
    for few.seed in range(30):
        measured = claim.measure(Run(exact, few))
        apart.append((np.asarray(measured.value) - theory) / measured.standard_error)
    assert 0.6 < float(np.var(apart)) < 1.6
    assert float(np.abs(np.mean(apart))) < 0.5


def bounds(**options: Any) -> claims.ImportanceBounds:
    return claims.ImportanceBounds(**{"images": 20, "draws": 64, **options})


@pytest.mark.parametrize("evidence", [True, False])
def test_bounds_rise_to_the_evidence(exact: SimpleNamespace, digits: Digits, evidence: bool) -> None:
    claim = bounds(evidence=evidence)
    e = judge("importance_bounds", claim, Run(exact, digits))
    assert e.judged.holds
    assert len(np.asarray(e.measured.value)) == len(claim.samples) + evidence
    assert np.asarray(e.measured.value).sum() > 0


def test_an_objective_that_is_no_bound_is_refuted(exact: SimpleNamespace, digits: Digits) -> None:
    exact.beta = 0.0
    with torch.no_grad():
        exact.net.posterior.bias += 2.0  # codes with something to pay for
    assert not judge("importance_bounds", bounds(evidence=False), Run(exact, digits)).judged.holds


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (bounds(), "evidence=true needs model.net.k of 1 or 2, not 3"),
        (claims.Evidence(7), "k=7 must equal model.linear.k=8"),
    ],
)
def test_what_cannot_be_judged_is_refused(claim: Any, said: str, exact: SimpleNamespace, digits: Digits) -> None:
    exact.net = MLPVAE(64, 3, Gaussian())
    with pytest.raises(Refusal, match=said):
        claim.check(digits, exact)


def test_claims_about_the_linear_model_need_one(exact: SimpleNamespace, digits: Digits) -> None:
    exact.linear = None
    with pytest.raises(Refusal, match=r"model.linear=null is not allowed"):
        LINEAR["evidence"].check(digits, exact)


@pytest.mark.parametrize(
    ("claim", "options", "said"),
    [
        (claims.ImportanceWeighted, {"k": 8, "width": 1.0}, "width=1.0 must be above 1"),
        (claims.ImportanceWeighted, {"k": 8, "repeats": 1}, "repeats=1 must be at least 2"),
        (claims.ImportanceBounds, {"draws": 63}, "draws=63 must be at least 64"),
    ],
)
def test_a_sampling_scheme_that_says_nothing_is_refused(claim: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        claim(**options)
