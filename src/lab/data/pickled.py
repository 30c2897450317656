"""Arrays out of pickles without unpickling: what a file says is followed step by step, and nothing in it is called.

A pickle is a program. Of it this module knows what writes numbers, texts, lists, dictionaries, NumPy's arrays and
SciPy's matrices in compressed rows; whatever else a file asks for is refused.
"""

from __future__ import annotations

import gzip
import pickletools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from lab.errors import Refusal

_ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
_NAMES = {
    **{f"{module} _reconstruct": "array" for module in _ARRAYS},
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "scipy.sparse.csr csr_matrix": "csr",
    "scipy.sparse._csr csr_matrix": "csr",
    "collections defaultdict": "dict",
    "__builtin__ list": "list",
    "builtins list": "list",
    "_codecs encode": "bytes",
}
"""The only names that a file may bring up, and what they stand for here."""

_DTYPES = {f"{kind}{size}" for kind, sizes in (("i", "1248"), ("u", "1248"), ("f", "48")) for size in sizes} | {"b1"}


@dataclass
class _Name:
    kind: str


@dataclass
class _Object:
    """Something that is begun by name and told its state afterwards."""

    kind: str
    code: str = ""
    value: Any = None


class _Refused(Exception):
    pass


def read(path: Path) -> Any:
    """What a pickle holds, plain or gzipped: numbers, texts, lists, dicts, `np.ndarray` of numbers and `csr_matrix`.

    Raises:
        Refusal: it holds something else, or is not whole.
    """
    try:
        content = path.read_bytes()
        return _finished(_Reader().run(gzip.decompress(content) if path.suffix == ".gz" else content))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Refusal(f"{path} is not a whole archive ({error})") from error
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}") from error
    except _Refused as refused:
        raise Refusal(f"{path} is refused: {refused}; only arrays, matrices, lists and dictionaries are read") from None
    except Exception as error:  # whatever a damaged file makes of the steps
        said = " ".join(str(error).split()) or type(error).__name__
        raise Refusal(f"{path} is not a whole pickle of arrays ({said[:120]})") from error


class _Reader:
    """The stack machine that a pickle is a program for."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for code, argument, _ in pickletools.genops(content):
            name = code.name
            if name == "STOP":
                [value] = self.stack
                return value
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _VALUES:
                self.stack.append(argument)
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name not in ("PROTO", "FRAME"):
                raise _Refused(f"it asks for {name}")
        raise ValueError("it has no end")

    def marked(self) -> list[Any]:
        """What has been put on the stack since the last mark."""
        at = self.marks.pop()
        above, self.stack[at:] = self.stack[at:], []
        return above

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("its stack is empty")
        above, self.stack[len(self.stack) - count :] = self.stack[len(self.stack) - count :], []
        return above

    def named(self, name: str) -> None:
        if name not in _NAMES:
            raise _Refused(f"it asks for {'.'.join(name.split())[:80]}")
        self.stack.append(_Name(_NAMES[name]))

    def called(self) -> None:
        made, arguments = self.pop(2)
        if not isinstance(made, _Name) or not isinstance(arguments, tuple):
            raise _Refused("it calls something that it made")
        if made.kind == "dtype":
            code = _text(arguments[0])
            if code.lstrip("<|") not in _DTYPES:
                raise _Refused(f"an array of {code[:20]}")
            self.stack.append(_Object("dtype", code.lstrip("<|")))
        elif made.kind == "bytes":
            self.stack.append(arguments[0].encode("latin-1"))
        elif made.kind == "dict":
            self.stack.append({})
        elif made.kind in ("array", "csr"):
            self.stack.append(_Object(made.kind))
        else:
            raise _Refused(f"it calls {made.kind}")

    def built(self) -> None:
        made, state = self.pop(2)
        if not isinstance(made, _Object):
            raise _Refused("it sets the state of something that has none")
        if made.kind == "dtype":
            if _text(state[1]) not in ("<", "|", "="):
                raise _Refused("numbers with their largest byte first")
        elif made.kind == "array":
            _, shape, dtype, columns_first, content = state
            numbers = np.frombuffer(_bytes(content), np.dtype(f"<{dtype.code}"))
            made.value = numbers.reshape(shape, order="F" if columns_first else "C")
        else:
            made.value = {_text(key): value for key, value in state.items()}
        self.stack.append(made)

    def appended(self, values: list[Any]) -> None:
        self.stack[-1].extend(values)

    def entered(self, values: list[Any]) -> None:
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))


def _finished(value: Any) -> Any:
    match value:
        case _Object(kind="array"):
            return value.value
        case _Object(kind="csr"):
            parts = {name: _finished(value.value[name]) for name in ("data", "indices", "indptr")}
            shape = value.value.get("_shape", value.value.get("shape"))
            matrix = csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=shape)
            matrix.check_format()
            return matrix
        case dict():
            return {key: _finished(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finished(inner) for inner in value]
        case _Object() | _Name():
            raise _Refused(f"it holds a {value.kind} by itself")
    return value


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _bytes(value: Any) -> bytes:
    """Bytes, or those of a string of Python 2."""
    return value if isinstance(value, bytes) else str(value).encode("latin-1")


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE",
    "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip

Step = Callable[[_Reader, Any], Any]


def _put(reader: _Reader, place: Any) -> None:
    reader.memo[len(reader.memo) if place is None else place] = reader.stack[-1]


def _tuple(count: int) -> Step:
    return lambda reader, _: reader.stack.append(tuple(reader.pop(count)))


_STEPS: dict[str, Step] = {
    "MARK": lambda reader, _: reader.marks.append(len(reader.stack)),
    "EMPTY_LIST": lambda reader, _: reader.stack.append([]),
    "EMPTY_DICT": lambda reader, _: reader.stack.append({}),
    "TUPLE": lambda reader, _: reader.stack.append(tuple(reader.marked())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": lambda reader, _: reader.appended(reader.pop(1)),
    "APPENDS": lambda reader, _: reader.appended(reader.marked()),
    "SETITEM": lambda reader, _: reader.entered(reader.pop(2)),
    "SETITEMS": lambda reader, _: reader.entered(reader.marked()),
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "BINGET": lambda reader, place: reader.stack.append(reader.memo[place]),
    "LONG_BINGET": lambda reader, place: reader.stack.append(reader.memo[place]),
    "GLOBAL": lambda reader, name: reader.named(name),
    "STACK_GLOBAL": lambda reader, _: reader.named(" ".join(map(_text, reader.pop(2)))),
    "REDUCE": lambda reader, _: reader.called(),
    "NEWOBJ": lambda reader, _: reader.called(),
    "BUILD": lambda reader, _: reader.built(),
}
