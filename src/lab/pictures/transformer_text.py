"""What a transformer has learned of a text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from lab.claim import Run
from lab.models.next_token import held_out_losses
from lab.pictures import Picture
from lab.random import generator
from lab.theory import markov
from lab.types import PositiveInt

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Written(Picture):
    """Text that the net has written, and what a character costs it over how many it has seen

    Dashed lines are the best tables of 0, 1 and 2 characters back, fitted in hindsight to the text held out.
    """

    def __init__(self, windows: PositiveInt = 1000, characters: PositiveInt = 500) -> None:
        self.windows, self.characters = windows, characters

    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.panel import INK, MEASURED, THEORY

        data, model = run.data, run.model
        losses = held_out_losses(model.net, data.held_out(self.windows)).mean(0)
        seen = np.arange(1, len(losses) + 1)
        figure = blank(16, 7.5)
        left, right = figure.subplots(1, 2)
        left.plot(seen, losses, "o-", color=MEASURED, markersize=2.5, linewidth=0.8, label="net")
        for m in range(3):
            level = markov.conditional_entropy(data.validation.unfold(0, m + 1, 1))
            left.axhline(level, color=THEORY, linewidth=0.8, linestyle="--")
            left.text(seen[-1], level, f"{m} back", color=INK, ha="right", va="bottom", fontsize=6.5)
        left.set(xlabel="characters seen", ylabel="nats a character", xscale="log", title="text held out")
        [text] = model.written(model.sample(1, generator(data.seed, "Written"), self.characters))
        lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, 52)[:16]]
        shown = "".join(c if c.isprintable() or c == "\n" else "·" for c in "\n".join(lines[:18]))
        right.text(0, 1, shown.replace("$", r"\$"), family="DejaVu Sans Mono", fontsize=5.8, va="top", linespacing=1.5)
        right.set_title("written")
        right.axis("off")
        return figure
