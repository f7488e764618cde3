"""Images in folders, a sub-folder per class (torchvision's ImageFolder). Classes are the sub-folders, sorted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from drifting_core import config
from drifting_core.artifacts import ArchiveCheck, Archives
from drifting_core.data.listing import Found, Listing, Split, Table, few, require_counts
from drifting_core.data.tars import Member
from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's IMG_EXTENSIONS


def check(data: config.Data) -> dict[str, ArchiveCheck]:
    """The folders as the record of a check: no MD5 exists for them. Raises Fault when one is missing."""
    return {split: _check_one(Path(place), split) for split, place in _places(data).items()}


def _places(data: config.Data) -> dict[str, str]:
    return {"train": data.archives.train} | ({"val": data.archives.val} if data.archives.val else {})


def _check_one(place: Path, split: str) -> ArchiveCheck:
    if not place.is_dir():
        raise Fault(
            f"{place} (data.archives.{split}): no such folder; set the key to a folder with a sub-folder of images per class"
        )
    return ArchiveCheck(name=place.name, bytes=None, md5=None, md5_check="nothing_to_compare")


def require_unchanged(data: config.Data, checked: Archives, path: Path) -> None:
    """A folder is read as it is; what changes after the index is noticed image by image."""


def listing(data: config.Data) -> Listing:
    """Every image of the folders. Raises Fault for other classes or counts than data.expected says."""
    root = Path(data.archives.train)
    wnids, training = _images(root)
    if len(wnids) != data.expected.classes:
        raise Fault(
            f"{root}: found {len(wnids)} sub-folders with images ({few(wnids)}), data.expected.classes is "
            f"{data.expected.classes}; set it to what is there"
        )
    if data.archives.val:
        validation_root = Path(data.archives.val)
        names, validation = _images(validation_root)
        if names != wnids:
            raise Fault(
                f"{validation_root}: its sub-folders are {few(names)}, those of {root} are {few(wnids)}; give both the same"
            )
    else:
        validation_root = root
        training, validation = _held_out(training, data.hold_out)
    splits: dict[Split, Found] = {
        "train": _found(root, wnids, training, data.expected, "train"),
        "val": _found(validation_root, wnids, validation, data.expected, "val"),
    }
    return Listing(wnids, wnids, splits, "1 file looked at")


def _images(root: Path) -> tuple[list[str], list[list[Member]]]:
    """Names of the classes, sorted, and the images of each, sorted by their path below `root`."""
    names, classes = [], []
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    progress = Progress(f"index of {root.name}", len(folders), unit="folders", part=True)
    for folder in folders:
        images = sorted(_below(folder, root), key=lambda image: image.name)
        if images:
            names.append(folder.name)
            classes.append(images)
        progress.advance()
    return names, classes


def _below(folder: Path, root: Path) -> Iterator[Member]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = Path(parent) / name
                yield Member(str(path.relative_to(root)), 0, path.stat().st_size)


def _held_out(classes: list[list[Member]], every: int) -> tuple[list[list[Member]], list[list[Member]]]:
    """Training and validation images: of each class every n-th is held out."""
    training = [[image for place, image in enumerate(images) if (place + 1) % every] for images in classes]
    return training, [images[every - 1 :: every] for images in classes]


def _found(root: Path, wnids: list[str], classes: list[list[Member]], expected: config.Expected, split: Split) -> Found:
    require_counts(root, {wnid: len(images) for wnid, images in zip(wnids, classes, strict=True)}, expected, split)
    images = [image for of_class in classes for image in of_class]
    length = np.array([image.length for image in images], np.int64)
    table = Table.sorted(
        root,
        name=np.array([image.name.encode() for image in images], np.bytes_),
        offset=np.zeros(len(images), np.int64),
        length=length,
        label=np.repeat(np.arange(len(classes)), [len(of_class) for of_class in classes]),
        by_class=True,
    )
    return Found(root, int(length.sum()), table)


def describe(data: config.Data) -> str:
    """The `expected` block of a configuration, as the folders are, to be pasted. Raises Fault without images."""
    check(data)
    _, training = _images(Path(data.archives.train))
    if data.archives.val:
        _, validation = _images(Path(data.archives.val))
    else:
        training, validation = _held_out(training, data.hold_out)
    counts = {"train": [len(images) for images in training], "val": [len(images) for images in validation]}
    if not counts["train"] or not counts["val"]:
        raise Fault(
            f"{data.archives.train}: no sub-folder with images ({', '.join(SUFFIXES)}); name a folder with one per "
            "class in data.archives.train"
        )
    lines = ["  expected:", f"    classes: {len(training)}"]
    lines += [f"    {split}_images: {sum(of)}" for split, of in counts.items()]
    lines += [f"    {split}_per_class: [{min(of)}, {max(of)}]" for split, of in counts.items()]
    return "\n".join(lines)
