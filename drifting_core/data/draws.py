"""Every random draw as a function of (seed, purpose, step, index).

Nothing here has state. A draw is named by a 64-bit `key` (seed and purpose) and a counter (which number of that
stream); the bits are a keyed SplitMix64 finaliser of the counter. Whoever needs sample i's noise computes it, on any
device and in any batch, and gets the same number: resume is arithmetic and the world size does not enter.

Floats are made from the bits with + - * / sqrt and frexp only, one operation per kernel, all of which IEEE 754 rounds
exactly; library logarithms and cosines differ between devices and versions and are not used. For the same reason
these functions must not be put under `torch.compile`, which may contract a multiplication and an addition, and no
float is divided by a Python number, which CUDA turns into a product with the reciprocal.

Sources: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators" (2014) for the mixer;
M. Wichura, "Algorithm AS 241: the percentage points of the normal distribution" (1988), PPND16, for the normals.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Numbers made at once; bounds the float64 scratch memory of a large draw to about 100 MB.
_BLOCK = 1 << 20

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as the unsigned `value`."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def key(seed: int, *parts: int | str) -> int:
    """A 64-bit key (as a signed integer) from the seed and the parts that name a stream, e.g. ("noise", step).

    Parts are tagged with their type and delimited before hashing (blake2b), so ("a", "b"), ("ab",) and 1 and "1" all
    give different keys. Raises TypeError for a part that is neither int nor str.
    """
    hasher = hashlib.blake2b(digest_size=8)
    for part in (seed, *parts):
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise TypeError(f"draws.key: parts are int or str, found {type(part).__name__} ({part!r})")
        text = str(part).encode()
        hasher.update(b"%s%d:" % (b"i" if isinstance(part, int) else b"s", len(text)) + text)
    return int.from_bytes(hasher.digest(), "little", signed=True)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place. int64 multiplication wraps; `>>` is arithmetic, the mask makes it logical."""
    z.bitwise_xor_((z >> 30).bitwise_and_((1 << 34) - 1)).mul_(_signed(_MIX_1))
    z.bitwise_xor_((z >> 27).bitwise_and_((1 << 37) - 1)).mul_(_signed(_MIX_2))
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))


def bits(key: int, counters: Tensor) -> Tensor:
    """64 random bits per counter: int64 of any shape in, int64 of the same shape and device out.

    The key enters twice. With one round, two streams whose keys differ by a small multiple of the increment would be
    shifted copies of each other, which is likely somewhere among the 10^6 streams of 10^7 numbers of a long run.
    """
    if counters.dtype != torch.int64:
        raise TypeError(f"draws.bits: counters are int64, found {counters.dtype}")
    z = _mix((counters * _signed(_GAMMA)).add_(_signed(key + _GAMMA)))
    return _mix(z.bitwise_xor_(_signed(key)).add_(_signed(_GAMMA)))


def _unit(words: Tensor) -> Tensor:
    """Bits to the centres of 2^52 equal cells of (0, 1): odd multiples of 2^-53, all exact, never 0 or 1."""
    return (words >> 12).bitwise_and_((1 << 52) - 1).to(torch.float64).add_(0.5).mul_(2.0**-52)


def _counters(shape: Sequence[int], start: int, device: torch.device | str | None) -> Tensor:
    return torch.arange(start, start + math.prod(shape), dtype=torch.int64, device=device)


def _row_counters(rows: Tensor, per_row: int) -> Tensor:
    """(R,) global sample indices to (R, per_row) counters: sample i owns [i * per_row, (i + 1) * per_row)."""
    if rows.dtype != torch.int64 or rows.dim() != 1:
        raise TypeError(f"draws: rows are a vector of int64, found {rows.dtype} of shape {tuple(rows.shape)}")
    return rows[:, None] * per_row + torch.arange(per_row, dtype=torch.int64, device=rows.device)


def uniform(key: int, shape: Sequence[int], *, start: int = 0, device: torch.device | str | None = None) -> Tensor:
    """float64 in (0, 1), of `shape`, from counters start .. start + numel: odd multiples of 2^-53."""
    return _unit(bits(key, _counters(shape, start, device))).reshape(tuple(shape))


def uniform_rows(key: int, rows: Tensor, count: int) -> Tensor:
    """float64 (R, count) in (0, 1): `count` uniforms of each global sample index in `rows` (R,)."""
    return _unit(bits(key, _row_counters(rows, count)))


def normal(
    key: int,
    shape: Sequence[int],
    *,
    start: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normals of `shape` from counters start .. start + numel, made in float64 and cast to `dtype`."""
    return _normal_of(key, _counters(shape, start, device), dtype).reshape(tuple(shape))


def normal_rows(key: int, rows: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normals (R, *shape): each global sample index in `rows` (R,) owns its own numel(shape) counters."""
    counters = _row_counters(rows, math.prod(shape))
    return _normal_of(key, counters.reshape(-1), dtype).reshape(len(rows), *shape)


def _normal_of(key: int, counters: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(counters.shape, dtype=dtype, device=counters.device)
    for block, words in zip(out.split(_BLOCK), counters.split(_BLOCK), strict=True):
        block.copy_(normal_quantile(_unit(bits(key, words))))
    return out


def integers(
    key: int, high: int, shape: Sequence[int], *, start: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """int64 in [0, high) of `shape`. 63 bits modulo `high`: no value is favoured by more than high / 2^63."""
    return _below(bits(key, _counters(shape, start, device)), high).reshape(tuple(shape))


def integers_rows(key: int, high: int, rows: Tensor, count: int) -> Tensor:
    """int64 (R, count) in [0, high): `count` integers of each global sample index in `rows` (R,)."""
    return _below(bits(key, _row_counters(rows, count)), high)


def _below(words: Tensor, high: int) -> Tensor:
    if high < 1:
        raise ValueError(f"draws.integers: high must be at least 1, found {high}")
    return (words >> 1).bitwise_and_((1 << 63) - 1).remainder_(high)


def permutation(key: int, n: int) -> Tensor:
    """A permutation of range(n), int64 (n,) on the CPU: the stable order of n random words."""
    return torch.argsort(bits(key, _counters((n,), 0, None)), stable=True)


# --- inverse normal distribution function -----------------------------------------------------------------------
# Rational approximations of AS 241, highest power first; the denominators' constant term is 1.

_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)  # fmt: skip
_TAIL = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
     3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
)  # fmt: skip
_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip

_LN2_HIGH = 0.693147180369123816490  # 32 significant bits: exponent * _LN2_HIGH is exact
_LN2_LOW = 1.90821492927058770002e-10
_LOG_TERMS = 12  # (3 - 2 sqrt 2)^(2 * 12) / 25 < 2^-53


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total.mul_(x).add_(coefficient)
    return total


def _ratio(x: Tensor, numerator_denominator: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    numerator, denominator = numerator_denominator
    return _horner(x, numerator).div_(_horner(x, denominator))


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of positive float64: x = m 2^e with m near 1, log m = 2 atanh((m - 1) / (m + 1))."""
    mantissa, exponent = torch.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa = torch.where(low, mantissa * 2.0, mantissa)
    power = exponent.to(torch.float64) - low.to(torch.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = _horner(s * s, [2.0 / (2 * k + 1) for k in range(_LOG_TERMS, -1, -1)])
    return power * _LN2_HIGH + (s * series + power * _LN2_LOW)


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded, as CUDA's and numpy's are. torch's on a CPU is not in every build (2.11, 2.13)."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def normal_quantile(p: Tensor) -> Tensor:
    """Inverse of the standard normal distribution function, float64 in (0, 1) to float64; AS 241 (PPND16).

    About 1e-15 relative. The tails (15% of the numbers) are computed on the selected elements only.
    """
    p = p.reshape(-1)
    q = p - 0.5
    out = q * _ratio(0.180625 - q * q, _CENTRE)
    tail = (q.abs() > 0.425).nonzero().squeeze(1)
    side = q[tail]
    r = _sqrt(-_log(torch.minimum(p[tail], 1.0 - p[tail])))
    value = _ratio(r - 1.6, _TAIL)
    far = (r > 5.0).nonzero().squeeze(1)
    if far.numel():
        value[far] = _ratio(r[far] - 5.0, _FAR_TAIL)
    out[tail] = torch.where(side < 0, -value, value)
    return out
