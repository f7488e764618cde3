"""The numbers of an evaluation: pure functions of features and logits.

Features are float arrays (N, D); covariances and distances are computed in float64. `metrics.npz` of the golden numbers
holds the Fréchet distance, the Inception score, precision and recall to 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core.data import draws
from drifting_core.faults import Fault

Array = NDArray[np.floating]
Labels = NDArray[np.int64]

_ROWS = 2048  # rows of one block of a distance matrix; bounds memory, not results
_SCORE_PERMUTATION = 2020  # seed of the released code's shuffle before splitting
_SCORE_EPSILON = 1e-10


class Moments(NamedTuple):
    """Mean (D,), unbiased covariance (D, D), number of rows."""

    mean: Array
    covariance: Array
    rows: int


class Frechet(NamedTuple):
    """The squared Fréchet distance and its residue: what eigenvalues rounded below 0 could have added to the trace."""

    distance: float
    residue: float


class Diversity(NamedTuple):
    """Mean distance of same-class pairs, generated and real, and their ratio (1: as diverse as real images)."""

    generated: float
    real: float
    ratio: float


def mean_covariance(batches: Iterable[Array]) -> Moments:
    """Mean and covariance (divisor N - 1) of rows that come in batches, merged in float64 (Chan et al. 1979)."""
    count, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
    for batch in batches:
        rows = np.asarray(batch, dtype=np.float64)
        own_mean = rows.mean(axis=0)
        centred = rows - own_mean
        own_scatter = centred.T @ centred
        if not count:
            count, mean, scatter = len(rows), own_mean, own_scatter
            continue
        total = count + len(rows)
        shift = own_mean - mean
        scatter += own_scatter + np.outer(shift, shift) * (count * len(rows) / total)
        mean = mean + shift * (len(rows) / total)
        count = total
    if count < 2:
        raise ValueError(f"mean_covariance: {count} row(s); a covariance needs at least 2")
    return Moments(mean, scatter / (count - 1), count)


def frechet_distance(mean_1: Array, covariance_1: Array, mean_2: Array, covariance_2: Array) -> Frechet:
    """|m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)) (Heusel et al. 2017).

    The last trace is the sum of the roots of the eigenvalues of R^T S2 R with S1 = R R^T: a symmetric problem, so that
    no imaginary part arises. Raises Fault when a covariance has a negative eigenvalue beyond rounding or is not finite.
    """
    root = covariance_root(covariance_1)
    return _frechet(mean_1, covariance_1, root, mean_2, covariance_2)


class CovarianceRoot(NamedTuple):
    """R (D, rank) with R R^T = S, and the sum of the roots of the eigenvalues that rounding made negative."""

    root: Array
    residue: float


def covariance_root(covariance: Array) -> CovarianceRoot:
    """Symmetric factor of a covariance. Raises Fault when it is not finite or not positive semi-definite."""
    _require_finite(covariance, "covariance")
    values, vectors = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
    positive, residue = _split_spectrum(values, np.asarray(covariance).dtype, float(values.max(initial=0.0)))
    return CovarianceRoot(vectors[:, positive] * np.sqrt(values[positive]), residue)


def _frechet(mean_1: Array, covariance_1: Array, root_1: CovarianceRoot, mean_2: Array, covariance_2: Array) -> Frechet:
    _require_finite(covariance_2, "covariance")
    product = root_1.root.T @ np.asarray(covariance_2, dtype=np.float64) @ root_1.root
    values = np.linalg.eigvalsh((product + product.T) / 2)
    scale = float(np.linalg.norm(covariance_1, 2) * np.linalg.norm(covariance_2, 2)) if values.min(initial=0.0) < 0 else 1.0
    positive, residue = _split_spectrum(values, np.asarray(covariance_2).dtype, scale)
    shift = np.asarray(mean_1, dtype=np.float64) - np.asarray(mean_2, dtype=np.float64)
    trace = float(np.trace(covariance_1) + np.trace(covariance_2) - 2 * np.sqrt(values[positive]).sum())
    return Frechet(float(shift @ shift) + trace, residue + root_1.residue)


def _split_spectrum(values: Array, stored: np.dtype, scale: float) -> tuple[NDArray[np.bool_], float]:
    """Which eigenvalues are positive, and the sum of the roots of the others' magnitudes.

    An exactly singular covariance has eigenvalues of about +-D eps scale, eps being that of the stored numbers.
    """
    allowed = 10 * len(values) * float(np.finfo(stored).eps) * scale
    if values.min(initial=0.0) < -allowed:
        raise Fault(
            f"Fréchet distance: a covariance has the eigenvalue {values.min():.3g}, rounding explains no more than "
            f"{-allowed:.3g}; it is no covariance: make its statistics again"
        )
    positive = values > 0
    return positive, float(np.sqrt(-values[~positive]).sum())


def _require_finite(numbers: Array, what: str) -> None:
    if not np.isfinite(numbers).all():
        raise Fault(f"{what}: {int((~np.isfinite(numbers)).sum())} numbers are not finite; its features are broken")


def bootstrap_error(reference: Moments, features: Array, *, resamples: int, seed: int) -> float:
    """Standard error of the Fréchet distance: its standard deviation over resampled generated sets.

    Resample r draws N of the N rows with replacement; its indices are a function of (seed, r). Needs resamples >= 2;
    with 0 the error is 0, which says that nobody asked for one.
    """
    if resamples == 0:
        return 0.0
    if resamples < 2:
        raise ValueError(f"bootstrap_error: {resamples} resample(s); a spread needs at least 2 (or 0 for none)")
    root = covariance_root(reference.covariance)
    distances = []
    for resample in range(resamples):
        rows = draws.integers(draws.key(seed, "bootstrap", resample), len(features), (len(features),))
        own = mean_covariance(_batches(np.asarray(features)[rows.numpy()]))
        distances.append(_frechet(reference.mean, reference.covariance, root, own.mean, own.covariance).distance)
    return float(np.std(distances, ddof=1))


def _batches(features: Array) -> Iterator[Array]:
    for start in range(0, len(features), _ROWS):
        yield features[start : start + _ROWS]


def moments_of(features: Array) -> Moments:
    """`mean_covariance` of one array."""
    return mean_covariance(_batches(features))


def inception_score(logits: Array, splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL(p(y|x) || p(y)), its mean and standard deviation over splits (Salimans et al. 2016).

    As released: rows in the order of RandomState(2020), N // splits rows per split, log(p + 1e-10).
    """
    count = len(logits) // splits
    if not count:
        raise ValueError(f"inception_score: {len(logits)} rows do not fill {splits} splits")
    order = np.random.RandomState(_SCORE_PERMUTATION).permutation(len(logits))
    shuffled = torch.from_numpy(np.asarray(logits, dtype=np.float64)[order])
    probabilities = torch.softmax(shuffled, dim=1).numpy()
    scores = []
    for start in range(0, splits * count, count):
        part = probabilities[start : start + count]
        marginal = part.mean(axis=0, keepdims=True)
        divergence = part * (np.log(part + _SCORE_EPSILON) - np.log(marginal + _SCORE_EPSILON))
        scores.append(np.exp(divergence.sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
    real: Array, generated: Array, k: int = 3, *, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Shares of generated inside the real manifold and of real inside the generated one (Kynkäänniemi et al. 2019).

    A manifold is the union of balls around its rows that reach to the k-th nearest other row (as ADM's evaluator).
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"precision_recall: {len(real)} real and {len(generated)} generated rows, k is {k}")
    centre = np.asarray(real, dtype=np.float64).mean(axis=0)  # a common shift cancels and keeps digits
    real_rows = torch.from_numpy(np.asarray(real, dtype=np.float64) - centre).to(device)
    generated_rows = torch.from_numpy(np.asarray(generated, dtype=np.float64) - centre).to(device)
    precision = _share_inside(generated_rows, real_rows, _radii(real_rows, k))
    recall = _share_inside(real_rows, generated_rows, _radii(generated_rows, k))
    return precision, recall


def squared_distances(rows: Tensor, others: Tensor) -> Tensor:
    """(N, D), (M, D) float64 -> (N, M) squared Euclidean distances; rounding can leave -1e-16 of the squared norms."""
    products = rows @ others.T
    return (rows * rows).sum(1)[:, None] + (others * others).sum(1)[None] - 2 * products


def _radii(rows: Tensor, k: int) -> Tensor:
    """Squared distance of every row to its k-th nearest other row."""
    # The row itself is the nearest of all: rank k + 1 counts it.
    return torch.cat([squared_distances(block, rows).kthvalue(k + 1, dim=1).values for block in rows.split(_ROWS)])


def _share_inside(rows: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = [(squared_distances(block, centres) <= radii).any(dim=1) for block in rows.split(_ROWS)]
    return float(torch.cat(inside).double().mean())


def within_class_diversity(generated: Array, generated_labels: Labels, real: Array, real_labels: Labels) -> Diversity:
    """Mean distance between features of one class, generated against real; class means alone would give 0."""
    ours = _same_class_distance(generated, generated_labels)
    theirs = _same_class_distance(real, real_labels)
    return Diversity(ours, theirs, ours / theirs)


def _same_class_distance(features: Array, labels: Labels) -> float:
    """Mean Euclidean distance over all pairs with equal labels. Raises ValueError when there is none."""
    total, pairs = 0.0, 0
    for label in np.unique(labels):
        rows = torch.from_numpy(np.asarray(features[labels == label], dtype=np.float64))
        if len(rows) < 2:
            continue
        distances = torch.nn.functional.pdist(rows)
        total += float(distances.sum())
        pairs += len(distances)
    if not pairs:
        raise ValueError("within_class_diversity: no class has two rows")
    return total / pairs
