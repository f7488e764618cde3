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
    """The squared Fréchet distance and its residue: the roots of eigenvalues that rounding made negative, summed."""

    distance: float
    residue: float


class KernelDistance(NamedTuple):
    """The estimate, averaged over subsets, and its standard deviation over them (0 without subsets)."""

    mean: float
    std: float


class Diversity(NamedTuple):
    """Mean distance of same-class pairs, generated and real, and their ratio (1: as diverse as real images)."""

    generated: float
    real: float
    ratio: float


class MomentsAccumulator:
    """Mean and covariance of rows that come in batches, merged in float64 (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.rows, self._mean, self._scatter = 0, np.zeros(0), np.zeros((0, 0))

    def add(self, batch: Array) -> None:
        """Take in rows (B, D)."""
        rows = np.asarray(batch, dtype=np.float64)
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        centred = rows - mean
        scatter = centred.T @ centred
        if not self.rows:
            self.rows, self._mean, self._scatter = len(rows), mean, scatter
            return
        total = self.rows + len(rows)
        shift = mean - self._mean
        self._scatter += scatter + np.outer(shift, shift) * (self.rows * len(rows) / total)
        self._mean = self._mean + shift * (len(rows) / total)
        self.rows = total

    def moments(self) -> Moments:
        """Of all rows so far, covariance with divisor N - 1. Raises ValueError for fewer than two."""
        if self.rows < 2:
            raise ValueError(f"mean_covariance: {self.rows} row(s); a covariance needs at least 2")
        return Moments(self._mean, self._scatter / (self.rows - 1), self.rows)


def mean_covariance(batches: Iterable[Array]) -> Moments:
    """Mean and covariance (divisor N - 1) of rows that come in batches: see MomentsAccumulator."""
    accumulator = MomentsAccumulator()
    for batch in batches:
        accumulator.add(batch)
    return accumulator.moments()


def frechet_distance(mean_a: Array, covariance_a: Array, mean_b: Array, covariance_b: Array) -> float:
    """|m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)) (Heusel et al. 2017); errors as in `frechet`."""
    return frechet(mean_a, covariance_a, mean_b, covariance_b).distance


class CovarianceRoot(NamedTuple):
    """R (D, rank) with R R^T = S, and the sum of the roots of the eigenvalues that rounding made negative."""

    root: Array
    residue: float


def frechet(mean_a: Array, covariance_a: Array, mean_b: Array, covariance_b: Array) -> Frechet:
    """`frechet_distance` with its residue.

    The last trace is the sum of the singular values of R_a^T R_b, where S = R R^T: the roots of the eigenvalues of the
    symmetric R_a^T S_b R_a, without squaring them first, which would lose half of their digits. Raises Fault when a
    covariance has a negative eigenvalue beyond rounding or is not finite.
    """
    first, second = covariance_root(covariance_a), covariance_root(covariance_b)
    trace = float(np.linalg.svd(first.root.T @ second.root, compute_uv=False).sum())
    return Frechet(_without_root(mean_a, covariance_a, mean_b, covariance_b) - 2 * trace, first.residue + second.residue)


def quick_frechet(reference: Moments, root: CovarianceRoot, other: Moments) -> float:
    """The distance to `reference`, whose `root` is known, from eigenvalues: ten times as fast, about six digits.

    For the many resamples of an error; `frechet` makes what is reported. Raises Fault when a number is not finite.
    """
    _require_finite(other.covariance, "covariance")
    product = root.root.T @ other.covariance @ root.root
    values = np.linalg.eigvalsh((product + product.T) / 2)
    # Those that are not positive are zeros but for rounding: both covariances were found to be such.
    return _without_root(*reference[:2], *other[:2]) - 2 * float(np.sqrt(values[values > 0]).sum())


def _without_root(mean_a: Array, covariance_a: Array, mean_b: Array, covariance_b: Array) -> float:
    shift = np.asarray(mean_a, dtype=np.float64) - np.asarray(mean_b, dtype=np.float64)
    return float(shift @ shift) + float(np.trace(covariance_a) + np.trace(covariance_b))


def covariance_root(covariance: Array) -> CovarianceRoot:
    """Factor of a covariance. Raises Fault when it is not finite or not positive semi-definite.

    An exactly singular covariance has eigenvalues of about +-D eps of the largest instead of 0, eps being that of the stored
    numbers. What rounding of float64 explains is left out whichever its sign: with fewer images than features most
    eigenvalues are such, and the roots of the positive half would be counted.
    """
    _require_finite(covariance, "covariance")
    values, vectors = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
    largest = float(values.max(initial=0.0))
    allowed = 10 * len(values) * float(np.finfo(np.asarray(covariance).dtype).eps) * largest
    if values.min(initial=0.0) < -allowed:
        raise Fault(
            f"Fréchet distance: a covariance has the eigenvalue {values.min():.3g}, rounding explains no more than "
            f"{-allowed:.3g}; it is no covariance: make its statistics again"
        )
    kept = values > len(values) * float(np.finfo(np.float64).eps) * largest
    return CovarianceRoot(vectors[:, kept] * np.sqrt(values[kept]), float(np.sqrt(-values[values < 0]).sum()))


def _require_finite(numbers: Array, what: str) -> None:
    if not np.isfinite(numbers).all():
        raise Fault(
            f"{what}: {int((~np.isfinite(numbers)).sum())} numbers are not finite; its features are broken: evaluate "
            "again, and look at the samples"
        )


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


def kernel_distance(
    a: Array,
    b: Array,
    *,
    subsets: int = 1,
    subset_size: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> KernelDistance:
    """Unbiased squared maximum mean discrepancy under (x y / D + 1)^3 (Binkowski et al. 2018): KID on Inception features.

    Without `subset_size` once, of all rows, in blocks. With it (1,000 and 100 `subsets` in published KIDs) the mean and
    standard deviation over subsets drawn without replacement, as functions of (seed, subset). Raises ValueError when there
    are fewer rows than asked for, or fewer than two.
    """
    first, second = (torch.from_numpy(np.asarray(rows, dtype=np.float64)) for rows in (a, b))
    fewest = min(len(first), len(second))
    if fewest < 2 or not 2 <= (subset_size or fewest) <= fewest or subsets < 1:
        raise ValueError(
            f"kernel_distance: {subsets} subset(s) of {subset_size or 'all'} rows, found {len(first)} and {len(second)} "
            "rows; at least one subset of at least two rows is needed"
        )
    if subset_size is None:
        return KernelDistance(_discrepancy(first.to(device), second.to(device)), 0.0)
    found = []
    for subset in range(subsets):
        own = [
            _drawn(rows, subset_size, draws.key(seed, "kernel", subset, side)) for side, rows in enumerate((first, second))
        ]
        found.append(_discrepancy(*(rows.to(device) for rows in own)))
    return KernelDistance(float(np.mean(found)), float(np.std(found)))


def _drawn(rows: Tensor, count: int, key: int) -> Tensor:
    return rows[torch.argsort(draws.uniform(key, (len(rows),)), stable=True)[:count]]


def _discrepancy(a: Tensor, b: Tensor) -> float:
    """mean k(a, a') + mean k(b, b') - 2 mean k(a, b), pairs of a row with itself left out; float64."""

    def total(rows: Tensor, others: Tensor) -> float:
        return sum(float(_cubic(block, others).sum()) for block in rows.split(_ROWS))

    def own(rows: Tensor) -> float:
        itself = float(((rows * rows).sum(dim=1) / rows.shape[1] + 1.0).pow(3).sum())
        return (total(rows, rows) - itself) / (len(rows) * (len(rows) - 1))

    return own(a) + own(b) - 2.0 * total(a, b) / (len(a) * len(b))


def _cubic(rows: Tensor, others: Tensor) -> Tensor:
    return (rows @ others.T / rows.shape[1] + 1.0).pow_(3)


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
