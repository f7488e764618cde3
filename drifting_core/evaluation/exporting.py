"""A sample set as images, for those who ask: an ImageFolder of PNG or JPEG, a tar, ADM's npz, a contact sheet.

Each is one streamed pass over the latents under the evaluation's contract, so that its bytes are those that the
evaluation sees, whatever the number of images. What was begun has a scratch name; called again, it begins anew.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from drifting_core.artifacts import IMAGES, ImageExport, ImageFormat, Index, hashes, publish, records
from drifting_core.artifacts.provenance import code_version
from drifting_core.config import Contract
from drifting_core.evaluation.contract import PRECISION, require_tokenizer
from drifting_core.evaluation.evaluate import open_tokenizer, pixels
from drifting_core.evaluation.grid import grid_picture, grid_samples
from drifting_core.evaluation.sampler import read_samples
from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress
from drifting_core.models.tokenizer import Tokenizer

Bytes = NDArray[np.uint8]

JPEG_QUALITY = 95
_SHEET_ROWS = 20
_MARGIN = 4  # pixels around a label


@dataclass(frozen=True)
class _Pass:
    """The images of a sample set, decoded as the evaluation does, in batches of its compute batch."""

    latents: Tensor
    labels: NDArray[np.int64]
    how: Contract
    tokenizer: Tokenizer
    device: torch.device
    threads: int
    index: Index | None

    @property
    def size(self) -> int:
        """Side of an image in pixels."""
        return int(self.latents.shape[-1]) * self.tokenizer.factor

    @property
    def shown(self) -> list[list[int]]:
        """Samples of the contact sheet, a row per class."""
        return grid_samples(self.labels, most_rows=_SHEET_ROWS)

    def class_name(self, label: int) -> str:
        return self.index.wnids[label] if self.index else f"{label:04d}"  # sorted as numbers are

    def class_words(self, label: int) -> str:
        return self.index.names[label].split(",")[0] if self.index else f"class {label}"

    def batches(self, only: set[int] | None = None) -> Iterator[tuple[int, Bytes]]:
        """(first sample, uint8 (B, 3, H, W)) in order; of batches without any of the samples `only`, nothing."""
        progress = Progress("decoding", len(self.latents), unit="images")
        for first in range(0, len(self.latents), self.how.compute_batch):
            some = self.latents[first : first + self.how.compute_batch]
            if only is None or only & set(range(first, first + len(some))):
                images = pixels(some, self.how.uint8, self.how.compute_batch, self.tokenizer, self.device)
                yield first, images[: len(some)].cpu().numpy()
            progress.advance(len(some))

    def files(self, form: Literal["png", "jpeg"]) -> Iterator[tuple[str, bytes]]:
        """(class/number.suffix, content) of every image, in order; a batch is compressed by several threads."""
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            for first, images in self.batches():
                for i, content in enumerate(pool.map(_compressed, images, repeat(form))):
                    yield f"{self.class_name(self.labels[first + i])}/{first + i:06d}.{form}", content


def export_images(
    output: Path,
    form: ImageFormat,
    how: Contract,
    *,
    samples_path: Path,
    tokenizer_path: Path,
    index_path: Path | None,
    device: torch.device,
    threads: int,
    configuration: str,
) -> None:
    """Write the images of a sample set beside `output` (a folder, or one of IMAGES), then `output`.

    Classes go by their wnid in the index, without one by their number. Raises Fault when samples and tokenizer were not
    made for each other, or when the disk is full.
    """
    samples, latents, labels = read_samples(samples_path)
    tokenizer, tokenizer_record = open_tokenizer(tokenizer_path, device)
    require_tokenizer(samples, tokenizer_record)
    index = Index.read(index_path) if index_path else None
    if index and len(index.wnids) != samples.classes:
        raise Fault(f"{index_path}: has {len(index.wnids)} classes, {samples_path} {samples.classes}; give its own index")
    images = _Pass(latents, labels, how, tokenizer, device, threads, index)
    try:
        _write(output.parent, form, images)
    except OSError as error:
        raise Fault(f"{output}: its images cannot be written: {error}; free space and call again") from error
    sources = {"samples": samples_path, "tokenizer": tokenizer_path, "index": index_path}
    ImageExport(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({role: path for role, path in sources.items() if path}),
        files=records(output.parent, [IMAGES[form]]) if form in IMAGES else {},
        format=form,
        folder=None if form in IMAGES else form,
        images=sum(map(len, images.shown)) if form == "sheet" else len(labels),
        classes=len(images.shown) if form == "sheet" else len(np.unique(labels)),
        step=samples.step,
        alpha=samples.alpha,
        seed=samples.seed,
        uint8=how.uint8,
        compute_batch=how.compute_batch,
        precision=PRECISION,
        tokenizer_sha256=tokenizer_record.weights_sha256,
        jpeg_quality=JPEG_QUALITY if form == "jpeg" else None,
    ).write(output)


def _write(place: Path, form: ImageFormat, images: _Pass) -> None:
    if form == "png" or form == "jpeg":
        _write_folder(place / form, images, form)
        return
    with publish(place / IMAGES[form]) as scratch:
        {"tar": _write_tar, "npz": _write_npz, "sheet": _write_sheet}[form](scratch, images)


def _write_folder(folder: Path, images: _Pass, form: Literal["png", "jpeg"]) -> None:
    """<class>/<sample>.png: under a scratch name until all are there."""
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    for label in np.unique(images.labels):
        (scratch / images.class_name(label)).mkdir(parents=True)
    for name, content in images.files(form):
        (scratch / name).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.replace(folder)


def _write_tar(path: Path, images: _Pass) -> None:
    """The files of the PNG folder, uncompressed; without times and owners, so that the same images are the same bytes."""
    with tarfile.open(path, "w") as archive:
        for name, content in images.files("png"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _write_npz(path: Path, images: _Pass) -> None:
    """ADM's: arr_0 uint8 (N, H, W, 3), arr_1 the labels; as numpy.savez writes it, but a batch at a time."""
    shape = (len(images.labels), images.size, images.size, 3)
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for _, some in images.batches():
                file.write(some.transpose(0, 2, 3, 1).tobytes())
        with archive.open("arr_1.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, images.labels, allow_pickle=False)


def _write_sheet(path: Path, images: _Pass) -> None:
    """A row per class (evenly spaced where there are many), its name and its first samples: unselected, not scaled."""
    wanted = {sample for row in images.shown for sample in row}
    kept = {
        first + i: image for first, some in images.batches(wanted) for i, image in enumerate(some) if first + i in wanted
    }
    grid = grid_picture(kept, images.shown)
    font = ImageFont.load_default(max(10, images.size // 12))
    names = [images.class_words(images.labels[row[0]]) for row in images.shown]
    width = 2 * _MARGIN + round(max(font.getlength(name) for name in names))
    sheet = Image.new("RGB", (width + grid.width, grid.height), "white")
    sheet.paste(grid, (width, 0))
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        draw.text((_MARGIN, (row + 0.5) * images.size), name, "black", font, anchor="lm")
    sheet.save(path, format="PNG")


def _compressed(image: Bytes, form: Literal["png", "jpeg"]) -> bytes:
    """(3, H, W) as the content of a file."""
    held, options = io.BytesIO(), {"quality": JPEG_QUALITY} if form == "jpeg" else {}
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(held, form, **options)
    return held.getvalue()
