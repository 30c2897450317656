"""Predicting the next symbol of a sequence, and writing sequences so."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lab.data.blocks import InMemoryData
from lab.data.sequences import Sequences
from lab.data.text import Text
from lab.errors import Refusal
from lab.models.stepped import SteppedModule
from lab.nets.transformer import Transformer
from lab.types import PositiveInt

log = logging.getLogger("lab")


def losses(net: Transformer, tokens: Tensor) -> Tensor:
    """−ln q(x_t | x_{<t}) for t = 1 … T, in nats. (B, T+1) → (B, T)

    (Shannon 1948, §7; Bengio et al. 2003, §2.)
    """
    logits = net(tokens[:, :-1])
    each = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return each.unflatten(0, (len(tokens), -1))


@torch.no_grad()
def held_out_losses(net: Transformer, tokens: Tensor, rows: int = 64) -> Tensor:
    """The same of many sequences, so many `rows` at a time, without gradients: (n, T) in float64 on the CPU."""
    device = net.symbols.device
    return torch.cat([losses(net, part.to(device)).double().cpu() for part in tokens.split(rows)])


class NextToken(SteppedModule):
    """Trains `net` by its cross-entropy on sequences of the first kind and, beside it, `fixed` on those of the second.

    The two share no parameter.

    Args:
        net: symbols → logits of what follows.
        fixed: a net for the sequences of a fixed chain.
        length: symbols of a sample.
        training: optimizer, scheduler and the other parameters of a `SteppedModule`.
    """

    characters: Tensor

    def __init__(
        self, net: Transformer, fixed: Transformer | None = None, length: PositiveInt = 64, **training: Any
    ) -> None:
        super().__init__(**training)
        self.net, self.fixed, self.length = net, fixed, length
        # code points of the symbols, −1 where there is none: a checkpoint is enough to write text
        self.register_buffer("characters", torch.full((net.vocabulary,), -1, dtype=torch.int32, device="cpu"))
        self.register_buffer("first", torch.zeros((), dtype=torch.int32, device="cpu"))

    first: Tensor

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data: Sequences = self.trainer.datamodule  # type: ignore[attr-defined]
        points = torch.tensor([ord(c) for c in data.characters], dtype=torch.int32)
        self.characters[: len(points)] = points.to(self.characters.device)
        newline = data.characters.find("\n")
        self.first.fill_(data.begin if data.begin is not None else max(newline, 0))

    def check(self, data: InMemoryData) -> None:
        """Refuse data that are no sequences, with more symbols than the nets know or longer than they can read."""
        if not isinstance(data, Sequences):
            raise Refusal("data._target_ must make sequences, such as MarkovChains or Text: NextToken trains on such")
        if self.net.context < data.context:
            raise Refusal(f"model.net.context={self.net.context} must be at least data.context={data.context}")
        if self.fixed is not None and self.fixed.context < data.context:
            raise Refusal(f"model.fixed.context={self.fixed.context} must be at least data.context={data.context}")
        if self.fixed is not None and isinstance(data, Text):
            raise Refusal("model.fixed must be null: a text has one kind of sequence")
        for name, net in (("net", self.net), ("fixed", self.fixed)):
            if net is not None and net.vocabulary < data.symbols:
                raise Refusal(
                    f"model.{name}.vocabulary={net.vocabulary} is too small: the data have {data.symbols} symbols"
                )

    def objective(self, batch: tuple[tuple[Tensor, ...], float]) -> tuple[Tensor, dict[str, Tensor]]:
        kinds, weight = batch
        loss = weight * losses(self.net, kinds[0]).mean()
        logged = {"loss/net": loss.detach()}
        if self.fixed is not None:
            beside = weight * losses(self.fixed, kinds[1]).mean()
            loss, logged = loss + beside, logged | {"loss/fixed": beside.detach()}
        return loss, logged

    def on_fit_end(self) -> None:
        super().on_fit_end()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, Text) and self.trainer.is_global_zero:
            tokens = data.held_out(len(data.validation))
            nats = float(held_out_losses(self.net, tokens).mean())
            log.info("loss/net of %d characters held out: %.4f nats a character", tokens[:, 1:].numel(), nats)

    @torch.no_grad()
    def sample(self, n: int, draw: torch.Generator, length: int | None = None) -> Tensor:
        """n sequences of `length` symbols, each drawn given the last T before it; the draws are made on the CPU.

        They begin with the symbol that begins every sequence, which is left out; a text with a line break.
        """
        known = torch.arange(self.net.vocabulary, device=self.characters.device)
        text = bool((self.characters >= 0).any())
        unknown = self.characters < 0 if text else known == self.first
        tokens = self.first.long().expand(n, 1)
        past: list[tuple[Tensor, ...]] = []
        for _ in range(length or self.length):
            if tokens.shape[1] <= self.net.context:
                logits, past = self.net.next(tokens[:, -1], past)
            else:  # every position has moved
                logits = self.net(tokens[:, -self.net.context :])[:, -1]
            chances = logits.double().cpu().masked_fill(unknown.cpu(), -torch.inf).softmax(-1)
            drawn = torch.multinomial(chances, 1, generator=draw).to(tokens.device)
            tokens = torch.cat([tokens, drawn], 1)
        return tokens[:, 1:]

    def written(self, tokens: Tensor) -> list[str]:
        """Sequences as text, or as numbers side by side where their symbols are no characters. (n, T) → n"""
        points = self.characters.tolist()
        if max(points) < 0:
            return [" ".join(map(str, row)) for row in tokens.tolist()]
        return ["".join(chr(points[token]) for token in row) for row in tokens.tolist()]
