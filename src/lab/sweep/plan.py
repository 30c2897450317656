"""What a sweep is: its points, each a run of its own, and the folder they lie in. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lab import compose, paths
from lab.check import check_config, check_run
from lab.compose.files import options
from lab.compose.overrides import chooses_group, parse
from lab.compose.refusals import refusals
from lab.errors import Refusal
from lab.machine import check_output
from lab.rundir import RunDir, write_atomically

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

RECORD = "sweep.json"
LONGEST_NAME = 120
CONFIG = "config"
"""Of what a search is, the digest of what all its trials share."""
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
    search: Mapping[str, str] | None = None
    """What a search is, by which its study is known again; None for a grid."""
    points: list[Point] = field(default_factory=list)

    def folder(self, point: Point) -> Path:
        return self.path / point.name

    def place(self, point: Point) -> None:
        """Tell the point where its run directory is."""
        OmegaConf.update(point.cfg, "run_dir", str(self.folder(point)))

    def add(self, points: Sequence[Point]) -> None:
        """Take points in and write them down.

        Refuses a folder that holds another point under the same name, another search, or a search instead of a grid. A
        verdict that cannot be read is set aside, so that its run counts as not finished and is judged again.
        """
        record = read_record(self.path) if (self.path / RECORD).exists() else None
        if record:
            self._refuse_other_search(record.get("search"))
        known = {entry["name"]: entry for entry in record["points"]} if record else {}
        for point in points:
            there = known.get(point.name)
            if there is not None and there["digest"] != point.digest and there["digest"] not in _elsewhere(point.cfg):
                raise Refusal(
                    f"hydra.sweep.dir={self.path} holds another sweep: its {point.name} has another config; choose "
                    "another folder, or remove this one"
                )
            known[point.name] = {"name": point.name, "values": point.values, "digest": point.digest}
            if "wandb" in point.cfg.logger and point.cfg.logger.wandb.get("group") is None:
                OmegaConf.update(point.cfg, "logger.wandb.group", f"sweep-{self.path.name}", force_add=True)
            self.place(point)
            _set_aside_unreadable(RunDir(self.folder(point)))
        self.points += points
        self.path.mkdir(parents=True, exist_ok=True)
        content = {
            "experiment": self.experiment,
            "overrides": list(self.overrides),
            "objective": self.objective,
            "search": None if self.search is None else dict(self.search),
            "points": list(known.values()),
        }
        write_atomically(self.path / RECORD, json.dumps(content, indent=1) + "\n")

    def _refuse_other_search(self, there: Mapping[str, str] | None) -> None:
        """Refuse to go on with results that another search, or a grid, would have had otherwise."""
        here = self.search
        if there is None and here is None:
            return
        way_out = "choose another folder, or remove this one"
        if there is None or here is None:
            kinds = ["a grid" if side is None else "a search" for side in (there, here)]
            raise Refusal(f"hydra.sweep.dir={self.path} holds {kinds[0]} and this is {kinds[1]}; {way_out}")
        if key := next((key for key in {**here, **there} if there.get(key) != here.get(key)), None):
            sides = f"{there.get(key, 'not searched')} there and {here.get(key, 'not searched')} here"
            said = "the config of its trials is another" if key == CONFIG else f"{key} is {sides}"
            raise Refusal(f"hydra.sweep.dir={self.path} holds another search: {said}; {way_out}")


def _set_aside_unreadable(run: RunDir) -> None:
    if not run.finished or run.has_whole_verdict:
        return
    names = (f"{run.verdict.name}.damaged{number or ''}" for number in itertools.count())
    aside = next(path for name in names if not (path := run.path / name).exists())
    run.verdict.rename(aside)
    print(f"lab: {run.verdict} is not whole: kept as {aside.name}, and the run is judged again", file=sys.stderr)


def read_record(path: Path) -> dict[str, Any]:
    """What `sweep.json` of a sweep's folder says; a Refusal where it says nothing, or names what is no folder in it."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"{path} holds no sweep: it has no {RECORD}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Refusal(f"{path / RECORD} is not the record of a sweep: {' '.join(str(error).split())}") from None
    match record:
        case {"experiment": str(), "overrides": [*texts], "objective": str() | None, "points": [*entries]}:
            wrong = "" if all(isinstance(text, str) for text in texts) else "its overrides are no texts"
            wrong = wrong or next(filter(None, map(_wrong, entries)), "")
            if not wrong and not isinstance(record.get("search"), dict | None):
                wrong = "its search is no mapping"
        case _:
            wrong = "it needs experiment, overrides, objective and points"
    if wrong:
        raise Refusal(f"{path / RECORD} is not the record of a sweep: {wrong}")
    return dict(record)


def _wrong(entry: Any) -> str:
    """Why this is not a point of a record; "" where it is."""
    match entry:
        case {"name": str(name), "values": dict(values), "digest": str()}:
            if not name or name in (".", "..") or "/" in name or "\0" in name:
                return f"{name!r} is no name of a folder"
            return "" if all(isinstance(value, str) for value in values.values()) else f"the values of {name!r}"
    return f"{str(entry)[:60]!r} is no point with a name, values and a digest"


def with_params(overrides: Sequence[str], hydra: DictConfig) -> list[str]:
    """A sweep's overrides: those of `hydra.sweeper.params`, then the command line's, which win; none of Hydra's own."""
    given = {parse(text).key_or_group for text in overrides}
    params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items() if key not in given]
    return [text for text in (*params, *overrides) if not parse(text).key_or_group.startswith("hydra")]


def grid(texts: Sequence[str]) -> list[Point]:
    """Every combination of the values that the overrides give, composed and checked before the first one starts."""
    require_one_each(texts)
    texts = list(dict.fromkeys(reversed(texts)))[::-1]  # of the same text given twice the last counts, as elsewhere
    choices = {text: list(choices_of(text)) for text in texts}
    swept = [text for text in choices if parse(text).is_sweep_override()]
    composer = Composer()
    points: dict[str, Point] = {}
    for combination in itertools.product(*choices.values()):
        values = {
            parse(text).key_or_group: chosen.partition("=")[2]
            for text, chosen in zip(choices, combination, strict=True)
            if text in swept
        }
        point = composer.point(combination, values)
        if (same := points.setdefault(point.digest, point)) is not point:
            both = _said(same.values) + (f" and {_said(values)}" if same.values != values else "")
            raise Refusal(f"{' '.join(swept)} gives one run twice: {both}")
    return list(points.values())


def require_one_each(texts: Iterable[str]) -> None:
    """Refuse a key that is given twice where one of the two sweeps: Hydra takes the last, whatever the first says."""
    given: dict[str, str] = {}
    for text in texts:
        override = parse(text)
        before = given.get(override.key_or_group)
        if before and (override.is_sweep_override() or parse(before).is_sweep_override()):
            raise Refusal(f"{override.key_or_group} is given twice: {before} and {text}; a sweep takes one of them")
        given[override.key_or_group] = text


def _said(values: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items())


def choices_of(text: str) -> Iterator[str]:
    """The overrides that one override of a sweep stands for."""
    override = parse(text)
    if not override.is_sweep_override():
        yield text
    elif override.is_discrete_sweep():
        key = override.get_key_element()
        choices = [f"{key}={value}" for value in _values(text, override)]
        if not choices:
            raise Refusal(f"{text} has no value to run")
        yield from choices
    else:
        raise Refusal(
            f"{text} is an interval, which a grid cannot run through: give values such as "
            f"{override.key_or_group}=1,2,3 or range(1,4), or search it with hydra/sweeper=optuna"
        )


def _values(text: str, override: Override) -> Iterator[str]:
    from hydra.core.override_parser.types import Glob, RangeSweep

    value, key = override.value(), override.key_or_group
    if isinstance(value, RangeSweep) and value.step == 0:
        raise Refusal(f"{text} is not allowed: a range whose step is 0 has no end")
    if not isinstance(value, Glob):
        return override.sweep_string_iterator()
    if not chooses_group(text):
        raise Refusal(f"{text} is not allowed: glob chooses among the files of a config group, and {key} is none")
    return iter(value.filter(options(key)))


class Composer:
    """Composes points that share most of their overrides: the config groups once, the values point by point."""

    def __init__(self) -> None:
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def point(self, overrides: Sequence[str], values: Mapping[str, str], name: str | None = None) -> Point:
        """The checked point of these overrides; `values` are those that set it apart."""
        for text in overrides:
            if (key := parse(text).key_or_group) in _EACH_POINT:
                raise Refusal(f"{text}: a sweep sets {key} for each of its runs; hydra.sweep.dir chooses their folder")
        groups = tuple(text for text in overrides if chooses_group(text))
        if groups not in self._bases:
            self._bases[groups] = compose.compose(groups)
            check_config(self._bases[groups])  # with the controls, which no point changes
        cfg = compose.vary(self._bases[groups], [text for text in overrides if text not in groups])
        check_run(cfg)
        digest = _digest(compose.plain(cfg))
        return Point(name or _name(values, digest), dict(values), tuple(overrides), cfg, digest)


def shared_digest(cfg: DictConfig) -> str:
    """What a point is, whichever accelerator it runs on."""
    return next(_elsewhere(cfg))


def _digest(content: Mapping[str, Any]) -> str:
    """What a run is: all but by which number it is compared with others, which is read when it has ended."""
    content = {key: value for key, value in content.items() if key != "objective"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _elsewhere(cfg: DictConfig) -> Iterator[str]:
    """The digests that the same point has where `trainer.accelerator` is another: whether it is, each run says."""
    content = compose.plain(cfg) | {"run_dir": None}
    trainer = {key: value for key, value in content["trainer"].items() if key != "accelerator"}
    yield _digest(content | {"trainer": trainer})
    for kind in ("auto", "cpu", "gpu", "cuda", "mps"):
        yield _digest(content | {"trainer": trainer | {"accelerator": kind}})


def folder(hydra: DictConfig, experiment: str, content: Sequence[str]) -> Path:
    """The folder that `hydra.sweep.dir` names; else one named by what the sweep is, so the same sweep finds it.

    Refuses one that cannot be made and written.
    """
    with refusals():
        named = hydra.sweep.dir
    if not isinstance(named, str | int | float) or named == "":
        raise Refusal(f"hydra.sweep.dir={named} is not allowed: a folder, or auto")
    if named != "auto":
        check_output(f"hydra.sweep.dir={named}", str(named))
        return Path(str(named))
    digest = hashlib.sha256("\n".join(sorted(content)).encode()).hexdigest()
    path = paths.OUTPUTS / "sweeps" / experiment / digest[:8]
    check_output("hydra.sweep.dir=auto (outputs/sweeps/<experiment>/<digest>)", path)
    return path


def _name(values: Mapping[str, str], digest: str) -> str:
    """A folder's name such as `k=4,seed=0`, readable where that is possible."""
    short = {key: key.rpartition(".")[2] for key in values}
    if len(set(short.values())) < len(short):
        short = {key: key for key in values}
    name = ",".join(f"{short[key]}={value}" for key, value in values.items()) or "run"
    safe = re.sub(r"[^\w.=,+-]", "-", name)
    return safe if safe == name and len(name) <= LONGEST_NAME else f"{safe[:LONGEST_NAME]}-{digest[:8]}"
