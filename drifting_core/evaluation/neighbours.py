"""The memorisation audit: nearest training images of generated ones, against the same for held-out photos.

A generator that copies lies nearer to the training set than photos that nobody trained on. Search is exact and runs
over the feature cache in blocks; distances are Euclidean, in float64.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from drifting_core.artifacts import (
    NeighbourPair,
    Neighbours,
    ReferenceStatistics,
    hashes,
    publish,
    records,
)
from drifting_core.config import Archives, Contract
from drifting_core.config import Neighbours as NeighboursSection
from drifting_core.data.images import centre_crop_of
from drifting_core.data.index import ImageReader
from drifting_core.evaluation.contract import MANIFOLD, make_contract
from drifting_core.evaluation.evaluate import look_at, open_tokenizer
from drifting_core.evaluation.networks import load_network
from drifting_core.evaluation.reference import TRAIN_FEATURES, cache_blocks, read_cache
from drifting_core.evaluation.sampler import read_samples
from drifting_core.evaluation.statistics import squared_distances
from drifting_core.faults import Fault
from drifting_core.provenance import code_version

log = logging.getLogger(__name__)

PAIRS = "pairs.png"
_PAIRS_SHOWN = 10
_QUERIES = 1024  # rows of one block of the distance matrix


class Nearest(NamedTuple):
    """Per query, nearest first: distances (Q, top), rows (Q, top) in the training index, their labels (Q, top)."""

    distances: NDArray[np.float64]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]


def nearest(queries: NDArray[np.float32], cache: Path, top: int, device: torch.device) -> Nearest:
    """The `top` nearest rows of a feature cache for every query (Q, D). Raises Fault when it has fewer rows.

    Equal distances are ordered by row, so that block sizes do not enter.
    """
    wanted = torch.from_numpy(np.asarray(queries, dtype=np.float64)).to(device)
    best = torch.full((len(wanted), 0), torch.inf, dtype=torch.float64, device=device)
    rows = labels = torch.zeros((len(wanted), 0), dtype=torch.int64, device=device)
    for block in cache_blocks(cache):
        known = torch.from_numpy(block.features).to(device, torch.float64)
        found = torch.cat([_distances(some, known) for some in wanted.split(_QUERIES)])
        shape = (len(wanted), len(known))
        distances = torch.cat([best, found], dim=1)
        all_rows = torch.cat([rows, torch.from_numpy(block.rows).to(device).expand(shape)], dim=1)
        all_labels = torch.cat([labels, torch.from_numpy(block.labels).to(device).expand(shape)], dim=1)
        # Rows come in order, so a stable sort keeps the earlier of two at the same distance.
        order = torch.argsort(distances, dim=1, stable=True)[:, :top]
        best, rows, labels = (part.gather(1, order) for part in (distances, all_rows, all_labels))
    if best.shape[1] < top:
        raise Fault(f"{cache}: {best.shape[1]} images, evaluation.neighbours.top is {top}; lower it")
    return Nearest(best.cpu().numpy(), rows.cpu().numpy(), labels.cpu().numpy())


def _distances(queries: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Euclidean (Q, N). A common shift takes the large mean out, which keeps the digits of small distances."""
    centre = known.mean(dim=0)
    squared = squared_distances(queries - centre, known - centre)
    return torch.where(squared > 0, squared, 0.0).sqrt()  # rounding: -1e-16 of the squared norms, for equal images


def percentiles(distances: NDArray[np.float64], baseline: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the baseline, in percent, that lies strictly below each distance."""
    return 100.0 * np.searchsorted(np.sort(baseline), distances, side="left") / len(baseline)


@dataclass(frozen=True)
class Parts:
    """The artifacts that an audit reads."""

    samples: Path
    tokenizer: Path
    network: Path
    reference: Path
    index: Path


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
    """Publish neighbours.json and pairs.png for the first samples (balanced over classes) of a set.

    Raises Fault when the parts were not made for each other.
    """
    samples, latents, labels = read_samples(parts.samples)
    count = min(how.samples, samples.samples)
    tokenizer, tokenizer_record = open_tokenizer(parts.tokenizer, device)
    network, network_record = load_network(parts.network, device)
    reference = ReferenceStatistics.read(parts.reference)
    reference.verify(parts.reference.parent)
    make_contract(contract, samples=samples, tokenizer=tokenizer_record, network=network_record, reference=reference)

    batches = list(look_at(latents[:count], contract.uint8, contract.compute_batch, tokenizer, network, device))
    images = torch.cat([batch.images for batch in batches]).numpy()
    training = parts.reference.parent / TRAIN_FEATURES
    found = nearest(torch.cat([batch.features for batch in batches]).numpy(), training, how.top, device)
    held_out = read_cache(parts.reference.parent / MANIFOLD).features
    baseline = nearest(held_out, training, 1, device).distances[:, 0]
    order = np.argsort(found.distances[:, 0], kind="stable")

    reader = ImageReader(parts.index, "train", archives)
    shown = order[:_PAIRS_SHOWN]
    real = [centre_crop_of(reader, int(found.rows[i, 0]), images.shape[-1]) for i in shown]
    with publish(output.parent / PAIRS) as scratch:
        pairs_picture([images[i] for i in shown], real).save(scratch, format="PNG")
    limit = float(np.percentile(baseline, 1))
    share = float((found.distances[:, 0] < limit).mean())
    Neighbours(
        configuration=configuration,
        code=code_version(),
        inputs=hashes(vars(parts)),
        files=records(output.parent, [PAIRS]),
        space=f"features of the evaluation's {network_record.network} ({network_record.dimensions} numbers), Euclidean",
        network_sha256=network_record.weights_sha256,
        step=samples.step,
        alpha=samples.alpha,
        seed=samples.seed,
        samples=count,
        training_images=reference.images,
        top=how.top,
        baseline_images=len(baseline),
        baseline_percentile_1=limit,
        baseline_median=float(np.median(baseline)),
        generated_median=float(np.median(found.distances[:, 0])),
        share_below_percentile_1=share,
        pairs=_pairs(found, labels, baseline, order),
    ).write(output)
    log.info("%d generated images: %.1f%% nearer than the 1st percentile of held-out photos", count, 100 * share)


def _pairs(
    found: Nearest, labels: NDArray[np.int64], baseline: NDArray[np.float64], order: NDArray[np.int64]
) -> list[NeighbourPair]:
    ranks = percentiles(found.distances[:, 0], baseline)
    return [
        NeighbourPair(
            sample=int(i),
            label=int(labels[i]),
            percentile=float(ranks[i]),
            images=found.rows[i].tolist(),
            labels=found.labels[i].tolist(),
            distances=found.distances[i].tolist(),
        )
        for i in order
    ]


def pairs_picture(generated: list[NDArray[np.uint8]], real: list[NDArray[np.uint8]]) -> Image.Image:
    """Upper row: generated images (3, H, W), closest first; lower row: their nearest training images."""
    rows = [np.concatenate(images, axis=2) for images in (generated, real)]
    return Image.fromarray(np.ascontiguousarray(np.concatenate(rows, axis=1).transpose(1, 2, 0)))
