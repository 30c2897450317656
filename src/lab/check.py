"""Every refusal that needs no torch: `check(cfg)` holds a composition against the signatures, then this machine.

A refusal is one line with the key, the value found, what is allowed and the nearest right name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import annotated_types as at

from lab import compose, paths
from lab.binding import (
    FILLED,
    INSTEAD,
    LAB_SET,
    check_group,
    check_nulls,
    check_parts,
    check_value,
    keys,
    shown,
    walk,
)
from lab.compose.files import base_keys, experiments, read, source
from lab.errors import Refusal, UnknownKey, nearest, nearest_key
from lab.machine import check_machine
from lab.rundir import FIGURE
from lab.signature.checks import Part
from lab.types import NonEmptyStr, PositiveInt

if TYPE_CHECKING:
    from omegaconf import DictConfig

_SCALARS: dict[str, Any] = {
    "name": NonEmptyStr,
    "title": NonEmptyStr,
    "chapter": Literal[1, 2, 3, 4, 5, 6],
    "seed": Annotated[int, at.Ge(0), at.Le(2**32 - 1)],
    "threads": PositiveInt,
    "run_dir": NonEmptyStr | None,
    "id": NonEmptyStr | None,
    "data_root": NonEmptyStr,
    "control": str | None,
    "objective": NonEmptyStr | None,
}
_NODES = ("data", "model", "trainer")
_GROUPS = ("logger", "callbacks", "claims", "pictures")
_SAVES = "lab.callbacks.checkpoints.Checkpoints"


def check(cfg: DictConfig) -> None:
    """Refuse `cfg` where its keys, types, ranges or names are wrong, or where this machine cannot run it."""
    check_config(cfg)
    check_machine(cfg)


def check_config(cfg: DictConfig) -> None:
    """Refuse what is wrong whatever machine it runs on, in the run itself or in one of its controls."""
    controls = check_run(cfg)
    for name, control in controls.items():
        try:
            check_run(compose.changed(cfg, control["overrides"]))
        except Refusal as refusal:
            raise Refusal(f"controls.{name}.overrides={shown(control['overrides'])}: {refusal}") from None


def check_run(cfg: DictConfig) -> dict[str, Any]:
    """Refuse what is wrong in the run that `cfg` describes; returns its controls."""
    raw = compose.plain(cfg, resolve=False, complete=False)
    try:
        return _check_run(cfg, raw)
    except UnknownKey as unknown:
        raise unknown.instead(_elsewhere(unknown.key, raw)) from None


def _check_run(cfg: DictConfig, raw: dict[str, Any]) -> dict[str, Any]:
    _check_top_level(raw)
    check_nulls("", raw)
    compose.require(cfg, _SCALARS)  # before the nodes that refer to them
    config = compose.plain(cfg)
    for key, kind in _SCALARS.items():
        check_value(key, config[key], kind, raw[key], nodes=False)
    if config["name"] not in experiments():
        close = nearest(config["name"], experiments())
        raise Refusal(f"name={config['name']} is not the name of a file in conf/experiment{close}")
    for key in _NODES:
        _require_target(key, config[key])
    for group in _GROUPS:
        _check_group(group, config[group])
    if not config["claims"]:
        raise Refusal("claims is empty: an experiment states at least one claim")
    for name in map(str, config["pictures"]):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == FIGURE:
            taken = f" but {FIGURE}, which is that of the claims" if name == FIGURE else ""
            raise Refusal(f"pictures.{name} is not allowed: the name of a file, small letters, digits and '_'{taken}")
    if not any(node["_target_"] == _SAVES for node in config["callbacks"].values()):
        raise Refusal(
            "callbacks.checkpoints is missing: nothing would be saved, and a run that is stopped would be lost; to "
            "save less often set callbacks.checkpoints.every_seconds=<interval>, or null for the end alone"
        )
    _check_controls(config["controls"], config["claims"], config["control"])
    for name in sorted(LAB_SET & config["trainer"].keys()):
        instead = f"; use {INSTEAD[name]}" if name in INSTEAD else ""
        raise Refusal(f"trainer.{name}={shown(config['trainer'][name])} is not allowed: it is set by the lab{instead}")
    for group, fills in FILLED.items():
        for node, name in ((node, name) for node in config[group] for name in fills):
            if name in config[group][node]:
                found = shown(config[group][node][name])
                raise Refusal(f"{group}.{node}.{name}={found} is not allowed: it is set by the lab, from {fills[name]}")
    for key in sorted(config, key=lambda key: key != "trainer"):  # other nodes refer to max_steps: it is named itself
        (check_group if key in (*_NODES, *_GROUPS) else walk)(key, config[key], raw[key])
    check_parts(config, raw)
    _check_strategy(config["trainer"], config["model"])
    _check_average(config["trainer"], config["model"].get("ema"))
    _check_objective(config["objective"], config["claims"])
    controls: dict[str, Any] = config["controls"]
    return controls


def check_node(key: str, node: DictConfig) -> None:
    """Refuse a node that stands outside the composition, such as Hydra's launcher, where its signature does."""
    raw, config = compose.plain(node, resolve=False), compose.plain(node)
    _require_target(key, config)
    walk(key, config, raw)


def _check_top_level(raw: dict[str, Any]) -> None:
    known = _top_level(raw)
    for key in raw:
        if key not in known:
            raise UnknownKey(key, shown(raw[key]), nearest(key, known), f"allowed: {', '.join(sorted(known))}")
    for key in sorted(base_keys() - raw.keys()):
        raise Refusal(
            f"{key} is missing from the composition{'; logger=none means no logger' if key == 'logger' else ''}"
        )


def _top_level(raw: dict[str, Any]) -> set[str]:
    """The keys that every composition has, and the experiment's own variables."""
    return base_keys() | set(_interpolated(raw)) | set(_interpolated(source(raw["name"])))


def _elsewhere(wrong: str, raw: dict[str, Any]) -> list[str]:
    """At most two keys that end as `wrong` does, those with the shortest path: `k` and `model.net.k` for `model.k`.

    A key of the top level may name several parts at once: `sweep_dir` is `hydra.sweep.dir`.
    """
    known = _top_level(raw)
    there = [key for top in raw if top in known for key in keys(top, raw[top])]
    there += ["hydra.sweep.dir", *_of_sweeps("launcher"), *_of_sweeps("sweeper")]
    wanted = wrong.rpartition(".")[2]
    found = [key for key in dict.fromkeys(there) if key != wrong and wanted in _endings(key)]
    part = wrong.partition(".")[0]
    return sorted(found, key=lambda key: (key.count("."), key.partition(".")[0] != part, len(key)))[:2]


def _endings(key: str) -> list[str]:
    """What may be written for a dotted key without knowing all of it: `dir`, `sweep_dir`, `hydra_sweep_dir`."""
    parts = key.split(".")
    return ["_".join(parts[i:]) for i in range(len(parts))]


def _of_sweeps(part: str) -> Iterator[str]:
    """What Hydra's launcher or sweeper takes, whichever of ours that is."""
    for path in sorted((paths.CONF / "hydra" / part).glob("*.yaml")):
        yield from list(keys(f"hydra.{part}", read(path)))[1:]


def _interpolated(node: Any) -> Iterator[str]:
    """Top-level keys that `${key…}` in any string of `node` refers to."""
    match node:
        case str():
            yield from re.findall(r"\$\{\s*([A-Za-z_]\w*)\s*(?=[.\[}])(?![\w.]*:)", node)
        case Mapping():
            for value in node.values():
                yield from _interpolated(value)
        case list():
            for value in node:
                yield from _interpolated(value)


def _require_target(key: str, node: Any) -> None:
    if not isinstance(node, dict) or "_target_" not in node:
        raise Refusal(f"{key}={shown(node)} has no _target_: it must say which class to make")


def _check_group(group: str, nodes: Any) -> None:
    """Each entry of a named group is something to instantiate."""
    if not isinstance(nodes, dict):
        raise Refusal(f"{group}={shown(nodes)} is not allowed: names with a node each")
    if "_target_" in nodes:
        raise Refusal(f"{group}._target_={nodes['_target_']} is not allowed: {group} holds names with a node each")
    for name, node in nodes.items():
        if node is None:
            raise Refusal(f"{group}.{name}=null is not allowed: ~{group}.{name} takes it out")
        if not isinstance(node, dict) or "_target_" not in node:
            others = [other for other, made in nodes.items() if isinstance(made, dict) and "_target_" in made]
            raise Refusal(f"{group}.{name}={shown(node)} has no _target_{nearest_key(f'{group}.{name}', others)}")


def _check_strategy(trainer: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuse to split the weights of what cannot be trained so."""
    if trainer.get("strategy") != "fsdp":
        return
    if not getattr(Part(model), "splits", True):
        name = model["_target_"].rpartition(".")[2]
        raise Refusal(f"trainer.strategy=fsdp is not allowed: {name} needs its weights whole; allowed: auto, ddp")
    if trainer.get("precision") == "64-true":
        raise Refusal(
            "trainer.precision=64-true is not allowed with trainer.strategy=fsdp; "
            "allowed: 32-true, bf16-mixed, bf16-true"
        )


def _check_average(trainer: dict[str, Any], ema: float | None) -> None:
    """Refuse to average weights where the average would stand still, or where no rank has all of them."""
    if ema is None:
        return
    if trainer.get("precision") == "bf16-true":
        raise Refusal(
            f"model.ema={ema} is not allowed with trainer.precision=bf16-true: a change below 1/256 of the average "
            "would leave it as it is; allowed: bf16-mixed, 32-true, 64-true"
        )
    if trainer.get("strategy") == "fsdp":
        raise Refusal(f"model.ema={ema} is not allowed with trainer.strategy=fsdp; allowed: auto, ddp")


def _check_objective(objective: str | None, claims: dict[str, Any]) -> None:
    """A claim's number is known before the run; which losses there are, the first block of steps says."""
    if objective is None or not objective.startswith("claim/"):
        return
    numbers = ("predicted", "measured", "standard_error", "difference", "tolerance", "holds")
    allowed = [f"claim/{claim}/{number}" for claim in claims for number in numbers]
    if objective not in allowed:
        raise Refusal(
            f"objective={objective} is not allowed: claim/<name>/<number> with a name of {', '.join(claims)} and a "
            f"number of {', '.join(numbers)}{nearest(objective, allowed)}"
        )


def _check_controls(controls: Any, claims: dict[str, Any], chosen: str | None) -> None:
    """A control says what to change, which claims that must refute, and why."""
    if not isinstance(controls, dict):
        raise Refusal(f"controls={shown(controls)} is not allowed: names with overrides, refutes and because each")
    if chosen is not None and chosen not in controls:
        allowed = ", ".join([*controls, "null"])
        raise Refusal(f"control={shown(chosen)} is not a control; allowed: {allowed}{nearest(chosen, controls)}")
    fields = {"overrides": list[str], "refutes": Annotated[list[str], at.MinLen(1)], "because": NonEmptyStr}
    for name, control in controls.items():
        key = f"controls.{name}"
        if not isinstance(control, dict):
            raise Refusal(f"{key}={shown(control)} is not allowed: overrides, refutes and because")
        for unknown in control.keys() - fields:
            raise Refusal(f"unknown key {key}.{unknown}{nearest(unknown, fields)}; allowed: {', '.join(fields)}")
        for missing in fields.keys() - control:
            raise Refusal(f"{key}.{missing} is missing; a control has {', '.join(fields)}")
        for field, kind in fields.items():
            check_value(f"{key}.{field}", control[field], kind)
        for claim in control["refutes"]:
            if claim not in claims:
                raise Refusal(f"{key}.refutes names {claim}, allowed: {', '.join(claims)}{nearest(claim, claims)}")
