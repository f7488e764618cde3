"""From generated latents to the numbers of one evaluation, in one streamed pass: decode, bytes, feature network.

No image file is written but a small grid; latents and features are what is kept, images are made again from the former.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core.artifacts import FEATURES, Metrics, TokenizerManifest, hashes, publish, records
from drifting_core.artifacts.provenance import code_version
from drifting_core.config import Contract
from drifting_core.evaluation.contract import MANIFOLD, PRECISION, Uint8Rule, contract_hash, make_contract, to_uint8
from drifting_core.evaluation.grid import GRID, grid_picture, grid_samples
from drifting_core.evaluation.measuring import Features, measure, write_features
from drifting_core.evaluation.networks.loading import Network, load_network, predictions
from drifting_core.evaluation.reference import read_cache, read_statistics
from drifting_core.evaluation.sampler import read_samples
from drifting_core.jobs.job import Progress
from drifting_core.models.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Some generated images: pixels uint8 (B, 3, H, W), features (B, D) and both kinds of logits, on the CPU."""

    images: Tensor
    features: Tensor
    logits_unbiased: Tensor
    logits: Tensor


class Generated(NamedTuple):
    """What the whole pass leaves: features of all samples, pixels of the few that a grid shows."""

    seen: Features
    shown: dict[int, NDArray[np.uint8]]
    pixel_std: float


def open_tokenizer(manifest: Path, device: torch.device) -> tuple[Tokenizer, TokenizerManifest]:
    """The tokenizer of a manifest, in the contract's precision."""
    return Tokenizer.of(manifest, device, PRECISION), TokenizerManifest.read(manifest)


def pixels(some: Tensor, rule: Uint8Rule, batch: int, tokenizer: Tokenizer, device: torch.device) -> Tensor:
    """At most `batch` latents as bytes uint8 (batch, 3, H, W) on the device, padded with the first."""
    padding = some[:1].expand(batch - len(some), -1, -1, -1)
    with torch.inference_mode():
        return to_uint8(tokenizer.decode(torch.cat([some, padding]).to(device).float()), rule)


def look_at(
    latents: Tensor, rule: Uint8Rule, batch: int, tokenizer: Tokenizer, network: Network, device: torch.device
) -> Iterator[Batch]:
    """Decode and see `latents` (N, C, H, W) in batches of one size; the last is padded with its first sample."""
    for some in latents.split(batch):
        images = pixels(some, rule, batch, tokenizer, device)
        with torch.inference_mode():
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
    """Publish metrics.json (and grid.png and features.h5 beside it) of one set of samples.

    Raises Fault when the parts were not made for each other or a number is not finite.
    """
    samples, latents, labels = read_samples(samples_path)
    tokenizer, tokenizer_record = open_tokenizer(tokenizer_path, device)
    network, network_record = load_network(network_path, device)
    reference, moments = read_statistics(reference_path)
    contract = make_contract(how, samples=samples, tokenizer=tokenizer_record, network=network_record, reference=reference)
    shown = grid_samples(labels)
    generated = _pass(latents, labels, how, tokenizer, network, device, shown)
    write_features(output.parent / FEATURES, generated.seen)
    numbers = measure(
        generated.seen,
        contract,
        seed=samples.seed,
        reference=moments,
        manifold=read_cache(reference_path.parent / MANIFOLD),
        labelled=network_record.classes == samples.classes,
        device=device,
    )
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
        files=records(output.parent, [GRID, FEATURES]),
        contract=contract,
        contract_hash=contract_hash(contract),
        distance_name=contract.distance_name,
        score_name=contract.score_name,
        step=samples.step,
        alpha=samples.alpha,
        seed=samples.seed,
        grid_labels=[int(labels[row[0]]) for row in shown],
        sample_std=generated.pixel_std,
        **numbers,
    ).write(output)
    score = "" if numbers["score"] is None else f", {contract.score_name} {numbers['score']:.4g}"
    log.info(
        "step %d, alpha %g, seed %d: %s %.4g ± %.2g%s", samples.step, samples.alpha, samples.seed, contract.distance_name,
        numbers["distance"], numbers["distance_error"], score,
    )  # fmt: skip


def _pass(
    latents: Tensor,
    labels: NDArray[np.int64],
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
        predicted.append(predictions(batch.logits).numpy())
        deviation += float((batch.images.double() / 255).flatten(1).std(dim=1).sum())
        done += len(batch.images)
        progress.advance(len(batch.images))
    seen = Features(np.concatenate(features), np.concatenate(unbiased), np.concatenate(predicted), labels)
    return Generated(seen, kept, deviation / done)
