"""The transformer against its definition; sequences against their law; the loss and samples of the next symbol."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from lab.data.markov import MarkovChains
from lab.data.sources import require_text
from lab.data.text import Text
from lab.errors import Refusal
from lab.models.next_token import held_out_losses, losses
from lab.nets.transformer import Transformer, rotated, turns
from lab.theory import markov

pytestmark = pytest.mark.usefixtures("one_thread")

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
Make = Callable[..., Any]
CHAIN = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def test_fixed_sequences_have_the_chains_law(ready: Make) -> None:
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
def test_fresh_sequences_have_the_law_with_the_chains_integrated_out(alpha: float, ready: Make, evidence: Make) -> None:
    data = ready(MarkovChains(concentration=alpha, context=3))
    words = [tuple(row) for row in data.held_out(20_000)[:, 1:].tolist()]
    other = ready(MarkovChains(concentration=alpha, trained=7.0, context=3))
    assert torch.equal(other.held_out(100), data.held_out(100))
    assert torch.equal(other.drawn(range(2))[0], torch.stack([other.fresh(64, 7.0, step) for step in range(2)]))
    every = list(itertools.product(range(3), repeat=3))
    observed = [words.count(word) for word in every]
    expected = [20_000 * math.exp(evidence(word, 3, alpha)) for word in every]
    assert stats.chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue > 1e-6


def test_text_is_cut_into_windows(tmp_path: Path, ready: Make, text: Make) -> None:
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
        (b"", {}, "is empty; allowed: a text in UTF-8"),
        (b"short", {}, r"is too short: data.share=0.1 trains on 4 characters, and data.context=64 needs 65"),
        (b"x" * 200, {}, r"is too short: data.share=0.1 holds out 20 characters"),
        (b"\xff\xfe" * 100, {}, r"is no text in UTF-8: invalid start byte at byte 0"),
        (None, {}, r"cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_text_is_refused(
    tmp_path: Path, content: bytes | None, options: Any, said: str, ready: Make
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refusal, match=said):
        ready(Text(str(path), **options))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"data.path=.*text.txt is no file; allowed: the path of a text in UTF-8"),
        (b"", "is empty"),
        (b"x" * 200, "is too short: data.share=0.1 holds out 20 characters, and data.context=64 needs 65"),
        (b"\xff\xfe" * 100, "is no text in UTF-8"),
        ("".join(map(chr, range(200, 400))).encode() * 10, "vocabulary=128 is too small: the data have 200 symbols"),
    ],
)
def test_what_is_no_text_is_refused_before_anything_heavy(tmp_path: Path, content: bytes | None, said: str) -> None:
    from lab.check import check
    from lab.compose import compose

    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refusal, match=said):
        check(compose(["experiment=transformer_text", f"data.path={path}", "trainer.accelerator=cpu"]))


def test_a_long_text_is_looked_at_when_it_is_loaded(tmp_path: Path, text: Make) -> None:
    path = text(tmp_path, "short")
    require_text(path, 0.1, 64, 128, most=4)
    with pytest.raises(Refusal, match="is too short"):
        require_text(path, 0.1, 64, 128, most=5)


@pytest.mark.parametrize("kind", ["markov", "text"])
def test_batches_are_functions_of_seed_and_step(kind: str, tmp_path: Path, ready: Make, text: Make) -> None:
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


def test_losses_are_logarithms_of_chances() -> None:
    net = Transformer(4, 12, 2, 1, 8).double()
    tokens = torch.randint(4, (3, 13), generator=torch.Generator().manual_seed(0))
    chances = net(tokens[:, :-1]).softmax(-1)
    each = losses(net, tokens)
    for row, t in itertools.product(range(3), range(12)):
        assert each[row, t].item() == pytest.approx(-math.log(chances[row, t, tokens[row, t + 1]].item()))
    close(held_out_losses(net, tokens, rows=2), each.detach())


def test_the_objective_is_the_sum_of_both_cross_entropies(ready: Make, model: Make) -> None:
    data = ready(MarkovChains(context=12, batch_size=4))
    made = model(data)
    (kinds, _), *_ = made.batches(data.block(4, 6))
    loss, logged = made.objective((kinds, 0.25))
    expected = [0.25 * losses(net, x).mean() for net, x in zip((made.net, made.fixed), kinds, strict=True)]  # type: ignore[arg-type]
    close(loss, expected[0] + expected[1])
    close(logged, {"loss/net": expected[0].detach(), "loss/fixed": expected[1].detach()})
    assert set(model(data, fixed=None).objective((kinds, 1.0))[1]) == {"loss/net"}


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_mean_of_the_ranks_gradients_is_the_gradient(ranks: int, ready: Make, model: Make) -> None:
    def gradient(rank: int, ranks: int) -> Tensor:
        data = ready(MarkovChains(context=12, batch_size=5), rank, ranks)
        made = model(data)
        made.objective(list(made.batches(data.block(3, 6)))[1])[0].backward()
        return torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])

    close(sum(gradient(rank, ranks) for rank in range(ranks)) / ranks, gradient(0, 1))


def test_a_sample_follows_the_nets_chances(ready: Make, model: Make) -> None:
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


def test_a_checkpoint_is_enough_to_write_text(tmp_path: Path, ready: Make, text: Make, model: Make) -> None:
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


def test_nets_that_do_not_fit_the_data_are_refused(tmp_path: Path, ready: Make, text: Make, model: Make) -> None:
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


def test_the_loss_of_text_held_out_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ready: Make, text: Make, model: Make
) -> None:
    data = ready(Text(str(text(tmp_path)), context=12))
    made = model(data, net=Transformer(30, 12, 1, 1, 8), fixed=None)
    made.trainer.is_global_zero = True  # type: ignore[misc]
    with caplog.at_level("INFO", logger="lab"):
        made.on_fit_end()
    said = float(held_out_losses(made.net, data.held_out(1000)).mean())
    assert f"held out: {said:.4f} nats a character" in caplog.text


def test_products_are_of_float32_unless_said_otherwise(ready: Make, model: Make) -> None:
    """The setting is the process's: a run sets its own, whatever the one before it left."""
    data = ready(MarkovChains(context=12))
    try:
        model(data, matmul="medium")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        model(data)
    assert torch.get_float32_matmul_precision() == "highest"
