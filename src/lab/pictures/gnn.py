"""Pictures of graph nets: where they put nodes before and after training, and when neighbours help."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lab.claim import Run
from lab.data.csbm import CSBM
from lab.nets.gcn import GCN
from lab.nets.geometric import KarateClub
from lab.nets.graphs import Graph
from lab.pictures import Picture
from lab.theory import csbm
from lab.types import PositiveInt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CLASSES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
"""A colour for each class, in the order of the classes; of Okabe and Ito."""


def plane(h: Tensor) -> Tensor:
    """Hidden values in the plane of their two largest principal components, the larger entries positive."""
    h = (h - h.mean(0)).double()
    axes = torch.linalg.svd(h, full_matrices=False).Vh[:2]
    sign = torch.where(axes.sum(1, keepdim=True) < 0, -1.0, 1.0)
    return h @ (sign * axes).mT


def _graph(ax: Axes, places: Tensor, edges: Tensor, labels: Tensor, title: str) -> None:
    from lab.figures.panel import INK

    for ends in places[edges.mT[edges[0] < edges[1]]]:  # (2, 2)
        ax.plot(*ends.mT, color="0.8", lw=0.4, zorder=0)
    ax.scatter(
        places[:, 0], places[:, 1], s=16, c=[CLASSES[int(label)] for label in labels], linewidths=0.4, edgecolors=INK
    )
    ax.set(xticks=[], yticks=[], title=title)


class Embedding(Picture):
    """A graph in the plane of a GCN's hidden values, before and after training; colours are classes"""

    @torch.no_grad()
    def draw(self, run: Run) -> Figure:
        from lab.figures import blank

        net = run.model.trained["gcn"][0]
        x, adjacency, labels = run.data.fresh(1, "Embedding")
        graph = Graph.of(adjacency)
        figure = blank(16, 7.4)
        for ax, one, when in zip(figure.subplots(1, 2), (net.again(), net), ("before", "after"), strict=True):
            h = one.double().hidden(x[0], graph)
            right = (one(x[0], graph).argmax(1) == labels[0]).double().mean()
            _graph(ax, plane(h), graph.edges, labels[0], f"{when} training: {float(right):.0%} right")
        return figure


class Karate(Picture):
    """Zachary's karate club in three layers of a GCN without features: weights as drawn, and taught one node a class

    Args:
        steps: of training, on one node of each of the four communities.
    """

    def __init__(self, steps: PositiveInt = 200) -> None:
        self.steps = steps

    def draw(self, run: Run) -> Figure:
        from lab.figures import blank

        club = KarateClub()[0]
        graph, x = Graph(club.edge_index, club.num_nodes), torch.eye(club.num_nodes)
        net = GCN(club.num_nodes, 4, layers=3, activation="tanh", seed=run.data.seed)
        with torch.enable_grad():
            optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=5e-4)
            for _ in range(self.steps):
                optimizer.zero_grad()
                functional.cross_entropy(net(x, graph)[club.train_mask], club.y[club.train_mask]).backward()
                optimizer.step()
        figure = blank(16, 7.4)
        for ax, one in zip(figure.subplots(1, 2), (net.again(), net), strict=True):
            with torch.no_grad():
                h, right = one.hidden(x, graph), (one(x, graph).argmax(1) == club.y).double().mean()
            title = f"taught four nodes: {float(right):.0%} right" if one is net else "weights as drawn"
            _graph(ax, plane(h), graph.edges, club.y, title)
        return figure


class Homophily(Picture):
    """When neighbours help: the accuracy of one mean as edges across become as likely as edges within, and likelier

    Measured is sign(wᵀh) for w the difference of the classes' means, taken from other graphs than it is judged on.
    """

    def __init__(self, graphs: PositiveInt = 400, points: PositiveInt = 13) -> None:
        self.graphs, self.points = graphs, points

    @torch.no_grad()
    def draw(self, run: Run) -> Figure:
        from lab.figures import blank
        from lab.figures.panel import INK, MEASURED, THEORY

        data = run.data
        end = min(1.0, 2.4 * data.p)
        fine = np.linspace(0, end, 200)
        figure = blank(11, 6.5)
        ax = figure.subplots()
        law = [csbm.mean_accuracy(data.nodes, data.p, q, data.separation) for q in fine]
        alone = csbm.bayes_accuracy(data.separation)
        ax.plot(data.p - fine, law, color=THEORY, label="theory, mean over neighbours")
        ax.axhline(alone, color=INK, ls="--", lw=0.8, label="theory, features alone")
        ax.fill_between(data.p - fine, law, alone, where=np.array(law) < alone, color="0.92", label="the graph hurts")
        for q in np.linspace(0, end, self.points):
            right, error = self.measured(data, float(q))
            ax.errorbar(data.p - q, right, error, fmt="o", color=MEASURED, ms=3, lw=0.8)
        ax.set(xlabel="$p - q$", ylabel="accuracy", title=f"$p$ = {data.p:g}, {data.nodes} nodes")
        ax.legend(loc="upper center")
        return figure

    def measured(self, data: CSBM, q: float) -> tuple[float, float]:
        """(accuracy, its standard error) where edges across have probability q."""
        other = data.across(q)
        means, signs = [], []
        for part in ("taught", "judged"):
            x, adjacency, labels = other.fresh(self.graphs, "Homophily", part)
            looped = adjacency + torch.eye(data.nodes, dtype=torch.float64)
            means.append(looped @ x / looped.sum(-1, keepdim=True))
            signs.append(2 * labels - 1)
        direction = (signs[0].unsqueeze(-1) * means[0]).mean((0, 1))
        right = (signs[1] * (means[1] @ direction) > 0).double().mean(1)
        return float(right.mean()), float(right.std() / len(right) ** 0.5)
