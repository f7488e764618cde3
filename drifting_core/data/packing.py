"""Small data sets as archives in the shape of ILSVRC2012's: from here on nothing knows where they came from.

The embedded photos become JPEGs; CIFAR-10's images stay as they are, in PPM files. Bytes depend on the images and on
Pillow's JPEG encoder only: every time stamp is 0.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from drifting_core import config
from drifting_core.artifacts import FileRecord, PackedImages, hashes, publish
from drifting_core.artifacts.provenance import code_version
from drifting_core.data import cifar
from drifting_core.data.archives import check_one
from drifting_core.data.listing import Split
from drifting_core.data.photos import NAMES, PER_CLASS, SOURCE, WNIDS, photos
from drifting_core.faults import Fault

JPEG_QUALITY = 98  # with 4:4:4 chroma: at 32 pixels the usual 4:2:0 would halve what colour there is

# WordNet synsets above the classes. The devkit lists such nodes beside the classes; readers must skip them.
_ABOVE = {
    "n00001740": ("entity", ("n00015388", "n04524313")),
    "n00015388": ("animal, animate being, beast, brute, creature, fauna", ("bird", "cat", "deer", "dog", "frog", "horse")),
    "n04524313": ("vehicle", ("airplane", "automobile", "ship", "truck")),
}


def pack(data: config.Data, output: Path, configuration: str) -> PackedImages:
    """Write the training, validation and devkit archives where `data.archives` says, then `output`, which lists them.

    Each class gets its first images, as many as `data.expected` names. Raises Fault when there are not as many, when the
    images cannot be read, or when the disk is full.
    """
    places = {role: Path(getattr(data.archives, role)) for role in ("train", "val", "devkit")}
    counts: dict[Split, int] = {"train": max(data.expected.train_per_class), "val": max(data.expected.val_per_class)}
    inputs, images, encode = _source(data)
    for split, count in counts.items():
        available = images[split].shape[1]
        if count > available:
            raise Fault(f"data.expected.{split}_per_class: {count}, {data.pack} has {available} images per class; lower it")
    content = {
        "train": _train_tar(images["train"][:, : counts["train"]], encode),
        "val": _val_tar(images["val"][:, : counts["val"]], encode),
        "devkit": _devkit_tar_gz(counts["val"]),
    }
    for role, path in places.items():
        try:
            with publish(path) as scratch:
                scratch.write_bytes(content.pop(role))
        except OSError as error:
            raise Fault(
                f"data.archives.{role}: {path} cannot be written: {error}; free space or set the key to another place"
            ) from error
    made = PackedImages(
        configuration=configuration,
        code=code_version(),
        inputs=inputs,
        files={os.path.relpath(path, output.parent): FileRecord.of(path) for path in places.values()},
        source=cifar.SOURCE if data.pack == "cifar10" else SOURCE,
        train_images=len(NAMES) * counts["train"],
        val_images=len(NAMES) * counts["val"],
    )
    made.write(output)
    return made


_Encode = Callable[[NDArray[np.uint8]], bytes]


def _source(data: config.Data) -> tuple[dict[str, str], dict[Split, NDArray[np.uint8]], _Encode]:
    """Hash of what is read, the images of each split (10, N, H, W, 3), and how an image becomes a file."""
    splits: tuple[Split, ...] = ("train", "val")
    if data.pack != "cifar10":
        return {}, {split: photos(split) for split in splits}, jpeg
    archive = Path(str(data.archives.packed_from))
    if not archive.is_file():
        raise Fault(
            f"{archive} (data.archives.packed_from): missing; put cifar-10-binary.tar.gz there (CIFAR-10, 170 MB), MD5 "
            f"{data.md5.packed_from}, from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    check_one(archive, "packed_from", data)
    return hashes({"packed_from": archive}), {split: cifar.images_of(archive, split) for split in splits}, ppm


def _train_tar(images: NDArray[np.uint8], encode: _Encode) -> bytes:
    """images (10, N, H, W, 3) -> tar of one `<wnid>.tar` per class, each of `<wnid>_<n>.JPEG`, in the wnids' order."""
    classes = []
    for index in sorted(range(len(WNIDS)), key=WNIDS.__getitem__):
        wnid = WNIDS[index]
        inner = [(f"{wnid}_{n}.JPEG", encode(image)) for n, image in enumerate(images[index], start=1)]
        classes.append((f"{wnid}.tar", tar_of(inner)))
    return tar_of(classes)


def _val_tar(images: NDArray[np.uint8], encode: _Encode) -> bytes:
    """images (10, N, H, W, 3) -> flat tar; classes take turns, so that the ground truth file is needed."""
    in_turn = images.swapaxes(0, 1).reshape(-1, *images.shape[2:])
    return tar_of([(f"ILSVRC2012_val_{n:08d}.JPEG", encode(image)) for n, image in enumerate(in_turn, start=1)])


def _devkit_tar_gz(val_per_class: int) -> bytes:
    # ILSVRC2012_ID follows NAMES, which is not the order of the wnids; the truth follows _val_tar's order.
    truth = "".join(f"{1 + n % len(NAMES)}\n" for n in range(len(NAMES) * val_per_class))
    files = [
        ("ILSVRC2012_devkit_t12/data/meta.mat", synsets_mat()),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode()),
    ]
    return gzip.compress(tar_of(files), mtime=0)


# ILSVRC2012_ID, wnid, words, number of children, their ids, height, training images
_Synset = tuple[int, str, str, int, list[int], int, int]


def synsets_mat() -> bytes:
    """meta.mat: a struct array of synsets, the leaves (num_children 0) first, as in the ILSVRC2012 devkit."""
    leaves = {name: (number, wnid) for number, (name, wnid) in enumerate(zip(NAMES, WNIDS, strict=True), start=1)}
    numbers = {wnid: number for number, wnid in leaves.values()}
    numbers |= {wnid: len(numbers) + number for number, wnid in enumerate(_ABOVE, start=1)}
    rows: list[_Synset] = [(number, wnid, name, 0, [], 0, PER_CLASS["train"]) for name, (number, wnid) in leaves.items()]
    for wnid, (words, below) in _ABOVE.items():
        children = [numbers[leaves[child][1] if child in leaves else child] for child in below]
        height = 2 if wnid == "n00001740" else 1
        rows.append((numbers[wnid], wnid, words, len(children), children, height, 0))
    return _mat_file(rows)


def _mat_file(rows: list[_Synset]) -> bytes:
    fields = (
        "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images",
    )  # fmt: skip
    table = np.empty((len(rows), 1), dtype=[(field, object) for field in fields])
    for place, (number, wnid, words, count, children, height, images) in enumerate(rows):
        children_row = np.array([children], dtype=np.float64).reshape(1, -1)
        table[place, 0] = (number, wnid, words, words, count, children_row, height, images)
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": table})
    content = buffer.getvalue()
    # The first 116 bytes are free text, in which scipy writes the time of day.
    return b"MATLAB 5.0 MAT-file, made by drifting_core".ljust(116) + content[116:]


def jpeg(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def ppm(image: NDArray[np.uint8]) -> bytes:
    """The pixels as they are, with a header; decoders go by content, not by the name .JPEG."""
    height, width, _ = image.shape
    return f"P6 {width} {height} 255\n".encode() + image.tobytes()


def tar_of(files: list[tuple[str, bytes]]) -> bytes:
    """A GNU tar of (name, content) pairs; owner and times are zero, so that equal files give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
