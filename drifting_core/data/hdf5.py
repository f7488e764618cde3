"""Writing HDF5 so that a full disk is an error and not a crash.

libhdf5 ends the process with a segmentation fault when it cannot write what it holds while it closes a file. Here it
writes through a file object that remembers the first error and from then on takes everything, so that the library can
close; the error is raised after that. The scratch file is removed, and an older file stays as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py

from drifting_core.artifacts import publish
from drifting_core.faults import Fault


class _Disk:
    """What h5py's file-object driver needs."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def write(self, content: memoryview) -> int:
        size = len(content)
        if self.error is None:
            try:
                while content:
                    content = content[self._raw.write(content) :]
            except OSError as error:
                self.error = error
        return size

    def read(self, size: int = -1) -> bytes:
        """h5py knows a file object by this name; it reads with `readinto`."""
        return self._raw.read(size)

    def readinto(self, content: memoryview) -> int:
        return self._raw.readinto(content)  # type: ignore[attr-defined]

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def truncate(self, size: int) -> int:
        if self.error is None:
            try:
                return self._raw.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Unbuffered: there is nothing to flush."""

    def sync(self) -> None:
        """Some file systems find out here that they are full."""
        try:
            os.fsync(self._raw.fileno())
        except OSError as error:
            self.error = self.error or error


class Hdf5Writer:
    """The open file, and `check()` to be called after each piece: it ends the work as soon as the disk is full."""

    def __init__(self, path: Path, file: h5py.File, disk: _Disk) -> None:
        self._path, self.file, self._disk = path, file, disk

    def check(self) -> None:
        """Raises Fault when something could not be written."""
        error = self._disk.error
        if error:
            raise Fault(f"{self._path}: cannot be written: {error}; free space and call again") from error


@contextmanager
def publish_hdf5(path: Path) -> Iterator[Hdf5Writer]:
    """An HDF5 file that gets the name `path` when the block ends well and everything is on disk. Raises Fault if not."""
    with publish(path) as scratch, scratch.open("w+b", buffering=0) as raw:
        disk = _Disk(raw)
        with h5py.File(disk, "w") as file:
            writer = Hdf5Writer(path, file, disk)
            yield writer
        disk.sync()
        writer.check()
