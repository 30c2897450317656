"""Initial weights depend on the seed alone: not on the default device or type, not on global generators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lab.errors import Refusal
from lab.nets.autoencoder import LinearAutoencoder, OrderedAutoencoder
from lab.nets.likelihoods import Gaussian
from lab.nets.linear import ReplicatedLinear
from lab.nets.vae import MLPVAE, LinearVAE

NETS: list[Callable[[int], nn.Module]] = [
    lambda seed: ReplicatedLinear(3, 4, init_scale=0.5, seed=seed),
    lambda seed: LinearAutoencoder(6, 2, seed=seed),
    lambda seed: OrderedAutoencoder(6, 2, seed=seed),
    lambda seed: LinearVAE(6, 2, seed=seed),
    lambda seed: MLPVAE(6, 2, Gaussian(), hidden=5, seed=seed),
]


def weights(make: Callable[[int], nn.Module], seed: int) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in make(seed).parameters()])


@pytest.mark.parametrize("make", NETS)
def test_weights_are_a_function_of_the_seed(make: Callable[[int], nn.Module]) -> None:
    first = weights(make, 1)
    torch.manual_seed(99)
    assert torch.equal(first, weights(make, 1))
    assert not torch.equal(first, weights(make, 2))


@pytest.mark.parametrize("make", NETS)
def test_weights_do_not_depend_on_where_the_module_is_made(make: Callable[[int], nn.Module]) -> None:
    first = weights(make, 1)
    with torch.device("meta"):  # as Trainer.init_module makes it on an accelerator
        assert torch.equal(first, weights(make, 1))


def test_double_precision_starts_where_single_precision_does() -> None:
    single = weights(NETS[1], 1)
    torch.set_default_dtype(torch.float64)
    try:
        double = weights(NETS[1], 1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert double.dtype == torch.float64
    assert torch.equal(double.float(), single)


def test_a_replicated_linear_model_is_one_matrix_product_a_replicate() -> None:
    net = ReplicatedLinear(3, 4, init_scale=1.0)
    x = torch.randn(3, 5, 4)
    expected = torch.stack([x[r] @ net.weight[r] for r in range(3)])
    torch.testing.assert_close(net(x), expected)


def test_relu_is_the_only_difference_between_the_activations() -> None:
    x = torch.randn(5, 6)
    linear, relu = LinearAutoencoder(6, 2), LinearAutoencoder(6, 2, activation="relu")
    torch.testing.assert_close(linear(x), x @ linear.encoder.T @ linear.decoder.T)
    torch.testing.assert_close(relu(x), (x @ relu.encoder.T).clamp(min=0) @ relu.decoder.T)


@pytest.mark.parametrize("k", [6, 7])
def test_an_autoencoder_that_discards_nothing_is_refused(k: int) -> None:
    with pytest.raises(Refusal, match=f"k={k} must be less than d=6"):
        LinearAutoencoder(6, k)


def test_more_ordered_codes_than_directions_are_refused() -> None:
    OrderedAutoencoder(6, 6)
    with pytest.raises(Refusal, match="k=7 must be at most d=6"):
        OrderedAutoencoder(6, 7)
