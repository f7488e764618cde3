"""ImageNet's three archives in small: its 1,000 wnids, a tar of tars, its validation classes, JPEGs of a few pixels.

python -m tests.imagenet_shaped FOLDER    # about 100,000 training and 10,000 validation images of 32 px
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image

DATA = Path(__file__).with_name("data")
FACTOR = 4  # pixels per latent pixel of the tokenizer
_PICTURES = 10  # of a class


def wnids() -> list[str]:
    return (DATA / "imagenet_wnids.txt").read_text().split()


def validation_classes() -> NDArray[np.int64]:
    """Class index of each of ImageNet's 50,000 validation images."""
    return np.frombuffer(lzma.decompress((DATA / "imagenet_validation.u2.xz").read_bytes()), "<u2").astype(np.int64)


@dataclass(frozen=True)
class Shaped:
    """Archives in a folder: images per class, and the class of each validation image, the first at 0."""

    folder: Path
    per_class: list[int]
    validation: NDArray[np.int64]

    @property
    def section(self) -> dict[str, object]:
        """data.archives and data.expected of a configuration."""
        val = np.bincount(self.validation)
        return {
            "archives": {
                "train": f"{self.folder}/ILSVRC2012_img_train.tar.1",
                "val": f"{self.folder}/ILSVRC2012_img_val.tar",
                "devkit": f"{self.folder}/ILSVRC2012_devkit_t12.tar.gz",
            },
            "expected": {
                "classes": len(self.per_class),
                "train_images": sum(self.per_class),
                "val_images": len(self.validation),
                "train_per_class": [min(self.per_class), max(self.per_class)],
                "val_per_class": [int(val.min()), int(val.max())],
            },
        }


def write_archives(
    folder: Path, per_class: int = 100, val_per_class: int = 10, classes: int = 1000, size: int = 32
) -> Shaped:
    """Classes differ in size, as ImageNet's do; validation images come in its order, the first ones of each class.

    A class has a few different pictures, each many times under its own name: compressing all would take half a minute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = wnids()[:classes]
    counts = [per_class + label % 11 - 4 for label in range(classes)]
    truth = validation_classes()
    truth = truth[truth < classes]
    rank = np.empty(len(truth), np.int64)
    for label in range(classes):
        rank[truth == label] = np.arange((truth == label).sum())
    made = Shaped(folder, counts, truth[rank < val_per_class])
    rng = np.random.default_rng(0)
    pictures = [[jpeg(rng, label, size) for _ in range(_PICTURES)] for label in range(classes)]
    with tarfile.open(made.section["archives"]["train"], "w", format=tarfile.GNU_FORMAT) as outer:  # type: ignore[index]
        for label, wnid in enumerate(names):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as inner:
                for number in rng.permutation(counts[label]):
                    _add(inner, f"{wnid}_{10 * number + 7}.JPEG", pictures[label][number % _PICTURES])
            _add(outer, f"{wnid}.tar", buffer.getvalue())
    with tarfile.open(made.section["archives"]["val"], "w", format=tarfile.GNU_FORMAT) as flat:  # type: ignore[index]
        for number, label in enumerate(made.validation, start=1):
            _add(flat, f"ILSVRC2012_val_{number:08d}.JPEG", pictures[label][number % _PICTURES])
    _write_devkit(Path(made.section["archives"]["devkit"]), names, made.validation)  # type: ignore[index]
    return made


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def jpeg(rng: np.random.Generator, label: int, size: int) -> bytes:
    """A blurred pattern, tinted by its class, as JPEG."""
    coarse = rng.integers(0, 256, (4, 4, 3)) // 2 + np.array([label % 10, label // 10 % 10, label // 100]) * 12
    buffer = io.BytesIO()
    Image.fromarray(coarse.astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def devkit_ids(classes: int) -> NDArray[np.int64]:
    """ILSVRC2012_ID of each class index: 1 ... classes, in another order than the wnids'."""
    return np.random.default_rng(1).permutation(classes) + 1


def _write_devkit(path: Path, names: list[str], validation: NDArray[np.int64]) -> None:
    ids = devkit_ids(len(names))
    rows = [(int(ids[label]), wnid, f"class {label}, {wnid}", 0) for label, wnid in enumerate(names)]
    rows.sort()
    rows += [(len(names) + 1 + node, f"n9999999{node}", f"node {node}", 3) for node in range(5)]  # above the classes
    table = np.empty((len(rows), 1), [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")])
    for place, row in enumerate(rows):
        table[place, 0] = row
    mat = io.BytesIO()
    scipy.io.savemat(mat, {"synsets": table})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        _add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", mat.getvalue())
        truth = "".join(f"{ids[label]}\n" for label in validation)
        _add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    path.write_bytes(gzip.compress(buffer.getvalue(), mtime=0))


def write_tokenizer(folder: Path, size: int = 32) -> Path:
    """A small AutoencoderKL with random weights, scaled so that latents of these images have standard deviation 1."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(8, 8, 8),
        layers_per_block=1, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    rng = np.random.default_rng(2)
    pictures = [np.asarray(Image.open(io.BytesIO(jpeg(rng, label, size)))) for label in range(0, 1000, 10)]
    images = torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2)).float() / 127.5 - 1
    with torch.no_grad():
        mean = model.encode(images).latent_dist.mean
        # The posterior's mean is centred and narrowed, as training would have it.
        model.quant_conv.bias[:4] -= mean.mean(dim=(0, 2, 3))
        model.quant_conv.bias[4:] -= 6.0
        std = model.encode(images).latent_dist.mean.std()
    model.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "scaling_factor": 1 / float(std)}, indent=1))
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_tokenizer(target / "vae")
    print(json.dumps(write_archives(target).section, indent=1))
