"""What nets of graphs are called with: the edges, the features where most are 0, and the draws of dropout."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lab.nets.geometric import gcn_norm


class Graph:
    """An undirected graph, or several side by side, as edges (2, E), each in both directions and none from a node to
    itself. What the nets derive from it is derived once."""

    def __init__(self, edges: Tensor, nodes: int) -> None:
        self.edges, self.nodes = edges, nodes

    @classmethod
    def of(cls, adjacency: Tensor) -> Graph:
        """Graphs of equal size side by side. (b, n, n) → a graph of b·n nodes"""
        graph, source, target = adjacency.nonzero(as_tuple=True)
        first = graph * adjacency.shape[-1]
        return cls(torch.stack([first + source, first + target]), adjacency.shape[0] * adjacency.shape[1])

    @cached_property
    def looped(self) -> Tensor:
        """The edges and one from every node to itself: (2, E + N)."""
        loops = torch.arange(self.nodes, device=self.edges.device)
        return torch.cat([self.edges, loops.expand(2, -1)], 1)

    def normalised(self, loops: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(edges, 1/√(degree·degree) of each): Â or, without loops, D^{−½}AD^{−½}. (2, E'), (E',)

        (Kipf & Welling 2017, eq. 2.)
        """
        known = self.__dict__.setdefault("_normalised", {})
        if (loops, dtype) not in known:
            known[loops, dtype] = gcn_norm(self.edges, None, self.nodes, add_self_loops=loops, dtype=dtype)
        return known[loops, dtype]


class Noise:
    """The draws of dropout in one step: a function of the generator that it is given, and of the order of the calls."""

    def __init__(self, draw: torch.Generator) -> None:
        self._draw = draw

    def kept(self, like: Tensor, rate: float) -> Tensor:
        """0 with probability `rate`, else 1/(1 − rate), drawn on the CPU, in the shape of `like`."""
        draws = torch.rand(like.shape, generator=self._draw, dtype=torch.float32, device="cpu")
        return (draws >= rate).to(like.device, like.dtype).div_(1 - rate)


class Sparse:
    """A matrix (n, d) that is multiplied from the right, by its entries that are not 0, row by row and column by
    column.

    Args:
        starts, columns, values: of the rows, as SciPy's csr_matrix has them: indptr, indices, data.
        shape: (n, d).
    """

    def __init__(self, starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> None:
        self.shape, self.values = shape, values
        row = torch.repeat_interleave(torch.arange(shape[0], device=starts.device), starts.long().diff())
        self._order = torch.argsort(columns, stable=True)  # of the entries, by columns
        counts = torch.bincount(columns, minlength=shape[1])
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        small = torch.int32  # the width that the libraries behind the product take as it is
        self._by_row = starts.to(small), columns.to(small)
        self._by_column = ends.to(small), row[self._order].to(small)

    def dropped(self, noise: Noise, rate: float) -> Sparse:
        """Dropout: its zeros stay what they are, so nothing is drawn for them."""
        other = object.__new__(Sparse)
        other.__dict__ |= self.__dict__
        other.values = self.values * noise.kept(self.values, rate)
        return other

    def __matmul__(self, dense: Tensor) -> Tensor:
        """(n, d) @ (d, k) → (n, k), differentiable in the dense factor."""
        return _Product.apply(dense, self)

    def product(self, dense: Tensor) -> Tensor:
        """X D."""
        return _compressed(*self._by_row, self.values.to(dense.dtype), self.shape) @ dense

    def transposed_product(self, dense: Tensor) -> Tensor:
        """Xᵀ D."""
        values = self.values[self._order].to(dense.dtype)
        return _compressed(*self._by_column, values, self.shape[::-1]) @ dense


def _compressed(starts: Tensor, places: Tensor, values: Tensor, shape: Any) -> Tensor:
    return torch.sparse_csr_tensor(starts, places, values, shape, check_invariants=False)


with warnings.catch_warnings():  # torch says once that such tensors are new
    warnings.simplefilter("ignore", UserWarning)
    _compressed(torch.tensor([0, 0]), torch.empty(0, dtype=torch.long), torch.empty(0), (1, 1))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, matrix: Sparse) -> Tensor:
        ctx.matrix = matrix
        return matrix.product(dense)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.matrix.transposed_product(gradient.contiguous()), None


Features = Tensor | Sparse


def dropped(x: Any, noise: Noise | None, rate: float) -> Any:
    """Dropout of features or of hidden values; nothing where there is no noise."""
    if noise is None or rate == 0:
        return x
    return x.dropped(noise, rate) if isinstance(x, Sparse) else x * noise.kept(x, rate)
