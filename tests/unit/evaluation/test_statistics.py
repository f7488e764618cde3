"""The numbers of an evaluation: golden values first, then what must hold for any features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from drifting_core.evaluation import statistics
from drifting_core.faults import Fault

GOLDEN = Path(__file__).parents[2] / "data/golden/metrics.npz"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def distance(a, b):
    first, second = statistics.moments_of(a), statistics.moments_of(b)
    return statistics.frechet(first.mean, first.covariance, second.mean, second.covariance)


def features(rows, width=8, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(rows, width))


def test_golden_metrics(golden):
    found = distance(golden["features_real"], golden["features_generated"]).distance
    assert found == pytest.approx(float(golden["frechet"]), rel=1e-6)
    assert statistics.inception_score(golden["logits"]) == pytest.approx(tuple(golden["inception_score"]), rel=1e-6)
    pair = statistics.precision_recall(golden["features_real"], golden["features_generated"], 3)
    assert pair == pytest.approx((float(golden["precision"]), float(golden["recall"])), rel=1e-6)


def test_the_distance_alone_is_a_float(golden):
    first, second = (statistics.moments_of(golden[name]) for name in ("features_real", "features_generated"))
    found = statistics.frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
    assert isinstance(found, float)
    assert found == pytest.approx(float(golden["frechet"]), rel=1e-6)


def literal_kernel_distance(a, b):
    """Every pair, one by one."""
    kernel = [[(x @ y / a.shape[1] + 1) ** 3 for y in (*a, *b)] for x in (*a, *b)]
    within_a = [kernel[i][j] for i in range(len(a)) for j in range(len(a)) if i != j]
    within_b = [kernel[i][j] for i in range(len(a), len(kernel)) for j in range(len(a), len(kernel)) if i != j]
    between = [kernel[i][j] for i in range(len(a)) for j in range(len(a), len(kernel))]
    return np.mean(within_a) + np.mean(within_b) - 2 * np.mean(between)


def test_kernel_distance_is_that_of_all_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 4)), rng.normal(size=(7, 4)) + 0.5
    monkeypatch.setattr(statistics, "_ROWS", 4)
    assert statistics.kernel_distance(a, b).mean == pytest.approx(literal_kernel_distance(a, b), rel=1e-12)
    assert statistics.kernel_distance(a, b).std == 0.0
    assert statistics.kernel_distance(b, a).mean == pytest.approx(statistics.kernel_distance(a, b).mean, rel=1e-12)


def test_kernel_distance_is_unbiased_and_repeatable_over_subsets():
    rng = np.random.default_rng(1)
    same = statistics.kernel_distance(*rng.normal(size=(2, 600, 8)), subsets=50, subset_size=100)
    apart = statistics.kernel_distance(rng.normal(size=(600, 8)), rng.normal(size=(600, 8)) + 1, subsets=50, subset_size=100)
    assert abs(same.mean) < 3 * same.std / np.sqrt(6)  # fifty subsets of 600 rows are worth about six independent ones
    assert apart.mean > 5 * apart.std > 5 * same.std
    a, b = rng.normal(size=(2, 50, 3))
    assert statistics.kernel_distance(a, b, subsets=3, subset_size=20) == statistics.kernel_distance(
        a, b, subsets=3, subset_size=20
    )
    whole = statistics.kernel_distance(a, b, subsets=2, subset_size=50)
    assert whole.mean == pytest.approx(statistics.kernel_distance(a, b).mean, rel=1e-9)
    for wrong in ({"subset_size": 51}, {"subset_size": 1}, {"subsets": 0}):
        with pytest.raises(ValueError, match="kernel_distance"):
            statistics.kernel_distance(a, b, **wrong)


@pytest.mark.parametrize("batch", [1, 7, 50, 100])
def test_moments_do_not_depend_on_batches(batch):
    rows = features(100) + 1e4
    found = statistics.mean_covariance(rows[i : i + batch] for i in range(0, 100, batch))
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-9)
    assert found.rows == 100


@pytest.mark.parametrize(("width", "rows"), [(8, 300), (256, 1000)])
def test_distance_agrees_with_scipys_square_root(width, rows):
    a, b = features(rows, width, seed=1), features(rows - 100, width, seed=2, scale=2.0) + 0.5
    first, second = statistics.moments_of(a), statistics.moments_of(b)
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
    expected = ((first.mean - second.mean) ** 2).sum() + np.trace(first.covariance + second.covariance - 2 * root)
    assert distance(a, b).distance == pytest.approx(expected, rel=1e-10)


def test_distance_is_symmetric_zero_on_itself_and_shift_squared():
    a, b = features(100, seed=1), features(90, seed=2)
    assert distance(a, b).distance == pytest.approx(distance(b, a).distance, rel=1e-10)
    assert distance(a, a).distance == pytest.approx(0, abs=1e-10)
    assert distance(a, a + 2.0).distance == pytest.approx(4.0 * a.shape[1], rel=1e-10)


def test_rank_deficient_and_constant_features_are_measured():
    few = features(5, width=16)
    assert distance(few, few).distance == pytest.approx(0, abs=1e-6)
    constant = np.ones((20, 16))
    moments = statistics.moments_of(few)
    expected = ((moments.mean - 1) ** 2).sum() + np.trace(moments.covariance)
    assert distance(few, constant).distance == pytest.approx(expected)
    assert distance(constant, few).distance == pytest.approx(expected)


@pytest.mark.parametrize("rows", [20, 63, 200, 257, 400])
def test_the_distance_is_exact_whether_or_not_rows_are_fewer_than_features(rows):
    """Of singular values, which need no root of a covariance: most eigenvalues of these are rounding, and no distance."""
    a, b = (np.exp(features(rows, width=256)), 0.8 * np.exp(features(rows, width=256)[::-1] + 0.1))
    centred = [part - part.mean(axis=0) for part in (a, b)]
    shift = a.mean(axis=0) - b.mean(axis=0)
    traces = sum((part**2).sum() for part in centred) / (rows - 1)
    exact = shift @ shift + traces - 2 * np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / (rows - 1)
    assert distance(a, b).distance == pytest.approx(exact, rel=1e-12)


def test_what_is_no_covariance_is_refused():
    mean, identity = np.zeros(3), np.eye(3)
    indefinite = np.diag([1.0, 1.0, -0.01])
    with pytest.raises(Fault, match="eigenvalue -0.01"):
        statistics.frechet_distance(mean, indefinite, mean, identity)
    with pytest.raises(Fault, match="eigenvalue"):
        statistics.frechet_distance(mean, identity, mean, indefinite)
    with pytest.raises(Fault, match="not finite"):
        statistics.frechet_distance(mean, identity, mean, np.full((3, 3), np.nan))


def test_score_of_sure_and_of_unsure_predictions():
    sure = 100.0 * np.eye(5)[np.arange(1000) % 5]
    assert statistics.inception_score(sure)[0] == pytest.approx(5, rel=3e-2)  # splits are not quite balanced
    assert statistics.inception_score(np.zeros((100, 5))) == pytest.approx((1.0, 0.0))
    with pytest.raises(ValueError, match="10 splits"):
        statistics.inception_score(np.zeros((9, 5)))


def test_precision_and_recall_of_same_and_of_distant_sets(monkeypatch):
    real = features(60)
    assert statistics.precision_recall(real, real.copy(), 3) == (1.0, 1.0)
    assert statistics.precision_recall(real, real + 1e4, 3) == (0.0, 0.0)
    narrow = statistics.precision_recall(real, 0.01 * features(60, seed=1), 3)
    assert narrow[0] > 0.9
    assert narrow[1] < 0.5
    monkeypatch.setattr(statistics, "_ROWS", 7)
    assert statistics.precision_recall(real, 0.01 * features(60, seed=1), 3) == narrow


def test_diversity_is_relative_to_real_and_ignores_differences_between_classes():
    real, labels = features(40), np.arange(40) % 4
    assert statistics.within_class_diversity(real, labels, real, labels).ratio == pytest.approx(1)
    assert statistics.within_class_diversity(0.5 * real, labels, real, labels).ratio == pytest.approx(0.5)
    class_means = np.repeat(features(4, seed=1), 10, axis=0)
    assert statistics.within_class_diversity(class_means, np.repeat(np.arange(4), 10), real, labels).ratio == 0
    with pytest.raises(ValueError, match="two rows"):
        statistics.within_class_diversity(real[:4], labels[:4], real, labels)
