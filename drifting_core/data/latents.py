"""The latent store: a manifest and its chunked HDF5 shards; written once, verified whole, read at memory speed.

A shard holds `latents` (rows, views, C, H, W), `labels` (rows) and `ids` (rows), chunked by rows with the fletcher32
checksum and no compression: latents do not compress, and so the bytes of a chunk lie plain on disk. Reading maps the file
and gathers rows from the chunks' byte offsets, without HDF5, locks or copies; the checksums are verified by
data/verifying.py, which reads every chunk through HDF5. (An HDF5 virtual dataset would read zeros where a shard is
missing.)
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core import config
from drifting_core.artifacts import Index, LatentContract, LatentManifest, LatentShard, hashes
from drifting_core.artifacts.provenance import code_version
from drifting_core.data.hdf5 import publish_hdf5
from drifting_core.data.listing import images_of
from drifting_core.faults import Fault

log = logging.getLogger(__name__)

Residency = Literal["mmap", "ram", "gpu"]
_CHUNK_LABELS = 4096  # rows per chunk of labels and ids

# Bounds of a scaled latent's moments: the tokenizer's scale makes the standard deviation about 1.
_MEAN_BOUND = 1.0
_STD_BOUNDS = (0.3, 3.0)


# --- write ----------------------------------------------------------------------------------------------------------


def write_shard(
    path: Path,
    blocks: Iterable[NDArray[np.floating]],
    labels: NDArray[np.int64],
    ids: list[str],
    contract: LatentContract,
    chunk_rows: int,
) -> None:
    """Publish one HDF5 shard: latents (rows, views, C, H, W) in blocks of any number of rows, a label and an id per row.

    One chunk is held in memory. Raises Fault on a full disk.
    """
    chunks = _rechunked(blocks, chunk_rows)
    first = next(chunks)
    with publish_hdf5(path) as writer:
        rows, shape = len(labels), first.shape[1:]
        chunk = (min(chunk_rows, rows), *shape)
        latents = writer.file.create_dataset(
            "latents", (rows, *shape), np.dtype(contract.dtype), chunks=chunk, fletcher32=True
        )
        at = 0
        for block in itertools.chain([first], chunks):
            latents[at : at + len(block)] = block
            writer.check()
            at += len(block)
        if at != rows:
            raise Fault(f"{path}: {at} latents for {rows} labels; remove the shard's files to encode it again")
        names = np.array([name.encode() for name in ids], np.bytes_)
        for name, content in (("labels", labels), ("ids", names)):
            writer.file.create_dataset(name, data=content, chunks=(min(_CHUNK_LABELS, rows),), fletcher32=True)
        for field, value in contract.model_dump().items():
            writer.file.attrs[field] = value
        writer.file.attrs["contract"] = contract.model_dump_json()
        writer.file.attrs["layout"] = "latents: (rows, views, channels, height, width); row i of all datasets is one image"


def _rechunked(blocks: Iterable[NDArray[np.floating]], rows: int) -> Iterator[NDArray[np.floating]]:
    """The same rows in blocks of `rows`, the last with what is left: a chunk is written once."""
    held: list[NDArray[np.floating]] = []
    for block in blocks:
        held.append(block)
        while sum(map(len, held)) >= rows:
            whole = np.concatenate(held)
            yield whole[:rows]
            held = [whole[rows:]]
    left = np.concatenate(held)
    if len(left):
        yield left


def combine(
    store: str, data: config.Data, index: Path, shards: list[Path], output: Path, configuration: str
) -> LatentManifest:
    """Write the manifest of a store from its shards' JSON files (beside which the HDF5 files lie), in shard order.

    Raises Fault when a shard is missing or made under another contract, when rows are missing, or when more images were
    rejected than data.max_rejects tolerates.
    """
    parts = [LatentShard.read(path) for path in shards]
    found = [(part.split, part.shard) for part in parts]
    if found != [(store, shard) for shard in range(parts[0].shards)]:
        raise Fault(f"{output}: found the shards {found}, expected all {parts[0].shards} of {store}, in order; give them so")
    for path, part in zip(shards, parts, strict=True):
        require_same_contract(part.contract, parts[0].contract, str(path), str(shards[0]))
    rejects = [name for part in parts for name in part.rejects]
    require_few_rejects(rejects, data.max_rejects)
    rows, held = sum(part.rows for part in parts), Index.read(index)
    images = held.splits[images_of(store)].images
    if rows + len(rejects) != images:
        raise Fault(
            f"{output}: the shards hold {rows} rows and {len(rejects)} rejects, the index has {images} images; remove the "
            "shards' JSON files to encode again"
        )
    files = {name: record for part in parts for name, record in part.files.items()}
    made = LatentManifest(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"index": index} | {path.stem: path for path in shards}),
        files=files,
        split=store,
        rows=rows,
        shape=parts[0].shape,
        num_classes=len(held.wnids),
        shards=list(files),
        shard_rows=[part.rows for part in parts],
        rejects=rejects,
        precision_error=max((part.precision_error for part in parts if part.precision_error is not None), default=None),
        contract=parts[0].contract,
    )
    made.write(output)
    return made


def write_virtual(manifest: Path, output: Path) -> None:
    """One HDF5 file in which a split looks whole, for readers of other projects; nothing here reads it.

    It refers to the shards by relative paths. HDF5 gives zeros where one is missing later; now, that is a Fault.
    """
    held = LatentManifest.read(manifest)
    paths = [manifest.parent / name for name in held.shards]
    for path, rows in zip(paths, held.shard_rows, strict=True):
        open_shard(path, held, rows).close()
    with publish_hdf5(output) as writer:
        for name in ("latents", "labels", "ids"):
            found = [_kind_and_shape(path, name) for path in paths]
            widest = max((kind for kind, _ in found), key=lambda kind: kind.itemsize)  # ids differ in length
            layout, at = h5py.VirtualLayout((held.rows, *found[0][1][1:]), widest), 0
            for path, (kind, shape) in zip(paths, found, strict=True):
                source = h5py.VirtualSource(os.path.relpath(path, output.parent), name, shape, kind)
                layout[at : at + shape[0]] = source
                at += shape[0]
            writer.file.create_virtual_dataset(name, layout)
        writer.file.attrs["contract"] = held.contract.model_dump_json()


def _kind_and_shape(path: Path, dataset: str) -> tuple[np.dtype, tuple[int, ...]]:
    with h5py.File(path, "r", locking=False) as file:
        return file[dataset].dtype, file[dataset].shape


def require_few_rejects(rejects: list[str], allowed: int) -> None:
    if len(rejects) > allowed:
        listed = "\n".join(f"  {name}" for name in rejects[:100])
        raise Fault(
            f"{len(rejects)} unreadable image(s), data.max_rejects is {allowed}; replace them, or raise the key to go "
            f"on without them:\n{listed}"
        )


def require_same_contract(found: LatentContract, expected: LatentContract, name: str, other: str) -> None:
    """Raises Fault that shows both values of every field that differs."""
    ours, theirs = found.model_dump(), expected.model_dump()
    unlike = [f"  {field}: {ours[field]!r} and {theirs[field]!r}" for field in ours if ours[field] != theirs[field]]
    if unlike:
        raise Fault(
            f"{name} and {other} were not made under one latent contract; they differ in\n" + "\n".join(unlike)
            + "\nuse the latents that the other side was made with"
        )  # fmt: skip


# --- read -----------------------------------------------------------------------------------------------------------


class _Mapped:
    """All shards, mapped, as one array of records: a record is one latent.

    A record begins at every byte between the first and the last mapped address, so that one call of numpy gathers rows
    of all shards into their places. Most of these records lie nowhere: only places that were noted for a row are read.
    """

    def __init__(self, size: int) -> None:
        """`size`: bytes of a latent."""
        self.size = size
        self._maps: list[NDArray[np.uint8]] = []
        self._offsets: list[NDArray[np.int64]] = []  # byte offset of each row of each shard

    def add(self, path: Path, dataset: h5py.Dataset) -> None:
        """Map one more shard (rows, views, C, H, W) and note where its rows are: those of a chunk lie together."""
        chunk_rows = dataset.chunks[0]
        chunks = np.empty(dataset.id.get_num_chunks(), np.int64)

        def keep(chunk: h5py.h5d.StoreInfo) -> None:
            chunks[chunk.chunk_offset[0] // chunk_rows] = chunk.byte_offset

        dataset.id.chunk_iter(keep)
        chunk, inside = np.divmod(np.arange(len(dataset)), chunk_rows)
        self._offsets.append(chunks[chunk] + inside * dataset.shape[1] * self.size)
        self._maps.append(np.memmap(path, np.uint8, "r"))

    def join(self) -> None:
        """Call once, after the last shard."""
        address = np.array([shard.ctypes.data for shard in self._maps], np.int64)
        first, last = int(address.argmin()), int(address.argmax())
        span = int(address[last] - address[first]) + len(self._maps[last]) - self.size + 1
        head = np.ndarray((1,), np.dtype((np.void, self.size)), self._maps[first])
        self._records = np.lib.stride_tricks.as_strided(head, (span,), (1,), writeable=False)
        places = zip(self._offsets, address - address[first], strict=True)
        self._place = np.concatenate([offsets + place for offsets, place in places])  # of each row, in the records

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.void]:
        """The records of (row, view) pairs, all of which exist: the caller has looked."""
        return self._records[self._place[rows] + views * self.size]


class LatentStore:
    """All rows of a split, resolved from its manifest.

    `labels` int64 (N,) and `ids` (N names) per row; `shape` (C, H, W); `views` latents per row, which `contract` names (the
    image and its mirror, or random crops); `num_classes`. Opening compares sizes; hashes and checksums are the verify job's.
    Safe under fork, spawn and threads.
    """

    def __init__(self, manifest: Path, residency: Residency = "mmap", device: torch.device | str = "cpu") -> None:
        """`residency`: mmap: every process of a node shares the mapped files; ram: a copy in this process's memory; gpu:
        a copy in the memory of `device`, where `gather` then answers.

        Raises Fault when the manifest is none, or a shard is missing or of another size.
        """
        self._arguments = (manifest, residency, device)
        self.path = manifest
        self.manifest = LatentManifest.read(manifest)
        self.contract = self.manifest.contract
        channels, height, width = self.manifest.shape
        self.shape = (channels, height, width)
        self.views = len(self.contract.views)
        self.num_classes = self.manifest.num_classes
        self._dtype = np.dtype(self.contract.dtype)
        self._mapped = _Mapped(channels * height * width * self._dtype.itemsize)
        labels = []
        for name, rows in zip(self.manifest.shards, self.manifest.shard_rows, strict=True):
            with open_shard(manifest.parent / name, self.manifest, rows) as file:
                labels.append(np.asarray(file["labels"][:], np.int64))
                self._mapped.add(manifest.parent / name, file["latents"])
        self._mapped.join()
        self.labels = torch.from_numpy(np.concatenate(labels))
        self._in_ram: NDArray[np.void] | None = None
        self._on_gpu: Tensor | None = None
        if residency == "ram":
            self._in_ram = np.empty(len(self) * self.views, np.dtype((np.void, self._mapped.size)))
            for first, records in self._all():
                self._in_ram[first : first + len(records)] = records
        elif residency == "gpu":
            whole = (len(self) * self.views, *self.shape)
            self._on_gpu = torch.empty(whole, dtype=getattr(torch, self.contract.dtype), device=device)
            for first, records in self._all():
                self._on_gpu[first : first + len(records)] = self._tensor(records)

    def _all(self, step: int = 4096) -> Iterator[tuple[int, NDArray[np.void]]]:
        """Every record, in the order of row * views + view, in blocks that begin at the place given with them."""
        for first in range(0, len(self) * self.views, step):
            pairs = np.arange(first, min(first + step, len(self) * self.views))
            yield first, self._mapped.read(*np.divmod(pairs, self.views))

    def __len__(self) -> int:
        return self.manifest.rows

    @functools.cached_property
    def ids(self) -> list[str]:
        """The name of each row's image, read when it is first asked for: of ImageNet's, 100 MB in every process."""
        found = list[str]()
        for name, rows in zip(self.manifest.shards, self.manifest.shard_rows, strict=True):
            with open_shard(self.path.parent / name, self.manifest, rows) as file:
                found += [identity.decode() for identity in file["ids"][:]]
        return found

    def gather(self, rows: Tensor, views: Tensor) -> Tensor:
        """Latents of (row, view) pairs: int64 (B,) each, on the CPU -> float32 (B, C, H, W).

        Raises IndexError for a row or a view that the store does not have.
        """
        return self.gather_stored(rows, views).to(torch.float32)

    def gather_stored(self, rows: Tensor, views: Tensor) -> Tensor:
        """As `gather`, in the stored number format: half the bytes on the way to a GPU."""
        row, view = rows.numpy(), views.numpy()
        # As unsigned numbers, negative ones are beyond every end.
        if (row.view(np.uint64) >= len(self)).any() or (view.view(np.uint64) >= self.views).any():
            raise IndexError(
                f"{self.path}: rows {row.min()} to {row.max()} and views {view.min()} to {view.max()} were asked for; "
                f"it has {len(self)} rows and {self.views} views"
            )
        if self._on_gpu is not None:
            return self._on_gpu[(rows * self.views + views).to(self._on_gpu.device)]
        if self._in_ram is not None:
            return self._tensor(self._in_ram[row * self.views + view])
        return self._tensor(self._mapped.read(row, view))

    def _tensor(self, records: NDArray[np.void]) -> Tensor:
        return torch.from_numpy(records.view(self._dtype).reshape(len(records), *self.shape))

    def require_contract(self, other: LatentContract, name: str) -> None:
        """Raises Fault showing both contracts where they differ; `name` is what was made under `other`."""
        require_same_contract(self.contract, other, str(self.path), name)

    def __reduce__(self) -> tuple[type[LatentStore], tuple[Path, Residency, torch.device | str]]:
        return LatentStore, self._arguments


def open_shard(path: Path, manifest: LatentManifest, rows: int) -> h5py.File:
    """The shard, opened for reading after its size and shape were compared. Raises Fault."""
    record = manifest.files[path.name]
    if not path.is_file():
        raise Fault(f"{path}: missing, but its manifest lists it; remove {path.with_suffix('.json')} to encode it again")
    if path.stat().st_size != record.bytes:
        raise Fault(
            f"{path}: {path.stat().st_size} bytes, its manifest says {record.bytes}: it was cut or changed; remove "
            f"{path.with_suffix('.json')} to encode it again"
        )
    try:
        # Another job may map the file; nobody writes it any more.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise damaged(path, "it does not open", error) from error
    shape = (rows, len(manifest.contract.views), *manifest.shape)
    if file["latents"].shape != shape or str(file["latents"].dtype) != manifest.contract.dtype:
        found = f"{file['latents'].dtype} {file['latents'].shape}"
        file.close()
        raise Fault(
            f"{path}: latents are {found}, its manifest says {manifest.contract.dtype} {shape}; remove "
            f"{path.with_suffix('.json')} to encode it again"
        )
    return file


def damaged(path: Path, what: str, error: object) -> Fault:
    return Fault(f"{path}: {what} ({error}): the file was damaged; remove {path.with_suffix('.json')} to encode it again")
