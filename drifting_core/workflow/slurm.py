"""What SLURM is asked for, and what it says. Light.

Its site values are `default-resources` of the profile, which Snakemake gives to rules; Snakemake's plugin turns a job's
resources into options of sbatch.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from drifting_core.config import Resources
from drifting_core.faults import Fault
from drifting_core.jobs import subprocesses

SITE_VALUES = ("cpu_partition", "gpu_type")  # resources of the profile that the plugin does not know


def requested(section: Resources, site: Mapping[str, str]) -> dict[str, Any]:
    """A rule's `resources:` for a job of one process."""
    asked = {"gpu": section.gpus, "mem_mb": section.memory_mb, "runtime": section.runtime_minutes}
    return asked | _where(section.gpus, site)


def requested_ranks(section: Resources, site: Mapping[str, str]) -> dict[str, Any]:
    """The same for a training or sampling, which starts its ranks itself: on one machine, or by srun, a task each.

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
    """What the section of jobs of many ranks means for a job beside them that computes on one device."""
    return section.model_copy(update={"gpus": min(section.gpus, 1), "nodes": 1, "ranks": 0})


def _where(gpus: int, site: Mapping[str, str]) -> dict[str, str]:
    if gpus:
        return {"gpu_model": site["gpu_type"]} if "gpu_type" in site else {}
    return {"slurm_partition": site["cpu_partition"]} if "cpu_partition" in site else {}


# --- its queue -------------------------------------------------------------------------------------------------------


class QueuedJob(NamedTuple):
    """A job that SLURM has not ended, as squeue shows it."""

    id: str
    name: str
    state: str
    node: str  # empty while it waits
    used: str
    left: str
    reason: str  # why it waits
    comment: str
    folder: str

    @property
    def rule(self) -> str:
        """Rule and wildcards of a job that Snakemake submitted, the name of another one."""
        rule = self.comment.removeprefix("rule_")
        return self.name if rule == self.comment else rule.replace("_wildcards_", " ")


_FORMAT = "|".join(("%i", "%j", "%T", "%N", "%M", "%L", "%r", "%k", "%Z"))  # the fields of QueuedJob
_UUID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")


def queue() -> list[QueuedJob]:
    """All jobs of this user. Raises Fault when SLURM does not say."""
    rows = ask("squeue", "--noheader", "--user", str(os.getuid()), "--format", _FORMAT).splitlines()
    parts = (row.split("|", len(QueuedJob._fields) - 1) for row in rows)
    return [QueuedJob(*each) for each in parts if len(each) == len(QueuedJob._fields)]


def submitted_from(folder: Path) -> list[QueuedJob]:
    """Those that a Snakemake which works in `folder` submitted, whatever became of it: it names them [prefix_]UUID."""
    return [job for job in queue() if Path(job.folder) == folder.resolve() and _UUID.search(job.name)]


def job_name(folder: Path, prefix: str) -> str:
    """What the jobs of `folder` are called: the site's prefix and a few digits of their own, 50 characters at most."""
    return f"{prefix[:41]}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"


def cancel(jobs: Iterable[QueuedJob]) -> None:
    ask("scancel", *(job.id for job in jobs))


def keeps_accounts() -> bool:
    """Whether sacct can answer. Raises Fault when SLURM does not say."""
    found = re.search(r"^AccountingStorageType\s*=\s*(\S+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return found is not None and found[1] not in ("accounting_storage/none", "(null)")


def ask(*command: str) -> str:
    """What one of SLURM's client programs says. Raises Fault when it fails, or says nothing for a minute."""
    answer = subprocesses.ask(command, seconds=60)
    if answer.failure:
        raise Fault(
            f"{command[0]} failed: {answer.failure}; start where SLURM's programs are (as on a login node) and its "
            "controller is up (`scontrol ping`)"
        )
    return answer.text
