"""Imports that cost much and bring a run nothing.

Lightning imports torchmetrics, which imports torchvision, scipy and matplotlib (and transformers) wherever it finds
them, for metrics the lab does not use. Hidden while torchmetrics loads, they cost nothing; each is importable as ever
afterwards.

Lightning and parts of torch import `torch._dynamo`, which compiles, also where nothing is compiled: more than a third
of the time a run's imports take. A stand-in gives these few what they ask of it. Whoever else asks anything of it,
imports a part of it or sets something in it gets the real one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

HIDDEN = {"torchvision", "scipy", "matplotlib", "SciencePlots", "transformers", "torch-fidelity"}
DYNAMO = "torch._dynamo"


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
        sys.meta_path.insert(0, _Parts())


@contextmanager
def without_inductor() -> Iterator[None]:
    """Inside, `torch.use_deterministic_algorithms(True)` does not load `torch._inductor` to tell it so.

    That reads it from the environment, where it is left for this process and its children, whenever it is loaded.
    """
    import torch

    told = torch.use_deterministic_algorithms

    def use(mode: bool, *, warn_only: bool = False) -> None:
        if mode is not True or "torch._inductor.config" in sys.modules:
            told(mode, warn_only=warn_only)
            return
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"
        torch.set_deterministic_debug_mode("warn" if warn_only else "error")

    torch.use_deterministic_algorithms = use
    try:
        yield
    finally:
        torch.use_deterministic_algorithms = told


def _deferred() -> bool:
    return isinstance(sys.modules.get(DYNAMO), _StandIn)


def _dynamo() -> ModuleType:
    """The real one, in its place from now on."""
    stand_in = sys.modules.get(DYNAMO)
    if not isinstance(stand_in, _StandIn):
        return importlib.import_module(DYNAMO)
    del sys.modules[DYNAMO]
    for fn in _not_disabled:
        fn.__dict__.pop("__dynamo_disable", None)  # where torch keeps the answer; it will ask again
    try:
        real = importlib.import_module(DYNAMO)
    except BaseException:
        sys.modules[DYNAMO] = stand_in
        raise
    while _later:
        _later.pop()(real)
    return real


_not_disabled: weakref.WeakSet[FunctionType] = weakref.WeakSet()
"""What torch asked to keep from being compiled."""


def _disable(fn: FunctionType, *_: Any, **__: Any) -> FunctionType:
    """The function itself: nothing is compiled yet."""
    _not_disabled.add(fn)
    return fn


_later: list[Callable[[ModuleType], None]] = []
"""What is done as soon as the real one is there."""


def _disable_later(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """A function that is kept from being compiled as soon as anything can be."""
    now: Callable[..., Any] = fn

    def disable(dynamo: ModuleType) -> None:
        nonlocal now
        now = dynamo.disable(fn, *args, **kwargs)

    @functools.wraps(fn)
    def kept(*given: Any, **named: Any) -> Any:
        return now(*given, **named)

    _later.append(disable)
    return kept


class _Compiled(type):
    """Before `torch._dynamo` is loaded nothing is a compiled module."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return not _deferred() and isinstance(instance, _dynamo().OptimizedModule)


class _OptimizedModule(metaclass=_Compiled):
    """What `torch.compile(module)` returns, for Lightning, which asks only whether something is one."""


ANSWERS: dict[tuple[str, str], Any] = {
    ("lightning.fabric.wrappers", "OptimizedModule"): _OptimizedModule,
    ("lightning.pytorch.utilities.compile", "OptimizedModule"): _OptimizedModule,
    ("lightning.pytorch.trainer.connectors.logger_connector.result", "disable"): _disable_later,
    ("torch._compile", "disable"): _disable,
    ("torch.optim.optimizer", "graph_break"): lambda: None,
    # how DistributedDataParallel's graphs are to be cut: who sets it otherwise has loaded the real one
    ("torch.nn.parallel.distributed", "utils"): SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer"),
    # when a process group begins: what was never loaded remembers nothing
    ("torch.distributed.distributed_c10d", "trace_rules"): SimpleNamespace(clear_lru_cache=lambda: None),
}
"""(Who asks, for what) → what they are given."""
GO_BETWEENS = {"importlib._bootstrap", "torch.compiler"}
"""They ask for others."""


class _StandIn(ModuleType):
    """`torch._dynamo` until somebody needs it."""

    def __init__(self) -> None:
        super().__init__(DYNAMO)
        spec = importlib.util.find_spec(DYNAMO)
        assert spec
        vars(self).update(__spec__=spec, __file__=spec.origin, __path__=spec.submodule_search_locations)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # asked of every module by those who look around
            raise AttributeError(f"module {DYNAMO!r} has no attribute {name!r}")
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__") in GO_BETWEENS:
            frame = frame.f_back
        who = str(frame.f_globals.get("__name__"))
        if _deferred() and (who, name) in ANSWERS:
            return ANSWERS[who, name]
        return getattr(_dynamo(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_dynamo(), name, value)

    def __dir__(self) -> list[str]:
        return dir(_dynamo())


class _Parts:
    """Finds `torch._dynamo.<part>` for as long as the stand-in is there: what it is part of is loaded first."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if not (name.startswith(f"{DYNAMO}.") and _deferred()):
            return None
        _dynamo()
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        if spec is not None:
            spec.loader = _Loaded(module, spec.loader)  # the import that asks would execute the part once more
        return spec


class _Loaded:
    """Hands over, once, a module that is loaded; in all else it is the loader that loaded it."""

    def __init__(self, module: Any, loader: Any) -> None:
        self._module, self._loader = module, loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module: ModuleType = self._module
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__
        module.__spec__.loader = self._loader
