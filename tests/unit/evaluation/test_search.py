"""The search is exact: it finds what comparing every pair in float64 finds, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drifting_core.evaluation import search
from drifting_core.evaluation.reference import Cache
from drifting_core.evaluation.search import nearest
from drifting_core.faults import Fault

CPU = torch.device("cpu")
CLASSES = 7


def drawn(rows, seed, width=16, shift=100.0):
    return (np.random.default_rng(seed).normal(size=(rows, width)) + shift).astype(np.float32)


def blocks(features, labels=None, rows=None, size=64):
    labels = np.zeros(len(features), np.int64) if labels is None else labels
    rows = np.arange(len(features)) if rows is None else rows
    for start in range(0, len(features), size):
        part = slice(start, start + size)
        yield Cache(features[part], labels[part], rows[part])


def look_up(queries, labels, top, *given, **how):
    labels = np.zeros(len(queries), np.int64) if labels is None else labels
    return nearest(queries, labels, blocks(*given, **how), top, CPU, "test")


def by_brute_force(queries, labels, features, of, top):
    """Indices (Q, top) and distances, of any class and of the query's own; equal distances by index."""
    views = features.reshape(len(features), -1, queries.shape[1]).astype(np.float64)
    squared = np.stack([np.square(views - query).sum(axis=2).min(axis=1) for query in queries.astype(np.float64)])
    for distances in (squared, np.where(labels[:, None] == of, squared, np.inf)):
        order = np.argsort(distances, axis=1, kind="stable")[:, :top]
        yield order, np.sqrt(np.take_along_axis(distances, order, 1))


def same(found, expected, rows, of):
    for nearest_found, (order, distances) in zip(found, expected, strict=True):
        assert np.array_equal(nearest_found.rows, rows[order])
        assert np.array_equal(nearest_found.labels, of[order])
        assert np.array_equal(nearest_found.distances, distances)


def grid(rows, seed, width=3):
    """Few whole numbers in few dimensions: most distances are shared by many rows."""
    return np.random.default_rng(seed).integers(0, 4, (rows, width)).astype(np.float32)


def with_duplicates(rows, seed):
    """Every row four times, far from the others' order, and one row that a query repeats."""
    return np.tile(drawn(rows // 4, seed), (4, 1))


def far_and_near(rows, seed):
    """Rows 1e-5 apart around a mean of 1,000: float32 products cannot tell them apart."""
    return (1000 + np.random.default_rng(seed).normal(size=(rows, 64)) * 1e-3).astype(np.float32)


@pytest.mark.parametrize("made", [drawn, grid, with_duplicates, far_and_near])
@pytest.mark.parametrize(("size", "queries_at_once", "differences"), [(1000, 1024, 2**22), (64, 7, 100), (3, 1024, 2**22)])
def test_it_finds_what_brute_force_finds_in_any_blocks(made, size, queries_at_once, differences, monkeypatch):
    monkeypatch.setattr(search, "_QUERIES", queries_at_once)
    monkeypatch.setattr(search, "_DIFFERENCES", differences)
    features = made(300, 0)
    queries = np.concatenate([made(20, 1), features[[5, 77]]])
    labels, of = np.arange(22) % CLASSES, np.random.default_rng(2).integers(0, CLASSES, 300)
    rows = np.arange(300) + 1000
    found = look_up(queries, labels, 5, features, of, rows, size=size)
    same(found, by_brute_force(queries, labels, features, of, 5), rows, of)


def test_an_image_is_as_near_as_its_nearest_view():
    views = np.stack([drawn(100, 0), drawn(100, 1), drawn(100, 2)], axis=1)
    of = np.arange(100) % CLASSES
    queries, labels = views[:CLASSES, 2] + np.float32(0.01), of[:CLASSES]
    found = look_up(queries, labels, 4, views, of)
    same(found, by_brute_force(queries, labels, views, of, 4), np.arange(100), of)
    assert np.array_equal(found.any_class.rows[:, 0], np.arange(CLASSES))
    assert all(len(set(rows)) == 4 for rows in found.any_class.rows.tolist()), "an image is listed once"


def test_other_rows_of_the_training_set_only_rename_what_is_found():
    features, queries = drawn(300, 0), drawn(20, 1)
    labels, of = np.arange(20) % CLASSES, np.arange(300) % CLASSES
    order = np.random.default_rng(3).permutation(300)
    plain = look_up(queries, labels, 5, features, of)
    permuted = look_up(queries, labels, 5, features[order], of[order])
    for before, after in zip(plain, permuted, strict=True):
        assert np.array_equal(order[after.rows], before.rows)
        assert np.array_equal(after.distances, before.distances)
        assert np.array_equal(after.labels, before.labels)


def test_float32_decides_nothing_but_leaves_most_pairs_out(monkeypatch):
    """Errors of the products as large as the bound allows change nothing; without them few pairs are computed twice."""
    features, queries = drawn(2000, 0, width=64, shift=0.0), drawn(30, 1, width=64, shift=0.0)
    labels, of = np.zeros(30, np.int64), np.zeros(2000, np.int64)
    expected = list(by_brute_force(queries, labels, features, of, 5))
    exact, seen = search._Finder._exact, []
    monkeypatch.setattr(
        search._Finder, "_exact", lambda self, query, row: (seen.append(len(query)), exact(self, query, row))[1]
    )
    same(look_up(queries, labels, 5, features, of, size=200), expected, np.arange(2000), of)
    assert sum(seen) < 2 * 30 * 2000 / 20

    products, eps = torch.addmm, torch.finfo(torch.float32).eps

    def imprecise(squares, queries, rows, **how):
        found = products(squares, queries, rows, **how)
        largest = (queries.norm(dim=1)[:, None] + rows.norm(dim=0)).square() * (queries.shape[1] + 8) / 2 * eps
        signs = torch.randint(0, 2, found.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return found + signs * largest

    monkeypatch.setattr(torch, "addmm", imprecise)
    same(look_up(queries, labels, 5, features, of, size=200), expected, np.arange(2000), of)


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(Fault, match=r"test: 2 training images, evaluation\.neighbours\.top is 3; lower it"):
        look_up(np.ones((1, 4), np.float32), None, 3, np.ones((2, 4), np.float32))
    with pytest.raises(Fault, match=r"test: 2 training images of one class, evaluation\.neighbours\.top is 3"):
        look_up(grid(2, 0), np.array([0, 1]), 3, grid(10, 0), np.array([0] * 8 + [1] * 2))


def test_numbers_that_are_none_are_refused():
    broken = drawn(10, 0)
    broken[3, 3] = np.nan
    for queries, features in ((broken, drawn(10, 1)), (drawn(10, 1), broken)):
        with pytest.raises(Fault, match="test: holds NaN"):
            look_up(queries, None, 1, features)
