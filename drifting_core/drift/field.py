"""The drift field as the paper prints it (Algorithm 2; sections 3.1-3.3, appendix A.1).

This is the form of the toy experiments and of teaching. Training uses the released objective, `drift/loss.py`, which
differs in normalisation, self mask, affinity floor and guidance weight.

What it costs: every affinity needs the sum of its row and the sum of its column, and a log-sum-exp that is stable takes
an exponential per pair and axis. So no way leads round three exponentials and about twenty simple passes over the
(N, P + Q) matrix. At N = P = Q = 2048 a pass over its 8.4 million float32 takes one core 1 to 1.5 ms and an exponential
or a root 4 to 5 ms while the numbers stay in its cache; one more such matrix in main memory takes 19 ms for its page
faults alone. Hence blocks of rows in memory that is used again, distances computed twice rather than kept, powers of 2
(half the price of exp), and products with the targets instead of scaled copies of the affinities.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_SELF_DISTANCE = 1e6
_BLOCK = 1 << 19  # distances in one block: 2 MB of float32
_FEW_DIMENSIONS = 4  # up to here a pass per dimension is no slower than torch.cdist, and needs no new memory


@torch.no_grad()
def drift_field(x: Tensor, positives: Tensor, negatives: Tensor, temperature: float, *, mask_self: bool = False) -> Tensor:
    """V(x), shape (N, D): where each x should move, attracted by `positives` (P, D), repelled by `negatives` (Q, D).

    The affinity of x and y is A = sqrt(softmax over y * softmax over x) of L = -|x - y| / temperature, over positives
    and negatives together. It is made in logarithms, log A = L - (log-sum-exp of its row + of its column) / 2: nothing
    overflows, and nothing underflows that A itself does not. `mask_self=True` says that `negatives` are `x` themselves,
    in order, and takes each sample's distance to itself out (adds 1e6). V carries no gradient: the paper's loss is
    |x - stopgrad(x + V)|^2. Raises ValueError on shapes that do not fit.
    """
    _check_shapes(x, positives, negatives, mask_self)
    # In units of temperature * ln 2 the kernel is 2^-distance.
    scale = 1 / (temperature * math.log(2))
    targets = _by_column(torch.cat([positives, negatives]) * scale)
    block = max(1, _BLOCK // len(targets))
    memory = x.new_empty(2, min(block, len(x)), len(targets))

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        """Distances from some rows at a time to all targets, positives first; and free space of the same shape."""
        for first in range(0, len(x), block):
            rows = x[first : first + block] * scale
            distance, free = memory[:, : len(rows)]
            _distances(rows, targets, distance, free)
            if mask_self:
                distance[:, len(positives) + first :].diagonal().add_(_SELF_DISTANCE * scale)
            yield distance, free

    # First look, at the sums: a block has whole rows, and a share of every column.
    row_sums, column_sums = [], torch.full_like(targets[:, 0], -math.inf)
    for distance, free in blocks():
        row_sums.append(_log_sum(distance, 1, free))
        column_sums = torch.logaddexp2(column_sums, _log_sum(distance, 0, free)[0])
    column_sums /= 2

    # Second look, at the affinities. W_p = A_p * rowsum(A_n), W_n = A_n * rowsum(A_p), V = W_p @ P - W_n @ Q.
    p_columns, n_columns = _by_column(positives), _by_column(negatives)
    field = []
    for (distance, free), row_sum in zip(blocks(), row_sums, strict=True):
        affinity = torch.sub(row_sum / -2, distance, out=free).sub_(column_sums).exp2_()
        a_p, a_n = affinity.split([len(positives), len(negatives)], dim=1)
        attracted = a_n.sum(dim=1, keepdim=True) * (a_p @ p_columns)
        repelled = a_p.sum(dim=1, keepdim=True) * (a_n @ n_columns)
        field.append(attracted - repelled)
    return torch.cat(field)


@torch.no_grad()
def mean_shift(x: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """V+(x), shape (N, D): the attraction of equation 8 alone, the kernel-weighted mean of y - x over the positives.

    The kernel is exp(-|x - y| / temperature), divided by its sum over y. The paper's V is V+ - V- (equations 8 to 11).
    Algorithm 2 without its repelling half is no substitute: its softmax over x makes the samples compete for the data,
    which keeps them apart even so.
    """
    distance = torch.cdist(x, positives, compute_mode="donot_use_mm_for_euclid_dist")
    return (distance / -temperature).softmax(dim=1) @ positives - x


def _log_sum(distance: Tensor, dim: int, free: Tensor) -> Tensor:
    """log2 of the sum of 2^-distance along `dim`, which stays with length 1; the nearest is taken out before."""
    nearest = distance.amin(dim, keepdim=True)
    return torch.sub(nearest, distance, out=free).exp2_().sum(dim, keepdim=True).log2_().sub_(nearest)


def _by_column(y: Tensor) -> Tensor:
    """The same matrix stored column by column: a pass per coordinate and a thin product read it three times as fast."""
    return y.t().contiguous().t()


def _distances(x: Tensor, y: Tensor, out: Tensor, free: Tensor) -> None:
    """(N, D) and (M, D) to distances `out` (N, M), from differences: |x|^2 + |y|^2 - 2xy would lose the small ones."""
    if x.shape[1] > _FEW_DIMENSIONS:
        out.copy_(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist"))
        return
    out.zero_()
    for x_d, y_d in zip(x.t(), y.t(), strict=True):
        torch.sub(x_d[:, None], y_d, out=free)
        out.addcmul_(free, free)
    out.sqrt_()


def _check_shapes(x: Tensor, positives: Tensor, negatives: Tensor, mask_self: bool) -> None:
    if x.dim() != 2 or any(y.dim() != 2 or y.shape[1] != x.shape[1] for y in (positives, negatives)):
        raise ValueError(
            "drift_field: x, positives and negatives are (count, D) with one D, found "
            f"{tuple(x.shape)}, {tuple(positives.shape)}, {tuple(negatives.shape)}"
        )
    if mask_self and len(negatives) != len(x):
        raise ValueError(f"drift_field: mask_self needs negatives = x, found {len(negatives)} and {len(x)}")
