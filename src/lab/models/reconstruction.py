"""Reconstruction by a linear autoencoder, and by an ordered one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lab.data.blocks import InMemoryData
from lab.data.digits import CentredImages
from lab.errors import Refusal
from lab.models.stepped import SteppedModule
from lab.nets.autoencoder import LinearAutoencoder, OrderedAutoencoder


def reconstruction_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """mean over samples of ‖x − x̂‖². (B, d), (B, d) → ()"""
    return (x - x_hat).square().sum(-1).mean()


def nested_error(x: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """E_J ‖x − W_J W_Jᵀx‖², J uniform on 1 … k, W_J the first J columns: nested dropout, its expectation taken exactly.

    Code i is kept with probability pᵢ = (k − i + 1)/k, codes i and j together with min(pᵢ, pⱼ), so with z = Wᵀx and
    G = WᵀW the expectation is ‖x‖² − 2 Σᵢ pᵢ zᵢ² + Σᵢⱼ min(pᵢ, pⱼ) Gᵢⱼ zᵢ zⱼ.

    (Rippel, Gelbart & Adams 2014, §3.)

    Args:
        x: (B, d). codes: z, (B, k). weight: W, (d, k).
    """
    k = weight.shape[1]
    p = torch.arange(k, 0, -1, dtype=x.dtype, device=x.device) / k
    gram = (weight.mT @ weight) * torch.minimum(p[:, None], p)  # (k, k)
    kept = 2 * (p * codes.square()).sum(-1) - ((codes @ gram) * codes).sum(-1)  # (B,)
    return (x.square().sum(-1) - kept).mean()


def tied_error(x: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """mean over samples of ‖x − WWᵀx‖²: all codes at once, so any rotation of them is as good."""
    return reconstruction_error(x, codes @ weight.mT)


class Reconstruction(SteppedModule):
    """Trains the autoencoder `net` and the ordered one side by side; they share no parameter, so the sum trains each
    alone.

    Args:
        net: x ↦ x̂.
        ordered: x ↦ codes z = Wᵀx.
        nested: train `ordered` by nested dropout; False leaves its codes without an order.
        training: optimizer, scheduler and the other parameters of a `SteppedModule`.
    """

    def __init__(
        self,
        net: LinearAutoencoder,
        ordered: OrderedAutoencoder,
        nested: bool = True,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.net, self.ordered = net, ordered
        self._ordered_error = nested_error if nested else tied_error

    def check(self, data: InMemoryData) -> None:
        """Refuse data that are no images, or of another dimension than the nets."""
        if not isinstance(data, CentredImages):
            raise Refusal(
                "data._target_ must make a lab.data.digits.CentredImages, such as Digits: "
                "Reconstruction trains on no other"
            )
        for key, d in (("net", self.net.d), ("ordered", self.ordered.d)):
            if d != data.d:
                raise Refusal(f"model.{key}.d={d} must be {data.d}: the data have {data.d} dimensions")

    def objective(self, batch: tuple[Tensor, float]) -> tuple[Tensor, dict[str, Tensor]]:
        x, weight = batch
        plain = weight * reconstruction_error(x, self.net(x))
        ordered = weight * self._ordered_error(x, self.ordered(x), self.ordered.weight)
        return plain + ordered, {"loss/net": plain.detach(), "loss/ordered": ordered.detach()}
