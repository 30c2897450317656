"""What a variational autoencoder makes of images: copies, samples, the plane of its codes, its bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lab.claim import Run
from lab.claims.vae import ImportanceBounds
from lab.pictures import Picture
from lab.random import generator, normal
from lab.types import PositiveInt

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _images(run: Run, x: Tensor) -> Tensor:
    """Vectors (..., d) as images in the units of the pixels."""
    return (x + run.model.mean.to(x)).unflatten(-1, run.data.shape)


def _span(run: Run) -> tuple[float, float]:
    """Black and white: the least and the greatest pixel of the data."""
    pixels = _images(run, run.data.examples(1000)[0])
    return float(pixels.min()), float(pixels.max())


def _models(run: Run) -> dict[str, Any]:
    """Name → model, of those there are."""
    models = {"linear": run.model.linear, "nonlinear": run.model.net}
    return {f"{name}, {net.k} codes": net for name, net in models.items() if net is not None}


class Reconstructions(Picture):
    """Images and what is left of them: the decoder's mean at the encoder's mean"""

    def __init__(self, images: PositiveInt = 14) -> None:
        self.images = images

    @torch.no_grad()
    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.images import show

        x, _ = run.data.examples(self.images)
        rows = {"data": x} | {
            name: net.likelihood.mean(net.decode(net.encode(x)[0])) for name, net in _models(run).items()
        }
        figure = blank(16, 1.9 * len(rows))
        for ax, (name, row) in zip(figure.subplots(len(rows), 1, squeeze=False).flat, rows.items(), strict=True):
            show(ax, _images(run, row).numpy(), self.images, name, _span(run))
        return figure


class Samples(Picture):
    """Samples: the decoder's mean at codes drawn from the prior"""

    def __init__(self, rows: PositiveInt = 8) -> None:
        self.rows = rows

    @torch.no_grad()
    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.images import show

        models = _models(run)
        figure = blank(8 * len(models), 8.5)
        for ax, (name, net) in zip(figure.subplots(1, len(models), squeeze=False).flat, models.items(), strict=True):
            z = normal(generator(run.data.seed, "Samples", name), self.rows**2, net.k).to(run.model.mean)
            images = _images(run, net.likelihood.mean(net.decode(z)))
            show(ax, images.numpy(), self.rows, name, _span(run))
        return figure


class LatentPlane(Picture):
    """The plane of two codes: where the encoder puts each image, and what the decoder makes of each place

    The places are at evenly spaced quantiles of the prior in both directions.
    """

    def __init__(self, images: PositiveInt = 1000, places: PositiveInt = 16) -> None:
        self.images, self.places = images, places

    @torch.no_grad()
    def draw(self, run: Run) -> Figure:
        import matplotlib

        from lab.figures import blank
        from lab.figures.images import show

        net, (x, labels) = run.model.net, run.data.examples(self.images)
        codes, _ = net.encode(x)
        figure = blank(16, 8.3)
        left, right = figure.subplots(1, 2)
        colours = matplotlib.colormaps["tab10"]
        for label in labels.unique().tolist():
            group = codes[labels == label]
            left.scatter(*group[:, :2].mT.numpy(), s=4, color=colours(label % 10), linewidths=0)
            place = group.median(0).values
            left.text(place[0], place[1], str(label), fontweight="bold", ha="center", va="center").set_bbox(
                {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
            )
        left.set(xlabel="$z_1$", ylabel="$z_2$", title="means of $q(z|x)$", aspect="equal", box_aspect=1)
        left.set_aspect("equal", adjustable="datalim")
        levels = (torch.arange(self.places, dtype=torch.float64) + 0.5) / self.places
        axis = torch.special.ndtri(levels).to(x)
        z = torch.cartesian_prod(axis.flip(0), axis).flip(1)  # the second code grows upwards
        images = _images(run, net.likelihood.mean(net.decode(z)))
        show(right, images.numpy(), self.places, "means of $p(x|z)$ at quantiles of the prior", _span(run))
        return figure


class Bounds(Picture):
    """Bounds of the evidence: what was trained, and more and more importance weights"""

    def __init__(self, images: PositiveInt = 256, draws: PositiveInt = 64) -> None:
        self.images, self.draws = images, draws

    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.panel import INK, MEASURED

        claim = ImportanceBounds(self.images, self.draws, evidence=False)
        means = [float(bound.mean()) for bound in claim.chain(run)]
        figure = blank(9, 6.5)
        ax = figure.subplots()
        weights = [1, *claim.samples]
        ax.plot(weights, means, "o-", color=MEASURED, markersize=4)
        for at, aside, side in ((0, (8, -3), "left"), (-1, (0, 6), "right")):  # below and above the rising curve
            text = f"{means[at]:.2f}".replace("-", "−")
            ax.annotate(text, (weights[at], means[at]), aside, textcoords="offset points", color=INK, ha=side)
        ax.set_xscale("log", base=2)
        title = f"bounds of $\\ln p(x)$, mean of {len(run.data.examples(self.images)[0])} images"
        ax.set(xticks=weights, xticklabels=weights, xlabel="weights $K$", ylabel="nats an image", title=title)
        ax.margins(0.12, 0.15)
        return figure
