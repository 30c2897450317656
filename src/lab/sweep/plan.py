"""What a sweep is: its points, each a run of its own, and the folder they lie in. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lab import compose, paths
from lab.check import check_config, check_run
from lab.errors import Refusal
from lab.rundir import write_atomically

RECORD = "sweep.json"
LONGEST_NAME = 120
_EACH_POINT = ("run_dir", "id")
"""Keys that the sweep sets for each of its points."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Of its folder below the sweep's."""
    values: dict[str, str]
    """What it does not share with every other point, as on the command line."""
    overrides: tuple[str, ...]
    cfg: DictConfig
    digest: str


@dataclass
class Sweep:
    """Points and the folder in which each has its run directory.

    `sweep.json` lists them, so that results are found by the folder alone.
    """

    path: Path
    experiment: str
    overrides: tuple[str, ...]
    objective: str | None
    points: list[Point] = field(default_factory=list)

    def folder(self, point: Point) -> Path:
        return self.path / point.name

    def add(self, points: Sequence[Point]) -> None:
        """Take points in and write them down; refuses a folder that holds another point under the same name."""
        record = read_record(self.path) if (self.path / RECORD).exists() else None
        known = {entry["name"]: entry for entry in record["points"]} if record else {}
        for point in points:
            there = known.get(point.name)
            if there is not None and there["digest"] != point.digest:
                raise Refusal(
                    f"hydra.sweep.dir={self.path} holds another sweep: its {point.name} has another config; choose "
                    "another folder, or remove this one"
                )
            known[point.name] = {"name": point.name, "values": point.values, "digest": point.digest}
            if "wandb" in point.cfg.logger and point.cfg.logger.wandb.get("group") is None:
                OmegaConf.update(point.cfg, "logger.wandb.group", f"sweep-{self.path.name}", force_add=True)
            OmegaConf.update(point.cfg, "run_dir", str(self.folder(point)))
        self.points += points
        self.path.mkdir(parents=True, exist_ok=True)
        content = {
            "experiment": self.experiment,
            "overrides": list(self.overrides),
            "objective": self.objective,
            "points": list(known.values()),
        }
        write_atomically(self.path / RECORD, json.dumps(content, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """What `sweep.json` of a sweep's folder says; a Refusal where it says nothing."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        if {"experiment", "overrides", "objective", "points"} <= record.keys():
            return dict(record)
    except FileNotFoundError:
        raise Refusal(f"{path} holds no sweep: it has no {RECORD}") from None
    except (OSError, ValueError, AttributeError):
        pass
    raise Refusal(f"{path / RECORD} is not the record of a sweep")


def with_params(overrides: Sequence[str], hydra: DictConfig) -> list[str]:
    """A sweep's overrides: those of `hydra.sweeper.params`, then the command line's, which win; none of Hydra's own."""
    given = {compose.parse(text).key_or_group for text in overrides}
    params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items() if key not in given]
    return [text for text in (*params, *overrides) if not compose.parse(text).key_or_group.startswith("hydra")]


def grid(texts: Sequence[str]) -> list[Point]:
    """Every combination of the values that the overrides give, composed and checked before the first one starts."""
    choices = {text: list(choices_of(text)) for text in texts}
    swept = [text for text in choices if compose.parse(text).is_sweep_override()]
    composer = Composer()
    points = []
    for combination in itertools.product(*choices.values()):
        values = {
            compose.parse(text).key_or_group: chosen.partition("=")[2]
            for text, chosen in zip(choices, combination, strict=True)
            if text in swept
        }
        points.append(composer.point(combination, values))
    return points


def choices_of(text: str) -> Iterator[str]:
    """The overrides that one override of a sweep stands for."""
    override = compose.parse(text)
    if not override.is_sweep_override():
        yield text
    elif override.is_discrete_sweep():
        key = override.get_key_element()
        yield from (f"{key}={value}" for value in override.sweep_string_iterator())
    else:
        raise Refusal(
            f"{text} is an interval, which a grid cannot run through: give values such as "
            f"{override.key_or_group}=1,2,3 or range(1,4), or search it with hydra/sweeper=optuna"
        )


class Composer:
    """Composes points that share most of their overrides: the config groups once, the values point by point."""

    def __init__(self) -> None:
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def point(self, overrides: Sequence[str], values: Mapping[str, str], name: str | None = None) -> Point:
        """The checked point of these overrides; `values` are those that set it apart."""
        for text in overrides:
            if (key := compose.parse(text).key_or_group) in _EACH_POINT:
                raise Refusal(f"{text}: a sweep sets {key} for each of its runs; hydra.sweep.dir chooses their folder")
        groups = tuple(text for text in overrides if compose.chooses_group(text))
        if groups not in self._bases:
            self._bases[groups] = compose.compose(groups)
            check_config(self._bases[groups])  # with the controls, which no point changes
        cfg = compose.vary(self._bases[groups], [text for text in overrides if text not in groups])
        check_run(cfg)
        content = json.dumps(compose.plain(cfg), sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        return Point(name or _name(values, digest), dict(values), tuple(overrides), cfg, digest)


def folder(hydra: DictConfig, experiment: str, content: Sequence[str]) -> Path:
    """The folder that `hydra.sweep.dir` names; else one named by what the sweep is, so the same sweep finds it."""
    if hydra.sweep.dir != "auto":
        return Path(hydra.sweep.dir)
    digest = hashlib.sha256("\n".join(sorted(content)).encode()).hexdigest()
    return paths.OUTPUTS / "sweeps" / experiment / digest[:8]


def _name(values: Mapping[str, str], digest: str) -> str:
    """A folder's name such as `k=4,seed=0`, readable where that is possible."""
    short = {key: key.rpartition(".")[2] for key in values}
    if len(set(short.values())) < len(short):
        short = {key: key for key in values}
    name = ",".join(f"{short[key]}={value}" for key, value in values.items()) or "run"
    safe = re.sub(r"[^\w.=,+-]", "-", name)
    return safe if safe == name and len(name) <= LONGEST_NAME else f"{safe[:LONGEST_NAME]}-{digest[:8]}"
