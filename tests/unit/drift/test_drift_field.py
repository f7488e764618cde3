"""The paper's Algorithm 2: golden values and exact properties (protocol section 6.2)."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drifting_core.drift import field as module
from drifting_core.drift.field import drift_field, mean_shift


def vectors(count: int, seed: int, dim: int = 3) -> Tensor:
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def protocol_case() -> tuple[Tensor, Tensor, Tensor]:
    i, d = torch.arange(4.0, dtype=torch.float64)[:, None], torch.arange(5.0, dtype=torch.float64)
    x = torch.sin(1 + 3 * i[:3] + 1.7 * d)
    return x, torch.cos(0.3 + 1.3 * i + 0.9 * d) + 0.5, 0.7 * torch.sin(2 + 5 * i[:2] + 2.3 * d) - 0.2


def test_protocol_values() -> None:
    x, positives, negatives = protocol_case()
    apart = drift_field(x, positives, negatives, 0.5)
    assert apart[0].tolist() == pytest.approx([0.08499082, 0.08696721, 0.12550983, -0.07986622, 0.37144509], abs=1e-8)
    assert apart.abs().sum().item() == pytest.approx(3.32918767, abs=1e-8)
    own = drift_field(x, positives, x, 0.5, mask_self=True)
    assert own[0].tolist() == pytest.approx([-0.00466597, -0.30161393, 0.31265099, 0.28796809, -0.08768685], abs=1e-8)
    assert own.abs().sum().item() == pytest.approx(1.87412556, abs=1e-8)


def test_one_of_each() -> None:
    x = torch.zeros(1, 2, dtype=torch.float64)
    positive, negative = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 2.0]]).double()
    found = drift_field(x, positive, negative, 0.7)[0]
    assert found.tolist() == pytest.approx([0.3949028, -0.7898056], abs=1e-7)
    a = 1 / (1 + math.exp(-(2.0 - 1.0) / 0.7))
    torch.testing.assert_close(found, math.sqrt(a * (1 - a)) * (positive - negative)[0])


seeds, counts, temperatures = st.integers(0, 2**31), st.integers(1, 6), st.floats(0.05, 5.0)


@settings(max_examples=25, deadline=None)
@given(seeds, counts, counts, counts, temperatures)
def test_antisymmetry(seed: int, n: int, p: int, q: int, temperature: float) -> None:
    x, y_p, y_q = vectors(n, seed), vectors(p, seed + 1), vectors(q, seed + 2)
    there, back = drift_field(x, y_p, y_q, temperature), drift_field(x, y_q, y_p, temperature)
    torch.testing.assert_close(there, -back, rtol=1e-12, atol=1e-13)
    assert drift_field(x, y_p, y_p, temperature).abs().max() < 1e-14  # rounding of the two halves of a softmax


@settings(max_examples=25, deadline=None)
@given(seeds, counts, temperatures, st.floats(0.1, 10.0))
def test_shift_rotation_and_scale(seed: int, n: int, temperature: float, factor: float) -> None:
    sets = [vectors(n, seed), vectors(5, seed + 1), vectors(4, seed + 2)]
    field = drift_field(sets[0], sets[1], sets[2], temperature)
    shift, rotation = vectors(1, seed + 3), torch.linalg.qr(vectors(3, seed + 4))[0]
    moved = [y @ rotation + shift for y in sets]
    torch.testing.assert_close(
        drift_field(moved[0], moved[1], moved[2], temperature), field @ rotation, rtol=1e-8, atol=1e-10
    )
    scaled = [factor * y for y in sets]
    torch.testing.assert_close(
        drift_field(scaled[0], scaled[1], scaled[2], factor * temperature), factor * field, rtol=1e-8, atol=1e-10
    )


def test_self_mask_removes_the_pair_itself() -> None:
    x, positives, _ = protocol_case()
    masked, plain = (drift_field(x, positives, x, 0.2, mask_self=m) for m in (True, False))
    assert (masked - plain).abs().max() > 1e-3
    # One generated sample that is its own negative: nothing repels, so nothing attracts either (Algorithm 2).
    assert drift_field(x[:1], positives, x[:1], 0.5, mask_self=True).abs().max() == 0


def algorithm_2(x: Tensor, positives: Tensor, negatives: Tensor, temperature: float, mask_self: bool) -> Tensor:
    """The paper's lines, written out."""
    distance_p, distance_n = ((x[:, None] - y).square().sum(dim=2).sqrt() for y in (positives, negatives))
    if mask_self:
        distance_n = distance_n + 1e6 * torch.eye(len(x), dtype=x.dtype)
    logits = -torch.cat([distance_p, distance_n], dim=1) / temperature
    affinity = torch.sqrt(logits.softmax(dim=1) * logits.softmax(dim=0))
    a_p, a_n = affinity.split([len(positives), len(negatives)], dim=1)
    weight_p, weight_n = a_p * a_n.sum(dim=1, keepdim=True), a_n * a_p.sum(dim=1, keepdim=True)
    return weight_p @ positives - weight_n @ negatives


@settings(max_examples=60, deadline=None)
@given(
    seeds,
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(1, 9),
    temperatures,
    st.booleans(),
    st.sampled_from([1, 64, 300, 1 << 19]),
)
def test_is_algorithm_2(seed: int, n: int, p: int, dim: int, temperature: float, mask_self: bool, block: int) -> None:
    """Whatever the dimension (both ways to distances) and the block (one row, a ragged last one, all rows)."""
    x, positives = vectors(n, seed, dim), vectors(p, seed + 1, dim)
    negatives = x if mask_self else vectors(p + 2, seed + 2, dim)
    with patch.object(module, "_BLOCK", block):
        found = drift_field(x, positives, negatives, temperature, mask_self=mask_self)
        single = drift_field(x.float(), positives.float(), negatives.float(), temperature, mask_self=mask_self)
    expected = algorithm_2(x, positives, negatives, temperature, mask_self)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dim", [2, 768])
def test_far_samples_in_single_precision(dim: int) -> None:
    """Distances of thousands of temperatures, where exp(-distance / temperature) itself is 0 in float32 and float64."""
    x, positives, negatives = (vectors(count, count, dim) for count in (20, 30, 25))
    x[:5] += 300.0
    positives[:9] += 300.0
    expected = algorithm_2(x, positives, negatives, 0.05, False)
    found = drift_field(x.float(), positives.float(), negatives.float(), 0.05)
    assert found.isfinite().all()
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=1e-3)


def test_no_gradient_flows_through_the_field() -> None:
    x, positives, negatives = protocol_case()
    assert not drift_field(x.requires_grad_(), positives, negatives, 0.5).requires_grad


@settings(max_examples=25, deadline=None)
@given(seeds, counts, temperatures)
def test_mean_shift_is_equation_8(seed: int, n: int, temperature: float) -> None:
    x, y = vectors(n, seed), vectors(7, seed + 1)
    kernel = (-(x[:, None] - y).square().sum(dim=2).sqrt() / temperature).exp()
    expected = (kernel[:, :, None] * (y - x[:, None])).sum(dim=1) / kernel.sum(dim=1, keepdim=True)
    torch.testing.assert_close(mean_shift(x, y, temperature), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mean_shift(x, y[:1], temperature), y[:1] - x)


def test_wrong_shapes_are_refused() -> None:
    x, positives, negatives = protocol_case()
    with pytest.raises(ValueError, match="mask_self"):
        drift_field(x, positives, negatives, 0.5, mask_self=True)
    with pytest.raises(ValueError, match="one D"):
        drift_field(x, positives[:, :2], negatives, 0.5)
