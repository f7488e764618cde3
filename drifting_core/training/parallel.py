"""Data parallelism: each rank has some of a step's labels, and what is shared is reduced over all (decision 5).

Gradients are sums over ranks, not means: each rank's loss is already its share of the mean over the global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from drifting_core.faults import Fault
from drifting_core.jobs.devices import Place

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Value = TypeVar("Value")
Kind = Literal["ddp", "fsdp"]

_PATIENCE = timedelta(minutes=30)  # of a collective: a commit to a slow disk, or a rank that compiles, may take minutes


class Ranks(NamedTuple):
    """Which of how many processes this is, and the groups that join them; without groups there is one process."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None  # of tensors on the device
    control: dist.ProcessGroup | None = None  # of small things on the CPU, in the main thread
    writing: dist.ProcessGroup | None = None  # the same for the thread that writes states

    def share(self, count: int, what: str) -> slice:
        """This rank's part of `count` things in order. Raises Fault when they do not divide."""
        if count % self.size:
            raise Fault(f"{what}: {count} do not divide over {self.size} ranks; choose a number of GPUs that divides them")
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; all must ask."""
        if self.control is None:
            return flag
        flags = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.control)
        return bool(flags)

    def everyones(self, value: Value, *, writing: bool = False) -> list[Value]:
        """The values of all ranks in order; all must call (from the writing thread with `writing`)."""
        group = self.writing if writing else self.control
        if group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=group)
        return values

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.group is not None:
            dist.all_reduce(value, op=dist.ReduceOp.SUM, group=self.group)
        return value

    def shard(self, model: nn.Module) -> None:
        """Divide the parameters of `model` over the ranks (FSDP), unit by unit: those that its `sharding_units` names."""
        if self.group is None:
            return
        from torch.distributed.fsdp import fully_shard  # half a second, which only sharded trainings spend

        mesh = DeviceMesh.from_group(self.group, next(model.parameters()).device.type)
        for unit in (*model.sharding_units(), model):  # type: ignore[operator]
            fully_shard(unit, mesh=mesh)
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)

    def replicate(self, model: nn.Module) -> nn.Module:
        """`model` (DistributedDataParallel over several ranks, itself when alone or sharded) to call in a forward pass."""
        if self.group is None or _is_sharded(next(model.parameters())):
            return model
        device = next(model.parameters()).device
        replica = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            process_group=self.group,
            gradient_as_bucket_view=True,
        )
        replica.register_comm_hook(self.group, lambda group, bucket: _sum_bucket(group, bucket))
        return replica


ALONE = Ranks()


def _sum_bucket(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), op=dist.ReduceOp.SUM, group=group, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


@contextmanager
def gradients_later(network: nn.Module, later: bool) -> Iterator[None]:
    """Within it, with `later`, gradients stay on their rank: of all micro-batches but the last."""
    # FSDP reduces each micro-batch: it has no room for whole gradients.
    with network.no_sync() if later and isinstance(network, DistributedDataParallel) else nullcontext():
        yield


@contextmanager
def joined(place: Place | None, device: torch.device) -> Iterator[Ranks]:
    """The ranks that were started together (devices.py), joined: NCCL on GPUs, gloo on CPUs. Alone without a `place`."""
    if place is None:
        yield ALONE
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{place.address}:{place.port}",
        rank=place.rank,
        world_size=place.size,
        timeout=_PATIENCE,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        control, writing = (dist.new_group(backend="gloo", timeout=_PATIENCE) for _ in range(2))
        ranks = Ranks(place.rank, place.size, dist.group.WORLD, control, writing)
        yield ranks
        ranks.any(False)  # all end when the last does: the first still writes, and srun gives the others' end a time limit
    finally:
        dist.destroy_process_group()


# --- sharded tensors ---------------------------------------------------------------------------------------------------


def _is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "device_mesh")  # a DTensor, whose class is imported with FSDP only


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: some rows of a sharded one, else all of it."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def part_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """The part of `whole` that this rank holds of `tensor`: FSDP divides the first dimension as torch.chunk does."""
    if not _is_sharded(tensor):
        return whole
    parts = whole.chunk(tensor.device_mesh.size(), dim=0)
    rank = tensor.device_mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else whole[:0]


def whole_of(tensor: Tensor) -> Tensor:
    """All of a tensor, sharded or not; every rank must call."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor
