"""What a diffusion model does in the plane: samples through time, and the loss at each noise level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lab.algorithms.samplers import sample
from lab.algorithms.samplers.heun import Heun
from lab.algorithms.schedules import Cosine, signal_and_noise
from lab.claim import Run
from lab.claims.diffusion import NATS, FloorReached, ScoreError
from lab.pictures import Picture
from lab.random import generator, normal
from lab.theory import mixture
from lab.types import PositiveInt

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Flow(Picture):
    """Samples on their way from noise to data, over the data's density, with the field that moves them

    Arrows are −v, the direction in which a sample goes, where there is anything to go there; their length is to scale
    within a panel.
    """

    levels = (-6.0, -1.0, 1.0, 2.5, 4.0, 8.0)

    def __init__(self, samples: PositiveInt = 600, arrows: PositiveInt = 15) -> None:
        self.samples, self.arrows = samples, arrows

    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.panel import INK, MEASURED

        field, reach, fine = run.model.field(), 2.6, 120
        x = normal(generator(run.data.seed, "Flow"), self.samples, run.data.d)
        plane, places = (
            torch.cartesian_prod(axis, axis)
            for axis in (torch.linspace(-reach, reach, n, dtype=torch.float64) for n in (fine, self.arrows))
        )
        figure = blank(16, 11.2)
        for i, (ax, level) in enumerate(zip(figure.subplots(2, 3).flat, self.levels, strict=True)):
            if i:
                x = sample(Heun(), field, x, Cosine(self.levels[i - 1], level).levels(20))
            _, sigma = signal_and_noise(torch.tensor(level, dtype=torch.float64))
            law = mixture.with_noise(run.data.law, level)
            density = mixture.log_density(law, plane).exp().reshape(fine, fine)
            seen = places[mixture.log_density(law, places).exp() > 1e-3 * density.max()]
            sides = (-reach, reach, -reach, reach)
            ax.imshow(density.mT.numpy(), extent=sides, origin="lower", cmap="Blues", vmin=0, vmax=1.6 * density.max())
            arrows = -field(seen, torch.tensor(level, dtype=torch.float64))
            ax.quiver(*seen.mT.numpy(), *arrows.mT.numpy(), color=INK, alpha=0.55, width=0.005)
            ax.scatter(*x.mT.numpy(), s=2.5, color=MEASURED, linewidths=0)
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[-2, 0, 2], yticks=[-2, 0, 2], aspect="equal")
            ax.set_title(f"$\\lambda$ = {level:g},  $\\sigma$ = {float(sigma):.2f}".replace("-", "−"))
        return figure


class Levels(Picture):
    """At each noise level the denoising loss and its floor, and what of the loss is the error of the learned score

    Right the difference E‖ε̂ − E[ε|x_t]‖² and the even spread of it that would cost 0.05 nats.
    """

    def __init__(self, draws: PositiveInt = 2**13) -> None:
        self.draws = draws

    def draw(self, run: Run) -> Figure:
        import numpy as np

        from lab.figures import blank
        from lab.figures.panel import MEASURED, THEORY

        schedule, d = run.model.schedule, run.data.d
        loss, score = FloorReached(draws=self.draws), ScoreError(draws=self.draws, span=schedule.span)
        fine = torch.linspace(schedule.least, schedule.most, 57, dtype=torch.float64)
        floors = [mixture.minimum_mean_squared_error(run.data.law, float(v)) for v in fine]
        levels = np.asarray(loss.levels)
        explained = d - np.interp(levels, fine, floors)
        figure = blank(16, 6.5)
        left, right = figure.subplots(1, 2)
        left.plot(fine, floors, color=THEORY, label=r"floor $E\,\mathrm{Var}(\varepsilon|x_t)$")
        left.plot(levels, loss.measure(run).value, "o", color=MEASURED, markersize=4, label="loss")
        left.axhline(d, color="0.6", linewidth=0.6, linestyle="--")
        left.text(float(fine[0]), 1.01 * d, " of a network that says 0", va="bottom", color="0.4")
        left.set(ylabel=r"$E\|\varepsilon - \hat\varepsilon\|^2$", ylim=(0, 1.13 * d))
        left.legend(loc="center left")
        right.axhline(2 * NATS / schedule.span, color=THEORY, label=f"costs {NATS:g} nats if at all levels")
        right.plot(levels, explained * np.asarray(score.measure(run).value) ** 2, "o", color=MEASURED, markersize=4)
        right.set(
            yscale="log", ylim=(None, 8 * NATS / schedule.span), ylabel=r"$E\|\hat\varepsilon - E[\varepsilon|x_t]\|^2$"
        )
        right.legend(loc="upper left")
        for ax in (left, right):
            ax.set_xlabel(r"log-SNR $\lambda$")
        return figure
