"""Where the members of a tar lie: headers are read, payloads are not.

A POSIX tar is a chain of 512-byte headers, each followed by its payload padded to 512 bytes. An archive is mapped, and
only the pages that hold a header are touched: one of 4 kB for each image of ImageNet's 138 GB. The inner archives of a
nested one are walked all at once, a header of each per round, so that a network file system is asked for many pages at a
time and numpy parses them together. (`tarfile` walks one chain, with ten times the work per member.)

Formats: ustar, GNU (long names, binary sizes), pax.
"""

from __future__ import annotations

import mmap
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress

BLOCK = 512
PAGE = 4096
_MEGABYTE = 10**6
_EMPTY = bytes(BLOCK)
_FILE_TYPES = b"0\x007"
_LONG_NAME, _PAX, _PAX_GLOBAL = b"L", b"x", b"g"
_READERS = 16  # pages asked for at a time where the file system makes a reader wait
_WAITING = 20e-6  # seconds per header that tell such a file system from memory


class Member(NamedTuple):
    """One regular file: its name and where its bytes lie in the outermost file."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class Members:
    """Regular files of many archives: which archive (index), name (bytes), offset and length in the outermost file."""

    archive: NDArray[np.int64]
    name: NDArray[np.bytes_]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]


class MappedTar:
    """A mapped archive, and what was asked of it: `headers` read and the distinct pages `touched` that hold them."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self._content, self.size = path, content, len(content)
        self.headers, self._waits = 0, False
        self._pages = np.zeros(-(-self.size // PAGE), np.bool_)
        flat = np.frombuffer(content, np.uint8)
        # One record begins at every block; numpy copies whole records, and lets other threads run while it waits.
        self._records: NDArray[np.void] = flat[: self.size // BLOCK * BLOCK].view(np.dtype((np.void, BLOCK)))

    @property
    def touched(self) -> int:
        return int(self._pages.sum())

    def close(self) -> None:
        del self._records
        self._content.close()

    # --- one archive --------------------------------------------------------------------------------------------------

    def members(self, start: int = 0, end: int | None = None, label: str = "") -> Iterator[Member]:
        """Regular files of the tar in bytes [start, end), in order; `label` names it in messages.

        Raises Fault for a header that is none, for a member that reaches beyond `end` (a cut archive), and for a name that
        would leave the folder it was extracted to. An archive that was cut between two members is told from a whole one
        by its count only: the caller compares counts.
        """
        label, end = label or str(self.path), self.size if end is None else end
        position, long_name, overrides = start, "", dict[str, Any]()
        content, pages = self._content, self._pages
        while position + BLOCK <= end:
            header = content[position : position + BLOCK]
            self.headers += 1
            pages[position // PAGE] = True
            if header == _EMPTY:
                return
            _check_sum(header, label, position)
            kind, length = header[156:157], overrides.get("size", _number(header[124:136]))
            payload = position + BLOCK
            name = long_name or overrides.get("path", "") or _name(header)
            if not 0 <= length <= end - payload:
                raise _cut(label, name, length, payload, end)
            if kind in (_LONG_NAME, _PAX):
                text = content[payload : payload + length]
                if kind == _LONG_NAME:
                    long_name = text.rstrip(b"\0").decode()
                else:
                    overrides = _pax_records(text)
            elif kind != _PAX_GLOBAL:
                if kind in _FILE_TYPES:
                    _require_inside(name, label)
                    yield Member(name, payload, int(length))
                long_name, overrides = "", {}
            position = payload + -(-length // BLOCK) * BLOCK

    # --- many at once ---------------------------------------------------------------------------------------------------

    def members_of_all(self, regions: Sequence[Member]) -> Members:
        """Regular files of the inner archives in these regions, in the order of the rounds. Raises Fault as `members`."""
        start = np.array([region.offset for region in regions], np.int64)
        end = start + np.array([region.length for region in regions], np.int64)
        alive, position = np.arange(len(regions)), start.copy()
        found: list[Members] = []
        unusual = np.zeros(len(regions), np.bool_)  # walked one by one: long names, folders, links, binary sizes
        walked, progress = (
            0,
            Progress(f"index of {self.path.name}", max(1, int((end - start).sum()) // _MEGABYTE), unit="MB"),
        )
        with ThreadPoolExecutor(_READERS) as pool:
            while len(alive):
                inside = position + BLOCK <= end[alive]
                alive, position = alive[inside], position[inside]
                if not len(alive):
                    break
                headers = self._read(position, pool)
                parsed = _parse(headers)
                unusual[alive[~parsed.plain & ~parsed.empty]] = True
                go_on = parsed.plain & ~parsed.empty
                alive, payload = alive[go_on], position[go_on] + BLOCK
                length, name = parsed.length[go_on], parsed.name[go_on]
                beyond = length > end[alive] - payload
                unusual[alive[beyond]] = True  # cut: its fault is said by the careful walk
                found.append(Members(alive, name, payload, length))
                position = payload + -(-length // BLOCK) * BLOCK
                alive, position = alive[~beyond], position[~beyond]
                before, walked = walked, walked + int((length[~beyond] + BLOCK).sum())
                progress.advance(walked // _MEGABYTE - before // _MEGABYTE)
        progress.advance(progress.total - walked // _MEGABYTE)
        found = [_without(part, unusual) for part in found]
        found += [self._one_by_one(number, regions[number]) for number in np.flatnonzero(unusual).tolist()]
        return _joined(found)

    def _read(self, position: NDArray[np.int64], pool: ThreadPoolExecutor) -> NDArray[np.uint8]:
        """The headers (N, 512) at these positions (multiples of 512, as in every archive)."""
        self.headers += len(position)
        self._pages[position // PAGE] = True
        blocks = position // BLOCK
        if self._waits:
            parts = pool.map(self._records.take, np.array_split(blocks, min(_READERS, len(blocks))))
            return np.concatenate([part.view(np.uint8).reshape(-1, BLOCK) for part in parts])
        began = time.perf_counter()
        headers = self._records.take(blocks).view(np.uint8).reshape(-1, BLOCK)
        self._waits = time.perf_counter() - began > _WAITING * len(blocks)
        return headers

    def _one_by_one(self, number: int, region: Member) -> Members:
        label = f"{self.path}, {region.name}"
        own = list(self.members(region.offset, region.offset + region.length, label))
        return Members(
            np.full(len(own), number),
            np.array([member.name.encode() for member in own], np.bytes_),
            np.array([member.offset for member in own], np.int64),
            np.array([member.length for member in own], np.int64),
        )


@contextmanager
def mapped(path: Path) -> Iterator[MappedTar]:
    """The archive, mapped for the time of the block. Raises Fault when it is empty."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise Fault(f"{path}: no tar header at byte 0: the file is empty; copy or download it again")
        content = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        content.madvise(mmap.MADV_RANDOM)  # or reading ahead would read all of it
        tar = MappedTar(path, content)
        try:
            yield tar
        finally:
            tar.close()


# --- headers of many archives -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parsed:
    """Of N headers: which are end marks, which describe a plain file, and those files' lengths and names."""

    empty: NDArray[np.bool_]
    plain: NDArray[np.bool_]
    length: NDArray[np.int64]
    name: NDArray[np.bytes_]


def _parse(headers: NDArray[np.uint8]) -> _Parsed:
    total = headers.sum(axis=1, dtype=np.uint32).astype(np.int64)
    # The checksum counts its own eight bytes as spaces.
    expected = total - headers[:, 148:156].sum(axis=1, dtype=np.uint32) + 8 * ord(" ")
    names = np.ascontiguousarray(headers[:, :100])
    length, regular = _octals(headers[:, 124:135])
    checksum, readable = _octals(headers[:, 148:154])
    kind = headers[:, 156]
    plain = regular & readable & (checksum == expected) & (headers[:, 345] == 0)
    plain &= (kind == _FILE_TYPES[0]) | (kind == _FILE_TYPES[1]) | (kind == _FILE_TYPES[2])
    if (names == ord("/")).any():
        plain &= ~(names == ord("/")).any(axis=1)
    return _Parsed(total == 0, plain, length, names.view("S100").reshape(-1))


def _octals(digits: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Values of fields (N, digits) of octal digits, and which fields are nothing else."""
    values = digits.astype(np.int64) - ord("0")
    return values @ (8 ** np.arange(digits.shape[1])[::-1]), np.all((values >= 0) & (values < 8), axis=1)


def _without(part: Members, unusual: NDArray[np.bool_]) -> Members:
    keep = ~unusual[part.archive]
    return part if keep.all() else Members(*(field[keep] for field in vars(part).values()))


def _joined(parts: list[Members]) -> Members:
    if not parts:
        return Members(*(np.empty(0, kind) for kind in ("i8", "S1", "i8", "i8")))
    return Members(*(np.concatenate(fields) for fields in zip(*(vars(part).values() for part in parts), strict=True)))


# --- one header ---------------------------------------------------------------------------------------------------------


def _require_inside(name: str, archive: str) -> None:
    if name.startswith("/") or (".." in name and ".." in name.split("/")):
        raise Fault(
            f"{archive}: the member {name!r} would leave the folder of the archive; it is not the published one: "
            "download that"
        )


def _cut(archive: str, name: str, length: int, payload: int, end: int) -> Fault:
    return Fault(
        f"{archive}: the member {name} should have {length} bytes from byte {payload} on, but only "
        f"{max(0, end - payload)} are there: the archive was cut; copy or download it again"
    )


def _check_sum(header: bytes, archive: str, position: int) -> None:
    # The low half of Adler-32 is 1 + the sum of the bytes, modulo 65521: a C loop where Python has none.
    found = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * ord(" ")
    if (found - _octal(header[148:156])) % 65521:
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
