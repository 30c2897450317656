"""Colour refinement, the one-dimensional Weisfeiler–Leman test: what message passing can tell of a graph at most."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def stable_colours(graphs: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """The colours of each graph's nodes, sorted, once no round of refinement splits a colour any more.

    All nodes begin with one colour; c'(v) = (c(v), the multiset of c(u) over neighbours u of v), renamed so that equal
    pairs get equal names in all graphs. Two graphs that end with different multisets are not isomorphic; with equal
    ones 1-WL cannot tell them apart.

    Args:
        graphs: adjacency matrices, (n, n) each.

    (Weisfeiler & Leman 1968; Xu, Hu, Leskovec & Jegelka 2019, §2.)
    """
    neighbours = [[row.nonzero().flatten().tolist() for row in graph] for graph in graphs]
    colours = [[0] * len(graph) for graph in graphs]
    found = 1
    while True:
        names: dict[tuple[int, tuple[int, ...]], int] = {}
        refined = [
            [
                names.setdefault((own[v], tuple(sorted(own[u] for u in around))), len(names))
                for v, around in enumerate(lists)
            ]
            for own, lists in zip(colours, neighbours, strict=True)
        ]
        if len(names) == found:  # a refinement never joins colours, so as many as before are the same
            return [tuple(sorted(own)) for own in refined]
        colours, found = refined, len(names)


def told_apart(one: Tensor, other: Tensor) -> bool:
    """Whether 1-WL tells two graphs apart. (n, n), (m, m)

    (Xu, Hu, Leskovec & Jegelka 2019, Lemma 2 and Thm 3.)
    """
    first, second = stable_colours([one, other])
    return first != second


def classes(graphs: Sequence[Tensor]) -> int:
    """Into how many classes 1-WL divides some graphs.

    (Xu, Hu, Leskovec & Jegelka 2019, §4.)
    """
    return len(set(stable_colours(graphs)))
