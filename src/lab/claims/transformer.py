"""Transformers on Markov chains: one that is fixed, whose entropy rate is known, and a new one in every sequence.

The fixed chain has transition matrix P. In the fresh ones the rows of P are drawn from Dirichlet(α, …, α) anew, so
that the next symbol must be predicted from the sequence itself. Losses are −ln q(x_t | x_{<t}) of sequences held out,
for t ≥ 1: the first symbol has none before it. All in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lab.claim import Claim, Quantity, Run, at_least, at_most, equal
from lab.data.markov import MarkovChains
from lab.data.sequences import Sequences
from lab.errors import Refusal
from lab.models.next_token import NextToken, held_out_losses, losses
from lab.random import generator, normal
from lab.theory import flops, markov
from lab.types import PositiveInt

NATS = 0.02
"""What a transformer may lose to the Bayes predictor, of each symbol."""


class _OfChains(Claim):
    """A claim about chains whose law is known.

    Args:
        sequences: held out, how many.
    """

    def __init__(self, sequences: PositiveInt = 2048) -> None:
        self.sequences = sequences

    def check(self, data: MarkovChains, model: NextToken) -> None:
        if not isinstance(data, MarkovChains):
            raise Refusal("data._target_ must be MarkovChains: the claim is about a law that is known")

    def symbols(self, data: MarkovChains) -> Tensor:
        """x₀ … x_{T−1} of the fresh chains held out, without what begins every sequence: (N, T)"""
        return data.held_out(self.sequences)[:, 1:]

    def bayes(self, data: MarkovChains) -> Tensor:
        """(N, T−1)"""
        return markov.posterior_mean_losses(self.symbols(data), data.k, data.concentration)

    def losses(self, run: Run) -> Tensor:
        """(N, T−1)"""
        return held_out_losses(run.model.net, run.data.held_out(self.sequences))[:, 1:]


class _OfTheFixedChain(_OfChains):
    """A claim about the net that is trained on one chain."""

    def check(self, data: MarkovChains, model: NextToken) -> None:
        super().check(data, model)
        if model.fixed is None:
            raise Refusal("model.fixed=null is not allowed: this claim is about the net of the fixed chain")

    def losses_of_fixed(self, run: Run) -> Tensor:
        """(N, T−1)"""
        return held_out_losses(run.model.fixed, run.data.held_out_of_the_chain(self.sequences))[:, 1:]


class EntropyRate(_OfTheFixedChain):
    """On one fixed chain the cross-entropy is the entropy rate, −Σ πᵢ Pᵢⱼ ln Pᵢⱼ

    The chain starts in its stationary law π, so every symbol but the first costs H on average whoever knows P, and
    E[−ln q] = H + E KL(P_{x_{t−1}} ‖ q) whoever does not. Another π, such as a uniform one, another base of the
    logarithm, or the entropy of π, which is what symbols cost without their order, are further than is allowed.
    """

    reference = "Cover & Thomas 2006, Thm 4.2.4 and eq. 5.25"
    symbol = "cross-entropy / nats"
    relation = equal(
        "sampling error, 4.5 standard errors over sequences, which refutes a correct run 7 times in 10⁶, and what "
        "optimisation leaves: 0.001 nats, an error of 4 % in a chance of ½; some 10⁻⁵ are left",
        k=4.5,
        atol=1e-3,
    )

    def __init__(self, sequences: PositiveInt = 8192) -> None:
        super().__init__(sequences)

    def predict(self, data: MarkovChains) -> Quantity:
        return Quantity(markov.entropy_rate(data.transition))

    def measure(self, run: Run) -> Quantity:
        each = self.losses_of_fixed(run).mean(1)  # symbols of one sequence are not independent, sequences are
        return Quantity(each.mean(), each.std() / len(each) ** 0.5)


class NoBetter(_OfTheFixedChain):
    """On sequences held out no net beats the law that they were drawn from, by more than 12.2 nats in all

    p is the law of the sequences: of the fixed chain the chain itself, of the fresh ones the Bayes predictor, which is
    their law with P integrated out. For a q that has not seen them E_p[q/p] ≤ 1, so by Markov's inequality
    P(Σ ln q − Σ ln p ≥ c) ≤ e^{−c}, however many sequences there are: the sum over N sequences is allowed what the sum
    over one is. A net that sees the symbol it predicts is below by tens of thousands of nats.
    """

    reference = "Cover & Thomas 2006, §5.11; Barron 1985"
    symbol = "nats of all sequences"
    relation = at_least(
        "sampling error, without approximation: the sum is lower by ln (2·10⁵) = 12.2 nats with probability at most "
        "1/(2·10⁵), for each of the two laws",
        atol=math.log(2e5),
    )

    def predict(self, data: MarkovChains) -> Quantity:
        fixed = markov.chain_losses(data.held_out_of_the_chain(self.sequences)[:, 1:], data.transition)
        return Quantity([float(fixed.sum()), float(self.bayes(data).sum())])

    def measure(self, run: Run) -> Quantity:
        return Quantity([float(self.losses_of_fixed(run).sum()), float(self.losses(run).sum())])


class Bayes(_OfChains):
    """On fresh chains the cross-entropy is at most 0.02 nats above the Bayes predictor's, at every position

    The Bayes predictor is the mean of the Dirichlet posterior, (n_ij + α)/(n_i + kα): it counts what has followed the
    current symbol. It is evaluated on the same sequences. From below `no_better` holds.
    """

    reference = "Bernardo & Smith 1994, §5.2; Edelman, Tsilivis, Edelman, Malach & Goel 2024, §2"
    symbol, x_symbol = "cross-entropy / nats", "symbols seen"
    relation = at_most(
        "0.02 nats is the statement; the two are about the same sequences, so their difference has a standard error of "
        "√(2·0.02/2048) = 0.004 where it is largest, and 0.0005 where it is 0.001, as it is after training",
        atol=NATS,
    )

    def predict(self, data: MarkovChains) -> Quantity:
        each = self.bayes(data).mean(0)
        return Quantity(each, x=range(1, len(each) + 1))

    def measure(self, run: Run) -> Quantity:
        each = self.losses(run)
        return Quantity(each.mean(0), each.std(0) / len(each) ** 0.5, x=range(1, each.shape[1] + 1))


class Unigram(_OfChains):
    """On fresh chains the cross-entropy is less than half as far above the Bayes predictor's as a unigram's is

    The unigram predictor knows how often each symbol has occurred, (n_j + α)/(t + kα), and not after which: what a
    layer of attention can count without knowing its positions. The bound is half way between the two.
    """

    reference = "Edelman, Tsilivis, Edelman, Malach & Goel 2024, §2"
    symbol = "cross-entropy / nats"
    relation = at_most("half way is 0.09 nats from either, twenty standard errors; of a trained net it is far off")

    def predict(self, data: MarkovChains) -> Quantity:
        unigram = markov.unigram_losses(self.symbols(data), data.k, data.concentration)
        return Quantity((unigram.mean() + self.bayes(data).mean()) / 2)

    def measure(self, run: Run) -> Quantity:
        each = self.losses(run).mean(1)
        return Quantity(each.mean(), each.std() / len(each) ** 0.5)


class InductionHead(_OfChains):
    """Some head attends to what followed earlier copies of the current symbol at least as Bayes's rule weighs them

    The posterior mean is an average of what was seen and of the prior, (n_ij + α)/(n_i + kα) = w n_ij/n_i + (1 − w)/k
    with w = n_i/(n_i + kα). A head that attends evenly to the n_i positions after copies of the current symbol, with w
    of its attention, and with the rest to a place that speaks for no symbol, is that average. One whose rest falls on
    all symbols, as it must without a way to tell which symbol was before, is not. Measured is the greatest mean mass
    of a head, over positions that have such a place to look at; theory's side is the mean of w over the same ones.
    """

    reference = "Olsson et al. 2022, §2; Edelman, Tsilivis, Edelman, Malach & Goel 2024, §3"
    symbol = "attention mass"
    relation = at_least(
        "the mean weight of evidence, on the same sequences, so there is no sampling error; what a head has beyond it "
        "the MLP takes back"
    )

    def __init__(self, sequences: PositiveInt = 256) -> None:
        super().__init__(sequences)

    def predict(self, data: MarkovChains) -> Quantity:
        seen, weight = markov.evidence_weight(self.symbols(data)[:, :-1], data.k, data.concentration)
        return Quantity(weight[seen > 0].mean())

    def measure(self, run: Run) -> Quantity:
        tokens = run.data.held_out(self.sequences)[:, :-1]
        mass, there = masses(run.model.net.attention(tokens), tokens)
        return Quantity(mass[..., there].mean(-1).max())


def masses(maps: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(attention on positions that follow an earlier copy of the current symbol, whether there is one).

    Args:
        maps: (L, B, h, T, T). tokens: (B, T).

    Returns: (L, h, B, T), (B, T)
    """
    follows = torch.zeros(len(tokens), *maps.shape[-2:], dtype=torch.bool)
    follows[:, :, 1:] = tokens[:, :, None] == tokens[:, None, :-1]
    follows &= torch.ones_like(follows[0]).tril()
    mass = (maps.double() * follows.unsqueeze(1)).sum(-1)  # (L, B, h, T)
    return mass.transpose(1, 2), follows.any(-1)


class Flops(Claim):
    """A forward pass takes 2NT + 4LwT² operations a sequence, a training step three times as many

    N = L(4w² + 2wh) + wV are the weights that multiply, not the table of symbols; the second term is the attention's
    two products. Of each product the backward pass makes two, for either factor. Counted are the products that the
    framework runs, attention being done by its definition, whose operations its counter sees on every device.

    Args:
        layers, width, hidden, vocabulary, context: L, w, h/w, V, T of the net.
        sequences: in a batch.
    """

    reference = "Kaplan et al. 2020, §2.1; Chowdhery et al. 2022, App. B"
    symbol = "operations"
    relation = equal("both are integers")

    def __init__(
        self,
        layers: PositiveInt,
        width: PositiveInt,
        vocabulary: PositiveInt,
        hidden: PositiveInt = 4,
        context: PositiveInt = 64,
        sequences: PositiveInt = 2,
    ) -> None:
        self.layers, self.width, self.vocabulary = layers, width, vocabulary
        self.hidden, self.context, self.sequences = hidden, context, sequences

    def check(self, data: Sequences, model: NextToken) -> None:
        for name in ("layers", "width", "vocabulary", "hidden"):
            if getattr(self, name) != getattr(model.net, name):
                raise Refusal(f"{name}={getattr(self, name)} must equal model.net.{name}={getattr(model.net, name)}")
        if self.context != data.context:
            raise Refusal(f"context={self.context} must equal data.context={data.context}")

    def predict(self, data: Sequences) -> Quantity:
        size = (self.layers, self.width, self.hidden * self.width, self.vocabulary, self.context, self.sequences)
        return Quantity([flops.forward(*size), flops.training(*size)])

    def measure(self, run: Run) -> Quantity:
        tokens, net = run.data.held_out(self.sequences), run.model.net
        with sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as forward:
                net(tokens[:, :-1])
            with FlopCounterMode(display=False) as training:
                losses(net, tokens).mean().backward()
        net.zero_grad()
        return Quantity([forward.get_total_flops(), training.get_total_flops()])


class Causality(Claim):
    """The gradient of the logits at t with respect to symbols after t is exactly 0

    Taken with respect to what the symbols are embedded as, of a random direction in the logits; the greatest entry
    after t over the greatest of all. Were all 0 it would not be a number, and refuted.

    Args:
        places: at how many t, evenly from 0 to T − 2; null: at all.
    """

    reference = "Vaswani et al. 2017, §3.2.3"
    symbol, x_symbol = r"$\|\partial\ell_t/\partial e_{>t}\|_\infty$", "$t$"
    relation = equal("exact: what the mask leaves out is multiplied by 0")

    def __init__(self, places: PositiveInt | None = None) -> None:
        self.places = places

    def at(self, data: Sequences) -> Tensor:
        last = data.context - 1
        n = min(self.places or last, last)
        return torch.arange(n) * last // n

    def predict(self, data: Sequences) -> Quantity:
        at = self.at(data)
        return Quantity(torch.zeros(len(at)), x=at)

    def measure(self, run: Run) -> Quantity:
        net, context = run.model.net, run.data.context
        at, rows = self.at(run.data), []
        for part in at.split(max(1, 4096 // context)):
            x = net.embedded(run.data.held_out(1)[:, :-1]).detach().expand(len(part), -1, -1).clone().requires_grad_()
            logits = net.from_embedded(x)[torch.arange(len(part)), part]  # (t, V)
            direction = normal(generator(run.data.seed, "Causality"), logits.shape[-1]).to(logits)
            (gradient,) = torch.autograd.grad((logits @ direction).sum(), x)
            size = gradient.abs().amax(-1)  # (t, T)
            after = size.masked_fill(torch.arange(context) <= part[:, None], 0.0)
            rows.append(after.amax(1) / size.amax(1))
        return Quantity(torch.cat(rows), x=at)
