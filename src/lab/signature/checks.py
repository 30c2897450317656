"""What the parts of a run refuse in each other, told from the config alone.

`data.check()`, `model.check(data)` and `claim.check(data, model)` are called on the objects before the first step. Here
they are read instead, and followed as far as they speak of what the config says. Where they ask for what only an object
knows, such as the size of a file of images, nothing is told and the call decides.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lab.errors import nearest
from lab.signature import UNKNOWN, attribute, signature
from lab.signature.guards import CALLS, PLAIN
from lab.signature.nodes import is_a, made_by
from lab.signature.source import Definition, Module, expression, find, lineage


class Part:
    """A node of the config, asked like the object it makes.

    An attribute is the parameter of its name, as given or by default, or a plain value in the class's own body.
    """

    def __init__(self, node: Mapping[str, Any], **more: Part) -> None:
        self._node, self._more, self._target = node, more, str(node["_target_"])

    def __getattr__(self, name: str) -> Any:
        if name in self._more:
            return self._more[name]
        if name in self._node:
            return _part(self._node[name])
        parameter = signature(self._target).parameters.get(name)
        if parameter is not None and parameter.default is not UNKNOWN:
            return parameter.default
        try:
            return ast.literal_eval(attribute(self._target, name))
        except (ValueError, SyntaxError):
            raise AttributeError(name) from None


def refuses(part: Part, *others: Part) -> str:
    """Why `part.check(*others)` would raise a Refusal; "" when it would not, or when that cannot be told."""
    found = find(part._target)
    owners = list(lineage(found)) if found else []
    return _of_method(owners, (part, *others))


def _of_method(owners: list[Definition], parts: tuple[Part, ...]) -> str:
    """`check` of the first owner that has one, with the others as its bases."""
    for position, owner in enumerate(owners):
        for node in owner.node.body:
            if isinstance(node, ast.FunctionDef) and node.name == "check":
                scope: dict[str, Any] = dict(zip((a.arg for a in node.args.args), parts, strict=False))
                inherited = lambda: _of_method(owners[position + 1 :], parts)  # noqa: B023, E731 - called in this pass
                return _follow(owner.module, node.body, scope, inherited)
    return ""


def _follow(module: Module, body: Iterable[ast.stmt], scope: dict[str, Any], inherited: Callable[[], str]) -> str:
    """The message of the first `raise` that is reached; names whose value cannot be told leave the scope."""
    for statement in body:
        why = ""
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="check"))):
                why = inherited()
            case ast.Raise(exc=ast.Call(args=[message])):
                return str(_value(module, message, scope)) if _told(module, message, scope) else ""
            case ast.If(test=test, body=then, orelse=otherwise) if _told(module, test, scope):
                chosen = then if _value(module, test, scope) else otherwise
                why = _follow(module, chosen, scope, inherited)
            case ast.For(target=target, iter=items, body=inner, orelse=[]) if _told(module, items, scope):
                for item in list(_value(module, items, scope)):
                    _bind(target, item, scope)
                    if why := _follow(module, inner, scope, inherited):
                        break
            case (
                ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=ast.expr() as value)
            ) if _told(module, value, scope):
                _bind(target, _value(module, value, scope), scope)
            case _:
                stored = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
                for name in stored:
                    scope.pop(name.id, None)
        if why:
            return why
    return ""


def _told(module: Module, node: ast.expr, scope: dict[str, Any]) -> bool:
    try:
        _value(module, node, scope)
    except (AttributeError, TypeError, NameError, LookupError, ArithmeticError, ValueError):
        return False
    return True


def _value(module: Module, node: ast.expr, scope: dict[str, Any]) -> Any:
    """The value of an expression of parts, plain values and a few functions of them; ValueError for any other."""
    classes: dict[str, Any] = {}
    for inner in ast.walk(node):
        match inner:
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, ast.Name(id=name)], keywords=[]):
                classes[name] = expression(module, ast.Name(name))
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _CALLS:
                pass
            case ast.Call(func=ast.Attribute(attr=name), keywords=[]) if name in _METHODS:
                pass
            case ast.Attribute(attr=name) if not name.startswith("_"):
                pass
            case ast.Name():
                pass
            case _ if isinstance(inner, (*PLAIN, *_ALSO)) and not isinstance(inner, ast.Call):
                pass
            case _:
                raise ValueError(f"not followed: {ast.unparse(inner)}")
    return eval(compile(ast.Expression(node), "check", "eval"), {"__builtins__": {}, **_CALLS, **scope, **classes})


def _isinstance(part: Any, wanted: Definition | None) -> bool:
    made = made_by(part._target)
    if made is None or wanted is None:
        raise LookupError("of unknown class")
    return is_a(made, (wanted,))


_CALLS: dict[str, Any] = CALLS | {f.__name__: f for f in (list, str, nearest)} | {"isinstance": _isinstance}
_METHODS = {"items", "keys", "values", "join"}
_ALSO = (ast.IfExp, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.comprehension)


def _bind(target: ast.expr, value: Any, scope: dict[str, Any]) -> None:
    if isinstance(target, ast.Name):
        scope[target.id] = value
    elif isinstance(target, ast.Tuple):
        for one, item in zip(target.elts, value, strict=True):
            _bind(one, item, scope)


def _part(value: Any) -> Any:
    """Nodes within a value as parts."""
    match value:
        case {"_target_": str()}:
            return Part(value)
        case dict():
            return {name: _part(inner) for name, inner in value.items()}
        case list():
            return [_part(inner) for inner in value]
    return value
