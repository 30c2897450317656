"""What runs import, loaded once by a process that is then forked for each of them. Imports nothing heavy itself."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig

from lab import compose

FORKS = sys.platform == "linux"
"""Whether forking a process that has loaded torch is safe here; if not, every run and rank loads for itself."""
_tried: set[str] = set()


def load() -> None:
    """What every run needs."""
    import matplotlib.backends.backend_svg  # noqa: F401 - figures are saved by it
    from PIL import Image

    import lab.figures
    import lab.run  # noqa: F401

    Image.preinit()


def load_named(cfg: DictConfig) -> None:
    """What a run of this config and its like would each import; a class that cannot be is theirs to refuse."""
    modules = {target.rpartition(".")[0] for target in _targets(compose.plain(cfg))}
    modules |= {"torch._dynamo.eval_frame"} if cfg.model.get("compiled") else set()
    modules |= {"wandb"} & cfg.logger.keys()  # its logger imports it when it begins
    modules -= _tried
    if not modules:
        return
    _tried.update(modules)
    for module in sorted(modules):
        with suppress(Exception):
            importlib.import_module(module)
    gc.freeze()  # what is loaded by now is no run's garbage: none looks through it, and its pages stay shared


def _targets(node: Any) -> Iterator[str]:
    """The classes that a config names, wherever they stand."""
    match node:
        case dict():
            if isinstance(target := node.get("_target_"), str):
                yield target
            for value in node.values():
                yield from _targets(value)
        case list():
            for value in node:
                yield from _targets(value)
