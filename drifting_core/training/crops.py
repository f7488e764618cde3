"""Augmented input of the latent-MAE: random resized crops, encoded in the loop (protocol 2.2).

Pre-training sees each image through a fresh crop, which no stored latent can give. Crops are a function of
(seed, step, place in the batch), read by byte offset from the archives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drifting_core import config
from drifting_core.data import draws
from drifting_core.data.images import CROP_UNIFORMS, decode_rgb, in_order, pixels, random_resized_crop
from drifting_core.data.index import ImageReader
from drifting_core.models.tokenizer import Tokenizer


class OnlineCrops:
    """A source of latents (see training/mae.py) that decodes, crops and encodes images as they are asked for."""

    def __init__(
        self,
        data: config.Data,
        encoder: config.Encoder,
        *,
        index: Path,
        tokenizer: Path,
        rejects: list[str],
        device: torch.device,
        threads: int,
    ) -> None:
        """`rejects`: names of images that the store left out as unreadable. Raises Fault on files that do not fit."""
        self.reader = ImageReader(index, "train", data.archives)
        self.tokenizer = Tokenizer.of(tokenizer, device, encoder.recipe.precision)
        self.image_size, self.scale, self.seed = data.image_size, encoder.crop_scale, encoder.recipe.seed
        self.compute_batch, self.threads = data.latents.compute_batch, threads
        refused = set(rejects)
        self.rows = torch.tensor([row for row, name in enumerate(self.reader.names) if name not in refused])
        self.labels = torch.from_numpy(self.reader.labels)[self.rows]
        self.views = 1  # the crop decides about mirroring

    def __len__(self) -> int:
        return len(self.rows)

    def latents(self, rows: Tensor, views: Tensor, step: int, first: int) -> Tensor:
        """Scaled posterior samples (B, C, h, w) of a fresh crop of each of `rows`, from place `first` of the batch on."""
        shape = (len(rows), CROP_UNIFORMS)
        uniforms = draws.uniform(draws.key(self.seed, "crop", step), shape, start=first * CROP_UNIFORMS).tolist()

        def crop(place: int) -> np.ndarray:
            row = int(self.rows[rows[place]])
            image = decode_rgb(self.reader.read(row), self.reader.names[row])
            return pixels(random_resized_crop(image, self.image_size, uniforms[place], self.scale))

        crops = [made for _, made in in_order(range(len(rows)), crop, self.threads)]
        images = torch.from_numpy(np.stack(crops)).split(self.compute_batch)
        mean, std = (torch.cat(parts) for parts in zip(*map(self.tokenizer.encode_moments, images), strict=True))
        start = first * mean[0].numel()
        noise = draws.normal(draws.key(self.seed, "posterior", step), mean.shape, start=start, device=mean.device)
        return (mean + std * noise) * self.tokenizer.scaling_factor
