"""What a diffusion model makes of images: samples, and the way to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lab.algorithms.samplers import denoised, sample
from lab.claim import Run
from lab.pictures import Picture
from lab.random import generator, normal
from lab.types import PositiveInt

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Samples(Picture):
    """Images held out and samples"""

    def __init__(self, rows: PositiveInt = 8) -> None:
        self.rows = rows

    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.images import show

        count, shape = self.rows**2, run.data.shape
        samples = run.model.sample(count, generator(run.data.seed, "Samples"))
        figure = blank(16, 8.5)
        left, right = figure.subplots(1, 2)
        show(left, run.data.examples(count)[0].unflatten(-1, shape).numpy(), self.rows, "images held out")
        show(right, samples.clamp(0, 1).numpy(), self.rows, f"samples, {run.model.sample_steps} steps")
        return figure


class Path(Picture):
    """From noise to images: x on its way, and under each what the network takes the image to be"""

    def __init__(self, images: PositiveInt = 4, stages: PositiveInt = 9) -> None:
        self.images, self.stages = images, stages

    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.images import show

        model, shape = run.model, run.data.shape
        field, draw = model.field(torch.float32), generator(run.data.seed, "Path")
        per_stage = max(1, model.sample_steps // (self.stages - 1))
        levels = model.schedule.levels(per_stage * (self.stages - 1))
        x = normal(draw, self.images, run.data.d).float()
        noisy, guessed = [], []
        for stage in range(self.stages):
            if stage:
                steps = levels[(stage - 1) * per_stage : stage * per_stage + 1]
                x = sample(model.sampler, field, x, steps, draw)
            noisy.append(x)
            guessed.append(denoised(field, x, levels[stage * per_stage]))
        figure = blank(16, 3.4 * self.images)
        rows = [torch.stack(kind, 1) for kind in (noisy, guessed)]  # (images, stages, d)
        images = torch.stack(rows, 1).flatten(0, 2).unflatten(-1, shape)
        sheet = (0.5 + 0.5 * images).clamp(0, 1).numpy()
        show(figure.subplots(), sheet, self.stages, "x and, below, the image it is taken for")
        return figure
