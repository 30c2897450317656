"""Refusals: bad input said in one line, with exit code 2 and no traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

HOLDS, CRASHED, REFUSED, REFUTED = 0, 1, 2, 3
"""Exit codes of a run; one stopped by a signal exits with 128 + the signal's number."""


class Refusal(Exception):
    """Input the lab will not run: the message is the one line the user reads."""

    def within(self, key: str) -> Refusal:
        """This refusal as that of the node at `key`: a line that begins with a parameter names it by its full key.

        One that begins with a full key stays as it is.
        """
        line = str(self)
        if re.match(r"\w+(\.\w+)+[ =]", line):
            return self
        return Refusal(f"{key}.{line}" if re.match(r"\w+=", line) else f"{key}: {line}")


class UnknownKey(Refusal):
    """A key that is not among those of its node, and what is.

    Args:
        key: dotted, with `found` as its value.
        close: what `nearest` says of those beside it.
        allowed: the rest of the line.
    """

    def __init__(self, key: str, found: str, close: str, allowed: str) -> None:
        super().__init__(f"unknown key {key}={found}{close}; {allowed}")
        self.key, self.found, self.allowed = key, found, allowed

    def instead(self, others: Sequence[str]) -> UnknownKey:
        """This refusal with keys that stand elsewhere in the place of those beside it; without any, as it is."""
        close = f", did you mean {' or '.join(map(repr, others))}?"
        return UnknownKey(self.key, self.found, close, self.allowed) if others else self


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the allowed name closest to `name`, or nothing when none is close."""
    close = _closest(name, allowed)
    return f", did you mean '{close}'?" if close else ""


def nearest_key(key: str, allowed: Iterable[str]) -> str:
    """`nearest` for a dotted key among those beside it: only their last parts are compared."""
    place, dot, name = key.rpartition(".")
    close = _closest(name, [other.rpartition(".")[2] for other in allowed])
    return f", did you mean '{place}{dot}{close}'?" if close else ""


def _closest(name: str, allowed: Iterable[str]) -> str:
    as_written = {choice: choice for choice in allowed}
    for written, choices in ((name, as_written), (name.casefold(), {c.casefold(): c for c in as_written})):
        if close := difflib.get_close_matches(written, choices, n=1, cutoff=0.5):
            return choices[close[0]]
    return ""
