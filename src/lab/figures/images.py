"""Many images as one."""

from __future__ import annotations

import io
import math

import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray


def tiled(images: NDArray[np.floating], columns: int) -> NDArray[np.floating]:
    """Images (n, h, w) side by side in rows of `columns`, one pixel apart: one image, NaN between them."""
    n, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1), np.nan, images.dtype)
    for i, image in enumerate(images):
        top, left = i // columns * (h + 1), i % columns * (w + 1)
        sheet[top : top + h, left : left + w] = image
    return sheet


def show(
    ax: Axes, images: NDArray[np.floating], columns: int, title: str, span: tuple[float, float] = (0.0, 1.0)
) -> None:
    """A sheet of images (n, h, w) as all that there is to see on `ax`; white and black are the ends of `span`."""
    low, high = span
    ax.imshow(tiled(images, columns), cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=title)
    for spine in ax.spines.values():
        spine.set_visible(False)


def png(images: NDArray[np.floating], zoom: int = 4) -> bytes:
    """A nearly square sheet of images (n, h, w) as a PNG file: dark is large, each pixel is `zoom`² pixels."""
    sheet = tiled(images, math.ceil(len(images) ** 0.5))
    low, high = float(np.nanmin(sheet)), float(np.nanmax(sheet))
    blown_up = np.nan_to_num(sheet, nan=low).repeat(zoom, 0).repeat(zoom, 1)
    file = io.BytesIO()
    matplotlib.image.imsave(file, blown_up, cmap="gray_r", vmin=low, vmax=high, format="png")
    return file.getvalue()
