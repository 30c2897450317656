"""Floating-point operations of a decoder-only transformer: an addition and a multiplication are two."""

from __future__ import annotations


def matmul_parameters(layers: int, width: int, hidden: int, vocabulary: int) -> int:
    """N = L(4w² + 2wh) + wV: weights that every token is multiplied by; a table that is looked up in is none.

    Four w×w matrices a layer make queries, keys, values and the attention's output, two w×h the other half, one w×V
    the logits.

    (Kaplan et al. 2020, Table 1.)
    """
    return layers * (4 * width**2 + 2 * width * hidden) + width * vocabulary


def forward(layers: int, width: int, hidden: int, vocabulary: int, context: int, sequences: int = 1) -> int:
    """F = B(2NT + 4LwT²): two operations for each weight and token, and two products of T×T and T×w a layer.

    QKᵀ and AV are 2T²w each, over all heads; that a causal mask leaves half of A empty is no saving in this count.

    (Kaplan et al. 2020, Table 1; Chowdhery et al. 2022, App. B.)

    Args:
        sequences: B. context: T.
    """
    weights = matmul_parameters(layers, width, hidden, vocabulary)
    return sequences * (2 * weights * context + 4 * layers * width * context**2)


def training(layers: int, width: int, hidden: int, vocabulary: int, context: int, sequences: int = 1) -> int:
    """3F: of C = AB the gradients are C̄Bᵀ and AᵀC̄, two products of the size of the first.

    (Kaplan et al. 2020, §2.1.)
    """
    return 3 * forward(layers, width, hidden, vocabulary, context, sequences)
