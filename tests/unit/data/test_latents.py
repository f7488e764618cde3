"""The latent store: encoding, combining, verifying, gathering, and what damage looks like."""

from __future__ import annotations

import copy
import io
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from drifting_core import config
from drifting_core.artifacts import FileRecord, LatentManifest, LatentShard, LatentVerification
from drifting_core.data import encoding, images, latents, packing, photos, verifying
from drifting_core.data import index as images_index
from drifting_core.faults import Fault
from drifting_core.training import runs
from tests.unit.data.samples import HASH, TRAIN, VAL, Halves, encode, section


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


def test_a_virtual_dataset_shows_other_readers_the_whole_split(own: Path) -> None:
    latents.write_virtual(own, own.parent / "all.h5")
    store, rows = latents.LatentStore(own), torch.arange(50)
    with h5py.File(own.parent / "all.h5") as file:
        assert file["latents"].shape == (50, 2, 4, 16, 16)
        assert np.array_equal(file["latents"][:, 1], store.gather_stored(rows, torch.ones_like(rows)).numpy())
        assert file["labels"][:].tolist() == store.labels.tolist()
        assert [name.decode() for name in file["ids"][:]] == store.ids
    (own.parent / "shard_1.h5").unlink()
    with pytest.raises(Fault, match="shard_1.h5: missing"):
        latents.write_virtual(own, own.parent / "again.h5")
    assert not (own.parent / "again.h5").exists()


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


@pytest.mark.parametrize("residency", ["mmap", "ram", "gpu"])
def test_every_residency_gives_the_same_latents(stored: Path, residency: latents.Residency) -> None:
    """On a machine without a GPU, `gpu` is the copy on the device that the job was given: the CPU."""
    rows, views = torch.tensor([49, 0, 7, 7, 31]), torch.tensor([1, 0, 0, 1, 1])
    store = latents.LatentStore(stored, residency, "cpu")
    assert torch.equal(store.gather(rows, views), latents.LatentStore(stored).gather(rows, views))
    assert store.gather_stored(rows, views).dtype == torch.float16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_latents_that_reside_on_a_gpu_are_gathered_there(stored: Path) -> None:
    rows, views = torch.tensor([49, 0, 7]), torch.tensor([1, 0, 0])
    found = latents.LatentStore(stored, "gpu", "cuda").gather(rows, views)
    assert found.is_cuda
    assert torch.equal(found.cpu(), latents.LatentStore(stored).gather(rows, views))


def test_latents_on_a_gpu_that_the_job_has_not_are_refused(packed: Path, own: Path) -> None:
    """A copy in memory would be what somebody gets who asked for the GPU: said, not done."""
    verification = own.parent / "verify.json"
    verify(section(packed), packed, own)
    with pytest.raises(Fault, match="residency: gpu, but this job computes on the cpu; set it to ram or mmap"):
        runs._verified_store(own, verification, "gpu", torch.device("cpu"))
    assert len(runs._verified_store(own, verification, "ram", torch.device("cpu"))) == 50


def _sums(store: latents.LatentStore, rows: list[int]) -> list[float]:
    chosen = torch.tensor(rows)
    return store.gather(chosen, chosen % 2).double().sum(dim=(1, 2, 3)).tolist()


@pytest.mark.parametrize("how", ["fork", "spawn", "threads"])
def test_a_store_is_read_by_many_at_once(stored: Path, how: str) -> None:
    """Opened before the fork, sent to a spawned process, shared by threads."""
    store = latents.LatentStore(stored)
    work = [(store, [(7 * task + 3 * row) % 50 for row in range(200)]) for task in range(8)]
    expected = [_sums(*each) for each in work]
    if how == "threads":
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda each: _sums(*each), work * 4)) == expected * 4
    else:
        with multiprocessing.get_context(how).Pool(2) as workers:
            assert workers.starmap(_sums, work) == expected


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
        (lambda c: c["latents"].__imul__(40), r"standard deviation .*scaling_factor \(2.0\)"),
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


def test_quick_verification_says_what_it_did_not_look_at(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 of 25 chunks: the first, one in the middle, the last. Damage elsewhere is what it may miss."""
    monkeypatch.setattr(verifying, "_QUICK_CHUNKS", 3)
    how = {"latents": {"shards_train": 1, "chunk_rows": 2, "compute_batch": 4}}
    manifest = encode(section(packed, **how), packed, tmp_path / "own")
    quick = section(packed, verification="quick", **how)
    found = verify(quick, packed, manifest)
    assert (found.scope, found.rows_looked_at) == ("quick", 6)
    assert found.not_looked_at == [
        "the latents of 44 of 50 rows: checksums, finite values, moments",
        "the SHA-256 of 1 shard file(s)",
    ]
    with h5py.File(manifest.parent / "shard_0.h5") as file:
        offsets = [file["latents"].id.get_chunk_info(chunk).byte_offset for chunk in (1, 24)]
    _flip(manifest.parent / "shard_0.h5", offsets[0] + 100)
    verify(quick, packed, manifest)
    _flip(manifest.parent / "shard_0.h5", offsets[1] + 100)
    with pytest.raises(Fault, match=r"shard_0.h5: rows 48 to 49: checksum fails"):
        verify(quick, packed, manifest)


# --- random crops ---------------------------------------------------------------------------------------------------


def test_stored_crops_are_functions_of_seed_image_and_view(packed: Path, tmp_path: Path) -> None:
    how = {"posterior": "mean", "chunk_rows": 8, "compute_batch": 8}
    data = section(packed, latents=how)
    manifest = encode(data, packed, tmp_path / "crops", "crops_3")
    store = latents.LatentStore(manifest)
    assert (store.views, len(store), store.manifest.split) == (3, 10 * TRAIN, "crops_3")
    assert store.contract.views == ["crop 1", "crop 2", "crop 3"]
    assert "random crop of area 0.2 to 1.0" in store.contract.pre_encode_transforms[1]
    assert verify(data, packed, manifest).total_items_manifest == 50
    reader = images_index.ImageReader(packed / "index.json", "train", data.archives)
    for row in (0, 8, 49):
        crops = images.crop_views(images.decode_rgb(reader.read(row), "x"), 32, row, 3, seed=0)
        expected = (2 * Halves().encode_moments(torch.from_numpy(crops))[0]).half().float()
        assert torch.equal(store.gather(torch.full((3,), row), torch.arange(3)), expected)
        assert not torch.equal(expected[0], expected[1])
    other = section(packed, latents={**how, "shards_train": 3, "compute_batch": 4, "chunk_rows": 4})
    again = latents.LatentStore(encode(other, packed, tmp_path / "other", "crops_3"))
    rows = torch.arange(50)
    assert torch.equal(again.gather(rows, rows % 3), store.gather(rows, rows % 3))


# --- precision ------------------------------------------------------------------------------------------------------


class Coarse(Halves):
    """As a tokenizer that computes in a number format of few bits."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = super().encode_moments(images)
        return mean * (1 + self.error), std


def test_another_precision_is_compared_with_float32_on_the_first_batch(packed: Path, tmp_path: Path) -> None:
    data = section(packed, latents={"precision": "bfloat16", "shards_train": 1})
    (tmp_path / "tokenizer.json").write_text("{}")

    def encode_with(error: float) -> LatentShard:
        return encoding.encode_shard(
            data, "train", 0, packed / "index.json", Coarse(error), tmp_path / "tokenizer.json", tmp_path / "shard_0.json",
            HASH, exact=Halves(),
        )  # fmt: skip

    with pytest.raises(Fault, match=r"bfloat16 gives latents with a relative error of 0.2, .*tolerance is 0.05; set"):
        encode_with(0.2)
    assert not (tmp_path / "shard_0.h5").exists()
    assert encode_with(0.01).precision_error == pytest.approx(0.01, rel=1e-3)
    made = latents.combine("train", data, packed / "index.json", [tmp_path / "shard_0.json"], tmp_path / "m.json", HASH)
    assert made.precision_error == pytest.approx(0.01, rel=1e-3)


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


def _as(mode: str, form: str) -> Callable[[Image.Image], bytes]:
    def write(image: Image.Image) -> bytes:
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, form)
        return buffer.getvalue()

    return write


def _broken_exif(image: Image.Image) -> bytes:
    """An APP1 segment that promises more than it holds."""
    content = _as("RGB", "jpeg")(image)
    return content[:2] + b"\xff\xe1\x00\x12Exif\0\0II*\0\xff\xff\xff\xff\xff\xff" + content[2:]


ODD: list[tuple[Callable[[Image.Image], bytes], bool]] = [
    (_as("RGB", "png"), True), (_as("CMYK", "jpeg"), True), (_as("L", "jpeg"), True), (_broken_exif, True),
    (lambda image: b"", False), (lambda image: _as("RGB", "jpeg")(image)[:500], False), (lambda image: b"x" * 900, False),
]  # fmt: skip


def test_odd_images_are_converted_and_broken_ones_are_all_named(tmp_path: Path) -> None:
    """A PNG, CMYK, grey and one of broken EXIF, all named .JPEG, are encoded; what is no image is listed, whole."""
    photos_of = photos.photos("train")
    label = photos.WNIDS.index(min(photos.WNIDS))
    classes = []
    for index in sorted(range(10), key=photos.WNIDS.__getitem__):
        files = [packing.jpeg(photo) for photo in photos_of[index, : len(ODD)]]
        if index == label:
            files = [write(Image.fromarray(photo)) for (write, _), photo in zip(ODD, photos_of[index], strict=False)]
        named = [(f"{photos.WNIDS[index]}_{n}.JPEG", content) for n, content in enumerate(files)]
        classes.append((f"{photos.WNIDS[index]}.tar", packing.tar_of(named)))
    expected = {"classes": 10, "train_images": 10 * len(ODD), "val_images": 10 * VAL,
                "train_per_class": [len(ODD)] * 2, "val_per_class": [VAL, VAL]}  # fmt: skip
    data = section(tmp_path, expected=expected, latents={"shards_train": 1})
    packing.pack(data, tmp_path / "packed.json", HASH)
    (tmp_path / "train.tar").write_bytes(packing.tar_of(classes))
    images_index.check(data, tmp_path / "archives.json", HASH)
    images_index.index(data, tmp_path / "archives.json", tmp_path / "index.json", HASH)
    names = [f"{photos.WNIDS[label]}_{n}.JPEG" for n, (_, whole) in enumerate(ODD) if not whole]
    listed = r"\n".join(f"  {name}" for name in names)
    with pytest.raises(Fault, match=rf"3 unreadable image\(s\), data.max_rejects is 0; .*\n{listed}"):
        encode(data, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out/shard_0.h5").exists()
    # Tolerated, the job goes on where it was: nothing is encoded again.
    again: list[int] = []
    allowed = data.model_copy(update={"max_rejects": 3})
    manifest = encode(allowed, tmp_path, tmp_path / "out", tokenizer=Halves(batches=again))
    assert again == []
    assert LatentManifest.read(manifest).rejects == names
    assert verify(allowed, tmp_path, manifest).total_items_manifest == 10 * len(ODD) - 3


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
