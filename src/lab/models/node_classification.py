"""Classes of the nodes of a graph, by cross-entropy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional

from lab.data.blocks import Block, InMemoryData
from lab.data.csbm import CSBM
from lab.data.planetoid import Planetoid
from lab.errors import Refusal
from lab.models.stepped import SteppedModule
from lab.nets.graph_net import GraphNet
from lab.nets.graphs import Features, Graph, Noise, Sparse
from lab.random import generator
from lab.types import PositiveInt

log = logging.getLogger("lab")


def features(x: Tensor | csr_matrix, dtype: torch.dtype, device: torch.device | str = "cpu") -> Features:
    """Features as a net takes them, in a precision and on a device."""
    if isinstance(x, Tensor):
        return x.to(device, dtype)
    starts, columns, values = (torch.from_numpy(part).to(device) for part in (x.indptr, x.indices, x.data))
    return Sparse(starts, columns, values.to(dtype), x.shape)


class NodeClassification(SteppedModule):
    """Trains nets side by side on the same nodes, each by the mean of −ln softmax(logits)[class]; they share nothing.

    Graphs that are drawn anew at each step are a batch, side by side. Of one graph all nodes are looked at in every
    step and the batch is those whose class is told; what dropout leaves out is a function of (seed, net, copy, step).

    Args:
        nets: by name; null is none.
        copies: of each net, from as many starts.
        training: optimizer, scheduler and the other parameters of a `SteppedModule`.

    Attributes:
        nets: as given, the first copies. trained: name → all copies.
    """

    splits = False  # the claims look into the nets

    def __init__(self, nets: dict[str, GraphNet | None], copies: PositiveInt = 1, **training: Any) -> None:
        super().__init__(**training)
        self.copies = copies
        self.nets = {name: net for name, net in nets.items() if net is not None}
        self.trained = nn.ModuleDict(
            {name: nn.ModuleList([net, *(net.again(i) for i in range(1, copies))]) for name, net in self.nets.items()}
        )
        self._whole: tuple[Features, Graph] | None = None

    def check(self, data: InMemoryData) -> None:
        """Refuse data that are no graphs, of other sizes than the nets', and dropout where every graph is new."""
        if not isinstance(data, CSBM) and not isinstance(data, Planetoid):
            raise Refusal("data._target_ must make graphs, such as lab.data.csbm.CSBM: NodeClassification needs such")
        for name, net in self.nets.items():
            if net.d != data.d:
                raise Refusal(f"model.nets.{name}.d={net.d} must be {data.d}: a node of the data has {data.d} features")
            if net.classes != data.classes:
                raise Refusal(f"model.nets.{name}.classes={net.classes} must be {data.classes}, as the data have")
            if isinstance(data, CSBM) and net.dropout > 0:
                raise Refusal(f"model.nets.{name}.dropout={net.dropout} must be 0: every graph is looked at once")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self._seed = data.seed
        self._whole = None
        if isinstance(data, Planetoid):
            self._whole = features(data.x, data.dtype, data.edges.device), Graph(data.edges, data.n)

    def batches(self, block: Block) -> Iterable[Any]:
        if self._whole is None:
            return block.batches
        return ((*batch, {"step": step}) for step, batch in enumerate(block.batches, block.step))

    def objective(self, batch: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        step, rows = None, slice(None)
        if self._whole is None:
            x, adjacency, labels, weight = batch
            x, labels, graph = x.flatten(0, 1), labels.flatten(), Graph.of(adjacency)
        else:
            rows, labels, weight, now = batch
            (x, graph), step = self._whole, now["step"]

        def loss(name: str, copy: int, net: nn.Module) -> Tensor:
            noise = None if step is None else Noise(generator(self._seed, "dropout", name, copy, step))
            return weight * functional.cross_entropy(net(x, graph, noise)[rows], labels)

        losses: dict[str, Tensor] = {}
        for name, nets in self.trained.items():
            copies: Any = nets
            losses[name] = torch.stack([loss(name, i, net) for i, net in enumerate(copies)])
        return torch.cat(list(losses.values())).sum(), {f"loss/{n}": each.detach().mean() for n, each in losses.items()}

    def groups(self) -> Iterable[Any]:
        """Parameters with the decay that their net asks for; all of them where none does."""
        by_decay: dict[float, list[nn.Parameter]] = {}
        for nets in self.trained.values():
            copies: Any = nets
            for net in copies:
                decaying = {id(p) for p in net.decaying().parameters()} if net.decay else set()
                for p in net.parameters():
                    by_decay.setdefault(net.decay if id(p) in decaying else 0.0, []).append(p)
        if list(by_decay) == [0.0]:
            return self.parameters()
        return [{"params": parameters, "weight_decay": decay} for decay, parameters in by_decay.items()]

    def on_fit_end(self) -> None:
        super().on_fit_end()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, Planetoid) and self.trainer.is_global_zero:
            for name in self.trained:
                right = self.accuracies(name, data)
                spread = f" ± {right.std() / len(right) ** 0.5:.4f}" if len(right) > 1 else ""
                log.info("%s: %.4f%s of %d test nodes right", name, right.mean(), spread, len(data.test))

    @torch.no_grad()
    def logits(self, name: str, x: Tensor | csr_matrix, graph: Graph, dtype: torch.dtype = torch.float64) -> Tensor:
        """Of every copy of a net, nothing left out: (copies, N, classes)."""
        nets: Any = copy.deepcopy(self.trained[name]).to(dtype)
        given = features(x, dtype, graph.edges.device)
        return torch.stack([net(given, graph) for net in nets])

    def accuracies(self, name: str, data: Planetoid) -> Tensor:
        """The share of the test nodes that each copy of a net gets right: (copies,)."""
        logits = self.logits(name, data.x, Graph(data.edges, data.n), data.dtype)[:, data.test]
        return (logits.argmax(-1) == data.labels[data.test]).double().mean(-1).cpu()
