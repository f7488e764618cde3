"""From features to the numbers of an evaluation. Features are kept (features.h5), so that all numbers can be made again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from drifting_core.artifacts import EvaluationContract
from drifting_core.data.hdf5 import publish_hdf5
from drifting_core.evaluation import statistics, uncertainty
from drifting_core.evaluation.reference import Cache
from drifting_core.faults import Fault

_CHUNK_ROWS = 256


class Features(NamedTuple):
    """What the feature network saw in a set of samples, in their order.

    features (N, D) and logits_unbiased (N, K) float32; predicted classes and labels (N,) int64. A network without classes
    has K = 0, and predicts -1.
    """

    features: NDArray[np.float32]
    logits_unbiased: NDArray[np.float32]
    predicted: NDArray[np.int64]
    labels: NDArray[np.int64]


def write_features(path: Path, seen: Features) -> None:
    """Publish them at `path`. Raises Fault when the disk is full."""
    with publish_hdf5(path) as writer:
        for name, values in seen._asdict().items():
            if not values.size:  # no classes
                continue
            chunk = (min(_CHUNK_ROWS, len(values)), *values.shape[1:])
            writer.file.create_dataset(name, data=values, chunks=chunk, fletcher32=True)
            writer.check()


def read_features(path: Path) -> Features:
    """What `write_features` wrote. Raises Fault when the file holds something else."""
    try:
        with h5py.File(path, "r") as file:
            held = {name: values[:] for name, values in file.items()}
        return Features(**{"logits_unbiased": np.zeros((len(held["features"]), 0), np.float32), **held})
    except (OSError, KeyError, TypeError) as error:
        raise Fault(f"{path}: no features of an evaluation: {error}; evaluate these samples again") from error


def measure(
    seen: Features,
    contract: EvaluationContract,
    *,
    seed: int,
    reference: statistics.Moments,
    manifold: Cache,
    labelled: bool,
    device: torch.device,
) -> dict[str, float | None]:
    """The numbers of Metrics that follow from features; `seed` is that of the samples.

    `labelled`: the network's classes are those of the labels (Inception has 1008 in an order of its own). Raises Fault
    naming those that are not finite.
    """
    own = statistics.moments_of(seen.features)
    frechet = statistics.frechet(reference.mean, reference.covariance, own.mean, own.covariance)
    error = uncertainty.bootstrap_error(reference, seen.features, resamples=contract.bootstrap, seed=seed)
    score, score_std = statistics.inception_score(seen.logits_unbiased) if seen.logits_unbiased.size else (None, None)
    precision, recall = statistics.precision_recall(
        manifold.features, seen.features, contract.precision_recall_k, device=device
    )
    diversity = statistics.within_class_diversity(seen.features, seen.labels, manifold.features, manifold.labels)
    numbers: dict[str, float | None] = {
        "distance": frechet.distance,
        "distance_error": error,
        "distance_residue": frechet.residue,
        "score": score,
        "score_std": score_std,
        "precision": precision,
        "recall": recall,
        "label_accuracy": float((seen.predicted == seen.labels).mean()) if labelled else None,
        "within_class_diversity": diversity.ratio,
        **_on_request(seen.features, contract, seed, frechet.distance, error, reference, manifold, device),
    }
    broken = [name for name, value in numbers.items() if value is not None and not math.isfinite(value)]
    if broken:
        raise Fault(f"{', '.join(broken)}: not finite; look at the samples")
    return numbers


def _on_request(
    features: NDArray[np.float32],
    contract: EvaluationContract,
    seed: int,
    distance: float,
    error: float,
    reference: statistics.Moments,
    manifold: Cache,
    device: torch.device,
) -> dict[str, float | None]:
    """Interval, extrapolation and kernel distance, where the contract has them."""
    numbers: dict[str, float | None] = {}
    if contract.bootstrap:
        numbers["distance_low"], numbers["distance_high"] = uncertainty.interval(distance, error)
    if contract.extrapolation:
        line = uncertainty.extrapolate(reference, features, sizes=contract.extrapolation, seed=seed)
        numbers["distance_infinite"], numbers["distance_infinite_error"] = line
    if contract.kernel_subsets:
        numbers["kernel_distance"], numbers["kernel_distance_std"] = statistics.kernel_distance(
            manifold.features,
            features,
            subsets=contract.kernel_subsets,
            subset_size=contract.kernel_subset_size,
            seed=seed,
            device=device,
        )
    return numbers
