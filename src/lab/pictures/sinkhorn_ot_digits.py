"""Pictures of transport between digits: a square of barycentres, and a table of distances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lab.claim import Run
from lab.claims.sinkhorn_ot_digits import barycentres, transports
from lab.pictures import Picture
from lab.types import Positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Barycentres(Picture):
    """Four digits at the corners of a square, and between them their barycentres and their averages"""

    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.images import show

        figure = blank(16, 8.4)
        averages = run.data.mixtures @ run.data.corners
        for ax, images, title in zip(
            figure.subplots(1, 2),
            (barycentres(run), averages),
            ("barycentres, trained", "averages of grey values"),
            strict=True,
        ):
            show(ax, _scaled(images).unflatten(-1, run.data.shape).numpy(), run.data.side, title)
        return figure


def _scaled(images: Tensor) -> Tensor:
    """Each with its darkest pixel black."""
    return images / images.max(-1, keepdim=True).values


class Distances(Picture):
    """The root of the Sinkhorn divergence, and of the summed squares of differences, between any two of the images"""

    def __init__(self, epsilon: Positive = 0.5) -> None:
        self.epsilon = epsilon

    def draw(self, run: Run) -> Figure:
        from lab.figures import blank

        pool, labels = run.data.pool, run.data.pool_labels.tolist()
        values = transports(run, pool.unsqueeze(1), pool, self.epsilon).dual
        own = values.diagonal()
        divergence = (values - 0.5 * (own.unsqueeze(1) + own)).clamp(min=0).sqrt()
        figure = blank(16, 8.2)
        ticks = [i for i in range(len(labels)) if i == 0 or labels[i] != labels[i - 1]]
        for ax, matrix, title in zip(
            figure.subplots(1, 2),
            (divergence, torch.cdist(pool, pool)),
            (r"$S_\varepsilon^{1/2}$ / pixels", "Euclidean"),
            strict=True,
        ):
            image = ax.imshow(matrix.numpy(), cmap="Blues_r", interpolation="nearest")
            ax.set(xticks=ticks, yticks=ticks, title=title, xlabel="digit")
            ax.set_xticklabels([str(labels[i]) for i in ticks])
            ax.set_yticklabels([str(labels[i]) for i in ticks])
            figure.colorbar(image, ax=ax, shrink=0.7)
        return figure
