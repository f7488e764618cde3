"""Archives: packing, checking, indexing, reading, and every way in which they can be wrong."""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import multiprocessing
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_core import config
from drifting_core.artifacts import Archives, Index
from drifting_core.data import index as images_index
from drifting_core.data import packing, photos, tars
from drifting_core.data.images import decode_rgb
from drifting_core.faults import Fault

HASH = "0" * 64
PER_CLASS, VAL_PER_CLASS = 4, 2


@pytest.fixture(scope="module")
def originals() -> dict[str, Any]:
    return {split: photos.photos(split) for split in ("train", "val")}  # type: ignore[arg-type]


@pytest.fixture
def data(demo_values: dict[str, Any], tmp_path: Path) -> config.Data:
    section = demo_values["data"]
    section["archives"] = {
        "train": f"{tmp_path}/train.tar", "val": f"{tmp_path}/val.tar", "devkit": f"{tmp_path}/devkit.tar.gz",
    }  # fmt: skip
    section["expected"] = {
        "classes": 10, "train_images": 10 * PER_CLASS, "val_images": 10 * VAL_PER_CLASS,
        "train_per_class": [PER_CLASS, PER_CLASS], "val_per_class": [VAL_PER_CLASS, VAL_PER_CLASS],
    }  # fmt: skip
    return config.Data.model_validate(section)


def pack(data: config.Data, tmp_path: Path) -> Path:
    packing.pack(data, tmp_path / "packed.json", HASH)
    return tmp_path / "packed.json"


def indexed(data: config.Data, tmp_path: Path) -> Path:
    images_index.check(data, tmp_path / "archives.json", HASH)
    images_index.index(data, tmp_path / "archives.json", tmp_path / "index.json", HASH)
    return tmp_path / "index.json"


def members_of(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]


# --- packing --------------------------------------------------------------------------------------------------------


def test_packing_twice_gives_the_same_bytes(data: config.Data, tmp_path: Path) -> None:
    names = ("train.tar", "val.tar", "devkit.tar.gz", "packed.json")
    pack(data, tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in names}
    pack(data, tmp_path)
    assert first == {name: (tmp_path / name).read_bytes() for name in names}


def test_the_devkit_has_the_real_structure(data: config.Data, tmp_path: Path) -> None:
    """As torchvision reads it: fields by position, leaves by num_children, and an id order unlike the wnids'."""
    pack(data, tmp_path)
    content = dict(members_of(tmp_path / "devkit.tar.gz"))
    mat = content["ILSVRC2012_devkit_t12/data/meta.mat"]
    synsets = scipy.io.loadmat(io.BytesIO(mat), squeeze_me=True)["synsets"]
    leaves = [row for row in synsets if row[4] == 0]
    assert len(synsets) > len(leaves) == 10
    assert sorted(int(row[0]) for row in leaves) == list(range(1, 11))
    by_id = [str(row[1]) for row in sorted(leaves, key=lambda row: int(row[0]))]
    assert by_id == list(photos.WNIDS) != sorted(by_id)
    assert [str(row[2]) for row in leaves] == list(photos.NAMES)
    assert gzip.decompress((tmp_path / "devkit.tar.gz").read_bytes())


# --- check ----------------------------------------------------------------------------------------------------------


def test_missing_archives_are_all_listed_in_one_message(data: config.Data, tmp_path: Path) -> None:
    pack(data, tmp_path)
    (tmp_path / "train.tar").unlink()
    (tmp_path / "devkit.tar.gz").unlink()
    with pytest.raises(Fault) as caught:
        images_index.check(data, tmp_path / "archives.json", HASH)
    message = str(caught.value)
    for part in ("2 of the 3", "train.tar", "data.archives.train", "147,897,477,120 bytes",
                 "1d675b47d978889d74fa0da5fadfb00e", "data.archives.devkit", "2.5 MB",
                 "fa75699e90414af021442c21a62c3abf", "image-net.org"):  # fmt: skip
        assert part in message
    assert "data.archives.val" not in message
    assert not (tmp_path / "archives.json").exists()


@pytest.mark.parametrize(("md5", "read", "outcome"), [
    ("right", True, "matched"), ("right", False, "skipped"), (None, True, "nothing_to_compare"), ("wrong", False, "skipped"),
])  # fmt: skip
def test_md5_outcomes(data: config.Data, tmp_path: Path, md5: str | None, read: bool, outcome: str) -> None:
    pack(data, tmp_path)
    right = hashlib.md5((tmp_path / "val.tar").read_bytes()).hexdigest()
    value = {"right": right, "wrong": "0" * 32, None: None}[md5]
    changed = data.model_copy(update={"check_md5": read, "md5": config.Checksums(val=value)})
    images_index.check(changed, tmp_path / "archives.json", HASH, tmp_path / "packed.json")
    found = Archives.read(tmp_path / "archives.json").archives["val"]
    assert found.md5_check == outcome
    assert found.md5 == (right if read else None)


def test_a_wrong_md5_names_archive_key_found_and_expected(data: config.Data, tmp_path: Path) -> None:
    pack(data, tmp_path)
    found = hashlib.md5((tmp_path / "val.tar").read_bytes()).hexdigest()
    with pytest.raises(Fault, match=rf"val.tar \(data.archives.val\): MD5 {found}.*data.md5.val says {'1' * 32}"):
        changed = data.model_copy(update={"md5": config.Checksums(val="1" * 32)})
        images_index.check(changed, tmp_path / "archives.json", HASH)


# --- index ----------------------------------------------------------------------------------------------------------


def test_every_image_is_found_with_its_class_and_its_bytes(
    data: config.Data, tmp_path: Path, originals: dict[str, Any]
) -> None:
    """The photo that was packed is the photo that is read, under the rank of its wnid."""
    pack(data, tmp_path)
    index = indexed(data, tmp_path)
    wnids = Index.read(index).wnids
    assert wnids == sorted(photos.WNIDS)
    for split, count in (("train", PER_CLASS), ("val", VAL_PER_CLASS)):
        reader = images_index.ImageReader(index, split, data.archives)  # type: ignore[arg-type]
        assert len(reader) == 10 * count
        assert np.bincount(reader.labels).tolist() == [count] * 10
        for row in range(len(reader)):
            wnid = wnids[reader.labels[row]]
            original = originals[split][photos.WNIDS.index(wnid), :count].astype(int)
            seen = np.asarray(decode_rgb(reader.read(row), reader.names[row])).astype(int)
            assert np.abs(original - seen).mean(axis=(1, 2, 3)).min() < 4  # JPEG of quality 98
            assert split == "val" or reader.names[row].startswith(wnid)


def test_indexing_twice_gives_the_same_bytes(data: config.Data, tmp_path: Path) -> None:
    pack(data, tmp_path)
    names = ("index.json", "index.npz", "archives.json")
    indexed(data, tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in names}
    indexed(data, tmp_path)
    assert first == {name: (tmp_path / name).read_bytes() for name in names}
    with zipfile.ZipFile(tmp_path / "index.npz") as held:
        assert {entry.date_time for entry in held.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_only_pages_with_headers_are_touched(data: config.Data, tmp_path: Path) -> None:
    """One header per member and end mark; a photo of more than a page keeps the pages of its payload to itself."""
    content = [(f"n01503061_{n}.JPEG", bytes(40_000)) for n in range(20)]
    path = tmp_path / "outer.tar"
    path.write_bytes(
        packing.tar_of([("n01503061.tar", packing.tar_of(content)), ("n01639765.tar", packing.tar_of(content))])
    )
    with tars.mapped(path) as tar:
        outer = list(tar.members())
        found = tar.members_of_all(outer)
        assert len(found.name) == 40
        assert tar.headers == 2 + 1 + 2 * (20 + 1)
        assert tar.touched <= tar.headers
        assert tar.touched * tars.PAGE < 0.2 * path.stat().st_size


def without_last_member(content: list[tuple[str, bytes]]) -> bytes:
    """Cut exactly at a member boundary, without an end mark: tarfile reads this without a word."""
    kept = packing.tar_of(content[:-1])
    return kept[: sum(512 + -(-len(payload) // 512) * 512 for _, payload in content[:-1])]


def cut_boundary_outer(train: Path) -> None:
    train.write_bytes(without_last_member(members_of(train)))


def cut_boundary_inner(train: Path) -> None:
    content = members_of(train)
    inner = train.with_name("inner.tar")
    inner.write_bytes(content[3][1])
    content[3] = (content[3][0], without_last_member(members_of(inner)))
    train.write_bytes(packing.tar_of(content))


def cut_within(train: Path) -> None:
    train.write_bytes(train.read_bytes()[:-15_000])


def missing_class(train: Path) -> None:
    content = members_of(train)
    train.write_bytes(packing.tar_of(content[:4] + content[5:]))


def repeated_class(train: Path) -> None:
    content = members_of(train)
    train.write_bytes(packing.tar_of([*content, content[0]]))


def repeated_image(train: Path) -> None:
    content = members_of(train)
    inner = train.with_name("inner.tar")
    inner.write_bytes(content[0][1])
    images = members_of(inner)
    content[0] = (content[0][0], packing.tar_of([*images[:-1], images[0]]))
    train.write_bytes(packing.tar_of(content))


def no_tar(train: Path) -> None:
    train.write_bytes(b"<html>please log in</html>" * 100)


@pytest.mark.parametrize(("damage", "message"), [
    (cut_boundary_outer, r"found 9 class archives, data.expected.classes is 10; missing: n04490091"),
    (cut_boundary_inner, r"found 39 images, data.expected.train_images is 40; .*n02121620 \(3\)"),
    (cut_within, r"the member n04490091.tar should have \d+ bytes .* only \d+ are there"),
    (missing_class, r"found 9 class archives.*missing: n02374451"),
    (repeated_class, r"the names n01503061.tar occur more than once"),
    (repeated_image, r"the names n01503061_1.JPEG occur more than once"),
    (no_tar, r"no tar header at byte 0"),
])  # fmt: skip
def test_a_training_archive_that_is_not_whole(
    data: config.Data, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    pack(data, tmp_path)
    damage(tmp_path / "train.tar")
    with pytest.raises(Fault, match=f"train.tar.*{message}"):
        indexed(data, tmp_path)
    assert not (tmp_path / "index.json").exists()


def test_a_validation_archive_cut_at_a_member_boundary(data: config.Data, tmp_path: Path) -> None:
    pack(data, tmp_path)
    (tmp_path / "val.tar").write_bytes(without_last_member(members_of(tmp_path / "val.tar")))
    with pytest.raises(Fault, match=r"val.tar: found 19 images, data.expected.val_images is 20"):
        indexed(data, tmp_path)


def test_a_validation_image_without_ground_truth(data: config.Data, tmp_path: Path) -> None:
    pack(data, tmp_path)
    content = members_of(tmp_path / "val.tar")
    (tmp_path / "val.tar").write_bytes(packing.tar_of([*content[:-1], ("ILSVRC2012_val_00000099.JPEG", b"")]))
    with pytest.raises(Fault, match="ILSVRC2012_val_00000099.JPEG has no line in the devkit's ground truth"):
        indexed(data, tmp_path)


@pytest.mark.parametrize(("content", "message"), [
    (b"no archive", "no ILSVRC2012 devkit"),
    (gzip.compress(packing.tar_of([("data/readme.txt", b"")])), "holds no data/meta.mat"),
    (gzip.compress(packing.tar_of([("meta.mat", b"no matrix" * 99), ("ILSVRC2012_validation_ground_truth.txt", b"1")])),
     "no ILSVRC2012 devkit"),
])  # fmt: skip
def test_a_devkit_that_is_none(data: config.Data, tmp_path: Path, content: bytes, message: str) -> None:
    pack(data, tmp_path)
    (tmp_path / "devkit.tar.gz").write_bytes(content)
    with pytest.raises(Fault, match=rf"devkit.tar.gz \(data.archives.devkit\): {message}"):
        indexed(data, tmp_path)


def test_an_archive_that_changed_after_its_check(data: config.Data, tmp_path: Path) -> None:
    pack(data, tmp_path)
    indexed(data, tmp_path)
    with (tmp_path / "val.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(Fault, match="changed since it was checked"):
        images_index.index(data, tmp_path / "archives.json", tmp_path / "index.json", HASH)
    with pytest.raises(Fault, match="it was indexed with"):
        images_index.ImageReader(tmp_path / "index.json", "val", data.archives)


# --- tar headers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_agree_with_tarfile(tmp_path: Path, form: int) -> None:
    """Long names, folders, links, empty files: the same members at the same offsets as Python's own reader finds."""
    path = tmp_path / "some.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, length in (("a.JPEG", 5), ("folder/" * 12 + "b" * 60 + ".JPEG", 512), ("empty", 0), ("c", 1025)):
            member = tarfile.TarInfo(name)
            member.size = length
            tar.addfile(member, io.BytesIO(bytes(length)))
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.JPEG"
            tar.addfile(member)
        last = tarfile.TarInfo("zürich.JPEG")
        last.size = 3
        tar.addfile(last, io.BytesIO(b"end"))
    with tarfile.open(path) as tar:
        expected = [tars.Member(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isfile()]
    with tars.mapped(path) as tar:
        assert list(tar.members()) == expected


def inner_tar(form: int, names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for length, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 300 * length
            tar.addfile(member, io.BytesIO(bytes(300 * length)))
    return buffer.getvalue()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
            st.lists(st.sampled_from(["a", "b.JPEG", "c/d", "e" * 99, "f" * 100, "g/" * 60 + "h", "ü"]), max_size=6),
        ),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_walking_all_at_once_finds_what_walking_one_by_one_finds(inner: list[tuple[int, list[str]]]) -> None:
    """Whatever the inner archives hold: empty ones, long names, names that only the careful walk understands."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outer.tar"
        path.write_bytes(packing.tar_of([(f"{n}.tar", inner_tar(form, names)) for n, (form, names) in enumerate(inner)]))
        with tars.mapped(path) as tar:
            outer = list(tar.members())
            one_by_one = [
                (number, member)
                for number, region in enumerate(outer)
                for member in tar.members(region.offset, region.offset + region.length)
            ]
            found = tar.members_of_all(outer)
    rows = zip(found.archive.tolist(), found.name.tolist(), found.offset.tolist(), found.length.tolist(), strict=True)
    at_once = [(number, tars.Member(name.decode(), offset, length)) for number, name, offset, length in rows]
    assert sorted(at_once, key=lambda row: row[1].offset) == one_by_one


def test_a_file_system_that_makes_readers_wait_changes_nothing(
    data: config.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers are then read by many threads; here every file system is taken for such a one."""
    pack(data, tmp_path)
    first = indexed(data, tmp_path).with_name("index.npz").read_bytes()
    monkeypatch.setattr(tars, "_WAITING", 0.0)
    threads = set()
    joined = tars.np.array_split

    def noting(blocks: Any, parts: int) -> Any:
        threads.add(parts)
        return joined(blocks, parts)

    monkeypatch.setattr(tars.np, "array_split", noting)
    assert indexed(data, tmp_path).with_name("index.npz").read_bytes() == first
    assert max(threads) > 1


@pytest.mark.parametrize("name", ["../n01503061_1.JPEG", "/etc/n01503061_1.JPEG", "a/../../n01503061_1.JPEG"])
def test_a_member_that_would_leave_the_folder_is_refused(data: config.Data, tmp_path: Path, name: str) -> None:
    pack(data, tmp_path)
    content = members_of(tmp_path / "train.tar")
    inner = tmp_path / "inner.tar"
    inner.write_bytes(content[0][1])
    images = members_of(inner)
    content[0] = (content[0][0], packing.tar_of([(name, images[0][1]), *images[1:]]))
    (tmp_path / "train.tar").write_bytes(packing.tar_of(content))
    with pytest.raises(Fault, match=r"n01503061.tar: the member .* would leave the folder"):
        indexed(data, tmp_path)


def test_sizes_beyond_eight_gigabytes_are_read(tmp_path: Path) -> None:
    """GNU's binary sizes, as the 138 GB archive could have them; the payload is a hole in a sparse file."""
    member = tarfile.TarInfo("large")
    member.size = 9 << 30
    path = tmp_path / "large.tar"
    with path.open("wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + member.size)
    with tars.mapped(path) as tar:
        assert list(tar.members()) == [tars.Member("large", 512, 9 << 30)]


# --- reading under processes -------------------------------------------------------------------------------------------


def _read_all(reader: images_index.ImageReader) -> list[str]:
    return [hashlib.sha256(reader.read(row)).hexdigest() for row in range(len(reader))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_works_in_another_process(data: config.Data, tmp_path: Path, method: str) -> None:
    pack(data, tmp_path)
    reader = images_index.ImageReader(indexed(data, tmp_path), "val", data.archives)
    if method == "spawn":  # made anew from its arguments, as spawn does, without the seconds of a new interpreter
        assert _read_all(copy.copy(reader)) == _read_all(reader)
    else:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(_read_all, [reader]) == [_read_all(reader)]
