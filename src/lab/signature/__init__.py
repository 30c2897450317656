"""What a `_target_` takes, read from its source: parsed, never imported.

Importing torch to learn that `model.net.kk` is misspelt costs seconds; parsing the one file that defines the class
costs milliseconds.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

from lab.signature.annotations import Opaque, evaluate, literal
from lab.signature.guards import Guard, guards
from lab.signature.nodes import Wanted, wanted
from lab.signature.source import Definition, Module, expression, find, lineage

__all__ = ["Opaque", "Parameter", "Signature", "attribute", "docstring", "first_docstring_line", "signature"]

UNKNOWN = object()
"""The default of a parameter that has none, or one that is not a plain literal."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a class or function."""

    name: str
    required: bool
    default: Any
    """The default where it is a plain literal, else `UNKNOWN`."""
    read: Callable[[], Any]
    read_nodes: Callable[[], Wanted | None]

    @cached_property
    def annotation(self) -> Any:
        """A type pydantic understands, `Any` when nothing is known, or `Opaque`; read when it is first asked for."""
        return self.read()

    @cached_property
    def wanted(self) -> Wanted | None:
        """What a node with a `_target_` must make to be given here; None when nothing is known."""
        return self.read_nodes()


@dataclass(frozen=True)
class Signature:
    """What a class or function accepts. With `open`, further keywords go where they cannot be followed."""

    parameters: dict[str, Parameter]
    open: bool = False
    guards: tuple[Guard, ...] = ()


@cache
def signature(target: str) -> Signature:
    """The signature of the class or function at the dotted path `target`; a Refusal when there is none."""
    found = find(target)
    return _signature(found) if found else _UNREADABLE


@cache
def docstring(target: str) -> str:
    """The docstring of the class or function at `target`, cleaned; "" without one."""
    found = find(target)
    documented = found is not None and isinstance(found.node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return ast.get_docstring(found.node) or "" if found and documented else ""


def first_docstring_line(target: str) -> str:
    """The statement: the first line of `target`'s docstring."""
    return docstring(target).partition("\n")[0]


@cache
def attribute(target: str, name: str) -> str:
    """The source of the class attribute `name`, as `target` or its nearest base sets it; "" without one.

    A string attribute gives its text.
    """
    found = find(target)
    for owner in lineage(found) if found else ():
        for node in owner.node.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=bound)], value=value) if bound == name:
                    pass
                case ast.AnnAssign(target=ast.Name(id=bound), value=ast.expr() as value) if bound == name:
                    pass
                case ast.Assign(targets=[ast.Tuple(elts=bound)], value=ast.Tuple(elts=values)):
                    together = {ast.unparse(one): value for one, value in zip(bound, values, strict=False)}
                    if name not in together:
                        continue
                    value = together[name]
                case _:
                    continue
            return str(value.value) if isinstance(value, ast.Constant) else ast.unparse(value)
    return ""


_UNREADABLE = Signature({}, open=True)
"""Of what compiled code defines, or an expression makes."""


def _signature(found: Definition, seen: frozenset[ast.AST] = frozenset()) -> Signature:
    match found.node:
        case ast.ClassDef() as node:
            return _of_class(found, node, seen | {node})
        case ast.FunctionDef() as node:
            return _of_function(found.module, node, bound=found.method)
    return _UNREADABLE


def _of_function(module: Module, node: ast.FunctionDef, *, bound: bool) -> Signature:
    """`bound`: the first parameter is passed by Python itself."""
    parameters = {p.name: p for p in _arguments(module, node.args, bound=bound)}
    return Signature(parameters, node.args.kwarg is not None, guards(node, set(parameters)))


def _of_class(found: Definition, node: ast.ClassDef, seen: frozenset[ast.AST]) -> Signature:
    init = _method(node, "__init__")
    if init is None:
        return _of_dataclass(found, node) if _is_dataclass(node) else _inherited(found, node, seen) or _UNREADABLE
    own = _of_function(found.module, init, bound=True)
    passed = _passed_on(init)
    base = _inherited(found, node, seen) if passed else None
    if base is None or passed is None:
        return own
    positional, keywords = passed
    taken = set(list(base.parameters)[:positional]) | keywords
    rest = {name: parameter for name, parameter in base.parameters.items() if name not in taken}
    return Signature(rest | own.parameters, base.open, own.guards + base.guards)


def _inherited(found: Definition, node: ast.ClassDef, seen: frozenset[ast.AST]) -> Signature | None:
    """The constructor that `node` inherits; None when a base cannot be followed."""
    for base in node.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base).rpartition(".")[2]
        if name in _NO_CONSTRUCTOR:
            continue
        followed = expression(found.module, base)
        if followed is None or not isinstance(followed.node, ast.ClassDef) or followed.node in seen:
            return None
        return _signature(followed, seen)
    return Signature({})


_NO_CONSTRUCTOR = {"object", "ABC", "Generic", "Protocol"}


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((n for n in reversed(node.body) if isinstance(n, ast.FunctionDef) and n.name == name), None)


def _is_dataclass(node: ast.ClassDef) -> bool:
    decorators = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(ast.unparse(d).rpartition(".")[2] == "dataclass" for d in decorators)


def _of_dataclass(found: Definition, node: ast.ClassDef) -> Signature:
    parameters: dict[str, Parameter] = {}
    for owner in reversed(list(lineage(found))):
        if _is_dataclass(owner.node):
            parameters |= {p.name: p for p in _fields(owner.module, owner.node)}
    check = _method(node, "__post_init__")
    return Signature(parameters, guards=guards(check, set(parameters), owner="self") if check else ())


def _fields(module: Module, node: ast.ClassDef) -> Iterator[Parameter]:
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                if "ClassVar" in ast.unparse(annotation).partition("[")[0]:
                    continue
                if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "field":
                    options = {k.arg: k.value for k in value.keywords}
                    if (init := options.get("init")) is not None and ast.unparse(init) == "False":
                        continue
                    value = options.get("default", options.get("default_factory"))
                yield _parameter(module, name, annotation, value)


def _arguments(module: Module, arguments: ast.arguments, *, bound: bool) -> Iterator[Parameter]:
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(plain, defaults, strict=True))[int(bound) :]
    pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    for argument, default in pairs:
        yield _parameter(module, argument.arg, argument.annotation, default)


def _parameter(module: Module, name: str, annotation: ast.expr | None, default: ast.expr | None) -> Parameter:
    known = UNKNOWN if default is None else literal(default, UNKNOWN)
    return Parameter(
        name, default is None, known, partial(evaluate, module, annotation), partial(wanted, module, annotation)
    )


def _passed_on(init: ast.FunctionDef) -> tuple[int, set[str]] | None:
    """(count of positional arguments, keywords) of the base constructor's call that hands `**kwargs` on, if any."""
    name = init.args.kwarg.arg if init.args.kwarg else ""
    for call in ast.walk(init):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr != "__init__":
            continue
        if any(k.arg is None and isinstance(k.value, ast.Name) and k.value.id == name for k in call.keywords):
            is_super = isinstance(call.func.value, ast.Call)  # Base.__init__(self, …) counts self
            return len(call.args) - (not is_super), {k.arg for k in call.keywords if k.arg}
    return None
