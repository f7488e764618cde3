"""What a long job has finished so far: an append-only file of checked records.

A job that is killed finds on its next call every record that was whole, and computes the rest. A record that was cut or
damaged ends the journal: it and what follows are made again. Nothing is synced to disk on the way, because a record
that a crash of the machine lost or tore fails its checksum. The journal is private to its job: no artifact names it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from drifting_core.faults import Fault

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<4sIQ32s")  # mark, bytes of the description, bytes of the payload, SHA-256 of both
_MARK = b"rec1"


class Record(NamedTuple):
    """One finished piece of work: a JSON description, and numbers."""

    description: dict[str, Any]
    payload: bytes

    def array(self, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        return np.frombuffer(self.payload, dtype).reshape(shape)


class Journal:
    """The records of one job; a context manager. `len()` is how many are whole.

    `work` says what the records belong to. Records of other work (another configuration, another input) are dropped.
    The caller holds the lease of the folder.
    """

    def __init__(self, path: Path, work: dict[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("r+b", buffering=0)  # a failed write leaves nothing to be written again
        self._count, self._end = 0, 0
        first = _read(self._file)
        if first is None or first.description != work:
            if first is not None:
                log.warning("%s: belongs to other work; begun anew", path)
            self._truncate(0)
            self._write(Record(work, b""))
        self._begin = self._end = self._file.tell()
        while _read(self._file) is not None:
            self._count, self._end = self._count + 1, self._file.tell()
        left = os.fstat(self._file.fileno()).st_size - self._end
        if left:
            log.warning("%s: the last %d bytes are no whole record; that piece is made again", path, left)
            self._truncate(self._end)

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def append(self, description: dict[str, Any], array: NDArray[Any]) -> None:
        """Add a finished piece. Raises Fault when it cannot be written whole; what was there before stays."""
        self._file.seek(self._end)
        try:
            self._write(Record(description, array.tobytes()))
        except OSError as error:
            self._truncate(self._end)
            raise Fault(
                f"{self.path}: {array.nbytes} bytes cannot be written: {error}; {self._count} finished pieces are "
                "kept: free space and call again"
            ) from error
        self._count, self._end = self._count + 1, self._file.tell()

    def records(self) -> Iterator[Record]:
        """All records, in the order in which they were added. Several readings may go on at a time."""
        position = self._begin
        for _ in range(self._count):
            self._file.seek(position)
            record = _read(self._file)
            position = self._file.tell()
            if record is None:
                raise Fault(f"{self.path}: was changed while it was read; call again")
            yield record

    def remove(self) -> None:
        """The work is done and published."""
        self._file.close()
        self.path.unlink()

    def _write(self, record: Record) -> None:
        text = json.dumps(record.description, sort_keys=True).encode()
        header = _HEADER.pack(_MARK, len(text), len(record.payload), _digest(text, record.payload))
        for part in (header + text, record.payload):
            view = memoryview(part)
            while view:
                view = view[self._file.write(view) :]

    def _truncate(self, size: int) -> None:
        self._file.truncate(size)
        self._file.seek(size)


def read_records(path: Path, work: dict[str, Any]) -> Iterator[Record]:
    """The whole records of a journal that another process may be adding to; none when it is of other work."""
    with path.open("rb") as file:
        first = _read(file)
        if first is None or first.description != work:
            return
        while (record := _read(file)) is not None:
            yield record


def _read(file: BinaryIO) -> Record | None:
    """The record at the file's position, or None when there is no whole one."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    mark, described, held, digest = _HEADER.unpack(header)
    if mark != _MARK or file.tell() + described + held > os.fstat(file.fileno()).st_size:
        return None
    text, payload = file.read(described), file.read(held)
    return Record(json.loads(text), payload) if _digest(text, payload) == digest else None


def _digest(text: bytes, payload: bytes) -> bytes:
    digest = hashlib.sha256(text)
    digest.update(payload)
    return digest.digest()
