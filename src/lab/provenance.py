"""Where a result comes from: code, versions, machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
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


SUBMITTED = "submitted.json"


def code() -> dict[str, Any]:
    """Commit, whether the tree is dirty, and a digest of this package's source, which needs no git to compare."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    commit, dirty = _commit()
    return {"commit": commit, "dirty": dirty, "source": digest.hexdigest()}


def edited_since_submit(run: Path) -> str:
    """In what way the code on disk is not what it was when the run was submitted; "" where it is, or was not queued."""
    try:
        then = json.loads((run / SUBMITTED).read_text(encoding="utf-8"))["code"]
    except (OSError, ValueError, KeyError):
        return ""
    now = code()
    if now["source"] == then["source"]:
        return ""
    commits = "uncommitted" if now["commit"] == then["commit"] else f"commit {then['commit']} then, {now['commit']} now"
    return f"the code on disk was edited since this run was submitted ({commits})"


def tree_diff() -> str:
    """What the checkout holds beyond its commit: changes, and the files under src and conf that git does not know."""
    try:
        root = _git("rev-parse", "--show-toplevel").strip()
        diff = _git("-C", root, "diff", "--binary", "HEAD")
        for name in _git("-C", root, "ls-files", "--others", "--exclude-standard", "src", "conf").splitlines():
            diff += _git("-C", root, "diff", "--binary", "--no-index", "/dev/null", name, codes=(0, 1))
    except (OSError, subprocess.SubprocessError):
        return ""
    return diff


def _commit() -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout this package runs from, or (None, None) outside one."""
    try:
        return _git("rev-parse", "HEAD").strip(), bool(_git("status", "--porcelain").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(*words: str, codes: tuple[int, ...] = (0,)) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=10)
    if done.returncode not in codes:
        raise subprocess.CalledProcessError(done.returncode, command)
    return done.stdout
