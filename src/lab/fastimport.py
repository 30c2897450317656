"""Imports that cost much and bring a run nothing.

Lightning imports torchmetrics, which imports torchvision, scipy and matplotlib (and transformers) wherever it finds
them, for metrics the lab does not use. Hidden while torchmetrics loads, they cost nothing; each is importable as ever
afterwards.

Lightning and torch's optimisers import `torch._dynamo`, which compiles, also where nothing is compiled: a third of the
time a run's imports take. A stand-in gives them what they ask of it and loads the real one for whoever asks for more.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

HIDDEN = {"torchvision", "scipy", "matplotlib", "SciencePlots", "transformers", "torch-fidelity"}
DYNAMO = "torch._dynamo"
_asked: list[Callable[[ModuleType], None]] = []
"""What is to be done as soon as the real one is there."""


def load_torchmetrics() -> None:
    """Import torchmetrics with its optional dependencies hidden; does nothing if it is loaded already."""
    if "torchmetrics" in sys.modules:
        return
    probes: Any = importlib.import_module("lightning_utilities.core.imports")

    version, available = probes._version, probes.package_available

    def hidden_version(name: str) -> Any:
        if name in HIDDEN:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    probes._version = hidden_version
    probes.package_available = lambda name: name not in HIDDEN and available(name)
    try:
        import torchmetrics  # noqa: F401
    finally:
        probes._version, probes.package_available = version, available
        probes.module_available.cache_clear()


def defer_dynamo() -> None:
    """Put a stand-in where `import torch._dynamo` finds it; does nothing if the real one is loaded already."""
    import torch  # noqa: F401 - itself it needs none

    if DYNAMO not in sys.modules:
        sys.modules[DYNAMO] = _StandIn()
        sys.meta_path.insert(0, _Submodules())


@contextmanager
def without_inductor() -> Iterator[None]:
    """Inside, `torch.use_deterministic_algorithms` does not load `torch._inductor` to tell it so.

    It reads the same from the environment whenever it is loaded.
    """
    import torch

    told = torch.use_deterministic_algorithms

    def use(mode: bool, *, warn_only: bool = False) -> None:
        if "torch._inductor.config" in sys.modules:
            told(mode, warn_only=warn_only)
            return
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = str(int(mode))
        torch.set_deterministic_debug_mode(("warn" if warn_only else "error") if mode else "default")

    torch.use_deterministic_algorithms = use
    try:
        yield
    finally:
        torch.use_deterministic_algorithms = told


def _dynamo() -> ModuleType:
    """The real one, in its place from now on."""
    if not _deferred():
        return importlib.import_module(DYNAMO)
    del sys.modules[DYNAMO]
    real = importlib.import_module(DYNAMO)
    while _asked:
        _asked.pop()(real)
    return real


def _deferred() -> bool:
    return isinstance(sys.modules.get(DYNAMO), _StandIn)


class _StandIn(ModuleType):
    """What code that compiles nothing asks of `torch._dynamo`; any other name loads the real one and is its own."""

    def __init__(self) -> None:
        super().__init__(DYNAMO)
        self.__spec__ = importlib.util.find_spec(DYNAMO)
        self.__path__ = list(self.__spec__.submodule_search_locations or ()) if self.__spec__ else []
        self.OptimizedModule = _OptimizedModule
        self.disable = _disable

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of every module by those who look around
            raise AttributeError(name)
        if _deferred():
            if name == "graph_break":
                return _nothing
            if name in PARTS:
                return PARTS[name]
        return getattr(_dynamo(), name)


class _Submodules:
    """Finds `torch._dynamo.<name>` for as long as the stand-in is there: its parent is loaded first, as always."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if not (name.startswith(f"{DYNAMO}.") and _deferred()):
            return None
        _dynamo()
        module = sys.modules.get(name)
        if module is None:
            return None  # the finders after this one know it
        # the import that asks would execute it anew: it is given a spec that hands over what is there
        again, module.__spec__ = module.__spec__, ModuleSpec(name, None)
        module.__spec__.loader = _Loaded(module, again)  # type: ignore[assignment]
        return module.__spec__


class _Loaded:
    """A loader of what is loaded already."""

    def __init__(self, module: ModuleType, spec: ModuleSpec | None) -> None:
        self.module, self.spec = module, spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class _Instances(type):
    """Before `torch._dynamo` is loaded nothing is an instance of its classes."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return not _deferred() and isinstance(instance, _dynamo().OptimizedModule)


class _OptimizedModule(metaclass=_Instances):
    """What `torch.compile(module)` returns, for those who ask whether something is one."""


class _Part:
    """A module of `torch._dynamo` of which one function alone is asked for, and what that says before it is loaded."""

    def __init__(self, name: str, function: str, answer: Any) -> None:
        self._name, self._function, self._answer = name, function, answer

    def __getattr__(self, name: str) -> Any:
        if name == self._function and _deferred():
            return lambda: self._answer
        return getattr(getattr(_dynamo(), self._name), name)


PARTS = {
    # DistributedDataParallel asks how graphs are to be cut; who sets it otherwise has loaded the real one
    "utils": _Part("utils", "get_optimize_ddp_mode", "ddp_optimizer"),
    # a process group that begins; what was not loaded remembers nothing
    "trace_rules": _Part("trace_rules", "clear_lru_cache", None),
}


def _nothing(*_: Any, **__: Any) -> None:
    """A break in a graph where there is none."""


def _disable(fn: Any = None, *args: Any, **kwargs: Any) -> Any:
    """`torch._dynamo.disable`: the function itself, until there is something to be kept from."""
    if not (_deferred() and isinstance(fn, FunctionType)):
        return _dynamo().disable(fn, *args, **kwargs)
    function = fn

    def keep(dynamo: ModuleType) -> None:
        nonlocal function
        function = dynamo.disable(fn, *args, **kwargs)

    @functools.wraps(fn)
    def disabled(*given: Any, **named: Any) -> Any:
        return function(*given, **named)

    _asked.append(keep)
    return disabled
