"""The few images of an evaluation that are kept as a picture, light to import for whoever shows them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GRID = "grid.png"


def grid_samples(labels: NDArray[np.int64], most_rows: int = 10, most_columns: int = 10) -> list[list[int]]:
    """Sample numbers of a grid: a row per class (evenly spaced among those there are), the first samples of each.

    `labels` (N,): class of each sample. Rows are of one length: the samples of the rarest class that is shown.
    """
    classes = np.unique(labels)
    rows = min(len(classes), most_rows)
    first = [np.flatnonzero(labels == classes[row * len(classes) // rows])[:most_columns] for row in range(rows)]
    columns = min(map(len, first))
    return [samples[:columns].tolist() for samples in first]


def grid_picture(images: dict[int, NDArray[np.uint8]], shown: list[list[int]]) -> Image.Image:
    """The grid of images uint8 (3, H, W), as they are: no border, no scaling."""
    rows = [np.concatenate([images[sample] for sample in row], axis=2) for row in shown]
    return Image.fromarray(np.ascontiguousarray(np.concatenate(rows, axis=1).transpose(1, 2, 0)))
