"""Signatures are read from source as Python would bind them, without importing what they describe."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union, get_args

import pytest
from annotated_types import Ge, MinLen

from lab.errors import Refusal
from lab.signature import UNKNOWN, Opaque, Signature, attribute, docstring, first_docstring_line, signature
from lab.signature.nodes import instance, is_a, made_by

Make = Callable[..., str]
_numbers = count()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes a package that raises when it is imported, and returns its name, which replaces `PKG` in the sources."""

    def make(**sources: str) -> str:
        name = f"signed_{next(_numbers)}"
        folder = tmp_path / name
        folder.mkdir()
        sources.setdefault("__init__", "")
        for module, source in sources.items():
            text = textwrap.dedent(source).replace("PKG", name)
            imports = "from __future__ import annotations\n"
            (folder / f"{module}.py").write_text(f"{imports}{text}\nraise AssertionError('imported')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        return name

    return make


def read(package: Make, source: str, what: str = "C") -> Signature:
    return signature(f"{package(m=source)}.m.{what}")


def names(found: Signature) -> list[str]:
    return list(found.parameters)


def test_parameters_of_a_class(package: Make) -> None:
    found = read(package, "class C:\n    def __init__(self, a: int, b: float = 1.0, *, c=None): ...")
    assert names(found) == ["a", "b", "c"]
    assert [p.required for p in found.parameters.values()] == [True, False, False]
    assert found.parameters["b"].default == 1.0
    assert [p.annotation for p in found.parameters.values()] == [int, float, Any]
    assert not found.open


def test_function_and_methods(package: Make) -> None:
    source = """
        def f(x: int, *rest, y=2): ...
        class C:
            @classmethod
            def made(cls, k: int): ...
            @staticmethod
            def plain(k: int): ...
        class D(C): ...
    """
    name = package(m=source)
    assert names(signature(f"{name}.m.f")) == ["x", "y"]
    assert names(signature(f"{name}.m.C.made")) == ["k"]
    assert names(signature(f"{name}.m.D.plain")) == ["k"]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("int", int),
        ("'int'", int),
        ("float | None", float | None),
        ("Optional[int]", Optional[int]),  # noqa: UP045
        ("list[float]", list[float]),
        ("Sequence[int]", list[int]),
        ("typing.List[int]", list[int]),
        ("dict[str, PositiveInt]", dict[str, Annotated[int, Ge(1)]]),
        ("tuple[float, float]", tuple[float, float]),
        ("tuple[int, ...]", tuple[int, ...]),
        ("Literal['a', 'b']", Literal["a", "b"]),
        ("Annotated[int, Ge(1), 'words']", Annotated[int, Ge(1)]),
        ("PositiveInt", Annotated[int, Ge(1)]),
        ("PositiveInt | None", Annotated[int, Ge(1)] | None),
        ("Alias", Union[int, str]),  # noqa: UP007
        ("str | Path", str),
        ("float | Tensor", float),
        ("Tensor", Opaque),
        ("nn.Module", Opaque),
        ("Callable[[int], int]", Opaque),
        ("type[int]", Opaque),
        ("Local", Opaque),
        ("Colour", Any),
        ("Unknown", Any),
        ("Any", Any),
        ("object", Any),
        ("list[Tensor]", list[Any]),
    ],
)
def test_annotations(package: Make, annotation: str, expected: Any) -> None:
    source = f"""
        import typing
        from collections.abc import Callable, Sequence
        from enum import Enum
        from pathlib import Path
        from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union

        from annotated_types import Ge
        from torch import Tensor, nn

        from lab.types import PositiveInt

        if TYPE_CHECKING:
            from nowhere import Unknown

        Alias = Union[int, str]
        class Local: ...
        class Colour(Enum): ...
        class C:
            def __init__(self, a: {annotation}): ...
    """
    assert read(package, source).parameters["a"].annotation == expected


def test_alias_defined_elsewhere(package: Make) -> None:
    source = "from PKG.types import Mode\nclass C:\n    def __init__(self, mode: Mode | None = None): ..."
    name = package(m=source, types="from typing import Literal\nMode = Literal['a', 'b']")
    assert set(get_args(signature(f"{name}.m.C").parameters["mode"].annotation)) == {Literal["a", "b"], type(None)}


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ("Annotated[list[float], MinLen(1)]", Annotated[list[float], MinLen(1)]),
        ("Sequence[int]", list[int]),
        ("Union[int, str]", int | str),
    ],
)
def test_alias_of_a_class_with_brackets(package: Make, alias: str, expected: object) -> None:
    source = f"""
        from collections.abc import Sequence
        from typing import Annotated, Union
        from annotated_types import MinLen
        Alias = {alias}
        class C:
            def __init__(self, a: Alias): ...
    """
    assert read(package, source).parameters["a"].annotation == expected


def test_reexports_are_followed(package: Make) -> None:
    init = """
        from .a import *
        from .b import Hidden as Shown
        import PKG.b as other
        Alias = Shown
        try:
            from missing_package import nothing
        except ImportError:
            pass
    """
    name = package(
        __init__=init, a="class A:\n    def __init__(self, x): ...", b="from .c import Hidden", c="class Hidden: ..."
    )
    assert names(signature(f"{name}.A")) == ["x"]
    for path in ("Shown", "Alias", "other.Hidden", "b.Hidden"):
        assert names(signature(f"{name}.{path}")) == []


def test_dataclass_fields_with_inheritance(package: Make) -> None:
    source = """
        import dataclasses
        from dataclasses import dataclass, field
        from typing import ClassVar

        @dataclass
        class Base:
            a: int
            b: float = 1.0
            hidden: int = field(init=False, default=0)
            shared: ClassVar[int] = 3

        @dataclasses.dataclass(frozen=True)
        class C(Base):
            c: list[int] = field(default_factory=list)
            d: str = field(kw_only=True)

            def __post_init__(self):
                if self.a < 1:
                    raise ValueError(f"a={self.a} is too small")
    """
    found = read(package, source)
    assert {name: p.required for name, p in found.parameters.items()} == {"a": True, "b": False, "c": False, "d": True}
    assert found.guards[0].refuses({"a": 0}) == "a=0 is too small"


def test_constructor_is_inherited(package: Make) -> None:
    name = package(
        base="class Base:\n    def __init__(self, a: int): ...",
        m="from PKG import base\nfrom abc import ABC\nclass C(ABC, base.Base): ...\nclass D(C): ...\nclass E(ABC): ...",
    )
    assert names(signature(f"{name}.m.D")) == ["a"]
    assert names(signature(f"{name}.m.E")) == []
    assert not signature(f"{name}.m.E").open


def test_kwargs_passed_to_the_base_take_its_parameters(package: Make) -> None:
    source = """
        class Base:
            def __init__(self, a: int, b: int, c: int = 0): ...
        class C(Base):
            def __init__(self, own: int, **kwargs):
                super().__init__(own, c=3, **kwargs)
    """
    found = read(package, source)
    assert {name: p.required for name, p in found.parameters.items()} == {"own": True, "b": True}
    assert not found.open


@pytest.mark.parametrize(
    "source",
    [
        "class C:\n    def __init__(self, a, **kwargs):\n        self.rest = kwargs",
        "from x_ import B\nclass C(B):\n    def __init__(self, a, **kwargs):\n        super().__init__(**kwargs)",
        "from nowhere import Base\nclass C(Base): ...",
    ],
)
def test_what_cannot_be_followed_is_open(package: Make, source: str) -> None:
    assert read(package, source).open


def test_guards_are_the_constructors_own_refusals(package: Make) -> None:
    source = """
        class C:
            def __init__(self, k: int, ks=(1, 2), mode="a"):
                if k < 1:
                    raise ValueError(f"k={k} must be at least 1")
                if len(ks) != len(set(ks)):
                    raise ValueError("repeated")
                if mode not in ("a", "b"):
                    raise ValueError("mode " + helper(mode))
                if expensive(k):
                    raise ValueError("never read")
                k = k + 1
                if k > 100:
                    raise ValueError("about another k")
    """
    guards = read(package, source).guards
    assert len(guards) == 3
    assert guards[0].refuses({"k": 0}) == "k=0 must be at least 1"
    assert guards[0].refuses({"k": 2}) == ""
    assert guards[0].refuses({"k": "a text"}) == ""
    assert guards[1].refuses({"ks": [1, 1]}) == "repeated"
    assert "mode not in" in guards[2].refuses({"mode": "c"})


def test_a_guard_is_not_judged_by_a_default_that_is_not_known(package: Make) -> None:
    source = """
        LIMIT = 3
        class C:
            def __init__(self, k: int, most=LIMIT, other=None):
                if most is None and k > 1:
                    raise ValueError("most is null")
    """
    found = read(package, source)
    assert [p.default for p in found.parameters.values()] == [UNKNOWN, UNKNOWN, None]
    assert found.guards[0].refuses({"k": 2}) == ""


NODES = """
    import collections.abc
    from collections.abc import Callable, Mapping
    from typing import Any, Optional

    from lab.types import PositiveInt

    class Base: ...
    class Child(Base): ...
    class Other: ...
    Alias = Base | None
    def makes_child() -> Child: ...
    def makes_something(): ...
    def makes_several() -> list[Base]: ...
    class C:
        @classmethod
        def child(cls) -> "Child": ...
        def __init__(self, a: ANNOTATION): ...
"""


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("Base", "called=False each=False optional=False plain=False"),
        ("'Base'", "called=False each=False optional=False plain=False"),
        ("Base | None", "called=False each=False optional=True plain=False"),
        ("Optional[Base]", "called=False each=False optional=True plain=False"),
        ("Alias", "called=False each=False optional=True plain=False"),
        ("float | Base", "called=False each=False optional=False plain=True"),
        ("Callable[..., Base]", "called=True each=False optional=False plain=False"),
        ("Callable[[Any], Base] | None", "called=True each=False optional=True plain=False"),
        ("dict[str, Base]", "called=False each=True optional=False plain=False"),
        ("Mapping[str, Base | None]", "called=False each=True optional=True plain=False"),
        ("tuple[Base, ...]", "called=False each=True optional=False plain=False"),
        ("Base | Callable[..., Base]", None),  # either a node or a partial one
        ("Base | Unknown", None),
        ("int", None),
        ("list[PositiveInt]", None),
        ("Any", None),
        ("collections.abc.Iterator", None),
    ],
)
def test_what_a_node_must_make(package: Make, annotation: str, expected: str | None) -> None:
    wanted = read(package, NODES.replace("ANNOTATION", annotation)).parameters["a"].wanted
    if expected is None:
        assert wanted is None
        return
    assert wanted is not None
    assert str(wanted).endswith(".m.Base")
    assert " ".join(f"{name}={getattr(wanted, name)}" for name in ("called", "each", "optional", "plain")) == expected


@pytest.mark.parametrize(
    ("target", "is_base"),
    [
        ("Base", True),
        ("Child", True),
        ("Other", False),
        ("makes_child", True),
        ("C.child", True),
        ("makes_something", None),
        ("makes_several", None),
    ],
)
def test_what_a_target_makes(package: Make, target: str, is_base: bool | None) -> None:
    name = package(m=NODES.replace("ANNOTATION", "int"))
    made = made_by(f"{name}.m.{target}")
    assert (None if made is None else is_a(made, instance(f"{name}.m.Base").classes)) is is_base


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("torch.optim.SGDD", "torch.optim has no SGDD, did you mean 'torch.optim.SGD'?"),
        ("torch.optm.SGD", "torch has no optm, did you mean 'torch.optim'?"),
        ("lightning.pytorch.Trainr", "did you mean 'lightning.pytorch.Trainer'?"),
        ("trch.optim.SGD", "there is no package trch, did you mean 'torch'?"),
        ("lab.nets.linaer.ReplicatedLinear", "did you mean 'lab.nets.linear'?"),
        ("torch.optim", "this is a module"),
        ("not a name", "not a dotted name"),
        ("", "not a dotted name"),
    ],
)
def test_unknown_targets_are_refused(target: str, line: str) -> None:
    with pytest.raises(Refusal, match="_target_=") as refusal:
        signature(target)
    assert line in str(refusal.value)


def test_known_libraries() -> None:
    sgd = signature("torch.optim.SGD")
    assert sgd.parameters["lr"].annotation is float
    assert [guard.refuses({"lr": -1}) for guard in sgd.guards if guard.names == {"lr"}] == ["Invalid learning rate: -1"]
    trainer = signature("lightning.pytorch.Trainer")
    assert trainer.parameters["max_steps"].annotation is int
    assert "64-true" in str(trainer.parameters["precision"].annotation)
    assert signature("math.sqrt").open
    assert signature("torch.zeros").open


def test_docstrings_and_attributes(package: Make) -> None:
    source = '''
        class Base:
            """Base."""
            reference = "Strang"
            relation = equal("why", rtol=1e-3)
            symbol, x_symbol = "$w$", f("n")
        class C(Base):
            """The statement.

            The derivation.
            """
    '''
    target = f"{package(m=source)}.m.C"
    assert first_docstring_line(target) == "The statement."
    assert docstring(target).endswith("The derivation.")
    assert attribute(target, "reference") == "Strang"
    assert attribute(target, "relation") == "equal('why', rtol=0.001)"
    assert attribute(target, "symbol") == "$w$"
    assert attribute(target, "x_symbol") == "f('n')"
    assert attribute(target, "absent") == ""


def test_nothing_is_imported() -> None:
    code = (
        "import sys; from lab.signature import signature; signature('lightning.pytorch.Trainer'); "
        "signature('torch.optim.Adam'); signature('lab.nets.linear.ReplicatedLinear'); "
        "assert not {'torch', 'lightning', 'numpy', 'lab.nets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
