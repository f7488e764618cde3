"""What files and folders take on disk. Light."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class Size(NamedTuple):
    """Files, and the bytes on disk that are free when they are gone."""

    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.files:,} file{'' if self.files == 1 else 's'}, {self.bytes / 1e6:,.1f} MB"


def measure(paths: Iterable[Path]) -> Size:
    """What these files and folders take on disk: holes take nothing, nor does a file that has another name elsewhere."""
    links, seen = Counter[tuple[int, int]](), dict[tuple[int, int], os.stat_result]()
    names = {name for path in paths for name in _files(path)}  # a file may be given beside its folder
    for name in names:
        status = name.lstat()
        links[status.st_dev, status.st_ino] += 1
        seen[status.st_dev, status.st_ino] = status
    freed = (status.st_blocks * 512 for key, status in seen.items() if links[key] == status.st_nlink)
    return Size(len(names), sum(freed))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        for folder, folders, names in os.walk(path):
            links = (name for name in folders if Path(folder, name).is_symlink())
            yield from (Path(folder, name) for name in (*names, *links))
    elif path.exists() or path.is_symlink():
        yield path
