"""What a `_target_` takes, read from its source: parsed, never imported.

Importing torch to learn that `model.net.kk` is misspelt costs seconds; parsing the one file that defines the class
costs milliseconds. Names are followed as Python would follow them: through re-exports, relative imports, base classes.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from lab.errors import Refusal, nearest


class Opaque:
    """The annotation of a parameter that no YAML scalar can fill: a module, a tensor, a callable."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a class or function."""

    name: str
    required: bool
    default: Any
    """The default where it is a plain literal, else None."""
    read: Callable[[], Any]

    @cached_property
    def annotation(self) -> Any:
        """A type pydantic understands, `Any` when nothing is known, or `Opaque`; read when it is first asked for."""
        return self.read()


@dataclass(frozen=True)
class Guard:
    """A constructor's own `if condition: raise …(message)`, so far as it only compares parameters and constants."""

    condition: str
    message: str
    """Source of the message; "" when it says more than can be read here."""
    names: frozenset[str]

    def refuses(self, values: Mapping[str, Any]) -> str:
        """Why the constructor would raise for these values; "" when it would not, or when that cannot be told."""
        scope = {"__builtins__": _CALLS}
        try:
            if not eval(self.condition, scope, dict(values)):  # only what _plain let through
                return ""
            return str(eval(self.message, scope, dict(values))) if self.message else f"not allowed: {self.condition}"
        except (TypeError, NameError, LookupError, ArithmeticError, ValueError):
            return ""


@dataclass(frozen=True)
class Signature:
    """What `target` accepts. With `open`, further keywords are passed on to where they cannot be followed."""

    target: str
    parameters: dict[str, Parameter]
    open: bool = False
    guards: tuple[Guard, ...] = ()


@cache
def signature(target: str) -> Signature:
    """The signature of the class or function at the dotted path `target`; a Refusal when there is none."""
    found = _find(target)
    if found is None:  # a compiled module: there is no source to read
        return Signature(target, {}, open=True)
    parameters, open_, guards = _callable(found, frozenset())
    return Signature(target, parameters, open_, guards)


@cache
def docstring(target: str) -> str:
    """The docstring of the class or function at `target`, cleaned; "" without one."""
    found = _find(target)
    return ast.get_docstring(found.node) or "" if found and isinstance(found.node, _DOCUMENTED) else ""


def first_docstring_line(target: str) -> str:
    """The statement: the first line of `target`'s docstring."""
    return docstring(target).partition("\n")[0]


@cache
def attribute(target: str, name: str) -> str:
    """The source of the class attribute `name`, as `target` or its nearest base sets it; "" without one.

    A string attribute gives its text.
    """
    found = _find(target)
    for owner in _lineage(found) if found else ():
        for node in owner.node.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=bound)], value=value) if bound == name:
                    pass
                case ast.AnnAssign(target=ast.Name(id=bound), value=ast.expr() as value) if bound == name:
                    pass
                case _:
                    continue
            return str(value.value) if isinstance(value, ast.Constant) else ast.unparse(value)
    return ""


# -------------------------------------------------------------------------------------------------------------- modules


@dataclass(frozen=True)
class _Module:
    name: str
    path: Path | None
    """Its source, or None for a namespace package or a compiled module."""
    folders: tuple[Path, ...] = ()
    """Where submodules lie; empty when it is not a package."""

    @property
    def package(self) -> str:
        return self.name if self.folders else self.name.rpartition(".")[0]

    def statements(self) -> list[ast.stmt]:
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


@dataclass(frozen=True)
class _Found:
    """A definition and the module it stands in. `node` is None for a module itself."""

    module: _Module
    node: Any = None
    method: bool = False


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
def _module(name: str) -> _Module | None:
    parent, _, last = name.rpartition(".")
    if not parent:
        try:
            spec = importlib.util.find_spec(name)  # of a top-level name: looks for the file, imports nothing
        except (ValueError, ImportError):
            return None
        if spec is None:
            return None
        source = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
        return _Module(name, source, tuple(Path(p) for p in spec.submodule_search_locations or ()))
    package = _module(parent)
    for folder in package.folders if package else ():
        if (folder / last / "__init__.py").is_file():
            return _Module(name, folder / last / "__init__.py", (folder / last,))
        if (folder / f"{last}.py").is_file():
            return _Module(name, folder / f"{last}.py")
        if (folder / last).is_dir():
            return _Module(name, None, (folder / last,))
        if any(folder.glob(f"{last}.*.so")) or any(folder.glob(f"{last}.*.pyd")):
            return _Module(name, None)
    return None


def _find(target: str) -> _Found | None:
    """Where `target` is defined; None when it lies in a module without source."""
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts):
        raise Refusal(f"_target_={target}: not a dotted name such as lab.models.linear.Linear")
    module = _module(parts[0])
    if module is None:
        raise Refusal(f"_target_={target}: there is no package {parts[0]}{nearest(parts[0], _PACKAGES)}")
    found: _Found | None = _Found(module)
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


def _suggestion(prefix: str, here: _Found, part: str) -> str:
    names = here.module.names() if here.node is None else [n.name for n in here.node.body if hasattr(n, "name")]
    return nearest(f"{prefix}.{part}", [f"{prefix}.{name}" for name in names])


def _attribute(found: _Found, name: str) -> _Found | None:
    if found.node is None:
        return _member(found.module, name)
    if isinstance(found.node, ast.ClassDef):
        for owner in _lineage(found):
            for node in owner.node.body:
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
                    return _Found(owner.module, node, method=not static)
    return None


def _resolve(module: _Module, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> _Found | None:
    """What `name` means inside `module`, followed through imports and plain aliases to its definition."""
    if (module.name, name) in seen:
        return None
    seen |= {(module.name, name)}
    for node in reversed(module.statements()):  # the last binding wins
        match node:
            case ast.ClassDef(name=bound) | ast.FunctionDef(name=bound) if bound == name:
                return _Found(module, node)
            case ast.Assign(targets=[ast.Name(id=bound)], value=value) if bound == name:
                return _expression(module, value, seen) or _Found(module, value)
            case ast.AnnAssign(target=ast.Name(id=bound), value=ast.expr() as value) if bound == name:
                return _expression(module, value, seen) or _Found(module, value)
            case ast.Import(names=aliases):
                for alias in aliases:
                    if (alias.asname or alias.name.partition(".")[0]) == name:
                        imported = _module(alias.name if alias.asname else name)
                        return _Found(imported) if imported else None
            case ast.ImportFrom(names=aliases):
                for alias in aliases:
                    if name == (alias.asname or alias.name) or alias.name == "*":
                        found = _imported(module, node, name if alias.name == "*" else alias.name, seen)
                        if found or alias.name != "*":
                            return found
    return None


def _imported(module: _Module, node: ast.ImportFrom, name: str, seen: frozenset[tuple[str, str]]) -> _Found | None:
    source = _module(_absolute(module, node))
    return _member(source, name, seen) if source else None


def _member(module: _Module, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> _Found | None:
    """`module.name`: what the module binds the name to, or its submodule."""
    submodule = _module(f"{module.name}.{name}") if module.folders else None
    if submodule and submodule.folders:
        return _Found(submodule)  # nothing else is called like a package, so torch/__init__.py need not be parsed
    return _resolve(module, name, seen) or (_Found(submodule) if submodule else None)


def _absolute(module: _Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    base = module.package.split(".")
    return ".".join(base[: len(base) - node.level + 1] + ([node.module] if node.module else []))


def _expression(module: _Module, node: ast.expr, seen: frozenset[tuple[str, str]] = frozenset()) -> _Found | None:
    """What a dotted expression such as `nn.Module` or `Base[T]` refers to."""
    match node:
        case ast.Name(id=name):
            return _resolve(module, name, seen)
        case ast.Attribute(value=value, attr=attr):
            owner = _expression(module, value, seen)
            return _attribute(owner, attr) if owner else None
        case ast.Subscript(value=value):
            found = _expression(module, value, seen)
            return found if found and isinstance(found.node, ast.ClassDef) else None
    return None


# ----------------------------------------------------------------------------------------------------------- signatures

_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_Parts = tuple[dict[str, Parameter], bool, tuple[Guard, ...]]


def _callable(found: _Found, seen: frozenset[ast.AST]) -> _Parts:
    """(parameters, open, guards) of a class or function."""
    match found.node:
        case ast.ClassDef() as node:
            return _class(found, node, seen | {node})
        case ast.FunctionDef() as node:
            return _function(found, node)
    return {}, True, ()  # made by an expression: nothing to read


def _function(found: _Found, node: ast.FunctionDef) -> _Parts:
    parameters = {p.name: p for p in _arguments(found.module, node.args, bound=found.method)}
    return parameters, node.args.kwarg is not None, _guards(node, set(parameters))


def _class(found: _Found, node: ast.ClassDef, seen: frozenset[ast.AST]) -> _Parts:
    init = _method(node, "__init__")
    if init is not None:
        parameters = {p.name: p for p in _arguments(found.module, init.args, bound=True)}
        guards = _guards(init, set(parameters))
        if init.args.kwarg is None:
            return parameters, False, guards
        passed = _passed_on(init)
        base = _base(found, node, seen) if passed is not None else None
        if base is None or passed is None:
            return parameters, True, guards
        positional, keywords = passed
        taken = set(list(base[0])[:positional]) | keywords
        inherited = {name: p for name, p in base[0].items() if name not in taken}
        return inherited | parameters, base[1], guards + base[2]
    if _is_dataclass(node):
        return _dataclass(found, node)
    return _base(found, node, seen) or ({}, True, ())


def _base(found: _Found, node: ast.ClassDef, seen: frozenset[ast.AST]) -> _Parts | None:
    """The constructor that `node` inherits; None when a base cannot be followed."""
    for expression in node.bases:
        name = ast.unparse(expression.value if isinstance(expression, ast.Subscript) else expression).rpartition(".")[2]
        if name in _NO_CONSTRUCTOR:
            continue
        base = _expression(found.module, expression)
        if base is None or not isinstance(base.node, ast.ClassDef) or base.node in seen:
            return None
        return _callable(base, seen)
    return {}, False, ()


_NO_CONSTRUCTOR = {"object", "ABC", "Generic", "Protocol"}


def _lineage(found: _Found) -> Iterator[_Found]:
    """A class and its bases, nearest first, so far as they can be followed."""
    seen: list[ast.AST] = []
    queue = [found]
    while queue:
        here = queue.pop(0)
        if not isinstance(here.node, ast.ClassDef) or here.node in seen:
            continue
        seen.append(here.node)
        yield here
        queue += [base for e in here.node.bases if (base := _expression(here.module, e)) is not None]


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((n for n in reversed(node.body) if isinstance(n, ast.FunctionDef) and n.name == name), None)


def _is_dataclass(node: ast.ClassDef) -> bool:
    decorators = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(ast.unparse(d).rpartition(".")[2] == "dataclass" for d in decorators)


def _dataclass(found: _Found, node: ast.ClassDef) -> _Parts:
    parameters: dict[str, Parameter] = {}
    for owner in reversed(list(_lineage(found))):
        if _is_dataclass(owner.node):
            parameters |= {p.name: p for p in _fields(owner.module, owner.node)}
    check = _method(node, "__post_init__")
    return parameters, False, _guards(check, set(parameters), owner="self") if check else ()


def _fields(module: _Module, node: ast.ClassDef) -> Iterator[Parameter]:
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                kind = ast.unparse(annotation)
                if "ClassVar" in kind.partition("[")[0]:
                    continue
                if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "field":
                    options = {k.arg: k.value for k in value.keywords}
                    if (init := options.get("init")) is not None and ast.unparse(init) == "False":
                        continue
                    value = options.get("default", options.get("default_factory"))
                yield Parameter(name, value is None, _literal(value), partial(_annotation, module, annotation))


def _arguments(module: _Module, arguments: ast.arguments, *, bound: bool) -> Iterator[Parameter]:
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(plain, defaults, strict=True))[int(bound) :]
    pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    for argument, default in pairs:
        annotation = partial(_annotation, module, argument.annotation)
        yield Parameter(argument.arg, default is None, _literal(default), annotation)


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except (ValueError, TypeError, SyntaxError):
        return None


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


# --------------------------------------------------------------------------------------------------------------- guards


def _guards(function: ast.FunctionDef, names: set[str], owner: str = "") -> tuple[Guard, ...]:
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


_CALLS = {f.__name__: f for f in (len, min, max, sum, set, sorted, abs, any, all)}
_PLAIN = (
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
                if part in selves or name in _CALLS:
                    continue
                if owner or name not in names:
                    return None
                used.add(name)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _CALLS:
                pass
            case ast.Call():
                return None
            case _:
                if not isinstance(part, _PLAIN):
                    return None
    return frozenset(used)


def _source(node: ast.expr, owner: str) -> str:
    text = ast.unparse(node)
    return text.replace(f"{owner}.", "") if owner else text


# ---------------------------------------------------------------------------------------------------------- annotations

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


def _annotation(module: _Module, node: ast.expr | None) -> Any:
    return Any if node is None else _Annotations(module).evaluate(node)


@dataclass
class _Annotations:
    """Evaluates the part of an annotation that YAML can fill; members of a union that it cannot are left out."""

    module: _Module
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
        first = text.partition(".")[0]
        if text in self.seen:
            return Any
        source = self.origin(first)
        if source.partition(".")[0] in _HEAVY:
            return Opaque
        found = _expression(self.module, node)
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
            choices = [_literal(a) for a in arguments if isinstance(a, ast.Constant | ast.UnaryOp)]
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
        return Any if self.origin(ast.unparse(value).partition(".")[0]).partition(".")[0] not in _HEAVY else Opaque

    def constraint(self, node: ast.expr) -> Any:
        """One piece of metadata: an annotated_types constraint with literal arguments, else None."""
        match node:
            case ast.Call(func=function, args=arguments, keywords=keywords):
                kind = self.light(function)
                if isinstance(kind, type) and kind.__module__ == "annotated_types":
                    named = {k.arg: _literal(k.value) for k in keywords if k.arg}
                    return kind(*(_literal(a) for a in arguments), **named)
        return None

    def light(self, node: ast.expr) -> Any:
        """The object that a name of a light module stands for, or None."""
        name, _, rest = ast.unparse(node).partition(".")
        origin = self.origin(name)
        module, _, last = origin.rpartition(".")
        if not origin:
            return _BUILTINS.get(name) if not rest else None
        if rest:
            module, last = origin, rest
        return getattr(_light_module(module), last, None) if module in _LIGHT else None

    def origin(self, name: str) -> str:
        """The dotted path that an imported name of this module comes from; "" when it is not imported."""
        for node in reversed(self.module.statements()):
            match node:
                case ast.ImportFrom(names=aliases):
                    for alias in aliases:
                        if (alias.asname or alias.name) == name:
                            return f"{_absolute(self.module, node)}.{alias.name}"
                case ast.Import(names=aliases):
                    for alias in aliases:
                        if (alias.asname or alias.name.partition(".")[0]) == name:
                            return alias.name if alias.asname else name
                case ast.ClassDef(name=bound) | ast.Assign(targets=[ast.Name(id=bound)]) if bound == name:
                    return ""
        return ""


_BUILTINS: dict[str, Any] = {t.__name__: t for t in (int, float, str, bool, list, dict, tuple, set, type, complex)}
_BUILTINS["object"] = Any


def _light_module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _union(members: list[Any]) -> Any:
    """The union of those members that YAML can write."""
    if any(m is Any for m in members):
        return Any
    plain = [m for m in members if m is not Opaque]
    if not plain or plain == [None]:
        return typing.Optional[Opaque] if plain else Opaque  # noqa: UP045
    return typing.Union[tuple(plain)]  # noqa: UP007
