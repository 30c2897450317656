"""A decoder-only transformer: pre-norm, rotary positions, no biases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lab.errors import Refusal
from lab.nets.layers import linear, squared_relu
from lab.random import generator, normal
from lab.types import NonNegativeInt, PositiveInt

PERIOD = 10_000.0
"""Of the slowest turn, in positions and radians."""


def turns(context: int, size: int) -> Tensor:
    """t·θᵢ, θᵢ = 10000^(−2i/d): how far the i-th pair of a head of `size` d is turned at position t. → (T, d/2)

    (Su et al. 2021, eq. 15.)
    """
    pairs = torch.arange(size // 2, dtype=torch.float64, device="cpu")
    return torch.outer(torch.arange(context, dtype=torch.float64, device="cpu"), PERIOD ** (-2 * pairs / size))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (xᵢ, x_{i+d/2}) turned by their angles: then ⟨R_s q, R_t k⟩ depends on s and t by t − s alone.

    (Su et al. 2021, eq. 16, with the pairs in two halves.)

    Args:
        x: (..., T, d). cos, sin: (T, d/2).
    """
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class Block(nn.Module):
    """x + attention(norm x), then x + MLP(norm x) with one hidden layer of squared ReLU units.

    Args:
        draw: for the weights, which start uniform within ±1/√inputs; those that end in x are smaller by `gain`.
        causal: let a position see none after it.
        fused: attention in one kernel that keeps no map.
    """

    def __init__(
        self,
        draw: torch.Generator,
        width: int,
        heads: int,
        hidden: int,
        causal: bool = True,
        fused: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.fused = heads, causal, fused
        self.before_attention, self.before_mlp = (nn.LayerNorm(width, bias=False, device="cpu") for _ in range(2))
        self.queries_keys_values = linear(draw, width, 3 * width, bias=False)
        self.attended = linear(draw, width, width, bias=False, gain=gain)
        self.up = linear(draw, width, hidden, bias=False)
        self.down = linear(draw, hidden, width, bias=False, gain=gain)

    def projected(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head: (B, T, w) → (B, h, T, w/h) three times"""
        mixed = self.queries_keys_values(self.before_attention(x)).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        if cos is None or sin is None:
            q, k, v = mixed.chunk(3, 1)
            return q, k, v
        q, k = rotated(mixed[:, : 2 * self.heads], cos, sin).chunk(2, 1)
        return q, k, mixed[:, 2 * self.heads :]

    def forward(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """(B, T, w) → (B, T, w)"""
        q, k, v = self.projected(x, cos, sin)
        if self.fused:
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            seen = self._map(q, k) @ v
        return self._after(x, seen)

    def _after(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.attended(seen.transpose(1, 2).flatten(2))
        return x + self.down(squared_relu(self.up(self.before_mlp(x))))

    def next(
        self, x: Tensor, cos: Tensor | None, sin: Tensor | None, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One position more: (B, 1, w) and the keys and values before it, () at the first → the same after it."""
        q, *new = self.projected(x, cos, sin)
        seen = tuple(torch.cat([old, one], 2) for old, one in zip(past, new, strict=True)) if past else tuple(new)
        return self._after(x, functional.scaled_dot_product_attention(q, seen[0], seen[1])), seen

    def attention(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """softmax(QKᵀ/√d), by its definition: what `forward` computes without keeping it. (B, T, w) → (B, h, T, T)"""
        q, k, _ = self.projected(x, cos, sin)
        return self._map(q, k)

    def _map(self, q: Tensor, k: Tensor) -> Tensor:
        scores = (q / math.sqrt(q.shape[-1])) @ k.mT
        if self.causal:
            scores = scores + torch.full_like(scores[0, 0], -math.inf).triu(1)
        return scores.softmax(-1)


class Transformer(nn.Module):
    """Symbols → logits of the symbol that follows each.

    Args:
        vocabulary: symbols there are.
        context: the longest sequence T.
        layers, heads, width: L blocks of width w, each with h heads of size w/h.
        hidden: units of each block's MLP, as a multiple of the width.
        positions: turn queries and keys by their position; without, attention sees a set, but for the mask.
        causal: false shows every position the whole sequence, and with it the answer.
        fused: attention in one kernel, which keeps no T×T map; false is its definition, as fast where T is small.
        recompute: keep no activations inside a block for the backward pass, but compute them again: less memory for a
            second forward pass.
    """

    def __init__(
        self,
        vocabulary: PositiveInt = 4,
        context: PositiveInt = 64,
        layers: PositiveInt = 2,
        heads: PositiveInt = 1,
        width: PositiveInt = 32,
        hidden: PositiveInt = 4,
        positions: bool = True,
        causal: bool = True,
        fused: bool = True,
        recompute: bool = False,
        seed: NonNegativeInt = 0,
    ) -> None:
        if width % (2 * heads) != 0:
            raise Refusal(f"width={width} must be a multiple of 2·heads={2 * heads}: positions turn pairs of a head")
        super().__init__()
        self.vocabulary, self.context, self.layers, self.width = vocabulary, context, layers, width
        self.hidden, self.recompute = hidden, recompute
        draw, gain = generator(seed, "Transformer"), 1 / math.sqrt(2 * layers)
        self.symbols = nn.Parameter(0.5 * normal(draw, vocabulary, width))
        self.blocks = nn.ModuleList(
            Block(draw, width, heads, hidden * width, causal, fused, gain) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, bias=False, device="cpu")
        self.logits = linear(draw, width, vocabulary, bias=False)
        angles = turns(context, width // heads) if positions else None
        self.register_buffer("cos", None if angles is None else angles.cos(), persistent=False)
        self.register_buffer("sin", None if angles is None else angles.sin(), persistent=False)
        self.to(torch.get_default_dtype())

    cos: Tensor | None
    sin: Tensor | None

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) → (B, T, V)"""
        return self.from_embedded(self.embedded(tokens))

    def embedded(self, tokens: Tensor) -> Tensor:
        """(B, T) → (B, T, w)"""
        return functional.embedding(tokens, self.symbols)

    def from_embedded(self, x: Tensor) -> Tensor:
        """(B, T, w) → (B, T, V)"""
        cos, sin = self._turns(x)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, use_reentrant=False)
            else:
                x = block(x, cos, sin)
        return self.logits(self.norm(x))

    def next(self, tokens: Tensor, past: Sequence[tuple[Tensor, ...]] = ()) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Logits of what follows one more symbol (B,), without computing again what came before: (B, V), its keys.

        Args:
            past: what the call for the symbol before returned beside its logits.
        """
        x, seen = self.embedded(tokens.unsqueeze(1)), []
        at = past[0][0].shape[2] if past else 0
        cos, sin = (None if z is None else z[at : at + 1].to(x.dtype) for z in (self.cos, self.sin))
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x, keys = block.next(x, cos, sin, past[i] if past else ())
            seen.append(keys)
        return self.logits(self.norm(x)).squeeze(1), seen

    @torch.no_grad()
    def attention(self, tokens: Tensor) -> Tensor:
        """The maps of all heads: (B, T) → (L, B, h, T, T), rows sum to 1"""
        x, maps = self.embedded(tokens), []
        for block in self.blocks:
            assert isinstance(block, Block)
            maps.append(block.attention(x, *self._turns(x)))
            x = block(x, *self._turns(x))
        return torch.stack(maps)

    def _turns(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.cos is None or self.sin is None:
            return None, None
        return self.cos[: x.shape[1]].to(x.dtype), self.sin[: x.shape[1]].to(x.dtype)
