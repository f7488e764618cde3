"""What a folder's file system offers: its kind, room, quotas, locks that hold and renames that replace. Light."""

from __future__ import annotations

import fcntl
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from drifting_core.jobs.subprocesses import ask

NETWORK = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph-fuse", "cifs", "smb3", "afs", "panfs", "pvfs2", "wekafs",
    "glusterfs", "fuse.glusterfs", "fuse.sshfs", "9p", "virtiofs",
}  # fmt: skip


class FileSystem(NamedTuple):
    """One mount: where, of which kind, and of what."""

    place: str
    kind: str
    source: str

    @property
    def network(self) -> bool:
        return self.kind in NETWORK


class Room(NamedTuple):
    """What may still be written; None where there is no limit, or none that is known."""

    bytes: float | None
    files: float | None


def existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(folder for folder in (path.resolve(), *path.resolve().parents) if folder.exists())


def file_system(path: Path, mounts: str) -> FileSystem:
    """The file system of a path, from the text of /proc/self/mountinfo."""
    found = FileSystem("/", "unknown", "unknown")
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        place = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        # The longest place that the path lies below; of two mounts on one place the later one.
        if path.is_relative_to(place) and len(place) >= len(found.place):
            kind, source, *_ = after.split()
            found = FileSystem(place, kind, source)
    return found


def room(path: Path) -> Room:
    """What the file system has left for us. Some count no files."""
    known = os.statvfs(path)
    return Room(known.f_bavail * known.f_frsize, known.f_favail if known.f_files else None)


# --- quotas ---------------------------------------------------------------------------------------------------------

# name, kB used, soft and hard limit, grace, files used, soft and hard limit, grace: of `quota` and of `lfs quota` alike.
# A long name stands on a line of its own; a star or brackets mark what is over its limit.
_NUMBER = r"\s+\[?(\d+)\]?\*?"
_QUOTA = re.compile(rf"^\s*(\S+){_NUMBER}{_NUMBER}{_NUMBER}\s+\S+{_NUMBER}{_NUMBER}{_NUMBER}\s+\S+[ ]*$", re.MULTILINE)


def quota_command(system: FileSystem, user: str) -> list[str]:
    """The program that knows a user's quota there."""
    if system.kind == "lustre":
        return ["lfs", "quota", "-q", "-u", user, system.place]
    return ["quota", "-w", "-p"]  # a row on one line; grace as a number, so that no column is empty


def left_of_quota(text: str, system: FileSystem) -> Room:
    """What a user's quota leaves, from that program's answer; limits of 0 are none."""
    for name, *numbers in _QUOTA.findall(text):
        if name in (system.source, system.place):
            kilobytes, soft, hard, files, soft_files, hard_files = map(int, numbers)
            return Room(_left(1024 * kilobytes, 1024 * soft, 1024 * hard), _left(files, soft_files, hard_files))
    return Room(None, None)


def _left(used: int, soft: int, hard: int) -> float | None:
    limits = [limit for limit in (soft, hard) if limit]
    return max(min(limits) - used, 0) if limits else None


# --- locks and renames ----------------------------------------------------------------------------------------------

_TRY = """
import fcntl, sys
with open(sys.argv[1]) as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("held")
"""


def fault_of_locks(folder: Path) -> str:
    """Why an flock does not keep another process out; empty where it does. Raises OSError where nothing can be written."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor.") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"flock fails: {error.strerror}"
        answer = ask([sys.executable, "-S", "-c", _TRY, file.name], seconds=5)
    return "" if answer.text.strip() == "held" else f"two processes got the same lock {answer.failure}".strip()


def fault_of_renames(folder: Path) -> str:
    """Why os.replace does not swap a file under its readers; empty where it does. Raises OSError likewise."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor.") as scratch:
        old, new = Path(scratch, "old"), Path(scratch, "new")
        old.write_text("old")
        new.write_text("new")
        with old.open() as reader:
            os.replace(new, old)
            held = reader.read()
        left = sorted(path.name for path in Path(scratch).iterdir())
        if (held, old.read_text(), left) != ("old", "new", ["old"]):
            return f"after a rename an open file reads {held!r}, its name {old.read_text()!r}, the folder holds {left}"
    return ""


def size_of(folder: Path) -> int:
    """Bytes of everything below a folder, but for images that somebody asked for (a million files)."""
    size = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "imagefolder"]
        size += sum(os.lstat(Path(parent) / name).st_size for name in names)
    return size
