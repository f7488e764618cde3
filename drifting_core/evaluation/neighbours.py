"""The memorisation audit: nearest training images of generated ones, against the same for held-out photos.

A generator that copies lies nearer to the training set than photos that nobody trained on. What is near depends on the
space, so there are several. A space is a name, the generated images in it as queries, the training images in blocks, and
the held-out photos; `compare` does not know more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from drifting_core.artifacts import (
    FeatureNetwork,
    NeighbourPair,
    Neighbours,
    NeighbourSearch,
    NeighbourSpace,
    ReferenceStatistics,
    Samples,
    hashes,
    publish,
    records,
)
from drifting_core.artifacts.provenance import code_version
from drifting_core.config import Archives, Contract
from drifting_core.config import Neighbours as NeighboursSection
from drifting_core.data.images import centre_crop_of
from drifting_core.data.index import ImageReader
from drifting_core.data.latents import LatentStore
from drifting_core.evaluation.contract import MANIFOLD, make_contract
from drifting_core.evaluation.evaluate import look_at, open_tokenizer
from drifting_core.evaluation.networks.loading import load_network
from drifting_core.evaluation.reference import (
    TRAIN_FEATURES,
    Cache,
    balanced_rows,
    cache_blocks,
    has_thumbnails,
    read_cache,
    thumbnails,
)
from drifting_core.evaluation.sampler import read_samples
from drifting_core.evaluation.search import Nearest, nearest
from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress

log = logging.getLogger(__name__)

_PAIRS_SHOWN = 10
_BLOCK = 4096  # latents of one block


@dataclass(frozen=True)
class Space:
    """One space. `queries` (Q, D) float32: the generated images in it; `training` reads the training images anew."""

    name: str
    description: str
    sha256: str | None
    queries: NDArray[np.float32]
    training: Callable[[], Iterator[Cache]]
    held_out: Cache


def compare(
    space: Space, samples: NDArray[np.int64], labels: NDArray[np.int64], top: int, device: torch.device
) -> NeighbourSpace:
    """The nearest training images of a space's queries, against those of its held-out photos.

    `samples`, `labels` (Q,): numbers that the queries go by, and their classes. One pass over the training images. Raises
    Fault when there are too few of them, or too few of a class.
    """
    seen = 0

    def training() -> Iterator[Cache]:
        nonlocal seen
        for block in space.training():
            seen += len(block.rows)
            yield block

    queries = np.concatenate([space.queries, space.held_out.features])
    both = np.concatenate([labels, space.held_out.labels])
    found = nearest(queries, both, training(), top, device, f"neighbours in the space '{space.name}'")
    return NeighbourSpace(
        name=space.name,
        description=space.description,
        sha256=space.sha256,
        training_images=seen,
        baseline_images=len(space.held_out.rows),
        picture=f"pairs_{space.name}.png",
        any_class=_search(found.any_class, samples, labels),
        same_class=_search(found.same_class, samples, labels),
    )


def _search(found: Nearest, samples: NDArray[np.int64], labels: NDArray[np.int64]) -> NeighbourSearch:
    """The first rows of `found` are of the samples, the others of held-out photos."""
    distances, baseline = found.distances[: len(samples), 0], found.distances[len(samples) :, 0]
    limit, ranks = float(np.percentile(baseline, 1)), percentiles(distances, baseline)
    return NeighbourSearch(
        baseline_percentile_1=limit,
        baseline_median=float(np.median(baseline)),
        generated_median=float(np.median(distances)),
        share_below_percentile_1=float((distances < limit).mean()),
        pairs=[
            NeighbourPair(
                sample=int(samples[i]),
                label=int(labels[i]),
                percentile=float(ranks[i]),
                images=found.rows[i].tolist(),
                labels=found.labels[i].tolist(),
                distances=found.distances[i].tolist(),
            )
            for i in np.argsort(distances, kind="stable")
        ],
    )


def percentiles(distances: NDArray[np.float64], baseline: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the baseline, in percent, that lies strictly below each distance."""
    return 100.0 * np.searchsorted(np.sort(baseline), distances, side="left") / len(baseline)


# --- spaces ---------------------------------------------------------------------------------------------------------


def feature_space(
    name: str, network: FeatureNetwork, reference: Path, queries: NDArray[np.float32], index: NDArray[np.int64]
) -> Space:
    """Features of a network, against the caches beside the reference that was made with it.

    `index` (N,): labels of the training images, which those of the caches must be. Raises Fault.
    """
    cache = reference.parent / TRAIN_FEATURES
    return Space(
        name,
        f"features of the network {network.network} ({network.dimensions} numbers)",
        network.weights_sha256,
        queries,
        lambda: _of_index(cache_blocks(cache), index, cache),
        read_cache(reference.parent / MANIFOLD),
    )


def further_space(
    network: Path, reference: Path, images: Tensor, index: NDArray[np.int64], batch: int, device: torch.device
) -> Space:
    """The space of one more network, in which uint8 images (Q, 3, H, W) are seen here. Raises Fault."""
    see, record = load_network(network, device)
    held = ReferenceStatistics.read(reference)
    held.verify(reference.parent)
    if held.network_sha256 != record.weights_sha256:
        raise Fault(
            f"{reference}: made with the network {held.network_sha256[:16]}…, {network} has {record.weights_sha256[:16]}…; "
            "make the reference again with this network"
        )
    parts = []
    for some in images.split(batch):
        with torch.inference_mode():
            parts.append(see(some.to(device)).features.float().cpu())
    return feature_space(record.network, record, reference, torch.cat(parts).numpy(), index)


def pixel_space(reference: Path, images: Tensor, index: NDArray[np.int64]) -> Space:
    """Thumbnails of uint8 images (Q, 3, H, W), against those in the caches, each either way round. Raises Fault."""
    cache = reference.parent / TRAIN_FEATURES
    held_out = read_cache(reference.parent / MANIFOLD, "thumbnails")

    def training() -> Iterator[Cache]:
        for block in _of_index(cache_blocks(cache, "thumbnails"), index, cache):
            seen = _standardised(block.features)
            yield block._replace(features=_flat(np.stack([seen, seen[..., ::-1]], axis=1), 2))

    return Space(
        "pixels",
        "thumbnails of 16 x 16 pixels, of equal brightness and contrast; the training images also mirrored",
        None,
        _flat(_standardised(thumbnails(images).numpy()), 1),
        training,
        held_out._replace(features=_flat(_standardised(held_out.features), 1)),
    )


def _standardised(images: NDArray[Any]) -> NDArray[np.float32]:
    """uint8 thumbnails (N, 3, H, W) without their mean, of length 1; 0 for a single colour of grey.

    As they are, an image of low contrast would lie nearer to every photo than other photos do.
    """
    centred = images - images.mean(axis=(1, 2, 3), keepdims=True)
    length = np.sqrt(np.square(centred).sum(axis=(1, 2, 3), keepdims=True))
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > 0).astype(np.float32)


def latent_space(
    latents: Tensor, train: Path, val: Path, readers: tuple[ImageReader, ImageReader], held_out: NDArray[np.int64]
) -> Space:
    """Latents (Q, C, H, W), against those that the generator was trained on, in all their views.

    `train`, `val`: manifests of the stores; `readers`: of both splits; `held_out`: rows of the validation photos that are
    the baseline. Raises Fault.
    """
    store, other = LatentStore(train), LatentStore(val)
    rows, val_rows = (_index_rows(of, reader) for of, reader in zip((store, other), readers, strict=True))
    chosen = np.flatnonzero(np.isin(val_rows, held_out))
    first = torch.zeros(len(chosen), dtype=torch.int64)
    baseline = other.gather(torch.from_numpy(chosen), first).numpy()
    return Space(
        "latents",
        f"latents of {' x '.join(map(str, store.shape))}; each training image as {' and '.join(store.contract.views)}",
        store.contract.tokenizer_sha256,
        _flat(latents.numpy(), 1),
        lambda: _of_index(_latent_blocks(store, rows), readers[0].labels, train),
        Cache(_flat(baseline, 1), other.labels.numpy()[chosen], val_rows[chosen]),
    )


def _latent_blocks(store: LatentStore, rows: NDArray[np.int64]) -> Iterator[Cache]:
    for some in torch.arange(len(store)).split(_BLOCK):
        views = torch.arange(store.views).repeat(len(some))
        latents = store.gather(some.repeat_interleave(store.views), views).numpy()
        features = _flat(latents.reshape(len(some), store.views, *store.shape), 2)
        yield Cache(features, store.labels[some].numpy(), rows[some.numpy()])


def _index_rows(store: LatentStore, reader: ImageReader) -> NDArray[np.int64]:
    """The index's row of every row of a store, which lacks unreadable images. Raises Fault when it is of another index."""
    rejected = set(store.manifest.rejects)
    rows = np.array([row for row, name in enumerate(reader.names) if name not in rejected], np.int64)
    if len(rows) != len(store):
        raise Fault(
            f"{store.path}: {len(store)} images, of the index {len(rows)}; the store is of another index: encode it again"
        )
    return rows


def _flat(numbers: NDArray[np.generic], kept: int) -> NDArray[np.float32]:
    """All axes after the first `kept` as one."""
    return numbers.reshape(*numbers.shape[:kept], -1).astype(np.float32)


def _of_index(blocks: Iterator[Cache], index: NDArray[np.int64], path: Path) -> Iterator[Cache]:
    """The same blocks. Raises Fault when their labels are not the index's at their rows: classes would be mixed up."""
    progress = Progress(f"neighbours in {path.parent.name}/{path.name}", len(index), unit="training images")
    for block in blocks:
        known = block.rows.max() < len(index)
        if not known or not np.array_equal(block.labels, index[block.rows]):
            raise Fault(f"{path}: rows or labels are not those of the index; it is of another index: make it again")
        yield block
        progress.advance(len(block.rows))


# --- the audit ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """The artifacts that an audit reads.

    `latents`: manifests of the stores train and val, if there are any; `spaces`: network and reference of further spaces.
    """

    samples: Path
    tokenizer: Path
    network: Path
    reference: Path
    index: Path
    latents: tuple[Path, Path] | None = None
    spaces: tuple[tuple[Path, Path], ...] = ()

    def by_role(self) -> dict[str, Path]:
        roles = {role: path for role, path in vars(self).items() if role not in ("latents", "spaces")}
        if self.latents:
            roles |= {"latents_train": self.latents[0], "latents_val": self.latents[1]}
        for place, (network, reference) in enumerate(self.spaces):
            roles |= {f"space_{place}_network": network, f"space_{place}_reference": reference}
        return roles


def audit(
    output: Path,
    how: NeighboursSection,
    contract: Contract,
    archives: Archives,
    parts: Parts,
    *,
    device: torch.device,
    configuration: str,
) -> None:
    """Publish neighbours.json, and a picture per space, for samples of a set that are balanced over its classes.

    Raises Fault when the parts were not made for each other.
    """
    samples, latents, labels = read_samples(parts.samples)
    chosen = balanced_rows(labels, how.samples)
    latents, labels = latents[chosen], labels[chosen]
    readers = ImageReader(parts.index, "train", archives), ImageReader(parts.index, "val", archives)
    require_same_classes(samples, readers[0], parts)
    images, features, network = _seen(latents, samples, contract, parts, device)
    spaces, left_out = _spaces(latents, images, features, network, readers, parts)
    for pair in parts.spaces:
        spaces.append(further_space(*pair, images, readers[0].labels, contract.compute_batch, device))
    by_sample = dict(zip(chosen.tolist(), images.numpy(), strict=True))
    found = [compare(space, chosen, labels, how.top, device) for space in spaces]
    for space in found:
        _write_pairs(output.parent / space.picture, space, by_sample, readers[0])
        nearer = 100 * space.any_class.share_below_percentile_1
        log.info("%s: %.1f%% nearer than the 1st percentile of held-out photos", space.name, nearer)
    Neighbours(
        configuration=configuration,
        code=code_version(),
        inputs=hashes(parts.by_role()),
        files=records(output.parent, [space.picture for space in found]),
        step=samples.step,
        alpha=samples.alpha,
        seed=samples.seed,
        samples=len(chosen),
        top=how.top,
        wnids=readers[0].wnids,
        spaces=found,
        left_out=left_out,
    ).write(output)


def require_same_classes(samples: Samples, reader: ImageReader, parts: Parts) -> None:
    """Raises Fault unless the samples have as many classes as the index, whose numbers their labels then are."""
    if samples.classes != len(reader.wnids):
        raise Fault(
            f"{parts.samples}: {samples.classes} classes, {parts.index} has {len(reader.wnids)}; labels of the one mean "
            "nothing in the other: give the index of the data that the generator was trained on"
        )


def _seen(
    latents: Tensor, samples: Samples, how: Contract, parts: Parts, device: torch.device
) -> tuple[Tensor, NDArray[np.float32], FeatureNetwork]:
    """Images and features of latents, under the contract. Raises Fault when the parts were not made for each other."""
    tokenizer, tokenizer_record = open_tokenizer(parts.tokenizer, device)
    network, record = load_network(parts.network, device)
    reference = ReferenceStatistics.read(parts.reference)
    reference.verify(parts.reference.parent)
    make_contract(how, samples=samples, tokenizer=tokenizer_record, network=record, reference=reference)
    for path in parts.latents or ():
        made = LatentStore(path).contract.tokenizer_sha256
        if made != samples.tokenizer_sha256:
            raise Fault(
                f"{path}: latents of the tokenizer {made[:16]}…, the samples are of {samples.tokenizer_sha256[:16]}…; give "
                "the store that the generator was trained on"
            )
    batches = list(look_at(latents, how.uint8, how.compute_batch, tokenizer, network, device))
    images = torch.cat([batch.images for batch in batches])
    return images, torch.cat([batch.features for batch in batches]).float().numpy(), record


def _spaces(
    latents: Tensor,
    images: Tensor,
    features: NDArray[np.float32],
    network: FeatureNetwork,
    readers: tuple[ImageReader, ImageReader],
    parts: Parts,
) -> tuple[list[Space], dict[str, str]]:
    """Every space that the parts allow, and why others are left out."""
    labels, left_out = readers[0].labels, dict[str, str]()
    spaces = [feature_space("features", network, parts.reference, features, labels)]
    if parts.latents:
        spaces.append(latent_space(latents.float(), *parts.latents, readers, spaces[0].held_out.rows))
    else:
        left_out["latents"] = "the generator was not trained here, so there is no store of its training latents"
    if has_thumbnails(parts.reference.parent / TRAIN_FEATURES):
        spaces.append(pixel_space(parts.reference, images, labels))
    else:
        left_out["pixels"] = "the reference was made before thumbnails were kept; remove its manifest to make it again"
    return spaces, left_out


def _write_pairs(path: Path, space: NeighbourSpace, images: dict[int, NDArray[np.uint8]], reader: ImageReader) -> None:
    """The closest pairs of any class: a copy is a copy whatever it is called."""
    shown = space.any_class.pairs[:_PAIRS_SHOWN]
    generated = [images[pair.sample] for pair in shown]
    real = [centre_crop_of(reader, pair.images[0], generated[0].shape[-1]) for pair in shown]
    with publish(path) as scratch:
        pairs_picture(generated, real).save(scratch, format="PNG")


def pairs_picture(generated: list[NDArray[np.uint8]], real: list[NDArray[np.uint8]]) -> Image.Image:
    """Upper row: generated images (3, H, W), closest first; lower row: their nearest training images."""
    rows = [np.concatenate(images, axis=2) for images in (generated, real)]
    return Image.fromarray(np.ascontiguousarray(np.concatenate(rows, axis=1).transpose(1, 2, 0)))
