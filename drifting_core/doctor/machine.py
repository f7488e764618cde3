"""One machine without a scheduler against what profile and configuration ask of it. Light."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import psutil

from drifting_core.doctor.findings import Finding
from drifting_core.doctor.profile import Ask, Profile
from drifting_core.faults import Fault
from drifting_core.jobs.pool import devices, installed


def check_gpus(asked: list[Ask], named: Sequence[str | int], profile: Profile) -> Iterator[Finding]:
    """As many to share as the largest job asks for; `named`: configuration key devices."""
    largest = max(asked, key=lambda job: job.gpus, default=None)
    if largest is None or largest.gpus == 0:
        yield Finding("ok", "GPUs", "none is asked for")
        return
    try:
        names, models = devices(named), installed()
    except Fault as fault:
        yield Finding("FAIL", "GPUs", str(fault))
        return
    given = (profile.values.get("resources") or {}).get("gpu")
    found = f"{len(names)} here ({', '.join(sorted({models.get(name, name) for name in names})) or 'nvidia-smi shows none'})"
    wanted = f"{largest.rule} asks for {largest.gpus} ({largest.key}.gpus)"
    if len(names) < largest.gpus:
        yield Finding("FAIL", "GPUs", f"{found}, {wanted}", "set these keys to what there is; 0 computes on the CPU")
    elif given is not None and int(given) < largest.gpus:
        remedy = f"remove it from {profile.path}, or add --resources gpu={len(names)} to the command"
        yield Finding("warn", "GPUs", f"{found}, {wanted}, the profile allows {given}", remedy)
    else:
        yield Finding("ok", "GPUs", f"{found}, {wanted}")


def check_machine(asked: list[Ask]) -> Iterator[Finding]:
    """Snakemake caps threads to the cores, and starts jobs whatever their memory: neither fails, both hurt."""
    if several := sorted({f"{job.key}.nodes" for job in asked if job.nodes > 1}):
        yield Finding("FAIL", "machine", f"{', '.join(several)}: several nodes, this is one", "set it to 1, or use SLURM")
        return
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 1e6
    widest, largest = max(asked, key=lambda job: job.cores), max(asked, key=lambda job: job.memory_mb)
    found = (
        f"{cores} cores, {memory:,.0f} MB; {widest.rule} asks for {widest.cores} cores, "
        f"{largest.rule} for {largest.memory_mb:,} MB"
    )
    if cores < widest.cores or memory < largest.memory_mb:
        remedy = f"set {widest.key}.threads and {largest.key}.memory_mb to what there is; a job may be killed for memory"
        yield Finding("warn", "machine", found, remedy)
    else:
        yield Finding("ok", "machine", found)
