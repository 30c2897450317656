"""Where data sets that do not ship with the lab lie, and what to say when they are not there. Imports nothing heavy."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lab.errors import Refusal, nearest


@dataclass(frozen=True)
class Source:
    """Files of one data set below the data root, in the layout its torchvision or PyTorch Geometric class reads."""

    title: str
    folder: str
    files: tuple[str, ...]
    mirror: str


SOURCES = {
    "mnist": Source(
        "MNIST",
        "MNIST/raw",
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    "fashion_mnist": Source(
        "Fashion-MNIST",
        "FashionMNIST/raw",
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    **{
        name: Source(
            title,
            f"{title}/raw",
            tuple(f"ind.{name}.{part}" for part in ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")),
            "https://github.com/kimiyoung/planetoid/raw/master/data/",
        )
        for name, title in (("cora", "Cora"), ("citeseer", "CiteSeer"))
    },
}


def missing(source: str, root: str | Path) -> list[str]:
    """The files of `source` that lie neither plain nor gzipped under `root`."""
    folder = Path(root) / SOURCES[source].folder
    return [
        name
        for name in SOURCES[source].files
        if not os.path.exists(folder / name) and not os.path.exists(folder / f"{name}.gz")  # noqa: PTH110 - never raises
    ]


def require(source: str, root: str | Path) -> None:
    """Refuse unless the files of `source` lie under `root` or the place they come from answers."""
    if source not in SOURCES:
        raise Refusal(
            f"data.source={source} is not a data set; allowed: {', '.join(SOURCES)}{nearest(source, SOURCES)}"
        )
    absent = missing(source, root)
    if absent and not _reachable(SOURCES[source].mirror):
        known = SOURCES[source]
        raise Refusal(
            f"data_root={root} lacks {known.title} and there is no network to download it: put {', '.join(absent)} "
            f"(plain or .gz) into {Path(root) / known.folder}, or set data_root to the folder that holds {known.folder}"
        )


MOST_CHARACTERS = 2**15
"""Different ones that a text may have: so many are told apart in two bytes."""


def require_text(path: str | Path, share: float, context: int, vocabulary: int | None, most: int = 2**24) -> None:
    """Refuse unless there is a text to learn; one of more than `most` bytes is looked at when it is loaded."""
    if not os.path.isfile(path):  # noqa: PTH113 - never raises
        raise Refusal(f"data.path={path} is no file; allowed: the path of a text in UTF-8, data.path=<file>")
    if os.path.getsize(path) > most:  # noqa: PTH202 - as above
        return
    text = read_text(path)
    split(path, len(text), share, context)
    symbols = len(set(text))
    require_few(path, symbols)
    if vocabulary is not None and vocabulary < symbols:
        raise Refusal(f"model.net.vocabulary={vocabulary} is too small: the data have {symbols} symbols")


def read_text(path: str | Path) -> str:
    """A whole file in UTF-8; refuses one that is none or has nothing in it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise Refusal(f"data.path={path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Refusal(f"data.path={path} is no text in UTF-8: {error.reason} at byte {error.start}") from None
    if not text:
        raise Refusal(f"data.path={path} is empty; allowed: a text in UTF-8")
    return text


def split(path: str | Path, length: int, share: float, context: int) -> int:
    """How many of a text's characters are trained on; refuses a text of which either part has no window."""
    trained = round(length * (1 - share))
    for part, characters in (("trains on", trained), ("holds out", length - trained)):
        if characters <= context:
            raise Refusal(
                f"data.path={path} is too short: data.share={share} {part} {characters} characters, and "
                f"data.context={context} needs {context + 1}"
            )
    return trained


def require_few(path: str | Path, symbols: int) -> None:
    """Refuse a text of more different characters than are told apart."""
    if symbols > MOST_CHARACTERS:
        raise Refusal(f"data.path={path} has {symbols} distinct characters; at most {MOST_CHARACTERS} are allowed")


def _reachable(url: str, seconds: float = 0.5) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection(
            (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), seconds
        ):
            return True
    except OSError:
        return False
