"""The search is exact; copies of training images are found out and held-out ones are not."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from drifting_core.evaluation import neighbours, reference
from drifting_core.faults import Fault

CPU = torch.device("cpu")


def cache(path, features, labels=None, rows=None):
    with h5py.File(path, "w") as file:
        file["features"] = features.astype(np.float32)
        file["labels"] = np.zeros(len(features), np.int64) if labels is None else labels
        file["rows"] = np.arange(len(features)) if rows is None else rows
    return path


def drawn(rows, seed, width=16, shift=100.0):
    return (np.random.default_rng(seed).normal(size=(rows, width)) + shift).astype(np.float32)


def test_search_is_exact_and_block_sizes_do_not_enter(tmp_path, monkeypatch):
    training, queries = drawn(300, 0), drawn(20, 1)
    path = cache(tmp_path / "train.h5", training, labels=np.arange(300) % 7, rows=np.arange(300) + 1000)
    direct = np.linalg.norm(queries[:, None].astype(np.float64) - training[None].astype(np.float64), axis=2)
    order = np.argsort(direct, axis=1, kind="stable")[:, :5]
    found = neighbours.nearest(queries, path, 5, CPU)
    assert np.array_equal(found.rows, order + 1000)
    assert np.array_equal(found.labels, order % 7)
    np.testing.assert_allclose(found.distances, np.take_along_axis(direct, order, 1), rtol=1e-9)
    monkeypatch.setattr(neighbours, "cache_blocks", lambda p: reference.cache_blocks(p, rows=11))
    monkeypatch.setattr(neighbours, "_QUERIES", 3)
    assert np.array_equal(neighbours.nearest(queries, path, 5, CPU).rows, found.rows)


def test_copies_fall_below_the_baseline_and_held_out_rows_do_not(tmp_path):
    training = drawn(500, 0)
    path = cache(tmp_path / "train.h5", training)
    baseline = neighbours.nearest(drawn(400, 1), path, 1, CPU).distances[:, 0]
    copies = neighbours.nearest(training[:100], path, 1, CPU)
    assert np.array_equal(copies.rows[:, 0], np.arange(100))
    assert copies.distances.max() < 1e-4  # the digits that a mean of 100 would have cost
    assert (neighbours.percentiles(copies.distances[:, 0], baseline) == 0).all()
    fresh = neighbours.nearest(drawn(400, 2), path, 1, CPU).distances[:, 0]
    assert (neighbours.percentiles(fresh, baseline) < 1).mean() <= 0.03
    assert abs(np.median(neighbours.percentiles(fresh, baseline)) - 50) < 10


def test_equal_images_are_ordered_by_row(tmp_path):
    path = cache(tmp_path / "train.h5", np.ones((10, 4)))
    assert neighbours.nearest(np.ones((1, 4), np.float32), path, 3, CPU).rows.tolist() == [[0, 1, 2]]


def test_more_neighbours_than_images_are_refused(tmp_path):
    path = cache(tmp_path / "train.h5", np.ones((2, 4)))
    with pytest.raises(Fault, match=r"evaluation\.neighbours\.top is 3"):
        neighbours.nearest(np.ones((1, 4), np.float32), path, 3, CPU)


def test_percentile_counts_what_is_nearer():
    baseline = np.arange(100.0)
    assert neighbours.percentiles(np.array([-1.0, 0.0, 1.0, 50.0, 200.0]), baseline).tolist() == [0, 0, 1, 50, 100]


def test_balanced_rows_take_classes_in_turn():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    assert reference.balanced_rows(labels, 3).tolist() == [0, 3, 5]
    assert np.bincount(labels[reference.balanced_rows(labels, 7)]).tolist() == [3, 2, 2]
    assert reference.balanced_rows(labels, 100).tolist() == list(range(9))


def test_pairs_stand_above_each_other():
    dark, light = np.zeros((3, 2, 2), np.uint8), np.full((3, 2, 2), 255, np.uint8)
    picture = np.asarray(neighbours.pairs_picture([dark, dark], [light, light]))
    assert picture.shape == (4, 4, 3)
    assert picture[:2].max() == 0
    assert picture[2:].min() == 255
