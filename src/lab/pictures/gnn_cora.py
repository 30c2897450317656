"""Pictures of graph nets on citation networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lab.claim import Run
from lab.models.node_classification import features
from lab.nets.graphs import Graph
from lab.pictures import Picture
from lab.pictures.gnn import CLASSES, plane

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Papers(Picture):
    """Test papers in the plane of a GCN's hidden values, before and after training; colours are classes"""

    @torch.no_grad()
    def draw(self, run: Run) -> Figure:
        from lab.figures import blank

        data, net = run.data, run.model.trained["gcn"][0]
        x, graph = features(data.x, data.dtype), Graph(data.edges, data.n)
        figure = blank(16, 7.4)
        for ax, one, when in zip(figure.subplots(1, 2), (net.again(), net), ("before", "after"), strict=True):
            right = (one(x, graph).argmax(1) == data.labels)[data.test].double().mean()
            places = plane(one.hidden(x, graph)[data.test])
            for kind in range(data.classes):
                across, up = places[data.labels[data.test] == kind].mT
                ax.scatter(across, up, s=4, color=CLASSES[kind], linewidths=0)
            ax.set(xticks=[], yticks=[], title=f"{when} training: {float(right):.1%} right")
        return figure
