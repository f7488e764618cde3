"""How far a Fréchet distance can be trusted: resampled sets for its error, smaller ones for what it would be without end.

The distance of N samples is biased upwards by about c / N, with a c that depends on the generator (Chong & Forsyth 2020,
"Effectively unbiased FID and Inception score"), so distances of unlike N do not compare; the intercept of a line in 1 / N
estimates that of infinitely many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drifting_core.data import draws
from drifting_core.evaluation.statistics import Array, Moments, covariance_root, moments_of, quick_frechet
from drifting_core.jobs.job import Progress

NORMAL_95 = 1.96  # half of a 95% interval, in standard errors


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


class Extrapolated(NamedTuple):
    """The distance at infinitely many samples, and the standard error of the line's intercept.

    The error is the line's alone: subsets share their samples, so another draw of all samples moves the line by more.
    """

    distance: float
    error: float


def bootstrap_error(reference: Moments, features: Array, *, resamples: int, seed: int) -> float:
    """Standard error of the Fréchet distance: its standard deviation over resampled generated sets.

    Resample r draws N of the N rows with replacement; its indices are a function of (seed, r). Needs resamples >= 2;
    with 0 the error is 0, which says that nobody asked for one.
    """
    if resamples == 0:
        return 0.0
    if resamples < 2:
        raise ValueError(f"bootstrap_error: {resamples} resample(s); a spread needs at least 2 (or 0 for none)")
    distance = _distance_to(reference)
    distances = []
    progress = Progress("bootstrap", resamples, unit="resamples", part=True)
    for resample in range(resamples):
        rows = draws.integers(draws.key(seed, "bootstrap", resample), len(features), (len(features),))
        distances.append(distance(np.asarray(features)[rows.numpy()]))
        progress.advance()
    return float(np.std(distances, ddof=1))


def interval(distance: float, error: float) -> Interval:
    """95% interval in the normal form, distance -+ 1.96 errors.

    Not the percentiles of the resampled distances: resampling repeats rows, which biases these upwards a second time, so
    that their percentiles may not even hold the distance itself.
    """
    return Interval(distance - NORMAL_95 * error, distance + NORMAL_95 * error)


def subset_sizes(rows: int, dimensions: int, count: int) -> NDArray[np.int64]:
    """`count` evenly spaced sizes up to all rows, from a tenth of them (5,000 of 50,000, as published).

    From two rows per dimension instead where there are as many among half the rows: below that the bias is no c / N.
    """
    smallest = max(2, rows // 10, min(2 * dimensions, rows // 2))
    return np.linspace(smallest, rows, count).round().astype(np.int64)


def extrapolate(reference: Moments, features: Array, *, sizes: int, seed: int) -> Extrapolated:
    """The intercept of the least-squares line in 1 / N through the distances of subsets of `sizes` evenly spaced sizes.

    A subset is drawn without replacement, as a function of (seed, index of its size). Raises ValueError for fewer than
    three sizes, or where there are too few rows for different ones.
    """
    counts = subset_sizes(len(features), features.shape[1], sizes)
    if sizes < 3 or len(set(counts.tolist())) < 2:
        raise ValueError(f"extrapolate: {sizes} sizes of {len(features)} rows; a line with an error needs at least 3 sizes")
    distance = _distance_to(reference)
    found = []
    progress = Progress("extrapolation", sizes, unit="sizes", part=True)
    for index, count in enumerate(counts):
        rows = draws.permutation(draws.key(seed, "extrapolation", index), len(features))[: int(count)]
        found.append(distance(np.asarray(features)[rows.numpy()]))
        progress.advance()
    return _intercept(1.0 / counts, np.array(found))


def _intercept(x: NDArray[np.float64], y: NDArray[np.float64]) -> Extrapolated:
    """Of the least-squares line y = a + b x: a and its standard error."""
    offset = x - x.mean()
    slope = float(offset @ y / (offset @ offset))
    intercept = float(y.mean() - slope * x.mean())
    residuals = y - intercept - slope * x
    variance = float(residuals @ residuals) / (len(x) - 2)
    return Extrapolated(intercept, math.sqrt(variance * (1 / len(x) + float(x.mean() ** 2 / (offset @ offset)))))


def _distance_to(reference: Moments) -> Callable[[NDArray[Any]], float]:
    """Distances to one reference, whose covariance is factored once."""
    root = covariance_root(reference.covariance)

    def of(features: NDArray[Any]) -> float:
        return quick_frechet(reference, root, moments_of(features))

    return of
