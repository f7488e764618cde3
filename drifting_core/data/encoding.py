"""Images to latents: one shard job of a split."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core import config
from drifting_core.artifacts import LatentContract, LatentShard, hashes, records
from drifting_core.data import draws
from drifting_core.data.archives import ImageReader
from drifting_core.data.images import BrokenImage, centre_crop_of, in_order, transforms
from drifting_core.data.latents import Split, require_few_rejects, write_shard
from drifting_core.faults import Fault
from drifting_core.jobs import Progress
from drifting_core.provenance import code_version

log = logging.getLogger(__name__)

VIEWS = ("image", "mirror")


class Encoder(Protocol):
    """What encoding needs of models.tokenizer.Tokenizer (rooms import downwards only)."""

    scaling_factor: float
    sha256: str

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


def contract_of(data: config.Data, tokenizer_sha256: str, scaling_factor: float) -> LatentContract:
    """How latents of this configuration are made with the tokenizer of these weights and this scale."""
    latents = data.latents
    return LatentContract(
        tokenizer_sha256=tokenizer_sha256,
        scaling_factor=scaling_factor,
        posterior=latents.posterior,
        views=list(VIEWS[: latents.views]),
        dtype=latents.dtype,
        precision=latents.precision,
        pre_encode_transforms=transforms(data.image_size),
    )


def encode_shard(
    data: config.Data,
    split: Split,
    shard: int,
    index: Path,
    tokenizer: Encoder,
    tokenizer_manifest: Path,
    output: Path,
    configuration: str,
    threads: int = 1,
) -> LatentShard:
    """Encode rows of `split` that belong to `shard` and write `output` (JSON) with its HDF5 file beside it.

    Rows are cut evenly and in order over the shards. Unreadable images are listed and left out. Raises Fault when there
    are more of those than data.max_rejects, or when a latent is not finite.
    """
    shards = data.latents.shards_train if split == "train" else data.latents.shards_val
    if not 0 <= shard < shards:
        raise Fault(f"--shard {shard}: data.latents.shards_{split} is {shards}")
    reader = ImageReader(index, split, data.archives)
    first, last = len(reader) * shard // shards, len(reader) * (shard + 1) // shards
    rows, rejects, blocks = [], list[str](), []
    progress = Progress(f"encode {split} {shard}", last - first, unit="images")
    for held, crops, rejected in _chunks(reader, range(first, last), data, threads):
        rejects += rejected
        require_few_rejects(rejects, data.max_rejects)
        if held:
            blocks.append(encode_rows(crops, held, split, data.latents, tokenizer, reader.names))
        rows += held
        progress.advance(len(held) + len(rejected), f"{len(rejects)} rejects" if rejects else "")
    if not rows:
        raise Fault(f"{output}: no readable image in rows {first} to {last - 1}; fewer shards, or other archives")
    contract, file = contract_of(data, tokenizer.sha256, tokenizer.scaling_factor), output.with_suffix(".h5")
    latents = np.concatenate(blocks)
    write_shard(file, latents, reader.labels[rows], [reader.names[row] for row in rows], contract, data.latents.chunk_rows)
    made = LatentShard(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"index": index, "tokenizer": tokenizer_manifest}),
        files=records(output.parent, [file.name]),
        split=split,
        shard=shard,
        shards=shards,
        rows=len(rows),
        shape=list(latents.shape[2:]),
        rejects=rejects,
        contract=contract,
    )
    made.write(output)
    return made


def _chunks(
    reader: ImageReader, rows: range, data: config.Data, threads: int
) -> Iterator[tuple[list[int], NDArray[np.uint8], list[str]]]:
    """Rows, their crops uint8 (R, 3, S, S) and names of rejected images, per chunk of the store, decoded ahead."""

    def crop(row: int) -> NDArray[np.uint8] | BrokenImage:
        try:
            return centre_crop_of(reader, row, data.image_size)
        except BrokenImage as broken:
            return broken

    step = data.latents.chunk_rows
    held, crops, rejected = list[int](), list[NDArray[np.uint8]](), list[str]()
    for row, made in in_order(rows, crop, threads, ahead=2 * step):
        if isinstance(made, BrokenImage):
            log.warning("%s", made)
            rejected.append(made.name)
        else:
            held.append(row)
            crops.append(made)
        if len(held) + len(rejected) == step or row == rows[-1]:
            yield held, np.stack(crops) if crops else np.empty(0, np.uint8), rejected
            held, crops, rejected = [], [], []


def encode_rows(
    crops: NDArray[np.uint8],
    rows: list[int],
    split: Split,
    latents: config.Latents,
    tokenizer: Encoder,
    names: list[str],
) -> NDArray[np.floating]:
    """Scaled latents (R, views, C, H, W) of crops uint8 (R, 3, S, S); `rows` are their places in the index.

    The posterior's noise is a function of (seed, split, row, view). The tokenizer always sees `compute_batch` images,
    the last of them padding, because bits depend on the batch's size.
    """
    images = torch.from_numpy(crops)
    stacked = torch.stack([images, images.flip(-1)][: latents.views], dim=1).flatten(0, 1)
    owners = torch.tensor(rows).repeat_interleave(latents.views) * latents.views
    owners += torch.arange(latents.views).repeat(len(rows))
    parts = []
    for batch, owner in zip(stacked.split(latents.compute_batch), owners.split(latents.compute_batch), strict=True):
        padding = (0, 0, 0, 0, 0, 0, 0, latents.compute_batch - len(batch))
        mean, std = (part[: len(batch)].cpu() for part in tokenizer.encode_moments(torch.nn.functional.pad(batch, padding)))
        if latents.posterior == "sample":
            noise = draws.normal_rows(draws.key(latents.seed, "posterior", split), owner, mean.shape[1:])
            mean = mean + std * noise
        parts.append((mean * tokenizer.scaling_factor).to(getattr(torch, latents.dtype)))
    found = torch.cat(parts)
    finite = found.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        row = rows[int(finite.int().argmin()) // latents.views]
        raise Fault(
            f"{split} image {names[row]}: its latent is not finite in {latents.dtype} (largest finite: "
            f"{found[found.isfinite()].abs().max().item():.3g}); set data.latents.precision or dtype to float32"
        )
    return found.unflatten(0, (len(rows), latents.views)).numpy()
