"""Random draws as functions of what they are for, never of what was drawn before."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(seed: int, *stream: int | str) -> torch.Generator:
    """A CPU generator that depends on (seed, stream) alone, e.g. `generator(seed, "noise", step)`.

    Streams with different names or counters are independent; the same one drawn again, after a resume or on another
    rank, gives the same numbers.
    """
    digest = hashlib.blake2b(repr((seed, *stream)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """N(0, 1) draws in float64 on the CPU, whatever the default type and device: the same on every machine."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """U(0, 1) draws in float64 on the CPU, as `normal` has them."""
    return torch.rand(*shape, generator=generator, dtype=torch.float64, device="cpu")
