"""A small convolutional classifier, for its features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lab.nets.layers import convolution, linear
from lab.random import generator
from lab.types import NonNegativeInt, PositiveInt


class Classifier(nn.Module):
    """Two convolutions that each halve the image, a hidden layer whose values are the features, and the classes."""

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: PositiveInt,
        channels: PositiveInt = 16,
        features: PositiveInt = 32,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.shape = shape
        draw = generator(seed, "Classifier")
        self.images = nn.Sequential(
            convolution(draw, 1, channels, stride=2),
            nn.ReLU(),
            convolution(draw, channels, 2 * channels, stride=2),
            nn.ReLU(),
        )
        places = math.prod(math.ceil(side / 4) for side in shape)
        self.hidden = linear(draw, 2 * channels * places, features)
        self.output = linear(draw, features, classes)
        self.to(torch.get_default_dtype())

    def features(self, x: Tensor) -> Tensor:
        """(n, d) → (n, features)"""
        return nn.functional.relu(self.hidden(self.images(x.unflatten(1, (1, *self.shape))).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → logits (n, classes)"""
        return self.output(self.features(x))
