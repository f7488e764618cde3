"""Real images under the feature network: moments of all images of a split, and caches of single features.

`statistics.npz` (mu, sigma; float64) is what the Fréchet distance compares with: our own of the training or, where asked
for, of all validation images, or published ones;
features_train.h5 is searched by the neighbour audit; features_val.h5 is the real manifold of precision and recall and the
audit's baseline. Both hold thumbnails beside the features: pixels that the audit compares.
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core.artifacts import (
    FeatureNetwork,
    ImportedStatistics,
    ReferenceStatistics,
    hashes,
    publish,
    records,
    sha256_file,
)
from drifting_core.artifacts.provenance import code_version
from drifting_core.config import Data, PublishedStatistics, Reference
from drifting_core.data.hdf5 import Hdf5Writer, publish_hdf5
from drifting_core.data.images import BrokenImage, centre_crop_of, in_order, transforms
from drifting_core.data.index import ImageReader
from drifting_core.data.journal import Journal
from drifting_core.data.listing import Split
from drifting_core.evaluation.contract import MANIFOLD, STATISTICS
from drifting_core.evaluation.networks.loading import Network, load_network, predictions
from drifting_core.evaluation.statistics import Moments, frechet_distance, mean_covariance
from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress

log = logging.getLogger(__name__)

TRAIN_FEATURES = "features_train.h5"
_MOMENT_NAMES = (("mu", "sigma"), ("ref_mu", "ref_sigma"))  # pytorch-fid's and ADM's; the release uses the latter
_CHUNK_ROWS = 256
_THUMBNAIL = (3, 16, 16)


class Cache(NamedTuple):
    """Features (N, D) float32, labels (N,) and rows (N,) in the split's index, as read from a cache.

    `features` may be another dataset of the cache, or of several views of an image, (N, views, D).
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]


def thumbnails(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> uint8 (B, 3, 16, 16): means over areas, rounded."""
    means = torch.nn.functional.adaptive_avg_pool2d(images.float(), _THUMBNAIL[1:])
    return (means + 0.5).floor().to(torch.uint8)


def balanced_rows(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The first `count` images such that no class is ahead of another by more than one, as sorted row numbers."""
    rank = np.empty(len(labels), np.int64)  # how many of its class come before it
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        rank[own] = np.arange(len(own))
    return np.sort(np.lexsort((labels, rank))[:count])


def make_reference(
    manifest: Path,
    data: Data,
    how: Reference,
    *,
    index: Path,
    network_path: Path,
    device: torch.device,
    threads: int,
    configuration: str,
) -> None:
    """Publish statistics and caches beside `manifest`, then `manifest`.

    Raises BrokenImage when more than data.max_rejects images of a split cannot be read.
    """
    network, record = load_network(network_path, device)
    published = read_published(how.statistics, record.dimensions) if how.statistics else None
    inputs = hashes({"index": index, "network": network_path})
    work = {"configuration": configuration, "inputs": inputs}
    train = ImageReader(index, "train", data.archives)
    val = ImageReader(index, "val", data.archives)
    val_rows = balanced_rows(val.labels, how.precision_recall_images)

    def features_of(reader: ImageReader, split: Split, rows: Sequence[int]) -> _Pass:
        return _Pass(reader, split, rows, data, how.compute_batch, network, device, threads)

    training = features_of(train, "train", range(len(train)))
    own = training.write(manifest.parent / TRAIN_FEATURES, record, work)
    held_out = features_of(val, "val", val_rows.tolist())
    held_out.write(manifest.parent / MANIFOLD, record, work)
    moments, imported = (own, None) if published is None else (published, _imported(how.statistics, published, own))
    if how.split == "val":  # all of them: the cache holds those of the manifold only
        moments = features_of(val, "val", range(len(val))).moments(manifest.parent / STATISTICS, record, work)
    with publish(manifest.parent / STATISTICS) as scratch:
        write_statistics(scratch, moments)
    ReferenceStatistics(
        configuration=configuration,
        code=code_version(),
        inputs=inputs,
        files=records(manifest.parent, [STATISTICS, TRAIN_FEATURES, MANIFOLD]),
        split=how.statistics.split if how.statistics else how.split,
        imported=imported,
        images=moments.rows,
        dimensions=record.dimensions,
        network_sha256=record.weights_sha256,
        image_transforms=[*transforms(data.image_size)[:-1], "uint8 to the feature network"],
        compute_batch=how.compute_batch,
        precision_recall_images=held_out.done,
        real_accuracy=held_out.right / held_out.done if record.network == "classifier" else None,
    ).write(manifest)
    for name in (TRAIN_FEATURES, MANIFOLD, STATISTICS):
        _journal_of(manifest.parent / name).unlink(missing_ok=True)  # the last is there for validation images only


def _journal_of(cache: Path) -> Path:
    return cache.with_name(f".{cache.stem}.journal")


class _Batch(NamedTuple):
    """Up to a batch of (row, crop), the place after its last image in the pass, and all rejects until there."""

    images: list[tuple[int, NDArray[np.uint8]]]
    seen: int
    rejects: list[str]


class _Features(NamedTuple):
    """What the caches hold of a batch (B,), its rows (B,), and how many the network classifies rightly."""

    held: NDArray[np.void]
    rows: NDArray[np.int64]
    right: int


def _held(dimensions: int) -> np.dtype[np.void]:
    """What a cache holds of an image, as the journal keeps it."""
    return np.dtype([("features", "f4", (dimensions,)), ("thumbnails", "u1", _THUMBNAIL)])


class _Pass:
    """One streamed pass over images of a split: decoded ahead by threads, through the network in fixed batches."""

    def __init__(
        self,
        reader: ImageReader,
        split: Split,
        rows: Sequence[int],
        data: Data,
        batch: int,
        network: Network,
        device: torch.device,
        threads: int,
    ) -> None:
        self.reader, self.split, self.rows, self.data, self.batch = reader, split, rows, data, batch
        self.network, self.device, self.threads = network, device, threads
        self.done = self.right = 0
        self.rejects: list[str] = []

    def write(self, path: Path, record: FeatureNetwork, work: dict[str, Any]) -> Moments:
        """Publish the cache at `path` while the moments add up, in float64.

        Each finished batch is kept in a journal, so that a job that is killed loses at most one. The caller removes the
        journals when everything is published.
        """
        with self._journal(path, record, work) as journal:
            self._fill(journal)
            self.done = sum(len(found.description["rows"]) for found in journal.records())
            self.right = sum(found.description["right"] for found in journal.records())
            with publish_hdf5(path) as writer:
                return self._store(writer, record, journal)

    def moments(self, path: Path, record: FeatureNetwork, work: dict[str, Any]) -> Moments:
        """The moments alone; `path` names the journal, which is kept as in `write`."""
        held = _held(record.dimensions)
        with self._journal(path, record, work) as journal:
            self._fill(journal)
            return mean_covariance(found.array(held, (-1,))["features"] for found in journal.records())

    def _journal(self, path: Path, record: FeatureNetwork, work: dict[str, Any]) -> Journal:
        held = list(_held(record.dimensions).names or ())
        return Journal(_journal_of(path), {**work, "split": self.split, "holds": held})

    def _fill(self, journal: Journal) -> None:
        """Compute the batches that the journal does not hold yet."""
        seen = 0
        for found in journal.records():
            seen = found.description["seen"]
            self.rejects = found.description["rejects"]
        if seen:
            log.info("going on at image %d of %d", seen, len(self.rows))
        for batch in self._batches(seen):
            held, rows, right = self._features(batch.images)
            journal.append({"rows": rows.tolist(), "right": right, "seen": batch.seen, "rejects": batch.rejects}, held)

    def _store(self, writer: Hdf5Writer, record: FeatureNetwork, journal: Journal) -> Moments:
        rows = np.array([row for found in journal.records() for row in found.description["rows"]], np.int64)
        held = _held(record.dimensions)
        caches = {name: self._dataset(writer, name, held[name]) for name in held.names or ()}
        for name, values in (("labels", self.reader.labels[rows]), ("rows", rows)):
            writer.file.create_dataset(name, data=values, fletcher32=True)
        writer.file.attrs["network_sha256"] = record.weights_sha256

        def stored() -> Iterator[NDArray[np.float32]]:
            at = 0
            for found in journal.records():
                block = found.array(held, (-1,))
                for name, cache in caches.items():
                    cache[at : at + len(block)] = block[name]
                writer.check()
                at += len(block)
                yield block["features"]

        return mean_covariance(stored())

    def _dataset(self, writer: Hdf5Writer, name: str, of: np.dtype[Any]) -> h5py.Dataset:
        chunk = (min(_CHUNK_ROWS, self.done), *of.shape)
        return writer.file.create_dataset(name, (self.done, *of.shape), of.base, chunks=chunk, fletcher32=True)

    def _batches(self, seen: int) -> Iterator[_Batch]:
        """Crops of the images from place `seen` on, in full batches (the last may be smaller)."""
        progress = Progress(f"features of {self.split} images", len(self.rows), seen, unit="images")
        waiting: list[tuple[int, NDArray[np.uint8]]] = []
        for place, (row, crop) in enumerate(in_order(self.rows[seen:], self._crop, self.threads), start=seen + 1):
            progress.advance()
            if isinstance(crop, BrokenImage):
                self._reject(crop)
            else:
                waiting.append((row, crop))
            if len(waiting) == self.batch or (waiting and place == len(self.rows)):
                yield _Batch(waiting, place, list(self.rejects))
                waiting = []

    def _crop(self, row: int) -> NDArray[np.uint8] | BrokenImage:
        try:
            return centre_crop_of(self.reader, row, self.data.image_size)
        except BrokenImage as broken:
            return broken

    def _reject(self, broken: BrokenImage) -> None:
        self.rejects.append(broken.name)
        if len(self.rejects) > self.data.max_rejects:
            raise broken
        log.warning("left out: %s", broken)

    def _features(self, found: list[tuple[int, NDArray[np.uint8]]]) -> _Features:
        """Features of up to a batch; fewer are padded to one, so that every image is computed in the same shape."""
        rows = np.array([row for row, _ in found])
        labels = self.reader.labels[rows]
        images = torch.from_numpy(np.stack([crop for _, crop in found]))
        padding = images[:1].expand(self.batch - len(images), -1, -1, -1)
        with torch.inference_mode():
            output = self.network(torch.cat([images, padding]).to(self.device))
        right = int((predictions(output.logits[: len(rows)]).cpu().numpy() == labels).sum())
        features = output.features[: len(rows)].float().cpu().numpy()
        held = np.empty(len(rows), _held(features.shape[1]))
        held["features"], held["thumbnails"] = features, thumbnails(images).numpy()
        return _Features(held, rows, right)


def write_statistics(path: Path, moments: Moments) -> None:
    """`mu` (D) and `sigma` (D, D), float64, for numpy.load. The same numbers are the same bytes, whose hash is a contract's:

    numpy.savez leaves the container's format to zipfile, where it depends on Python's version.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in (("mu", moments.mean), ("sigma", moments.covariance)):
            array = io.BytesIO()
            np.save(array, values)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), array.getvalue())


def read_published(how: PublishedStatistics, dimensions: int) -> Moments:
    """Moments of so many features from an npz, float64. Raises Fault when it is another file, or holds something else."""
    path, key = Path(how.path), "evaluation.reference.statistics"
    if not path.is_file():
        raise Fault(f"{key}.path: {path} is missing; put the file there, or set the key to where it is")
    found = sha256_file(path)
    if found != how.sha256:
        raise Fault(f"{key}.sha256: {how.sha256}, but {path} has {found}; it is another file, or set the key to that")
    try:
        with np.load(path, allow_pickle=False) as held:
            names = next((pair for pair in _MOMENT_NAMES if set(pair) <= set(held.files)), None)
            if names is None:
                raise Fault(
                    f"{path}: holds {held.files}, expected mu and sigma, or ref_mu and ref_sigma: set the key to such a file"
                )
            mean, covariance = (np.asarray(held[name], np.float64) for name in names)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise Fault(f"{path}: no npz of numbers: {error}; download it again") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise Fault(
            f"{path}: {names[0]} is {mean.shape} and {names[1]} {covariance.shape}, expected (D,) and (D, D): set the "
            "key to statistics of one feature network"
        )
    if len(mean) != dimensions:
        raise Fault(
            f"{path}: statistics of {len(mean)} features, evaluation.network has {dimensions}; they are of another feature "
            f"network: set {key} to those of this one"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise Fault(f"{path}: holds numbers that are not finite; download it again")
    return Moments(mean, covariance, how.images)


def _imported(how: PublishedStatistics | None, published: Moments, own: Moments) -> ImportedStatistics:
    """What was imported, and how near our own images and network come to it."""
    assert how is not None
    distance = frechet_distance(*own[:2], *published[:2]) if how.split == "train" else None
    if distance is not None:
        log.info("Fréchet distance of our own statistics of the training images to %s: %.4g", how.path, distance)
    return ImportedStatistics(name=Path(how.path).name, sha256=how.sha256, own_images=own.rows, distance_to_own=distance)


def read_statistics(manifest: Path) -> tuple[ReferenceStatistics, Moments]:
    """Manifest and moments. Raises Fault when the file is not the manifest's."""
    record = ReferenceStatistics.read(manifest)
    record.verify(manifest.parent)
    with np.load(manifest.parent / STATISTICS, allow_pickle=False) as held:
        return record, Moments(held["mu"], held["sigma"], record.images)


def read_cache(path: Path, dataset: str = "features") -> Cache:
    """A whole cache; for features_train.h5 of ImageNet use `cache_blocks`."""
    with h5py.File(path, "r") as file:
        return Cache(file[dataset][:], file["labels"][:], file["rows"][:])


def has_thumbnails(path: Path) -> bool:
    """Caches that were made before thumbnails were kept have none."""
    with h5py.File(path, "r") as file:
        return "thumbnails" in file


def cache_blocks(path: Path, dataset: str = "features", rows: int = 16 * _CHUNK_ROWS) -> Iterator[Cache]:
    """The cache in blocks of `rows`, in order."""
    with h5py.File(path, "r") as file:
        held, labels, of = file[dataset], file["labels"], file["rows"]
        for start in range(0, len(held), rows):
            block = slice(start, start + rows)
            yield Cache(held[block], labels[block], of[block])
