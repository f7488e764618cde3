"""Is a split of the latent store what its index and its contract promise? Nobody needs to look at the images again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from drifting_core import config
from drifting_core.artifacts import Index, LatentManifest, LatentVerification, check_file, hashes
from drifting_core.artifacts.provenance import code_version
from drifting_core.data.index import FILE, read_table
from drifting_core.data.latents import damaged, open_shard
from drifting_core.data.listing import Table, images_of
from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress

log = logging.getLogger(__name__)

# Bounds of a scaled latent's moments: the tokenizer's scale makes the standard deviation about 1.
_MEAN_BOUND = 1.0
_STD_BOUNDS = (0.3, 3.0)
_QUICK_CHUNKS = 16  # per shard


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
    """Compare a split with its index, its contract's bounds and data.expected, and write what was found.

    data.verification: full: hashes, every chunk's checksum, finite values, moments, ids and labels. quick: the same of
    evenly spread chunks, without the hashes of the files; what was not looked at stands in the output.

    Raises Fault naming the shard and the rows of the first thing that is wrong.
    """
    manifest, held = LatentManifest.read(latents), Index.read(index)
    split, full = manifest.split, data.verification == "full"
    if manifest.inputs["index"] != hashes({"index": index})["index"]:
        raise Fault(f"{latents}: made from another index than {index}; remove it to make it again")
    moments, labels, ids, looked_at = _Moments(), list[NDArray[np.int64]](), list[NDArray[np.bytes_]](), 0
    progress = Progress(f"verify {split} ({data.verification})", manifest.rows, unit="rows")
    for name, rows in zip(manifest.shards, manifest.shard_rows, strict=True):
        path = latents.parent / name
        with open_shard(path, manifest, rows) as file:
            for first, block in _chunks(path, file["latents"], None if full else _QUICK_CHUNKS):
                _require_finite(path, first, block)
                moments.add(block)
                looked_at += len(block)
                progress.advance(len(block))
            labels.append(_whole(path, file["labels"]).astype(np.int64))
            ids.append(_whole(path, file["ids"]).astype(np.bytes_))
        if full:
            check_file(path, manifest.files[name])
    table = read_table(index.parent / FILE, images_of(split))
    _require_index(latents, manifest, table, np.concatenate(ids), np.concatenate(labels))
    counts = np.bincount(np.concatenate(labels), minlength=len(held.wnids))
    _require_histogram(latents, manifest, data.expected, counts)
    if abs(moments.mean) > _MEAN_BOUND or not _STD_BOUNDS[0] < moments.std < _STD_BOUNDS[1]:
        raise Fault(
            f"{latents}: mean {moments.mean:.3g} and standard deviation {moments.std:.3g}; expected within "
            f"±{_MEAN_BOUND} and {_STD_BOUNDS}; set the tokenizer's scaling_factor "
            f"({manifest.contract.scaling_factor}) right"
        )
    made = LatentVerification(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"index": index, "latents": latents}),
        split=split,
        scope=data.verification,
        rows_looked_at=looked_at,
        not_looked_at=[] if full else _not_looked_at(manifest, looked_at),
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


def _not_looked_at(manifest: LatentManifest, looked_at: int) -> list[str]:
    left = [
        f"the latents of {manifest.rows - looked_at} of {manifest.rows} rows: checksums, finite values, moments",
        f"the SHA-256 of {len(manifest.shards)} shard file(s)",
    ]
    for line in left:
        log.warning("quick verification did not look at %s", line)
    return left


def _chunks(path: Path, dataset: h5py.Dataset, most: int | None) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """First row and latents of every chunk, or of `most` evenly spread ones, the first and the last among them."""
    step = dataset.chunks[0]
    firsts = np.arange(0, len(dataset), step)
    if most is not None and len(firsts) > most:
        firsts = firsts[np.linspace(0, len(firsts) - 1, most).round().astype(int)]
    for first in firsts.tolist():
        try:
            yield first, dataset[first : first + step]
        except OSError as error:
            raise damaged(path, f"rows {first} to {min(first + step, len(dataset)) - 1}: checksum fails", error) from error


def _whole(path: Path, dataset: h5py.Dataset) -> NDArray[np.generic]:
    try:
        return np.asarray(dataset[:])
    except OSError as error:
        raise damaged(path, f"{dataset.name}: checksum fails", error) from error


def _require_finite(path: Path, first: int, block: NDArray[np.floating]) -> None:
    finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
    if not finite.all():
        raise Fault(f"{path}: row {first + int(np.argmin(finite))} holds numbers that are not finite; encode it again")


def _require_index(
    latents: Path, manifest: LatentManifest, table: Table, ids: NDArray[np.bytes_], labels: NDArray[np.int64]
) -> None:
    """Every image of the index is a row or a reject, once, under its label, in the index's order."""
    kept = ~np.isin(table.name, np.array([name.encode() for name in manifest.rejects], np.bytes_))
    names, of = table.name[kept], table.label[kept]
    if len(ids) == len(names) and (ids == names).all() and (labels == of).all():
        return
    unique, count = np.unique(ids, return_counts=True)
    if (count > 1).any():
        raise Fault(f"{latents}: the id {unique[count.argmax()].decode()} occurs more than once; encode again")
    expected, found = (dict(zip(n.tolist(), m.tolist(), strict=True)) for n, m in ((names, of), (ids, labels)))
    wrong = sorted(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name))
    if not wrong:
        raise Fault(f"{latents}: its rows are not in the index's order; encode again")
    name = wrong[0]
    raise Fault(
        f"{latents}: {len(wrong)} image(s) differ from the index, first {name.decode()}: label {found.get(name, 'missing')} "
        f"here, {expected.get(name, 'missing')} in the index; encode again"
    )


def _require_histogram(
    latents: Path, manifest: LatentManifest, expected: config.Expected, counts: NDArray[np.int64]
) -> None:
    split = images_of(manifest.split)
    images = expected.train_images if split == "train" else expected.val_images
    fewest, most = expected.train_per_class if split == "train" else expected.val_per_class
    rejected = len(manifest.rejects)
    if len(counts) != expected.classes or int(counts.sum()) + rejected != images:
        raise Fault(
            f"{latents}: {int(counts.sum())} rows, {rejected} rejects and {len(counts)} classes; data.expected says "
            f"{images} images and {expected.classes} classes; encode again, or set data.expected"
        )
    if counts.min() + rejected < fewest or counts.max() > most:
        raise Fault(
            f"{latents}: classes have {counts.min()} to {counts.max()} rows; data.expected.{split}_per_class is "
            f"{fewest} to {most}; encode again, or set data.expected"
        )
