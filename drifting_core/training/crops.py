"""Augmented input of the latent-MAE: random resized crops, encoded in the loop (protocol 2.2).

Pre-training sees each image through a fresh crop, which no stored latent can give. Crops are a function of
(seed, step, place in the batch), read by byte offset from the archives.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drifting_core import config
from drifting_core.data import draws
from drifting_core.data.images import CROP_UNIFORMS, decode_rgb, pixels, random_resized_crop
from drifting_core.data.index import ImageReader
from drifting_core.models.tokenizer import Tokenizer


class OnlineCrops:
    """A source of latents (see training/mae.py) that decodes, crops and encodes images as they are asked for.

    Those of the next step are decoded by `threads` threads while the device computes this one: a rank's share of two
    steps is held in memory (1,024 crops of 256 px: 0.2 GB each).
    """

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
        self.compute_batch, self.pool = data.latents.compute_batch, ThreadPoolExecutor(threads)
        self._expected: tuple[tuple[int, int, list[int]], list[Future[np.ndarray]]] | None = None
        refused = set(rejects)
        self.rows = torch.tensor([row for row, name in enumerate(self.reader.names) if name not in refused])
        self.labels = torch.from_numpy(self.reader.labels)[self.rows]
        self.views = 1  # the crop decides about mirroring

    def __len__(self) -> int:
        return len(self.rows)

    def latents(self, rows: Tensor, views: Tensor, step: int, first: int) -> Tensor:
        """Scaled posterior samples (B, C, h, w) of a fresh crop of each of `rows`, from place `first` of the batch on."""
        asked = (step, first, rows.tolist())
        expected, self._expected = self._expected, None
        crops = expected[1] if expected and expected[0] == asked else self._begun(*asked)
        images = torch.from_numpy(np.stack([crop.result() for crop in crops])).split(self.compute_batch)
        mean, std = (torch.cat(parts) for parts in zip(*map(self.tokenizer.encode_moments, images), strict=True))
        start = first * mean[0].numel()
        noise = draws.normal(draws.key(self.seed, "posterior", step), mean.shape, start=start, device=mean.device)
        return (mean + std * noise) * self.tokenizer.scaling_factor

    def expect(self, rows: Tensor, step: int, first: int) -> None:
        asked = (step, first, rows.tolist())
        self._expected = asked, self._begun(*asked)

    def _begun(self, step: int, first: int, rows: list[int]) -> list[Future[np.ndarray]]:
        """Crops of these rows in the making (Pillow frees the interpreter's lock)."""
        shape = (len(rows), CROP_UNIFORMS)
        uniforms = draws.uniform(draws.key(self.seed, "crop", step), shape, start=first * CROP_UNIFORMS).tolist()

        def crop(row: int, own: list[float]) -> np.ndarray:
            image = decode_rgb(self.reader.read(row), self.reader.names[row])
            return pixels(random_resized_crop(image, self.image_size, own, self.scale))

        return [self.pool.submit(crop, row, own) for row, own in zip(self.rows[rows].tolist(), uniforms, strict=True)]
