"""The latent store: a manifest and its chunked HDF5 shards; written once, verified whole, read at memory speed.

A shard holds `latents` (rows, views, C, H, W), `labels` (rows) and `ids` (rows), chunked by rows with the fletcher32
checksum and no compression: latents do not compress, and so the bytes of a chunk lie plain on disk. Reading maps the file
and gathers rows from the chunks' byte offsets, without HDF5, locks or copies; the checksums are verified by `verify`,
which reads every chunk through HDF5. (An HDF5 virtual dataset would read zeros where a shard is missing.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core import config
from drifting_core.artifacts import (
    Index,
    LatentContract,
    LatentManifest,
    LatentShard,
    LatentVerification,
    check_file,
    hashes,
    publish,
)
from drifting_core.data.archives import Table
from drifting_core.faults import Fault
from drifting_core.jobs import Progress
from drifting_core.provenance import code_version

log = logging.getLogger(__name__)

Split = Literal["train", "val"]

# Bounds of a scaled latent's moments: the tokenizer's scale makes the standard deviation about 1.
_MEAN_BOUND = 1.0
_STD_BOUNDS = (0.3, 3.0)


# --- write ----------------------------------------------------------------------------------------------------------


def write_shard(
    path: Path,
    latents: NDArray[np.floating],
    labels: NDArray[np.int64],
    ids: list[str],
    contract: LatentContract,
    chunk_rows: int,
) -> None:
    """Publish one HDF5 shard: latents (rows, views, C, H, W), a label and an id per row. Raises Fault on a full disk.

    The file is laid out in memory and written with one plain write: libhdf5 crashes when the disk fills up.
    """
    with h5py.File("shard", "w", driver="core", backing_store=False) as file:
        _fill(file, latents, labels, ids, chunk_rows)
        file.attrs["contract"] = contract.model_dump_json()
        file.attrs["layout"] = "latents: (rows, views, channels, height, width); row i of all datasets is one image"
        file.flush()
        image = file.id.get_file_image()
    try:
        with publish(path) as scratch:
            scratch.write_bytes(image)
    except OSError as error:
        raise Fault(f"{path}: {len(image)} bytes cannot be written: {error}; free space and call again") from error


def _fill(
    file: h5py.File, latents: NDArray[np.floating], labels: NDArray[np.int64], ids: list[str], chunk_rows: int
) -> None:
    names = np.array([name.encode() for name in ids], np.bytes_)
    for name, content in (("latents", latents), ("labels", labels), ("ids", names)):
        chunk = (min(chunk_rows, max(1, len(content))), *content.shape[1:])
        file.create_dataset(name, data=content, chunks=chunk, fletcher32=True)


def combine(
    split: Split, data: config.Data, index: Path, shards: list[Path], output: Path, configuration: str
) -> LatentManifest:
    """Write the manifest of a split from its shards' JSON files (beside which the HDF5 files lie), in shard order.

    Raises Fault when a shard is missing or made under another contract, when rows are missing, or when more images were
    rejected than data.max_rejects tolerates.
    """
    parts = [LatentShard.read(path) for path in shards]
    found = [(part.split, part.shard) for part in parts]
    if found != [(split, shard) for shard in range(parts[0].shards)]:
        raise Fault(f"{output}: found the shards {found}, expected all {parts[0].shards} of {split}, in order")
    for path, part in zip(shards, parts, strict=True):
        require_same_contract(part.contract, parts[0].contract, str(path), str(shards[0]))
    rejects = [name for part in parts for name in part.rejects]
    require_few_rejects(rejects, data.max_rejects)
    rows, held = sum(part.rows for part in parts), Index.read(index)
    if rows + len(rejects) != held.splits[split].images:
        raise Fault(
            f"{output}: the shards hold {rows} rows and {len(rejects)} rejects, the index has "
            f"{held.splits[split].images} images; remove the shards' JSON files to encode again"
        )
    files = {name: record for part in parts for name, record in part.files.items()}
    made = LatentManifest(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"index": index} | {path.stem: path for path in shards}),
        files=files,
        split=split,
        rows=rows,
        shape=parts[0].shape,
        num_classes=len(held.wnids),
        shards=list(files),
        shard_rows=[part.rows for part in parts],
        rejects=rejects,
        contract=parts[0].contract,
    )
    made.write(output)
    return made


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


@dataclass(frozen=True)
class _Mapped:
    """A shard's file as overlapping records of one latent each, with the byte offset of each chunk."""

    records: NDArray[np.void]
    chunk_offsets: NDArray[np.int64]
    chunk_rows: int


class LatentStore:
    """All rows of a split, resolved from its manifest.

    `labels` int64 (N,) and `ids` list[str] per row; `shape` (C, H, W); `views` 1 or 2 (1: mirrored); `num_classes`;
    `contract`. Opening compares sizes; hashes and checksums are the verify job's. Safe under fork, spawn and threads.
    """

    def __init__(self, manifest: Path) -> None:
        """Raises Fault when the manifest is none, or a shard is missing or of another size."""
        self.path = manifest
        self.manifest = LatentManifest.read(manifest)
        self.contract = self.manifest.contract
        channels, height, width = self.manifest.shape
        self.shape = (channels, height, width)
        self.views = len(self.contract.views)
        self.num_classes = self.manifest.num_classes
        self._dtype = np.dtype(self.contract.dtype)
        self._starts = np.cumsum([0, *self.manifest.shard_rows])
        self._shards: list[_Mapped] = []
        labels, self.ids = [], list[str]()
        for name, rows in zip(self.manifest.shards, self.manifest.shard_rows, strict=True):
            with open_shard(manifest.parent / name, self.manifest, rows) as file:
                labels.append(np.asarray(file["labels"][:], np.int64))
                self.ids += [identity.decode() for identity in file["ids"][:]]
                self._shards.append(self._map(manifest.parent / name, file["latents"]))
        self.labels = torch.from_numpy(np.concatenate(labels))

    def _map(self, path: Path, dataset: h5py.Dataset) -> _Mapped:
        chunk_rows = dataset.chunks[0]
        offsets = np.empty(dataset.id.get_num_chunks(), np.int64)

        def keep(chunk: h5py.h5d.StoreInfo) -> None:
            offsets[chunk.chunk_offset[0] // chunk_rows] = chunk.byte_offset

        dataset.id.chunk_iter(keep)
        flat = np.memmap(path, np.uint8, "r")
        size = int(np.prod(self.shape)) * self._dtype.itemsize
        # One record begins at every byte; numpy copies whole records, whatever the chunks' alignment is.
        records = np.ndarray((len(flat) - size + 1,), np.dtype((np.void, size)), flat, strides=(1,))
        return _Mapped(records, offsets, chunk_rows)

    def __len__(self) -> int:
        return self.manifest.rows

    def gather(self, rows: Tensor, views: Tensor) -> Tensor:
        """Latents of (row, view) pairs: int64 (B,) each, on the CPU -> float32 (B, C, H, W).

        Raises IndexError for a row or a view that the store does not have.
        """
        row, view = rows.numpy(), views.numpy()
        if len(row) and (row.min() < 0 or row.max() >= len(self) or view.min() < 0 or view.max() >= self.views):
            raise IndexError(
                f"{self.path}: rows {row.min()} to {row.max()} and views {view.min()} to {view.max()} were asked for; "
                f"it has {len(self)} rows and {self.views} views"
            )
        size = int(np.prod(self.shape)) * self._dtype.itemsize
        found = np.empty(len(row), np.dtype((np.void, size)))
        shard_of = np.searchsorted(self._starts, row, side="right") - 1
        for number, shard in enumerate(self._shards):
            here = np.flatnonzero(shard_of == number)
            if not len(here):
                continue
            chunk, inside = np.divmod(row[here] - self._starts[number], shard.chunk_rows)
            found[here] = shard.records[shard.chunk_offsets[chunk] + (inside * self.views + view[here]) * size]
        return torch.from_numpy(found.view(self._dtype).reshape(len(row), *self.shape)).to(torch.float32)

    def require_contract(self, other: LatentContract, name: str) -> None:
        """Raises Fault showing both contracts where they differ; `name` is what was made under `other`."""
        require_same_contract(self.contract, other, str(self.path), name)

    def __reduce__(self) -> tuple[type[LatentStore], tuple[Path]]:
        return LatentStore, (self.path,)


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
        raise _damaged(path, "it does not open", error) from error
    shape = (rows, len(manifest.contract.views), *manifest.shape)
    if file["latents"].shape != shape or str(file["latents"].dtype) != manifest.contract.dtype:
        found = f"{file['latents'].dtype} {file['latents'].shape}"
        file.close()
        raise Fault(f"{path}: latents are {found}, its manifest says {manifest.contract.dtype} {shape}")
    return file


def _damaged(path: Path, what: str, error: object) -> Fault:
    return Fault(f"{path}: {what} ({error}): the file was damaged; remove {path.with_suffix('.json')} to encode it again")


# --- verify ---------------------------------------------------------------------------------------------------------


@dataclass
class _Moments:
    """Running sums over all numbers of a split."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    def add(self, block: NDArray[np.floating]) -> None:
        exact = block.astype(np.float64)
        self.count += exact.size
        self.total += float(exact.sum())
        self.squares += float(np.square(exact).sum())
        self.largest = max(self.largest, float(np.abs(exact).max()))

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def std(self) -> float:
        return max(0.0, self.squares / self.count - self.mean**2) ** 0.5


def verify(data: config.Data, index: Path, latents: Path, output: Path, configuration: str) -> LatentVerification:
    """Read the whole split: hashes, every chunk's checksum, finite values, moments, ids and labels against the index.

    Raises Fault naming the shard and the rows of the first thing that is wrong.
    """
    manifest, held = LatentManifest.read(latents), Index.read(index)
    split = manifest.split
    if manifest.inputs["index"] != hashes({"index": index})["index"]:
        raise Fault(f"{latents}: made from another index than {index}; remove it to make it again")
    moments, labels, ids = _Moments(), list[NDArray[np.int64]](), list[str]()
    progress = Progress(f"verify {split}", manifest.rows, unit="rows")
    for name, rows in zip(manifest.shards, manifest.shard_rows, strict=True):
        path = latents.parent / name
        with open_shard(path, manifest, rows) as file:
            for first, block in _chunks(path, file["latents"]):
                _require_finite(path, first, block)
                moments.add(block)
                progress.advance(len(block))
            labels.append(_whole(path, file["labels"]).astype(np.int64))
            ids += [identity.decode() for identity in _whole(path, file["ids"])]
        check_file(path, manifest.files[name])
    table = Table.read(index.parent / f"index_{split}.npz")
    _require_index(latents, manifest, table, ids, np.concatenate(labels))
    counts = np.bincount(np.concatenate(labels), minlength=len(held.wnids))
    _require_histogram(latents, manifest, data.expected, counts)
    if abs(moments.mean) > _MEAN_BOUND or not _STD_BOUNDS[0] < moments.std < _STD_BOUNDS[1]:
        raise Fault(
            f"{latents}: mean {moments.mean:.3g} and standard deviation {moments.std:.3g}; expected within "
            f"±{_MEAN_BOUND} and {_STD_BOUNDS}: is tokenizer scaling_factor {manifest.contract.scaling_factor} right?"
        )
    made = LatentVerification(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"index": index, "latents": latents}),
        split=split,
        total_items_manifest=manifest.rows,
        num_classes_manifest=manifest.num_classes,
        label_min=int(np.flatnonzero(counts)[0]),
        label_max=int(np.flatnonzero(counts)[-1]),
        fewest_per_class=int(counts.min()),
        most_per_class=int(counts.max()),
        mean=moments.mean,
        std=moments.std,
        largest=moments.largest,
    )
    made.write(output)
    return made


def _chunks(path: Path, dataset: h5py.Dataset) -> Iterator[tuple[int, NDArray[np.floating]]]:
    step = dataset.chunks[0]
    for first in range(0, len(dataset), step):
        try:
            yield first, dataset[first : first + step]
        except OSError as error:
            raise _damaged(path, f"rows {first} to {min(first + step, len(dataset)) - 1}: checksum fails", error) from error


def _whole(path: Path, dataset: h5py.Dataset) -> NDArray[np.generic]:
    try:
        return np.asarray(dataset[:])
    except OSError as error:
        raise _damaged(path, f"{dataset.name}: checksum fails", error) from error


def _require_finite(path: Path, first: int, block: NDArray[np.floating]) -> None:
    finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
    if not finite.all():
        raise Fault(f"{path}: row {first + int(np.argmin(finite))} holds numbers that are not finite; encode it again")


def _require_index(latents: Path, manifest: LatentManifest, table: Table, ids: list[str], labels: NDArray[np.int64]) -> None:
    """Every image of the index is a row or a reject, once, under its label."""
    if len(set(ids)) != len(ids):
        repeated = next(name for name in ids if ids.count(name) > 1)
        raise Fault(f"{latents}: the id {repeated} occurs more than once; encode again")
    expected = {name.decode(): int(label) for name, label in zip(table.name, table.label, strict=True)}
    for name in manifest.rejects:
        expected.pop(name, None)
    found = dict(zip(ids, labels.tolist(), strict=True))
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name))
        name = wrong[0]
        raise Fault(
            f"{latents}: {len(wrong)} image(s) differ from the index, first {name}: label {found.get(name, 'missing')} "
            f"here, {expected.get(name, 'missing')} in the index; encode again"
        )


def _require_histogram(
    latents: Path, manifest: LatentManifest, expected: config.Expected, counts: NDArray[np.int64]
) -> None:
    images = expected.train_images if manifest.split == "train" else expected.val_images
    fewest, most = expected.train_per_class if manifest.split == "train" else expected.val_per_class
    rejected = len(manifest.rejects)
    if len(counts) != expected.classes or int(counts.sum()) + rejected != images:
        raise Fault(
            f"{latents}: {int(counts.sum())} rows, {rejected} rejects and {len(counts)} classes; data.expected says "
            f"{images} images and {expected.classes} classes"
        )
    if counts.min() + rejected < fewest or counts.max() > most:
        raise Fault(
            f"{latents}: classes have {counts.min()} to {counts.max()} rows; data.expected.{manifest.split}_per_class is "
            f"{fewest} to {most}"
        )
