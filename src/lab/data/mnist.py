"""MNIST and Fashion-MNIST through torchvision, from the data root."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lab.data.digits import CentredImages, GreyImages, Images
from lab.data.sources import SOURCES, missing, require
from lab.errors import Refusal
from lab.types import NonNegativeInt, PositiveInt

TRAIN_IMAGES = "train-images-idx3-ubyte"


class _MNISTFiles(Images):
    """Looks for files under `root` in torchvision's layout, plain or gzipped; what is missing torchvision downloads."""

    d = 784
    shape = (28, 28)

    def __init__(
        self,
        source: Literal["mnist", "fashion_mnist"] = "mnist",
        root: str = "data",
        batch_size: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
        block_size: PositiveInt = 50,
    ) -> None:
        super().__init__(batch_size, seed, block_size)
        self.source, self.root = source, Path(root)

    def prepare_data(self) -> None:
        if not missing(self.source, self.root):
            return
        from torchvision.datasets import MNIST as TorchvisionMNIST
        from torchvision.datasets import FashionMNIST

        require(self.source, self.root)
        try:
            (FashionMNIST if self.source == "fashion_mnist" else TorchvisionMNIST)(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise Refusal(
                f"data_root={self.root}: {SOURCES[self.source].title} could not be downloaded: {error}"
            ) from error

    def images(self) -> Tensor:
        return self.pixels(TRAIN_IMAGES) / 255

    def pixels(self, name: str) -> Tensor:
        """The images of a file, (n, 28, 28), 0 … 255."""
        pixels = self._file(name, "image", 3)
        if pixels.shape[1:] != (28, 28):
            size = "×".join(map(str, pixels.shape[1:]))
            raise Refusal(f"{self._path(name)} holds images of {size} pixels; {SOURCES[self.source].title} has 28×28")
        return pixels

    def _file(self, name: str, what: str, dimensions: int) -> Tensor:
        path = self._path(name)
        try:
            return _read(path, dimensions)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise Refusal(
                f"{path} is not a whole IDX {what} file ({error}); delete it to have it downloaded again"
            ) from error

    def _path(self, name: str) -> Path:
        plain = self.root / SOURCES[self.source].folder / name
        return plain if plain.exists() else plain.with_name(f"{plain.name}.gz")


class MNIST(_MNISTFiles, CentredImages):
    """60 000 training images of 28×28 pixels, scaled to [0, 1] and centred."""


class GreyMNIST(_MNISTFiles, GreyImages):
    """60 000 training images of 28×28 pixels in [0, 1], and 10 000 held out."""

    grey = 256

    def images(self) -> Tensor:
        return self.pixels(TRAIN_IMAGES)

    def load(self) -> None:
        super().load()
        self.held_out = self.pixels("t10k-images-idx3-ubyte").flatten(1)
        self.labels = self._labels("train-labels-idx1-ubyte", self.n)
        self.held_out_labels = self._labels("t10k-labels-idx1-ubyte", len(self.held_out))

    def _labels(self, name: str, n: int) -> Tensor:
        labels = self._file(name, "label", 1)
        if len(labels) != n:
            raise Refusal(f"{self._path(name)} holds {len(labels)} labels, for {n} images")
        return labels.long()


def _read(path: Path, dimensions: int) -> Tensor:
    """The bytes of an IDX file, plain or gzipped: (n, height, width) of images, (n,) of labels."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    header = struct.Struct(f">{1 + dimensions}I")
    what = "images" if dimensions == 3 else "labels"
    if len(content) < header.size:
        raise ValueError(f"its {len(content)} bytes are less than a header")
    magic, *shape = header.unpack_from(content)
    if magic != 0x0800 + dimensions:  # unsigned bytes in so many dimensions
        raise ValueError(f"it does not begin as a file of {what} does")
    size = header.size + math.prod(shape)
    if len(content) != size:
        raise ValueError(f"it has {len(content)} bytes and by its header {size}")
    if not math.prod(shape):
        raise ValueError(f"it holds no {what}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header.size).reshape(shape)
