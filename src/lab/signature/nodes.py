"""What a node with a `_target_` must make to stand where an annotation names a class, and what a target makes."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from functools import cache

from lab.signature.source import Definition, Module, expression, find, lineage


@dataclass(frozen=True)
class Wanted:
    """An object of one of `classes`."""

    classes: tuple[Definition, ...] = ()
    called: bool = False
    """Not the object itself, but what makes it when called: a node with `_partial_: true`."""
    each: bool = False
    """A list or a mapping of them."""
    optional: bool = False
    plain: bool = False
    """Something that is no node will do as well."""

    def __str__(self) -> str:
        return " or ".join(found.name for found in self.classes)


def wanted(module: Module, annotation: ast.expr | None) -> Wanted | None:
    """What the annotation wants of a node; None when that is not known, so that anything may stand there."""
    found = _wanted(module, annotation) if annotation is not None else None
    return found if found and found.classes else None


@cache
def instance(target: str) -> Wanted:
    """An object of the class at the dotted path `target`."""
    found = find(target)
    assert found is not None
    return Wanted((found,))


@cache
def made_by(target: str) -> Definition | None:
    """The class of what `target` makes when called, itself or by its annotation; None when that cannot be seen."""
    found = find(target)
    if found is None or isinstance(found.node, ast.ClassDef):
        return found
    if not isinstance(found.node, ast.FunctionDef):
        return None
    returned = wanted(found.module, found.node.returns)
    return returned.classes[0] if returned and returned == Wanted(returned.classes[:1]) else None


def is_a(found: Definition, classes: tuple[Definition, ...]) -> bool:
    """Whether a class is one of `classes` or built on one."""
    return any(owner.node is one.node for owner in lineage(found) for one in classes)


def abstract_methods(found: Definition) -> list[str]:
    """The methods that a class or its bases declare with `@abstractmethod` and none of them implements."""
    nearest_first: dict[str, ast.FunctionDef] = {}
    for owner in lineage(found):
        for node in owner.node.body:
            if isinstance(node, ast.FunctionDef):
                nearest_first.setdefault(node.name, node)
    return [
        name
        for name, node in nearest_first.items()
        if any(ast.unparse(decorator).rpartition(".")[2] == "abstractmethod" for decorator in node.decorator_list)
    ]


def _wanted(module: Module, node: ast.expr) -> Wanted | None:
    match node:
        case ast.Constant(value=None):
            return Wanted(optional=True)
        case ast.Constant(value=str() as text):
            try:
                return _wanted(module, ast.parse(text, mode="eval").body)
            except SyntaxError:
                return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _either(_wanted(module, left), _wanted(module, right))
        case ast.Subscript(value=value, slice=inner):
            return _generic(module, value, inner.elts if isinstance(inner, ast.Tuple) else [inner])
        case ast.Name() | ast.Attribute():
            if ast.unparse(node).rpartition(".")[2] in _PLAIN:
                return Wanted(plain=True)
            return _named(module, node)
    return None


def _named(module: Module, node: ast.expr) -> Wanted | None:
    if module.origin(ast.unparse(node).partition(".")[0]).startswith("lab.types."):
        return Wanted(plain=True)
    found = expression(module, node)
    if found is None or found.module.name in _FORMS:
        return None
    if isinstance(found.node, ast.ClassDef):
        return Wanted((found,))
    return _wanted(found.module, found.node) if isinstance(found.node, ast.expr) and found.node is not node else None


def _generic(module: Module, value: ast.expr, inner: list[ast.expr]) -> Wanted | None:
    match ast.unparse(value).rpartition(".")[2]:
        case "Optional":
            return _either(_wanted(module, inner[0]), Wanted(optional=True))
        case "Union":
            found: Wanted | None = Wanted()
            for one in inner:
                found = _either(found, _wanted(module, one))
            return found
        case "Annotated" | "Final":
            return _wanted(module, inner[0])
        case "Literal":
            return Wanted(plain=True)
        case "Callable":
            made = _wanted(module, inner[-1])
            return replace(made, called=True) if made else None
        case "dict" | "Dict" | "Mapping" | "list" | "List" | "Sequence" | "Iterable" | "tuple" | "Tuple":
            held = [one for one in inner if not (isinstance(one, ast.Constant) and one.value is ...)]
            made = _wanted(module, held[-1])
            return replace(made, each=True) if made and not made.each else None
    return _named(module, value)


def _either(left: Wanted | None, right: Wanted | None) -> Wanted | None:
    if left is None or right is None:
        return None
    whole = [one for one in (left, right) if one.classes]
    if len({(one.called, one.each) for one in whole}) > 1:
        return None
    return Wanted(
        left.classes + right.classes,
        called=any(one.called for one in whole),
        each=any(one.each for one in whole),
        optional=left.optional or right.optional,
        plain=left.plain or right.plain,
    )


_FORMS = {"typing", "typing_extensions", "collections.abc", "_collections_abc"}
"""Where what a name stands for is a form, such as Any, and no class of objects."""
_PLAIN = {"int", "float", "str", "bool", "complex", "Path", "PathLike"}
