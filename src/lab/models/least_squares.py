"""Gradient descent on least squares, every replicate at its own natural step size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lab.data.blocks import InMemoryData
from lab.data.gaussian_regression import GaussianRegression
from lab.errors import Refusal
from lab.models.stepped import SteppedModule
from lab.nets.linear import ReplicatedLinear
from lab.theory.least_squares import optimal_step
from lab.types import NonNegativeInt

Batch = dict[str, tuple[Tensor, Tensor, Tensor]]


class LeastSquares(SteppedModule):
    """minimise Σ_r η_r L_r, L_r(w_r) = (1/2n_r) Σ_i (x_riᵀw_r − y_ri)², over replicates r of every design.

    The replicates share no parameter, so plain gradient descent with learning rate α on the sum is gradient descent
    on each L_r with step α·η_r. With η_r = 2/(λ₁ + λ_min) of that replicate, α = 1 is the optimal fixed step. A
    minibatch of b of n rows has λ₁ up to n/b times larger; its η_r is scaled by b/n.

    Args:
        nets: one per design of the data, under the same name.
        record: for how many replicates of the first design ‖w_{t+1} − w_t‖ is kept at every step.

    Attributes:
        step_norms: (steps, record), ‖w_{t+1} − w_t‖₂ of the first design's first replicates; part of every checkpoint.
    """

    step_norms: Tensor
    splits = False  # `after_step` reads the weights

    def __init__(
        self,
        nets: dict[str, ReplicatedLinear],
        optimizer: Callable[[Any], Optimizer],
        record: NonNegativeInt = 0,
    ) -> None:
        super().__init__(optimizer)
        self.nets = nn.ModuleDict(nets)
        self.recorded = next(iter(nets))
        self.record = record

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        norms = torch.full((self.trainer.max_steps, self.record), torch.nan, dtype=torch.float64)
        self.register_buffer("step_norms", norms)
        self.step_sizes = {}
        for name, design in data.designs.items():
            rows = max(design.samples)
            batch = design.batch_size or rows
            eta = optimal_step(*design.gram_extremes()) * (batch / rows)
            self.step_sizes[name] = eta.to(design.x)

    def check(self, data: InMemoryData) -> None:
        """Refuse nets that do not fit the designs, and a record that they or the precision do not allow."""
        if not isinstance(data, GaussianRegression):
            raise Refusal(
                "data._target_ must make a lab.data.gaussian_regression.GaussianRegression: "
                "LeastSquares trains on no other"
            )
        for name in sorted(set(self.nets.keys()) ^ set(data.designs)):
            has, lacks = ("model.nets", "data.designs") if name in self.nets else ("data.designs", "model.nets")
            raise Refusal(f"{has}.{name} has no counterpart in {lacks}: each design is trained by the net of its name")
        for name, design in data.designs.items():
            net: Any = self.nets[name]
            for key, found, wanted, its in (
                ("features", net.features, design.d, "d"),
                ("replicates", net.replicates, design.replicates, "replicates"),
            ):
                if found != wanted:
                    raise Refusal(f"model.nets.{name}.{key}={found} must equal data.designs.{name}.{its}={wanted}")
        recorded = list(self.nets)[0]  # noqa: RUF015 - `lab.signature.checks` follows no next()
        most = data.designs[recorded].replicates
        if self.record > most:
            raise Refusal(f"record={self.record} is more than data.designs.{recorded}.replicates={most}")
        if data.trainer is not None and self.record * data.trainer.max_steps > 10**9:
            raise Refusal(
                f"record={self.record} times trainer.max_steps={data.trainer.max_steps} is more than 10^9: so many "
                "norms are kept, 8 GB; record=0 keeps none"
            )
        if data.trainer is not None and data.trainer.precision == "bf16-true":
            raise Refusal(
                "trainer.precision=bf16-true is not allowed: a step below 1/256 of a weight would leave it as it is; "
                "allowed: 64-true, 32-true"
            )

    def on_train_start(self) -> None:
        self._previous = self._recorded_weights().clone()  # a checkpoint has been restored by now

    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weighted, logged = [], {}
        for name, (x, y, weight) in batch.items():
            residual = self.nets[name](x) - y  # (R, b)
            loss = weight * residual.square().sum(1) / 2  # (R,)
            weighted.append(torch.dot(self.step_sizes[name], loss))
            logged[f"loss/{name}"] = loss.detach()
        return sum(weighted[1:], weighted[0]), logged

    def after_step(self, step: int) -> None:
        if self.step_norms.shape[1]:
            weights = self._recorded_weights()
            torch.linalg.vector_norm(weights - self._previous, dim=1, dtype=torch.float64, out=self.step_norms[step])
            self._previous.copy_(weights)

    def _recorded_weights(self) -> Tensor:
        net = self.nets[self.recorded]
        assert isinstance(net, ReplicatedLinear)
        return net.weight.detach()[: self.step_norms.shape[1]]
