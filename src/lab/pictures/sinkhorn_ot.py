"""Pictures of optimal transport: plans, mass on its way, and what nets have learned of both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import MinLen
from torch import Tensor

from lab.claim import Run
from lab.claims.sinkhorn_ot import solved
from lab.data.measures import Gaussian
from lab.pictures import Picture
from lab.random import generator, normal
from lab.theory import transport as theory
from lab.types import Positive, PositiveInt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Plans(Picture):
    """Transport plans between two Gaussians on the line: as ε falls, mass gathers on the Monge map"""

    def __init__(self, epsilons: Annotated[list[Positive], MinLen(1)] = [10.0, 1.0, 0.1]) -> None:  # noqa: B006
        self.epsilons = list(epsilons)

    @torch.no_grad()
    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.panel import INK, MEASURED

        (x, a), (y, b) = run.data.grids
        source, target = run.data.source.first(), run.data.target.first()
        slope, shift = theory.monge_map(source.mean, source.covariance, target.mean, target.covariance)
        figure = blank(16, 6.6)
        axes = figure.subplots(1, len(self.epsilons), squeeze=False)[0]
        for ax, epsilon in zip(axes, self.epsilons, strict=True):
            plan = solved(run, run.data.grids, epsilon).plan
            density = plan / ((x[1] - x[0]) * (y[1] - y[0]))
            ax.pcolormesh(x[:, 0], y[:, 0], density.mT, cmap="Blues", shading="nearest", rasterized=True)
            reach = torch.tensor([-3.0, 3.0], dtype=torch.float64) * source.covariance[0, 0].sqrt() + source.mean[0]
            ax.plot(reach, slope[0, 0] * reach + shift[0], color=INK, lw=0.8)
            for points, weights, law, along in ((x, a, source, "x"), (y, b, target, "y")):
                _margin(ax, points[:, 0], weights, law, along, MEASURED)
            ax.set(xlabel="$x$", title=rf"$\varepsilon$ = {epsilon:g}")
        axes[0].set_ylabel("$y$")
        axes[0].plot([], [], color=INK, lw=0.8, label="Monge map")
        figure.legend(loc="outside lower right")
        return figure


def _margin(ax: Axes, points: Tensor, weights: Tensor, law: Gaussian, along: str, colour: str) -> None:
    """A marginal along its axis, and limits of 3.4 deviations."""
    middle, deviation = float(law.mean[0]), float(law.covariance[0, 0].sqrt())
    limits = middle - 3.4 * deviation, middle + 3.4 * deviation
    height = 0.15 * weights / weights.max()
    if along == "x":
        ax.fill_between(points, height, transform=ax.get_xaxis_transform(), color=colour, alpha=0.35, lw=0)
        ax.set_xlim(*limits)
    else:
        ax.fill_betweenx(points, height, transform=ax.get_yaxis_transform(), color=colour, alpha=0.35, lw=0)
        ax.set_ylim(*limits)


class Displacement(Picture):
    """Displacement interpolation: samples under (1 − t) x + t T(x), T learned, in the ellipses of theory"""

    def __init__(self, samples: PositiveInt = 400, steps: PositiveInt = 5) -> None:
        self.samples, self.steps = samples, steps

    @torch.no_grad()
    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.panel import MEASURED, THEORY

        source, target = run.data.source, run.data.target
        x = source.of(normal(generator(run.data.seed, "Displacement"), self.samples, source.d))
        moved = run.model.generator.double()(x)
        matrix, shift = theory.monge_map(source.mean, source.covariance, target.mean, target.covariance)
        identity = torch.eye(source.d, dtype=torch.float64)
        circle = torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64)
        circle = 2 * torch.stack([circle.cos(), circle.sin()], -1)
        figure = blank(16, 5.6)
        axes = figure.subplots(1, self.steps, sharex=True, sharey=True, squeeze=False)[0]
        for k, ax in enumerate(axes):
            t = k / max(1, self.steps - 1)
            at = (1 - t) * x + t * moved
            ax.scatter(*at[:, :2].mT, s=3, color=MEASURED, alpha=0.6, linewidths=0)
            ellipse = source.of(circle) @ ((1 - t) * identity + t * matrix).mT + t * shift
            (line,) = ax.plot(*ellipse[:, :2].mT, color=THEORY, lw=1)
            ax.set(title=f"$t$ = {t:g}", xlabel="$x_1$", aspect="equal")
        axes[0].set_ylabel("$x_2$")
        figure.legend([line], ["2 deviations, theory"], loc="outside lower right")
        return figure


class Potentials(Picture):
    """Learned dual potentials along both axes, and where the learned map sends a lattice, against their closed forms"""

    def __init__(self, reach: Positive = 3.0) -> None:
        self.reach = reach

    @torch.no_grad()
    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.panel import MEASURED, THEORY

        source, target, epsilon = run.data.source, run.data.target, run.model.epsilon
        figure = blank(16, 6.4)
        left, middle, right = figure.subplots(1, 3)
        for ax, law, other, net, name in (
            (left, source, target, run.model.source, "f"),
            (middle, target, source, run.model.target, "g"),
        ):
            form, slope = theory.gaussian_potential(law.mean, law.covariance, other.mean, other.covariance, epsilon)
            z = torch.linspace(-self.reach, self.reach, 41, dtype=torch.float64)
            for axis, style in ((0, "-"), (1, "--")):
                step = z.unsqueeze(-1) * torch.eye(law.d, dtype=torch.float64)[axis] * law.covariance[axis, axis].sqrt()
                exact = (step @ form * step).sum(-1) + 2 * step @ slope
                learned = net.double()(law.mean + step)
                ax.plot(z, exact, style, color=THEORY, lw=1, label=f"theory, axis {axis + 1}")
                ax.plot(
                    z[::4],
                    (learned - learned[20])[::4],
                    "os"[axis],
                    color=MEASURED,
                    ms=3,
                    label=f"net, axis {axis + 1}",
                )
            ax.set(xlabel="deviations from the mean", title=f"${name}$ − ${name}$(mean)")
        left.legend(fontsize=6)
        ticks = torch.linspace(-2, 2, 5, dtype=torch.float64)
        lattice = source.of(torch.cartesian_prod(ticks, ticks))
        matrix, shift = theory.monge_map(source.mean, source.covariance, target.mean, target.covariance)
        learned, exact = run.model.generator.double()(lattice), lattice @ matrix.mT + shift
        right.plot(*torch.stack([lattice, learned])[..., :2].permute(2, 0, 1), color="0.85", lw=0.5, zorder=0)
        right.scatter(*lattice[:, :2].mT, s=4, color="0.6", label="$x$")
        right.scatter(*exact[:, :2].mT, s=26, facecolors="none", edgecolors=THEORY, linewidths=0.8, label="theory")
        right.scatter(*learned[:, :2].mT, s=5, color=MEASURED, label="learned $T(x)$")
        right.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title="the Monge map")
        right.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, handletextpad=0.1)
        return figure
