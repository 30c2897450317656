"""The cores and GPUs of this machine, each lent to one job at a time. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import DictConfig

from lab.machine import accelerator, usable_cores, visible_gpus, world_size


@dataclass(frozen=True)
class Need:
    """Devices that one run holds: a core for each thread of each rank, or a GPU for each rank."""

    kind: str
    count: int
    exactly: tuple[int, ...] = ()
    """The GPUs that the config names, where it names some."""

    @classmethod
    def of(cls, cfg: DictConfig) -> Need:
        kind, ranks = accelerator(cfg), world_size(cfg)
        if kind == "cpu":
            return cls("cpu", min(ranks * cfg.threads, len(usable_cores())))
        named = cfg.trainer.get("devices")
        return cls(kind, ranks, tuple(named) if isinstance(named, Sequence) and not isinstance(named, str) else ())


@dataclass
class Devices:
    """What is free. `take` lends, `give` takes back; a job that finds too little free waits."""

    free: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.free:
            gpus = list(range(visible_gpus()))
            self.free = {"cpu": usable_cores(), "cuda": gpus, "mps": [0]}

    def take(self, need: Need) -> tuple[int, ...] | None:
        """Devices for `need`, or None while too few are free."""
        free = self.free[need.kind]
        taken = need.exactly or tuple(free[: need.count])
        if len(taken) < need.count or not set(taken) <= set(free):
            return None
        self.free[need.kind] = [device for device in free if device not in taken]
        return taken

    def give(self, need: Need, devices: tuple[int, ...]) -> None:
        """What `take` lent is free again."""
        self.free[need.kind] = sorted([*self.free[need.kind], *devices])


def confine(need: Need, devices: tuple[int, ...]) -> None:
    """Keep this process, and those it starts, on the devices it was lent."""
    if need.kind == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, devices)
    elif need.kind == "cuda" and not need.exactly:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else [str(index) for index in range(visible_gpus())]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[index].strip() for index in devices)
        visible_gpus.cache_clear()
