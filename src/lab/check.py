"""Every refusal that needs no torch: `check(cfg)` holds a composition against the signatures, then this machine.

A refusal is one line with the key, the value found, what is allowed and the nearest right name.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import annotated_types as at

from lab import compose
from lab.errors import Refusal, nearest
from lab.machine import check_machine
from lab.signature import Parameter, Signature, signature
from lab.signature.values import choices, describe, fits
from lab.types import NonEmptyStr, NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from omegaconf import DictConfig

LAB_SET = frozenset({
    "accumulate_grad_batches", "barebones", "callbacks", "check_val_every_n_epoch", "default_root_dir",
    "enable_autolog_hparams", "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "fast_dev_run",
    "gradient_clip_algorithm", "gradient_clip_val", "limit_predict_batches", "limit_test_batches",
    "limit_train_batches", "limit_val_batches", "logger", "max_epochs", "max_time", "min_epochs", "min_steps",
    "model_registry", "num_sanity_val_steps", "overfit_batches", "plugins", "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler", "val_check_interval",
})  # fmt: skip
"""Trainer parameters that the lab passes itself, so that a run resumes and splits over processes exactly."""

_TRAINER: dict[str, Any] = {
    "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
    "devices": PositiveInt | list[NonNegativeInt] | Literal["auto"],
    "num_nodes": PositiveInt,
    "strategy": Literal["auto", "ddp"],
    "precision": Literal["32-true", "64-true", "bf16-mixed", "bf16-true"],  # float16 needs a gradient scaler
    "max_steps": PositiveInt,
    "log_every_n_steps": PositiveInt,
}
"""What the lab allows of the Trainer where its own signature allows more."""

_SCALARS: dict[str, Any] = {
    "name": NonEmptyStr,
    "title": NonEmptyStr,
    "chapter": Literal[1, 2, 3, 4, 5, 6],
    "seed": Annotated[int, at.Ge(0), at.Le(2**32 - 1)],
    "threads": PositiveInt,
    "run_dir": NonEmptyStr | None,
    "id": NonEmptyStr | None,
    "data_root": str,
    "control": str | None,
    "objective": NonEmptyStr | None,
}
_NODES = ("data", "model", "trainer")
_GROUPS = ("logger", "callbacks", "claims")
_RESERVED = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
_LAB_FILLS = {"logger": {"id": "id=", "save_dir": "run_dir="}}
"""Parameters of a group's nodes that the lab passes itself, with what sets them instead."""


def check(cfg: DictConfig) -> None:
    """Refuse `cfg` where its keys, types, ranges or names are wrong, or where this machine cannot run it."""
    check_config(cfg)
    check_machine(cfg)


def check_config(cfg: DictConfig) -> None:
    """Refuse what is wrong whatever machine it runs on."""
    raw, config = compose.plain(cfg, resolve=False), compose.plain(cfg)
    _check_top_level(raw)
    for key, kind in _SCALARS.items():
        if key in config:
            _check_value(key, config[key], kind, raw[key])
    if config["name"] not in compose.experiments():
        close = nearest(config["name"], compose.experiments())
        raise Refusal(f"name={config['name']} is not the name of a file in conf/experiment{close}")
    for key in _NODES:
        _require_target(key, config[key])
    for group in _GROUPS:
        _check_group(group, config[group])
    if not config["claims"]:
        raise Refusal("claims is empty: an experiment states at least one claim")
    _check_controls(config["controls"], config["claims"])
    for name in sorted(LAB_SET & config["trainer"].keys()):
        raise Refusal(f"trainer.{name}={_shown(config['trainer'][name])} is not allowed: it is set by the lab")
    for name, kind in _TRAINER.items():
        if name in config["trainer"]:
            _check_value(f"trainer.{name}", config["trainer"][name], kind, raw["trainer"].get(name))
    for group, fills in _LAB_FILLS.items():
        for node, name in ((node, name) for node in config[group] for name in fills):
            if name in config[group][node]:
                found = _shown(config[group][node][name])
                raise Refusal(f"{group}.{node}.{name}={found} is not allowed: it is set by the lab, from {fills[name]}")
    _walk("", config, raw)


def check_node(key: str, node: DictConfig) -> None:
    """Refuse a node that stands outside the composition, such as Hydra's launcher, where its signature does."""
    raw, config = compose.plain(node, resolve=False), compose.plain(node)
    _require_target(key, config)
    _walk(key, config, raw)


def _check_top_level(raw: dict[str, Any]) -> None:
    known = compose.base_keys()
    known |= set(_interpolated(raw)) | set(_interpolated(compose.source(raw["name"])))  # an experiment's own variables
    for key in raw:
        if key not in known:
            raise Refusal(f"unknown key {key}={_shown(raw[key])}{nearest(key, known)}")
    for key in sorted(compose.base_keys() - raw.keys()):
        raise Refusal(
            f"{key} is missing from the composition{'; logger=none means no logger' if key == 'logger' else ''}"
        )


def _interpolated(node: Any) -> Iterator[str]:
    """Top-level keys that `${key…}` in any string of `node` refers to."""
    match node:
        case str():
            yield from re.findall(r"\$\{\s*([A-Za-z_]\w*)\s*(?=[.\[}])", node)
        case Mapping():
            for value in node.values():
                yield from _interpolated(value)
        case list():
            for value in node:
                yield from _interpolated(value)


def _require_target(key: str, node: Any) -> None:
    if not isinstance(node, dict) or "_target_" not in node:
        raise Refusal(f"{key}={_shown(node)} has no _target_: it must say which class to make")


def _check_group(group: str, nodes: Any) -> None:
    """Each entry of a named group is something to instantiate."""
    if not isinstance(nodes, dict):
        raise Refusal(f"{group}={_shown(nodes)} is not allowed: names with a node each")
    if "_target_" in nodes:
        raise Refusal(f"{group}._target_={nodes['_target_']} is not allowed: {group} holds names with a node each")
    for name, node in nodes.items():
        if not isinstance(node, dict) or "_target_" not in node:
            others = [f"{group}.{n}" for n, other in nodes.items() if isinstance(other, dict) and "_target_" in other]
            raise Refusal(f"{group}.{name}={_shown(node)} has no _target_{nearest(f'{group}.{name}', others)}")


def _check_controls(controls: Any, claims: dict[str, Any]) -> None:
    """A control says what to change, which claims that must refute, and why."""
    if not isinstance(controls, dict):
        raise Refusal(f"controls={_shown(controls)} is not allowed: names with overrides, refutes and because each")
    fields = {"overrides": list[str], "refutes": Annotated[list[str], at.MinLen(1)], "because": NonEmptyStr}
    for name, control in controls.items():
        key = f"controls.{name}"
        if not isinstance(control, dict):
            raise Refusal(f"{key}={_shown(control)} is not allowed: overrides, refutes and because")
        for unknown in control.keys() - fields:
            raise Refusal(f"unknown key {key}.{unknown}{nearest(unknown, fields)}; allowed: {', '.join(fields)}")
        for missing in fields.keys() - control:
            raise Refusal(f"{key}.{missing} is missing; a control has {', '.join(fields)}")
        for field, kind in fields.items():
            _check_value(f"{key}.{field}", control[field], kind)
        for claim in control["refutes"]:
            if claim not in claims:
                raise Refusal(f"{key}.refutes names {claim}, allowed: {', '.join(claims)}{nearest(claim, claims)}")


def _walk(key: str, node: Any, raw: Any) -> None:
    """Hold every node with a `_target_` below `key` against its signature; `raw` is `node` before interpolation."""
    match node:
        case dict():
            for name in node:
                if re.fullmatch(r"_\w*_", str(name)) and name not in _RESERVED:
                    raise Refusal(f"unknown key {_join(key, name)}={_shown(node[name])}{nearest(name, _RESERVED)}")
            if "_target_" in node:
                _check_node(key, node, raw if isinstance(raw, dict) else {})
            for name, child in node.items():
                _walk(_join(key, str(name)), child, raw.get(name) if isinstance(raw, dict) else None)
        case list():
            for position, child in enumerate(node):
                _walk(f"{key}[{position}]", child, raw[position] if isinstance(raw, list) else None)


def _check_node(key: str, node: dict[str, Any], raw: dict[str, Any]) -> None:
    target = node["_target_"]
    if not isinstance(target, str):
        raise Refusal(f"{key}._target_={_shown(target)} is not allowed: a dotted name")
    try:
        found = signature(target)
    except Refusal as refusal:
        raise Refusal(f"{key}.{refusal}") from None
    given = {name: value for name, value in node.items() if name not in _RESERVED}
    _check_reserved(key, node)
    positional = list(found.parameters)[: len(node.get("_args_") or [])]
    for name, value in given.items():
        if name not in found.parameters:
            if found.open:
                continue
            _refuse_unknown(key, node, name, found)
        if name in positional:
            raise Refusal(f"{_join(key, name)}={_shown(value)} is also given by {key}._args_")
        _check_value(_join(key, name), value, found.parameters[name].annotation, raw.get(name))
    if not node.get("_partial_"):
        filled = _LAB_FILLS.get(key.partition(".")[0], {})
        for name, parameter in found.parameters.items():
            if parameter.required and name not in given and name not in positional and name not in filled:
                raise Refusal(f"{_join(key, name)} is missing: {target} needs {_described(parameter)}")
    _check_guards(key, given, found)


def _refuse_unknown(key: str, node: dict[str, Any], name: str, found: Signature) -> typing.NoReturn:
    allowed = [n for n in found.parameters if not (key == "trainer" and n in LAB_SET)]
    short = node["_target_"].rpartition(".")[2]
    takes = f"{short} takes {', '.join(allowed)}" if allowed else f"{short} takes no parameters"
    close = nearest(_join(key, name), [_join(key, n) for n in allowed]) if nearest(name, allowed) else ""
    raise Refusal(f"unknown key {_join(key, name)}={_shown(node[name])}{close}; {takes}")


def _check_reserved(key: str, node: dict[str, Any]) -> None:
    kinds = {
        "_partial_": bool,
        "_recursive_": bool,
        "_args_": list,
        "_convert_": Literal["none", "partial", "object", "all"],
    }
    for name, kind in kinds.items():
        if name in node:
            _check_value(_join(key, name), node[name], kind)


def _check_guards(key: str, given: dict[str, Any], found: Signature) -> None:
    """What the constructor itself would refuse."""
    values = {name: p.default for name, p in found.parameters.items() if not p.required} | given
    for guard in found.guards:
        named = sorted((name for name in given if name in guard.names), key=guard.condition.index)
        if named and guard.names <= values.keys() and (why := " ".join(guard.refuses(values).split())):
            if why.startswith(f"{named[0]}="):
                raise Refusal(f"{key}.{why}")
            raise Refusal(", ".join(f"{_join(key, name)}={_shown(given[name])}" for name in named) + f": {why}")


def _check_value(key: str, value: Any, annotation: Any, raw: Any = None) -> None:
    """Refuse a plain value that its annotation does not allow; nodes are held against their own signature instead."""
    if annotation is Any or _has_node(value) or fits(value, annotation):
        return
    origin = f" (it is {raw})" if isinstance(raw, str) and "${" in raw else ""
    close = nearest(value, [str(choice) for choice in choices(annotation)]) if isinstance(value, str) else ""
    raise Refusal(f"{key}={_shown(value)}{origin} is not allowed: {describe(annotation)}{close}")


def _has_node(value: Any) -> bool:
    match value:
        case dict():
            return "_target_" in value or any(_has_node(child) for child in value.values())
        case list():
            return any(_has_node(child) for child in value)
    return False


def _described(parameter: Parameter) -> str:
    return parameter.name if parameter.annotation is Any else f"{parameter.name}, {describe(parameter.annotation)}"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _shown(value: Any) -> str:
    """A value as one would write it on the command line, cut to a length that leaves the line readable."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
