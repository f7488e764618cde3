"""The objective that the released code runs (protocol section 1.4; golden/drift_loss_*.npz), in bounded memory.

Shapes: B = labels x spatial tokens, each a problem with its own kernel; G generated, P positive, N unconditional vectors
of S numbers; K = G + N + P targets, in this order. Two scalars per feature entry are shared by the whole (global) batch:
the mean distance `s` and, per temperature, the mean square `lambda^2` of the force.

    d[b,i,k] = |g_i - y_k|,   s = mean(d w) / mean(w),   a = max(s / sqrt(S), 1e-3)
    A = sqrt(max(softmax_k(-d / s tau) softmax_i(-d / s tau), 1e-6)) w         the self pair is moved 100 mean distances
    force_tau = [Ap rowsum(An), -An rowsum(Ap)] (y / a) - (their sum, 0) g / a  away before the softmaxes
    F = sum_tau force_tau / sqrt(max(mean(force_tau^2), 1e-8))
    loss[b] = mean((g / a - sg(g / a + F))^2) = mean(F^2),   d loss[b] / d g = -2 F / (G S a)

No gradient flows through F, s or a, so the gradient is written down instead of traced.

Memory. Problems are independent but for the scalars, so three passes over chunks of them (s, then lambda^2, then F) hold
one chunk at a time beside inputs and gradient, in buffers that all chunks use in turn; a single chunk is computed once.
Inputs stay in their own type and strides until their chunk is gathered, and entries of one shape are computed together.
Nothing waits for the device.

Numerics. float32 throughout (float64 for float64 inputs), whatever autocast or TF32 say outside. Each problem is centred
on the mean of its targets: distances and forces do not change under a common shift, and |g|^2 + |y|^2 - 2 g y no longer
cancels between large numbers. A generated sample's distance to itself is set to the floor that rounding would hide. Sums
over the batch are float64, so the scalars do not depend on how the batch is divided.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    float32 (float64 for float64 `gen`); the gradient goes to `gen` alone, in its type. `chunk` bounds how many of B are
    in memory as distance matrices at once, at the price of computing them three times; it changes the result by
    rounding only. With `group`, s and lambda^2 are those of the batch over all its ranks (every rank must call).
    Raises ValueError on shapes that do not fit.
    """
    stack = _single(gen, positives, negatives, weight_negatives, temperatures, chunk)
    return DriftLoss(*_DriftLoss.apply(gen, stack, group))


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
    """The force itself: d mean(loss) / d gen = -2 F / (B G S a). Arguments, shapes and errors as in `drift_loss`."""
    stack = _single(gen, positives, negatives, weight_negatives, temperatures, chunk)
    normalise([stack], group)
    force = torch.empty(gen.shape, dtype=stack.dtype, device=gen.device)
    loss = stack.write_forces([force[:, None]], torch.ones_like(stack.scale))
    return DriftForce(force, stack.factor[0], loss[0, :, 0], stack.scale[0], stack.force_norm[0])


class _DriftLoss(torch.autograd.Function):
    """mean(F^2) per problem, whose gradient with respect to `gen` is -2 F / (G S a)."""

    @staticmethod
    def forward(ctx: Any, gen: Tensor, stack: Stack, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
        normalise([stack], group)
        gradient = torch.empty_like(gen)
        loss = stack.write_forces([gradient[:, None]], stack.gradient_factor())
        ctx.save_for_backward(gradient)
        scale, force_norm = stack.scale[0], stack.force_norm[0]
        ctx.mark_non_differentiable(scale, force_norm)
        return loss[0, :, 0], scale, force_norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None, None].to(gradient.dtype), None, None


# --- entries of one shape -------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A feature entry as problems: (labels, tokens, count, S) each, of any strides; generated, unconditional, positive."""

    gen: Tensor
    negatives: Tensor
    positives: Tensor


class Stack:
    """Entries of one shape under one set of weights, computed together; see `normalise` for the order of calls.

    `weights` (labels, N): of each unconditional sample. `scale`, `factor` (E,) and `force_norm` (E, temperatures), one
    row per entry, are set by `normalise`. `chunk`: problems (of each entry) that are in memory at once. `compiled`: the
    element-wise part goes through torch.compile (on a GPU one pass over memory instead of twelve; on a CPU no gain).
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        weights: Tensor,
        temperatures: Sequence[float],
        chunk: int | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"drift_loss: chunk must be at least 1, found {chunk}")
        self.entries, self.weights, self.temperatures = list(entries), weights, tuple(temperatures)
        self.coefficients = _compiled_coefficients() if compiled else coefficients
        self.gen_shape = entries[0].gen.shape
        self.dtype = torch.float64 if entries[0].gen.dtype == torch.float64 else torch.float32
        labels, tokens = self.gen_shape[:2]
        size = labels * tokens if chunk is None else chunk
        many, few = max(1, size // tokens), min(size, tokens)
        self.chunks = [
            Chunk(slice(label, min(label + many, labels)), slice(token, min(token + few, tokens)))
            for label in range(0, labels, many)
            for token in range(0, tokens, few)
        ]
        self._size = min(many, labels) * min(few, tokens)
        self._kept: _Workspace | None = None

    def distance_sums(self) -> Tensor:
        """(E, 2) float64: sum of d w over this rank's problems, and the number of terms times their mean weight."""
        with self._workspace() as work:
            return torch.stack([work.distance_sums(chunk) for chunk in self.chunks]).sum(dim=0)

    def set_scale(self, sums: Tensor) -> None:
        """s and a from the sums over all ranks."""
        self.scale = (sums[:, 0] / sums[:, 1]).to(self.dtype)
        self.factor = (self.scale / self.gen_shape[3] ** 0.5).clamp(min=_SCALE_FLOOR)

    def force_sums(self) -> Tensor:
        """(E, temperatures + 1) float64: sums of squares of this rank's forces, and the number of terms."""
        with self._workspace() as work:
            squares = torch.stack([work.force_sums(chunk) for chunk in self.chunks]).sum(dim=0)
        return torch.cat([squares, squares.new_full((len(squares), 1), self.gen_shape.numel())], dim=1)

    def set_force_norm(self, sums: Tensor) -> None:
        """lambda^2 from the sums over all ranks."""
        self.force_norm = (sums[:, :-1] / sums[:, -1:]).to(self.dtype)

    def gradient_factor(self) -> Tensor:
        """(E,): -2 / (G S a), which takes F to the gradient of a problem's loss."""
        return -2.0 / (self.gen_shape[2] * self.gen_shape[3]) / self.factor

    def write_forces(self, into: Sequence[Tensor], factor: Tensor, labels: slice = slice(None)) -> Tensor:
        """Write F times `factor` (E,) for the problems of `labels`; their losses (E, labels, tokens).

        `into`: a tensor per entry, shaped like its gen but for having these labels only.
        """
        first, last, _ = labels.indices(self.gen_shape[0])
        loss = torch.empty(len(self.entries), last - first, self.gen_shape[1], dtype=self.dtype, device=factor.device)
        with self._workspace() as work:
            for whole in self.chunks:
                chunk = whole.within(first, last)
                if chunk is None:
                    continue
                place = (slice(chunk.labels.start - first, chunk.labels.stop - first), chunk.tokens)
                force = work.total_force(chunk).unflatten(1, chunk.shape)
                loss[:, *place] = torch.linalg.vector_norm(force, dim=(3, 4)).square_() / math.prod(force.shape[3:])
                force *= factor[:, None, None, None, None]
                for destination, own in zip(into, force, strict=True):
                    destination[place] = own
        if last - first == self.gen_shape[0]:
            self._kept = None
        return loss

    @contextmanager
    def _workspace(self) -> Iterator[_Workspace]:
        """Buffers for one chunk; where there is one chunk only they stay, with what was computed in them."""
        work = self._kept or _Workspace(self, self._size)
        if len(self.chunks) == 1:
            self._kept = work
        with _exact(self.weights.device):
            yield work


def normalise(stacks: Sequence[Stack], group: dist.ProcessGroup | None = None) -> None:
    """Set s, a and lambda^2 of all stacks from the whole batch over all ranks: two reductions, whatever their number."""
    for stack, sums in zip(stacks, _over_ranks([stack.distance_sums() for stack in stacks], group), strict=True):
        stack.set_scale(sums)
    for stack, sums in zip(stacks, _over_ranks([stack.force_sums() for stack in stacks], group), strict=True):
        stack.set_force_norm(sums)


def _over_ranks(sums: list[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    if group is None:
        return sums
    flat = torch.cat([each.flatten() for each in sums])
    dist.all_reduce(flat, op=dist.ReduceOp.SUM, group=group)
    parts = flat.split([each.numel() for each in sums])
    return [part.reshape(each.shape) for part, each in zip(parts, sums, strict=True)]


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32 (or bfloat16) products inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


# --- some problems --------------------------------------------------------------------------------------------------


class Chunk(NamedTuple):
    """Some labels and tokens of a stack's entries."""

    labels: slice
    tokens: slice

    @property
    def shape(self) -> tuple[int, int]:
        return self.labels.stop - self.labels.start, self.tokens.stop - self.tokens.start

    def within(self, first: int, last: int) -> Chunk | None:
        """The part of this chunk whose labels lie in first .. last, or None."""
        start, stop = max(self.labels.start, first), min(self.labels.stop, last)
        return Chunk(slice(start, stop), self.tokens) if start < stop else None


class _Workspace:
    """What one chunk of b problems needs, in buffers that are made once; called again for a chunk, it goes on.

    targets (E, b, K, S), distances (E, b, G, K), coefficients (temperatures, E, b, G, K), forces (E, b, G, S).
    """

    def __init__(self, stack: Stack, problems: int) -> None:
        self.stack = stack
        entries, (_, _, generated, width) = len(stack.entries), stack.gen_shape
        self.n_positive = stack.entries[0].positives.shape[2]
        targets = generated + stack.weights.shape[1] + self.n_positive
        self.shapes = {"targets": (targets, width), "pairs": (generated, targets), "forces": (generated, width)}

        def buffer(kind: str) -> Tensor:
            size = entries * problems * self.shapes[kind][0] * self.shapes[kind][1]
            return torch.empty(size, dtype=stack.dtype, device=stack.weights.device)

        self._targets, self._distances, self._force = buffer("targets"), buffer("pairs"), buffer("forces")
        self._coefficients = [buffer("pairs") for _ in stack.temperatures]
        self._scratch = buffer("pairs"), buffer("pairs")
        self._chunk: Chunk | None = None  # whose targets and distances are there
        self._pulling: Chunk | None = None  # whose coefficients are there

    def distance_sums(self, chunk: Chunk) -> Tensor:
        """(E, 2): see Stack."""
        distances, weights = self._measured(chunk)[1], self._weights(chunk)
        weighted = (distances.sum(dim=2) * weights).double().sum(dim=(1, 2))
        terms = weights.double().sum() * distances.shape[2]
        return torch.stack([weighted, terms.expand_as(weighted)], dim=1)

    def force_sums(self, chunk: Chunk) -> Tensor:
        """(E, temperatures): sums of squares."""
        forces = (self._pull(pulls, chunk) for pulls in self._pulls(chunk))
        lengths = torch.stack([torch.linalg.vector_norm(force, dim=3).flatten(1) for force in forces], dim=1)
        return lengths.double().square_().sum(dim=2)

    def total_force(self, chunk: Chunk) -> Tensor:
        """F (E, b, G, S): each temperature's force brought to mean square 1 over the batch, then summed.

        The forces are not needed apart here: one product for the sum of their coefficients.
        """
        norms = self.stack.force_norm.clamp(min=_FORCE_FLOOR).sqrt()[:, :, None, None, None]
        pulls = self._pulls(chunk)
        total = torch.div(pulls[0], norms[:, 0], out=self._view(self._scratch[0], "pairs", chunk))
        for place in range(1, len(pulls)):
            total.addcdiv_(pulls[place], norms[:, place])
        return self._pull(total, chunk)

    def _view(self, buffer: Tensor, kind: str, chunk: Chunk) -> Tensor:
        shape = (len(self.stack.entries), math.prod(chunk.shape), *self.shapes[kind])
        return buffer[: math.prod(shape)].view(shape)

    def _weights(self, chunk: Chunk) -> Tensor:
        """(b, K), in the order of the targets."""
        given = self.stack.weights[chunk.labels].to(self.stack.dtype)
        generated = given.new_ones(len(given), self.stack.gen_shape[2])
        weights = torch.cat([generated, given, given.new_ones(len(given), self.n_positive)], dim=1)
        return weights.repeat_interleave(chunk.shape[1], dim=0)

    def _measured(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Targets (generated, unconditional, positive) about their problem's mean, and the distances to them.

        Distances are Euclidean and not below 1e-4, which is also every sample's distance to itself.
        """
        targets, distances = self._view(self._targets, "targets", chunk), self._view(self._distances, "pairs", chunk)
        if self._chunk == chunk:
            return targets, distances
        for into, entry in zip(targets, self.stack.entries, strict=True):
            parts = into.unflatten(0, chunk.shape).split([part.shape[2] for part in entry], dim=2)
            for own, part in zip(parts, entry, strict=True):
                own.copy_(part[chunk.labels, chunk.tokens])
        targets -= targets.mean(dim=2, keepdim=True)
        squares = torch.linalg.vector_norm(targets, dim=3).square_()
        flat, generated = targets.flatten(0, 1), self.stack.gen_shape[2]
        torch.bmm(flat[:, :generated], flat.transpose(1, 2), out=distances.flatten(0, 1))
        distances *= -2
        distances += squares[:, :, None, :]
        distances += squares[:, :, :generated, None]
        distances.diagonal(dim1=2, dim2=3).zero_()
        distances.clamp_(min=_SQUARED_DISTANCE_FLOOR).sqrt_()
        self._chunk, self._pulling = chunk, None
        return targets, distances

    def _pulls(self, chunk: Chunk) -> list[Tensor]:
        """For each temperature what each target pulls with, (E, b, G, K)."""
        pulls = [self._view(buffer, "pairs", chunk) for buffer in self._coefficients]
        if self._pulling == chunk:
            return pulls
        distances = self._measured(chunk)[1]
        distances /= self.stack.scale.clamp(min=_SCALE_FLOOR)[:, None, None, None]
        distances.diagonal(dim1=2, dim2=3).add_(_SELF_DISTANCE)
        weights, scratch = self._weights(chunk), [self._view(buffer, "pairs", chunk) for buffer in self._scratch]
        for temperature, pull in zip(self.stack.temperatures, pulls, strict=True):
            self.stack.coefficients(distances, weights, self.n_positive, temperature, pull, scratch)
        self._pulling, self._chunk = chunk, None  # the distances have changed
        return pulls

    def _pull(self, pulls: Tensor, chunk: Chunk) -> Tensor:
        """sum_k c_k (y_k - g) / a, (E, b, G, S)."""
        targets, force = self._view(self._targets, "targets", chunk), self._view(self._force, "forces", chunk)
        torch.bmm(pulls.flatten(0, 1), targets.flatten(0, 1), out=force.flatten(0, 1))
        force.addcmul_(pulls.sum(dim=3, keepdim=True), targets[:, :, : self.stack.gen_shape[2]], value=-1)
        force /= self.stack.factor[:, None, None, None]
        return force


def coefficients(
    distances: Tensor, weights: Tensor, n_positive: int, temperature: float, into: Tensor, scratch: Sequence[Tensor]
) -> None:
    """Write what each target pulls with into `into`, shaped like `distances` (..., G, K) (in units of their mean).

    A = sqrt(max(softmax_k softmax_i, floor)) w; positives (the last) attract by A rowsum(A of the rest), the rest repels by
    A rowsum(A of the positives). `weights` (..., K).
    """
    logits, other = scratch
    torch.div(distances, -temperature, out=logits)
    torch.softmax(logits, -1, out=into)
    into *= torch.softmax(logits, -2, out=other)
    into.clamp_(min=_AFFINITY_FLOOR).sqrt_()
    into *= weights[..., None, :]
    repel, attract = into.split([into.shape[-1] - n_positive, n_positive], dim=-1)
    repel_sum, attract_sum = repel.sum(dim=-1, keepdim=True), attract.sum(dim=-1, keepdim=True)
    repel *= -attract_sum
    attract *= repel_sum


@functools.cache
def _compiled_coefficients() -> Callable[..., None]:
    return torch.compile(coefficients, dynamic=True)


def _single(
    gen: Tensor,
    positives: Tensor,
    negatives: Tensor | None,
    weight_negatives: Tensor | None,
    temperatures: Sequence[float],
    chunk: int | None,
) -> Stack:
    """A stack of one entry, each of B its own label."""
    if gen.dim() != 3 or gen.numel() == 0:
        raise ValueError(f"drift_loss: gen is (B, G, S), none of them 0, found {tuple(gen.shape)}")
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
    entry = Entry(gen.detach()[:, None], negatives.detach()[:, None], positives.detach()[:, None])
    return Stack([entry], weight_negatives.detach(), temperatures, chunk)
