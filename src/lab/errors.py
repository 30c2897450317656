"""Refusals: bad input said in one line, with exit code 2 and no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

HOLDS, CRASHED, REFUSED, REFUTED = 0, 1, 2, 3
"""Exit codes of a run; one stopped by a signal exits with 128 + the signal's number."""


class Refusal(Exception):
    """Input the lab will not run: the message is the one line the user reads."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the allowed name closest to `name`, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""
