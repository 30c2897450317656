"""Load torchmetrics without what it imports only because it is installed.

Lightning imports torchmetrics, which imports torchvision, scipy and matplotlib (and transformers) wherever it finds
them, for metrics the lab does not use. Hidden while torchmetrics loads, they cost nothing; each is importable as ever
afterwards.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from typing import Any

HIDDEN = {"torchvision", "scipy", "matplotlib", "SciencePlots", "transformers", "torch-fidelity"}


def load_torchmetrics() -> None:
    """Import torchmetrics with its optional dependencies hidden; does nothing if it is loaded already."""
    if "torchmetrics" in sys.modules:
        return
    probes: Any = importlib.import_module("lightning_utilities.core.imports")

    version, available = probes._version, probes.package_available

    def hidden_version(name: str) -> Any:
        if name in HIDDEN:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    probes._version = hidden_version
    probes.package_available = lambda name: name not in HIDDEN and available(name)
    try:
        import torchmetrics  # noqa: F401
    finally:
        probes._version, probes.package_available = version, available
        probes.module_available.cache_clear()
