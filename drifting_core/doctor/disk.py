"""The disk of the results: room and inodes for the plan, and a file system that leases and publishing can rely on. Light."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path

from drifting_core.config import Configuration
from drifting_core.costs import estimates
from drifting_core.doctor import storage
from drifting_core.doctor.findings import ANSWER_SECONDS, Finding
from drifting_core.jobs.subprocesses import ask
from drifting_core.workflow.layout import Layout

_MOUNTS = Path("/proc/self/mountinfo")


def check_room(config: Configuration) -> Iterator[Finding]:
    """What the plan says and is not there yet, against what the disk and the user's quota have left."""
    here = storage.existing(config.root)
    system = storage.file_system(here, _MOUNTS.read_text())
    quota = ask(storage.quota_command(system, getpass.getuser()), ANSWER_SECONDS)
    layout = Layout(config)
    stages = ("data", "tokenizer", "network", "reference", "encoder", "run")
    there = sum(storage.size_of(Path(layout.folder(stage))) for stage in stages)
    size, files = max(sum(space.bytes for space in estimates.disk(config)) - there, 0), estimates.files(config)
    short, left = [], []
    for name, room in (("the disk", storage.room(here)), ("your quota", storage.left_of_quota(quota.text, system))):
        known = {"bytes": (room.bytes, size), "files": (room.files, files)}
        short += [f"{what} of {name}" for what, (has, needs) in known.items() if has is not None and has < needs]
        told = [] if room.bytes is None else [f"{room.bytes / 1e9:,.2f} GB"]
        told += [] if room.files is None else [f"{room.files:,} files"]
        left += [f"{' and '.join(told)} left of {name}"] if told else []
    found = f"{here}: {', '.join(left)}; the plan still takes {size / 1e9:,.2f} GB in about {files:,} files"
    if short:
        yield Finding("FAIL", "disk", found, f"too few {', '.join(short)}: make room, or set results to another disk")
    else:
        yield Finding("ok", "disk", found)


def check_file_system(config: Configuration, slurm: bool) -> Iterator[Finding]:
    """Its kind, and that locks keep others out and renames replace."""
    here = storage.existing(config.root)
    system = storage.file_system(here, _MOUNTS.read_text())
    kind = f"{here} is on {system.kind}, {'a network file system' if system.network else 'of this machine'}"
    try:
        faults = [fault for fault in (storage.fault_of_locks(here), storage.fault_of_renames(here)) if fault]
    except OSError as error:
        yield Finding("FAIL", "file system", f"{kind}: {error.strerror}", "set results to a folder that can be written to")
        return
    if faults:
        remedy = "set results to another file system (Lustre: one mounted with flock)"
        yield Finding("FAIL", "file system", f"{kind}: {'; '.join(faults)}", remedy)
    elif slurm and not system.network:
        yield Finding("warn", "file system", f"{kind}; locks and renames work", "compute nodes must see it, too")
    else:
        yield Finding("ok", "file system", f"{kind}; locks (between processes here) and renames work")
