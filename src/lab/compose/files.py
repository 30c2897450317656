"""The files below conf/: which experiments and config groups there are, and what an experiment's own files say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lab import paths
from lab.errors import Refusal, nearest


def experiments() -> list[str]:
    """The names of all experiments."""
    return sorted(path.stem for path in (paths.CONF / "experiment").glob("*.yaml"))


def lineage(name: str, above: tuple[str, ...] = ()) -> tuple[str, ...]:
    """An experiment and those it composes on top of, nearest first.

    Args:
        above: what is composed on top of it.
    """
    path = paths.CONF / "experiment" / f"{name}.yaml"
    if name in above:
        raise Refusal(f"{relative(path)} builds on itself: {' → '.join((*above, name))}")
    defaults = (read(path).get("defaults") or []) if path.is_file() else []
    bases = [entry.rpartition("/")[2] for entry in defaults if isinstance(entry, str) and entry != "_self_"]
    return (name, *(ancestor for base in reversed(bases) for ancestor in lineage(base, (*above, name))))


def check_files(experiment: str) -> None:
    """Refuse an experiment's own files, and those it builds on, where Hydra would read them as something else."""
    for name in lineage(experiment):
        path = paths.CONF / "experiment" / f"{name}.yaml"
        said = read(path)
        if not said:
            raise Refusal(f"{relative(path)} is empty: an experiment says name, title, chapter, data, model and claims")
        header = path.read_text(encoding="utf-8").splitlines()
        if not any(re.fullmatch(r"#\s*@package\s+_global_\s*", line) for line in header):
            raise Refusal(
                f"{relative(path)} must begin with the line '# @package _global_': its keys are the run's own"
            )
        for entry in said.get("defaults") or []:
            _check_default(relative(path), entry)


def _check_default(file: str, entry: Any) -> None:
    """Refuse an entry of a defaults list that is neither an experiment to build on nor a choice in a group."""
    if isinstance(entry, str) and not entry.startswith(("/", "override ")):
        return
    if not isinstance(entry, dict) or len(entry) != 1:
        raise Refusal(f"{file}: {entry} is no entry of defaults; write '- override /<group>: <name>'")
    group = str(next(iter(entry))).removeprefix("override ").partition("@")[0].strip().removeprefix("/")
    if group not in groups() and not group.startswith("hydra/"):
        close = nearest(group, groups())
        raise Refusal(f"{file}: defaults choose in {group}, no group; allowed: {', '.join(groups())}{close}")


def source(name: str) -> dict[str, Any]:
    """What an experiment's own file says, on top of the experiments it builds on: read, not composed."""
    merged = _merged(name)
    merged.pop("defaults", None)
    for group, taken in taken_out(name):
        merged[group] = {key: node for key, node in merged[group].items() if key != taken}
    return merged


def _merged(name: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for ancestor in reversed(lineage(name)):
        path = paths.CONF / "experiment" / f"{ancestor}.yaml"
        merged = _merge(merged, read(path) if path.is_file() else {})
    return merged


def taken_out(name: str) -> Iterator[tuple[str, str]]:
    """(group, key) of the claims, controls and pictures that a variant has from its base and sets to null."""
    merged = _merged(name)
    for group in ("claims", "controls", "pictures"):
        nodes = merged.get(group)
        yield from ((group, key) for key, node in (nodes if isinstance(nodes, dict) else {}).items() if node is None)


def base_keys() -> set[str]:
    """The top-level keys that every composition has: those of conf/config.yaml."""
    config = read(paths.CONF / "config.yaml")
    chosen = {
        key.split("@")[0]
        for entry in config.pop("defaults", [])
        if isinstance(entry, dict)
        for key in entry
        if not key.startswith(("override ", "optional "))
    }
    return (set(config) | chosen) - {"hydra", "experiment"}


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in over.items():
        old = both.get(key)
        both[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


@cache
def _text(path: Path) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except yaml.YAMLError as error:
        raise Refusal(yaml_refusal(error, path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{relative(path)} cannot be read: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """What a configuration file says; a Refusal where it says no mapping."""
    content = _text(path)
    if content is not None and not isinstance(content, dict):
        raise Refusal(f"{relative(path)} must be a mapping of keys to values")
    return dict(content or {})


def yaml_refusal(error: Any, path: Path | None = None) -> str:
    """One line for what the YAML reader says of a file, which its error may name itself."""
    mark = getattr(error, "problem_mark", None)
    place = relative(path or Path(str(getattr(mark, "name", "a configuration file"))))
    line = f" line {mark.line + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{place}{line} is not YAML: {problem}"


def relative(path: Path) -> str:
    """A configuration file as the user knows it: conf/…"""
    try:
        return str(Path(paths.CONF.name) / path.absolute().relative_to(paths.CONF.absolute()))
    except ValueError:
        return str(path)


def is_group(key: str) -> bool:
    """Whether a key names a config group, so that its value chooses a file."""
    return "." not in key and (paths.CONF / key).is_dir()


def groups() -> list[str]:
    """The names of all config groups."""
    folders = (path.relative_to(paths.CONF) for path in paths.CONF.rglob("*") if path.is_dir())
    return sorted(str(folder) for folder in folders if not folder.name.startswith((".", "_")))


def options(group: str) -> list[str]:
    """The names of the files in a config group."""
    return sorted(path.stem for path in (paths.CONF / group).glob("*.yaml"))


def has_option(group: str, value: str) -> bool:
    """Whether a config group has a file of this name."""
    return (paths.CONF / group / f"{value.removesuffix('.yaml')}.yaml").is_file()
