"""What a transformer has learned of Markov chains: where its heads look, and what it makes of what it has seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lab.claim import Run
from lab.claims.transformer import Bayes, masses
from lab.models.next_token import held_out_losses
from lab.pictures import Picture
from lab.theory import markov
from lab.types import PositiveInt

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AttentionMaps(Picture):
    """Where each head looks from each symbol of one sequence; framed is what followed an earlier copy of the symbol

    A row is a symbol that looks, its columns are those it looks at; the row sums to 1. The head with most of its
    attention in frames is the induction head, and a head that attends to the diagonal below the main one, the symbol
    before, is what it is built on.
    """

    def __init__(self, length: PositiveInt = 24) -> None:
        self.length = length

    def draw(self, run: Run) -> Figure:
        from matplotlib.patches import Rectangle

        from lab.figures import blank
        from lab.figures.panel import MEASURED

        tokens = run.data.held_out(1)[:, : self.length]
        maps = run.model.net.attention(tokens)
        mass, there = masses(maps, tokens)
        mean = mass[..., there].mean(-1)  # (L, h)
        layers, heads = mean.shape
        names = ["›" if token == run.data.begin else "ABCDEFGHIJ"[token % 10] for token in tokens[0].tolist()]
        figure = blank(8 * max(layers, 2), 8.3 * heads)
        for (i, j), ax in np.ndenumerate(figure.subplots(heads, layers, squeeze=False)):
            ax.imshow(maps[j, 0, i].numpy(), cmap="Blues", vmin=0, vmax=1)
            induction = bool(mean[j, i] == mean.max())
            for row, token in enumerate(tokens[0].tolist()):
                for column in range(1, row + 1):
                    if induction and tokens[0, column - 1] == token:
                        ax.add_patch(
                            Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=MEASURED, linewidth=0.8)
                        )
            what = "induction head" if induction else "head"
            title = (
                f"layer {j + 1}, {what}" + (f" {i + 1}" if heads > 1 else "") + f": {float(mean[j, i]):.0%} in frames"
            )
            ax.set(title=title, xticks=range(len(names)), yticks=range(len(names)), xlabel="looked at")
            ax.set_xticklabels(names, fontsize=5.5)
            ax.set_yticklabels(names, fontsize=5.5)
            ax.tick_params(length=0)
            if j == 0:
                ax.set_ylabel("looks")
        return figure


class InContext(Picture):
    """Learning within a sequence: the cross-entropy over symbols seen, and the attention that evidence gets

    Left the net, the Bayes predictor, on which it should lie, and a unigram. Right the induction head's attention on
    what followed the current symbol, over how often that symbol was seen before, and the weight that Bayes's rule gives
    to it, n/(n + kα).
    """

    def __init__(self, sequences: PositiveInt = 4096) -> None:
        self.sequences = sequences

    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.panel import INK, MEASURED, THEORY

        data, net = run.data, run.model.net
        held_out = data.held_out(self.sequences)
        claim = Bayes(self.sequences)
        seen = np.arange(1, data.context)
        unigram = markov.unigram_losses(claim.symbols(data), data.k, data.concentration).mean(0)
        figure = blank(16, 6.5)
        left, right = figure.subplots(1, 2)
        left.plot(seen, unigram, "--", color=INK, linewidth=0.8, label="unigram")
        left.plot(seen, claim.bayes(data).mean(0), color=THEORY, label="Bayes predictor")
        left.plot(seen, held_out_losses(net, held_out)[:, 1:].mean(0), "o", color=MEASURED, markersize=2.5, label="net")
        left.set(xlabel="symbols seen", ylabel="cross-entropy / nats")
        left.legend()

        tokens = held_out[:256, :-1]
        mass, there = masses(net.attention(tokens), tokens)
        best = mass.flatten(0, 1)[mass[..., there].mean(-1).argmax()]  # (B, T)
        n, weight = markov.evidence_weight(tokens[:, 1:], data.k, data.concentration)
        counts = torch.arange(1, int(n.max()) + 1)
        common = [int(c) for c in counts if (n == c).sum() >= 20]
        right.plot(common, [float(weight[n == c].mean()) for c in common], color=THEORY, label="weight of evidence")
        attention = [float(best[:, 1:][n == c].mean()) for c in common]
        right.plot(common, attention, "o", color=MEASURED, markersize=2.5, label="attention of the induction head")
        right.set(xlabel="times the current symbol was seen before", ylim=(0, 1.03))
        right.legend(loc="lower right")
        return figure
