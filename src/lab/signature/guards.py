"""What a constructor refuses by itself: its `if condition: raise …`, evaluated without calling it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Guard:
    """A constructor's own `if condition: raise …(message)`, so far as it only compares parameters and constants."""

    condition: str
    message: str
    """Source of the message; "" when it says more than can be read here."""
    names: frozenset[str]

    def __str__(self) -> str:
        allowed = self.condition.startswith("not ")
        return f"allowed: {self.condition.removeprefix('not ')}" if allowed else f"not allowed: {self.condition}"

    def refuses(self, values: Mapping[str, Any]) -> str:
        """Why the constructor would raise for these values; "" when it would not, or when that cannot be told."""
        scope = {"__builtins__": CALLS}
        try:
            if not eval(self.condition, scope, dict(values)):  # only what _plain let through
                return ""
            return str(eval(self.message, scope, dict(values))) if self.message else f"not allowed: {self.condition}"
        except (TypeError, NameError, LookupError, ArithmeticError, ValueError):
            return ""


def guards(function: ast.FunctionDef, names: set[str], owner: str = "") -> tuple[Guard, ...]:
    """The `if condition: raise` statements of `function` that only compare parameters, as given, and constants."""
    found: list[Guard] = []
    unchanged = set(names)
    for statement in function.body:
        match statement:
            case ast.If(test=test, body=[ast.Raise(exc=error)], orelse=[]):
                if used := _plain(test, unchanged, owner):
                    said = error.args[0] if isinstance(error, ast.Call) and len(error.args) == 1 else None
                    readable = said is not None and _plain(said, unchanged, owner) is not None
                    found.append(Guard(_source(test, owner), _source(said, owner) if said and readable else "", used))
            case _:
                names_in = [n for n in ast.walk(statement) if isinstance(n, ast.Name)]
                unchanged -= {n.id for n in names_in if isinstance(n.ctx, ast.Store)}
    return tuple(found)


CALLS = {f.__name__: f for f in (len, min, max, sum, set, sorted, abs, any, all)}
PLAIN = (
    ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Subscript, ast.Slice, ast.Constant, ast.Tuple, ast.List,
    ast.Set, ast.JoinedStr, ast.FormattedValue, ast.expr_context, ast.cmpop, ast.boolop, ast.unaryop, ast.operator,
)  # fmt: skip


def _plain(node: ast.expr, names: set[str], owner: str) -> frozenset[str] | None:
    """The parameters in an expression, or None when it is made of anything but parameters and constants."""
    used: set[str] = set()
    selves: set[ast.AST] = set()
    for part in ast.walk(node):
        match part:
            case ast.Attribute(value=ast.Name(id=holder) as value, attr=attr) if holder == owner and attr in names:
                selves.add(value)
                used.add(attr)
            case ast.Name(id=name):
                if part in selves or name in CALLS:
                    continue
                if owner or name not in names:
                    return None
                used.add(name)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in CALLS:
                pass
            case ast.Call():
                return None
            case _:
                if not isinstance(part, PLAIN):
                    return None
    return frozenset(used)


def _source(node: ast.expr, owner: str) -> str:
    text = ast.unparse(node)
    return text.replace(f"{owner}.", "") if owner else text
