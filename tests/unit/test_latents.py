"""The latent store: encoding, combining, verifying, gathering, and what damage looks like."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drifting_core import config
from drifting_core.artifacts import FileRecord, LatentManifest, LatentShard, LatentVerification
from drifting_core.data import encoding, images, latents, packing, verifying
from drifting_core.data import index as images_index
from drifting_core.faults import Fault

HASH = "0" * 64
TRAIN, VAL = 5, 2  # photos of each class


class Halves:
    """A tokenizer that needs no training: 2x2 means of the image and of its first channel; the variance is given."""

    scaling_factor = 2.0
    sha256 = "1" * 64
    precision = "float32"

    def __init__(self, std: float = 0.1, batches: list[int] | None = None) -> None:
        self.std, self.batches = std, batches if batches is not None else []

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(images))
        pooled = torch.nn.functional.avg_pool2d(images.float() / 127.5 - 1, 2)
        mean = torch.cat([pooled, pooled[:, :1]], dim=1)
        return mean, torch.full_like(mean, self.std)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives and index of a few photos, made once."""
    folder = tmp_path_factory.mktemp("packed")
    data = section(folder)
    packing.pack(data, folder / "packed.json", HASH)
    images_index.check(data, folder / "archives.json", HASH)
    images_index.index(data, folder / "archives.json", folder / "index.json", HASH)
    return folder


def section(packed: Path, **changed: Any) -> config.Data:
    values = {
        "name": "photos",
        "archives": {role: str(packed / file) for role, file in
                     {"train": "train.tar", "val": "val.tar", "devkit": "devkit.tar.gz"}.items()},
        "expected": {"classes": 10, "train_images": 10 * TRAIN, "val_images": 10 * VAL,
                     "train_per_class": [TRAIN, TRAIN], "val_per_class": [VAL, VAL]},
        "image_size": 32,
        "latents": {"compute_batch": 8, "chunk_rows": 8, "shards_train": 2, **changed.pop("latents", {})},
        **changed,
    }  # fmt: skip
    return config.Data.model_validate(values)


def encode(data: config.Data, packed: Path, folder: Path, split: Any = "train", tokenizer: Any = None) -> Path:
    """Encode and combine a split; returns its manifest."""
    shards = data.latents.shards_train if split == "train" else data.latents.shards_val
    paths = [folder / f"shard_{shard}.json" for shard in range(shards)]
    (folder / "tokenizer.json").parent.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text("{}")
    for shard, path in enumerate(paths):
        encoding.encode_shard(
            data, split, shard, packed / "index.json", tokenizer or Halves(), folder / "tokenizer.json", path, HASH
        )
    latents.combine(split, data, packed / "index.json", paths, folder / "manifest.json", HASH)
    return folder / "manifest.json"


def verify(data: config.Data, packed: Path, manifest: Path) -> LatentVerification:
    return verifying.verify(data, packed / "index.json", manifest, manifest.parent / "verify.json", HASH)


@pytest.fixture(scope="module")
def stored(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(section(packed), packed, tmp_path_factory.mktemp("stored"))


@pytest.fixture
def own(packed: Path, tmp_path: Path) -> Path:
    """A store that the test may damage."""
    return encode(section(packed), packed, tmp_path / "own")


# --- what is stored -------------------------------------------------------------------------------------------------


def test_rows_are_scaled_latents_of_the_photo_and_its_mirror(packed: Path, stored: Path) -> None:
    data = section(packed, latents={"posterior": "mean"})
    store = latents.LatentStore(encode(data, packed, stored.parent / "mean"))
    reader = images_index.ImageReader(packed / "index.json", "train", data.archives)
    assert store.ids == reader.names
    assert torch.equal(store.labels, torch.from_numpy(reader.labels))
    rows = torch.arange(len(store))
    plain, mirrored = store.gather(rows, torch.zeros_like(rows)), store.gather(rows, torch.ones_like(rows))
    for row in (0, 7, 8, 24, 25, 49):
        crop = images.centre_crop_of(reader, row, 32)
        expected = (2 * Halves().encode_moments(torch.from_numpy(crop)[None])[0][0]).half().float()
        assert torch.equal(plain[row], expected)
        assert torch.equal(mirrored[row], expected.flip(-1))


def test_the_posterior_noise_is_seeded_per_image_and_view(packed: Path, stored: Path, tmp_path: Path) -> None:
    """Neither shards nor batches enter it; another seed does."""
    base = latents.LatentStore(stored)
    rows = torch.arange(len(base))
    both = [base.gather(rows, torch.full_like(rows, view)) for view in (0, 1)]
    other = section(packed, latents={"shards_train": 3, "compute_batch": 4, "chunk_rows": 4})
    again = latents.LatentStore(encode(other, packed, tmp_path / "other"))
    for view in (0, 1):
        assert torch.equal(again.gather(rows, torch.full_like(rows, view)), both[view])
    reseeded = latents.LatentStore(encode(section(packed, latents={"seed": 1}), packed, tmp_path / "seed"))
    noise = (reseeded.gather(rows, torch.zeros_like(rows)) - both[0]) / (2 * 0.1 * 2**0.5)
    assert abs(noise.std().item() - 1) < 0.05
    view_noise = (both[1].flip(-1) - both[0]) / (2 * 0.1 * 2**0.5)
    assert abs(view_noise.std().item() - 1) < 0.05


@pytest.mark.parametrize(("views", "batch", "chunk"), [(2, 8, 8), (2, 16, 8), (1, 4, 8), (2, 1, 3), (1, 8, 8)])
def test_the_tokenizer_always_sees_the_compute_batch(
    packed: Path, tmp_path: Path, views: int, batch: int, chunk: int
) -> None:
    data = section(packed, latents={"views": views, "compute_batch": batch, "chunk_rows": chunk, "shards_train": 1})
    seen: list[int] = []
    store = latents.LatentStore(encode(data, packed, tmp_path, tokenizer=Halves(batches=seen)))
    assert set(seen) == {batch}
    assert store.views == views
    assert len(store) == 10 * TRAIN


def test_encoding_twice_gives_the_same_bytes(packed: Path, stored: Path, tmp_path: Path) -> None:
    again = encode(section(packed), packed, tmp_path / "again")
    for name in ("manifest.json", "shard_0.json", "shard_0.h5", "shard_1.json", "shard_1.h5"):
        assert (again.parent / name).read_bytes() == (stored.parent / name).read_bytes()


def test_a_shard_describes_itself_to_any_hdf5_reader(stored: Path) -> None:
    with h5py.File(stored.parent / "shard_1.h5") as file:
        assert file["latents"].shape == (25, 2, 4, 16, 16)
        assert file["latents"].dtype == np.float16
        assert file["latents"].fletcher32
        assert file["latents"].compression is None
        contract = latents.LatentContract.model_validate_json(file.attrs["contract"])
    assert contract == LatentManifest.read(stored).contract
    assert contract.pre_encode_transforms[-1] == "x / 127.5 - 1"
    assert contract.views == ["image", "mirror"]


# --- gather ---------------------------------------------------------------------------------------------------------


@given(pairs=st.lists(st.tuples(st.integers(0, 10 * TRAIN - 1), st.integers(0, 1)), max_size=80))
@settings(max_examples=50, deadline=None)
def test_gathering_is_what_h5py_reads(stored: Path, pairs: list[tuple[int, int]]) -> None:
    """Any rows in any order, repeated ones too, over shards and partly filled last chunks."""
    store = latents.LatentStore(stored)
    everything = []
    for name in ("shard_0.h5", "shard_1.h5"):
        with h5py.File(stored.parent / name) as file:
            everything.append(file["latents"][:])
    whole = torch.from_numpy(np.concatenate(everything)).float()
    rows = torch.tensor([row for row, _ in pairs], dtype=torch.int64)
    views = torch.tensor([view for _, view in pairs], dtype=torch.int64)
    found = store.gather(rows, views)
    assert found.dtype == torch.float32
    assert torch.equal(found, whole[rows, views])


def test_float32_stores_are_gathered_too(packed: Path, tmp_path: Path) -> None:
    store = latents.LatentStore(encode(section(packed, latents={"dtype": "float32"}), packed, tmp_path))
    with h5py.File(tmp_path / "shard_0.h5") as file:
        assert np.array_equal(store.gather(torch.tensor([3]), torch.tensor([1]))[0].numpy(), file["latents"][3, 1])


def test_a_store_is_made_anew_from_its_path_in_a_spawned_process(stored: Path) -> None:
    store = latents.LatentStore(stored)
    rows = torch.tensor([0, 49])
    assert torch.equal(copy.copy(store).gather(rows, rows * 0), store.gather(rows, rows * 0))


@pytest.mark.parametrize(("row", "view"), [(-1, 0), (10 * TRAIN, 0), (0, 2), (0, -1)])
def test_rows_and_views_that_do_not_exist_are_refused(stored: Path, row: int, view: int) -> None:
    with pytest.raises(IndexError, match="it has 50 rows and 2 views"):
        latents.LatentStore(stored).gather(torch.tensor([0, row]), torch.tensor([0, view]))


def test_another_contract_is_refused_showing_both(stored: Path) -> None:
    store = latents.LatentStore(stored)
    store.require_contract(store.contract, "runs/x/exports/step_1")
    other = store.contract.model_copy(update={"scaling_factor": 0.18215})
    with pytest.raises(Fault, match=r"(?s)exports/step_1.*scaling_factor: 2.0 and 0.18215"):
        store.require_contract(other, "runs/x/exports/step_1")


# --- verify ---------------------------------------------------------------------------------------------------------


def test_a_whole_store_is_verified(packed: Path, stored: Path) -> None:
    found = verify(section(packed), packed, stored)
    assert found.scope == "full"
    assert (found.total_items_manifest, found.num_classes_manifest) == (50, 10)
    assert (found.label_min, found.label_max, found.fewest_per_class, found.most_per_class) == (0, 9, TRAIN, TRAIN)
    with h5py.File(stored.parent / "shard_0.h5") as first, h5py.File(stored.parent / "shard_1.h5") as second:
        exact = np.concatenate([first["latents"][:], second["latents"][:]]).astype(np.float64)
    assert found.mean == pytest.approx(exact.mean())
    assert found.std == pytest.approx(exact.std())
    assert found.largest == np.abs(exact).max()


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def test_a_flipped_byte_fails_the_checksum_of_its_chunk(packed: Path, own: Path) -> None:
    with h5py.File(own.parent / "shard_1.h5") as file:
        offset = file["latents"].id.get_chunk_info(1).byte_offset
    _flip(own.parent / "shard_1.h5", offset + 100)
    with pytest.raises(Fault, match=r"shard_1.h5: rows 8 to 15: checksum fails.*remove .*shard_1.json"):
        verify(section(packed), packed, own)


def test_a_flipped_byte_outside_of_the_data_fails_the_hash(packed: Path, own: Path) -> None:
    _flip(own.parent / "shard_0.h5", (own.parent / "shard_0.h5").read_bytes().index(b"row i of all"))
    with pytest.raises(Fault, match=r"shard_0.h5: SHA-256"):
        verify(section(packed), packed, own)


@pytest.mark.parametrize("opening", [latents.LatentStore, None])
def test_a_truncated_or_missing_shard_is_refused(packed: Path, own: Path, opening: Callable[[Path], Any] | None) -> None:
    opening = opening or (lambda manifest: verify(section(packed), packed, manifest))
    shard = own.parent / "shard_1.h5"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(Fault, match=r"shard_1.h5: \d+ bytes, its manifest says"):
        opening(own)
    shard.unlink()
    with pytest.raises(Fault, match=r"shard_1.h5: missing"):
        opening(own)


def _rewrite(manifest: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write shard 0 anew with other content, and a manifest that fits it."""
    held = LatentManifest.read(manifest)
    path = manifest.parent / "shard_0.h5"
    with h5py.File(path) as file:
        content = {"latents": file["latents"][:], "labels": file["labels"][:], "ids": [x.decode() for x in file["ids"][:]]}
    change(content)
    latents.write_shard(path, [content["latents"]], content["labels"], content["ids"], held.contract, 8)
    held.files["shard_0.h5"] = FileRecord.of(path)
    held.write(manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["latents"].__setitem__((3, 1, 0, 0, 0), np.nan),
            r"shard_0.h5: row 3 holds numbers that are not finite",
        ),
        (
            lambda c: c["latents"].__setitem__((9, 0, 2, 1, 0), np.inf),
            r"shard_0.h5: row 9 holds numbers that are not finite",
        ),
        (lambda c: c["latents"].__imul__(40), r"standard deviation .*scaling_factor 2.0"),
        (lambda c: c["labels"].__setitem__(4, 9), r"n01503061_5.JPEG: label 9 here, 0 in the index"),
        (lambda c: c["ids"].__setitem__(4, "stranger.JPEG"), r"2 image\(s\) differ from the index, first n01503061_5.JPEG"),
        (lambda c: c["ids"].__setitem__(4, c["ids"][5]), r"the id n01639765_1.JPEG occurs more than once"),
    ],
)
def test_wrong_content_is_found(packed: Path, own: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    _rewrite(own, change)
    with pytest.raises(Fault, match=message):
        verify(section(packed), packed, own)


def test_another_histogram_than_expected_is_found(packed: Path, stored: Path, tmp_path: Path) -> None:
    data = section(packed)
    data = data.model_copy(update={"expected": data.expected.model_copy(update={"train_per_class": (6, 6)})})
    with pytest.raises(Fault, match="classes have 5 to 5 rows; data.expected.train_per_class is 6 to 6"):
        verifying.verify(data, packed / "index.json", stored, tmp_path / "verify.json", HASH)


# --- faults of encoding ---------------------------------------------------------------------------------------------


@pytest.fixture
def with_broken_image(packed: Path, tmp_path: Path) -> Path:
    """The same archives with half of one training JPEG overwritten by zeros from its middle on."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in packed.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    table = images_index.read_table(folder / "index.npz", "train")
    start, length = int(table.offset[7]), int(table.length[7])
    content = bytearray((folder / "train.tar").read_bytes())
    content[start : start + length // 2] = bytes(length // 2)
    (folder / "train.tar").write_bytes(content)
    return folder


def test_an_unreadable_image_stops_the_job_by_name(with_broken_image: Path, tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"(?s)1 unreadable image.*data.max_rejects is 0.*n01639765_3.JPEG"):
        encode(section(with_broken_image), with_broken_image, tmp_path / "out")
    assert not list((tmp_path / "out").glob("shard*"))


def test_a_tolerated_reject_is_listed_and_left_out(with_broken_image: Path, tmp_path: Path) -> None:
    data = section(with_broken_image, max_rejects=1)
    manifest = encode(data, with_broken_image, tmp_path / "out")
    held = LatentManifest.read(manifest)
    assert held.rejects == ["n01639765_3.JPEG"]
    assert held.rows == 49
    assert "n01639765_3.JPEG" not in latents.LatentStore(manifest).ids
    assert verify(data, with_broken_image, manifest).fewest_per_class == TRAIN - 1


def test_a_latent_beyond_the_number_format_is_named(packed: Path, tmp_path: Path) -> None:
    class Huge(Halves):
        scaling_factor = 1e6

    with pytest.raises(Fault, match=r"train image n01503061_1.JPEG: its latent is not finite in float16"):
        encode(section(packed), packed, tmp_path, tokenizer=Huge())


def test_shards_must_be_all_there_and_of_one_contract(packed: Path, own: Path) -> None:
    data, folder, index = section(packed), own.parent, packed / "index.json"
    with pytest.raises(Fault, match="expected all 2 of train"):
        latents.combine("train", data, index, [folder / "shard_0.json"], own, HASH)
    part = LatentShard.read(folder / "shard_1.json")
    part.contract = part.contract.model_copy(update={"tokenizer_sha256": "2" * 64})
    part.write(folder / "shard_1.json")
    with pytest.raises(Fault, match=f"tokenizer_sha256: '{'2' * 64}' and '{'1' * 64}'"):
        latents.combine("train", data, index, [folder / "shard_0.json", folder / "shard_1.json"], own, HASH)
