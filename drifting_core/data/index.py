"""Where every image of a data set lies, in one small file, and the images' bytes by it.

Nothing is extracted or copied. The index holds class, place and length of each image: byte offsets inside the nested
tars (data/archives.py), or files of a folder (data/folders.py). `ImageReader` reads an image with one call.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drifting_core import config
from drifting_core.artifacts import Archives, Index, SplitIndex, check_file, hashes, publish, records
from drifting_core.artifacts.provenance import code_version
from drifting_core.data import archives, folders
from drifting_core.data.listing import Found, Split, Table
from drifting_core.faults import Fault

log = logging.getLogger(__name__)

FILE = "index.npz"
_FIELDS = ("offset", "length", "label", "name")


def write_tables(path: Path, tables: Mapping[Split, Table]) -> None:
    """Publish the tables of both splits in one npz without pickle, compressed for speed: sorted names repeat themselves."""
    with publish(path) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for split, table in tables.items():
            for field in _FIELDS:
                with archive.open(f"{split}_{field}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, getattr(table, field), allow_pickle=False)


def read_table(path: Path, split: Split) -> Table:
    with np.load(path, allow_pickle=False) as held:
        return Table(**{field: held[f"{split}_{field}"] for field in _FIELDS})


def labels_of(index: Path, split: Split) -> NDArray[np.int64]:
    """Class of each image of a split, in the index's order; the images need not be there. Raises Fault."""
    check_file(index.parent / FILE, Index.read(index).files[FILE])
    return read_table(index.parent / FILE, split).label.astype(np.int64)


def check(data: config.Data, output: Path, configuration: str, packed: Path | None = None) -> Archives:
    """Write `output` once the images' source is there and, for archives, is the published one (MD5). Raises Fault."""
    made = Archives(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"packed": packed}) if packed else {},
        archives=(folders if data.source == "folder" else archives).check(data),
    )
    made.write(output)
    return made


def index(data: config.Data, checked: Path, output: Path, configuration: str) -> Index:
    """Write index.npz beside `output`, then `output`.

    Training rows are sorted by class and name, validation rows by name. Raises Fault when the images are not what
    data.expected says (classes, images, images per class), when an archive is cut, or when a name is repeated.
    """
    source = folders if data.source == "folder" else archives
    source.require_unchanged(data, Archives.read(checked), checked)
    listing = source.listing(data)
    tables = {split: found.table for split, found in listing.splits.items()}
    write_tables(output.parent / FILE, tables)
    images, size = sum(map(len, tables.values())), (output.parent / FILE).stat().st_size
    log.info("%d images; per image: %.1f bytes of index; %s", images, size / images, listing.reads)
    made = Index(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"archives": checked}),
        files=records(output.parent, [FILE]),
        source=data.source,
        wnids=listing.wnids,
        names=listing.names,
        splits={split: _split_index(found) for split, found in listing.splits.items()},
    )
    made.write(output)
    return made


def _split_index(found: Found) -> SplitIndex:
    counts = np.bincount(found.table.label)
    return SplitIndex(
        archive=found.place.name,
        archive_bytes=found.bytes,
        images=len(found.table),
        fewest_per_class=int(counts.min()),
        most_per_class=int(counts.max()),
    )


class ImageReader:
    """Bytes of image i of a split, read by offset from inside its archive, or from its file.

    `labels` int64 (N,), `names` list of N names, `wnids` and `class_names` of the classes. Safe under threads and fork
    (pread keeps no position); pickled by its arguments for spawn.
    """

    def __init__(self, index: Path, split: Split, places: config.Archives) -> None:
        """`index`: index.json. `places`: the configuration's data.archives. Raises Fault if either does not fit."""
        self._arguments = (index, split, places)
        held = Index.read(index)
        check_file(index.parent / FILE, held.files[FILE])
        self._table = read_table(index.parent / FILE, split)
        self.wnids, self.class_names = held.wnids, held.names
        self.labels = self._table.label.astype(np.int64)
        self.names = [name.decode() for name in self._table.name]
        self._in_folder = held.source == "folder"
        # A split that was held out lies in the training folder.
        self.path = Path(getattr(places, split) or places.train)
        self._descriptor = -1
        if not (self.path.is_dir() if self._in_folder else self.path.is_file()):
            raise Fault(f"{self.path} (data.archives.{split}): missing; put it back or set the key to where it is")
        if not self._in_folder:
            self._descriptor = self._open(index, split, held.splits[split].archive_bytes)

    def _open(self, index: Path, split: str, expected: int) -> int:
        size = self.path.stat().st_size
        if size != expected:
            raise Fault(
                f"{self.path} (data.archives.{split}): {size} bytes, it was indexed with {expected}; remove {index} to "
                "index it again"
            )
        return os.open(self.path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> bytes:
        """The file's bytes. Raises Fault when they are not all there any more."""
        length = int(self._table.length[row])
        if self._in_folder:
            content = self._read_file(self.path / self.names[row])
        else:
            content = os.pread(self._descriptor, length, int(self._table.offset[row]))
        if len(content) != length:
            raise Fault(
                f"{self.path}: {self.names[row]}: {len(content)} of {length} bytes; it was changed meanwhile: put it "
                "back, or remove the index to make it again"
            )
        return content

    @staticmethod
    def _read_file(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise Fault(f"{path}: cannot be read any more: {error}; put it back") from error

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()

    def __reduce__(self) -> tuple[type[ImageReader], tuple[Path, Split, config.Archives]]:
        return ImageReader, self._arguments
