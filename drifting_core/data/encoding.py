"""Images to latents: one shard job of a latent store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core import config
from drifting_core.artifacts import LatentContract, LatentShard, hashes, records
from drifting_core.artifacts.provenance import code_version
from drifting_core.data import draws
from drifting_core.data.images import BrokenImage, centre_crop, crop_views, decode_rgb, in_order, pixels, transforms
from drifting_core.data.index import ImageReader
from drifting_core.data.journal import Journal
from drifting_core.data.latents import require_few_rejects, write_shard
from drifting_core.data.listing import images_of
from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress

log = logging.getLogger(__name__)

VIEWS = ("image", "mirror")


class Encoder(Protocol):
    """What encoding needs of models.tokenizer.Tokenizer (rooms import downwards only)."""

    scaling_factor: float
    sha256: str

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


def contract_of(data: config.Data, store: str, tokenizer_sha256: str, scaling_factor: float) -> LatentContract:
    """How latents of this store are made with the tokenizer of these weights and this scale."""
    latents, crops = data.latents, store.startswith("crops_")
    views = [f"crop {view}" for view in range(1, latents.views_of(store) + 1)] if crops else list(VIEWS[: latents.views])
    return LatentContract(
        tokenizer_sha256=tokenizer_sha256,
        scaling_factor=scaling_factor,
        posterior=latents.posterior,
        views=views,
        dtype=latents.dtype,
        precision=latents.precision,
        pre_encode_transforms=transforms(data.image_size, random_crops=crops),
    )


@dataclass(frozen=True)
class Shard:
    """Which rows of the index a shard of a store holds: [first, last), in blocks of a chunk of the store."""

    store: str
    number: int
    of: int
    first: int
    last: int

    @classmethod
    def of_store(cls, latents: config.Latents, store: str, number: int, images: int) -> Shard:
        """Rows are cut evenly and in order over the shards. Raises Fault for a shard that does not exist."""
        shards = latents.shards_of(store)
        if not 0 <= number < shards:
            raise Fault(
                f"--shard {number}: {store} has {shards} shard(s); give a smaller number, or set "
                "data.latents.shards_train or shards_val"
            )
        return cls(store, number, shards, images * number // shards, images * (number + 1) // shards)


def encode_shard(
    data: config.Data,
    store: str,
    number: int,
    index: Path,
    tokenizer: Encoder,
    tokenizer_manifest: Path,
    output: Path,
    configuration: str,
    threads: int = 1,
    exact: Encoder | None = None,
) -> LatentShard:
    """Encode one shard of a store (train, val or crops_K) and write `output` (JSON) with its HDF5 file beside it.

    Each finished chunk is kept in a journal, so that a job that is killed at any moment loses at most one; the HDF5 file is
    written once, at the end. Unreadable images are listed and left out. `exact`: the same tokenizer in float32, where
    data.latents.precision is another; the first batch is compared with it.

    Raises Fault when more images are unreadable than data.max_rejects (and names them all), when a latent is not finite,
    when the precision is too coarse, or when the disk is full.
    """
    reader = ImageReader(index, images_of(store), data.archives)
    shard = Shard.of_store(data.latents, store, number, len(reader))
    inputs = hashes({"index": index, "tokenizer": tokenizer_manifest})
    precision_error = _precision_error(reader, shard, data, tokenizer, exact) if exact else None
    work = {"configuration": configuration, "inputs": inputs, "store": store, "shard": number}
    with Journal(output.with_name(f".{output.stem}.journal"), work) as journal:
        _encode_the_rest(journal, reader, shard, data, tokenizer, threads)
        contract = contract_of(data, store, tokenizer.sha256, tokenizer.scaling_factor)
        rows, shape, rejects = _write_from(journal, reader, output.with_suffix(".h5"), contract, data)
        made = LatentShard(
            configuration=configuration,
            code=code_version(),
            inputs=inputs,
            files=records(output.parent, [output.with_suffix(".h5").name]),
            split=store,
            shard=number,
            shards=shard.of,
            rows=rows,
            shape=shape,
            rejects=rejects,
            precision_error=precision_error,
            contract=contract,
        )
        made.write(output)
        journal.remove()
    return made


def _write_from(
    journal: Journal, reader: ImageReader, path: Path, contract: LatentContract, data: config.Data
) -> tuple[int, list[int], list[str]]:
    """Publish the HDF5 file of what was encoded: rows, shape of a latent, names of rejected images. Raises Fault."""
    described = [record.description for record in journal.records()]
    rejects = [name for each in described for name in each["rejects"]]
    require_few_rejects(rejects, data.max_rejects)
    rows = [row for each in described for row in each["rows"]]
    if not rows:
        raise Fault(
            f"{path}: none of the shard's {len(rejects)} images can be read; choose fewer shards, or replace the images"
        )
    shape = described[0]["shape"]
    blocks = (record.array(contract.dtype, (-1, len(contract.views), *shape)) for record in journal.records())
    names = [reader.names[row] for row in rows]
    write_shard(path, blocks, reader.labels[rows], names, contract, data.latents.chunk_rows)
    return len(rows), shape, rejects


def _encode_the_rest(
    journal: Journal, reader: ImageReader, shard: Shard, data: config.Data, tokenizer: Encoder, threads: int
) -> None:
    """Encode the blocks that the journal does not hold yet."""
    step = data.latents.chunk_rows
    first = min(shard.first + len(journal) * step, shard.last)
    if len(journal):
        log.info("going on at image %d of %d", first - shard.first, shard.last - shard.first)
    progress = Progress(f"encode {shard.store} {shard.number}", shard.last - shard.first, first - shard.first, unit="images")
    rejected = sum(len(record.description["rejects"]) for record in journal.records())
    for rows, crops, rejects in _blocks(reader, shard.store, range(first, shard.last), data, threads):
        latents = encode_rows(crops, rows, shard.store, data.latents, tokenizer, reader.names)
        journal.append({"rows": rows, "rejects": rejects, "shape": list(latents.shape[2:])}, latents)
        rejected += len(rejects)
        progress.advance(len(rows) + len(rejects), f"{rejected} rejects")


def _blocks(
    reader: ImageReader, store: str, rows: range, data: config.Data, threads: int
) -> Iterator[tuple[list[int], NDArray[np.uint8], list[str]]]:
    """Rows, their views uint8 (R, V, 3, S, S) and names of rejected images, per chunk of the store, decoded ahead."""
    size, step, views = data.image_size, data.latents.chunk_rows, data.latents.views_of(store)

    def crop(row: int) -> NDArray[np.uint8] | BrokenImage:
        try:
            image = decode_rgb(reader.read(row), reader.names[row])
        except BrokenImage as broken:
            return broken
        if store.startswith("crops_"):
            return crop_views(image, size, row, views, data.latents.seed)
        centre = pixels(centre_crop(image, size))
        return np.stack([centre, centre[..., ::-1]][:views])

    held, crops, rejected = list[int](), list[NDArray[np.uint8]](), list[str]()
    for row, made in in_order(rows, crop, threads, ahead=2 * step):
        if isinstance(made, BrokenImage):
            log.warning("%s", made)
            rejected.append(made.name)
        else:
            held.append(row)
            crops.append(made)
        if len(held) + len(rejected) == step or row == rows[-1]:
            yield held, np.stack(crops) if crops else np.empty((0, views, 3, size, size), np.uint8), rejected
            held, crops, rejected = [], [], []


def _precision_error(reader: ImageReader, shard: Shard, data: config.Data, tokenizer: Encoder, exact: Encoder) -> float:
    """Relative RMS error of the posterior's mean over the shard's first batch, against float32.

    Computed anew by a job that goes on, so that the shard's record does not depend on interruptions. Raises Fault beyond
    data.latents.precision_tolerance.
    """
    blocks = _blocks(reader, shard.store, range(shard.first, shard.last), data, threads=1)
    crops = next((crops for _, crops, _ in blocks if len(crops)), None)
    if crops is None:
        return 0.0  # a shard without a readable image has a fault of its own
    images = torch.from_numpy(crops).flatten(0, 1)[: data.latents.compute_batch]
    (found, _), (expected, _) = tokenizer.encode_moments(images), exact.encode_moments(images)
    error = float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    log.info("tokenizer in %s: relative error %.2g of the first batch, against float32", data.latents.precision, error)
    if not error <= data.latents.precision_tolerance:  # false for NaN
        raise Fault(
            f"data.latents.precision: {data.latents.precision} gives latents with a relative error of {error:.3g}, "
            f"data.latents.precision_tolerance is {data.latents.precision_tolerance}; set precision to float32"
        )
    return error


def encode_rows(
    crops: NDArray[np.uint8],
    rows: list[int],
    store: str,
    latents: config.Latents,
    tokenizer: Encoder,
    names: list[str],
) -> NDArray[np.floating]:
    """Scaled latents (R, V, C, H, W) of views uint8 (R, V, 3, S, S); `rows` are their places in the index.

    The posterior's noise is a function of (seed, store, row, view). The tokenizer always sees `compute_batch` images,
    the last of them padding, because bits depend on the batch's size.
    """
    views = crops.shape[1]
    stacked = torch.from_numpy(crops).flatten(0, 1)
    owners = torch.tensor(rows).repeat_interleave(views) * views + torch.arange(views).repeat(len(rows))
    parts = []
    for batch, owner in zip(stacked.split(latents.compute_batch), owners.split(latents.compute_batch), strict=True):
        padding = (0, 0, 0, 0, 0, 0, 0, latents.compute_batch - len(batch))
        mean, std = (part[: len(batch)] for part in tokenizer.encode_moments(torch.nn.functional.pad(batch, padding)))
        if latents.posterior == "sample":
            key = draws.key(latents.seed, "posterior", store)
            mean = mean + std * draws.normal_rows(key, owner.to(mean.device), mean.shape[1:])
        parts.append((mean * tokenizer.scaling_factor).to(getattr(torch, latents.dtype)).cpu())
    found = torch.cat(parts)
    finite = found.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        row = rows[int(finite.int().argmin()) // views]
        raise Fault(
            f"{store} image {names[row]}: its latent is not finite in {latents.dtype} (largest finite: "
            f"{found[found.isfinite()].abs().max().item():.3g}); set data.latents.precision or dtype to float32"
        )
    return found.unflatten(0, (len(rows), views)).numpy()
