"""Annotations as types that pydantic understands, evaluated from their source so far as YAML can fill them."""

from __future__ import annotations

import ast
import importlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.signature.source import Module, expression


class Opaque:
    """The annotation of a parameter that no YAML scalar can fill: a module, a tensor, a callable."""


_LIGHT = {"typing", "types", "typing_extensions", "annotated_types", "collections.abc", "lab.types", "numbers"}
"""Modules whose names are taken as they are: importing them costs nothing."""

_YAML = {int, float, str, bool, type(None), Any}
_GENERIC: dict[Any, Any] = {
    list: list,
    typing.List: list,  # noqa: UP006
    Sequence: list,
    typing.Sequence: list,
    dict: dict,
    typing.Dict: dict,  # noqa: UP006
    Mapping: dict,
    typing.Mapping: dict,
    tuple: tuple,
    typing.Tuple: tuple,  # noqa: UP006
}
"""What YAML writes for each generic type."""
_TEXT = {"Path", "PathLike", "PurePath"}
_HEAVY = {"torch", "numpy", "scipy", "torchvision", "sklearn", "wandb", "matplotlib"}
"""Packages none of whose types YAML can write, so their sources need not be searched."""
_PLAIN_BASES = {"Enum", "StrEnum", "IntEnum", "TypedDict", "NamedTuple", "str", "int", "float", "dict", "list", "tuple"}


def evaluate(module: Module, node: ast.expr | None) -> Any:
    """The annotation `node` of `module`: a type pydantic understands, `Any` when nothing is known, or `Opaque`."""
    return Any if node is None else _Annotations(module).evaluate(node)


def literal(node: ast.expr, otherwise: Any = None) -> Any:
    """The value of a plain literal, else `otherwise`."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return otherwise


@dataclass
class _Annotations:
    """Evaluates the part of an annotation that YAML can fill; members of a union that it cannot are left out."""

    module: Module
    seen: set[str] = field(default_factory=set)

    def evaluate(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=None):
                return None
            case ast.Constant(value=str() as text):
                try:
                    return self.evaluate(ast.parse(text, mode="eval").body)
                except SyntaxError:
                    return Any
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return _union([self.evaluate(left), self.evaluate(right)])
            case ast.Subscript(value=value, slice=inner):
                return self.subscript(value, inner)
            case ast.Name() | ast.Attribute():
                return self.name(node)
        return Any

    def name(self, node: ast.expr) -> Any:
        light = self.light(node)
        if light is not None:
            if typing.get_origin(light) is None or light in _GENERIC:
                return _GENERIC.get(light, light if light in _YAML else Opaque)
            return light
        text = ast.unparse(node)
        if text.rpartition(".")[2] in _TEXT:
            return str
        if text in self.seen:
            return Any
        if self.heavy(text):
            return Opaque
        found = expression(self.module, node)
        if found is None:
            return Any
        if isinstance(found.node, ast.ClassDef):
            bases = {ast.unparse(b).rpartition(".")[2] for b in found.node.bases}
            return Any if bases & _PLAIN_BASES else Opaque
        if isinstance(found.node, ast.expr):  # an alias, written where it is defined
            return _Annotations(found.module, self.seen | {text}).evaluate(found.node)
        return Any

    def subscript(self, value: ast.expr, inner: ast.expr) -> Any:
        head = self.light(value)
        arguments = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if head is typing.Literal:
            choices = [literal(a) for a in arguments if isinstance(a, ast.Constant | ast.UnaryOp)]
            return typing.Literal[tuple(choices)] if len(choices) == len(arguments) else Any
        if head is typing.Annotated:
            base = self.evaluate(arguments[0])
            metadata = [m for a in arguments[1:] if (m := self.constraint(a)) is not None]
            return typing.Annotated[(base, *metadata)] if metadata and base not in (Any, Opaque) else base
        if head is typing.Optional:
            return _union([self.evaluate(inner), None])
        if head is typing.Union:
            return _union([self.evaluate(a) for a in arguments])
        if head in (typing.Final, typing.ClassVar) or ast.unparse(value).endswith("InitVar"):
            return self.evaluate(inner)
        if head in _GENERIC:
            parts = [... if isinstance(a, ast.Constant) and a.value is ... else self.evaluate(a) for a in arguments]
            parts = [Any if part is Opaque else part for part in parts]
            return _GENERIC[head][tuple(parts)] if len(parts) > 1 else _GENERIC[head][parts[0]]
        if head is not None:
            return Opaque  # Callable[…], Iterator[…], type[…]
        return Opaque if self.heavy(ast.unparse(value)) else Any

    def constraint(self, node: ast.expr) -> Any:
        """One piece of metadata: an annotated_types constraint with literal arguments, else None."""
        match node:
            case ast.Call(func=function, args=arguments, keywords=keywords):
                kind = self.light(function)
                if isinstance(kind, type) and kind.__module__ == "annotated_types":
                    named = {k.arg: literal(k.value) for k in keywords if k.arg}
                    return kind(*(literal(a) for a in arguments), **named)
        return None

    def heavy(self, name: str) -> bool:
        return self.module.origin(name.partition(".")[0]).partition(".")[0] in _HEAVY

    def light(self, node: ast.expr) -> Any:
        """The object that a name of a light module stands for, or None."""
        name, _, rest = ast.unparse(node).partition(".")
        origin = self.module.origin(name)
        module, _, last = origin.rpartition(".")
        if not origin:
            return _BUILTINS.get(name) if not rest else None
        if rest:
            module, last = origin, rest
        return getattr(importlib.import_module(module), last, None) if module in _LIGHT else None


_BUILTINS: dict[str, Any] = {t.__name__: t for t in (int, float, str, bool, list, dict, tuple, set, type, complex)}
_BUILTINS["object"] = Any


def _union(members: list[Any]) -> Any:
    """The union of those members that YAML can write."""
    if any(m is Any for m in members):
        return Any
    plain = [m for m in members if m is not Opaque]
    if not plain or plain == [None]:
        return typing.Optional[Opaque] if plain else Opaque  # noqa: UP045
    return typing.Union[tuple(plain)]  # noqa: UP007
