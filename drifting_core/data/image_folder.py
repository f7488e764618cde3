"""The images as an ImageFolder, for those who want one: the workflow itself reads them where they lie."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch

from drifting_core import config
from drifting_core.artifacts import ImageFolder, Index, hashes, publish
from drifting_core.artifacts.provenance import code_version
from drifting_core.data.index import ImageReader
from drifting_core.data.listing import require_unique
from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress

META = "meta.bin"


def make_image_folder(index: Path, places: config.Archives, output: Path, configuration: str) -> ImageFolder:
    """Write every image below `imagefolder/<split>/<wnid>/` beside `output`, with torchvision's meta.bin; then `output`.

    A class appears under its name when it is whole, so that a killed job goes on where it was. Raises Fault before
    anything is written when the file system has too little space or too few inodes.
    """
    held, root = Index.read(index), output.parent / "imagefolder"
    readers = {split: ImageReader(index, split, places) for split in held.splits}
    root.mkdir(parents=True, exist_ok=True)
    left = [
        (reader, np.flatnonzero(reader.labels == label).tolist(), root / split / wnid)
        for split, reader in readers.items()
        for label, wnid in enumerate(held.wnids)
        if not (root / split / wnid).is_dir()
    ]
    _require_room(root, held, sum(len(rows) for _, rows, _ in left))
    images = sum(len(reader) for reader in readers.values())
    progress = Progress("image folder", images, images - sum(len(rows) for _, rows, _ in left), unit="images")
    for reader, rows, folder in left:
        _write_class(reader, rows, folder)
        progress.advance(len(rows))
    _write_meta(root / META, held, readers["val"].labels.tolist())
    made = ImageFolder(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"index": index}),
        folder=root.name,
        images={split: len(reader) for split, reader in readers.items()},
        classes=len(held.wnids),
    )
    made.write(output)
    return made


def _require_room(root: Path, held: Index, images: int) -> None:
    """Raises Fault unless so many more images fit."""
    space = os.statvfs(root)
    average = sum(split.archive_bytes for split in held.splits.values()) / sum(s.images for s in held.splits.values())
    # Some file systems count no inodes and say 0.
    if space.f_files and space.f_favail < images:
        raise Fault(
            f"{root}: {images} files are to be made, the file system has {space.f_favail} inodes left; free some, or set "
            "`results` to another disk"
        )
    if space.f_bavail * space.f_frsize < images * average:
        raise Fault(
            f"{root}: {images * average / 1e9:.1f} GB are to be written, the file system has "
            f"{space.f_bavail * space.f_frsize / 1e9:.1f} GB left; free some, or set `results` to another disk"
        )


def _write_class(reader: ImageReader, rows: list[int], folder: Path) -> None:
    names = [Path(reader.names[row]).name for row in rows]
    require_unique(folder, names)
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        for name, row in zip(names, rows, strict=True):
            (scratch / name).write_bytes(reader.read(row))
    except OSError as error:
        raise Fault(f"{folder}: cannot be written: {error}; finished classes are kept: free space and call again") from error
    scratch.replace(folder)


def _write_meta(path: Path, held: Index, val_labels: list[int]) -> None:
    """What torchvision.datasets.ImageNet reads: (wnid -> words, wnid of each validation image), by torch.save."""
    words = {wnid: tuple(name.split(", ")) for wnid, name in zip(held.wnids, held.names, strict=True)}
    with publish(path) as scratch:
        torch.save((words, [held.wnids[label] for label in val_labels]), scratch)
