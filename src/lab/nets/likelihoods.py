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
        return _LogBernoulli.apply(x, output)

    def mean(self, output: Tensor) -> Tensor:
        """E[x|z]"""
        return output.sigmoid()


class _LogBernoulli(torch.autograd.Function):
    """Σᵢ xᵢoᵢ − ln(1 + e^oᵢ) of logits o; its derivative by oᵢ is xᵢ − pᵢ with p = 1/(1 + e⁻ᵒ).

    ln(1 + eᵒ) = max(o, 0) − ln p(|o|), in which nothing overflows. One function, since sum, product and softplus one by
    one go through an image's pixels twice as often.
    """

    @staticmethod
    def forward(x: Tensor, output: Tensor) -> Tensor:
        return output.abs().sigmoid_().log_().sub_(output.clamp(min=0)).addcmul(x, output).sum(-1)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        x, output = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        by_x = (grad * output).sum_to_size(x.shape) if ctx.needs_input_grad[0] else None
        return by_x, ((x - output.sigmoid()) * grad).sum_to_size(output.shape)
