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


def require_file(path: str | Path) -> None:
    """Refuse unless there is a file to read."""
    if not os.path.isfile(path):  # noqa: PTH113 - never raises
        raise Refusal(f"data.path={path} is no file; allowed: the path of a text in UTF-8, data.path=<file>")


def _reachable(url: str, seconds: float = 0.5) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection(
            (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), seconds
        ):
            return True
    except OSError:
        return False
