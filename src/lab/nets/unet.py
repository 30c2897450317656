"""A small U-Net for images that is told how much noise there is."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from torch import Generator, Tensor, nn

from lab.errors import Refusal
from lab.nets.layers import convolution, linear, silent, waves
from lab.random import generator
from lab.types import NonNegativeInt, PositiveInt

SHOWN = 7
"""How many numbers `in_units_of_noise` tells of a pixel."""


def in_units_of_noise(x: Tensor, log_snr: Tensor) -> Tensor:
    """How far each pixel is from what x₀ = ±1 would show, and from its neighbours. (n, 1, h, w), (n,) → (n, 7, h, w)

    The first channel is x itself. Distances are counted in standard deviations of the noise and bounded softly by 3 of
    them. At a high signal-to-noise ratio such distances are all there is to tell noise by, and a hundredth of x: black
    is black exactly, and neighbours are alike.
    """
    level = log_snr[:, None, None, None]
    alpha, sigma = level.sigmoid().sqrt(), (-level).sigmoid().sqrt()
    across, along, pad = x.diff(dim=3), x.diff(dim=2), nn.functional.pad
    right, left = pad(across, (0, 1)), -pad(across, (1, 0))
    below, above = pad(along, (0, 0, 0, 1)), -pad(along, (0, 0, 1, 0))
    near = torch.cat([right, left, below, above], 1) / math.sqrt(2)  # two pixels' noise
    distances = torch.cat([x - alpha, x + alpha, near], 1) / sigma
    return torch.cat([x, 3 * (distances / 3).tanh()], 1)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(h)(1 + a) + b)), h = conv(silu(norm(x))), with a, b linear in what is known of the noise.

    The outer convolution is 0 at the start, so the block passes x on.

    (Dhariwal & Nichol 2021, §3.)
    """

    def __init__(self, draw: Generator, inputs: int, outputs: int, told: int, groups: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.conv_in = convolution(draw, inputs, outputs)
        self.conv_out = silent(convolution(draw, outputs, outputs))
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

    In the pyramid, patches of `patch`×`patch` pixels are one place with as many channels. What it cannot do at so few
    places is done around it, in `fine` channels at the full resolution, which cost little: a first convolution of what
    each pixel shows in units of the noise, and last ones, which see the first and say by how much each of these
    numbers enters v. They say 0 at the start: v = 0, so ε̂ = σ x, is right for pixels of variance 1 that tell nothing
    of each other. The log-SNR λ enters every block, as waves of periods 40, 40/2, … through a hidden layer.

    (Ronneberger, Fischer & Brox 2015; Ho, Jain & Abbeel 2020, App. B; small details of x as inputs of their own:
    Kingma, Salimans, Poole & Ho 2021, App. C.)

    Args:
        shape: height and width of an image, whose x₀ lies in [−1, 1].
        channels: at each resolution, each half of the one before.
        blocks: residual blocks at each resolution on either side.
        patch: side of a patch.
        fine: channels at the full resolution.
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
        fine: PositiveInt = 16,
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
        self.see = convolution(draw, SHOWN, fine)
        self.enter = convolution(draw, fine * patch**2, channels[0], size=1)

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
        self.leave = convolution(draw, channels[0], fine * patch**2, size=1)
        self.join, self.refine = convolution(draw, 2 * fine, fine), convolution(draw, fine, fine)
        self.say = silent(convolution(draw, fine, 1 + SHOWN))
        self.register_buffer("frequencies", 2 * math.pi / 40 * torch.arange(1, periods + 1, device="cpu"), False)
        self.to(torch.get_default_dtype())
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """(n, d), (n,) → (n, d)"""
        silu, told = nn.functional.silu, self.level(waves(log_snr, self.frequencies))
        shown = in_units_of_noise(x.unflatten(1, (1, *self.shape)), log_snr)
        near = self.see(shown.contiguous(memory_format=torch.channels_last))
        h = nn.functional.pixel_unshuffle(silu(near), self.patch)
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
        far = nn.functional.pixel_shuffle(self.leave(silu(self.norm(h))), self.patch)
        h = self.refine(silu(self.join(silu(torch.cat([far, near], 1)))))
        constant, shares = self.say(silu(h)).split([1, SHOWN], 1)
        return (constant + (shares * shown).sum(1, keepdim=True)).flatten(1)
