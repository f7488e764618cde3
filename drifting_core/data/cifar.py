"""CIFAR-10 from its binary archive (cifar-10-binary.tar.gz of Krizhevsky 2009).

A record is a label byte and 3,072 bytes: the red, green and blue plane of a 32 x 32 image. Five files of 10,000 records
are for training, one is for testing.
"""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from drifting_core.data.listing import Split
from drifting_core.faults import Fault

SOURCE = "CIFAR-10 (Krizhevsky 2009), binary version"
PER_CLASS = {"train": 5000, "val": 1000}
_CLASSES, _SIZE = 10, 32
_RECORD = 1 + 3 * _SIZE * _SIZE
_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
    "val": ("test_batch.bin",),
}


def images_of(archive: Path, split: Split) -> NDArray[np.uint8]:
    """Images by class, in the archive's order: uint8 (10, images per class, 32, 32, 3). Raises Fault."""
    try:
        with tarfile.open(archive) as tar:
            held = {PurePosixPath(member.name).name: member for member in tar.getmembers() if member.isfile()}
            content = b"".join(_content(tar, held, name, archive) for name in _FILES[split])
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Fault(f"{archive}: not CIFAR-10's binary archive: {error}; copy or download it again") from error
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0]
    counts = np.bincount(labels, minlength=_CLASSES)
    if counts.tolist() != [PER_CLASS[split]] * _CLASSES:
        raise Fault(
            f"{archive}: {split} has {counts.tolist()} images per label, expected {PER_CLASS[split]} of each of 10; "
            "copy or download it again"
        )
    planes = records[:, 1:].reshape(-1, 3, _SIZE, _SIZE)[np.argsort(labels, kind="stable")]
    return planes.transpose(0, 2, 3, 1).reshape(_CLASSES, PER_CLASS[split], _SIZE, _SIZE, 3)


def _content(tar: tarfile.TarFile, held: dict[str, tarfile.TarInfo], name: str, archive: Path) -> bytes:
    file = tar.extractfile(held[name]) if name in held else None
    content = file.read() if file else b""
    if not content or len(content) % _RECORD:
        raise Fault(
            f"{archive}: {name} has {len(content)} bytes, expected a multiple of {_RECORD}; give cifar-10-binary.tar.gz"
        )
    return content
