"""What the data promise: their distribution, the order they come in, the share of each rank."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.data.blocks import Block, Blocks, Order
from lab.data.digits import CentredImages, Digits
from lab.data.gaussian_regression import Design, GaussianRegression
from lab.errors import Refusal

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMAS = 5.0
"""Standard errors that a sampled moment may lie off: a correct program is beyond them less than once in 10⁶."""


# ---------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(("n", "size"), [(12, 4), (13, 4), (5, 5), (7, 1)])
def test_an_epoch_shows_every_sample_at_most_once(n: int, size: int) -> None:
    order, per_epoch = Order(n, size, seed=3), n // size
    seen = [order.batch(step) for step in range(3 * per_epoch)]
    assert all(len(batch) == size for batch in seen)
    for epoch in range(3):
        rows = torch.cat(seen[epoch * per_epoch : (epoch + 1) * per_epoch]).tolist()
        assert len(set(rows)) == per_epoch * size
        assert set(rows) <= set(range(n))
    if n > 1 and size < n:
        assert not torch.equal(torch.cat(seen[:per_epoch]), torch.cat(seen[per_epoch : 2 * per_epoch]))


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    steps = [7, 0, 30, 3, 7]
    there = {step: Order(20, 3, seed=1).batch(step) for step in steps}
    order = Order(20, 3, seed=1)
    torch.manual_seed(99)
    assert all(torch.equal(order.batch(step), there[step]) for step in steps)
    assert not torch.equal(Order(20, 3, seed=2).batch(0), there[0])


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [5, 12])
def test_the_shares_of_the_ranks_are_the_batch(ranks: int, size: int) -> None:
    order = Order(12, size, seed=0)
    shares = [list(range(12))[order.share(rank, ranks)] for rank in range(ranks)]
    assert list(chain(*shares)) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("start", range(11))
def test_blocks_are_cut_the_same_wherever_they_start(start: int) -> None:
    """So that a resumed run draws whole blocks as the uninterrupted one would."""

    def cuts(start: int) -> list[tuple[int, int]]:
        blocks = Blocks(lambda a, b: Block(a, b - a, range(a, b)), start, 11, 4)
        return [(block.step, block.step + len(block)) for block in blocks]

    assert cuts(0) == [(0, 4), (4, 8), (8, 11)]
    whole = [(a, b) for a, b in cuts(0) if a >= start]
    broken = [(start, b) for a, b in cuts(0) if a < start < b]
    assert cuts(start) == broken + whole


# ----------------------------------------------------------------------------------------------------------- regression


def drawn(design: Design, seed: int = 0, name: str = "tall", dtype: torch.dtype = torch.float64) -> Design:
    design.draw(seed, name, dtype)
    return design


def test_the_design_is_gaussian_with_the_stated_spectrum() -> None:
    design = drawn(Design(5, [40, 64], replicates=400, top=8.0, bulk=2.0, bottom=0.25))
    assert design.spectrum.tolist() == [8.0, 2.0, 2.0, 2.0, 0.25]
    x = torch.cat([design.x[r, :n] for r, n in enumerate(design.sizes.tolist())])
    n, variances = len(x), design.spectrum
    assert n == 200 * (40 + 64)
    assert (x.mean(0).abs() < SIGMAS * (variances / n).sqrt()).all()
    error = (torch.outer(variances, variances) * (1 + torch.eye(5, dtype=x.dtype)) / n).sqrt()  # Isserlis
    assert ((x.mT @ x / n - variances.diag()).abs() < SIGMAS * error).all()
    fourth = (x / variances.sqrt()).pow(4).mean(0)  # 3 for a Gaussian, with variance 96
    assert ((fourth - 3).abs() < SIGMAS * (96 / n) ** 0.5).all()


def test_the_targets_are_linear_with_independent_noise() -> None:
    design = drawn(Design(4, [30], replicates=500, noise=0.5))
    assert float(design.w_star.norm()) == pytest.approx(1)
    noise = (design.y - design.x @ design.w_star).flatten()
    n = len(noise)
    assert abs(float(noise.mean())) < SIGMAS * 0.5 / n**0.5
    assert abs(float(noise.square().mean()) - 0.25) < SIGMAS * 0.25 * (2 / n) ** 0.5
    across = design.x.flatten(0, 1).mT @ noise / n
    assert (across.abs() < SIGMAS * 0.5 * (design.spectrum / n).sqrt()).all()


def test_without_noise_the_true_weights_fit_exactly() -> None:
    design = drawn(Design(4, [9], replicates=3, noise=0.0))
    torch.testing.assert_close(design.x @ design.w_star, design.y)


def test_replicates_take_the_sample_sizes_in_turn_and_padding_is_zero() -> None:
    design = drawn(Design(3, [4, 6, 9], replicates=7))
    assert design.sizes.tolist() == [4, 6, 9, 4, 6, 9, 4]
    assert design.x.shape == (7, 9, 3)
    for r, n in enumerate(design.sizes.tolist()):
        assert not design.x[r, n:].any()
        assert not design.y[r, n:].any()
        assert design.x[r, :n].all()
        assert design.y[r, :n].all()


def test_a_design_is_a_function_of_seed_and_name() -> None:
    first = drawn(Design(3, [5], replicates=2))
    torch.manual_seed(99)
    assert torch.equal(first.x, drawn(Design(3, [5], replicates=2)).x)
    for other in (drawn(Design(3, [5], replicates=2), seed=1), drawn(Design(3, [5], replicates=2), name="wide")):
        assert not torch.equal(first.x, other.x)
        assert not torch.equal(first.w_star, other.w_star)
    single = drawn(Design(3, [5], replicates=2), dtype=torch.float32)
    assert torch.equal(single.x, first.x.float())


@pytest.mark.parametrize("samples", [[20], [12, 20], [7], [4, 20]], ids=["tall", "padded", "wide", "wide and tall"])
def test_the_extremes_of_the_gram_matrix(samples: list[int]) -> None:
    """Of the non-zero modes: a replicate with fewer rows than dimensions has zero ones, padded or not."""
    design = drawn(Design(10, samples, replicates=5, top=4.0, bottom=0.5))
    largest, smallest = design.gram_extremes()
    for r, n in enumerate(design.sizes.tolist()):
        x = design.x[r, :n]
        eigenvalues = torch.linalg.eigvalsh(x.mT @ x / n if n >= 10 else x @ x.mT / n)
        assert float(largest[r]) == pytest.approx(float(eigenvalues[-1]))
        assert float(smallest[r]) == pytest.approx(float(eigenvalues[0]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": [4, 6], "batch_size": 2}, "batch_size=2 needs one sample size; samples=[4, 6] has several"),
        ({"samples": [4, 6, 8], "replicates": 2}, "replicates=2 is less than the 3 sizes in samples=[4, 6, 8]"),
        ({"samples": [4], "batch_size": 5}, "batch_size=5 is more than samples=[4]; allowed: 1..4 or null"),
    ],
)
def test_a_batch_that_the_design_does_not_allow_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(Refusal) as refused:
        Design(3, **options)  # type: ignore[arg-type]
    assert said in str(refused.value)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("step", [0, 4])
def test_the_weighted_sum_over_ranks_is_the_mean_over_the_global_batch(ranks: int, step: int) -> None:
    total: dict[str, Tensor] = {}
    for rank in range(ranks):
        designs = {"tall": Design(3, [8, 12], replicates=3), "wide": Design(6, [5], replicates=2, batch_size=4)}
        data = GaussianRegression(designs, seed=1)
        data.dtype, data.rank, data.world_size = torch.float64, rank, ranks
        data.setup()
        data.place(torch.device("cpu"))
        block = data.block(step, step + 3)
        assert (block.step, len(block), len(list(block.batches))) == (step, 3, 3)
        for name, (_, y, weight) in next(iter(data.block(step, step + 3).batches)).items():
            total[name] = total.get(name, 0) + weight * y.sum(1) / ranks
    tall, wide = designs["tall"], designs["wide"]
    means = [tall.y[r, :n].mean() for r, n in enumerate(tall.sizes.tolist())]
    torch.testing.assert_close(total["tall"], torch.stack(means), rtol=1e-12, atol=0)
    rows = data.orders["wide"].batch(step)
    torch.testing.assert_close(total["wide"], wide.y[:, rows].mean(1), rtol=1e-12, atol=0)


# --------------------------------------------------------------------------------------------------------------- images


class Noise(CentredImages):
    """Images of random pixels far from zero."""

    def images(self) -> Tensor:
        return torch.rand(11, 3, 2, generator=torch.Generator().manual_seed(1)) + 5


def prepared(data: CentredImages, rank: int = 0, ranks: int = 1) -> CentredImages:
    data.rank, data.world_size = rank, ranks
    data.setup()
    data.place(torch.device("cpu"))
    return data


def test_images_are_centred_vectors() -> None:
    data = Noise()
    data.dtype = torch.float64
    prepared(data)
    assert data.x.mean(0).abs().max() < 1e-14
    assert data.shape == (3, 2)
    torch.testing.assert_close((data.x + data.mean).reshape(11, 3, 2), Noise().images().double())


@pytest.mark.parametrize(
    ("batch_size", "ranks", "said"),
    [
        (12, 1, "data.batch_size=12 is more than the 11 samples there are; allowed: 1..11 or null"),
        (None, 12, "trainer.devices=12 is more than the 11 samples there are"),
    ],
)
def test_more_than_the_samples_is_refused(batch_size: int | None, ranks: int, said: str) -> None:
    with pytest.raises(Refusal) as refused:
        prepared(Noise(batch_size), 0, ranks)
    assert said in str(refused.value)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_weighted_mean_over_ranks_is_the_mean_over_the_images(batch_size: int | None, ranks: int) -> None:
    means = []
    for rank in range(ranks):
        data = prepared(Noise(batch_size, seed=2), rank, ranks)
        block = data.block(3, 5)
        assert (block.step, len(block)) == (3, 2)
        batches = list(block.batches)
        assert len(batches) == 2
        means.append([weight * x.square().mean(0) for x, weight in batches])
    for s, step in enumerate((3, 4)):
        rows = slice(None) if batch_size is None else data.order.batch(step)
        torch.testing.assert_close(sum(m[s] for m in means) / ranks, data.x[rows].square().mean(0))


def test_the_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    np.testing.assert_array_equal(Digits().images().numpy(), load_digits().images)
