"""The order of samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_core.data.stream import SampleStream


@given(st.integers(1, 40), st.integers(0, 200), st.lists(st.integers(0, 30), max_size=6))
@settings(max_examples=50, deadline=None)
def test_any_division_of_the_positions_gives_the_same_samples(length: int, start: int, counts: list[int]) -> None:
    """Batches, ranks and resumed jobs: whoever takes a position gets the same sample there."""
    whole = SampleStream(7, length, 2).take(start, sum(counts))
    at, parts = start, []
    for count in counts:
        parts.append(SampleStream(7, length, 2).take(at, count))
        at += count
    for place in (0, 1):
        joined = torch.cat([part[place] for part in parts]) if parts else torch.empty(0, dtype=torch.int64)
        assert torch.equal(joined, whole[place])


@given(st.integers(1, 40), st.integers(0, 500), st.integers(0, 64))
@settings(max_examples=100, deadline=None)
def test_ranks_take_together_what_one_takes_from_any_position(length: int, position: int, count: int) -> None:
    """The order is that of 1, 2 and 8 ranks, and of a job that resumes at any position with any number of them."""
    whole = SampleStream(3, length, 2).take(0, position + count)
    for world in (1, 2, 8):
        parts = [SampleStream(3, length, 2).take_part(position, count, rank, world) for rank in range(world)]
        for place in (0, 1):
            assert torch.equal(torch.cat([part[place] for part in parts]), whole[place][position:])


def test_a_rank_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2"):
        SampleStream(0, 10, 1).take_part(0, 4, 2, 2)


def test_each_epoch_visits_every_row_once_in_another_order() -> None:
    stream = SampleStream(0, 100, 2)
    first, second = stream.take(0, 100)[0], stream.take(100, 100)[0]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(100))
    assert not torch.equal(first, second)


def test_going_back_gives_the_same_samples() -> None:
    stream = SampleStream(0, 10, 2)
    before = stream.take(3, 5)[0]
    stream.take(50, 10)
    assert torch.equal(stream.take(3, 5)[0], before)


def test_both_views_come_up_and_one_view_is_always_the_image() -> None:
    views = SampleStream(0, 1000, 2).take(0, 1000)[1]
    assert 400 < int(views.sum()) < 600
    assert SampleStream(0, 10, 1).take(0, 50)[1].sum() == 0


def test_seeds_give_other_orders() -> None:
    assert not torch.equal(SampleStream(0, 50, 2).take(0, 50)[0], SampleStream(1, 50, 2).take(0, 50)[0])


def test_an_empty_store_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        SampleStream(0, 0, 2)
