"""Chains, predictors and operation counts against brute force; the transformer against its definition; claims."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lab.claim import Claim, Run, judge
from lab.claims import transformer as claims
from lab.claims import transformer_text as text_claims
from lab.data.markov import MarkovChains
from lab.data.text import Text
from lab.errors import Refusal
from lab.models import next_token
from lab.models.next_token import losses
from lab.nets.layers import squared_relu
from lab.nets.transformer import Transformer
from lab.theory import flops, markov

pytestmark = pytest.mark.usefixtures("one_thread")

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
Make = Callable[..., Any]
CHAIN = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------------- theory


def test_the_stationary_law_and_its_entropy_rate_by_hand() -> None:
    """Two states with P₀₁ = a, P₁₀ = b: π = (b, a)/(a + b). (Cover & Thomas, example 4.1.1.)"""
    a, b = 0.2, 0.5
    chain = torch.tensor([[1 - a, a], [b, 1 - b]], dtype=torch.float64)
    close(markov.stationary(chain), torch.tensor([b, a], dtype=torch.float64) / (a + b))

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    expected = (b * entropy(a) + a * entropy(b)) / (a + b)
    assert float(markov.entropy_rate(chain)) == pytest.approx(expected, rel=1e-12)
    certain = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert float(markov.entropy_rate(certain)) == pytest.approx(0, abs=1e-12)


def test_the_entropy_rate_is_the_growth_of_block_entropies() -> None:
    """H(X₁ … X_n) − H(X₁ … X_{n−1}), over all words."""
    pi = markov.stationary(CHAIN)
    close(pi @ CHAIN, pi)

    def block(n: int) -> float:
        total = 0.0
        for word in itertools.product(range(3), repeat=n):
            p = float(pi[word[0]]) * math.prod(float(CHAIN[i, j]) for i, j in itertools.pairwise(word))
            total -= p * math.log(p)
        return total

    assert float(markov.entropy_rate(CHAIN)) == pytest.approx(block(6) - block(5), rel=1e-10)


def test_what_a_chain_costs_is_the_logarithm_of_its_steps() -> None:
    tokens = torch.tensor([[0, 1, 1, 2]])
    expected = [-math.log(0.8), -math.log(0.1), -math.log(0.2)]
    close(markov.chain_losses(tokens, CHAIN), torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_posterior_means_multiply_to_the_integral_over_all_chains(alpha: float, evidence: Make) -> None:
    words = list(itertools.product(range(3), repeat=5))
    each = markov.posterior_mean_losses(torch.tensor(words), 3, alpha)
    expected = torch.tensor([-evidence(word, 3, alpha) - math.log(3) for word in words], dtype=torch.float64)
    close(each.sum(1), expected)
    assert sum(math.exp(evidence(word, 3, alpha)) for word in words) == pytest.approx(1, rel=1e-12)


def test_no_other_count_predicts_better_on_average(ready: Make) -> None:
    """Of fresh chains α is the best that can be added to the counts, and order is worth something."""
    tokens = ready(MarkovChains(context=40)).held_out(4000)[:, 1:]
    best = markov.posterior_mean_losses(tokens, 3, 0.5)
    for other in (
        markov.posterior_mean_losses(tokens, 3, 0.25),
        markov.posterior_mean_losses(tokens, 3, 1.0),
        markov.unigram_losses(tokens, 3, 0.5),
    ):
        apart = (other - best).sum(1)
        assert float(apart.mean()) > 5 * float(apart.std()) / len(apart) ** 0.5


def test_a_unigram_counts_what_it_has_seen() -> None:
    tokens = torch.tensor([[2, 2, 0, 1]])
    chances = [(1 + 0.5) / (1 + 1.5), 0.5 / (2 + 1.5), 0.5 / (3 + 1.5)]
    close(markov.unigram_losses(tokens, 3, 0.5), -torch.tensor([chances], dtype=torch.float64).log())


def test_evidence_and_prior_are_averaged(ready: Make) -> None:
    """w n_ij/n_i + (1 − w)/k is the posterior mean."""
    tokens = ready(MarkovChains(context=30)).held_out(5)[:, 1:]
    n, w = markov.evidence_weight(tokens, 3, 0.5)
    bayes = markov.posterior_mean_losses(tokens, 3, 0.5).neg().exp()
    for row, t in itertools.product(range(5), range(29)):
        now, then = int(tokens[row, t]), tokens[row, : t + 1].tolist()
        after = [b for a, b in itertools.pairwise(then) if a == now]
        assert int(n[row, t]) == len(after)
        seen = after.count(int(tokens[row, t + 1])) / len(after) if after else 0.0
        expected = float(w[row, t]) * seen + (1 - float(w[row, t])) / 3
        assert float(bayes[row, t]) == pytest.approx(expected, rel=1e-12)


def test_the_conditional_entropy_is_the_least_that_a_table_costs() -> None:
    text = "abracadabra abracadabra alakazam"
    tokens = torch.tensor([ord(c) for c in text])
    for m in range(3):
        words = tokens.unfold(0, m + 1, 1)
        keys = ["".join(map(chr, word)) for word in words.tolist()]
        past = [key[:-1] for key in keys]
        expected = -sum(math.log(keys.count(key) / past.count(key[:-1])) for key in keys) / len(keys)
        assert markov.conditional_entropy(words) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("layers", "heads", "width", "hidden", "context"), [(1, 1, 8, 2, 5), (3, 2, 16, 4, 12)])
def test_operations_are_those_of_the_products(layers: int, heads: int, width: int, hidden: int, context: int) -> None:
    """Of each product (m×n)(n×p) 2mnp, listed one by one."""
    vocabulary, batch = 7, 3
    size = width // heads
    once = [(context, width, 3 * width), (context, width, width)]
    once += heads * [(context, size, context), (context, context, size)]
    once += [(context, width, hidden * width), (context, hidden * width, width)]
    products = layers * once + [(context, width, vocabulary)]
    expected = batch * sum(2 * m * n * p for m, n, p in products)
    given = (layers, width, hidden * width, vocabulary, context, batch)
    assert flops.forward(*given) == expected
    assert flops.training(*given) == 3 * expected
    net = Transformer(vocabulary, context, layers, heads, width, hidden)
    weights = sum(p.numel() for p in net.parameters() if p.ndim == 2) - net.symbols.numel()
    assert flops.matmul_parameters(layers, width, hidden * width, vocabulary) == weights


# --------------------------------------------------------------------------------------------------------------- claims


class Exact(nn.Module):
    """The law of the sequences itself in a transformer's place: `rows` gives each next symbol's chances."""

    def __init__(self, rows: Any, vocabulary: int = 4) -> None:
        super().__init__()
        self.rows, self.vocabulary, self.context = rows, vocabulary, 64
        self.symbols = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        chances = self.rows(tokens[:, 1:])  # (B, T−1, k)
        first = torch.full_like(chances[:, :1], 1 / chances.shape[-1])
        chances = torch.cat([first, chances], 1)
        return functional.pad(chances, (0, self.vocabulary - chances.shape[-1])).log()


def posterior(tokens: Tensor, alpha: float = 0.5) -> Tensor:
    """(n_ij + α)/(n_i + kα) by counting pairs in one go: (B, T) → (B, T, k)"""
    hot = functional.one_hot(tokens, 3).double()
    pairs = torch.zeros(*tokens.shape, 3, 3, dtype=torch.float64)
    pairs[:, 1:] = (hot[:, :-1, :, None] * hot[:, 1:, None, :]).cumsum(1)
    seen = (pairs * hot[..., None]).sum(2) + alpha
    return seen / seen.sum(-1, keepdim=True)


def unordered(tokens: Tensor) -> Tensor:
    seen = functional.one_hot(tokens, 3).double().cumsum(1) + 0.5
    return seen / seen.sum(-1, keepdim=True)


@pytest.fixture
def chains(ready: Make) -> MarkovChains:
    return ready(MarkovChains())


def exact(**other: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"net": Exact(posterior), "fixed": Exact(lambda tokens: CHAIN[tokens])} | other))


CLAIMS: dict[str, Claim] = {
    "entropy_rate": claims.EntropyRate(),
    "no_better": claims.NoBetter(512),
    "bayes": claims.Bayes(512),
    "unigram": claims.Unigram(512),
}


@pytest.fixture
def judged(chains: MarkovChains) -> Make:
    return lambda name, run: judge(name, CLAIMS[name], Run(run, chains)).judged


@pytest.mark.parametrize("name", CLAIMS)
def test_the_exact_predictors_hold(name: str, judged: Make) -> None:
    found = judged(name, exact())
    assert found.holds, found
    if name in ("no_better", "bayes"):
        assert abs(found.measured - found.predicted) < 1e-9 * abs(found.predicted) + (name == "bayes") * claims.NATS


def test_predictors_that_know_less_are_refuted(judged: Make) -> None:
    less = exact(net=Exact(unordered), fixed=Exact(lambda tokens: markov.stationary(CHAIN).expand(*tokens.shape, 3)))
    for name in ("entropy_rate", "bayes", "unigram"):
        assert not judged(name, less).holds, name
    assert judged("no_better", less).holds


def test_a_predictor_that_sees_the_next_symbol_is_refuted(judged: Make) -> None:
    def cheating(tokens: Tensor) -> Tensor:
        chances = torch.full((*tokens.shape, 3), 0.3 / 3, dtype=torch.float64)
        chances[:, :-1] += 0.7 * functional.one_hot(tokens[:, 1:], 3)
        chances[:, -1] = 1 / 3
        return chances

    assert not judged("no_better", exact(net=Exact(cheating))).holds
    assert not judged("entropy_rate", exact(fixed=Exact(cheating))).holds


def test_what_beats_the_law_by_chance_is_within_what_is_allowed(chains: MarkovChains) -> None:
    """Markov's inequality: over 300 sets of sequences, none is below by ln (2·10⁵), and some are below by a little."""
    data, claim = chains, CLAIMS["no_better"]
    below = []
    for i in range(300):
        tokens = data.fixed(20, "chance", i)
        law = markov.chain_losses(tokens[:, 1:], CHAIN).sum()
        other = markov.chain_losses(tokens[:, 1:], 0.9 * CHAIN + 0.1 / 3).sum()
        below.append(float(law - other))
    assert max(below) > 0
    assert max(below) < claim.relation.atol
    assert np.mean(np.exp(below)) < 1 + 5 * np.std(np.exp(below)) / 300**0.5


def uniform_law(transition: Tensor) -> Tensor:
    """Wrong: every state equally often."""
    return torch.full((len(transition),), 1 / len(transition), dtype=torch.float64)


def in_bits(transition: Tensor) -> Tensor:
    """Wrong: bits."""
    return -(markov.stationary(transition) @ (transition * transition.log2())).sum()


def of_symbols(transition: Tensor) -> Tensor:
    """Wrong: what symbols cost without their order."""
    pi = markov.stationary(transition)
    return -(pi * pi.log()).sum()


def without_prior(tokens: Tensor, symbols: int, concentration: float) -> Tensor:
    """Wrong: what the chain itself would cost, as if it were known from where it is seen to the end."""
    return markov.posterior_mean_losses(tokens, symbols, concentration) - 0.03


@pytest.mark.parametrize(
    ("what", "wrong", "refuted"),
    [
        ("stationary", uniform_law, ["entropy_rate"]),
        ("entropy_rate", in_bits, ["entropy_rate"]),
        ("entropy_rate", of_symbols, ["entropy_rate"]),
        ("posterior_mean_losses", markov.unigram_losses, ["no_better"]),
        ("posterior_mean_losses", without_prior, ["bayes"]),
    ],
)
def test_a_wrong_formula_is_refuted(
    what: str, wrong: Any, refuted: list[str], monkeypatch: pytest.MonkeyPatch, judged: Make
) -> None:
    if what == "posterior_mean_losses" and wrong is without_prior:
        right = markov.posterior_mean_losses
        wrong = lambda *given: right(*given) - 0.03  # noqa: E731
    monkeypatch.setattr(markov, what, wrong)
    for name in refuted:
        assert not judged(name, exact()).holds, name


def test_a_bayes_predictor_with_another_prior_is_told_apart(monkeypatch: pytest.MonkeyPatch, judged: Make) -> None:
    right = markov.posterior_mean_losses
    monkeypatch.setattr(markov, "posterior_mean_losses", lambda tokens, k, alpha: right(tokens, k, 2 * alpha))
    assert not judged("no_better", exact()).holds


class Head(nn.Module):
    """Attention that is put in place: `share` of it on what followed copies of the current symbol, evenly."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def attention(self, tokens: Tensor) -> Tensor:
        maps = torch.zeros(1, len(tokens), 1, *2 * tokens.shape[1:], dtype=torch.float64)
        for b, t in itertools.product(range(len(tokens)), range(tokens.shape[1])):
            after = [s for s in range(1, t + 1) if tokens[b, s - 1] == tokens[b, t]]
            maps[0, b, 0, t, 0] = 1.0
            for s in after:
                maps[0, b, 0, t, s] += self.share / len(after)
                maps[0, b, 0, t, 0] -= self.share / len(after)
        return maps


def test_the_mass_of_a_head_is_what_it_puts_on_what_followed(ready: Make) -> None:
    data, claim = ready(MarkovChains(context=16)), claims.InductionHead(20)
    for share, holds in ((1.0, True), (0.5, False)):
        e = judge("induction_head", claim, Run(SimpleNamespace(net=Head(share)), data))
        assert e.judged.measured == pytest.approx(share)
        assert e.judged.holds is holds
    tokens = data.held_out(20)[:, :-1]
    even = torch.ones(16, 16, dtype=torch.float64).tril() / torch.arange(1, 17)[:, None]
    mass, there = claims.masses(even.expand(1, 20, 1, 16, 16), tokens)
    assert float(mass[..., there].mean()) < 0.5
    assert not there[:, :2].any()


def small(layers: int = 2, **options: Any) -> Transformer:
    return Transformer(4, 64, layers, 1, 8, **options)


@pytest.mark.parametrize("recompute", [False, True])
def test_operations_are_counted_by_the_framework(recompute: bool, chains: MarkovChains) -> None:
    claim, run = claims.Flops(layers=2, width=8, vocabulary=4), SimpleNamespace(net=small(recompute=recompute))
    e = judge("flops", claim, Run(run, chains))
    assert e.judged.holds is not recompute
    forward, training = np.asarray(e.measured.value)
    assert forward == np.asarray(e.predicted.value)[0]
    tokens = chains.held_out(2)
    with FlopCounterMode(display=False) as fused:  # what the fused kernel hides on a CPU is the attention
        run.net(tokens[:, :-1])
    assert forward - fused.get_total_flops() in (0, 2 * 2 * 4 * 8 * 64**2)
    assert (training == 3 * forward) is not recompute


@pytest.mark.parametrize("wrong", [lambda *n: 6 * n[0] * n[1], lambda *n: 2 * flops.matmul_parameters(*n[:4]) * n[4]])
def test_a_wrong_count_is_refuted(wrong: Any, monkeypatch: pytest.MonkeyPatch, chains: MarkovChains) -> None:
    monkeypatch.setattr(flops, "forward", wrong)
    claim = claims.Flops(layers=2, width=8, vocabulary=4)
    assert not judge("flops", claim, Run(SimpleNamespace(net=small()), chains)).judged.holds


def test_causality_is_exact_and_its_absence_found(chains: MarkovChains) -> None:
    for causal in (True, False):
        e = judge("causality", claims.Causality(), Run(SimpleNamespace(net=small(causal=causal)), chains))
        assert e.judged.holds is causal
        assert (float(np.max(e.measured.value)) == 0.0) is causal
    few = claims.Causality(places=5)
    assert few.at(chains).tolist() == [0, 12, 25, 37, 50]
    assert judge("causality", few, Run(SimpleNamespace(net=small()), chains)).judged.holds
    dead = small()
    with torch.no_grad():
        dead.logits.weight.zero_()
    assert not judge("causality", claims.Causality(), Run(SimpleNamespace(net=dead), chains)).judged.holds


def test_claims_about_text(tmp_path: Path, ready: Make, text: Make) -> None:
    """A net that knows the text by heart beats every table, and no counts of the windows are beaten."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    which = torch.randint(10, (4000,), generator=torch.Generator().manual_seed(0)).tolist()
    data = ready(Text(str(text(tmp_path, " ".join(words[i] for i in which))), context=16))
    net = Transformer(data.symbols, 16, 2, 1, 16)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    (windows,) = data.drawn(range(150))
    for batch in windows:
        optimizer.zero_grad()
        losses(net, batch).mean().backward()
        optimizer.step()
    run = Run(SimpleNamespace(net=net), data)
    for claim in (text_claims.BestBigram(), text_claims.NoBetterThanCounts()):
        assert judge("", claim, run).judged.holds
    fresh = Run(SimpleNamespace(net=Transformer(data.symbols, 16, 2, 1, 16)), data)
    assert not judge("", text_claims.BestBigram(), fresh).judged.holds

    def peeking(tokens: Tensor) -> Tensor:
        following = functional.one_hot(tokens.roll(-1, 1), data.symbols).double()
        return (0.9 * following + 0.1 / data.symbols).log()

    cheat = Run(SimpleNamespace(net=_Given(peeking)), data)
    assert not judge("", text_claims.NoBetterThanCounts(), cheat).judged.holds


class _Given(nn.Module):
    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits, self.symbols = logits, nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(tokens)


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (claims.Flops(layers=3, width=8, vocabulary=4), "layers=3 must equal model.net.layers=2"),
        (claims.Flops(layers=2, width=8, vocabulary=4, context=3), "context=3 must equal data.context=64"),
        (claims.EntropyRate(), "model.fixed=null is not allowed"),
        (text_claims.BestBigram(), "data._target_ must be Text"),
    ],
)
def test_what_cannot_be_judged_is_refused(claim: Claim, said: str, chains: MarkovChains) -> None:
    with pytest.raises(Refusal, match=said):
        claim.check(chains, SimpleNamespace(net=small(), fixed=None))


def test_pictures_are_drawn(tmp_path: Path, ready: Make, text: Make, model: Make, chains: MarkovChains) -> None:
    from lab import figures
    from lab.pictures.transformer import AttentionMaps, InContext
    from lab.pictures.transformer_text import Written

    run = Run(model(chains, net=small(), fixed=small(1)).float(), chains)
    letters = ready(Text(str(text(tmp_path)), context=12))
    made = model(letters, net=Transformer(30, 12, 1, 2, 8), fixed=None).float()
    with figures.style():
        for picture, of in ((AttentionMaps(8), run), (InContext(64), run), (Written(20, 40), Run(made, letters))):
            assert picture.draw(of).axes
    assert next_token.losses is losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_squared_relu_is_what_its_two_steps_are(dtype: torch.dtype) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    slope = torch.randn(1000, generator=torch.Generator().manual_seed(1)).to(dtype)
    y, expected = squared_relu(x), torch.nn.functional.relu(x).square()
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y, x, slope)[0], torch.autograd.grad(expected, x, slope)[0])
