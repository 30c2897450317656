"""Sequences of k symbols: what a known chain hides, what a predictor that learns an unknown one must pay. In nats.

A chain has P(X_{t+1} = j | X_t = i) = P_ij. A sequence is a row of a tensor of symbols 0 … k−1, x₀ … x_{T−1}.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def stationary(transition: Tensor) -> Tensor:
    """π with πP = π and Σ π = 1, of a chain that can get from every state to every other. (k, k) → (k,)

    (Cover & Thomas 2006, eq. 4.10.)
    """
    k = len(transition)
    equations = torch.cat([transition.mT - torch.eye(k, dtype=transition.dtype), torch.ones(1, k).to(transition)])
    right = torch.zeros(k + 1, dtype=transition.dtype)
    right[-1] = 1
    return torch.linalg.lstsq(equations, right.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)


def entropy_rate(transition: Tensor) -> Tensor:
    """H = −Σᵢⱼ πᵢ Pᵢⱼ ln Pᵢⱼ: what each symbol of a stationary chain costs whoever knows the chain. (k, k) → ()

    (Cover & Thomas 2006, Thm 4.2.4.)
    """
    return -(stationary(transition) @ torch.xlogy(transition, transition)).sum()


def chain_losses(tokens: Tensor, transition: Tensor) -> Tensor:
    """−ln P(x_t | x_{t−1}) for t = 1 … T−1: the code of whoever knows the chain. (N, T), (k, k) → (N, T−1)

    (Cover & Thomas 2006, §5.3.)
    """
    return -transition[tokens[:, :-1], tokens[:, 1:]].log()


def posterior_mean_losses(tokens: Tensor, symbols: int, concentration: float) -> Tensor:
    """−ln p̂(x_t | x_{<t}) of the Bayes predictor, whose rows of P are drawn from Dirichlet(α, …, α).

        p̂(j | x_{<t}) = (n_ij + α)/(n_i + kα),  i = x_{t−1},

    with n_ij how often j has followed i before t and n_i = Σⱼ n_ij: the mean of the posterior Dirichlet(n_i1 + α, …).
    It is the law of x_t given the past when P is not known, so in expectation no predictor does better.

    (Bernardo & Smith 1994, §5.2; Cover & Thomas 2006, §13.2.)

    Args:
        tokens: (N, T). symbols: k. concentration: α.

    Returns: for t = 1 … T−1, (N, T−1)
    """
    n = torch.zeros(len(tokens), symbols, symbols, dtype=torch.float64)
    rows, losses = torch.arange(len(tokens)), []
    for before, after in zip(tokens[:, :-1].unbind(1), tokens[:, 1:].unbind(1), strict=True):
        seen = n[rows, before]  # (N, k)
        losses.append(-((seen[rows, after] + concentration) / (seen.sum(-1) + symbols * concentration)).log())
        n[rows, before, after] += 1
    return torch.stack(losses, 1)


def unigram_losses(tokens: Tensor, symbols: int, concentration: float) -> Tensor:
    """−ln (n_j + α)/(t + kα), n_j how often j = x_t is among x₀ … x_{t−1}: the predictor that knows no order.

    (Bernardo & Smith 1994, §5.2; Edelman, Tsilivis, Edelman, Malach & Goel 2024, §2.)

    Returns: for t = 1 … T−1, (N, T−1)
    """
    counts = one_hot(tokens, symbols).double().cumsum(1)[:, :-1]  # (N, T−1, k)
    chances = (counts + concentration) / (counts.sum(-1, keepdim=True) + symbols * concentration)
    return -chances.gather(-1, tokens[:, 1:, None]).squeeze(-1).log()


def evidence_weight(tokens: Tensor, symbols: int, concentration: float) -> tuple[Tensor, Tensor]:
    """(n_i, n_i/(n_i + kα)), i = x_t: how often the current symbol was seen before, and what that counts for.

    The posterior mean is an average of what was seen and of the prior,

        (n_ij + α)/(n_i + kα) = w · n_ij/n_i + (1 − w) · 1/k,  w = n_i/(n_i + kα).

    (Bernardo & Smith 1994, §5.2.)

    Returns: for t = 0 … T−1, (N, T) twice
    """
    n = (one_hot(tokens, symbols).double().cumsum(1).gather(-1, tokens[..., None]) - 1).squeeze(-1)
    return n, n / (n + symbols * concentration)


def conditional_entropy(words: Tensor) -> float:
    """−(1/n) Σ ln n(w₀ … w_m)/n(w₀ … w_{m−1}), the n words being counted among themselves.

    It is the minimum of −(1/n) Σ ln q(w_m | w₀ … w_{m−1}) over all q (Gibbs' inequality), those fitted to these very
    words included: whoever has not seen them costs more, and so does whoever has but sees no more than m symbols back.

    (Cover & Thomas 2006, Thm 2.6.3 and §11.1.)

    Args:
        words: (n, m + 1), m symbols and the one that follows.
    """
    past = _counts(words[:, :-1]) if words.shape[1] > 1 else float(len(words))
    return float(-(_counts(words) / past).log().mean())


def _counts(words: Tensor) -> Tensor:
    """How often each row is among the rows. (n, m) → (n,)"""
    _, which, counts = torch.unique(words, dim=0, return_inverse=True, return_counts=True)
    return counts[which].double()
