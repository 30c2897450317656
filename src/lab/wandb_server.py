"""What every use of wandb's server shares: the axis of the curves, how long to wait, how a failure is said."""

from __future__ import annotations

import socket
import urllib.request
from urllib.parse import urlsplit

STEP = "trainer/global_step"
"""What wandb's curves are plotted over."""
TIMEOUT = 10
"""Seconds in which the server must say that it accepts the key, or answer a question."""


def connect(url: str) -> None:
    """Raise OSError at once where nothing listens; wandb would try again for as long as it may."""
    if not urllib.request.getproxies():
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=3).close()


def one_line(error: BaseException) -> str:
    """An exception's name and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300] or 'no message'}"
