"""Features in which images are compared: those of a classifier that is trained on the spot, the same for everyone."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from lab.data.digits import GreyImages
from lab.nets.classifier import Classifier
from lab.random import generator


@lru_cache(maxsize=1)
def classifier(data: GreyImages, steps: int = 250, batch_size: int = 128) -> Classifier:
    """A classifier of the training images, by Adam with a rate that falls along a cosine; a function of data alone."""
    net = Classifier(data.shape, int(data.labels.max()) + 1).to(data.x.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = generator(0, "classifier")
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(data.n, (batch_size,), generator=draw)
            loss = nn.functional.cross_entropy(net(data.as_pixels(data.x[rows])), data.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def features(data: GreyImages, images: Tensor) -> Tensor:
    """The last hidden layer at images clipped to black and white. (n, d) → (n, k)"""
    net = classifier(data)
    return net.features(images.clamp(0, 1).to(next(net.parameters()).dtype))
