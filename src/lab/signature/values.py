"""What YAML wrote against what an annotation allows, and an annotation in words."""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import annotated_types as at

from lab.signature.annotations import Opaque

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value, not one with nodes in it, is what the annotation allows."""
    if Opaque in (annotation, *typing.get_args(annotation)):  # nodes were let through, so this is a plain value
        return value is None and annotation is not Opaque
    if not is_finite(value):
        return False
    try:  # as JSON: an integer is a number, a list is a tuple, but true is not an integer
        _adapter(annotation).validate_json(json.dumps(value), strict=True)
    except (ValueError, TypeError):  # pydantic's ValidationError is a ValueError
        return False
    return True


def is_finite(value: Any) -> bool:
    """Whether no number in a plain value is infinite or NaN."""
    match value:
        case float():
            return math.isfinite(value)
        case dict():
            return all(map(is_finite, value.values()))
        case list():
            return all(map(is_finite, value))
    return True


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


def choices(annotation: Any) -> Iterator[Any]:
    """Every value that a `Literal` in the annotation names."""
    if typing.get_origin(annotation) is Literal:
        yield from typing.get_args(annotation)
    else:
        for part in typing.get_args(annotation):
            yield from choices(part)


_NAMES = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
    None: "null",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
    Any: "anything",
    Opaque: "a node with a _target_",
}


def describe(annotation: Any) -> str:
    """An annotation in words: `an integer ≥ 1 or null`."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        what, comma, each = describe(parts[0]).partition(", each")
        limits = " and ".join(text for p in parts[1:] if (text := _constraint(p)))
        return f"{what} {limits}".strip() + comma + each
    if origin is Literal:
        return _choice(parts)
    if origin in (list, tuple, dict):
        inner = [describe(p) for p in parts if p is not ...]
        if origin is tuple and ... not in parts:
            return f"a list of {len(inner)} ({', '.join(inner)})"
        kind = "mapping" if origin is dict else "list"
        if inner[-1] == _NAMES[Any]:
            return f"a {kind}"
        return f"a {kind}{' to' if origin is dict else ', each'} {inner[-1]}"
    if parts:
        others = [describe(p) for p in parts if typing.get_origin(p) is not Literal]
        named = [_choice(tuple(choices(annotation)))] if len(others) < len(parts) else []
        return " or ".join(named + others)
    return _NAMES.get(annotation, str(annotation))


def _choice(allowed: Sequence[Any]) -> str:
    names = list(dict.fromkeys(str(choice) for choice in allowed))
    return ("one of " if len(names) > 1 else "") + ", ".join(names)


def _constraint(constraint: Any) -> str:
    match constraint:
        case at.Ge(ge=bound):
            return f"≥ {bound}"
        case at.Gt(gt=bound):
            return f"> {bound}"
        case at.Le(le=bound):
            return f"≤ {bound}"
        case at.Lt(lt=bound):
            return f"< {bound}"
        case at.MultipleOf(multiple_of=step):
            return f"that is a multiple of {step}"
        case at.MinLen(min_length=length):
            return "that is not empty" if length == 1 else f"of length ≥ {length}"
        case at.MaxLen(max_length=length):
            return f"of length ≤ {length}"
    return ""
