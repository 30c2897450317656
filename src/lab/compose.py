"""From the command line's `key=value` to one composed configuration, with every mistake said in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import paths
from lab.errors import Refusal, nearest, nearest_key

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


FOLDERS = ("run_dir", "hydra.sweep.dir")
"""Keys whose value is taken as it is written."""


def compose(overrides: Sequence[str]) -> DictConfig:
    """The composition of `experiment=… key=value …`, interpolations unresolved; a Refusal where it cannot be made."""
    return compose_with_hydra(overrides)[0]


def compose_with_hydra(overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """(the composition, Hydra's own part of it: launcher, sweeper, …)"""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    rewritten = rewrite(overrides)
    for override in map(parse, rewritten):
        if override.key_or_group == "experiment" and not override.is_delete():
            for name in _values(override):
                _check_files(str(name).removesuffix(".yaml"))
    GlobalHydra.instance().clear()
    with refusals(), initialize_config_dir(str(paths.CONF.absolute()), job_name="lab", version_base="1.3"):
        cfg = hydra_compose("config", rewritten, return_hydra_config=True)
    hydra = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
        for group, name in _taken_out(hydra.runtime.choices["experiment"]):
            if name in cfg[group] and cfg[group]._get_node(name)._is_none():
                del cfg[group][name]
    require_name(cfg, hydra.runtime.choices["experiment"])
    return cfg, hydra


def vary(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A copy of a composition with further `key=value` overrides, as composing with them would give.

    Composing again takes 25 times as long. Not for overrides that choose a config group: `chooses_group`.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import flag_override

    varied = deepcopy(cfg)
    with refusals(), flag_override(varied, "struct", True):
        rewritten = [parse(_rewrite(text, parse(text))) for text in overrides]
        ConfigLoaderImpl._apply_overrides_to_config(rewritten, varied)
    return varied


def chooses_group(text: str) -> bool:
    """Whether an override changes which files are composed, not only what stands in them."""
    key = parse(text).key_or_group
    return _is_group(key) or key == "hydra" or key.startswith(("hydra.", "hydra/"))


def require_name(cfg: DictConfig, experiment: str) -> None:
    """Refuse a composition whose `name` is not that of its experiment file."""
    name = cfg._get_node("name")
    if name is None or name._value() != experiment:
        found = "missing" if name is None else name._value()
        raise Refusal(f"name={found} must equal the name of its file, conf/experiment/{experiment}.yaml")


def rewrite(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra takes them: `key=value` becomes `++key=value` unless `key` is a config group.

    So a parameter that is in a signature but not in any YAML file can be set without knowing that; `lab.check` refuses
    those that are in no signature. Refuses what is no override, and options that do not exist.
    """
    parsed = [parse(text) for text in overrides]
    chosen = [o.input_line for o in parsed if o.key_or_group == "experiment" and not o.is_delete()]
    if not chosen:
        raise Refusal(f"no experiment: say experiment=<name>; allowed: {', '.join(experiments())}")
    if len(chosen) > 1:
        raise Refusal(f"{chosen[1]} is not allowed: {chosen[0]} chose an experiment already; a run has one")
    return [_rewrite(text, override) for text, override in zip(overrides, parsed, strict=True)]


def changed(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A composition under more overrides. It is composed again only where they choose other files."""
    if any(map(chooses_group, overrides)):
        return compose([f"experiment={cfg.name}", *overrides])
    return vary(cfg, overrides)


def plain(cfg: DictConfig, *, resolve: bool = True, complete: bool = True) -> dict[str, Any]:
    """`cfg` as plain dictionaries and lists; a missing value or a broken interpolation is a Refusal naming its key.

    Args:
        complete: False leaves `???` where a value is missing.
    """
    from omegaconf import OmegaConf

    with refusals():
        return OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=complete)  # type: ignore[return-value]


def require(cfg: DictConfig, keys: Iterable[str]) -> None:
    """Refuse where one of these keys is missing or refers to something that is."""
    with refusals():
        for key in keys:
            cfg[key]


# --------------------------------------------------------------------------------------------------------- experiments


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
        raise Refusal(f"{_relative(path)} builds on itself: {' → '.join((*above, name))}")
    defaults = (read(path).get("defaults") or []) if path.is_file() else []
    bases = [entry.rpartition("/")[2] for entry in defaults if isinstance(entry, str) and entry != "_self_"]
    return (name, *(ancestor for base in reversed(bases) for ancestor in lineage(base, (*above, name))))


def _check_files(experiment: str) -> None:
    """Refuse an experiment's own files, and those it builds on, where Hydra would read them as something else."""
    for name in lineage(experiment):
        path = paths.CONF / "experiment" / f"{name}.yaml"
        said = read(path)
        if not said:
            raise Refusal(
                f"{_relative(path)} is empty: an experiment says name, title, chapter, data, model and claims"
            )
        header = path.read_text(encoding="utf-8").splitlines()
        if not any(re.fullmatch(r"#\s*@package\s+_global_\s*", line) for line in header):
            raise Refusal(
                f"{_relative(path)} must begin with the line '# @package _global_': its keys are the run's own"
            )
        for entry in said.get("defaults") or []:
            _check_default(_relative(path), entry)


def _check_default(file: str, entry: Any) -> None:
    """Refuse an entry of a defaults list that is neither an experiment to build on nor a choice in a group."""
    if isinstance(entry, str) and not entry.startswith(("/", "override ")):
        return
    if not isinstance(entry, dict) or len(entry) != 1:
        raise Refusal(f"{file}: {entry} is no entry of defaults; write '- override /<group>: <name>'")
    group = str(next(iter(entry))).removeprefix("override ").partition("@")[0].strip().removeprefix("/")
    if group not in _groups() and not group.startswith("hydra/"):
        close = nearest(group, _groups())
        raise Refusal(f"{file}: defaults choose in {group}, no group; allowed: {', '.join(_groups())}{close}")


def source(name: str) -> dict[str, Any]:
    """What an experiment's own file says, on top of the experiments it builds on: read, not composed."""
    merged = _merged(name)
    merged.pop("defaults", None)
    for group, taken in _taken_out(name):
        merged[group] = {key: node for key, node in merged[group].items() if key != taken}
    return merged


def _merged(name: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for ancestor in reversed(lineage(name)):
        path = paths.CONF / "experiment" / f"{ancestor}.yaml"
        merged = _merge(merged, read(path) if path.is_file() else {})
    return merged


def _taken_out(name: str) -> Iterator[tuple[str, str]]:
    """(group, key) of the claims, controls and pictures that a variant has from its base and sets to null."""
    merged = _merged(name)
    for group in ("claims", "controls", "pictures"):
        nodes = merged.get(group)
        yield from ((group, key) for key, node in (nodes if isinstance(nodes, dict) else {}).items() if node is None)


def base_keys() -> set[str]:
    """The top-level keys that every composition has: those of conf/config.yaml."""
    config = read(paths.CONF / "config.yaml")
    groups = {
        key.split("@")[0]
        for entry in config.pop("defaults", [])
        if isinstance(entry, dict)
        for key in entry
        if not key.startswith(("override ", "optional "))
    }
    return (set(config) | groups) - {"hydra", "experiment"}


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
        raise Refusal(_yaml_refusal(error, path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{_relative(path)} cannot be read: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """What a configuration file says; a Refusal where it says no mapping."""
    content = _text(path)
    if content is not None and not isinstance(content, dict):
        raise Refusal(f"{_relative(path)} must be a mapping of keys to values")
    return dict(content or {})


def _yaml_refusal(error: Any, path: Path | None = None) -> str:
    mark = getattr(error, "problem_mark", None)
    place = _relative(path or Path(str(getattr(mark, "name", "a configuration file"))))
    line = f" line {mark.line + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{place}{line} is not YAML: {problem}"


def _relative(path: Path) -> str:
    """A configuration file as the user knows it: conf/…"""
    try:
        return str(Path(paths.CONF.name) / path.absolute().relative_to(paths.CONF.absolute()))
    except ValueError:
        return str(path)


# ----------------------------------------------------------------------------------------------------------- overrides


def parse(text: str) -> Override:
    """One override as Hydra reads it; a Refusal where it is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if text.startswith("-"):
        raise Refusal(f"{text} is not a flag of the lab or of Hydra: see lab --help")
    if "=" not in text and not text.startswith("~"):
        close = nearest(f"experiment={text}", [f"experiment={name}" for name in experiments()])
        raise Refusal(f"{text} is not an override: write key=value{close if nearest(text, experiments()) else ''}")
    if text.startswith("="):
        raise Refusal(f"{text} is not an override: write key=value, without a space before '='")
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        problem = str(error).partition(" expecting {")[0]
        close = nearest_key(text.partition("=")[0].lstrip("+~"), base_keys())
        raise Refusal(f"{text} is not an override Hydra can read: {' '.join(problem.split())}{close}") from None


def verbatim(text: str) -> str:
    """An override, quoted for Hydra where it names a folder in a way that Hydra would not read as that name.

    A sweep's runs lie in folders such as `k=4,seed=0`. What is quoted or escaped already, and `null`, stays.
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    key, _, value = text.partition("=")
    if key.lstrip("+") not in FOLDERS or not value or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return text
    try:
        read = parse(text).value()
    except Refusal:
        read = False
    if read is None or (isinstance(read, str) and (read == value or "\\" in value)):
        return text
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _rewrite(text: str, override: Override) -> str:
    from hydra.core.override_parser.types import OverrideType

    key = override.key_or_group
    if override.is_sweep_override():
        alternative = f", {key}=[{text.partition('=')[2]}] is a list" if "." in key else ""
        raise Refusal(f"{text} has several values: -m runs each of them{alternative}")
    if override.value() == {} and not override.is_delete():
        raise Refusal(f"{text} changes nothing, since mappings are merged; ~{key}.<name> takes out one of its entries")
    is_group = _is_group(key)
    if is_group and not override.is_delete():
        _check_option(key, override)
    if "/" in key and not is_group and not key.startswith("hydra/"):
        raise Refusal(
            f"{text}: there is no config group {key}{nearest(key, _groups())}; allowed: {', '.join(_groups())}"
        )
    hydra = key == "hydra" or (
        key.startswith(("hydra.", "hydra/")) and not key.startswith(("hydra.launcher.", "hydra.sweeper."))
    )
    if is_group or hydra or override.package is not None or override.type != OverrideType.CHANGE:
        return text
    return f"++{text}"


def _is_group(key: str) -> bool:
    return "." not in key and (paths.CONF / key).is_dir()


def _groups() -> list[str]:
    folders = (path.relative_to(paths.CONF) for path in paths.CONF.rglob("*") if path.is_dir())
    return sorted(str(folder) for folder in folders if not folder.name.startswith((".", "_")))


def options(group: str) -> list[str]:
    """The names of the files in a config group."""
    return sorted(path.stem for path in (paths.CONF / group).glob("*.yaml"))


def _check_option(group: str, override: Override) -> None:
    """Refuse several options, or one without a file, before Hydra merges the ones or says the other on many lines."""
    allowed = options(group)
    if not override.is_discrete_sweep() and isinstance(override.value(), list):
        raise Refusal(f"{override.input_line} is not allowed: a run has one {group}; allowed: {', '.join(allowed)}")
    for value in _values(override):
        if isinstance(value, bool | int | float) or (isinstance(value, str) and not _has_option(group, value)):
            raise Refusal(
                f"{group}={value} does not exist; allowed: {', '.join(allowed)}{nearest(str(value), allowed)}"
            )
        if value is None and group in ("experiment", "data", "model", "trainer", "logger", "callbacks"):
            raise Refusal(f"{group}=null is not allowed; allowed: {', '.join(allowed)}")


def _values(override: Override) -> Iterator[Any]:
    if override.is_discrete_sweep():
        yield from override.sweep_iterator()
        return
    value = override.value()
    yield from value if isinstance(value, list) else [value]


def _has_option(group: str, value: str) -> bool:
    return (paths.CONF / group / f"{value.removesuffix('.yaml')}.yaml").is_file()


# ------------------------------------------------------------------------------------------------------------ refusals


@contextmanager
def refusals() -> Iterator[None]:
    """Turns what Hydra, OmegaConf and the YAML reader raise into a Refusal of one line."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        if line := _line(error):
            raise Refusal(line) from None
        raise


def _line(error: BaseException) -> str:
    """One line for an error of the composition; "" for an error that is none."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import (
        InterpolationKeyError,
        InterpolationToMissingValueError,
        MissingMandatoryValue,
        OmegaConfBaseException,
    )
    from yaml import YAMLError

    if isinstance(error, YAMLError):
        return _yaml_refusal(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        allowed = list(error.options or options(group))
        return f"{group}={option} does not exist; allowed: {', '.join(allowed)}{nearest(option, allowed)}"
    cause = error.__cause__
    if undone := re.match(r"Could not delete from config. '([^']+)' does not exist", str(error)):
        known = sorted(base_keys())
        close = nearest(undone[1], known)
        return f"~{undone[1]}: there is no such key to take out; at the top there are {', '.join(known)}{close}"
    if unchosen := re.match(r"You must specify '([^']+)'", str(error)):
        group = unchosen[1]
        return (
            f"{group}=??? is missing: the defaults of the experiment choose one with '- override /{group}: <name>'; "
            f"allowed: {', '.join(options(group))}"
        )
    if isinstance(error, UnicodeDecodeError):
        return f"{_relative(_undecodable())} is not UTF-8 text: {error.reason} at byte {error.start}"
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException | YAMLError):
        return _line(cause) or _flat(error)
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        said = str(error).partition("Missing mandatory value: ")[2].split()
        return f"{said[0] if said else error.full_key}=??? is missing: the experiment or the command line must set it"
    if isinstance(error, InterpolationKeyError):
        return _dangling(error)
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {_flat(error)}" if error.full_key else _flat(error)
    return _flat(error) if isinstance(error, HydraException) else ""


def _undecodable() -> Path:
    """The first configuration file that is not UTF-8: the decoder's own error does not name it."""
    for path in sorted(paths.CONF.rglob("*.yaml")):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return path
    return paths.CONF


def _flat(error: BaseException) -> str:
    """The message without OmegaConf's indented appendix, on one line."""
    lines = [
        line for line in str(error).splitlines() if not re.match(r"\s+(full_key|object_type|reference_type)", line)
    ]
    return " ".join(" ".join(lines).split())


def _dangling(error: Any) -> str:
    """What refers to a key that is not there, with the nearest that is."""
    from omegaconf import OmegaConf

    wanted = re.search(r"'([^']+)' not found", str(error))
    root = error.parent_node._get_root() if error.parent_node is not None else None
    if wanted is None or root is None:
        return f"{error.full_key}: {_flat(error)}"
    keys = list(_keys(OmegaConf.to_container(root, resolve=False)))
    return f"{error.full_key} refers to {wanted[1]}, which is not there{nearest(wanted[1], keys)}"


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested mappings."""
    for name, child in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{name}"
        yield from _keys(child, f"{prefix}{name}.")
