"""From generated latents to the numbers of one evaluation, in one streamed pass: decode, bytes, feature network.

No image file is written but a small grid; latents are what is kept, images are made again from them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core.artifacts import FeatureNetwork, Metrics, Samples, TokenizerManifest, hashes, publish, records
from drifting_core.config import Contract
from drifting_core.evaluation import statistics
from drifting_core.evaluation.contract import MANIFOLD, PRECISION, Uint8Rule, contract_hash, make_contract, to_uint8
from drifting_core.evaluation.grid import GRID, grid_picture, grid_samples
from drifting_core.evaluation.networks import Network, load_network
from drifting_core.evaluation.reference import read_cache, read_statistics
from drifting_core.evaluation.sampler import read_samples
from drifting_core.faults import Fault
from drifting_core.jobs import Progress
from drifting_core.models.tokenizer import Tokenizer
from drifting_core.provenance import code_version

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Some generated images: pixels uint8 (B, 3, H, W), features (B, D) and both kinds of logits, on the CPU."""

    images: Tensor
    features: Tensor
    logits_unbiased: Tensor
    logits: Tensor


class Generated(NamedTuple):
    """What the whole pass leaves: features and logits of all samples, pixels of the few that a grid shows."""

    features: NDArray[np.float32]
    logits_unbiased: NDArray[np.float32]
    predicted: NDArray[np.int64]
    shown: dict[int, NDArray[np.uint8]]
    pixel_std: float


def open_tokenizer(manifest: Path, device: torch.device) -> tuple[Tokenizer, TokenizerManifest]:
    """The tokenizer of a manifest, in the contract's precision."""
    return Tokenizer.of(manifest, device, PRECISION), TokenizerManifest.read(manifest)


def look_at(
    latents: Tensor, rule: Uint8Rule, batch: int, tokenizer: Tokenizer, network: Network, device: torch.device
) -> Iterator[Batch]:
    """Decode and see `latents` (N, C, H, W) in batches of one size; the last is padded with its first sample."""
    for some in latents.split(batch):
        padding = some[:1].expand(batch - len(some), -1, -1, -1)
        with torch.inference_mode():
            images = to_uint8(tokenizer.decode(torch.cat([some, padding]).to(device).float()), rule)
            seen = network(images)
        used = (images, seen.features, seen.logits_unbiased, seen.logits)
        yield Batch(*(part[: len(some)].cpu() for part in used))


def evaluate(
    output: Path,
    how: Contract,
    *,
    samples_path: Path,
    tokenizer_path: Path,
    network_path: Path,
    reference_path: Path,
    device: torch.device,
    configuration: str,
) -> None:
    """Publish metrics.json (and grid.png beside it) of one set of samples.

    Raises Fault when the parts were not made for each other or a number is not finite.
    """
    samples, latents, labels = read_samples(samples_path)
    tokenizer, tokenizer_record = open_tokenizer(tokenizer_path, device)
    network, network_record = load_network(network_path, device)
    reference, moments = read_statistics(reference_path)
    contract = make_contract(how, samples=samples, tokenizer=tokenizer_record, network=network_record, reference=reference)
    shown = grid_samples(len(np.unique(labels)), samples.samples)  # a canary does not have all classes
    generated = _pass(latents, how, tokenizer, network, device, shown)
    numbers = _numbers(generated, labels, how, samples, network_record, moments, reference_path, device)
    with publish(output.parent / GRID) as scratch:
        grid_picture(generated.shown, shown).save(scratch, format="PNG")
    Metrics(
        configuration=configuration,
        code=code_version(),
        inputs=hashes(
            {
                "samples": samples_path,
                "tokenizer": tokenizer_path,
                "network": network_path,
                "reference": reference_path,
            }
        ),
        files=records(output.parent, [GRID]),
        contract=contract,
        contract_hash=contract_hash(contract),
        distance_name=contract.distance_name,
        score_name=contract.score_name,
        step=samples.step,
        alpha=samples.alpha,
        seed=samples.seed,
        **numbers,
    ).write(output)
    log.info(
        "step %d, alpha %g, seed %d: %s %.4g ± %.2g, %s %.4g", samples.step, samples.alpha, samples.seed,
        contract.distance_name, numbers["distance"], numbers["distance_error"], contract.score_name, numbers["score"],
    )  # fmt: skip


def _pass(
    latents: Tensor,
    how: Contract,
    tokenizer: Tokenizer,
    network: Network,
    device: torch.device,
    shown: list[list[int]],
) -> Generated:
    keep = {sample for row in shown for sample in row}
    progress = Progress("decoding and features", len(latents), unit="images")
    features, unbiased, predicted, kept = [], [], [], {}
    done, deviation = 0, 0.0
    for batch in look_at(latents, how.uint8, how.compute_batch, tokenizer, network, device):
        for i in keep & set(range(done, done + len(batch.images))):
            kept[i] = batch.images[i - done].numpy()
        features.append(batch.features.numpy())
        unbiased.append(batch.logits_unbiased.numpy())
        predicted.append(batch.logits.argmax(1).numpy())
        deviation += float((batch.images.double() / 255).flatten(1).std(dim=1).sum())
        done += len(batch.images)
        progress.advance(len(batch.images))
    return Generated(np.concatenate(features), np.concatenate(unbiased), np.concatenate(predicted), kept, deviation / done)


def _numbers(
    generated: Generated,
    labels: NDArray[np.int64],
    how: Contract,
    samples: Samples,
    network: FeatureNetwork,
    reference: statistics.Moments,
    reference_path: Path,
    device: torch.device,
) -> dict[str, Any]:
    own = statistics.moments_of(generated.features)
    frechet = statistics.frechet(reference.mean, reference.covariance, own.mean, own.covariance)
    error = statistics.bootstrap_error(reference, generated.features, resamples=how.bootstrap, seed=samples.seed)
    score, score_std = statistics.inception_score(generated.logits_unbiased)
    manifold = read_cache(reference_path.parent / MANIFOLD)
    precision, recall = statistics.precision_recall(
        manifold.features, generated.features, how.precision_recall_k, device=device
    )
    diversity = statistics.within_class_diversity(generated.features, labels, manifold.features, manifold.labels)
    labelled = network.classes == samples.classes  # Inception has 1008 outputs in an order of its own
    numbers = {
        "distance": frechet.distance,
        "distance_error": error,
        "distance_residue": frechet.residue,
        "score": score,
        "score_std": score_std,
        "precision": precision,
        "recall": recall,
        "label_accuracy": float((generated.predicted == labels).mean()) if labelled else None,
        "within_class_diversity": diversity.ratio,
        "sample_std": generated.pixel_std,
    }
    broken = [name for name, value in numbers.items() if value is not None and not math.isfinite(value)]
    if broken:
        raise Fault(f"step {samples.step}, alpha {samples.alpha:g}: {', '.join(broken)} not finite; look at the samples")
    return numbers
