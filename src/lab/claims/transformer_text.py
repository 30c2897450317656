"""Transformers on text, whose law nobody knows: what is known of every predictor, from counts of the text itself.

Losses are −ln q(x_t | x_{<t}) in nats a character, of windows held out from training.
"""

from __future__ import annotations

from lab.claim import Claim, Quantity, Run, at_least, at_most
from lab.data.text import Text
from lab.errors import Refusal
from lab.models.next_token import NextToken, held_out_losses
from lab.theory import markov
from lab.types import PositiveInt


class _OfText(Claim):
    """A claim about text held out.

    Args:
        windows: how many, evenly from the text held out.
    """

    def __init__(self, windows: PositiveInt = 1000) -> None:
        self.windows = windows

    def check(self, data: Text, model: NextToken) -> None:
        if not isinstance(data, Text):
            raise Refusal("data._target_ must be Text: the claim is about a text")


class BestBigram(_OfText):
    """The net predicts text held out better than any predictor that sees one character back

    The best such predictor of the text held out is that of its own pairs, fitted in hindsight: it costs the
    conditional entropy −(1/n) Σ ln n(x_{t−1} x_t)/n(x_{t−1}). A net that stays above has learned nothing but pairs.
    """

    reference = "Cover & Thomas 2006, Thm 2.6.3; Shannon 1951"
    symbol = "nats a character"
    relation = at_most("the least that any table of pairs costs; a trained net is a third below")

    def predict(self, data: Text) -> Quantity:
        return Quantity(markov.conditional_entropy(data.validation.unfold(0, 2, 1)))

    def measure(self, run: Run) -> Quantity:
        each = held_out_losses(run.model.net, run.data.held_out(self.windows)).mean(1)
        return Quantity(each.mean(), each.std() / len(each) ** 0.5)


class NoBetterThanCounts(_OfText):
    """Given the first m characters of a window the net is never better than the counts of these very windows

    Whatever q is, −(1/n) Σ ln q(w_m | w₀ … w_{m−1}) is at least what the counts of the n words themselves give (Gibbs'
    inequality). A net that knows more than the m characters, such as the one it is to predict, is below.
    """

    reference = "Cover & Thomas 2006, Thm 2.6.3"
    symbol, x_symbol = "nats a character", "characters seen"
    relation = at_least(
        "exact: an inequality between averages over the same windows, up to the rounding of float32", rtol=1e-5
    )
    seen = (1, 2, 3)

    def predict(self, data: Text) -> Quantity:
        words = data.held_out(self.windows)
        return Quantity([markov.conditional_entropy(words[:, : m + 1]) for m in self.seen], x=self.seen)

    def measure(self, run: Run) -> Quantity:
        each = held_out_losses(run.model.net, run.data.held_out(self.windows))[:, : len(self.seen)]
        return Quantity(each.mean(0), each.std(0) / len(each) ** 0.5, x=self.seen)
