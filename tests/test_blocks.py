"""The order of the data: a function of (seed, step), divided over ranks without loss."""

from __future__ import annotations

import itertools

import pytest
import torch

from lab.data.blocks import Block, Blocks, Order


@pytest.mark.parametrize(("n", "batch_size"), [(12, 4), (13, 4), (20, 20), (7, 1), (5, 3)])
def test_an_epoch_takes_every_sample_at_most_once(n: int, batch_size: int) -> None:
    order, per_epoch = Order(n, batch_size, seed=0), n // batch_size
    epochs = [
        torch.cat([order.batch(step) for step in range(e * per_epoch, (e + 1) * per_epoch)]).tolist() for e in range(5)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == per_epoch * batch_size
        assert set(epoch) <= set(range(n))
    if n == per_epoch * batch_size:
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1, "each epoch has its own order"


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    forwards, backwards = Order(50, 8, seed=3), Order(50, 8, seed=3)
    there = [forwards.batch(step).tolist() for step in range(40)]
    back = [backwards.batch(step).tolist() for step in reversed(range(40))]
    torch.manual_seed(1)
    assert there == back[::-1]
    assert Order(50, 8, seed=3).batch(17).tolist() == there[17]
    assert Order(50, 8, seed=4).batch(17).tolist() != there[17]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("n", "batch_size"), [(64, 16), (1797, None), (5, None), (20, 10)])
def test_the_ranks_slices_are_the_global_batch(n: int, batch_size: int | None, world_size: int) -> None:
    order = Order(n, batch_size, seed=0)
    batch = torch.arange(n) if order.full else order.batch(5)
    shares = [batch[order.share(rank, world_size)] for rank in range(world_size)]
    assert torch.cat(shares).tolist() == batch.tolist()
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("stop", "size"), [(100, 10), (103, 10), (7, 50), (50, 50), (5, 1)])
def test_blocks_are_cut_alike_from_any_start(stop: int, size: int) -> None:
    def cuts(start: int) -> list[tuple[int, int]]:
        blocks = Blocks(lambda a, b: Block(a, b - a, range(a, b)), start, stop, size)
        return [(block.step, block.step + len(block)) for block in blocks]

    whole = cuts(0)
    assert [step for a, b in whole for step in range(a, b)] == list(range(stop))
    assert all(b - a == size for a, b in whole[:-1])
    ends = [b for _, b in whole]
    for start in range(stop):
        resumed = cuts(start)
        assert resumed[0][0] == start
        assert [b for _, b in resumed] == [b for b in ends if b > start]
        assert all(first[1] == second[0] for first, second in itertools.pairwise(resumed))
    assert cuts(stop) == []


def test_uniform_draws_are_functions_of_seed_step_and_place() -> None:
    order = Order(100, 8, seed=3)
    whole = order.uniform(range(5), slice(0, 8), 2)
    assert whole.shape == (5, 8, 2)
    assert whole.dtype == torch.float64
    assert 0 <= float(whole.min()) < 0.1 < 0.9 < float(whole.max()) < 1
    parts = [order.uniform([3], order.share(rank, 3), 2) for rank in range(3)]
    assert torch.equal(torch.cat(parts, 1), whole[3:4])
    for other in (Order(100, 8, seed=4).uniform([3], slice(0, 8), 2), whole[2:3]):
        assert not torch.equal(other, whole[3:4])
    normal = order.noise([3], slice(0, 8), 2)
    correlation = torch.corrcoef(torch.stack([torch.special.ndtri(whole[3]).flatten(), normal[0].flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.9, "noise and uniform draws are of different streams"
