"""The sample bank against the obvious implementation: one deque per class."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_core.drift.bank import SampleBank
from drifting_core.faults import Fault


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), min_size=1, max_size=8),
    st.integers(1, 6),
    st.integers(1, 9),
)
def test_rings_hold_the_latest(batches: list[list[int]], per_class: int, unconditional: int) -> None:
    bank = SampleBank(4, per_class, unconditional)
    classes = [deque(maxlen=per_class) for _ in range(4)]  # type: ignore[var-annotated]
    everything: deque[int] = deque(maxlen=unconditional)
    code = 0
    for labels in batches:
        codes = list(range(code, code + len(labels)))
        code += len(labels)
        bank.push(torch.tensor(codes), torch.tensor(labels))
        for c, label in zip(codes, labels, strict=True):
            classes[label].append(c)
            everything.append(c)
    for label, held in enumerate(classes):
        n = min(int(bank.counts[label]), per_class)
        assert sorted(bank.rings[label, :n].tolist()) == sorted(held)
    n = min(int(bank.count_all), unconditional)
    assert sorted(bank.ring_all[:n].tolist()) == sorted(everything)


def test_positives_repeat_only_where_the_ring_is_short() -> None:
    bank = SampleBank(2, 8, 8)
    bank.push(torch.arange(10), torch.tensor([0] * 8 + [1] * 2))
    uniforms = torch.rand(2, 8, dtype=torch.float64)
    drawn = bank.positives(torch.tensor([0, 1]), 6, uniforms)
    assert len(set(drawn[0].tolist())) == 6
    assert set(drawn[1].tolist()) <= {8, 9}


def test_an_empty_class_is_named() -> None:
    bank = SampleBank(3, 4, 4)
    bank.push(torch.tensor([1]), torch.tensor([0]))
    with pytest.raises(Fault, match="class 2"):
        bank.positives(torch.tensor([2]), 1, torch.rand(1, 4))


def test_state_round_trip() -> None:
    bank, other = SampleBank(3, 4, 5), SampleBank(3, 4, 5)
    bank.push(torch.arange(17), torch.arange(17) % 3)
    other.load({name: tensor.clone() for name, tensor in bank.tensors().items()})
    for name, tensor in bank.tensors().items():
        assert torch.equal(tensor, other.tensors()[name])
