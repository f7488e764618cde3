"""Real images under the feature network: moments of all training images, and caches of single features.

`statistics.npz` (mu, sigma; float64) is what the Fréchet distance compares with; features_train.h5 is searched by the
neighbour audit; features_val.h5 is the real manifold of precision and recall and the audit's baseline.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from drifting_core.artifacts import FeatureNetwork, ReferenceStatistics, hashes, publish, records
from drifting_core.config import Data, Reference
from drifting_core.data.archives import ImageReader, Split
from drifting_core.data.images import BrokenImage, centre_crop_of, in_order, transforms
from drifting_core.evaluation.contract import MANIFOLD, STATISTICS
from drifting_core.evaluation.networks import Network, load_network
from drifting_core.evaluation.statistics import Moments, mean_covariance
from drifting_core.jobs import Progress
from drifting_core.provenance import code_version

log = logging.getLogger(__name__)

TRAIN_FEATURES = "features_train.h5"
_CHUNK_ROWS = 256


class Cache(NamedTuple):
    """Features (N, D) float32, labels (N,) and rows (N,) in the split's index, as read from a cache."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]


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
    train = ImageReader(index, "train", data.archives)
    val = ImageReader(index, "val", data.archives)
    val_rows = balanced_rows(val.labels, how.precision_recall_images)

    def features_of(reader: ImageReader, split: Split, rows: Sequence[int]) -> _Pass:
        return _Pass(reader, split, rows, data, how.compute_batch, network, device, threads)

    training = features_of(train, "train", range(len(train)))
    moments = training.write(manifest.parent / TRAIN_FEATURES, record)
    held_out = features_of(val, "val", val_rows.tolist())
    held_out.write(manifest.parent / MANIFOLD, record)
    with publish(manifest.parent / STATISTICS) as scratch, scratch.open("wb") as file:
        np.savez(file, mu=moments.mean, sigma=moments.covariance)
    ReferenceStatistics(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"index": index, "network": network_path}),
        files=records(manifest.parent, [STATISTICS, TRAIN_FEATURES, MANIFOLD]),
        images=moments.rows,
        dimensions=record.dimensions,
        network_sha256=record.weights_sha256,
        image_transforms=[*transforms(data.image_size)[:-1], "uint8 to the feature network"],
        compute_batch=how.compute_batch,
        precision_recall_images=held_out.done,
        real_accuracy=held_out.right / held_out.done if record.network == "classifier" else None,
    ).write(manifest)


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

    def write(self, path: Path, record: FeatureNetwork) -> Moments:
        """Publish the cache at `path` while the moments add up."""
        with publish(path) as scratch, h5py.File(scratch, "w") as file:
            chunk = min(_CHUNK_ROWS, len(self.rows))
            shape, width = (0, record.dimensions), record.dimensions
            features = file.create_dataset("features", shape, "f4", maxshape=(None, width), chunks=(chunk, width))
            labels = file.create_dataset("labels", (0,), "i8", maxshape=(None,), chunks=(len(self.rows),))
            rows = file.create_dataset("rows", (0,), "i8", maxshape=(None,), chunks=(len(self.rows),))
            file.attrs["network_sha256"] = record.weights_sha256

            def stored() -> Iterator[NDArray[np.float32]]:
                for found in self._batches():
                    end = self.done + len(found.rows)
                    for dataset, values in zip((features, labels, rows), found, strict=True):
                        dataset.resize(end, axis=0)
                        dataset[self.done : end] = values
                    self.done = end
                    yield found.features

            return mean_covariance(stored())

    def _batches(self) -> Iterator[Cache]:
        progress = Progress(f"features of {self.split} images", len(self.rows), unit="images")
        waiting: list[tuple[int, NDArray[np.uint8]]] = []
        for row, crop in in_order(self.rows, self._crop, self.threads):
            progress.advance()
            if crop is None:
                continue
            waiting.append((row, crop))
            if len(waiting) == self.batch:
                yield self._features(waiting)
                waiting = []
        if waiting:
            yield self._features(waiting)

    def _crop(self, row: int) -> NDArray[np.uint8] | None:
        try:
            return centre_crop_of(self.reader, row, self.data.image_size)
        except BrokenImage as broken:
            self.rejects.append(broken.name)
            if len(self.rejects) > self.data.max_rejects:
                raise
            log.warning("left out: %s", broken)
            return None

    def _features(self, found: list[tuple[int, NDArray[np.uint8]]]) -> Cache:
        """Features of up to a batch; fewer are padded to one, so that every image is computed in the same shape."""
        rows = np.array([row for row, _ in found])
        labels = self.reader.labels[rows]
        images = torch.from_numpy(np.stack([crop for _, crop in found]))
        padding = images[:1].expand(self.batch - len(images), -1, -1, -1)
        with torch.inference_mode():
            output = self.network(torch.cat([images, padding]).to(self.device))
        self.right += int((output.logits[: len(rows)].argmax(1).cpu().numpy() == labels).sum())
        return Cache(output.features[: len(rows)].float().cpu().numpy(), labels, rows)


def read_statistics(manifest: Path) -> tuple[ReferenceStatistics, Moments]:
    """Manifest and moments. Raises Fault when the file is not the manifest's."""
    record = ReferenceStatistics.read(manifest)
    record.verify(manifest.parent)
    with np.load(manifest.parent / STATISTICS, allow_pickle=False) as held:
        return record, Moments(held["mu"], held["sigma"], record.images)


def read_cache(path: Path) -> Cache:
    """A whole cache; for features_train.h5 of ImageNet use `cache_blocks`."""
    with h5py.File(path, "r") as file:
        return Cache(file["features"][:], file["labels"][:], file["rows"][:])


def cache_blocks(path: Path, rows: int = 16 * _CHUNK_ROWS) -> Iterator[Cache]:
    """The cache in blocks of `rows`, in order."""
    with h5py.File(path, "r") as file:
        features, labels, of = file["features"], file["labels"], file["rows"]
        for start in range(0, len(features), rows):
            block = slice(start, start + rows)
            yield Cache(features[block], labels[block], of[block])
