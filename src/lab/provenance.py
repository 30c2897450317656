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
    """Seed, commit, whether the tree was dirty, versions, device and its name, world size; the run adds its times."""
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
        "hardware": _hardware(device),
        "world_size": world_size,
    }


def _hardware(device: str) -> str:
    """What the device is: the processor's or the GPU's name, on which the last bits of a result may depend."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


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
