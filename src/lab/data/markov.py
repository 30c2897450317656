"""Sequences of Markov chains: of one that is fixed, and of a new one each."""

from __future__ import annotations

import torch
from scipy.special import gammaincinv
from torch import Tensor

from lab.data.sequences import Sequences
from lab.errors import Refusal
from lab.random import generator, uniform
from lab.types import NonNegativeInt, Positive, PositiveInt

CHAIN = [[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.3, 0.3, 0.4]]


class MarkovChains(Sequences):
    """Two kinds of sequences over k symbols, each drawn anew at every step: of fresh chains and of a fixed one.

    *Fresh*: the rows of P ~ Dirichlet(α, …, α), new for every sequence, and x₀ is uniform, so it says nothing of P.
    *Fixed*: P = `chain`, and x₀ is from its stationary law. All begin with a symbol of their own, number k.

    Args:
        chain: rows of the fixed P, k × k.
        concentration: α.
        trained: of the fresh chains that are trained on; null is α, and at another one the net learns a wrong prior.

    Attributes:
        transition: the fixed P, (k, k) in float64. k: symbols of a chain. concentration: α.
    """

    def __init__(
        self,
        chain: list[list[Positive]] | None = None,
        concentration: Positive = 0.5,
        trained: Positive | None = None,
        context: PositiveInt = 64,
        batch_size: PositiveInt = 64,
        seed: NonNegativeInt = 0,
        block_size: PositiveInt = 50,
    ) -> None:
        super().__init__(context, batch_size, seed, block_size)
        rows = CHAIN if chain is None else chain
        if len(rows) < 2 or any(len(row) != len(rows) or abs(sum(row) - 1) > 1e-9 for row in rows):
            raise Refusal(f"chain={rows} is no chain: allowed: k ≥ 2 rows of k numbers above 0 that sum to 1")
        self.transition, self.concentration = torch.tensor(rows, dtype=torch.float64), concentration
        self.trained = trained or concentration
        self.k = self.begin = len(rows)
        self.symbols = self.k + 1

    def fresh(self, n: int, concentration: float, *stream: int | str) -> Tensor:
        """n sequences of n chains at α = `concentration`, a function of it and (seed, stream): (n, T+1) on the CPU.

        The Dirichlet law is that of Gamma variables over their sum, each drawn by the inverse of its distribution.
        """
        draw = generator(self.seed, "fresh", *stream)
        gammas = torch.from_numpy(gammaincinv(concentration, uniform(draw, n, self.k, self.k).numpy()))
        transition = gammas.clamp(min=1e-300) / gammas.clamp(min=1e-300).sum(-1, keepdim=True)
        return self._walk(torch.ones(n, self.k, dtype=torch.float64) / self.k, transition, draw)

    def fixed(self, n: int, *stream: int | str) -> Tensor:
        """n sequences of the fixed chain, a function of (seed, stream): (n, T+1) on the CPU."""
        stationary = torch.linalg.matrix_power(self.transition, 2**20)[:1]
        return self._walk(
            stationary.expand(n, -1), self.transition.expand(n, -1, -1), generator(self.seed, "fixed", *stream)
        )

    def _walk(self, start: Tensor, transition: Tensor, draw: torch.Generator) -> Tensor:
        """x₀ ~ `start`, x_{t+1} ~ row x_t of `transition`, by inverting the cumulated chances. (n, k), (n, k, k)"""
        n, edges = len(start), transition.cumsum(-1)[..., :-1]
        chances, rows = uniform(draw, self.context, n, 1), torch.arange(n)
        tokens = torch.full((self.context + 1, n), self.k)
        tokens[1] = (chances[0] >= start.cumsum(-1)[:, :-1]).sum(-1)
        for t in range(1, self.context):
            tokens[t + 1] = (chances[t] >= edges[rows, tokens[t]]).sum(-1)
        return tokens.mT.contiguous()

    def drawn(self, steps: range) -> tuple[Tensor, Tensor]:
        fresh = torch.stack([self.fresh(self.batch_size, self.trained, step) for step in steps])
        return fresh, torch.stack([self.fixed(self.batch_size, step) for step in steps])

    def held_out(self, n: int) -> Tensor:
        return self.fresh(n, self.concentration, "held out")

    def held_out_of_the_chain(self, n: int) -> Tensor:
        """The same of the fixed chain."""
        return self.fixed(n, "held out")
