"""What SLURM is asked for. Light.

Its site values are `default-resources` of the profile, which Snakemake gives to rules; Snakemake's plugin turns a job's
resources into options of sbatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drifting_core.config import Resources

SITE_VALUES = ("cpu_partition", "gpu_type")  # resources of the profile that the plugin does not know


def requested(section: Resources, site: Mapping[str, str]) -> dict[str, Any]:
    """A rule's `resources:` for a job of one process."""
    asked = {"gpu": section.gpus, "mem_mb": section.memory_mb, "runtime": section.runtime_minutes}
    return asked | _where(section.gpus, site)


def requested_ranks(section: Resources, site: Mapping[str, str]) -> dict[str, Any]:
    """The same for a training, which starts its ranks itself: on one machine, or by srun, a task each.

    `mpi` makes the plugin run the job beside no step of its own, whose resources srun would have to share. A number of
    GPUs may be spread unevenly over nodes, so that several nodes have it said for each (gres, which cannot be counted
    locally and need not be).
    """
    if section.processes == 1:
        return requested(section, site)
    asked = requested(section, site) | {
        "mpi": "srun",
        "nodes": section.nodes,
        "tasks_per_node": section.ranks_per_node,
        "cpus_per_task": section.threads,
    }
    if section.nodes > 1 and section.gpus:
        del asked["gpu"]
        kind = f"{asked.pop('gpu_model')}:" if "gpu_model" in asked else ""
        asked["gres"] = f"gpu:{kind}{section.gpus}"
    return asked


def one_device(section: Resources) -> Resources:
    """What a training's section means for a job beside it that computes on one device."""
    return section.model_copy(update={"gpus": min(section.gpus, 1), "nodes": 1, "ranks": 0})


def _where(gpus: int, site: Mapping[str, str]) -> dict[str, str]:
    if gpus:
        return {"gpu_model": site["gpu_type"]} if "gpu_type" in site else {}
    return {"slurm_partition": site["cpu_partition"]} if "cpu_partition" in site else {}
