"""Types of values, and the section that every stage has. Light."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from drifting_core.artifacts.identity import Section, operation

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Device = Annotated[str, Field(pattern=r"^[A-Za-z0-9/-]+$")]
Precision = Literal["float32", "bfloat16"]


class Resources(Section):
    """What one job of a stage asks of the scheduler."""

    threads: Positive = operation(1, "CPU threads of each rank")
    gpus: Natural = operation(0, "GPUs of each node; 0 means that the job computes on the CPU")
    nodes: Positive = operation(1, "nodes, for a training or sampling of many ranks (SLURM only)")
    ranks: Natural = operation(0, "processes of a training or sampling on each node; 0: one per GPU, or one on the CPU")
    memory_mb: Positive = operation(4000, "memory of each node in MB")
    runtime_minutes: Positive = operation(60, "wall-time limit in minutes")

    @property
    def ranks_per_node(self) -> int:
        return self.ranks or max(self.gpus, 1)

    @property
    def processes(self) -> int:
        """Ranks of a training or sampling, of all nodes together."""
        return self.nodes * self.ranks_per_node

    @property
    def cores(self) -> int:
        """CPU threads of all ranks of a node together."""
        return self.threads * self.ranks_per_node
