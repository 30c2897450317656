"""Small graphs as adjacency matrices: all of so many nodes, and pairs that are hard or easy to tell apart."""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor


def from_edges(n: int, edges: list[tuple[int, int]]) -> Tensor:
    """The adjacency matrix of an undirected graph: (n, n), bool."""
    adjacency = torch.zeros(n, n, dtype=torch.bool)
    for a, b in edges:
        adjacency[a, b] = adjacency[b, a] = True
    return adjacency


def cycle(n: int) -> Tensor:
    """C_n."""
    return from_edges(n, [(i, (i + 1) % n) for i in range(n)])


def path(n: int) -> Tensor:
    """P_n."""
    return from_edges(n, [(i, i + 1) for i in range(n - 1)])


def star(n: int) -> Tensor:
    """One node joined to n − 1 others."""
    return from_edges(n, [(0, i) for i in range(1, n)])


def union(*graphs: Tensor) -> Tensor:
    """Graphs side by side."""
    return torch.block_diag(*graphs).bool()


def circulant(n: int, steps: set[int]) -> Tensor:
    """Nodes on a ring, each joined to those that `steps` away on either side."""
    return from_edges(n, [(i, (i + step) % n) for i in range(n) for step in steps])


def rook() -> Tensor:
    """The 4×4 rook's graph: squares of a board in one row or column."""
    squares = [divmod(i, 4) for i in range(16)]
    return from_edges(16, [(i, j) for i, j in itertools.combinations(range(16), 2) if _aligned(squares[i], squares[j])])


def _aligned(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] == other[0] or one[1] == other[1]


def shrikhande() -> Tensor:
    """Shrikhande's graph on ℤ₄²: joined to ±(1, 0), ±(0, 1) and ±(1, 1). Strongly regular as the rook's graph is."""
    steps = ((0, 1), (1, 0), (1, 1))
    edges = [
        (4 * a + b, 4 * ((a + down) % 4) + (b + right) % 4) for a in range(4) for b in range(4) for down, right in steps
    ]
    return from_edges(16, edges)


def decalin() -> Tensor:
    """Two hexagons that share an edge."""
    return from_edges(10, [(i, (i + 1) % 10) for i in range(10)] + [(0, 5)])


def bicyclopentyl() -> Tensor:
    """Two pentagons joined by an edge."""
    adjacency = union(cycle(5), cycle(5))
    adjacency[0, 5] = adjacency[5, 0] = True
    return adjacency


def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """Name → two graphs that are not isomorphic, with equally many nodes and edges."""
    return {
        "hexagon, two triangles": (cycle(6), union(cycle(3), cycle(3))),
        "decalin, bicyclopentyl": (decalin(), bicyclopentyl()),
        "rook's, Shrikhande's": (rook(), shrikhande()),
        "circulant 11: 1, 2 and 1, 3": (circulant(11, {1, 2}), circulant(11, {1, 3})),
        "path, star": (path(5), star(5)),
        "triangle with a tail, square with a tail": (
            from_edges(5, [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4)]),
            from_edges(5, [(0, 1), (1, 2), (2, 3), (3, 0), (3, 4)]),
        ),
        "octagon with a chord, another chord": (
            from_edges(8, [(i, (i + 1) % 8) for i in range(8)] + [(0, 2)]),
            from_edges(8, [(i, (i + 1) % 8) for i in range(8)] + [(0, 4)]),
        ),
    }


@cache
def all_graphs(n: int) -> Tensor:
    """Every graph of n ≤ 7 nodes, one of each isomorphism class: (G, n, n), bool.

    Of the graphs that renaming the nodes carries into each other, the one whose edges, read as a binary number, are
    the least.
    """
    edges = torch.combinations(torch.arange(n), 2)  # (E, 2)
    place = torch.zeros(n, n, dtype=torch.long)
    place[edges[:, 0], edges[:, 1]] = place[edges[:, 1], edges[:, 0]] = torch.arange(len(edges))
    names = torch.tensor(list(itertools.permutations(range(n))))
    moved = 2 ** place[names[:, edges[:, 0]], names[:, edges[:, 1]]]  # (n!, E): what an edge counts once renamed
    seen = torch.zeros(2 ** len(edges), dtype=torch.bool)
    found = []
    for number in range(len(seen)):
        if not seen[number]:
            present = number >> torch.arange(len(edges)) & 1
            found.append(present.bool())
            seen[moved @ present] = True
    adjacency = torch.zeros(len(found), n, n, dtype=torch.bool)
    adjacency[:, edges[:, 0], edges[:, 1]] = torch.stack(found)
    return adjacency | adjacency.mT
