"""Where a result comes from: code, versions, machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from lab import __version__

PACKAGES = ("torch", "lightning", "hydra-core", "numpy", "wandb")
PATIENCE = 60
"""Seconds that git may take for one answer: on a cluster's file system that is busy it takes many."""


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
        source, commit = then["source"], then["commit"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    now = code()
    if now["source"] == source:
        return ""
    commits = "uncommitted" if now["commit"] == commit else f"commit {commit} then, {now['commit']} now"
    return f"the code on disk was edited since this run was submitted ({commits})"


def tree_diff() -> bytes | None:
    """What the checkout holds beyond its commit: changes, and the files under src and conf that git does not know.

    `git apply` makes the same files of a clean checkout, byte for byte, whatever the user's git is set to. None where
    that is not known: outside a checkout, or where git fails or does not answer.
    """
    try:
        root = os.fsdecode(_git("rev-parse", "--show-toplevel")).removesuffix("\n")
        diff = _git("-C", root, *_DIFF, "HEAD", "--")
        untracked = _git("-C", root, "ls-files", "-z", "--others", "--exclude-standard", "--", "src", "conf")
        for name in filter(None, untracked.split(b"\0")):
            diff += _git("-C", root, *_DIFF, "--no-index", "--", "/dev/null", os.fsdecode(name), codes=(0, 1))
    except (OSError, subprocess.SubprocessError):
        return None
    return diff


_DIFF = (
    "diff", "--binary", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative", "--unified=3",
    "--submodule=short", "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip
"""A diff that can be applied: what a user's git may be set to do to it, undone."""


def _commit() -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout this package runs from, or (None, None) outside one."""
    try:
        commit = _git("rev-parse", "HEAD").decode().strip()
        return commit, bool(_git("status", "--porcelain", "--untracked-files=normal").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(*words: str, codes: tuple[int, ...] = (0,)) -> bytes:
    """What git prints; an error where it only complains, as `git diff` does of what it cannot read."""
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *words]
    environment = {name: value for name, value in os.environ.items() if name != "GIT_DIFF_OPTS"}  # beats --unified
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PATIENCE
    )
    if done.returncode not in codes or (done.stderr and not done.stdout):
        raise subprocess.CalledProcessError(done.returncode, command)
    return done.stdout
