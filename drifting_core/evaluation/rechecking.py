"""Metrics checked against what they were made from: their numbers from the stored features, features from the latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from drifting_core.artifacts import FEATURES, Metrics, sha256_file
from drifting_core.evaluation.contract import MANIFOLD, STATISTICS
from drifting_core.evaluation.evaluate import look_at, open_tokenizer
from drifting_core.evaluation.measuring import Features, measure, read_features
from drifting_core.evaluation.networks.loading import load_network
from drifting_core.evaluation.reference import read_cache, read_statistics
from drifting_core.evaluation.sampler import read_samples
from drifting_core.faults import Fault

_TOLERANCE = 1e-4  # another device computes other bits; a byte of a pixel may round the other way


def recompute(metrics_path: Path, *, reference: Path, device: torch.device | str = "cpu") -> dict[str, float | None]:
    """The numbers of a metrics.json again, by name, from the features beside it and the reference given.

    All but sample_std, which needs pixels. Raises Fault when a file was changed, or the reference is another one.
    """
    metrics, seen = _read(metrics_path)
    record, moments = read_statistics(reference)
    contract = metrics.contract
    for name, expected in ((STATISTICS, contract.reference_sha256), (MANIFOLD, contract.manifold_sha256)):
        _require_hash(reference.parent / name, record.files[name].sha256, expected, metrics_path)
    return measure(
        seen,
        contract,
        seed=metrics.seed,
        reference=moments,
        manifold=read_cache(reference.parent / MANIFOLD),
        labelled=metrics.label_accuracy is not None,
        device=torch.device(device),
    )


def look_again(
    metrics_path: Path,
    *,
    samples: Path,
    tokenizer: Path,
    network: Path,
    how_many: int,
    device: torch.device | str,
) -> float:
    """Decode about `how_many` of the stored latents again and compare their features with those stored.

    Whole compute batches, evenly spaced, at least one: the bits of a feature depend on its batch. Returns the largest
    difference, relative to the largest of these features. Raises Fault when it is beyond 1e-4, naming the samples, or when
    an artifact is not the one that the metrics were made from.
    """
    metrics, seen = _read(metrics_path)
    for role, path in {"samples": samples, "tokenizer": tokenizer, "network": network}.items():
        _require_hash(path, sha256_file(path), metrics.inputs[role], metrics_path)
    place, size = torch.device(device), metrics.contract.compute_batch
    _, latents, _ = read_samples(samples)
    decoder, sees = open_tokenizer(tokenizer, place)[0], load_network(network, place)[0]
    wrong: dict[int, float] = {}
    largest = 0.0
    for start in _starts(len(latents), size, how_many):
        [again] = look_at(latents[start : start + size], metrics.contract.uint8, size, decoder, sees, place)  # type: ignore[arg-type]
        stored = seen.features[start : start + size]
        differences = np.abs(again.features.numpy() - stored).max(axis=1) / np.abs(stored).max()
        largest = max(largest, float(differences.max()))
        # Not `>`: false for NaN, which must not pass.
        wrong |= {start + int(i): float(differences[i]) for i in np.flatnonzero(~(differences <= _TOLERANCE))}
    if wrong:
        raise Fault(f"{metrics_path.parent / FEATURES}: {_named(wrong)}; not what their latents decode to: evaluate again")
    return largest


def _read(metrics_path: Path) -> tuple[Metrics, Features]:
    metrics = Metrics.read(metrics_path)
    if FEATURES not in metrics.files:
        raise Fault(f"{metrics_path}: lists no {FEATURES}, it was made before features were kept; evaluate again")
    metrics.verify(metrics_path.parent)
    return metrics, read_features(metrics_path.parent / FEATURES)


def _require_hash(path: Path, found: str, expected: str, metrics_path: Path) -> None:
    if found != expected:
        raise Fault(
            f"{path}: SHA-256 {found[:16]}…, but {metrics_path} was made with {expected[:16]}…; give the one that it was "
            "made with, or evaluate again"
        )


def _starts(count: int, batch: int, how_many: int) -> list[int]:
    """First samples of evenly spaced batches that hold about `how_many` of `count`."""
    batches = math.ceil(count / batch)
    wanted = min(batches, max(1, math.ceil(how_many / batch)))
    return [int(i) * batch for i in np.linspace(0, batches - 1, wanted).round()]


def _named(wrong: Mapping[int, float]) -> str:
    first = ", ".join(f"{sample}" for sample in list(wrong)[:10])
    more = ", …" if len(wrong) > 10 else ""
    return f"features of the samples {first}{more} are up to {max(wrong.values()):.2g} (relative) from those stored"
