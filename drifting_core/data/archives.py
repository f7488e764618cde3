"""ImageNet's three archives: whether they are the right ones, where each image lies in them, and its bytes.

Nothing is extracted. The index holds (offset, length) of every JPEG in the nested training tar and the flat validation
tar; `ImageReader` reads an image with one pread. Classes are the wnids in sorted order; a validation image's class comes
from the devkit, whose ILSVRC2012_ID is not that order.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import scipy.io
from numpy.typing import NDArray

from drifting_core import config
from drifting_core.artifacts import ArchiveCheck, Archives, Index, SplitIndex, check_file, hashes, publish, records
from drifting_core.data.tars import Member, members
from drifting_core.faults import Fault
from drifting_core.jobs import Progress
from drifting_core.provenance import code_version

log = logging.getLogger(__name__)

Role = Literal["train", "val", "devkit"]
Split = Literal["train", "val"]
ROLES: tuple[Role, ...] = ("train", "val", "devkit")
_MEGABYTE = 1_000_000

# What image-net.org offers to account holders: file, size, MD5.
_PUBLISHED: dict[Role, tuple[str, str, str]] = {
    "train": ("ILSVRC2012_img_train.tar", "138 GB", "1d675b47d978889d74fa0da5fadfb00e"),
    "val": ("ILSVRC2012_img_val.tar", "6.3 GB", "29b22e2961454d5413ddabcf34fc5622"),
    "devkit": ("ILSVRC2012_devkit_t12.tar.gz", "2.5 MB", "fa75699e90414af021442c21a62c3abf"),
}


def place(data: config.Data, role: Role) -> Path:
    return Path(getattr(data.archives, role))


# --- check ----------------------------------------------------------------------------------------------------------


def check(data: config.Data, output: Path, configuration: str, packed: Path | None = None) -> Archives:
    """See that the archives are there and, unless data.check_md5 is false, that their MD5 are the published ones.

    Raises one Fault that lists every missing archive, or one that names the archive with another MD5.
    """
    _require_all(data)
    made = Archives(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"packed": packed}) if packed else {},
        archives={role: _check_one(data, role) for role in ROLES},
    )
    made.write(output)
    return made


def _require_all(data: config.Data) -> None:
    missing = [role for role in ROLES if not place(data, role).is_file()]
    if not missing:
        return
    lines = [f"{len(missing)} of the 3 archives missing:"]
    for role in missing:
        name, size, md5 = _PUBLISHED[role]
        lines.append(f"  {place(data, role)} (data.archives.{role}); for ImageNet: {name}, {size}, MD5 {md5}")
    lines.append(
        "put or link them there, or set these keys to where they are; ImageNet's are at https://image-net.org/download "
        "(ILSVRC2012, for account holders)"
    )
    raise Fault("\n".join(lines))


def _check_one(data: config.Data, role: Role) -> ArchiveCheck:
    path, expected = place(data, role), getattr(data.md5, role)
    size = path.stat().st_size
    if not data.check_md5:
        return ArchiveCheck(name=path.name, bytes=size, md5=None, md5_check="skipped")
    found = _md5(path)
    if expected is not None and found != expected:
        raise Fault(
            f"{path} (data.archives.{role}): MD5 {found} ({size} bytes), data.md5.{role} says {expected}; it is another "
            "file or was damaged: copy or download it again"
        )
    return ArchiveCheck(name=path.name, bytes=size, md5=found, md5_check="matched" if expected else "nothing_to_compare")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    progress = Progress(f"MD5 of {path.name}", max(1, path.stat().st_size // _MEGABYTE), unit="MB")
    with path.open("rb") as file:
        while block := file.read(16 * _MEGABYTE):
            digest.update(block)
            progress.advance(len(block) // _MEGABYTE)
    return digest.hexdigest()


# --- index ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Devkit:
    """wnids: the classes, sorted. names: their words. truth: class index of each validation image, the first at 0."""

    wnids: list[str]
    names: list[str]
    truth: NDArray[np.int16]


@dataclass(frozen=True)
class Table:
    """One row per image: byte offset int64, length int32, class int16 and member name (bytes)."""

    offset: NDArray[np.int64]
    length: NDArray[np.int32]
    label: NDArray[np.int16]
    name: NDArray[np.bytes_]

    @classmethod
    def of(cls, found: list[Member], labels: list[int]) -> Table:
        return cls(
            offset=np.array([member.offset for member in found], np.int64),
            length=np.array([member.length for member in found], np.int32),
            label=np.array(labels, np.int16),
            name=np.array([member.name.encode() for member in found], np.bytes_),
        )

    def write(self, path: Path) -> None:
        with publish(path) as scratch, scratch.open("wb") as file:
            np.savez_compressed(file, offset=self.offset, length=self.length, label=self.label, name=self.name)

    @classmethod
    def read(cls, path: Path) -> Table:
        with np.load(path, allow_pickle=False) as held:
            return cls(**{field: held[field] for field in ("offset", "length", "label", "name")})


def index(data: config.Data, checked: Path, output: Path, configuration: str, threads: int = 1) -> Index:
    """Write index_train.npz and index_val.npz beside `output`, then `output`.

    Training rows are sorted by class and name, validation rows by name. Raises Fault when an archive is not what
    data.expected says (classes, images, images per class), is cut, or repeats a name.
    """
    sizes = Archives.read(checked).archives
    for role in ROLES:
        if place(data, role).stat().st_size != sizes[role].bytes:
            raise Fault(f"{place(data, role)}: changed since it was checked; remove {checked} to check it again")
    devkit = read_devkit(place(data, "devkit"), data.expected.classes)
    tables: dict[Split, Table] = {
        "train": _train_table(place(data, "train"), devkit, data.expected, threads),
        "val": _val_table(place(data, "val"), devkit, data.expected),
    }
    for split, table in tables.items():
        table.write(output.parent / f"index_{split}.npz")
    made = Index(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"archives": checked}),
        files=records(output.parent, [f"index_{split}.npz" for split in tables]),
        wnids=devkit.wnids,
        names=devkit.names,
        splits={split: _split_index(place(data, split), table) for split, table in tables.items()},
    )
    made.write(output)
    return made


def _split_index(archive: Path, table: Table) -> SplitIndex:
    counts = np.bincount(table.label)
    return SplitIndex(
        archive=archive.name,
        archive_bytes=archive.stat().st_size,
        images=len(table.label),
        fewest_per_class=int(counts.min()),
        most_per_class=int(counts.max()),
    )


def read_devkit(path: Path, classes: int) -> Devkit:
    """Classes and validation labels from the devkit. Raises Fault when it is not one or has other classes than expected."""
    try:
        with tarfile.open(path) as tar:
            held = {PurePosixPath(m.name).name: m for m in tar.getmembers() if m.isfile()}
            mat = _content(tar, held, "meta.mat", path)
            lines = _content(tar, held, "ILSVRC2012_validation_ground_truth.txt", path).split()
        synsets = scipy.io.loadmat(io.BytesIO(mat), squeeze_me=True)["synsets"]
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError) as error:
        raise Fault(f"{path} (data.archives.devkit): no ILSVRC2012 devkit: {error}; copy or download it again") from error
    # Synsets with children are nodes above the classes.
    leaves = [row for row in synsets if int(row["num_children"]) == 0]
    if len(leaves) != classes:
        raise Fault(f"{path}: meta.mat has {len(leaves)} classes, data.expected.classes is {classes}")
    leaves.sort(key=lambda row: str(row["WNID"]))
    rank = {int(row["ILSVRC2012_ID"]): index for index, row in enumerate(leaves)}
    unknown = sorted({int(line) for line in lines} - rank.keys())
    if unknown:
        raise Fault(f"{path}: the validation ground truth names ILSVRC2012_ID {unknown[0]}, which meta.mat has no class for")
    truth = np.array([rank[int(line)] for line in lines], np.int16)
    return Devkit([str(row["WNID"]) for row in leaves], [str(row["words"]) for row in leaves], truth)


def _content(tar: tarfile.TarFile, held: dict[str, tarfile.TarInfo], name: str, path: Path) -> bytes:
    file = tar.extractfile(held[name]) if name in held else None
    if file is None:
        raise Fault(f"{path} (data.archives.devkit): holds no data/{name}; expected ILSVRC2012_devkit_t12.tar.gz")
    return file.read()


def _train_table(path: Path, devkit: Devkit, expected: config.Expected, threads: int) -> Table:
    with _opened(path) as descriptor:
        outer = list(members(descriptor, str(path)))
        _require_classes(path, outer, devkit)
        outer.sort(key=lambda member: _base(member.name))
        progress = Progress(f"index of {path.name}", len(outer), unit="classes")

        def walk(member: Member) -> list[Member]:
            label = f"{path}, {member.name}"
            images = [
                Member(_base(m.name), m.offset, m.length)
                for m in members(descriptor, label, member.offset, member.offset + member.length)
            ]
            return sorted(images, key=lambda image: image.name)

        with ThreadPoolExecutor(threads) as pool:
            per_class = []
            for images in pool.map(walk, outer):
                per_class.append(images)
                progress.advance()
    counts = {wnid: len(images) for wnid, images in zip(devkit.wnids, per_class, strict=True)}
    _require_counts(path, counts, expected.train_images, expected.train_per_class, "train")
    found = [image for images in per_class for image in images]
    _require_unique(path, found)
    return Table.of(found, [label for label, images in enumerate(per_class) for _ in images])


def _val_table(path: Path, devkit: Devkit, expected: config.Expected) -> Table:
    with _opened(path) as descriptor:
        found = [Member(_base(m.name), m.offset, m.length) for m in members(descriptor, str(path))]
    if len(found) != expected.val_images:
        counts = {"all classes": len(found)}
        _require_counts(path, counts, expected.val_images, (1, expected.val_images), "val")
    _require_unique(path, found)
    found.sort(key=lambda member: member.name)
    labels = [_val_label(member.name, path, devkit) for member in found]
    tally = Counter(labels)
    per_class = {wnid: tally[label] for label, wnid in enumerate(devkit.wnids)}
    _require_counts(path, per_class, expected.val_images, expected.val_per_class, "val")
    return Table.of(found, labels)


def _val_label(name: str, path: Path, devkit: Devkit) -> int:
    matched = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
    if not matched or not 1 <= int(matched[1]) <= len(devkit.truth):
        raise Fault(
            f"{path}: {name} has no line in the devkit's ground truth; expected ILSVRC2012_val_00000001.JPEG to "
            f"ILSVRC2012_val_{len(devkit.truth):08d}.JPEG"
        )
    return int(devkit.truth[int(matched[1]) - 1])


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A read-only file descriptor that is closed at the end of the block."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _require_classes(path: Path, outer: list[Member], devkit: Devkit) -> None:
    _require_unique(path, outer)
    found = {_base(member.name).removesuffix(".tar") for member in outer}
    missing, other = sorted(set(devkit.wnids) - found), sorted(found - set(devkit.wnids))
    if missing or other:
        raise Fault(
            f"{path}: found {len(found)} class archives, data.expected.classes is {len(devkit.wnids)}; "
            f"missing: {_few(missing)}; not classes of the devkit: {_few(other)}; copy or download it again"
        )


def _require_counts(path: Path, counts: dict[str, int], images: int, per_class: tuple[int, int], split: Split) -> None:
    total, (fewest, most) = sum(counts.values()), per_class
    odd = [f"{wnid} ({count})" for wnid, count in counts.items() if not fewest <= count <= most]
    if total == images and not odd:
        return
    raise Fault(
        f"{path}: found {total} images, data.expected.{split}_images is {images}; classes outside "
        f"data.expected.{split}_per_class ({fewest} to {most}): {_few(odd)}; the archive was cut or is another one: "
        "copy or download it again"
    )


def _require_unique(path: Path, found: Iterable[Member]) -> None:
    repeated = [name for name, count in Counter(_base(member.name) for member in found).items() if count > 1]
    if repeated:
        raise Fault(f"{path}: the member names {_few(repeated)} occur more than once; expected each once")


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


# --- reading --------------------------------------------------------------------------------------------------------


class ImageReader:
    """Bytes of image i of a split, read by offset from inside its archive.

    `labels` int64 (N,), `names` list of N member names, `wnids` and `class_names` of the classes. Safe under threads
    and fork (pread keeps no position); pickled by its arguments for spawn.
    """

    def __init__(self, index: Path, split: Split, archives: config.Archives) -> None:
        """`index`: index.json. `archives`: the configuration's data.archives. Raises Fault if either does not fit."""
        self._arguments = (index, split, archives)
        held = Index.read(index)
        file = f"index_{split}.npz"
        check_file(index.parent / file, held.files[file])
        self._table = Table.read(index.parent / file)
        self.wnids, self.class_names = held.wnids, held.names
        self.labels = self._table.label.astype(np.int64)
        self.names = [name.decode() for name in self._table.name]
        self.path = Path(getattr(archives, split))
        if not self.path.is_file():
            raise Fault(f"{self.path} (data.archives.{split}): missing; put it back or set the key to where it is")
        size = self.path.stat().st_size
        if size != held.splits[split].archive_bytes:
            raise Fault(
                f"{self.path} (data.archives.{split}): {size} bytes, it was indexed with "
                f"{held.splits[split].archive_bytes}; remove {index} to index it again"
            )
        self._descriptor = os.open(self.path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> bytes:
        """The file's bytes. Raises Fault when the archive ends before them."""
        length = int(self._table.length[row])
        content = os.pread(self._descriptor, length, int(self._table.offset[row]))
        if len(content) != length:
            raise Fault(f"{self.path}: {self.names[row]}: {len(content)} of {length} bytes; the archive was cut meanwhile")
        return content

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()

    def __reduce__(self) -> tuple[type[ImageReader], tuple[Path, Split, config.Archives]]:
        return ImageReader, self._arguments
