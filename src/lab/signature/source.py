"""Where a dotted name is defined, found by parsing source as Python would bind it and importing none of it.

Names are followed through re-exports, relative imports, plain aliases and base classes.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lab.errors import Refusal, nearest


@dataclass(frozen=True)
class Module:
    """A module or package that can be imported, which nobody did."""

    name: str
    path: Path | None
    """Its source, or None for a namespace package or a compiled module."""
    folders: tuple[Path, ...] = ()
    """Where submodules lie; empty when it is not a package."""

    @property
    def package(self) -> str:
        """What its relative imports are relative to."""
        return self.name if self.folders else self.name.rpartition(".")[0]

    def statements(self) -> list[ast.stmt]:
        """Its top-level statements, those under `if` and `try` included."""
        return _statements(self.path) if self.path else []

    def names(self) -> list[str]:
        """Public names one may write after this module's own."""
        found = {
            child.stem
            for folder in self.folders
            for child in folder.iterdir()
            if child.suffix == ".py" or (child.is_dir() and child.name.isidentifier())
        }
        for node in self.statements():
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    found.add(name)
                case ast.ImportFrom(names=names):
                    found |= {alias.asname or alias.name for alias in names}
        return sorted(name for name in found if not name.startswith("_"))

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that an import statement in this one imports from."""
        if not node.level:
            return node.module or ""
        base = self.package.split(".")
        return ".".join(base[: len(base) - node.level + 1] + ([node.module] if node.module else []))

    def origin(self, name: str) -> str:
        """The dotted path that an imported name of this module comes from; "" when it is not imported."""
        for node in reversed(self.statements()):
            match node:
                case ast.ImportFrom(names=aliases):
                    for alias in aliases:
                        if (alias.asname or alias.name) == name:
                            return f"{self.absolute(node)}.{alias.name}"
                case ast.Import(names=aliases):
                    for alias in aliases:
                        if (alias.asname or alias.name.partition(".")[0]) == name:
                            return alias.name if alias.asname else name
                case ast.ClassDef(name=bound) | ast.Assign(targets=[ast.Name(id=bound)]) if bound == name:
                    return ""
        return ""


@dataclass(frozen=True)
class Definition:
    """A class, function or value and the module it stands in; `node` is None for a module itself."""

    module: Module
    node: Any = None
    method: bool = False
    """Whether Python passes its first argument itself."""

    @property
    def name(self) -> str:
        """Its dotted path, where it is defined."""
        return f"{self.module.name}.{self.node.name}" if hasattr(self.node, "name") else self.module.name


@cache
def _statements(path: Path) -> list[ast.stmt]:
    return list(_flat(ast.parse(path.read_bytes()).body))


def _flat(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those under `if` and `try` included."""
    for node in body:
        match node:
            case ast.If(body=inner, orelse=other):
                yield from _flat(inner)
                yield from _flat(other)
            case ast.Try(body=inner, handlers=handlers):
                yield from _flat(inner)
                for handler in handlers:
                    yield from _flat(handler.body)
            case _:
                yield node


@cache
def _module(name: str) -> Module | None:
    parent, _, last = name.rpartition(".")
    if not parent:
        try:
            spec = importlib.util.find_spec(name)  # of a top-level name: looks for the file, imports nothing
        except (ValueError, ImportError):
            return None
        if spec is None:
            return None
        source = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
        return Module(name, source, tuple(Path(p) for p in spec.submodule_search_locations or ()))
    package = _module(parent)
    for folder in package.folders if package else ():
        if (folder / last / "__init__.py").is_file():
            return Module(name, folder / last / "__init__.py", (folder / last,))
        if (folder / f"{last}.py").is_file():
            return Module(name, folder / f"{last}.py")
        if (folder / last).is_dir():
            return Module(name, None, (folder / last,))
        if any(folder.glob(f"{last}.*.so")) or any(folder.glob(f"{last}.*.pyd")):
            return Module(name, None)
    return None


def find(target: str) -> Definition | None:
    """Where `target` is defined; None when it lies in a module without source."""
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts):
        raise Refusal(f"_target_={target}: not a dotted name such as lab.models.linear.Linear")
    module = _module(parts[0])
    if module is None:
        raise Refusal(f"_target_={target}: there is no package {parts[0]}{nearest(parts[0], _PACKAGES)}")
    found: Definition | None = Definition(module)
    for done, part in enumerate(parts[1:], start=1):
        assert found is not None
        here, found = found, _attribute(found, part)
        if found is None:
            if here.node is None and here.module.path is None and not here.module.folders:
                return None
            if here.node is None and here.module.name in _COMPILED_ON_TOP and done == len(parts) - 1:
                return None
            prefix = ".".join(parts[:done])
            raise Refusal(f"_target_={target}: {prefix} has no {part}{_suggestion(prefix, here, part)}")
    if found is None or found.node is None:
        raise Refusal(f"_target_={target}: this is a module, not a class or function")
    return found


_COMPILED_ON_TOP = {"torch"}
"""Packages whose own names are partly made by compiled code, where absence from the source proves nothing."""

_PACKAGES = ("lab", "lightning", "torch", "torchvision")
"""What a `_target_` usually begins with."""


def _suggestion(prefix: str, here: Definition, part: str) -> str:
    names = here.module.names() if here.node is None else [n.name for n in here.node.body if hasattr(n, "name")]
    return nearest(f"{prefix}.{part}", [f"{prefix}.{name}" for name in names])


def _attribute(found: Definition, name: str) -> Definition | None:
    if found.node is None:
        return _member(found.module, name)
    if isinstance(found.node, ast.ClassDef):
        for owner in lineage(found):
            for node in owner.node.body:
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
                    return Definition(owner.module, node, method=not static)
    return None


def _resolve(module: Module, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Definition | None:
    """What `name` means inside `module`, followed through imports and plain aliases to its definition."""
    if (module.name, name) in seen:
        return None
    seen |= {(module.name, name)}
    for node in reversed(module.statements()):  # the last binding wins
        match node:
            case ast.ClassDef(name=bound) | ast.FunctionDef(name=bound) if bound == name:
                return Definition(module, node)
            case ast.Assign(targets=[ast.Name(id=bound)], value=value) if bound == name:
                return expression(module, value, seen) or Definition(module, value)
            case ast.AnnAssign(target=ast.Name(id=bound), value=ast.expr() as value) if bound == name:
                return expression(module, value, seen) or Definition(module, value)
            case ast.Import(names=aliases):
                for alias in aliases:
                    if (alias.asname or alias.name.partition(".")[0]) == name:
                        imported = _module(alias.name if alias.asname else name)
                        return Definition(imported) if imported else None
            case ast.ImportFrom(names=aliases):
                for alias in aliases:
                    if name == (alias.asname or alias.name) or alias.name == "*":
                        found = _imported(module, node, name if alias.name == "*" else alias.name, seen)
                        if found or alias.name != "*":
                            return found
    return None


def _imported(module: Module, node: ast.ImportFrom, name: str, seen: frozenset[tuple[str, str]]) -> Definition | None:
    source = _module(module.absolute(node))
    return _member(source, name, seen) if source else None


def _member(module: Module, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Definition | None:
    """`module.name`: what the module binds the name to, or its submodule."""
    submodule = _module(f"{module.name}.{name}") if module.folders else None
    if submodule and submodule.folders:
        return Definition(submodule)  # nothing else is called like a package, so torch/__init__.py need not be parsed
    return _resolve(module, name, seen) or (Definition(submodule) if submodule else None)


_GENERIC_FORMS = {"typing", "typing_extensions", "_collections_abc"}
"""Modules of classes such as Annotated and Sequence: with brackets they are an annotation, no class to look into."""


def expression(module: Module, node: ast.expr, seen: frozenset[tuple[str, str]] = frozenset()) -> Definition | None:
    """What a dotted expression such as `nn.Module` or `Base[T]` refers to."""
    match node:
        case ast.Name(id=name):
            return _resolve(module, name, seen)
        case ast.Attribute(value=value, attr=attr):
            owner = expression(module, value, seen)
            return _attribute(owner, attr) if owner else None
        case ast.Subscript(value=value):
            found = expression(module, value, seen)
            of_class = found and isinstance(found.node, ast.ClassDef) and found.module.name not in _GENERIC_FORMS
            return found if of_class else None
    return None


def lineage(found: Definition) -> Iterator[Definition]:
    """A class and its bases, nearest first, so far as they can be followed."""
    seen: list[ast.AST] = []
    queue = [found]
    while queue:
        here = queue.pop(0)
        if not isinstance(here.node, ast.ClassDef) or here.node in seen:
            continue
        seen.append(here.node)
        yield here
        queue += [base for e in here.node.bases if (base := expression(here.module, e)) is not None]
