"""The training loss: the drift loss of every feature entry, each with its own two scalars, summed (protocol 1.4, 1.5).

The gradient is written down for the features, and autograd goes on from there. Where a step's features do not fit at
once, they are computed twice: without gradients for the scalars of the whole batch, then part by part with. The numbers
are the same, on any number of ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from drifting_core.drift.loss import Entry, Stack, normalise

Features = Mapping[str, Tensor]  # entry -> (samples, tokens, S), samples label-major

# Working memory of a chunk. A GPU wants large products; on a CPU a chunk should stay near the caches (measured on two
# cores, docs/performance.md: 8 to 64 MiB alike, more is half slower).
_CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}


class EntryLoss(NamedTuple):
    """`loss` () = mean over labels and tokens, `scale` () and `force_norm` (temperatures,), of the whole batch."""

    loss: Tensor
    scale: Tensor
    force_norm: Tensor


class DriftObjective:
    """The objective of one step's features: its scalars at once, its gradients for all labels or for some of them."""

    def __init__(
        self,
        generated: Features,
        positives: Features,
        unconditional: Features,
        weights: Tensor,
        temperatures: Sequence[float],
        *,
        group: dist.ProcessGroup | None = None,
        chunk: int | None = None,
        compiled: bool = False,
    ) -> None:
        """`weights` (labels, N) of the unconditional samples, for the labels of this rank; ranks have equally many.

        `chunk`: problems (label and token) of an entry that are in memory at once; by default what fits
        `_CHUNK_BYTES`. `compiled`: see Stack. Every rank of `group` must call. Raises ValueError on shapes that do not fit.
        """
        self.labels, self.group = len(weights), group
        self.ranks = 1 if group is None else dist.get_world_size(group)
        alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
        entries = {}
        for name, features in generated.items():
            parts = (self._problems(each) for each in (features, unconditional[name], positives[name]))
            entries[name] = Entry(*parts)
            alike[tuple(features.shape[1:])].append(name)
        self.stacks: list[tuple[list[str], Stack]] = []
        for names in alike.values():
            own = [entries[name] for name in names]
            size = chunk or max(1, _CHUNK_BYTES[weights.device.type] // (len(own) * _problem_bytes(own[0])))
            self.stacks.append((names, Stack(own, weights, temperatures, size, compiled=compiled)))
        normalise([stack for _, stack in self.stacks], group)
        self._sums = {name: stack.scale.new_zeros(()) for names, stack in self.stacks for name in names}

    def _problems(self, entry: Tensor) -> Tensor:
        """(labels * samples, tokens, S) -> its view (labels, tokens, samples, S): each label and token is a problem."""
        return entry.detach().unflatten(0, (self.labels, len(entry) // self.labels)).transpose(1, 2)

    def gradients(self, labels: slice = slice(None)) -> dict[str, Tensor]:
        """d loss / d features of the generated samples of `labels`: (their samples, tokens, S), in the features' type.

        Ask once for each label: `results` is whole when all have been asked for.
        """
        first, last, _ = labels.indices(self.labels)
        found = {}
        for names, stack in self.stacks:
            _, tokens, samples, width = stack.gen_shape
            into = [
                torch.empty(last - first, samples, tokens, width, dtype=entry.gen.dtype, device=entry.gen.device)
                for entry in stack.entries
            ]
            problems = self.labels * self.ranks * tokens
            views = [each.transpose(1, 2) for each in into]
            losses = stack.write_forces(views, stack.gradient_factor() / problems, slice(first, last))
            for name, gradient, loss in zip(names, into, losses, strict=True):
                found[name] = gradient.flatten(0, 1)
                self._sums[name] += loss.sum() / problems
        return found

    def results(self) -> dict[str, EntryLoss]:
        """Loss, scale and force norms of each entry over the batch of all ranks; every rank must call."""
        losses = torch.stack(list(self._sums.values()))
        if self.group is not None:
            dist.all_reduce(losses, op=dist.ReduceOp.SUM, group=self.group)
        by_name = dict(zip(self._sums, losses, strict=True))
        return {
            name: EntryLoss(by_name[name], scale, force_norm)
            for names, stack in self.stacks
            for name, scale, force_norm in zip(names, stack.scale, stack.force_norm, strict=True)
        }


def total(results: Mapping[str, EntryLoss]) -> Tensor:
    """The training loss: the sum over entries, not their mean (the gradient clip is set for the sum)."""
    return torch.stack([entry.loss for entry in results.values()]).sum()


def _problem_bytes(entry: Entry) -> int:
    """What one problem occupies while it is computed: targets, six (G, K) matrices, a force; float32."""
    _, _, generated, width = entry.gen.shape
    targets = generated + entry.negatives.shape[2] + entry.positives.shape[2]
    return 4 * (targets * width + 6 * generated * targets + generated * width)
