"""Why a plan cannot work: time limits, disk, memory, against what its jobs ask for. Light.

That batches divide is held when a configuration is read (config/whole.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from drifting_core.config import Configuration
from drifting_core.costs import estimates
from drifting_core.costs.data_preparation import latent_bytes
from drifting_core.doctor import cluster
from drifting_core.doctor.cluster import Partition
from drifting_core.doctor.profile import Ask, Profile
from drifting_core.jobs.subprocesses import Answer, ask
from drifting_core.planning.disk import Usage
from drifting_core.planning.hours import Task

_SECONDS = 4.0  # that SLURM has to answer


class Limits(NamedTuple):
    """Refusals, each with its numbers and what to do; things to know; and where the time limits come from."""

    refusals: list[str]
    warnings: list[str]
    source: str


def ask_cluster() -> Answer:
    """What sinfo says of the partitions."""
    return ask(cluster.commands("")["partitions"], _SECONDS)


def limits(
    config: Configuration, asked: Sequence[Ask], tasks: Sequence[Task], disks: Sequence[Usage], profile: Profile,
    cluster_says: Answer | float | None,
) -> Limits:  # fmt: skip
    """What stands against the plan; the cluster's side is what sinfo answered, or a time limit in minutes."""
    rules = {task.rule for task in tasks}
    jobs = [each for each in asked if each.rule in rules]
    refusals, warnings = [*_too_little_disk(disks), *_too_little_memory(config, jobs)], []
    if cluster_says is None:
        source = f"none, since {profile.path} is no profile for SLURM"
    elif not isinstance(cluster_says, Answer):
        source = f"--partition-limit {cluster_says:g}"
        refusals += _too_long(jobs, cluster_says, source)
    elif cluster_says.failure:
        source = f"not known (sinfo: {cluster_says.failure[:80]})"
        warnings.append("jobs were not compared with the partitions' time limits; give --partition-limit MINUTES")
    else:
        misfits, source = _misfits(jobs, cluster.partitions(cluster_says.text))
        refusals += misfits
    if cluster_says is not None:
        of_tasks = _too_many_attempts(jobs, tasks, profile)
        refusals, warnings = refusals + of_tasks[0], warnings + of_tasks[1]
    return Limits(refusals, warnings, source)


def _too_long(jobs: Sequence[Ask], minutes: float, source: str) -> list[str]:
    """Jobs that ask for more time than a partition gives, by the section that says so."""
    longer = {each.key: each.minutes for each in jobs if each.minutes > minutes}
    return [
        f"{key}.runtime_minutes: {wanted}, but the partition ends jobs after {minutes:g} minutes ({source}); lower it to "
        f"{minutes:g}, with slices that fit (training.milestone_every), or take another partition"
        for key, wanted in longer.items()
    ]


def _misfits(jobs: Sequence[Ask], partitions: Mapping[str, Partition]) -> tuple[list[str], str]:
    """(what no node of a job's partition will ever run, where that is known from)."""
    default = next((name for name, partition in partitions.items() if partition.default), "")
    found: dict[str, list[str]] = {}
    used = dict[str, str]()
    for each in jobs:
        names = (each.partition or default).split(",")
        unknown = [name or "(none set, and no default)" for name in names if name not in partitions]
        reasons = [f"no partition {name}" for name in unknown]
        reasons += [f"{name} has {', '.join(cluster.misfits(each, partitions[name]))}" for name in names
                    if name in partitions and cluster.misfits(each, partitions[name])]  # fmt: skip
        if len(reasons) == len(names):
            found.setdefault(f"{each.key}: {'; '.join(reasons)}", []).append(each.rule)
        for name in set(names) - set(unknown):
            most = partitions[name].minutes
            used[name] = "no time limit" if most is None else f"{most:g} minutes"
    lines = [f"{why} ({', '.join(rules)}); lower {why.partition(':')[0]}, or name another slurm_partition in the profile"
             for why, rules in found.items()]  # fmt: skip
    return lines, f"sinfo: {', '.join(f'{name} {most}' for name, most in sorted(used.items())) or 'nothing'}"


def _too_many_attempts(jobs: Sequence[Ask], tasks: Sequence[Task], profile: Profile) -> tuple[list[str], list[str]]:
    """(refusals, warnings): jobs that the rates plan longer than their limit; each attempt goes on where the last ended."""
    refusals, warnings, allowed = [], [], 1 + int(profile.values.get("retries", 0))
    for each in jobs:
        devices = each.gpus * each.nodes
        hours = max(task.lasts(devices) for task in tasks if task.rule == each.rule)
        attempts = math.ceil(hours * 60 / each.minutes)
        took = (
            f"{each.rule}: a job of {hours:,.1f} h, by the rates on {devices} GPU(s), needs {attempts} attempts of "
            f"{each.key}.runtime_minutes ({each.minutes}); {profile.path} allows {allowed} (retries: {allowed - 1})"
        )
        if attempts > allowed:
            shorter = "training.milestone_every, " if each.rule == "train_generator" else ""
            refusals.append(f"{took}; change {shorter}{each.key} (gpus, nodes, runtime_minutes) or retries")
        elif attempts > 1:
            warnings.append(f"{took}; each goes on from the last committed state")
    return refusals, warnings


def _too_little_disk(disks: Sequence[Usage]) -> list[str]:
    short = []
    for disk in disks:
        free, needs = disk.free, disk.adds.files
        if free.bytes is not None and free.bytes < disk.peak:
            short.append(
                f"{disk.place}: {free.bytes / 1e9:,.2f} GB are free, at its peak the plan needs {disk.peak / 1e9:,.2f} GB"
            )
        if free.files is not None and free.files < needs:
            short.append(f"{disk.place}: {free.files:,.0f} inodes are free, the plan adds about {needs:,} files")
    return [f"{each}; make room, or set results to another disk" for each in short]


def _too_little_memory(config: Configuration, jobs: Sequence[Ask]) -> list[str]:
    """Trainings whose state, which is copied to host memory when it is committed, is larger than what they ask for."""
    held = config.data.latents.residency == "ram"
    states: Mapping[str, tuple[float, Any]] = {
        "train_generator": (16 * estimates.generator_parameters(config), config.training.resources),
        "train_encoder": (16 * estimates.autoencoder_parameters(config), config.encoder.resources),
    }
    refusals = []
    for each in jobs:
        if each.rule not in states:
            continue
        state, section = states[each.rule]
        latents = latent_bytes(config) * section.ranks_per_node if held else 0.0
        parts = section.nodes if each.rule == "train_encoder" and config.encoder.parallel == "fsdp" else 1
        needs = state / parts + latents
        if needs > each.memory_mb * 1e6:
            what = "the state's copy in host memory" + (" and data.latents.residency: ram" if held else "")
            refusals.append(
                f"{each.key}.memory_mb: {each.memory_mb}, but {what} alone takes {needs / 1e6:,.0f} MB a node; raise it"
            )
    return refusals
