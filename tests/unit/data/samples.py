"""Archives of a few photos, a tokenizer that needs no training, and stores made with both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drifting_core import config
from drifting_core.data import encoding, latents, packing
from drifting_core.data import index as images_index

HASH = "0" * 64
TRAIN, VAL = 5, 2  # photos of each class


class Halves:
    """A tokenizer that needs no training: 2x2 means of the image and of its first channel; the variance is given."""

    scaling_factor = 2.0
    sha256 = "1" * 64
    precision = "float32"

    def __init__(self, std: float = 0.1, batches: list[int] | None = None) -> None:
        self.std, self.batches = std, batches if batches is not None else []

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(images))
        pooled = torch.nn.functional.avg_pool2d(images.float() / 127.5 - 1, 2)
        mean = torch.cat([pooled, pooled[:, :1]], dim=1)
        return mean, torch.full_like(mean, self.std)


def write_archives(folder: Path, data: config.Data | None = None) -> Path:
    """Archives and index of a few photos, or of those that `data` describes."""
    data = data or section(folder)
    packing.pack(data, folder / "packed.json", HASH)
    images_index.check(data, folder / "archives.json", HASH)
    images_index.index(data, folder / "archives.json", folder / "index.json", HASH)
    return folder


def section(packed: Path, **changed: Any) -> config.Data:
    values = {
        "name": "photos",
        "archives": {role: str(packed / file) for role, file in
                     {"train": "train.tar", "val": "val.tar", "devkit": "devkit.tar.gz"}.items()},
        "expected": {"classes": 10, "train_images": 10 * TRAIN, "val_images": 10 * VAL,
                     "train_per_class": [TRAIN, TRAIN], "val_per_class": [VAL, VAL]},
        "image_size": 32,
        "latents": {"compute_batch": 8, "chunk_rows": 8, "shards_train": 2, **changed.pop("latents", {})},
        **changed,
    }  # fmt: skip
    return config.Data.model_validate(values)


def encode(data: config.Data, packed: Path, folder: Path, split: Any = "train", tokenizer: Any = None) -> Path:
    """Encode and combine a split; returns its manifest."""
    shards = data.latents.shards_of(split)
    paths = [folder / f"shard_{shard}.json" for shard in range(shards)]
    (folder / "tokenizer.json").parent.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text("{}")
    for shard, path in enumerate(paths):
        encoding.encode_shard(
            data, split, shard, packed / "index.json", tokenizer or Halves(), folder / "tokenizer.json", path, HASH
        )
    latents.combine(split, data, packed / "index.json", paths, folder / "manifest.json", HASH)
    return folder / "manifest.json"
