"""The error of a distance, its interval, and the line to infinitely many samples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from drifting_core.evaluation import statistics, uncertainty


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def features(rows, width=8, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(rows, width))


def test_bootstrap_error_is_repeatable_and_shrinks_with_samples():
    reference = statistics.moments_of(features(1000))
    few, many = features(50, seed=3), features(800, seed=3)
    error = uncertainty.bootstrap_error(reference, few, resamples=10, seed=1)
    assert error == uncertainty.bootstrap_error(reference, few, resamples=10, seed=1)
    assert error != uncertainty.bootstrap_error(reference, few, resamples=10, seed=2)
    assert 0 < uncertainty.bootstrap_error(reference, many, resamples=10, seed=1) < error
    assert uncertainty.bootstrap_error(reference, few, resamples=0, seed=1) == 0.0


def test_the_interval_holds_the_mean_distance_as_often_as_it_says():
    """Of 60 sets; the percentiles of the resampled distances would lie above it, shifted by their own bias."""
    reference = statistics.moments_of(features(4000) + 0.5)
    sets = [features(200, seed=100 + i) for i in range(60)]
    distances = [statistics.frechet(*reference[:2], *statistics.moments_of(each)[:2]).distance for each in sets]
    intervals = [
        uncertainty.interval(distance, uncertainty.bootstrap_error(reference, each, resamples=30, seed=0))
        for distance, each in zip(distances, sets, strict=True)
    ]
    held = sum(low <= np.mean(distances) <= high for low, high in intervals)
    assert 51 <= held <= 60


def test_the_line_finds_the_distance_without_end():
    """Equal distributions: 0, where the distance of all samples is biased upwards."""
    width = 32
    reference = statistics.Moments(np.zeros(width), np.eye(width), 10**6)
    found = [uncertainty.extrapolate(reference, features(2000, width, seed), sizes=15, seed=0) for seed in range(8)]
    whole = [
        statistics.frechet(*reference[:2], *statistics.moments_of(features(2000, width, s))[:2]).distance for s in range(8)
    ]
    assert min(whole) > 0.1
    assert abs(np.mean([line.distance for line in found])) < 0.1 * np.mean(whole)


def test_intercept_and_error_are_those_of_a_regression():
    x, y = 1.0 / np.array([10, 20, 35, 50, 90]), np.array([3.0, 2.2, 1.7, 1.9, 1.4])
    line, expected = uncertainty._intercept(x, y), scipy.stats.linregress(x, y)
    assert line == pytest.approx((expected.intercept, expected.intercept_stderr), rel=1e-12)


def test_subsets_are_functions_of_the_seed_and_nothing_else():
    reference, some = statistics.moments_of(features(500)), features(120, seed=1)
    line = uncertainty.extrapolate(reference, some, sizes=4, seed=1)
    assert line == uncertainty.extrapolate(reference, some, sizes=4, seed=1)
    assert line != uncertainty.extrapolate(reference, some, sizes=4, seed=2)


def test_sizes_are_the_published_ones_and_wide_enough():
    assert uncertainty.subset_sizes(50_000, 2048, 15)[[0, 1, -1]].tolist() == [5000, 8214, 50_000]
    assert uncertainty.subset_sizes(10_000, 2048, 3).tolist() == [4096, 7048, 10_000]
    assert uncertainty.subset_sizes(500, 2048, 3).tolist() == [250, 375, 500]


@pytest.mark.parametrize(("rows", "sizes"), [(100, 2), (2, 5)])
def test_what_makes_no_line_is_refused(rows, sizes):
    reference = statistics.moments_of(features(50))
    with pytest.raises(ValueError, match=f"{sizes} sizes of {rows} rows"):
        uncertainty.extrapolate(reference, features(rows), sizes=sizes, seed=0)
