"""What tests of several modules use."""

from __future__ import annotations

import itertools
import math
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random_array
from threadpoolctl import threadpool_limits

from lab import paths

LONGEST = ["test_claims_controls", "integration/test_slurm", "integration/test_wandb", "integration/test_sweep"]
LONGEST += ["integration/test_stopped", "test_bench", "integration/test_ranks", "integration/test_same_run"]
"""Test files that take minutes, the longest first."""


def pytest_configure(config: pytest.Config) -> None:
    """A file that was renamed would begin late without a word."""
    absent = [name for name in LONGEST if not (Path(__file__).parent / f"{name}.py").exists()]
    if absent and not hasattr(config, "workerinput"):
        raise pytest.UsageError(f"LONGEST in tests/conftest.py names {', '.join(absent)}, which is not there")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several workers begin with what takes longest: what is left at the end is then short, and none waits for it."""
    if hasattr(config, "workerinput"):
        order = {Path(__file__).parent / f"{name}.py": place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ that the test may spoil."""
    copy = tmp_path / "conf"
    shutil.copytree(paths.CONF, copy)
    monkeypatch.setattr(paths, "CONF", copy)
    return copy


@pytest.fixture
def one_thread() -> None:
    """Two threads on busy cores wait for each other."""
    import torch

    torch.set_num_threads(1)
    threadpool_limits(1, "blas")  # numpy's


@pytest.fixture(scope="session")
def ready() -> Callable[..., Any]:
    """Sets sequences up in float64 on the processor, as this rank of so many holds them."""
    import torch

    def set_up(data: Any, rank: int = 0, ranks: int = 1) -> Any:
        data.dtype, data.rank, data.world_size = torch.float64, rank, ranks
        data.setup()
        data.place(torch.device("cpu"))
        return data

    return set_up


@pytest.fixture(scope="session")
def text() -> Callable[..., Path]:
    """Writes a file of text into a folder."""

    def write(folder: Path, content: str = "the cat sat on the mat\n" * 40) -> Path:
        path = folder / "text.txt"
        path.write_text(content, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def evidence() -> Callable[[tuple[int, ...], int, float], float]:
    """ln p(word), the rows of P integrated out: a Dirichlet-multinomial law for each, with uniform first symbol."""

    def integrated(word: tuple[int, ...], k: int, alpha: float) -> float:
        total = -math.log(k)
        for i in range(k):
            after = [b for a, b in itertools.pairwise(word) if a == i]
            total += math.lgamma(k * alpha) - math.lgamma(k * alpha + len(after))
            total += sum(math.lgamma(alpha + after.count(j)) - math.lgamma(alpha) for j in range(k))
        return total

    return integrated


@pytest.fixture(scope="session")
def model() -> Callable[..., Any]:
    """Makes what Trainer.fit leaves of a model of sequences before the first step."""
    import torch

    from lab.models.next_token import NextToken
    from lab.nets.transformer import Transformer

    def make(data: Any = None, **options: Any) -> NextToken:
        nets = {"net": Transformer(4, 12, 2, 1, 8), "fixed": Transformer(4, 12, 1, 1, 8)}
        made = NextToken(**{"optimizer": partial(torch.optim.SGD, lr=0.1), **nets, **options}).double()
        if data is not None:
            made.trainer = SimpleNamespace(datamodule=data, max_steps=7)  # type: ignore[assignment]
            made.setup("fit")
        return made

    return make


class Pickled:
    """Pickles as Python 2 wrote them for Planetoid, opcode by opcode."""

    @staticmethod
    def whole(body: bytes) -> bytes:
        return b"\x80\x02" + body + b"."

    @staticmethod
    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    @staticmethod
    def text(value: bytes) -> bytes:
        return b"U" + struct.pack("<B", len(value)) + value

    @classmethod
    def array(cls, a: np.ndarray) -> bytes:
        a = np.ascontiguousarray(a)
        shape = b"".join(map(cls.number, a.shape)) + {1: b"\x85", 2: b"\x86"}[a.ndim]
        dtype = b"cnumpy\ndtype\n" + cls.text(a.dtype.str[1:].encode()) + b"K\x00K\x01\x87R"
        dtype += b"(K\x03" + cls.text(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        content = b"T" + struct.pack("<i", a.nbytes) + a.tobytes()
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + cls.text(b"b") + b"\x87R"
        return made + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"

    @classmethod
    def matrix(cls, m: csr_matrix) -> bytes:
        shape = cls.text(b"_shape") + cls.number(m.shape[0]) + cls.number(m.shape[1]) + b"\x86"
        parts = b"".join(cls.text(k.encode()) + cls.array(getattr(m, k)) for k in ("indptr", "indices", "data"))
        head = cls.text(b"format") + cls.text(b"csr")
        return b"cscipy.sparse.csr\ncsr_matrix\n)\x81}(" + head + shape + parts + b"ub"

    @classmethod
    def lists(cls, graph: dict[int, list[int]]) -> bytes:
        entries = b"".join(
            cls.number(k) + b"](" + b"".join(map(cls.number, others)) + b"e" for k, others in graph.items()
        )
        return b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R(" + entries + b"u"


@pytest.fixture(scope="session")
def pickled() -> type[Pickled]:
    return Pickled


Planetoid = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def planetoid() -> Planetoid:
    """Writes a small network in Planetoid's format below a data root; returns what went into it.

    The test nodes are in random order and leave a number out, which is then a node without words or class. Where it is
    `telling`, words are in part those of a class, and edges are within classes; else neither knows of classes.
    """

    def write(
        root: Path, source: str, d: int = 30, classes: int = 3, more: int = 8, tested: int = 9, telling: bool = False
    ) -> dict[str, Any]:
        random = np.random.default_rng(0)
        told, known = 2 * classes, 4 * classes + more
        numbers = known + random.permutation(np.delete(np.arange(tested + 1), 4))
        n = known + tested + 1
        words = random_array((n, d), density=0.2, rng=random, dtype=np.float32).tocsr()
        words.data[:] = 1
        words = csr_matrix(words)
        kinds = np.concatenate([np.arange(told) % classes, random.integers(0, classes, n - told)])
        one_hot = np.eye(classes, dtype=np.int32)[kinds]
        graph: dict[int, list[int]] = {i: [] for i in range(n)}
        pairs = random.integers(0, n, (2 * n, 2))
        if telling:
            own = np.arange(d) % classes == kinds[:, None]
            words = csr_matrix((random.random((n, d)) < np.where(own, 0.3, 0.1)).astype(np.float32))
            among = [np.flatnonzero(kinds == kind) for kind in range(classes)]
            pairs[:, 1] = [random.choice(among[kinds[a]]) for a in pairs[:, 0]]
        for a, b in pairs.tolist():
            graph[a].append(b)
            graph[b].append(a)
        graph[0] += [0, graph[0][0]]  # an edge to itself, and one twice
        parts = {"x": words[:told], "allx": words[:known], "tx": words[numbers]}
        arrays = {"y": one_hot[:told], "ally": one_hot[:known], "ty": one_hot[numbers]}
        folder = root / {"cora": "Cora", "citeseer": "CiteSeer"}[source] / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        bodies = {k: Pickled.matrix(m) for k, m in parts.items()} | {k: Pickled.array(a) for k, a in arrays.items()}
        for name, body in (bodies | {"graph": Pickled.lists(graph)}).items():
            (folder / f"ind.{source}.{name}").write_bytes(Pickled.whole(body))
        (folder / f"ind.{source}.test.index").write_text("\n".join(map(str, numbers)) + "\n")
        return {
            "folder": folder, "words": words.toarray(), "kinds": kinds, "graph": graph, "told": told, "known": known,
            "test": np.sort(numbers), "missing": known + 4,
        }  # fmt: skip

    return write
