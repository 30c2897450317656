"""Any text file, character by character."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lab.data.sequences import Sequences
from lab.data.sources import read_text, require_few, split
from lab.random import generator
from lab.types import Fraction, NonEmptyStr, NonNegativeInt, PositiveInt


class Text(Sequences):
    """Windows of T + 1 characters from random places of the text's first part; the last is held out.

    The symbols are the characters that occur in the file, by code point. The text lies on the device, two bytes a
    character, and a batch is cut from it.

    Args:
        path: of a file in UTF-8.
        share: of the text that is held out.

    Attributes:
        train, validation: the two parts, as symbols. characters: of the whole file.
    """

    def __init__(
        self,
        path: NonEmptyStr,
        share: Fraction = 0.1,
        context: PositiveInt = 64,
        batch_size: PositiveInt = 12,
        seed: NonNegativeInt = 0,
        block_size: PositiveInt = 50,
    ) -> None:
        super().__init__(context, batch_size, seed, block_size)
        self.path, self.share = Path(path), share

    def load(self) -> None:
        super().load()
        text = read_text(self.path)
        codes = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
        known, tokens = codes.unique(return_inverse=True)  # sorted
        self.characters, self.symbols = "".join(map(chr, known.tolist())), len(known)
        require_few(self.path, self.symbols)
        trained = split(self.path, len(tokens), self.share, self.context)
        self.train, self.validation = tokens[:trained].short(), tokens[trained:].short()

    def place(self, device: torch.device) -> None:
        super().place(device)
        self.train, self.validation = self.train.to(device), self.validation.to(device)

    def drawn(self, steps: range) -> tuple[Tensor]:
        last = len(self.train) - self.context
        places = [
            torch.randint(last, (self.batch_size,), generator=generator(self.seed, "place", step)) for step in steps
        ]
        return (self._windows(self.train, torch.stack(places)),)

    def held_out(self, n: int) -> Tensor:
        """Up to n windows side by side, evenly from the validation text; their last characters are others' first."""
        whole = (len(self.validation) - 1) // self.context
        chosen = torch.arange(min(n, whole)) * whole // min(n, whole)
        return self._windows(self.validation, chosen * self.context).cpu()

    def _windows(self, text: Tensor, places: Tensor) -> Tensor:
        """(..., T+1) symbols from `places` on."""
        inside = torch.arange(self.context + 1, device=text.device)
        return text[places.to(text.device).unsqueeze(-1) + inside].long()
