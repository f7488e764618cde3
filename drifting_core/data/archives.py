"""ImageNet's three archives: whether they are the right ones, and where each image lies in them.

Nothing is extracted. Listed are (offset, length) of every JPEG in the nested training tar and the flat validation tar.
Classes are the wnids in sorted order; a validation image's class comes from the devkit, whose ILSVRC2012_ID is not that
order.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import scipy.io
from numpy.typing import NDArray

from drifting_core import config
from drifting_core.artifacts import ArchiveCheck, Archives
from drifting_core.data.listing import Found, Listing, Split, Table, counts_of, few, require_counts, require_unique
from drifting_core.data.tars import BLOCK, PAGE, MappedTar, Member, mapped
from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress
from drifting_core.sources import published

log = logging.getLogger(__name__)

Role = Literal["train", "val", "devkit"]
ROLES: tuple[Role, ...] = ("train", "val", "devkit")
_MEGABYTE = 1_000_000
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def place(data: config.Data, role: Role) -> Path:
    return Path(getattr(data.archives, role))


# --- check ----------------------------------------------------------------------------------------------------------


def check(data: config.Data) -> dict[Role, ArchiveCheck]:
    """See that the archives are there and, unless data.check_md5 is false, that their MD5 are the published ones.

    Raises one Fault that lists every missing archive, or one that names the archive with another MD5.
    """
    _require_all(data)
    return {role: check_one(place(data, role), role, data) for role in ROLES}


def require_unchanged(data: config.Data, checked: Archives, path: Path) -> None:
    """Raises Fault when an archive has another size than when it was checked (`path`: that check's file)."""
    for role in ROLES:
        if place(data, role).stat().st_size != checked.archives[role].bytes:
            raise Fault(f"{place(data, role)}: changed since it was checked; remove {path} to check it again")


def _require_all(data: config.Data) -> None:
    missing = [role for role in ROLES if not place(data, role).is_file()]
    if not missing:
        return
    lines = [f"{len(missing)} of the 3 archives missing:"]
    for role in missing:
        file = published.IMAGENET[role]
        lines.append(f"  {place(data, role)} (data.archives.{role}); for ImageNet: {file.name}, {file.size}, {file.hash}")
    source = published.IMAGENET["train"].source
    listed = "\n".join(lines)
    raise Fault(f"{listed}\nput or link them there, or set these keys to where they are; ImageNet's are at {source}")


def check_one(path: Path, role: str, data: config.Data) -> ArchiveCheck:
    """Size and, unless data.check_md5 is false, MD5 of one archive. Raises Fault when data.md5 says another one."""
    size, expected = path.stat().st_size, getattr(data.md5, role)
    if not data.check_md5:
        log.info("%s: MD5 not checked (data.check_md5 is false)", path)
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


# --- list -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Devkit:
    """wnids: the classes, sorted. names: their words. truth: class index of each validation image, the first at 0."""

    wnids: list[str]
    names: list[str]
    truth: NDArray[np.int16]


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
        raise Fault(
            f"{path}: meta.mat has {len(leaves)} classes, data.expected.classes is {classes}; set it to that, or give "
            "the other devkit"
        )
    leaves.sort(key=lambda row: str(row["WNID"]))
    rank = {int(row["ILSVRC2012_ID"]): index for index, row in enumerate(leaves)}
    unknown = sorted({int(line) for line in lines} - rank.keys())
    if unknown:
        raise Fault(
            f"{path}: the validation ground truth names ILSVRC2012_ID {unknown[0]}, which meta.mat has no class for; "
            "copy or download the devkit again"
        )
    truth = np.array([rank[int(line)] for line in lines], np.int16)
    return Devkit([str(row["WNID"]) for row in leaves], [str(row["words"]) for row in leaves], truth)


def _content(tar: tarfile.TarFile, held: dict[str, tarfile.TarInfo], name: str, path: Path) -> bytes:
    file = tar.extractfile(held[name]) if name in held else None
    if file is None:
        raise Fault(f"{path} (data.archives.devkit): holds no data/{name}; give ILSVRC2012_devkit_t12.tar.gz")
    return file.read()


def listing(data: config.Data) -> Listing:
    """Every image of the three archives: headers are read, payloads are not. Raises Fault as `index` does."""
    devkit = read_devkit(place(data, "devkit"), data.expected.classes)
    with mapped(place(data, "train")) as train, mapped(place(data, "val")) as val:
        splits: dict[Split, Found] = {
            "train": _train_images(train, devkit, data.expected),
            "val": _val_images(val, devkit, data.expected),
        }
        images = sum(len(found.table) for found in splits.values())
        headers, pages = train.headers + val.headers, train.touched + val.touched
    reads = f"{headers / images:.2f} headers of {BLOCK} bytes read, in {pages / images:.2f} pages of {PAGE}"
    return Listing(devkit.wnids, devkit.names, splits, reads)


def _train_images(tar: MappedTar, devkit: Devkit, expected: config.Expected) -> Found:
    outer = sorted(tar.members(), key=lambda member: _base(member.name))
    _require_classes(tar.path, outer, devkit)
    found = tar.members_of_all(outer)
    names = _base_names(found.name)
    require_counts(tar.path, counts_of(devkit.wnids, found.archive), expected, "train")
    table = Table.sorted(tar.path, name=names, offset=found.offset, length=found.length, label=found.archive, by_class=True)
    return Found(tar.path, tar.size, table)


def _val_images(tar: MappedTar, devkit: Devkit, expected: config.Expected) -> Found:
    found = list(tar.members())
    if len(found) != expected.val_images:
        everything = expected.model_copy(update={"val_per_class": (1, expected.val_images)})
        require_counts(tar.path, {"all classes": len(found)}, everything, "val")
    names = [_base(member.name) for member in found]
    label = np.array([_val_label(name, tar.path, devkit) for name in names], np.int64)
    require_counts(tar.path, counts_of(devkit.wnids, label), expected, "val")
    table = Table.sorted(
        tar.path,
        name=np.array([name.encode() for name in names], np.bytes_),
        offset=np.array([member.offset for member in found], np.int64),
        length=np.array([member.length for member in found], np.int64),
        label=label,
        by_class=False,
    )
    return Found(tar.path, tar.size, table)


def _val_label(name: str, path: Path, devkit: Devkit) -> int:
    matched = _VAL_NAME.fullmatch(name)
    if not matched or not 1 <= int(matched[1]) <= len(devkit.truth):
        raise Fault(
            f"{path}: {name} has no line in the devkit's ground truth; expected ILSVRC2012_val_00000001.JPEG to "
            f"ILSVRC2012_val_{len(devkit.truth):08d}.JPEG: copy or download both again"
        )
    return int(devkit.truth[int(matched[1]) - 1])


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _base_names(names: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    if not (np.ascontiguousarray(names).view(np.uint8) == ord("/")).any():
        return names
    return np.array([name.rsplit(b"/", 1)[-1] for name in names.tolist()], np.bytes_)


def _require_classes(path: Path, outer: list[Member], devkit: Devkit) -> None:
    require_unique(path, (_base(member.name) for member in outer))
    found = {_base(member.name).removesuffix(".tar") for member in outer}
    missing, other = sorted(set(devkit.wnids) - found), sorted(found - set(devkit.wnids))
    if missing or other:
        raise Fault(
            f"{path}: found {len(found)} class archives, data.expected.classes is {len(devkit.wnids)}; "
            f"missing: {few(missing)}; not classes of the devkit: {few(other)}; copy or download it again"
        )
