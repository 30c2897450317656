"""Where the lab's configuration and pages lie, and where runs go."""

from __future__ import annotations

from pathlib import Path


def _home() -> Path:
    """The folder with conf/ and experiments/: the repository of a source checkout, the package itself in a wheel."""
    package = Path(__file__).parent
    root = package.parent.parent
    return root if package.parent.name == "src" and (root / "conf").is_dir() else package


CONF = _home() / "conf"
EXPERIMENTS = _home() / "experiments"
OUTPUTS = Path("outputs")
"""Relative to the working directory of whoever starts a run."""
