"""The order of samples: which row comes at which position, as a function of (seed, position).

A position counts samples from the start of training. Epoch e is a permutation of all rows seeded by (seed, e). Nothing
is remembered, so a job resumes at any position, and ranks that cut [position, position + count) among themselves see
together what one rank would.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drifting_core.data import draws


class SampleStream:
    """Rows of a store of `length` rows with `views` views each."""

    def __init__(self, seed: int, length: int, views: int) -> None:
        if length < 1 or views < 1:
            raise ValueError(f"SampleStream: length {length} and views {views} must be positive")
        self.seed, self.length, self.views = seed, length, views
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def take(self, position: int, count: int) -> tuple[Tensor, Tensor]:
        """Samples position .. position + count: rows and views, int64 (count,) each, on the CPU."""
        parts = []
        at, left = position, count
        while left:
            epoch, first = divmod(at, self.length)
            part = self._permutation(epoch)[first : first + left]
            parts.append(part)
            at, left = at + len(part), left - len(part)
        rows = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
        views = draws.integers(draws.key(self.seed, "stream", "view"), self.views, (count,), start=position)
        return rows, views

    def take_part(self, position: int, count: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """What rank `rank` of `world` takes of samples position .. position + count: all parts, joined, are `take`'s."""
        if not 0 <= rank < world:
            raise ValueError(f"SampleStream: rank {rank} of {world}")
        first, last = count * rank // world, count * (rank + 1) // world
        return self.take(position + first, last - first)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:  # a cache: the permutation is a function of (seed, epoch)
            self._order = draws.permutation(draws.key(self.seed, "stream", "order", epoch), self.length)
            self._epoch = epoch
        return self._order
