"""What a decoder's output means: the distributions p(x|z) of an image whose pixels are independent given the codes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lab.types import Positive


class Gaussian(nn.Module):
    """p(x|z) = N(μ, σ²I), μ the decoder's output, one σ² for all pixels, learned.

    Args:
        variance: σ² at the start.
    """

    def __init__(self, variance: Positive = 1.0) -> None:
        super().__init__()
        start = torch.tensor(math.log(variance), dtype=torch.get_default_dtype(), device="cpu")
        self.log_variance = nn.Parameter(start)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """ln p(x|z) = −½ (‖x − μ‖²/σ² + d ln 2πσ²). (..., d), (..., d) → (...)"""
        return self.of_squares((x - output).square().sum(-1), x.shape[-1])

    def of_squares(self, squares: Tensor, d: int) -> Tensor:
        """The same, of ‖x − μ‖² or, since it is linear in that, of its expectation."""
        return -0.5 * (squares * (-self.log_variance).exp() + d * (math.log(2 * math.pi) + self.log_variance))

    def mean(self, output: Tensor) -> Tensor:
        """E[x|z]"""
        return output


class Bernoulli(nn.Module):
    """p(x|z) = ∏ᵢ pᵢ^xᵢ (1 − pᵢ)^(1−xᵢ), the decoder's output being the logits of p.

    Grey pixels 0 < x < 1 are taken as they are: the product is then no distribution over x, but it is still a positive
    function of z, and all that is said about bounds of ln ∫ p(x|z) p(z) dz holds.
    """

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """ln p(x|z). (..., d), (..., d) → (...)"""
        return (x * output - softplus(output)).sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        """E[x|z]"""
        return output.sigmoid()


def softplus(x: Tensor) -> Tensor:
    """ln(1 + eˣ), to the rounding of 1. (…) → (…)

    `torch.nn.functional.softplus` on a CPU takes ln(1 + ·) one element after the other, ten times as long.
    """
    return _Softplus.apply(x)


class _Softplus(torch.autograd.Function):
    """max(x, 0) + ln(1 + e^−|x|); its derivative is 1/(1 + e⁻ˣ)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(min=0) + (-x.abs()).exp().add_(1).log_()

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * x.sigmoid()
