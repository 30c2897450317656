"""Layers whose starting weights are functions of a generator alone, the same on every device and in every process."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lab.random import uniform


def _start(layer: nn.Module, draw: Generator, inputs: float) -> None:
    """Weights and biases uniform within ±1/√inputs, as PyTorch has them, in float64 on the CPU."""
    for name, parameter in layer.named_parameters():
        setattr(layer, name, nn.Parameter((2 * uniform(draw, *parameter.shape) - 1) / math.sqrt(inputs)))


def linear(draw: Generator, inputs: int, outputs: int, bias: bool = True, gain: float = 1.0) -> nn.Linear:
    """(..., inputs) → (..., outputs); `gain` is by how much the weights are larger at the start."""
    layer = nn.Linear(inputs, outputs, bias, device="meta")
    _start(layer, draw, inputs / gain**2)
    return layer


def convolution(draw: Generator, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """(n, inputs, h, w) → (n, outputs, h/stride, w/stride): a kernel of `size`×`size`, zeros around the image."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, device="meta")
    _start(layer, draw, inputs * size**2)
    return layer


def silent(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all its weights 0: what it adds to others is nothing at the start."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def waves(x: Tensor, frequencies: Tensor) -> Tensor:
    """(sin f₁x, …, cos f₁x, …): a number as its place on circles of several periods. (n,), (k,) → (n, 2k)"""
    turns = x.unsqueeze(-1) * frequencies
    return torch.cat([turns.sin(), turns.cos()], -1)


def softplus(x: Tensor) -> Tensor:
    """ln(1 + eˣ), to the rounding of 1. (…) → (…)

    `torch.nn.functional.softplus` took ten times as long on a CPU with AVX-512, where it went one element after the
    other, and takes two thirds of the time on one with AVX2 alone: this one is never slow.
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


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², to be differentiated once. (…) → (…)

    `functional.relu(x).square()` takes four operations on its way back, this two.

    (So et al. 2021.)
    """
    return _SquaredReLU.apply(x)


class _SquaredReLU(torch.autograd.Function):
    """r² with r = max(x, 0); its derivative is 2r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grads[0] * positive).mul_(2)
