"""Disk and inodes of a plan: what is there, what it adds, and the most it needs at once, by file system. Light."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from drifting_core.config import Configuration
from drifting_core.costs import estimates
from drifting_core.doctor import storage
from drifting_core.jobs.subprocesses import ask
from drifting_core.planning.jobs import Job
from drifting_core.workflow.layout import Layout

_MOUNTS = Path("/proc/self/mountinfo")
_QUOTA_SECONDS = 3.0


class Amount(NamedTuple):
    """Bytes and files."""

    bytes: float
    files: int


class Usage(NamedTuple):
    """One file system: which folders of the plan lie on it, what is left there, and what the plan takes."""

    place: str
    folders: tuple[str, ...]
    total: float  # bytes of the file system
    free: storage.Room  # the least of the disk and the user's quota; None where there is no limit
    there: Amount
    adds: Amount
    peak: float  # bytes that it needs at once beside what is there: what it adds, and what is only there while it is written


def usage(config: Configuration, jobs: Sequence[Job], folder: Path) -> list[Usage]:
    """The file systems that the plan reads and writes; the results' first. `folder` is where Snakemake runs."""
    there, adds, peak = _results(config, jobs, folder)
    nothing = Amount(0.0, 0)
    archives = [getattr(config.data.archives, name) for name in type(config.data.archives).model_fields]
    parents = {str(Path(path).parent) for path in archives if path}
    read = sorted(parent for parent in parents if not Path(parent).is_relative_to(config.root))
    places = {"results": str(config.root), **dict.fromkeys(read, ""), "TMPDIR": tempfile.gettempdir()}
    found: dict[int, Usage] = {}
    for name, path in places.items():
        here = storage.existing(folder / (path or name))
        device = here.stat().st_dev
        if device in found:
            found[device] = found[device]._replace(folders=(*found[device].folders, name))
            continue
        of = (there, adds, peak) if name == "results" else (nothing, nothing, 0.0)
        found[device] = Usage(str(here), (name,), _total(here), _left(here), *of)
    return list(found.values())


def _results(config: Configuration, jobs: Sequence[Job], folder: Path) -> tuple[Amount, Amount, float]:
    """(there, added, at peak) below results/; a folder in which no job would write gains nothing.

    Stages write one after the other, but for the reference, which may be written beside any of them.
    """
    layout, spaces = Layout(config), estimates.disk(config)
    outputs = [path for job in jobs for path in job.outputs]
    there, added, peak, beside = Amount(0.0, 0), 0.0, 0.0, 0.0
    for stage in ("sources", "tokenizer", "network", "reference", "data", "encoder", "run"):
        of_stage = f"{config.root}/sources" if stage == "sources" else layout.folder(stage)
        has = content_of(folder / of_stage)
        there = Amount(there.bytes + has.bytes, there.files + has.files)
        if any(path.startswith(f"{of_stage}/") for path in outputs):
            own = [space for space in spaces if space.stage == stage]
            added += max(sum(space.bytes for space in own) - has.bytes, 0.0)
            written = sum(space.written for space in own)
            beside, written = (written, 0.0) if stage == "reference" else (beside, written)
            peak = max(peak, added + written)
    files = max(estimates.files(config) - there.files, 0) if jobs else 0
    return there, Amount(added, files), peak + beside


def content_of(folder: Path) -> Amount:
    """Bytes and files below a folder, images that somebody asked for among them."""
    size = files = 0
    for parent, _, names in os.walk(folder):
        files += len(names)
        size += sum(os.lstat(Path(parent) / name).st_size for name in names)
    return Amount(float(size), files)


def _total(here: Path) -> float:
    known = os.statvfs(here)
    return float(known.f_blocks * known.f_frsize)


def _left(here: Path) -> storage.Room:
    """What the disk and the user's quota leave, whichever is less."""
    disk, system = storage.room(here), storage.file_system(here, _MOUNTS.read_text() if _MOUNTS.exists() else "")
    quota = storage.left_of_quota(ask(storage.quota_command(system, getpass.getuser()), _QUOTA_SECONDS).text, system)
    least = [[room for room in pair if room is not None] for pair in zip(disk, quota, strict=True)]
    return storage.Room(*(min(rooms, default=None) for rooms in least))
