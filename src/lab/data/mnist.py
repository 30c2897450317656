"""MNIST and Fashion-MNIST through torchvision, from the data root."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lab.data.digits import CentredImages
from lab.data.sources import SOURCES, missing, require
from lab.errors import Refusal
from lab.types import NonNegativeInt, PositiveInt

TRAIN_IMAGES = "train-images-idx3-ubyte"
_HEADER = struct.Struct(">4I")
"""Magic number, images, rows, columns."""
_IMAGES = 0x0803
"""Unsigned bytes in three dimensions."""


class MNIST(CentredImages):
    """60 000 training images of 28×28 pixels, scaled to [0, 1] and centred.

    Files are looked for under `root` in torchvision's layout, plain or gzipped; what is missing torchvision downloads.
    """

    d = 784

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
        plain = self.root / SOURCES[self.source].folder / TRAIN_IMAGES
        path = plain if plain.exists() else plain.with_name(f"{plain.name}.gz")
        try:
            pixels = _read(path)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise Refusal(
                f"{path} is not a whole IDX image file ({error}); delete it to have it downloaded again"
            ) from error
        if pixels.shape[1:] != (28, 28):
            size = "×".join(map(str, pixels.shape[1:]))
            raise Refusal(f"{path} holds images of {size} pixels; {SOURCES[self.source].title} has 28×28")
        return pixels / 255


def _read(path: Path) -> Tensor:
    """Images of an IDX file, plain or gzipped: (n, height, width), 0 … 255."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if len(content) < _HEADER.size:
        raise ValueError(f"its {len(content)} bytes are less than a header")
    magic, n, height, width = _HEADER.unpack_from(content)
    if magic != _IMAGES:
        raise ValueError("it does not begin as a file of images does")
    size = _HEADER.size + n * height * width
    if len(content) != size:
        raise ValueError(f"it has {len(content)} bytes and by its header {size}")
    if not n * height * width:
        raise ValueError("it holds no images")
    pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=_HEADER.size)
    return pixels.reshape(n, height, width)
