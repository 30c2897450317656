"""What the lab takes from PyTorch Geometric, imported in one place.

Importing it defines functions by `torch.jit.script`, of whose deprecation each would warn; that is for its makers.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from torch_geometric.datasets import KarateClub
    from torch_geometric.nn import GATConv, GCNConv, GINConv, SimpleConv
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

__all__ = ["GATConv", "GCNConv", "GINConv", "KarateClub", "SimpleConv", "gcn_norm"]
