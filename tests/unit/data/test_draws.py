"""Draws: functions of (key, counter) alone, with the right laws; pinned so that a change of bits is noticed."""

from __future__ import annotations

import hashlib
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import kstest

from drifting_core.data import draws

int64 = st.integers(-(2**63), 2**63 - 1)


def python_bits(key: int, counter: int) -> int:
    """The same bits in plain integers: what int64 wrap-around and masked shifts must amount to."""
    mask = 2**64 - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    gamma = 0x9E3779B97F4A7C15
    z = mix((counter * gamma + key + gamma) & mask)
    return mix(((z ^ (key & mask)) + gamma) & mask)


@settings(deadline=None)
@given(int64, st.lists(int64, min_size=1, max_size=20))
def test_bits_are_those_of_unsigned_arithmetic(key: int, counters: list[int]) -> None:
    found = draws.bits(key, torch.tensor(counters, dtype=torch.int64))
    assert [value % 2**64 for value in found.tolist()] == [python_bits(key, c) for c in counters]


def test_key_is_pinned_and_keeps_parts_apart() -> None:
    names = [(), ("a",), ("a", "b"), ("ab",), (1,), ("1",), (1, 1), (11,), ("a", 1)]
    keys = [draws.key(42, *parts) for parts in names] + [draws.key(43)]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= k < 2**63 for k in keys)
    assert draws.key(42, "noise", 7) == int.from_bytes(
        hashlib.blake2b(b"i2:42s5:noisei1:7", digest_size=8).digest(), "little", signed=True
    )
    for wrong in (1.0, True, None):
        with pytest.raises(TypeError, match="int or str"):
            draws.key(42, wrong)  # type: ignore[arg-type]


def test_a_known_draw() -> None:
    """If this changes, no run can be resumed or repeated across the change. The same on every machine, in every build."""
    key = draws.key(0, "noise", 0)
    words = draws.bits(key, torch.arange(100_000))
    normals = draws.normal(key, (100_000,), dtype=torch.float64)
    digests = [hashlib.sha256(x.numpy().tobytes()).hexdigest()[:16] for x in (words, normals)]
    assert digests == ["6c7ec5dec25dce16", "aba2c0fb11f0a12a"]


def test_eight_known_normals() -> None:
    """Step 0 of seed 0: golden numbers that another implementation of the two cited papers can be held to."""
    found = draws.normal(draws.key(0, "noise", 0), (8,), dtype=torch.float64).tolist()
    assert found == [
        0.7881508740980516, -0.12531637814673413, 0.696344065350368, 2.274074570450717,
        0.18191446105779996, 0.421776115182763, -0.6112033035020074, -0.4608134372740414,
    ]  # fmt: skip
    words = [14475082041532792124, 8303553611639674828, 13962217150491321809, 18234961585743964071]
    # The cell of each word's upper 52 bits, through another library's quantile function.
    cells = [((word >> 12) + 0.5) / 2**52 for word in words]
    assert found[:4] == pytest.approx([float(ndtri(cell)) for cell in cells], rel=1e-13)


@settings(max_examples=20, deadline=None)
@given(int64, st.integers(0, 2**40), st.integers(1, 50), st.integers(0, 49))
def test_start_continues_a_stream(key: int, start: int, count: int, skip: int) -> None:
    whole = draws.normal(key, (count + skip,), start=start)
    assert torch.equal(whole[skip:], draws.normal(key, (count,), start=start + skip))


@settings(max_examples=20, deadline=None)
@given(int64, st.lists(st.integers(0, 10**9), min_size=1, max_size=8))
def test_rows_do_not_depend_on_company(key: int, rows: list[int]) -> None:
    together = torch.tensor(rows)
    normals = draws.normal_rows(key, together, (2, 3))
    integers, uniforms = draws.integers_rows(key, 64, together, 5), draws.uniform_rows(key, together, 4)
    assert normals.shape == (len(rows), 2, 3)
    assert normals.dtype == torch.float32
    for position, row in enumerate(rows):
        alone = torch.tensor([row])
        assert torch.equal(normals[position], draws.normal_rows(key, alone, (2, 3))[0])
        assert torch.equal(normals[position], draws.normal(key, (2, 3), start=6 * row))
        assert torch.equal(integers[position], draws.integers(key, 64, (5,), start=5 * row))
        assert torch.equal(uniforms[position], draws.uniform(key, (4,), start=4 * row))


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draws.normal(1, (1000,))
    monkeypatch.setattr(draws, "_BLOCK", 64)
    assert torch.equal(whole, draws.normal(1, (1000,)))


def test_normal_quantile_is_exact_in_all_three_regions() -> None:
    edges = [2.0**-53, 1 - 2.0**-53, 0.5, 0.075, 0.925, 1e-300, 1.3e-11, 1.4e-11]
    p = torch.cat(
        [
            torch.tensor(edges, dtype=torch.float64),
            torch.logspace(-300, -0.31, 4000, dtype=torch.float64),
            draws.uniform(3, (20_000,)),
        ]
    )
    found, expected = draws.normal_quantile(p), torch.from_numpy(ndtri(p.numpy()))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-16)
    inverse = statistics.NormalDist().inv_cdf
    assert found[:500].tolist() == pytest.approx([inverse(float(v)) for v in p[:500]], rel=1e-14, abs=1e-16)


@pytest.mark.parametrize("seed", range(3))
def test_laws(seed: int) -> None:
    key = draws.key(seed, "laws")
    uniform = draws.uniform(key, (50_000,))
    assert uniform.dtype == torch.float64
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert kstest(uniform.numpy(), "uniform").pvalue > 1e-4
    normal = draws.normal(draws.key(seed, "normal"), (50_000,), dtype=torch.float64)
    assert kstest(normal.numpy(), "norm").pvalue > 1e-4
    # neighbours in counter, key and both are uncorrelated (5 sigma)
    for other in (normal.roll(1), draws.normal(draws.key(seed, "normal") + 1, (50_000,), dtype=torch.float64)):
        assert abs((normal * other).mean()) < 5 / 50_000**0.5
    counts = torch.bincount(draws.integers(key, 7, (70_000,)), minlength=7)
    assert counts.shape == (7,)
    assert (counts - 10_000).abs().max() < 5 * 10_000**0.5


def test_uniform_never_reaches_its_ends() -> None:
    ends = draws._unit(torch.tensor([0, -1]))
    assert ends.tolist() == [2.0**-53, 1 - 2.0**-53]


@given(int64, st.integers(0, 200))
def test_permutation(key: int, n: int) -> None:
    found = draws.permutation(key, n)
    assert torch.equal(found.sort().values, torch.arange(n))
    assert torch.equal(found, draws.permutation(key, n))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gives_the_same_bits_and_floats() -> None:
    for device in ("cpu", "cuda"):
        assert draws.normal(5, (3,), device=device).device.type == device
    n = 3_000_000
    assert torch.equal(draws.bits(5, torch.arange(n)), draws.bits(5, torch.arange(n, device="cuda")).cpu())
    cpu, cuda = (draws.normal(5, (n,), device=d, dtype=torch.float64).cpu() for d in ("cpu", "cuda"))
    assert torch.equal(cpu, cuda)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="high"):
        draws.integers(1, 0, (3,))
    with pytest.raises(TypeError, match="int64"):
        draws.bits(1, torch.zeros(2))
    with pytest.raises(TypeError, match="rows"):
        draws.normal_rows(1, torch.zeros(2), (3,))
