"""Nodes with a `_target_` held against the signature of what they make: names, types, ranges, classes."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import annotated_types as at

from lab.errors import Refusal, UnknownKey, nearest, nearest_key
from lab.signature import UNKNOWN, Parameter, Signature, signature
from lab.signature.annotations import Opaque
from lab.signature.checks import Part, refuses
from lab.signature.nodes import Wanted, abstract_methods, instance, is_a, made_by
from lab.signature.values import choices, describe, fits, is_finite
from lab.types import NonNegativeInt, PositiveInt

LAB_SET = frozenset({
    "accumulate_grad_batches", "barebones", "callbacks", "check_val_every_n_epoch", "default_root_dir",
    "enable_autolog_hparams", "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "fast_dev_run",
    "gradient_clip_algorithm", "gradient_clip_val", "limit_predict_batches", "limit_test_batches",
    "limit_train_batches", "limit_val_batches", "logger", "max_epochs", "max_time", "min_epochs", "min_steps",
    "model_registry", "num_sanity_val_steps", "overfit_batches", "plugins", "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler", "val_check_interval",
})  # fmt: skip
"""Trainer parameters that the lab passes itself, so that a run resumes and splits over processes exactly."""

INSTEAD = {"accumulate_grad_batches": "model.accumulate", "gradient_clip_val": "model.clip"}
"""Where the lab has them."""

FILLED = {"logger": {"id": "id=", "save_dir": "run_dir="}}
"""Parameters of a group's nodes that the lab passes itself, with what sets them instead."""

_SCHEDULE = "torch.optim.lr_scheduler."
_NARROWED: dict[str, dict[str, Any]] = {
    "lightning.pytorch.trainer.trainer.Trainer": {
        "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
        "devices": PositiveInt | list[NonNegativeInt] | Literal["auto"],
        "num_nodes": PositiveInt,
        "strategy": Literal["auto", "ddp", "fsdp"],
        "precision": Literal["32-true", "64-true", "bf16-mixed", "bf16-true"],  # float16 needs a gradient scaler
        "max_steps": Annotated[int, at.Ge(1), at.Le(10**12)],
        "log_every_n_steps": PositiveInt,
        "profiler": Literal["simple", "advanced", "pytorch"] | None,
    },
    # a schedule divides by these, at its first step
    f"{_SCHEDULE}CosineAnnealingLR": {"T_max": PositiveInt},
    f"{_SCHEDULE}StepLR": {"step_size": PositiveInt},
    f"{_SCHEDULE}LinearLR": {"total_iters": PositiveInt},
    f"{_SCHEDULE}PolynomialLR": {"total_iters": PositiveInt},
}
"""What the lab allows of a class where its own signature allows more."""

_MADE = {
    "data": "lab.data.blocks.InMemoryData",
    "model": "lab.models.stepped.SteppedModule",
    "trainer": "lightning.pytorch.Trainer",
    "logger": "lab.loggers.Wandb",
    "callbacks": "lightning.pytorch.Callback",
    "claims": "lab.claim.Claim",
    "pictures": "lab.pictures.Picture",
}
"""What the nodes of a group make."""

_STEPPED = {"torch.optim.optimizer.Optimizer", "torch.optim.lr_scheduler.LRScheduler"}
"""Whose `step` the training loop calls without arguments."""

_UNFIT = {"torch.optim.sparse_adam.SparseAdam": "it takes sparse gradients, which no model here has"}
"""What would fail at its first step."""

_RESERVED = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")


def check_group(key: str, node: Any, raw: Any) -> None:
    """Refuse a top-level node, or the nodes of a group, that do not make what the lab puts there."""
    what = instance(_MADE[key])
    if not _is_node(node):
        what = replace(what, each=True)
    _check_made(key, node, Opaque, what)
    walk(key, node, raw)


def walk(key: str, node: Any, raw: Any) -> None:
    """Hold every node with a `_target_` below `key` against its signature; `raw` is `node` before interpolation."""
    match node:
        case dict():
            for name in node:
                if re.fullmatch(r"_\w*_", str(name)) and name not in _RESERVED:
                    raise Refusal(f"unknown key {join(key, name)}={shown(node[name])}{nearest(name, _RESERVED)}")
            if "_target_" in node:
                _check_node(key, node, raw if isinstance(raw, dict) else {})
            for name, child in node.items():
                walk(join(key, str(name)), child, raw.get(name) if isinstance(raw, dict) else None)
        case list():
            for position, child in enumerate(node):
                walk(f"{key}[{position}]", child, raw[position] if isinstance(raw, list) else None)


def check_nulls(key: str, raw: Any) -> None:
    """Refuse a null that no signature allows, before an interpolation that goes through it fails."""
    if not isinstance(raw, dict):
        return
    target = raw.get("_target_")
    parameters = _signature(key, target).parameters if isinstance(target, str) and "${" not in target else {}
    for name, child in raw.items():
        if child is None and name in parameters:
            check_value(join(key, name), None, _annotation(str(target), parameters[name]))
        check_nulls(join(key, str(name)), child)


def check_parts(config: dict[str, Any], raw: dict[str, Any]) -> None:
    """Refuse what the data, the model and the claims refuse in each other, so far as the config tells it."""
    data = Part(config["data"], trainer=Part(config["trainer"]))
    model = Part(config["model"])
    for key, part, others in (("data", data, ()), ("model", model, (data,))):
        if why := refuses(part, *others):
            raise Refusal(_blaming(key, why, config[key], raw[key]))
    for name, node in config["claims"].items():
        if why := refuses(Part(node), data, model):
            raise Refusal(_blaming(f"claims.{name}", why, node, raw["claims"][name]))


def check_value(key: str, value: Any, annotation: Any, raw: Any = None, *, nodes: bool = True) -> None:
    """Refuse a plain value that its annotation does not allow; nodes are held against their own signature instead.

    Args:
        nodes: whether there may be nodes in the value at all.
    """
    if annotation is Any or (nodes and _has_node(value)) or fits(value, annotation):
        return
    allowed = describe(annotation)
    if not is_finite(value):
        allowed = allowed.replace("a number", "a finite number")
    close = nearest(value, [str(choice) for choice in choices(annotation)]) if isinstance(value, str) else ""
    raise Refusal(f"{_said(key, value, raw)} is not allowed: {allowed}{close}")


def join(key: str, name: str) -> str:
    """The key of `name` below `key`."""
    return f"{key}.{name}" if key else name


def shown(value: Any) -> str:
    """A value as one would write it on the command line, cut to a length that leaves the line readable."""
    text = value if isinstance(value, str) and value else json.dumps(value, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def _said(key: str, value: Any, raw: Any) -> str:
    """`key=value`, named by the variable that it comes from where it is one."""
    if not isinstance(raw, str) or "${" not in raw:
        return f"{key}={shown(value)}"
    variable = re.fullmatch(r"\$\{([\w.]+)\}", raw)
    return f"{variable[1]}={shown(value)} ({key} is {raw})" if variable else f"{key}={shown(value)} (it is {raw})"


def _check_node(key: str, node: dict[str, Any], raw: dict[str, Any]) -> None:
    target = node["_target_"]
    if not isinstance(target, str):
        raise Refusal(f"{key}._target_={shown(target)} is not allowed: a dotted name")
    found = _signature(key, target)
    given = {name: value for name, value in node.items() if name not in _RESERVED}
    _check_reserved(key, node)
    positional = list(found.parameters)[: len(node.get("_args_") or [])]
    for name, value in given.items():
        if name not in found.parameters:
            if found.open:
                continue
            _refuse_unknown(key, node, name, found)
        if name in positional:
            raise Refusal(f"{join(key, name)}={shown(value)} is also given by {key}._args_")
        parameter = found.parameters[name]
        annotation = _annotation(target, parameter)
        check_value(join(key, name), value, annotation, raw.get(name))
        if isinstance(value, dict) or _has_node(value) or (isinstance(value, list) and None in value):
            # only now is the class looked for that the annotation names: to find torch.Tensor takes 0.1 s
            wanted = None if annotation is not parameter.annotation else parameter.wanted
            _check_made(join(key, name), value, annotation, wanted)
    if not node.get("_partial_"):
        filled = FILLED.get(key.partition(".")[0], {})
        for name, parameter in found.parameters.items():
            if parameter.required and name not in given and name not in positional and name not in filled:
                raise Refusal(f"{join(key, name)} is missing: {target} needs {_described(parameter)}")
    _check_guards(key, given, raw, found)


def _signature(key: str, target: str) -> Signature:
    try:
        return signature(target)
    except Refusal as refusal:
        raise Refusal(f"{key}.{refusal}") from None


def _annotation(target: str, parameter: Parameter) -> Any:
    """The parameter's own annotation, or what the lab allows of it."""
    made = made_by(target)
    narrowed = _NARROWED.get(made.name, {}) if made else {}
    return narrowed.get(parameter.name, parameter.annotation)


def _refuse_unknown(key: str, node: dict[str, Any], name: str, found: Signature) -> typing.NoReturn:
    allowed = _settable(key, found)
    short = node["_target_"].rpartition(".")[2]
    takes = f"{short} takes {', '.join(allowed)}" if allowed else f"{short} takes no parameters"
    close = nearest_key(join(key, name), allowed)
    raise UnknownKey(join(key, name), shown(node[name]), close, takes)


def _settable(key: str, found: Signature) -> list[str]:
    """The parameters of the node at `key` that are not the lab's own to set."""
    taken = LAB_SET if key == "trainer" else FILLED.get(key.partition(".")[0], {})
    return [name for name in found.parameters if name not in taken]


def keys(key: str, node: Any) -> Iterator[str]:
    """The dotted keys from `key` down that may be set: of a node with a `_target_` its parameters, else its names."""
    yield key
    if not isinstance(node, dict):
        return
    names = [name for name in node if name not in _RESERVED]
    if _is_node(node):
        try:
            found = signature(str(node["_target_"]))
        except Refusal:  # of the target, which is refused where it stands
            return
        names = [name for name in names if found.open or name in found.parameters]
        passed = [name for name, parameter in found.parameters.items() if parameter.required and node.get("_partial_")]
        names += [name for name in _settable(key, found) if name not in (*node, *passed)]
    for name in names:
        yield from keys(join(key, str(name)), node.get(name))


def _check_reserved(key: str, node: dict[str, Any]) -> None:
    kinds = {
        "_partial_": bool,
        "_recursive_": bool,
        "_args_": list,
        "_convert_": Literal["none", "partial", "object", "all"],
    }
    for name, kind in kinds.items():
        if name in node:
            check_value(join(key, name), node[name], kind)


def _check_made(key: str, value: Any, annotation: Any, wanted: Wanted | None) -> None:
    """Refuse a node that does not make what its place wants, and where only a node will do, what is none."""
    if wanted is None:
        if not {Any, Opaque} & {annotation, *typing.get_args(annotation)}:
            for name, node in _nodes(key, value):
                found = shown(node["_target_"])
                raise Refusal(f"{name}._target_={found} is not allowed: {key} is {describe(annotation)}")
    elif wanted.each and not _is_node(value):
        for name, child in _children(key, value):
            if not _has_node(child) and not wanted.plain and not (child is None and wanted.optional):
                others = [other for other, node in _children(key, value) if _is_node(node)]
                close = nearest_key(name, others)
                raise Refusal(f"{name}={shown(child)} is not allowed: a node that makes a {wanted}{close}")
            _check_made(name, child, Opaque, replace(wanted, each=False))
    elif _is_node(value) and isinstance(value["_target_"], str):
        _check_target(key, value, wanted)


def _check_target(key: str, node: dict[str, Any], wanted: Wanted) -> None:
    target = node["_target_"]
    _signature(key, target)  # whether there is such a thing
    made = made_by(target)
    if made is None or not is_a(made, wanted.classes):
        raise Refusal(f"{key}._target_={target} is not allowed: it must make a {wanted}")
    if missing := abstract_methods(made):
        raise Refusal(
            f"{key}._target_={target} is not allowed: {made.node.name} leaves {', '.join(missing)} to the classes "
            "built on it"
        )
    if made.name in _STEPPED:
        raise Refusal(f"{key}._target_={target} is not allowed: only a class built on {made.node.name} takes a step")
    if why := _UNFIT.get(made.name):
        raise Refusal(f"{key}._target_={target} is not allowed: {why}")
    if bool(node.get("_partial_")) is not wanted.called:
        needed = "is called to make it" if wanted.called else "is used as it stands"
        raise Refusal(f"{key}._partial_ must be {'true' if wanted.called else 'false'}: the {made.node.name} {needed}")
    if not _STEPPED.isdisjoint(found.name for found in wanted.classes):
        needs = [p.name for p in signature(f"{made.name}.step").parameters.values() if p.required]
        if needs:
            raise Refusal(
                f"{key}._target_={target} is not allowed: its step needs {', '.join(needs)}, "
                "which the training loop does not pass"
            )
        for other in ("foreach", "differentiable"):
            if node.get("fused") is True and node.get(other) is True:
                raise Refusal(f"{key}.fused=true is not allowed with {key}.{other}=true")


def _check_guards(key: str, given: dict[str, Any], raw: dict[str, Any], found: Signature) -> None:
    """What the constructor itself would refuse."""
    values = {name: p.default for name, p in found.parameters.items() if p.default is not UNKNOWN} | given
    for guard in found.guards:
        named = sorted((name for name in given if name in guard.names), key=guard.condition.index)
        if named and guard.names <= values.keys() and (why := " ".join(guard.refuses(values).split())):
            if why.startswith(f"{named[0]}="):
                raise Refusal(_blaming(key, why, given, raw))
            said = [_said(join(key, name), given[name], raw.get(name)) for name in named]
            raise Refusal(f"{', '.join(said)}: {why}; {guard}")


def _blaming(key: str, why: str, given: dict[str, Any], raw: dict[str, Any]) -> str:
    """A refusal by the node at `key`, with the full key of the parameter that it begins with, or its variable's."""
    name, _, rest = why.partition("=")
    if name not in given:
        return str(Refusal(why).within(key)) if re.match(r"\w+=", why) else why
    said = _said(join(key, name), given[name], raw.get(name))
    return f"{said} {rest.partition(' ')[2]}" if "(" in said else f"{key}.{why}"


def _children(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case dict():
            yield from ((join(key, str(name)), child) for name, child in value.items())
        case list():
            yield from ((f"{key}[{position}]", child) for position, child in enumerate(value))


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _nodes(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The nodes at `key` and below that stand in no other node."""
    if _is_node(value):
        yield key, value
    else:
        for name, child in _children(key, value):
            yield from _nodes(name, child)


def _has_node(value: Any) -> bool:
    return any(True for _ in _nodes("", value))


def _described(parameter: Parameter) -> str:
    return parameter.name if parameter.annotation is Any else f"{parameter.name}, {describe(parameter.annotation)}"
