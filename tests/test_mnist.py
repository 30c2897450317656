"""MNIST's files are read when whole, refused by name when they are not, and asked for when they are missing."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.data import sources
from lab.data.mnist import MNIST, GreyMNIST
from lab.errors import Refusal

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
IDX = struct.pack(">4B3I", 0, 0, 8, 3, *PIXELS.shape) + PIXELS.tobytes()
FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_reachable", lambda *_: False)


def put(root: Path, source: str, images: bytes, *, packed: bool = False) -> Path:
    """Write the four files of a data set, the training images with this content; returns their path."""
    folder = root / FOLDERS[source] / "raw"
    folder.mkdir(parents=True)
    for name in ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / name).touch()
    path = folder / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    path.write_bytes(images)
    return path


@pytest.mark.parametrize("source", FOLDERS)
@pytest.mark.parametrize("packed", [False, True])
def test_images_are_read_plain_and_packed(tmp_path: Path, source: str, packed: bool) -> None:
    put(tmp_path, source, gzip.compress(IDX) if packed else IDX, packed=packed)
    data = MNIST(source, str(tmp_path))  # type: ignore[arg-type]
    data.prepare_data()
    expected = torch.from_numpy(PIXELS / 255)
    torch.testing.assert_close(data.images().double(), expected, rtol=1e-6, atol=0)
    data.dtype = torch.float64
    data.setup()
    torch.testing.assert_close(data.x + data.mean, expected.flatten(1), rtol=1e-6, atol=1e-7)
    assert data.shape == (28, 28)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        IDX[:10],
        IDX[:-1],
        IDX + b"\0",
        b"<html>not found</html>" * 100,
        struct.pack(">4B1I", 0, 0, 8, 1, 30) + bytes(30),  # a file of labels
        struct.pack(">4B3I", 0, 0, 13, 3, 2, 2, 2) + bytes(32),  # floats
        struct.pack(">4B3I", 0, 0, 10, 3, 2, 2, 2) + bytes(8),  # no type that IDX knows
        struct.pack(">4B3I", 0, 0, 8, 3, 0, 28, 28),
    ],
    ids=["empty", "half a header", "cut short", "too long", "another file", "labels", "floats", "unknown", "no images"],
)
def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path: Path, content: bytes, packed: bool) -> None:
    path = put(tmp_path, "mnist", gzip.compress(content) if packed else content, packed=packed)
    with pytest.raises(Refusal, match=r"is not a whole IDX image file \(.{10,}\)") as refused:
        MNIST("mnist", str(tmp_path)).images()
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("damage", ["cut", "changed", "plain"])
def test_a_damaged_archive_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(IDX)
    flipped = whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:]
    path = put(tmp_path, "mnist", {"cut": whole[:-100], "changed": flipped, "plain": IDX}[damage], packed=True)
    with pytest.raises(Refusal, match=r"is not a whole IDX image file \(.{10,}\)") as refused:
        MNIST("mnist", str(tmp_path)).images()
    assert str(path) in str(refused.value)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", FOLDERS)
def test_missing_files_are_refused_with_what_to_put_where(tmp_path: Path, source: str) -> None:
    path = put(tmp_path, source, IDX)
    path.unlink()
    with pytest.raises(Refusal) as refused:
        MNIST(source, str(tmp_path)).prepare_data()  # type: ignore[arg-type]
    line = str(refused.value)
    assert f"put train-images-idx3-ubyte (plain or .gz) into {tmp_path}/{FOLDERS[source]}/raw" in line
    assert f"data_root={tmp_path}" in line
    assert "no network" in line
    assert "labels" not in line  # those are there


def test_a_download_that_fails_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(sources, "_reachable", lambda *_: True)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", broken)
    with pytest.raises(Refusal, match="Fashion-MNIST could not be downloaded: Error downloading train-images"):
        MNIST("fashion_mnist", str(tmp_path)).prepare_data()


def test_a_data_set_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"allowed: mnist, fashion_mnist, cora, citeseer, did you mean 'mnist'\?"):
        sources.require("mnits", tmp_path)


# ------------------------------------------------------------------------------------------------------ pixels as bytes


def labels(n: int) -> bytes:
    return struct.pack(">4B1I", 0, 0, 8, 1, n) + bytes(i % 10 for i in range(n))


def grey(root: Path, **files: bytes) -> GreyMNIST:
    """The data of four files, by default 30 images to train on and the first 12 of them held out."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    held_out = struct.pack(">4B3I", 0, 0, 8, 3, 12, 28, 28) + PIXELS[:12].tobytes()
    whole = {"train_images": IDX, "train_labels": labels(30), "t10k_images": held_out, "t10k_labels": labels(12)}
    for name, content in (whole | files).items():
        part, what = name.split("_")
        (folder / f"{part}-{what}-idx{3 if what == 'images' else 1}-ubyte").write_bytes(content)
    data = GreyMNIST("mnist", str(root), batch_size=8, seed=1)
    data.prepare_data()
    data.setup()
    data.place(torch.device("cpu"))
    return data


def test_grey_images_lie_as_bytes_and_are_served_between_0_and_1(tmp_path: Path) -> None:
    data = grey(tmp_path)
    assert data.x.dtype == torch.uint8
    assert data.shape == (28, 28)
    (x, weight), (after, _) = data.block(2, 4).batches
    expected = torch.from_numpy(PIXELS / 255).flatten(1)
    for batch, step in ((x, 2), (after, 3)):
        torch.testing.assert_close(batch.double(), expected[data.order.batch(step)], rtol=1e-6, atol=0)
    assert weight == 1
    assert not data.mean.any()
    assert data.labels.tolist() == [i % 10 for i in range(30)]


def test_examples_are_held_out(tmp_path: Path) -> None:
    data = grey(tmp_path)
    x, shown = data.examples(5)
    torch.testing.assert_close(x.double(), torch.from_numpy(PIXELS[:5] / 255).flatten(1), rtol=1e-6, atol=0)
    assert shown.tolist() == [0, 1, 2, 3, 4]
    assert len(data.examples(100)[0]) == 12


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"t10k_images": IDX[:50]}, r"t10k-images-idx3-ubyte is not a whole IDX image file \(it has 50 bytes"),
        ({"train_labels": labels(29)}, "train-labels-idx1-ubyte holds 29 labels, for 30 images"),
        (
            {"t10k_labels": IDX},
            r"t10k-labels-idx1-ubyte is not a whole IDX label file \(it does not begin as a file of l",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        grey(tmp_path, **files)
