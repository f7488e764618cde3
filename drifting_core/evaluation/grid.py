"""The few images of an evaluation that are kept as a picture, light to import for whoever shows them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GRID = "grid.png"
_GRID_ROWS, _GRID_COLUMNS = 10, 10


def grid_samples(classes: int, samples: int) -> list[list[int]]:
    """Sample numbers of a grid: a row per class (up to 10, evenly spaced), the first samples of each (up to 10)."""
    rows = min(classes, _GRID_ROWS)
    columns = min(samples // classes, _GRID_COLUMNS)
    shown = [row * classes // rows for row in range(rows)]
    return [[label + classes * column for column in range(columns)] for label in shown]


def grid_picture(images: dict[int, NDArray[np.uint8]], shown: list[list[int]]) -> Image.Image:
    """The grid of images uint8 (3, H, W), as they are: no border, no scaling."""
    rows = [np.concatenate([images[sample] for sample in row], axis=2) for row in shown]
    return Image.fromarray(np.ascontiguousarray(np.concatenate(rows, axis=1).transpose(1, 2, 0)))
