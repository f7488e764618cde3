"""Copies of training images are found out in every space, held-out photos are not; labels are one index's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from drifting_core import config
from drifting_core.artifacts import FeatureNetwork, Index, Neighbours, Samples, records, sha256_file
from drifting_core.config import Contract, Reference
from drifting_core.data.images import centre_crops
from drifting_core.data.index import ImageReader
from drifting_core.data.latents import LatentStore
from drifting_core.data.photos import WNIDS
from drifting_core.evaluation import neighbours, reference
from drifting_core.evaluation.networks.classifier import SmallClassifier, save_classifier
from drifting_core.evaluation.networks.loading import load_network
from drifting_core.evaluation.reference import Cache
from drifting_core.faults import Fault
from tests.unit.data import samples as latent_samples
from tests.unit.data.samples import HASH, Halves

CPU = torch.device("cpu")
SPACES = ("features", "latents", "pixels")
PHOTOS = {"train": 300, "val": 50}  # of each class: all there are
COPIED = 20  # photos of each class that stand for a generator's copies


@dataclasses.dataclass
class Made:
    """Everything that a run leaves for its audit, of all embedded photos."""

    folder: Path
    archives: config.Archives
    parts: neighbours.Parts  # without samples
    readers: tuple[ImageReader, ImageReader]
    network: FeatureNetwork

    def images(self, split, rows):
        return torch.from_numpy(centre_crops(self.readers[split == "val"], rows, 32))

    def features(self, images):
        with torch.inference_mode():
            return load_network(self.parts.network, CPU)[0](images).features.numpy()

    def latents(self, split, rows, view):
        store = LatentStore(self.parts.latents[split == "val"])
        return store.gather(torch.from_numpy(rows), torch.full((len(rows),), view))

    def spaces(self, images, latents):
        """All spaces, with these images and latents in the place of generated ones."""
        features = neighbours.feature_space("features", self.network, self.parts.reference, self.features(images),
                                            self.readers[0].labels)  # fmt: skip
        rows = features.held_out.rows
        pixels = neighbours.pixel_space(self.parts.reference, images, self.readers[0].labels)
        return {each.name: each for each in
                (features, neighbours.latent_space(latents, *self.parts.latents, self.readers, rows), pixels)}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neighbours")
    data = latent_samples.section(
        folder,
        expected={"classes": 10, **{f"{split}_images": 10 * n for split, n in PHOTOS.items()},
                  **{f"{split}_per_class": [n, n] for split, n in PHOTOS.items()}},
        latents={"compute_batch": 128, "chunk_rows": 64},
    )  # fmt: skip
    latent_samples.write_archives(folder, data)
    latents = tuple(latent_samples.encode(data, folder, folder / split, split) for split in PHOTOS)
    network = _write_network(folder / "network.json")
    reference.make_reference(
        folder / "reference/manifest.json", data, Reference(compute_batch=100, precision_recall_images=500),
        index=folder / "index.json", network_path=folder / "network.json", device=CPU, threads=2, configuration=HASH,
    )  # fmt: skip
    tokenizer = folder / "train/tokenizer.json"
    parts = neighbours.Parts(
        tokenizer, tokenizer, folder / "network.json", folder / "reference/manifest.json", folder / "index.json", latents
    )
    readers = tuple(ImageReader(folder / "index.json", split, data.archives) for split in PHOTOS)
    return Made(folder, data.archives, parts, readers, network)


def _write_network(path, seed=0):
    """A network with random weights: what it makes of photos differs by photo, which is all that an audit needs."""
    network = SmallClassifier(width=16, classes=10)
    network.reset_parameters(seed)
    path.parent.mkdir(exist_ok=True)
    save_classifier(network, path.with_name("weights.safetensors"))
    record = FeatureNetwork(
        configuration=HASH, code="test", network="classifier", weights="weights.safetensors", dimensions=32, classes=10,
        weights_sha256=sha256_file(path.with_name("weights.safetensors")), resize="none",
        files=records(path.parent, ["weights.safetensors"]), architecture={"width": 16, "classes": 10},
    )  # fmt: skip
    record.write(path)
    return record


# --- what the audit is for ------------------------------------------------------------------------------------------


def copies(made, mirrored):
    """A space's queries are training photos: as images through the network, as thumbnails, and as their latents."""
    rows = np.concatenate([np.flatnonzero(made.readers[0].labels == c)[:COPIED] for c in range(10)])
    images = made.images("train", rows)
    return made.spaces(images.flip(3) if mirrored else images, made.latents("train", rows, int(mirrored))), rows


@pytest.mark.parametrize(("space", "mirrored"), [*((name, False) for name in SPACES), ("latents", True), ("pixels", True)])
def test_training_photos_are_nearer_than_the_baseline(made, space, mirrored):
    spaces, rows = copies(made, mirrored)
    found = neighbours.compare(spaces[space], rows, made.readers[0].labels[rows], 10, CPU)
    assert (found.training_images, found.baseline_images) == (3000, 500)
    for search in (found.any_class, found.same_class):
        assert search.share_below_percentile_1 >= 0.95
        assert sum(pair.images[0] == pair.sample for pair in search.pairs) >= 0.95 * len(rows), "it is the photo itself"


@pytest.mark.parametrize("space", SPACES)
def test_held_out_photos_are_not(made, space):
    """Half of the validation photos of each class are the baseline, the other half is looked up."""
    whole = made.spaces(torch.zeros((1, 3, 32, 32), dtype=torch.uint8), torch.zeros((1, 4, 16, 16)))[space]
    chosen = np.isin(np.arange(500), reference.balanced_rows(whole.held_out.labels, 250))
    half, other = (Cache(*(part[rows] for part in whole.held_out)) for rows in (chosen, ~chosen))
    halved = dataclasses.replace(whole, queries=other.features, held_out=half)
    found = neighbours.compare(halved, other.rows, other.labels, 10, CPU)
    for search in (found.any_class, found.same_class):
        assert len(search.pairs) == 250
        assert search.share_below_percentile_1 <= 0.03
        assert abs(np.median([pair.percentile for pair in search.pairs]) - 50) < 15
    assert found.same_class.generated_median > found.any_class.generated_median
    assert all(set(pair.labels) == {pair.label} for pair in found.same_class.pairs)


def test_low_contrast_brings_no_photo_nearer(made):
    """Half of the held-out photos with a quarter of their contrast; a grey image has no direction at all."""
    whole = made.spaces(torch.full((1, 3, 32, 32), 128, dtype=torch.uint8), torch.zeros((1, 4, 16, 16)))["pixels"]
    assert not whole.queries.any()
    chosen = np.isin(np.arange(500), reference.balanced_rows(whole.held_out.labels, 250))
    half, other = (Cache(*(part[rows] for part in whole.held_out)) for rows in (chosen, ~chosen))
    faint = made.images("val", other.rows) // 4 + 96
    queries = neighbours.pixel_space(made.parts.reference, faint, made.readers[0].labels).queries
    found = neighbours.compare(
        dataclasses.replace(whole, queries=queries, held_out=half), other.rows, other.labels, 10, CPU
    )  # fmt: skip
    assert found.any_class.share_below_percentile_1 <= 0.03
    assert found.same_class.share_below_percentile_1 <= 0.03


# --- numbers --------------------------------------------------------------------------------------------------------


def drawn(rows, seed):
    return np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)


def made_up(queries, training, held_out):
    zeros, of = np.zeros(len(held_out), np.int64), np.arange(len(held_out))
    cache = Cache(training, np.zeros(len(training), np.int64), np.arange(len(training)))
    return neighbours.Space("made up", "", None, queries, lambda: iter([cache]), Cache(held_out, zeros, of))


def test_numbers_are_what_their_names_say_and_pairs_come_closest_first():
    queries, training, held_out = drawn(40, 0), drawn(300, 1), drawn(200, 2)
    found = neighbours.compare(made_up(queries, training, held_out), np.arange(40) + 7, np.zeros(40, np.int64), 3, CPU)
    nearest = [np.linalg.norm(rows[:, None] - training[None], axis=2).min(axis=1) for rows in (queries, held_out)]
    search = found.any_class
    assert search == found.same_class, "with one class only"
    assert search.baseline_percentile_1 == pytest.approx(np.percentile(nearest[1], 1))
    assert (search.generated_median, search.baseline_median) == pytest.approx([np.median(part) for part in nearest])
    assert search.share_below_percentile_1 == (nearest[0] < np.percentile(nearest[1], 1)).mean()
    assert [pair.sample for pair in search.pairs] == (np.argsort(nearest[0]) + 7).tolist()
    for pair in search.pairs:
        assert pair.percentile == pytest.approx(100 * (nearest[1] < nearest[0][pair.sample - 7]).mean())
        assert pair.distances == sorted(pair.distances)


def test_percentile_counts_what_is_nearer():
    baseline = np.arange(100.0)
    assert neighbours.percentiles(np.array([-1.0, 0.0, 1.0, 50.0, 200.0]), baseline).tolist() == [0, 0, 1, 50, 100]


def test_balanced_rows_take_classes_in_turn():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    assert reference.balanced_rows(labels, 3).tolist() == [0, 3, 5]
    assert np.bincount(labels[reference.balanced_rows(labels, 7)]).tolist() == [3, 2, 2]
    assert reference.balanced_rows(labels, 100).tolist() == list(range(9))


def test_thumbnails_are_rounded_means_of_areas():
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    means = images.double().reshape(2, 3, 16, 4, 16, 2).mean(dim=(3, 5))
    assert torch.equal(reference.thumbnails(images), (means + 0.5).floor().to(torch.uint8))
    full = torch.full((1, 3, 24, 24), 255, dtype=torch.uint8)
    assert torch.equal(reference.thumbnails(full), full[..., :16, :16])


def test_pairs_stand_above_each_other():
    dark, light = np.zeros((3, 2, 2), np.uint8), np.full((3, 2, 2), 255, np.uint8)
    picture = np.asarray(neighbours.pairs_picture([dark, dark], [light, light]))
    assert picture.shape == (4, 4, 3)
    assert picture[:2].max() == 0
    assert picture[2:].min() == 255


# --- the whole audit ------------------------------------------------------------------------------------------------


class Decoder:
    """What the latents of Halves look like: each of their numbers, twice as large, for a tokenizer."""

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents[:, :3] / 2 / Halves.scaling_factor + 0.5, scale_factor=2).clamp(0, 1)


def write_samples(folder, latents, labels, classes=10):
    folder.mkdir(exist_ok=True)
    tensors = {"latents": latents.half(), "labels": torch.from_numpy(labels)}
    safetensors.torch.save_file(tensors, folder / "latents.safetensors")
    Samples(
        configuration=HASH, code="test", files=records(folder, ["latents.safetensors"]), step=7, alpha=1.5, seed=3,
        samples=len(labels), classes=classes, compute_batch=8, export_sha256=HASH, tokenizer_sha256=Halves.sha256,
    ).write(folder / "manifest.json")  # fmt: skip
    return folder / "manifest.json"


@pytest.fixture
def audit(made, tmp_path, monkeypatch):
    """Function: audit these latents, with other parts if given."""
    tokenizer = Decoder(), SimpleNamespace(weights_sha256=Halves.sha256)
    monkeypatch.setattr(neighbours, "open_tokenizer", lambda *_: tokenizer)

    def run(sampled, labels, samples=30, classes=10, **parts):
        path = write_samples(tmp_path / "samples", sampled, labels, classes)
        neighbours.audit(
            tmp_path / "out/neighbours.json", config.Neighbours(samples=samples, top=3), Contract(compute_batch=16),
            made.archives, dataclasses.replace(made.parts, samples=path, **parts), device=CPU, configuration=HASH,
        )  # fmt: skip
        found = Neighbours.read(tmp_path / "out/neighbours.json")
        found.verify(tmp_path / "out")
        return found

    return run


def test_copied_latents_are_found_and_shown(made, tmp_path, audit):
    """Samples 40 to 49 are latents of a photo of each class, every other one mirrored; the others are noise."""
    labels = np.arange(100) % 10
    first = np.array([np.flatnonzero(made.readers[0].labels == c)[0] for c in range(10)])
    latents = torch.randn((100, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    for sample in range(40, 50):
        latents[sample] = made.latents("train", first[[sample % 10]], sample % 2)[0]
    found = audit(latents, labels, samples=50)
    assert (found.samples, found.step, found.alpha, found.seed, found.top) == (50, 7, 1.5, 3, 3)
    assert found.wnids == Index.read(made.parts.index).wnids
    assert sorted(found.wnids) == sorted(WNIDS)
    assert set(found.inputs) == {"samples", "tokenizer", "network", "reference", "index", "latents_train", "latents_val"}
    assert [space.name for space in found.spaces] == list(SPACES)
    assert not found.left_out
    for space in found.spaces[1:]:  # these images are blurred, which the features see
        closest = space.any_class.pairs[:10]
        assert {pair.sample for pair in closest} == set(range(40, 50))
        assert [pair.images[0] for pair in closest] == [int(first[pair.label]) for pair in closest]
        assert space.any_class.share_below_percentile_1 == 0.2
        picture = np.asarray(Image.open(tmp_path / "out" / space.picture)).astype(int)
        assert picture.shape == (64, 320, 3)
        above, below = picture[:32].reshape(32, 10, 32, 3), picture[32:].reshape(32, 10, 32, 3)
        for place, pair in enumerate(closest):
            real = below[:, :, :: -1 if pair.sample % 2 else 1]
            assert abs(above[:, place, None] - real).mean(axis=(0, 2, 3)).argmin() == place, "it stands above its photo"


def test_samples_are_as_many_of_each_class_whatever_their_order(audit):
    labels = np.sort(np.arange(100) % 10)
    found = audit(torch.randn((100, 4, 16, 16)), labels)
    assert np.bincount([pair.label for pair in found.spaces[0].any_class.pairs]).tolist() == [3] * 10
    for pair in (pair for space in found.spaces for pair in space.same_class.pairs):
        assert pair.label == labels[pair.sample]


def test_an_imported_generator_has_no_latents_and_an_older_reference_no_pixels(made, tmp_path, audit):
    older = tmp_path / "reference"
    older.mkdir()
    for path in made.parts.reference.parent.glob("[!.]*"):
        (older / path.name).write_bytes(path.read_bytes())
    for name in ("features_train.h5", "features_val.h5"):
        with h5py.File(older / name, "r+") as file:
            del file["thumbnails"]
    manifest = json.loads((older / "manifest.json").read_text())
    manifest["files"] = {name: record.model_dump() for name, record in records(older, list(manifest["files"])).items()}
    (older / "manifest.json").write_text(json.dumps(manifest))
    labels = np.arange(30) % 10
    found = audit(torch.randn((30, 4, 16, 16)), labels, latents=None, reference=older / "manifest.json")
    assert [space.name for space in found.spaces] == ["features"]
    assert set(found.left_out) == {"latents", "pixels"}
    assert "before thumbnails were kept" in found.left_out["pixels"]


def test_rows_of_a_store_without_unreadable_images_are_still_the_index_s():
    class Store(list):
        path, manifest = Path("manifest.json"), SimpleNamespace(rejects=["b"])

    names = SimpleNamespace(names=["a", "b", "c", "d"])
    assert neighbours._index_rows(Store([0, 0, 0]), names).tolist() == [0, 2, 3]


def test_a_further_network_is_one_more_space(made, tmp_path, audit):
    pair = made.parts.network, made.parts.reference
    found = audit(torch.randn((30, 4, 16, 16)), np.arange(30) % 10, spaces=(pair,))
    first, *_, further = found.spaces
    assert further.name == "classifier"
    assert (tmp_path / "out" / further.picture).is_file()
    assert {"space_0_network", "space_0_reference"} < set(found.inputs)
    assert [pair.images[0] for pair in further.any_class.pairs] == [pair.images[0] for pair in first.any_class.pairs]
    _write_network(tmp_path / "network.json", seed=1)
    with pytest.raises(Fault, match="make the reference again with this network"):
        audit(torch.randn((30, 4, 16, 16)), np.arange(30) % 10, spaces=((tmp_path / "network.json", made.parts.reference),))


# --- refusals -------------------------------------------------------------------------------------------------------


def test_samples_of_other_classes_than_the_index_are_refused(audit):
    with pytest.raises(Fault, match=r"samples/manifest\.json: 11 classes, .*index\.json has 10; labels"):
        audit(torch.randn((22, 4, 16, 16)), np.arange(22) % 11, classes=11)


@pytest.mark.parametrize("changed", ["labels", "rows"])
def test_a_cache_of_another_index_is_refused(made, changed):
    space = made.spaces(made.images("train", [0]), made.latents("train", np.array([0]), 0))["pixels"]
    labels = made.readers[0].labels
    other = labels[::-1].copy() if changed == "labels" else labels[:-1]
    moved = neighbours.pixel_space(made.parts.reference, made.images("train", [0]), other)
    assert sum(len(block.rows) for block in space.training()) == 3000
    with pytest.raises(Fault, match=r"features_train\.h5: rows or labels are not those of the index"):
        list(moved.training())


def test_a_store_of_another_index_or_tokenizer_is_refused(made, tmp_path, audit):
    folder = latent_samples.write_archives(tmp_path / "other")
    few = latent_samples.encode(latent_samples.section(folder), folder, folder / "train")
    with pytest.raises(Fault, match=r"train/manifest\.json: 50 images, of the index 3000"):
        neighbours.latent_space(torch.zeros(1, 4, 16, 16), few, made.parts.latents[1], made.readers, np.arange(5))
    manifest = json.loads(few.read_text())
    manifest["contract"]["tokenizer_sha256"] = "7" * 64
    few.write_text(json.dumps(manifest))
    with pytest.raises(Fault, match="latents of the tokenizer 7777777777777777…, the samples are of 1111111111111111…"):
        audit(torch.zeros(10, 4, 16, 16), np.arange(10), samples=10, latents=(few, few))
