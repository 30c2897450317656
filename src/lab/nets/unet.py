"""A small U-Net for images that is told how much noise there is."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from torch import Generator, Tensor, nn

from lab.errors import Refusal
from lab.nets.layers import convolution, linear, waves
from lab.random import generator
from lab.types import NonNegativeInt, PositiveInt


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(h)(1 + a) + b)), h = conv(silu(norm(x))), with a, b linear in what is known of the noise.

    (Dhariwal & Nichol 2021, §3.)
    """

    def __init__(self, draw: Generator, inputs: int, outputs: int, told: int, groups: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.conv_in, self.conv_out = convolution(draw, inputs, outputs), convolution(draw, outputs, outputs)
        self.level = linear(draw, told, 2 * outputs)
        self.across = convolution(draw, inputs, outputs, size=1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(n, inputs, h, w), (n, told) → (n, outputs, h, w)"""
        h = self.conv_in(nn.functional.silu(self.norm_in(x)))
        scale, shift = self.level(told)[..., None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        return self.across(x) + self.conv_out(nn.functional.silu(h))


class UNet(nn.Module):
    """v(x, λ) of grey images: residual blocks down a pyramid of resolutions and up again, each level seeing its twin.

    Patches of `patch`×`patch` pixels are one place with as many channels: that loses nothing and leaves the costly
    highest resolution out. The log-SNR λ enters every block, as waves of periods 40, 40/2, … through a hidden layer.

    (Ronneberger, Fischer & Brox 2015; Ho, Jain & Abbeel 2020, App. B.)

    Args:
        shape: height and width of an image.
        channels: at each resolution, each half of the one before.
        blocks: residual blocks at each resolution on either side.
        patch: side of a patch.
        groups: of the group normalisations; it divides all channels.
        periods: of λ, how many.
    """

    frequencies: Tensor
    down: Any
    up: Any

    def __init__(
        self,
        shape: list[PositiveInt],
        channels: Annotated[list[PositiveInt], MinLen(1)],
        blocks: PositiveInt = 1,
        patch: PositiveInt = 1,
        groups: PositiveInt = 8,
        periods: PositiveInt = 8,
        seed: NonNegativeInt = 0,
    ) -> None:
        factor = patch * 2 ** (len(channels) - 1)
        if any(side % factor for side in shape):
            raise Refusal(
                f"shape={list(shape)} must be multiples of {factor}: patches, halved {len(channels) - 1} times"
            )
        if wrong := [c for c in channels if c % groups]:
            raise Refusal(f"groups={groups} must divide all of channels, and does not divide {wrong[0]}")
        super().__init__()
        self.shape, self.patch, self.d = tuple(shape), patch, math.prod(shape)
        draw = generator(seed, "UNet")
        told = 4 * channels[0]
        self.level = nn.Sequential(linear(draw, 2 * periods, told), nn.SiLU(), linear(draw, told, told), nn.SiLU())
        self.enter = convolution(draw, patch**2, channels[0])

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(draw, inputs, outputs, told, groups)

        def side(inputs: int, outputs: int) -> nn.ModuleList:
            return nn.ModuleList(block(inputs, outputs) for _ in range(blocks))

        falling, rising = itertools.pairwise(channels), itertools.pairwise(reversed(channels))
        self.down = nn.ModuleList(side(c, c) for c in channels)
        self.shrink = nn.ModuleList(convolution(draw, here, there, stride=2) for here, there in falling)
        self.middle = block(channels[-1], channels[-1])
        self.up = nn.ModuleList(side(2 * c, c) for c in reversed(channels))
        self.grow = nn.ModuleList(convolution(draw, here, there, size=1) for here, there in rising)
        self.norm = nn.GroupNorm(groups, channels[0])
        self.leave = convolution(draw, channels[0], patch**2)
        self.register_buffer("frequencies", 2 * math.pi / 40 * torch.arange(1, periods + 1, device="cpu"), False)
        self.to(torch.get_default_dtype())
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """(n, d), (n,) → (n, d)"""
        told = self.level(waves(log_snr, self.frequencies))
        h = nn.functional.pixel_unshuffle(x.unflatten(1, (1, *self.shape)), self.patch)
        h = self.enter(h.contiguous(memory_format=torch.channels_last))
        seen: list[Tensor] = []
        for i, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h, told)
                seen.append(h)
            h = self.shrink[i](h) if i < len(self.shrink) else h
        h = self.middle(h, told)
        for i, blocks in enumerate(self.up):
            for block in blocks:
                h = block(torch.cat([h, seen.pop()], 1), told)
            h = nn.functional.interpolate(self.grow[i](h), scale_factor=2.0) if i < len(self.grow) else h
        h = self.leave(nn.functional.silu(self.norm(h)))
        return nn.functional.pixel_shuffle(h, self.patch).flatten(1)
