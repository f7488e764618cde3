"""Images in folders: listed, held out, read, written as an ImageFolder; CIFAR-10's archive; removal of what is verified."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from drifting_core import config
from drifting_core.artifacts import Archives, ImageFolder, Index
from drifting_core.data import cifar, folders, image_folder, packing, photos
from drifting_core.data import index as images_index
from drifting_core.data.images import decode_rgb
from drifting_core.faults import Fault

HASH = "0" * 64


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path, "png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of 4 and 6 images, one of them deeper; other files and hidden ones beside them."""
    for shade in range(4):
        picture(tmp_path / f"images/dog/{shade}.PNG", shade)
    for shade in range(5):
        picture(tmp_path / f"images/cat/{shade}.jpg", 100 + shade)
    picture(tmp_path / "images/cat/more/deep.jpeg", 200)
    (tmp_path / "images/cat/notes.txt").write_text("no image")
    picture(tmp_path / "images/cat/.hidden.jpg", 0)
    picture(tmp_path / "images/.cache/x.jpg", 0)
    (tmp_path / "images/empty").mkdir()
    return tmp_path / "images"


def section(root: Path, **changed: Any) -> config.Data:
    values = {
        "name": "own", "source": "folder", "archives": {"train": str(root)}, "hold_out": 2, "image_size": 8,
        "expected": {"classes": 2, "train_images": 5, "val_images": 5, "train_per_class": [2, 3], "val_per_class": [2, 3]},
        **changed,
    }  # fmt: skip
    return config.Data.model_validate(values)


def indexed(data: config.Data, folder: Path) -> Path:
    images_index.check(data, folder / "archives.json", HASH)
    images_index.index(data, folder / "archives.json", folder / "index.json", HASH)
    return folder / "index.json"


def test_every_second_image_of_a_class_is_held_out(root: Path, tmp_path: Path) -> None:
    data = section(root)
    index = indexed(data, tmp_path)
    assert Archives.read(tmp_path / "archives.json").archives["train"].md5_check == "nothing_to_compare"
    assert Index.read(index).wnids == ["cat", "dog"]
    train, val = (images_index.ImageReader(index, split, data.archives) for split in ("train", "val"))
    assert train.names == ["cat/0.jpg", "cat/2.jpg", "cat/4.jpg", "dog/0.PNG", "dog/2.PNG"]
    assert val.names == ["cat/1.jpg", "cat/3.jpg", "cat/more/deep.jpeg", "dog/1.PNG", "dog/3.PNG"]
    assert val.labels.tolist() == [0, 0, 0, 1, 1]
    assert np.asarray(decode_rgb(val.read(2), val.names[2]))[0, 0, 0] == 200


def test_a_validation_folder_of_its_own(root: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / f"val/{name}/a.png", 7)
    expected = {"classes": 2, "train_images": 10, "val_images": 2, "train_per_class": [4, 6], "val_per_class": [1, 1]}
    data = section(root, archives={"train": str(root), "val": str(tmp_path / "val")}, hold_out=0, expected=expected)
    reader = images_index.ImageReader(indexed(data, tmp_path), "val", data.archives)
    assert reader.names == ["cat/a.png", "dog/a.png"]
    (tmp_path / "val/cat").rename(tmp_path / "val/cats")
    with pytest.raises(Fault, match="its sub-folders are cats, dog, those of .* are cat, dog"):
        indexed(data, tmp_path)


def test_other_counts_than_expected_are_said_before_anything_else(root: Path, tmp_path: Path) -> None:
    (root / "dog/3.PNG").unlink()
    with pytest.raises(Fault, match=r"found 4 images, data.expected.val_images is 5; .*dog \(1\)"):
        indexed(section(root), tmp_path)
    picture(root / "bird/1.png", 1)
    with pytest.raises(Fault, match=r"found 3 sub-folders with images \(bird, cat, dog\), data.expected.classes is 2"):
        indexed(section(root), tmp_path)
    with pytest.raises(Fault, match=r"nowhere \(data.archives.train\): no such folder"):
        indexed(section(tmp_path / "nowhere"), tmp_path)


def test_the_description_is_the_block_to_paste(root: Path) -> None:
    data = section(root)
    described = yaml.safe_load(folders.describe(data))["expected"]
    assert config.Expected.model_validate(described) == data.expected


def test_an_image_that_changed_or_went_is_noticed_when_it_is_read(root: Path, tmp_path: Path) -> None:
    data = section(root)
    reader = images_index.ImageReader(indexed(data, tmp_path), "train", data.archives)
    picture(root / "cat/0.jpg", 3)
    with (root / "cat/0.jpg").open("ab") as file:
        file.write(b"more")
    with pytest.raises(Fault, match="cat/0.jpg: .* it was changed meanwhile"):
        reader.read(0)
    (root / "cat/2.jpg").unlink()
    with pytest.raises(Fault, match="cat/2.jpg: cannot be read any more"):
        reader.read(1)


@pytest.mark.parametrize(("changed", "message"), [
    ({"hold_out": 0}, "needs either archives.val or hold_out"),
    ({"hold_out": 1}, "needs either archives.val or hold_out"),
    ({"pack": "photos"}, "makes archives"),
    ({"source": "archives"}, "needs archives.val, archives.devkit"),
])  # fmt: skip
def test_sources_that_cannot_be_are_refused(root: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        section(root, **changed)


# --- an ImageFolder -------------------------------------------------------------------------------------------------


@pytest.fixture
def archived(demo_values: dict[str, Any], tmp_path: Path) -> tuple[config.Data, Path]:
    """Archives of 3 and 2 photos of each class, and their index."""
    values = demo_values["data"]
    values["archives"] = {role: f"{tmp_path}/{role}.tar" for role in ("train", "val", "devkit")}
    values["expected"] = {
        "classes": 10, "train_images": 30, "val_images": 20, "train_per_class": [3, 3], "val_per_class": [2, 2],
    }  # fmt: skip
    data = config.Data.model_validate(values)
    packing.pack(data, tmp_path / "packed.json", HASH)
    return data, indexed(data, tmp_path)


def test_an_image_folder_holds_every_image_and_torchvisions_meta(archived: tuple[config.Data, Path], tmp_path: Path) -> None:
    data, index = archived
    made = image_folder.make_image_folder(index, data.archives, tmp_path / "imagefolder.done", HASH)
    assert made.images == {"train": 30, "val": 20}
    assert ImageFolder.read(tmp_path / "imagefolder.done") == made
    wnids = sorted(photos.WNIDS)
    for split in ("train", "val"):
        reader = images_index.ImageReader(index, split, data.archives)
        assert sorted(path.name for path in (tmp_path / "imagefolder" / split).iterdir()) == wnids
        for row, name in enumerate(reader.names):
            path = tmp_path / "imagefolder" / split / wnids[reader.labels[row]] / name
            assert path.read_bytes() == reader.read(row)
    words, val = torch.load(tmp_path / "imagefolder/meta.bin", weights_only=True)
    assert words["n02691156"] == ("airplane",)
    assert val == [wnids[label] for label in images_index.ImageReader(index, "val", data.archives).labels]
    # What was made is a source in its own right: the same images under the same classes.
    places = {"train": f"{tmp_path}/imagefolder/train", "val": f"{tmp_path}/imagefolder/val"}
    again = data.model_copy(update={"source": "folder", "archives": config.Archives(**places)})
    (tmp_path / "again").mkdir()
    other = images_index.ImageReader(indexed(again, tmp_path / "again"), "train", again.archives)
    reader = images_index.ImageReader(index, "train", data.archives)
    assert [name.split("/")[1] for name in other.names] == reader.names
    assert [other.read(row) for row in range(30)] == [reader.read(row) for row in range(30)]


def test_a_killed_export_goes_on_with_the_next_class(
    archived: tuple[config.Data, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, index = archived
    read, count = images_index.ImageReader.read, 0

    def dying(self: images_index.ImageReader, row: int) -> bytes:
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return read(self, row)

    monkeypatch.setattr(images_index.ImageReader, "read", dying)
    with pytest.raises(KeyboardInterrupt):
        image_folder.make_image_folder(index, data.archives, tmp_path / "imagefolder.done", HASH)
    finished = [path.name for path in (tmp_path / "imagefolder/train").iterdir() if not path.name.startswith(".")]
    assert len(finished) == 2, "a class is there when it is whole"
    image_folder.make_image_folder(index, data.archives, tmp_path / "imagefolder.done", HASH)
    assert count == 8 + 50 - 6
    assert len(list((tmp_path / "imagefolder").rglob("*.JPEG"))) == 50


def test_too_few_inodes_are_said_before_anything_is_written(
    archived: tuple[config.Data, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, index = archived
    real = image_folder.os.statvfs(tmp_path)
    few = image_folder.os.statvfs_result([*real[:5], 1000, 49, 49, *real[8:]])
    monkeypatch.setattr(image_folder.os, "statvfs", lambda path: few)
    with pytest.raises(Fault, match="50 files are to be made, the file system has 49 inodes left"):
        image_folder.make_image_folder(index, data.archives, tmp_path / "imagefolder.done", HASH)
    assert not list((tmp_path / "imagefolder").iterdir())


def test_images_of_one_class_that_share_a_name_are_not_written_over_each_other(root: Path, tmp_path: Path) -> None:
    picture(root / "cat/more/0.jpg", 9)
    (root / "cat/4.jpg").unlink()
    data = section(root)
    index = indexed(data, tmp_path)
    with pytest.raises(Fault, match=r"imagefolder/train/cat: the names 0.jpg occur more than once"):
        image_folder.make_image_folder(index, data.archives, tmp_path / "imagefolder.done", HASH)


# --- CIFAR-10 -------------------------------------------------------------------------------------------------------


def binary_archive(path: Path, per_file: int = 20) -> dict[str, Any]:
    """cifar-10-binary.tar.gz with few images; returns records by split."""
    rng, held = np.random.default_rng(0), {}
    with tarfile.open(path, "w:gz") as tar:
        for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
            records = rng.integers(0, 256, (per_file, 3073), dtype=np.uint8)
            records[:, 0] = np.arange(per_file) % 10
            held[name] = records
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = records.nbytes
            tar.addfile(member, io.BytesIO(records.tobytes()))
    return held


def test_cifar_becomes_archives_without_losing_a_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = binary_archive(tmp_path / "cifar.tar.gz")
    monkeypatch.setattr(cifar, "PER_CLASS", {"train": 10, "val": 2})
    values = yaml.safe_load((Path(__file__).parents[3] / "config/cifar10.yaml").read_text())["data"]
    values["archives"] = {role: f"{tmp_path}/{role}.tar" for role in ("train", "val", "devkit")}
    values["archives"]["packed_from"] = f"{tmp_path}/cifar.tar.gz"
    values["expected"] = {
        "classes": 10, "train_images": 100, "val_images": 20, "train_per_class": [10, 10], "val_per_class": [2, 2],
    }  # fmt: skip
    with pytest.raises(Fault, match=r"cifar.tar.gz \(data.archives.packed_from\): MD5 .* data.md5.packed_from says c32a"):
        packing.pack(config.Data.model_validate(values), tmp_path / "packed.json", HASH)
    values["md5"] = {}
    data = config.Data.model_validate(values)
    packing.pack(data, tmp_path / "packed.json", HASH)
    index = indexed(data, tmp_path)
    for split, files in (("train", [f"data_batch_{n}.bin" for n in range(1, 6)]), ("val", ["test_batch.bin"])):
        reader = images_index.ImageReader(index, split, data.archives)
        seen = {
            (photos.WNIDS.index(reader.wnids[label]), np.asarray(decode_rgb(reader.read(row), "x")).tobytes())
            for row, label in enumerate(reader.labels)
        }
        wanted = np.concatenate([records[name] for name in files])
        assert seen == {(int(r[0]), r[1:].reshape(3, 32, 32).transpose(1, 2, 0).tobytes()) for r in wanted}


def test_an_archive_that_is_not_cifar_is_refused(tmp_path: Path) -> None:
    binary_archive(tmp_path / "few.tar.gz")
    with pytest.raises(Fault, match=r"few.tar.gz: train has \[10, 10.* images per label, expected 5000 of each of 10"):
        cifar.images_of(tmp_path / "few.tar.gz", "train")
    (tmp_path / "other.tar.gz").write_bytes(b"nothing")
    with pytest.raises(Fault, match=re.escape("other.tar.gz: not CIFAR-10's binary archive")):
        cifar.images_of(tmp_path / "other.tar.gz", "val")
