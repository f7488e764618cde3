"""The objective that the released code runs, for one feature entry (protocol section 1.4; golden/drift_loss_*.npz).

Shapes: B = labels x spatial tokens, each with its own kernel; G generated, P positive, N unconditional vectors of S
numbers; K = G + N + P targets, in this order. Two scalars are shared by the whole (global) batch: the mean distance
`s` and, per temperature, the mean square `lambda^2` of the force.

    d[b,i,k] = |g_i - y_k|,   s = mean(d w) / mean(w),   a = max(s / sqrt(S), 1e-3)
    A = sqrt(max(softmax_k(-d / s tau) softmax_i(-d / s tau), 1e-6)) w         the self pair is moved 100 mean distances
    force_tau = [Ap rowsum(An), -An rowsum(Ap)] (y / a) - (their sum, 0) g / a  away before the softmaxes
    F = sum_tau force_tau / sqrt(max(mean(force_tau^2), 1e-8))
    loss[b] = mean((g / a - sg(g / a + F))^2) = mean(F^2),   d loss[b] / d g = -2 F / (G S a)

No gradient flows through F, s or a, so the gradient is written down instead of traced.

Numerics. Each b is centred on the mean of its targets first: distances and forces do not change under a common shift,
and |g|^2 + |y|^2 - 2 g y no longer cancels between large numbers. A generated sample's distance to itself is set to
the floor that rounding would hide. On CUDA keep TF32 matrix products off; autocast is switched off here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

TEMPERATURES = (0.2, 0.05, 0.02)

_SQUARED_DISTANCE_FLOOR = 1e-8
_SCALE_FLOOR = 1e-3
_SELF_DISTANCE = 100.0
_AFFINITY_FLOOR = 1e-6
_FORCE_FLOOR = 1e-8


class DriftLoss(NamedTuple):
    """`loss` (B,) with gradient to the generated features; `scale` () = s; `force_norm` (temperatures,) = lambda^2.

    The loss is no measure of progress (it is 1 on average for one temperature by construction): follow the others.
    """

    loss: Tensor
    scale: Tensor
    force_norm: Tensor


class DriftForce(NamedTuple):
    """`force` F (B, G, S) in normalised units, `factor` a (), and `loss`, `scale`, `force_norm` as in DriftLoss."""

    force: Tensor
    factor: Tensor
    loss: Tensor
    scale: Tensor
    force_norm: Tensor


def drift_loss(
    gen: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    weight_negatives: Tensor | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    chunk: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> DriftLoss:
    """Drift loss of one feature entry; the training loss is the sum over entries of the mean of `loss` over B.

    gen (B, G, S), positives (B, P, S), negatives (B, N, S) or None, weight_negatives (B, N), default 1. Computed in
    float32 (float64 for float64 `gen`); the gradient goes to `gen` alone. `chunk` bounds how many of B are in memory
    as distance matrices at once, at the price of computing them three times; it changes the result by rounding only.
    With `group`, s and lambda^2 are those of the batch over all its ranks (every rank must call).
    Raises ValueError on shapes that do not fit.
    """
    dtype = torch.float64 if gen.dtype == torch.float64 else torch.float32
    gen = gen.to(dtype)
    targets, weights = _targets(gen.detach(), positives, negatives, weight_negatives)
    n_positive = positives.shape[1]
    return DriftLoss(*_DriftLoss.apply(gen, targets, weights, n_positive, tuple(temperatures), chunk, group))


@torch.no_grad()
def drift_force(
    gen: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    weight_negatives: Tensor | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    chunk: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> DriftForce:
    """The force itself, for those who back-propagate in micro-batches: d mean(loss) / d gen = -2 F / (B G S a).

    Arguments, shapes and errors as in `drift_loss`. Run on the features of the whole step, then feed the slices of
    the gradient to a second forward pass.
    """
    dtype = torch.float64 if gen.dtype == torch.float64 else torch.float32
    gen = gen.detach().to(dtype)
    targets, weights = _targets(gen, positives, negatives, weight_negatives)
    return _force(gen, targets, weights, positives.shape[1], tuple(temperatures), chunk, group)


class _DriftLoss(torch.autograd.Function):
    """mean(F^2) per b, whose gradient with respect to `gen` is -2 F / (G S a)."""

    @staticmethod
    def forward(
        ctx: Any,
        gen: Tensor,
        targets: Tensor,
        weights: Tensor,
        n_positive: int,
        temperatures: tuple[float, ...],
        chunk: int | None,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        result = _force(gen, targets, weights, n_positive, temperatures, chunk, group)
        ctx.save_for_backward(result.force, result.factor)
        ctx.mark_non_differentiable(result.scale, result.force_norm)
        return result.loss, result.scale, result.force_norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        force, factor = ctx.saved_tensors
        per_vector = grad_outputs[0] * (-2.0 / (force.shape[1] * force.shape[2])) / factor
        return force * per_vector[:, None, None], None, None, None, None, None, None


def _targets(
    gen: Tensor, positives: Tensor, negatives: Tensor | None, weight_negatives: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the generated vectors interact with: targets (B, K, S) and weights (B, K), order gen, negatives, positives."""
    if gen.dim() != 3 or gen.shape[1] == 0:
        raise ValueError(f"drift_loss: gen is (B, G, S) with G > 0, found {tuple(gen.shape)}")
    if negatives is None:
        negatives = gen.new_empty(gen.shape[0], 0, gen.shape[2])
    for name, value in (("positives", positives), ("negatives", negatives)):
        if value.dim() != 3 or value.shape[0] != gen.shape[0] or value.shape[2] != gen.shape[2]:
            raise ValueError(f"drift_loss: {name} share B and S with gen {tuple(gen.shape)}, found {tuple(value.shape)}")
    if positives.shape[1] == 0:
        raise ValueError("drift_loss: at least one positive per label is needed, found none")
    if weight_negatives is None:
        weight_negatives = gen.new_ones(negatives.shape[:2])
    if weight_negatives.shape != negatives.shape[:2]:
        raise ValueError(
            f"drift_loss: weight_negatives is (B, N) = {tuple(negatives.shape[:2])}, found {tuple(weight_negatives.shape)}"
        )
    targets = torch.cat([gen, negatives.detach().to(gen.dtype), positives.detach().to(gen.dtype)], dim=1)
    ones = gen.new_ones(gen.shape[:2]), gen.new_ones(positives.shape[:2])
    return targets, torch.cat([ones[0], weight_negatives.detach().to(gen.dtype), ones[1]], dim=1)


def _force(
    gen: Tensor,
    targets: Tensor,
    weights: Tensor,
    n_positive: int,
    temperatures: tuple[float, ...],
    chunk: int | None,
    group: dist.ProcessGroup | None,
) -> DriftForce:
    """Three passes over B: the mean distance, the force norms, the force. One chunk keeps what it computed."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"drift_loss: chunk must be at least 1, found {chunk}")
    with torch.autocast(gen.device.type, enabled=False):
        size = len(gen) if chunk is None else chunk
        keep = size >= len(gen)
        parts = zip(gen.split(size), targets.split(size), weights.split(size), strict=True)
        chunks = [_Chunk(g, y, w, n_positive, keep=keep) for g, y, w in parts]
        scale = _mean_distance(chunks, gen, group)
        factor = (scale / gen.shape[2] ** 0.5).clamp(min=_SCALE_FLOOR)
        force_norm = _force_norms(chunks, gen, temperatures, scale, factor, group)
        force = torch.cat([c.total_force(temperatures, scale, factor, force_norm) for c in chunks])
    return DriftForce(force, factor, force.square().mean(dim=(1, 2)), scale, force_norm)


class _Chunk:
    """Some of the B problems: centred vectors, and distances and forces, kept (`keep`) or made anew at each pass."""

    def __init__(self, gen: Tensor, targets: Tensor, weights: Tensor, n_positive: int, *, keep: bool) -> None:
        self.gen, self.targets, self.weights, self.keep = gen, targets, weights, keep
        self.n_positive = n_positive
        self._distances: Tensor | None = None
        self._forces: list[Tensor] | None = None

    def centred(self) -> tuple[Tensor, Tensor]:
        """gen and targets about the mean of each b's targets: exact for distances and forces, less cancellation."""
        centre = self.targets.mean(dim=1, keepdim=True)
        return self.gen - centre, self.targets - centre

    def distances(self) -> Tensor:
        """(b, G, K) Euclidean distances, not below 1e-4, which is also every sample's distance to itself."""
        if self._distances is not None:
            return self._distances
        gen, targets = self.centred()
        squared = torch.baddbmm(
            targets.square().sum(dim=2)[:, None, :] + gen.square().sum(dim=2)[:, :, None],
            gen,
            targets.transpose(1, 2),
            alpha=-2,
        )
        squared.diagonal(dim1=1, dim2=2).zero_()
        distances = squared.clamp_(min=_SQUARED_DISTANCE_FLOOR).sqrt_()
        if self.keep:
            self._distances = distances
        return distances

    def forces(self, temperatures: tuple[float, ...], scale: Tensor, factor: Tensor) -> list[Tensor]:
        """For each temperature the force (b, G, S) before its normalisation."""
        if self._forces is not None:
            return self._forces
        distances = self.distances() / scale.clamp(min=_SCALE_FLOOR)
        distances.diagonal(dim1=1, dim2=2).add_(_SELF_DISTANCE)
        gen, targets = (vectors / factor for vectors in self.centred())
        forces = []
        for temperature in temperatures:
            coefficients = self._coefficients(distances, temperature)
            forces.append(coefficients @ targets - coefficients.sum(dim=2, keepdim=True) * gen)
        if self.keep:
            self._forces, self._distances = forces, None
        return forces

    def _coefficients(self, distances: Tensor, temperature: float) -> Tensor:
        """(b, G, K): positives attract by A rowsum(A of the rest), the rest repels by A rowsum(A of positives)."""
        logits = distances / -temperature
        affinity = logits.softmax(dim=2).mul_(logits.softmax(dim=1)).clamp_(min=_AFFINITY_FLOOR).sqrt_()
        affinity = affinity * self.weights[:, None, :]
        repel, attract = affinity.split([affinity.shape[2] - self.n_positive, self.n_positive], dim=2)
        repel_sum, attract_sum = repel.sum(dim=2, keepdim=True), attract.sum(dim=2, keepdim=True)
        return torch.cat([repel * -attract_sum, attract * repel_sum], dim=2)

    def total_force(self, temperatures: tuple[float, ...], scale: Tensor, factor: Tensor, force_norm: Tensor) -> Tensor:
        """F (b, G, S): each temperature's force brought to mean square 1 over the batch, then summed."""
        total = torch.zeros_like(self.gen)
        for force, square in zip(self.forces(temperatures, scale, factor), force_norm, strict=True):
            total += force / square.clamp(min=_FORCE_FLOOR).sqrt()
        return total


def _mean_distance(chunks: list[_Chunk], gen: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """s = mean_{b,i,k}(d w) / mean_{b,k}(w), the weighted mean distance of the global batch."""
    sums = torch.zeros(2, dtype=torch.float64, device=gen.device)
    for chunk in chunks:
        sums[0] += (chunk.distances().sum(dim=1) * chunk.weights).sum(dtype=torch.float64)
        sums[1] += chunk.weights.sum(dtype=torch.float64) * gen.shape[1]
    _sum_over(group, sums)
    return (sums[0] / sums[1]).to(gen.dtype)


def _force_norms(
    chunks: list[_Chunk],
    gen: Tensor,
    temperatures: tuple[float, ...],
    scale: Tensor,
    factor: Tensor,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """lambda^2 (temperatures,): the mean square of each temperature's force over the global batch."""
    sums = torch.zeros(len(temperatures) + 1, dtype=torch.float64, device=gen.device)
    for chunk in chunks:
        for index, force in enumerate(chunk.forces(temperatures, scale, factor)):
            sums[index] += force.square().sum(dtype=torch.float64)
    sums[-1] += gen.numel()
    _sum_over(group, sums)
    return (sums[:-1] / sums[-1]).to(gen.dtype)


def _sum_over(group: dist.ProcessGroup | None, sums: Tensor) -> None:
    if group is not None:
        dist.all_reduce(sums, op=dist.ReduceOp.SUM, group=group)
