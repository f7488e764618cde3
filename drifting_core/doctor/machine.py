"""One machine without a scheduler against what profile and configuration ask of it. Light."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import psutil

from drifting_core.doctor.findings import ANSWER_SECONDS, Finding
from drifting_core.doctor.profile import Ask, Profile
from drifting_core.programs import Answer, ask

_GPUS = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")


def check_gpus(asked: list[Ask], profile: Profile) -> Iterator[Finding]:
    """As many as the largest job asks for; the profile gives as many to Snakemake, which caps without a word."""
    largest = max(asked, key=lambda job: job.gpus, default=None)
    if largest is None or largest.gpus == 0:
        yield Finding("ok", "GPUs", "none is asked for")
        return
    answer = ask(_GPUS, ANSWER_SECONDS)
    names = visible(answer, os.environ)
    given = (profile.values.get("resources") or {}).get("gpu")
    found = f"{len(names)} here ({', '.join(sorted(set(names))) or answer.failure})"
    wanted = f"{largest.rule} asks for {largest.gpus} ({largest.key}.gpus)"
    if len(names) < largest.gpus:
        yield Finding("FAIL", "GPUs", f"{found}, {wanted}", "set these keys to what there is; 0 computes on the CPU")
    elif given is not None and int(given) < largest.gpus:
        remedy = f"add --resources gpu={len(names)} to the command, or set it in {profile.path}"
        yield Finding("warn", "GPUs", f"{found}, {wanted}, the profile gives {given}", remedy)
    else:
        yield Finding("ok", "GPUs", f"{found}, {wanted}")


def visible(answer: Answer, environment: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that nvidia-smi tells of, as far as CUDA_VISIBLE_DEVICES lets jobs see them."""
    names = [line.strip() for line in answer.text.splitlines() if line.strip()] if answer.code == 0 else []
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    return names if chosen is None else names[: len([device for device in chosen.split(",") if device.strip()])]


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
