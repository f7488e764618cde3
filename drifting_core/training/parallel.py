"""Data parallelism: each rank has some of a step's labels, and what is shared is reduced over all (decision 5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch.distributed as dist
from torch import nn

from drifting_core.faults import Fault


class Ranks(NamedTuple):
    """Which of how many processes this is, and the group that joins them; without a group there is one."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def share(self, count: int, what: str) -> slice:
        """This rank's part of `count` things in order. Raises Fault when they do not divide."""
        if count % self.size:
            raise Fault(f"{what}: {count} do not divide over {self.size} ranks; choose a number of GPUs that divides them")
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up what each rank contributed to the gradient of the (global) mean; all ranks hold the same after it."""
        if self.group is None:
            return
        waiting = [
            dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM, group=self.group, async_op=True)
            for parameter in parameters
            if parameter.grad is not None
        ]
        for work in waiting:
            work.wait()


ALONE = Ranks()
