"""What a SLURM cluster says of itself, and whether it will ever run a job: commands, and what their answers mean. Light.

Formats are those of SLURM 22.05 and later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from drifting_core.doctor.profile import Ask
from drifting_core.jobs.job import slurm_seconds


def commands(user: str) -> dict[str, list[str]]:
    """What is asked of the cluster, by what it is about."""
    return {
        "partitions": ["sinfo", "--noheader", "--exact", "--noconvert", "--format=%P|%a|%l|%G|%c|%m|%D|%t"],
        "configuration": ["scontrol", "show", "config"],
        "queue": ["squeue", "--noheader", f"--user={user}", "--format=%i"],
        "submission": ["sbatch", "--version"],
        "accounts": ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}", "format=account"],
    }


class Nodes(NamedTuple):
    """Nodes of one partition that are alike."""

    gpus: int
    cores: int
    memory_mb: int
    number: int
    state: str

    @property
    def usable(self) -> bool:
        """False while they are down, drained or do not answer (`*`)."""
        return not re.match(r"down|drain|drng|fail|inval|unk|.*\*", self.state)


class Partition(NamedTuple):
    """A partition; no minutes where it has no time limit."""

    name: str
    default: bool
    up: bool
    minutes: float | None
    nodes: tuple[Nodes, ...]


def partitions(text: str) -> dict[str, Partition]:
    """Partitions by name, from the answer of sinfo."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, available, limit, gres, cores, memory, count, state = line.split("|")
        seconds = slurm_seconds(limit)
        nodes = Nodes(_gpus(gres), _number(cores), _number(memory), _number(count), state)
        known = found.get(name.rstrip("*"))
        before = known.nodes if known else ()
        found[name.rstrip("*")] = Partition(
            name.rstrip("*"),
            name.endswith("*"),
            available == "up",
            None if seconds is None else seconds / 60,
            (*before, nodes),
        )
    return found


def _gpus(gres: str) -> int:
    """'gpu:h200:4(S:0-1),gpu:v100:2,lustre:1' -> 6."""
    return sum(int(count) for count in re.findall(r"\bgpu:(?:[^:,()]+:)?(\d+)", gres))


def _number(text: str) -> int:
    """'16+' -> 16: at least that many."""
    return int(text.rstrip("+"))


def configuration(text: str) -> dict[str, str]:
    """The answer of `scontrol show config` as a mapping."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def misfits(ask: Ask, partition: Partition) -> list[str]:
    """Why no node of a partition will ever run a job; empty where one will.

    Of time limits sbatch says nothing (unless EnforcePartLimits is set): such a job waits for ever.
    """
    problems = []
    if partition.minutes is not None and ask.minutes > partition.minutes:
        problems.append(f"at most {partition.minutes:g} minutes, not {ask.minutes}")
    for name, unit in (("gpus", "GPUs"), ("cores", "CPUs"), ("memory_mb", "MB")):
        most, asked = max(getattr(nodes, name) for nodes in partition.nodes), getattr(ask, name)
        if asked > most:
            problems.append(f"at most {most} {unit} a node, not {asked}")
    holding = sum(nodes.number for nodes in partition.nodes if _holds(nodes, ask))
    if not problems and holding < ask.nodes:
        problems.append(
            f"{holding} nodes that each have {ask.gpus} GPUs, {ask.cores} CPUs and {ask.memory_mb} MB, not {ask.nodes}"
        )
    return problems


def _holds(nodes: Nodes, ask: Ask) -> bool:
    return nodes.gpus >= ask.gpus and nodes.cores >= ask.cores and nodes.memory_mb >= ask.memory_mb


def status_fault(settings: Mapping[str, str], command: str, first_poll: float) -> tuple[str, str] | None:
    """Why Snakemake's plugin would lose jobs that it asks after by `command`, first `first_poll` s later; and the remedy."""
    if command == "sacct" and settings.get("AccountingStorageType", "").endswith("/none"):
        return (
            "sacct, but the cluster keeps no accounts (AccountingStorageType): jobs would be lost",
            "set slurm-status-command: squeue in the profile",
        )
    remembered = int((re.match(r"\d+", settings.get("MinJobAge", "")) or ["0"])[0])
    if command == "squeue" and 0 < remembered < 3 * first_poll:  # 0: never forgotten
        return (
            f"squeue, which forgets a job {remembered} s after its end (MinJobAge): polls begin at {first_poll:g} s",
            f"set slurm-init-seconds-before-status-checks to at most {remembered // 3} in the profile",
        )
    return None


def trial(ask: Ask) -> list[str]:
    """The command that has SLURM say whether it would take such a job, without submitting it."""
    return ["sbatch", "--test-only", *ask.options, "--wrap=true"]
