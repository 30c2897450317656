"""Planetoid's files are read whole and without unpickling, refused by name otherwise, and asked for when missing."""

from __future__ import annotations

import gzip
import io
import os
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix, csr_matrix

from lab.data import pickled as reader
from lab.data import planetoid as module
from lab.data import sources
from lab.data.planetoid import Planetoid
from lab.errors import Refusal

SOURCES = ["cora", "citeseer"]


def loaded(root: Path, source: Any = "citeseer", **more: Any) -> Planetoid:
    data = Planetoid(source, str(root), **more)
    data.prepare_data()
    data.setup()
    data.place(torch.device("cpu"))
    return data


# -------------------------------------------------------------------------------------------------------------- pickles


def test_what_python_2_wrote_is_read(tmp_path: Path, pickled: Any) -> None:
    path = tmp_path / "a"
    for a in (np.arange(6, dtype=np.int32).reshape(2, 3), np.linspace(0, 1, 4), np.arange(3, dtype=np.float32)):
        path.write_bytes(pickled.whole(pickled.array(a)))
        found = reader.read(path)
        assert found.dtype == a.dtype
        np.testing.assert_array_equal(found, a)
    matrix = csr_matrix(np.array([[0, 2.0, 0], [1, 0, 3]]))
    path.write_bytes(pickled.whole(pickled.matrix(matrix)))
    np.testing.assert_array_equal(reader.read(path).toarray(), matrix.toarray())
    path.write_bytes(pickled.whole(pickled.lists({3: [1, 2], 500: [], 70000: [3]})))
    assert reader.read(path) == {3: [1, 2], 500: [], 70000: [3]}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        np.arange(12, dtype=np.int64).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        csr_matrix(np.eye(3, dtype=np.float32)),
        defaultdict(list, {1: [2, 300, 70000], 2: []}),
    ],
    ids=["integers", "by columns", "matrix", "lists"],
)
def test_what_python_3_writes_is_read(tmp_path: Path, value: Any, protocol: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(pickle.dumps(value, protocol))
    if protocol == 5 and not isinstance(value, dict):  # arrays go another way then, which Planetoid's never do
        with pytest.raises(Refusal, match="is refused: it asks for"):
            reader.read(path)
        return
    found = reader.read(path)
    if isinstance(value, dict):
        assert found == dict(value)
    else:
        as_array = [v.toarray() if isinstance(v, csr_matrix) else v for v in (found, value)]
        np.testing.assert_array_equal(*as_array)


class Malicious:
    """What a pickle can do when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize(
    "value",
    [
        Malicious(os.mkdir, "was-run"),
        [np.arange(3), Malicious(os.system, "mkdir was-run")],
        defaultdict(list, {1: [Malicious(eval, "__import__('os').mkdir('was-run')")]}),
        Malicious(getattr, [], "append"),
        np.array([{}, Malicious(os.mkdir, "was-run")], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=">f8"),
        np.zeros(2, dtype=[("a", "f8")]),
        csc_matrix(np.eye(2)),
        {1, 2},
        Path("x"),
        len,
    ],
    ids=lambda value: type(value).__name__,  # of one text in every process
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_no_array_is_refused_and_nothing_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a"
    path.write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(Refusal) as refused:
        reader.read(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "was-run").exists()


def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path: Path, pickled: Any) -> None:
    path, whole = tmp_path / "a", pickled.whole(pickled.array(np.arange(50)))
    endless = pickle.dumps(1)[:2] + b"}]" + b"q\x00h\x00a" + b"."
    for content in (b"", b"<html>not found</html>", whole[:40], whole[:-3], whole[:1], endless, b"\x80\x02]."[:2]):
        path.write_bytes(content)
        with pytest.raises(Refusal, match=r"is (not a whole pickle of arrays|refused)") as refused:
            reader.read(path)
        assert str(path) in str(refused.value)
    with pytest.raises(Refusal, match="cannot be read: No such file"):
        reader.read(tmp_path / "b")


def test_a_list_that_holds_itself_is_refused(tmp_path: Path) -> None:
    path, value = tmp_path / "a", list[Any]()
    value.append(value)
    path.write_bytes(pickle.dumps(value, 2))
    with pytest.raises(Refusal, match="is not a whole pickle"):
        reader.read(path)


# ------------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_network_is_put_together(tmp_path: Path, planetoid: Any, source: str, packed: bool) -> None:
    made = planetoid(tmp_path, source)
    if packed:
        for path in list(made["folder"].iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    data = loaded(tmp_path, source)
    words, n = made["words"].astype(float), len(made["kinds"])
    words[made["missing"]] = 0
    expected = words / np.maximum(words.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(data.x.toarray(), expected, rtol=1e-12)
    assert (data.n, data.d, data.classes) == (n, 30, 3)
    there = np.arange(n) != made["missing"]
    np.testing.assert_array_equal(data.labels.numpy()[there], made["kinds"][there])
    assert data.train.tolist() == list(range(made["told"]))
    assert data.validation.tolist() == list(range(made["told"], made["known"]))
    assert data.test.tolist() == made["test"].tolist()
    pairs = {(a, b) for k, others in made["graph"].items() for o in others if o != k for a, b in ((k, o), (o, k))}
    assert data.edges.shape == (2, len(pairs))
    assert set(map(tuple, data.edges.mT.tolist())) == pairs


def test_it_is_what_pytorch_geometric_reads(tmp_path: Path, planetoid: Any) -> None:
    """Its reader unpickles, and names that NumPy and SciPy have moved since."""
    import warnings

    made = planetoid(tmp_path, "citeseer", more=500)  # which are to choose by
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.io import read_planetoid_data

        theirs = read_planetoid_data(str(made["folder"]), "citeseer")
    ours = loaded(tmp_path)
    assert set(map(tuple, theirs.edge_index.mT.tolist())) == set(map(tuple, ours.edges.mT.tolist()))
    shares = theirs.x / theirs.x.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(torch.from_numpy(ours.x.toarray()).float(), shares)
    assert torch.equal(theirs.y, ours.labels)
    assert torch.equal(theirs.test_mask.nonzero().flatten(), ours.test)


def test_ranks_share_the_nodes_that_are_told(tmp_path: Path, planetoid: Any) -> None:
    planetoid(tmp_path, "cora", classes=5)
    [(nodes, labels, weight), again] = loaded(tmp_path, "cora").block(7, 9).batches
    assert weight == 1
    assert torch.equal(again[0], nodes)
    parts, total = [], 0.0
    for rank in range(3):
        data = loaded(tmp_path, "cora")
        data.rank, data.world_size = rank, 3
        data.place(torch.device("cpu"))
        [(part, theirs, share)] = data.block(0, 1).batches
        assert torch.equal(theirs, data.labels[part])
        parts.append(part)
        total += share * float(theirs.double().mean()) / 3
    assert torch.equal(torch.cat(parts), nodes)
    assert total == pytest.approx(float(labels.double().mean()))


def test_rewired_edges_are_as_many_and_no_others_than_the_seed_says(tmp_path: Path, planetoid: Any) -> None:
    planetoid(tmp_path, "cora")
    plain, one, same, other = (
        loaded(tmp_path, "cora", **more)
        for more in ({}, {"rewired": True}, {"rewired": True}, {"rewired": True, "seed": 1})
    )
    assert one.edges.shape == plain.edges.shape
    assert torch.equal(one.edges, same.edges)
    assert not torch.equal(one.edges, other.edges)
    assert (one.edges[0] != one.edges[1]).all()
    assert {(b, a) for a, b in one.edges.mT.tolist()} == {(a, b) for a, b in one.edges.mT.tolist()}


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("source", SOURCES)
def test_missing_files_are_refused_with_what_to_put_where(
    tmp_path: Path, planetoid: Any, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(sources, "_reachable", lambda *_: False)
    made = planetoid(tmp_path, source)
    (made["folder"] / f"ind.{source}.graph").unlink()
    with pytest.raises(Refusal) as refused:
        Planetoid(source, str(tmp_path)).prepare_data()  # type: ignore[arg-type]
    line = str(refused.value)
    assert f"data_root={tmp_path} lacks" in line
    assert f"put ind.{source}.graph (plain or .gz) into {made['folder']}" in line


def test_what_is_missing_is_downloaded(tmp_path: Path, planetoid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planetoid(tmp_path / "there", "cora")
    asked = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO((made["folder"] / url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr(sources, "_reachable", lambda *_: True)
    monkeypatch.setattr(module, "urlopen", answer)
    data = loaded(tmp_path / "here", "cora")
    assert data.n == len(made["kinds"])
    assert asked[0] == "https://github.com/kimiyoung/planetoid/raw/master/data/ind.cora.x"
    assert {path.name for path in (tmp_path / "here/Cora/raw").iterdir()} == {
        path.name for path in made["folder"].iterdir()
    }


def test_a_download_that_fails_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(sources, "_reachable", lambda *_: True)
    monkeypatch.setattr(module, "urlopen", broken)
    with pytest.raises(Refusal, match=r"Cora could not be downloaded: .*no route"):
        Planetoid("cora", str(tmp_path)).prepare_data()


@pytest.mark.parametrize(
    ("part", "body", "said"),
    [
        ("x", "array", "ind.cora.x holds no csr_matrix, as Planetoid's x is"),
        ("ally", "matrix", "ind.cora.ally holds no ndarray"),
        ("graph", "array", "ind.cora.graph holds no dict"),
        ("tx", "matrix", "do not belong together: test.index does not number the rows of tx"),
        ("ty", "array", "do not belong together: there are not as many classes as nodes"),
        ("graph", "lists", "do not belong together: an edge ends at 99"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, planetoid: Any, pickled: Any, part: str, body: str, said: str
) -> None:
    made = planetoid(tmp_path, "cora")
    wrong = {
        "array": pickled.array(np.zeros((4, 3), dtype=np.int32)),
        "matrix": pickled.matrix(csr_matrix(np.eye(4, 30, dtype=np.float32))),
        "lists": pickled.lists({0: [99]}),
    }
    (made["folder"] / f"ind.cora.{part}").write_bytes(pickled.whole(wrong[body]))
    with pytest.raises(Refusal, match=said):
        loaded(tmp_path, "cora")


@pytest.mark.parametrize(("content", "said"), [("1 x", "is no list of nodes"), ("", "is empty")])
def test_a_wrong_list_of_test_nodes_is_refused(tmp_path: Path, planetoid: Any, content: str, said: str) -> None:
    made = planetoid(tmp_path, "cora")
    (made["folder"] / "ind.cora.test.index").write_text(content)
    with pytest.raises(Refusal, match=f"ind.cora.test.index {said}"):
        loaded(tmp_path, "cora")
