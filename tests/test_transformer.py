"""Chains, predictors and operation counts against brute force; the transformer against its definition; claims."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lab.claim import Claim, Run, judge
from lab.claims import transformer as claims
from lab.claims import transformer_text as text_claims
from lab.data.markov import MarkovChains
from lab.data.sequences import Sequences
from lab.data.text import Text
from lab.errors import Refusal
from lab.models import next_token
from lab.models.next_token import NextToken, held_out_losses, losses
from lab.nets.transformer import Transformer, rotated, turns
from lab.theory import flops, markov

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
CHAIN = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def ready(data: Sequences, rank: int = 0, ranks: int = 1) -> Any:
    data.dtype, data.rank, data.world_size = torch.float64, rank, ranks
    data.setup()
    data.place(torch.device("cpu"))
    return data


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def evidence(word: tuple[int, ...], k: int, alpha: float) -> float:
    """p(word), the rows of P integrated out: a Dirichlet-multinomial law for each row, with uniform first symbol."""
    total = -math.log(k)
    for i in range(k):
        after = [b for a, b in itertools.pairwise(word) if a == i]
        total += math.lgamma(k * alpha) - math.lgamma(k * alpha + len(after))
        total += sum(math.lgamma(alpha + after.count(j)) - math.lgamma(alpha) for j in range(k))
    return total


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_posterior_means_multiply_to_the_integral_over_all_chains(alpha: float) -> None:
    words = list(itertools.product(range(3), repeat=5))
    each = markov.posterior_mean_losses(torch.tensor(words), 3, alpha)
    expected = torch.tensor([-evidence(word, 3, alpha) - math.log(3) for word in words], dtype=torch.float64)
    close(each.sum(1), expected)
    assert sum(math.exp(evidence(word, 3, alpha)) for word in words) == pytest.approx(1, rel=1e-12)


def test_no_other_count_predicts_better_on_average() -> None:
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


def test_evidence_and_prior_are_averaged() -> None:
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


# ------------------------------------------------------------------------------------------------------------------ net


def test_rotation_is_multiplication_by_a_unit_complex_number() -> None:
    x, angles = drawn(2, 6, 8), turns(6, 8)
    as_complex = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    close(rotated(x, angles.cos(), angles.sin()), torch.cat([as_complex.real, as_complex.imag], -1))
    assert angles[5].tolist() == pytest.approx([5 * 10_000 ** (-i / 4) for i in range(4)])


def test_products_of_rotated_vectors_depend_on_the_distance_alone() -> None:
    q, k = drawn(8), drawn(8, seed=1)
    angles = turns(20, 8)
    at = [rotated(v.expand(20, 8), angles.cos(), angles.sin()) for v in (q, k)]
    products = at[0] @ at[1].mT
    for distance in (-3, 0, 7):
        diagonal = products.diagonal(distance)
        close(diagonal, diagonal[:1].expand_as(diagonal))
    assert abs(float(products[0, 0] - products[0, 5])) > 1e-3


def definition(net: Transformer, tokens: Tensor, heads: int) -> Tensor:
    """The network as the papers write it, position by position and head by head."""
    w = net.width
    x = net.symbols[tokens]
    angles = turns(tokens.shape[1], w // heads)
    for block in net.blocks:
        y = functional.layer_norm(x, (w,), block.before_attention.weight)
        q, k, v = (y @ part.mT for part in block.queries_keys_values.weight.chunk(3))
        seen = torch.zeros_like(x)
        for h in range(heads):
            mine = slice(h * w // heads, (h + 1) * w // heads)
            qs, ks = (rotated(z[..., mine], angles.cos(), angles.sin()) for z in (q, k))
            for t in range(tokens.shape[1]):
                scores = torch.einsum("bd,bsd->bs", qs[:, t], ks[:, : t + 1]) / math.sqrt(w // heads)
                seen[:, t, mine] = torch.einsum("bs,bsd->bd", scores.softmax(-1), v[:, : t + 1, mine])
        x = x + seen @ block.attended.weight.mT
        y = functional.layer_norm(x, (w,), block.before_mlp.weight)
        x = x + (y @ block.up.weight.mT).clamp(min=0) ** 2 @ block.down.weight.mT
    return functional.layer_norm(x, (w,), net.norm.weight) @ net.logits.weight.mT


@pytest.mark.parametrize("heads", [1, 2])
def test_the_network_is_what_its_definition_says(heads: int) -> None:
    net = Transformer(5, 9, 2, heads, 8, seed=3).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * drawn(*p.shape, seed=p.numel()))
    tokens = torch.randint(5, (3, 9), generator=torch.Generator().manual_seed(0))
    net.cos, net.sin = turns(9, 8 // heads).cos(), turns(9, 8 // heads).sin()
    close(net(tokens), definition(net, tokens, heads))
    close(net(tokens[:, :6]), net(tokens)[:, :6])  # what comes later changes nothing


def test_maps_are_the_attention_that_is_computed() -> None:
    net = Transformer(5, 9, 2, 2, 8, seed=3).double()
    tokens = torch.randint(5, (3, 9), generator=torch.Generator().manual_seed(0))
    maps = net.attention(tokens)
    assert maps.shape == (2, 3, 2, 9, 9)
    close(maps.sum(-1), torch.ones(2, 3, 2, 9, dtype=torch.float64))
    assert not maps.triu(1).any()
    block, x = net.blocks[0], net.embedded(tokens)
    at = net._turns(x)
    _, _, v = block.projected(x, *at)
    seen = (maps[0] @ v).transpose(1, 2).flatten(2)
    after = x + block.attended(seen)
    close(block(x, *at), after + block.down(torch.relu(block.up(block.before_mlp(after))).square()))


@pytest.mark.parametrize("positions", [True, False])
def test_one_position_more_is_the_last_of_all(positions: bool) -> None:
    net = Transformer(5, 9, 2, 2, 8, positions=positions, seed=3).double()
    tokens = torch.randint(5, (3, 9), generator=torch.Generator().manual_seed(0))
    past: Any = ()
    for t in range(9):
        logits, past = net.next(tokens[:, t], past)
        close(logits, net(tokens)[:, t])


def test_options_do_what_they_say() -> None:
    tokens = torch.tensor([[0, 1, 2, 3, 1, 2]])
    swapped = torch.tensor([[1, 0, 2, 3, 1, 2]])
    one = Transformer(4, 6, 1, 1, 8, positions=False).double()  # one layer without positions sees a set
    close(one(tokens)[:, -1], one(swapped)[:, -1])
    turned = Transformer(4, 6, 1, 1, 8).double()
    assert not torch.allclose(turned(tokens)[:, -1], turned(swapped)[:, -1])
    seeing = Transformer(4, 6, 1, 1, 8, causal=False).double()
    assert not torch.allclose(seeing(tokens)[:, :1], seeing(tokens[:, :1]))
    close(Transformer(4, 6, 2, 2, 8, fused=False).double()(tokens), Transformer(4, 6, 2, 2, 8).double()(tokens))
    plain, again = (Transformer(4, 6, 2, 2, 8, recompute=recompute).double() for recompute in (False, True))
    for net in (plain, again):
        losses(net, tokens).mean().backward()
    for p, q in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]
    assert not torch.equal(Transformer(seed=1).symbols, Transformer(seed=0).symbols)
    with pytest.raises(Refusal, match=r"width=12 must be a multiple of 2·heads=8"):
        Transformer(width=12, heads=4)


# ----------------------------------------------------------------------------------------------------------------- data


def test_fixed_sequences_have_the_chains_law() -> None:
    data = ready(MarkovChains(context=20))
    tokens = data.held_out_of_the_chain(5000)
    assert tokens.shape == (5000, 21)
    assert (tokens[:, 0] == 3).all()
    pairs = torch.zeros(3, 3, dtype=torch.float64)
    words = tokens[:, 1:]
    pairs.index_put_((words[:, :-1].flatten(), words[:, 1:].flatten()), torch.ones(1).double(), accumulate=True)
    for observed, row in zip(pairs, CHAIN, strict=True):
        assert stats.chisquare(observed.numpy(), (row * observed.sum()).numpy()).pvalue > 1e-6
    pi = markov.stationary(CHAIN)
    for t in (0, 1, 19):
        counts = words[:, t].bincount().double()
        assert stats.chisquare(counts.numpy(), (pi * len(words)).numpy()).pvalue > 1e-6


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_fresh_sequences_have_the_law_with_the_chains_integrated_out(alpha: float) -> None:
    data = ready(MarkovChains(concentration=alpha, context=3))
    words = [tuple(row) for row in data.held_out(20_000)[:, 1:].tolist()]
    other = ready(MarkovChains(concentration=alpha, trained=7.0, context=3))
    assert torch.equal(other.held_out(100), data.held_out(100))
    assert torch.equal(other.drawn(range(2))[0], torch.stack([other.fresh(64, 7.0, step) for step in range(2)]))
    every = list(itertools.product(range(3), repeat=3))
    observed = [words.count(word) for word in every]
    expected = [20_000 * math.exp(evidence(word, 3, alpha)) for word in every]
    assert stats.chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue > 1e-6


def text(folder: Path, content: str = "the cat sat on the mat\n" * 40) -> Path:
    path = folder / "text.txt"
    path.write_text(content, encoding="utf-8")
    return path


def test_text_is_cut_into_windows(tmp_path: Path) -> None:
    content = "äöü naïve ☃ " + "the cat sat on the mat\n" * 40
    data = ready(Text(str(text(tmp_path, content)), share=0.25, context=7, batch_size=5, seed=2))
    assert data.characters == "".join(sorted(set(content)))
    whole = "".join(data.characters[i] for i in torch.cat([data.train, data.validation]).tolist())
    assert whole == content
    assert len(data.validation) == round(0.25 * len(content))
    (windows,) = data.drawn(range(50))
    assert windows.shape == (50, 5, 8)
    for window in windows.flatten(0, 1).tolist():
        assert "".join(data.characters[i] for i in window) in content[: len(data.train)]
    held_out = data.held_out(10_000)
    inside = (len(data.validation) - 1) // 7
    assert held_out.shape == (inside, 8)
    assert torch.equal(held_out[:, :-1].flatten(), data.validation[: inside * 7].long())  # side by side
    assert torch.equal(data.held_out(3)[0], held_out[0])


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"short", {}, r"is too short: data.share=0.1 trains on 4 characters, and data.context=64 needs 65"),
        (b"x" * 200, {}, r"is too short: data.share=0.1 holds out 20 characters"),
        (b"\xff\xfe" * 100, {}, r"is no text in UTF-8: invalid start byte at byte 0"),
        (None, {}, r"cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes | None, options: Any, said: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refusal, match=said):
        ready(Text(str(path), **options))


def test_a_file_that_is_not_there_is_refused_before_anything_heavy(tmp_path: Path) -> None:
    from lab.check import check
    from lab.compose import compose

    cfg = compose(["experiment=transformer_text", f"data.path={tmp_path}/none.txt", "trainer.accelerator=cpu"])
    with pytest.raises(Refusal, match=r"data.path=.*none.txt is no file; allowed: the path of a text in UTF-8"):
        check(cfg)


@pytest.mark.parametrize("kind", ["markov", "text"])
def test_batches_are_functions_of_seed_and_step(kind: str, tmp_path: Path) -> None:
    def data(seed: int = 2, rank: int = 0, ranks: int = 1) -> Any:
        made = (
            MarkovChains(context=6, batch_size=5, seed=seed)
            if kind == "markov"
            else Text(str(text(tmp_path)), context=6, batch_size=5, seed=seed)
        )
        return ready(made, rank, ranks)

    def served(data: Any, start: int, stop: int) -> Any:
        return [(torch.stack(kinds[:1]), weight) for kinds, weight in data.block(start, stop).batches]

    whole = served(data(), 0, 6)
    torch.manual_seed(99)
    for (one, _), (other, _) in zip(served(data(), 3, 6), whole[3:], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(served(data(3), 0, 1)[0][0], whole[0][0])
    assert not torch.equal(whole[1][0], whole[0][0])
    parts = [served(data(rank=rank, ranks=2), 0, 6) for rank in range(2)]
    for step in range(6):
        assert torch.equal(torch.cat([part[step][0] for part in parts], 1), whole[step][0])
        assert sum(part[step][1] for part in parts) == pytest.approx(2)
        assert whole[step][1] == 1


@pytest.mark.parametrize("chain", [[[1.0]], [[0.5, 0.5]], [[0.5, 0.6], [0.5, 0.5]]])
def test_what_is_no_chain_is_refused(chain: Any) -> None:
    with pytest.raises(Refusal, match="is no chain"):
        MarkovChains(chain=chain)


# ---------------------------------------------------------------------------------------------------------------- model


def model(data: Sequences | None = None, **options: Any) -> NextToken:
    """What Trainer.fit leaves before the first step."""
    nets = {"net": Transformer(4, 12, 2, 1, 8), "fixed": Transformer(4, 12, 1, 1, 8)}
    made = NextToken(**{"optimizer": partial(torch.optim.SGD, lr=0.1), **nets, **options}).double()
    if data is not None:
        made.trainer = SimpleNamespace(datamodule=data, max_steps=7)  # type: ignore[assignment]
        made.setup("fit")
    return made


def test_losses_are_logarithms_of_chances() -> None:
    net = Transformer(4, 12, 2, 1, 8).double()
    tokens = torch.randint(4, (3, 13), generator=torch.Generator().manual_seed(0))
    chances = net(tokens[:, :-1]).softmax(-1)
    each = losses(net, tokens)
    for row, t in itertools.product(range(3), range(12)):
        assert each[row, t].item() == pytest.approx(-math.log(chances[row, t, tokens[row, t + 1]].item()))
    close(held_out_losses(net, tokens, rows=2), each.detach())


def test_the_objective_is_the_sum_of_both_cross_entropies() -> None:
    data = ready(MarkovChains(context=12, batch_size=4))
    made = model(data)
    (kinds, _), *_ = made.batches(data.block(4, 6))
    loss, logged = made.objective((kinds, 0.25))
    expected = [0.25 * losses(net, x).mean() for net, x in zip((made.net, made.fixed), kinds, strict=True)]  # type: ignore[arg-type]
    close(loss, expected[0] + expected[1])
    close(logged, {"loss/net": expected[0].detach(), "loss/fixed": expected[1].detach()})
    assert set(model(data, fixed=None).objective((kinds, 1.0))[1]) == {"loss/net"}


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_mean_of_the_ranks_gradients_is_the_gradient(ranks: int) -> None:
    def gradient(rank: int, ranks: int) -> Tensor:
        data = ready(MarkovChains(context=12, batch_size=5), rank, ranks)
        made = model(data)
        made.objective(list(made.batches(data.block(3, 6)))[1])[0].backward()
        return torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])

    close(sum(gradient(rank, ranks) for rank in range(ranks)) / ranks, gradient(0, 1))


def test_a_sample_follows_the_nets_chances() -> None:
    data = ready(MarkovChains(context=12))
    made = model(data, length=5)
    tokens = made.sample(4000, torch.Generator().manual_seed(1))
    assert tokens.shape == (4000, 5)
    assert torch.equal(tokens, made.sample(4000, torch.Generator().manual_seed(1)))
    assert int(tokens.max()) == 2  # never the symbol that begins
    logits = made.net(torch.tensor([[3]]))[0, 0, :3].detach()
    expected = logits.softmax(-1).numpy() * 4000
    assert stats.chisquare(tokens[:, 0].bincount(minlength=3).numpy(), expected).pvalue > 1e-6
    after = tokens[tokens[:, 0] == 1]
    logits = made.net(torch.tensor([[3, 1]]))[0, 1, :3].detach()
    expected = logits.softmax(-1).numpy() * len(after)
    assert stats.chisquare(after[:, 1].bincount(minlength=3).numpy(), expected).pvalue > 1e-6
    assert made.sample(2, torch.Generator(), length=30).shape == (2, 30)  # past the context
    assert made.written(torch.tensor([[0, 2, 1]])) == ["0 2 1"]


def test_a_checkpoint_is_enough_to_write_text(tmp_path: Path) -> None:
    content = "the cat sat ☃ on the mat\n" * 40
    data = ready(Text(str(text(tmp_path, content)), context=12))
    options: dict[str, Any] = {"net": Transformer(30, 12, 1, 1, 8), "fixed": None, "length": 60}
    made, copy = model(data, **options), model(**options)
    copy.load_state_dict(made.state_dict())
    tokens = copy.sample(3, torch.Generator().manual_seed(1))
    [written, *_] = copy.written(tokens)
    assert len(written) == 60
    assert set("".join(copy.written(tokens))) <= set(content)  # 30 symbols fit, of which 14 have a meaning
    assert chr(int(copy.characters[copy.first])) == "\n"
    assert torch.equal(tokens, made.sample(3, torch.Generator().manual_seed(1)))


def test_nets_that_do_not_fit_the_data_are_refused(tmp_path: Path) -> None:
    chains, letters = ready(MarkovChains(context=12)), ready(Text(str(text(tmp_path)), context=12))
    for data, options, said in (
        (chains, {"net": Transformer(4, 11, 1, 1, 8)}, "model.net.context=11 must be at least data.context=12"),
        (chains, {"fixed": Transformer(4, 11, 1, 1, 8)}, "model.fixed.context=11 must be at least data.context=12"),
        (chains, {"net": Transformer(3, 12, 1, 1, 8)}, "model.net.vocabulary=3 is too small: the data have 4 symbols"),
        (letters, {}, "model.fixed must be null: a text has one kind of sequence"),
        (letters, {"fixed": None}, r"model.net.vocabulary=4 is too small: the data have \d+ symbols"),
    ):
        with pytest.raises(Refusal, match=said):
            model(data, **options)


def test_the_loss_of_text_held_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ready(Text(str(text(tmp_path)), context=12))
    made = model(data, net=Transformer(30, 12, 1, 1, 8), fixed=None)
    made.trainer.is_global_zero = True  # type: ignore[misc]
    with caplog.at_level("INFO", logger="lab"):
        made.on_fit_end()
    said = float(held_out_losses(made.net, data.held_out(1000)).mean())
    assert f"held out: {said:.4f} nats a character" in caplog.text


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


def chains() -> MarkovChains:
    return ready(MarkovChains())


def exact(**other: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"net": Exact(posterior), "fixed": Exact(lambda tokens: CHAIN[tokens])} | other))


CLAIMS: dict[str, Claim] = {
    "entropy_rate": claims.EntropyRate(),
    "no_better": claims.NoBetter(512),
    "bayes": claims.Bayes(512),
    "unigram": claims.Unigram(512),
}


def judged(name: str, run: Any, data: Any = None) -> Any:
    return judge(name, CLAIMS[name], Run(run, data or chains())).judged


@pytest.mark.parametrize("name", CLAIMS)
def test_the_exact_predictors_hold(name: str) -> None:
    found = judged(name, exact())
    assert found.holds, found
    if name in ("no_better", "bayes"):
        assert abs(found.measured - found.predicted) < 1e-9 * abs(found.predicted) + (name == "bayes") * claims.NATS


def test_predictors_that_know_less_are_refuted() -> None:
    less = exact(net=Exact(unordered), fixed=Exact(lambda tokens: markov.stationary(CHAIN).expand(*tokens.shape, 3)))
    for name in ("entropy_rate", "bayes", "unigram"):
        assert not judged(name, less).holds, name
    assert judged("no_better", less).holds


def test_a_predictor_that_sees_the_next_symbol_is_refuted() -> None:
    def cheating(tokens: Tensor) -> Tensor:
        chances = torch.full((*tokens.shape, 3), 0.3 / 3, dtype=torch.float64)
        chances[:, :-1] += 0.7 * functional.one_hot(tokens[:, 1:], 3)
        chances[:, -1] = 1 / 3
        return chances

    assert not judged("no_better", exact(net=Exact(cheating))).holds
    assert not judged("entropy_rate", exact(fixed=Exact(cheating))).holds


def test_what_beats_the_law_by_chance_is_within_what_is_allowed() -> None:
    """Markov's inequality: over 300 sets of sequences, none is below by ln (2·10⁵), and some are below by a little."""
    data, claim = chains(), CLAIMS["no_better"]
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
def test_a_wrong_formula_is_refuted(what: str, wrong: Any, refuted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "posterior_mean_losses" and wrong is without_prior:
        right = markov.posterior_mean_losses
        wrong = lambda *given: right(*given) - 0.03  # noqa: E731
    monkeypatch.setattr(markov, what, wrong)
    for name in refuted:
        assert not judged(name, exact()).holds, name


def test_a_bayes_predictor_with_another_prior_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_mass_of_a_head_is_what_it_puts_on_what_followed() -> None:
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
def test_operations_are_counted_by_the_framework(recompute: bool) -> None:
    claim, run = claims.Flops(layers=2, width=8, vocabulary=4), SimpleNamespace(net=small(recompute=recompute))
    e = judge("flops", claim, Run(run, chains()))
    assert e.judged.holds is not recompute
    forward, training = np.asarray(e.measured.value)
    assert forward == np.asarray(e.predicted.value)[0]
    tokens = chains().held_out(2)
    with FlopCounterMode(display=False) as fused:  # what the fused kernel hides on a CPU is the attention
        run.net(tokens[:, :-1])
    assert forward - fused.get_total_flops() in (0, 2 * 2 * 4 * 8 * 64**2)
    assert (training == 3 * forward) is not recompute


@pytest.mark.parametrize("wrong", [lambda *n: 6 * n[0] * n[1], lambda *n: 2 * flops.matmul_parameters(*n[:4]) * n[4]])
def test_a_wrong_count_is_refuted(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "forward", wrong)
    claim = claims.Flops(layers=2, width=8, vocabulary=4)
    assert not judge("flops", claim, Run(SimpleNamespace(net=small()), chains())).judged.holds


def test_causality_is_exact_and_its_absence_found() -> None:
    data = chains()
    for causal in (True, False):
        e = judge("causality", claims.Causality(), Run(SimpleNamespace(net=small(causal=causal)), data))
        assert e.judged.holds is causal
        assert (float(np.max(e.measured.value)) == 0.0) is causal
    few = claims.Causality(places=5)
    assert few.at(data).tolist() == [0, 12, 25, 37, 50]
    assert judge("causality", few, Run(SimpleNamespace(net=small()), data)).judged.holds
    dead = small()
    with torch.no_grad():
        dead.logits.weight.zero_()
    assert not judge("causality", claims.Causality(), Run(SimpleNamespace(net=dead), data)).judged.holds


def test_claims_about_text(tmp_path: Path) -> None:
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
def test_what_cannot_be_judged_is_refused(claim: Claim, said: str) -> None:
    with pytest.raises(Refusal, match=said):
        claim.check(chains(), SimpleNamespace(net=small(), fixed=None))


def test_pictures_are_drawn(tmp_path: Path) -> None:
    from lab import figures
    from lab.pictures.transformer import AttentionMaps, InContext
    from lab.pictures.transformer_text import Written

    data = chains()
    run = Run(model(data, net=small(), fixed=small(1)).float(), data)
    letters = ready(Text(str(text(tmp_path)), context=12))
    made = model(letters, net=Transformer(30, 12, 1, 2, 8), fixed=None).float()
    with figures.style():
        for picture, of in ((AttentionMaps(8), run), (InContext(64), run), (Written(20, 40), Run(made, letters))):
            assert picture.draw(of).axes
    assert next_token.losses is losses
