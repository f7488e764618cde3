"""Where the members of a tar lie: headers are read, payloads are not.

A POSIX tar is a chain of 512-byte headers, each followed by its payload padded to 512 bytes. Only what leads to the next
header is read, so that walking a 138 GB archive costs one small read per member, and an inner tar is walked in place.
(`tarfile` does the same with ten times the work per member.) Formats: ustar, GNU (long names, binary sizes), pax.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from drifting_core.faults import Fault

BLOCK = 512
_EMPTY = bytes(BLOCK)
_FILE_TYPES = b"0\x007"
_LONG_NAME, _PAX, _PAX_GLOBAL = b"L", b"x", b"g"


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file: its name and where its bytes lie in the outermost file."""

    name: str
    offset: int
    length: int


@dataclass(slots=True)
class Tally:
    """What a walk asked of the file system: on a network file system these two numbers are its cost."""

    reads: int = 0
    bytes: int = 0

    def add(self, other: Tally) -> None:
        self.reads += other.reads
        self.bytes += other.bytes


def members(
    descriptor: int, archive: str, start: int = 0, end: int | None = None, tally: Tally | None = None
) -> Iterator[Member]:
    """Regular files of the tar in bytes [start, end) of an open file, in order; `archive` is its name in messages.

    Raises Fault for a header that is none, for a member that reaches beyond `end` (a cut archive), and for a name that
    would leave the folder it was extracted to. An archive that was cut between two members is told from a whole one by
    its count only: the caller compares counts.
    """
    end = os.fstat(descriptor).st_size if end is None else end
    tally = tally or Tally()
    position, long_name, overrides = start, "", dict[str, Any]()
    while position + BLOCK <= end:
        header = os.pread(descriptor, BLOCK, position)
        tally.reads, tally.bytes = tally.reads + 1, tally.bytes + BLOCK
        if header == _EMPTY:
            break
        _check_sum(header, archive, position)
        kind, length = header[156:157], overrides.get("size", _number(header[124:136]))
        payload = position + BLOCK
        name = long_name or overrides.get("path", "") or _name(header)
        if payload + length > end:
            raise Fault(
                f"{archive}: the member {name} should have {length} bytes from byte {payload} on, but only "
                f"{max(0, end - payload)} are there: the archive was cut; copy or download it again"
            )
        if kind in (_LONG_NAME, _PAX):
            text = os.pread(descriptor, length, payload)
            tally.reads, tally.bytes = tally.reads + 1, tally.bytes + length
            if kind == _LONG_NAME:
                long_name = text.rstrip(b"\0").decode()
            else:
                overrides = _pax_records(text)
        elif kind != _PAX_GLOBAL:
            if kind in _FILE_TYPES:
                _require_inside(name, archive)
                yield Member(name, payload, int(length))
            long_name, overrides = "", {}
        position = payload + -(-length // BLOCK) * BLOCK


def _require_inside(name: str, archive: str) -> None:
    if name.startswith("/") or (".." in name and ".." in name.split("/")):
        raise Fault(
            f"{archive}: the member {name!r} lies outside of the archive's folder; this is not the published archive"
        )


def _check_sum(header: bytes, archive: str, position: int) -> None:
    # The low half of Adler-32 is 1 + the sum of the bytes, modulo 65521: a C loop where Python has none. The checksum
    # counts its own eight bytes as spaces.
    found = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * ord(" ")
    if len(header) < BLOCK or (found - _octal(header[148:156])) % 65521:
        raise Fault(f"{archive}: no tar header at byte {position}: not a tar, or damaged; copy or download it again")


def _octal(field: bytes) -> int:
    try:
        return int(field.rstrip(b"\0 ").lstrip() or b"0", 8)
    except ValueError:
        return -1


def _number(field: bytes) -> int:
    """An octal number, or GNU's binary one for sizes of 8 GB and more."""
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0].decode()
    if header[257:263] == b"ustar\0" and header[345]:
        return header[345:500].split(b"\0", 1)[0].decode() + "/" + name
    return name


def _pax_records(text: bytes) -> dict[str, Any]:
    """The two pax records that matter here: path and size. A record is 'LENGTH KEY=VALUE\\n'."""
    found: dict[str, Any] = {}
    while text and text[0]:
        digits, _, _ = text.partition(b" ")
        record, text = text[len(digits) + 1 : int(digits) - 1], text[int(digits) :]
        key, _, value = record.partition(b"=")
        if key == b"path":
            found["path"] = value.decode()
        elif key == b"size":
            found["size"] = int(value)
    return found
