"""What a first run would trip over, and what must be brought from outside.

Checks run side by side. Nothing is changed: scratch files that try locks and renames are removed. Light: no torch, no
h5py, no Snakemake.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from drifting_core.config import load_file
from drifting_core.doctor.disk import check_file_system, check_room
from drifting_core.doctor.findings import Check, Finding, gather
from drifting_core.doctor.machine import check_gpus, check_machine
from drifting_core.doctor.outside import check_downloads, check_images, check_own_files
from drifting_core.doctor.profile import asks, read_profile
from drifting_core.doctor.slurm import check_slurm
from drifting_core.doctor.software import check_packages, check_plugin, check_torch
from drifting_core.faults import Fault

__all__ = ["Finding", "examine"]


def examine(profile_name: str | None, configfile: Path, overrides: Sequence[str]) -> Iterator[Finding]:
    """All findings, in order. Raises Fault where there is no such profile."""
    profile = read_profile(profile_name)
    checks: dict[str, Check] = {"packages": check_packages}
    if profile.slurm:
        checks["slurm plugin"] = check_plugin
    try:
        config = load_file(configfile, overrides)
    except Fault as fault:
        yield from gather(checks)
        yield Finding("FAIL", "configuration", str(fault), "the rest was not checked")
        return
    asked = asks(config, profile)
    computing = [] if config.rehearsal else asked  # a rehearsal is granted GPUs and computes on the CPU
    checks |= {
        "torch": lambda: check_torch(computing),
        "images": lambda: check_images(config),
        "downloads": lambda: check_downloads(config),
        "own files": lambda: check_own_files(config),
        "disk": lambda: check_room(config),
        "file system": lambda: check_file_system(config, profile.slurm),
    }
    if profile.slurm:
        checks["slurm"] = lambda: check_slurm(asked, profile)
    else:
        checks |= {"GPUs": lambda: check_gpus(computing, config.devices, profile), "machine": lambda: check_machine(asked)}
    yield Finding("ok", "configuration", f"{configfile} is valid: run {config.key('run')}, profile {profile.path}")
    yield from gather(checks)
