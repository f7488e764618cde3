"""The law of alpha (protocol section 1.7: quantiles and means) and the weight of unconditional samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drifting_core.drift.guidance import sample_alpha, unconditional_weight

GRID = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000


@pytest.mark.parametrize(
    ("power", "quantiles", "mean"),
    [(3, (1.143, 1.372, 1.835, 2.530), 1.600), (5, (1.074, 1.188, 1.410, 1.763), 1.318)],
)
def test_quantiles_and_mean(power: float, quantiles: tuple[float, ...], mean: float) -> None:
    u = torch.tensor([0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    found = sample_alpha(u, low=1, high=4, power=power, point_mass=0)
    assert found.tolist() == pytest.approx(quantiles, abs=1e-3)
    assert sample_alpha(GRID, low=1, high=4, power=power, point_mass=0).mean().item() == pytest.approx(mean, abs=1e-3)


def test_point_mass() -> None:
    alpha = sample_alpha(GRID, low=1, high=4, power=3, point_mass=0.5)
    assert (alpha == 1).double().mean().item() == pytest.approx(0.5, abs=1e-4)
    assert alpha.mean().item() == pytest.approx(1.300, abs=1e-3)
    rest = sample_alpha(2 * GRID[50_000:] - 1, low=1, high=4, power=3, point_mass=0)
    torch.testing.assert_close(alpha[50_000:], rest)
    assert (sample_alpha(GRID, low=1, high=4, power=3, point_mass=1) == 1).all()


@given(st.floats(0.5, 3), st.floats(1, 5), st.floats(0, 6), st.floats(0, 1))
def test_monotone_and_inside_the_range(low: float, ratio: float, power: float, point_mass: float) -> None:
    alpha = sample_alpha(GRID[::997], low=low, high=low * ratio, power=power, point_mass=point_mass)
    assert (alpha.diff() >= -1e-9).all()
    assert alpha.min() >= low * (1 - 1e-9)
    assert alpha.max() <= low * ratio * (1 + 1e-9)


def test_power_one_is_the_limit() -> None:
    near, at = (sample_alpha(GRID[::997], low=1, high=4, power=p, point_mass=0) for p in (1 + 1e-7, 1))
    torch.testing.assert_close(near, at, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [{"low": 0.0}, {"high": 0.5}, {"point_mass": 1.5}])
def test_impossible_laws_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sample_alpha"):
        sample_alpha(GRID, **({"low": 1.0, "high": 4.0, "power": 3.0, "point_mass": 0.0} | bad))


def test_unconditional_weight() -> None:
    alpha = torch.tensor([1.0, 1.5, 2.0, 4.0], dtype=torch.float64)
    assert unconditional_weight(alpha, 64, 16).tolist() == [0.0, 1.96875, 3.9375, 11.8125]
    assert unconditional_weight(alpha, 64, 32).tolist() == pytest.approx([0.0, 0.984375, 1.96875, 5.90625])
    with pytest.raises(ValueError, match="at least"):
        unconditional_weight(alpha, 64, 0)


@given(st.floats(1, 10), st.integers(2, 100), st.integers(1, 100))
def test_weight_inverts_to_alpha(alpha: float, n_generated: int, n_unconditional: int) -> None:
    """alpha = ((N_neg - 1) + N_unc w) / (N_neg - 1), appendix A.7."""
    w = unconditional_weight(torch.tensor(alpha, dtype=torch.float64), n_generated, n_unconditional).item()
    assert ((n_generated - 1) + n_unconditional * w) / (n_generated - 1) == pytest.approx(alpha)
