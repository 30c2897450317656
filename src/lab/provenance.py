"""Where a result comes from: code, versions, machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from lab import __version__

PACKAGES = ("torch", "lightning", "hydra-core", "numpy", "wandb")


def provenance(seed: int, device: str, world_size: int) -> dict[str, Any]:
    """Seed, commit, whether the tree was dirty, versions, device, world size; the run adds when and how long."""
    commit, dirty = _commit()
    return {
        "seed": seed,
        "commit": commit,
        "dirty": dirty,
        "versions": {
            "lab": __version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
        "device": device,
        "world_size": world_size,
    }


def _commit() -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout this package runs from, or (None, None) outside one."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", here, *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout

    try:
        return git("rev-parse", "HEAD").strip(), bool(git("status", "--porcelain").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None
