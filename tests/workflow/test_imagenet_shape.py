"""ImageNet's archives in small (1,000 classes, nested tars): from tars to a verified store.

`make test` has a tenth of the images that `make test-all` has, over 100,000.
"""

from __future__ import annotations

import json
import re
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from drifting_core import config as settings
from drifting_core.artifacts import Index, LatentVerification
from drifting_core.costs import data_preparation
from drifting_core.data import archives
from drifting_core.data.index import FILE, ImageReader, read_table, write_tables
from drifting_core.data.latents import LatentStore
from tests.imagenet_shaped import FACTOR, Shaped, devkit_ids, write_archives, write_tokenizer
from tests.workflow.conftest import Site

pytestmark = pytest.mark.workflow
MEGABYTES = 1000  # that a job may need
WHOLE = pytest.param(100, marks=pytest.mark.slow)  # training images of a class


@dataclass
class Encoded:
    site: Site
    shaped: Shaped
    config: settings.Configuration
    folder: Path  # results/data/<data>


@pytest.fixture(scope="module", params=[10, WHOLE], ids=["tenth", "whole"])
def encoded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    site = Site(tmp_path_factory.mktemp("imagenet").resolve())
    shaped = write_archives(site.folder / "archives", per_class=request.param, val_per_class=max(2, request.param // 10))
    write_tokenizer(site.folder / "vae")
    latents = {"compute_batch": 256, "chunk_rows": 256, "shards_train": 1, "views": 1}
    data = {"name": "imagenet", "image_size": 32, "latents": latents, **shaped.section}
    preset = site.configure(
        **{
            "data": data, "tokenizer": {"source": "folder", "folder": "vae", "factor": FACTOR, "channels": 4},
            "evaluation.selection.samples": 1000, "evaluation.report.samples": 1000,
        },
    )  # fmt: skip
    config = settings.load_file(preset)
    folder = f"results/data/{config.key('data')}"
    done = site.snakemake(f"{folder}/verify_train.json", f"{folder}/verify_val.json")
    assert done.returncode == 0, done.stdout
    return Encoded(site, shaped, config, site.folder / folder)


def test_the_store_holds_every_image(encoded: Encoded) -> None:
    for split, images in (("train", sum(encoded.shaped.per_class)), ("val", len(encoded.shaped.validation))):
        found = LatentVerification.read(encoded.folder / f"verify_{split}.json")
        assert found.scope == "full"
        assert found.total_items_manifest == images
        assert (found.num_classes_manifest, found.label_min, found.label_max) == (1000, 0, 999)
    assert sum(encoded.shaped.per_class) > 10_000


def test_disk_and_inodes_are_what_the_plan_says(encoded: Encoded) -> None:
    """docs/imagenet.md is computed by the same functions."""
    files = [path for path in (encoded.site.folder / "results").rglob("*") if path.is_file()]
    assert len(files) == data_preparation.files(encoded.config)
    stored = sum(path.stat().st_size for path in files if path.suffix == ".h5")
    # Beside the latents: labels, ids, checksums; 20 bytes and more of each image's 256 to 512 here, of 32,768 in ImageNet.
    assert 1.0 < stored / data_preparation.latent_bytes(encoded.config) < 1.15
    assert not list((encoded.site.folder / "results").rglob("*.journal"))


def test_no_job_needs_a_gigabyte(encoded: Encoded) -> None:
    peaks = {}
    for log in encoded.site.folder.glob("results/logs/**/*.log"):
        [peak] = re.findall(r"peak memory (\d+) MB", log.read_text())
        peaks[log.stem] = int(peak)
    print("\npeak memory in MB:", json.dumps(peaks))
    assert {"check_archives", "index_archives", "encode_latents_train_0", "verify_latents_train"} <= set(peaks)
    assert max(peaks.values()) < MEGABYTES


def test_classes_are_the_sorted_wnids_and_validation_follows_the_devkit(encoded: Encoded) -> None:
    """Validation image 1 is a n01751748; the devkit says so with an ILSVRC2012_ID that is no class index."""
    index = Index.read(encoded.folder / "index.json")
    assert (index.wnids[0], index.wnids[999]) == ("n01440764", "n15075141")
    store = LatentStore(encoded.folder / "latents/val/manifest.json")
    assert store.ids[0] == "ILSVRC2012_val_00000001.JPEG"
    assert index.wnids[int(store.labels[0])] == "n01751748"
    assert store.labels.tolist() == encoded.shaped.validation.tolist()
    assert devkit_ids(1000)[encoded.shaped.validation[0]] != encoded.shaped.validation[0] + 1
    train = LatentStore(encoded.folder / "latents/train/manifest.json")
    assert all(name.startswith(index.wnids[int(train.labels[row])]) for row, name in enumerate(train.ids))
    assert torch.bincount(train.labels).tolist() == encoded.shaped.per_class


@pytest.mark.parametrize("encoded", [WHOLE], ids=["whole"], indirect=True)
def test_the_index_is_small_and_quickly_made(encoded: Encoded, tmp_path: Path) -> None:
    """Less than 40 bytes per image; `tarfile`, which must walk and read the members one by one, is the peer."""
    data, images = encoded.config.data, sum(encoded.shaped.per_class) + len(encoded.shaped.validation)
    size = (encoded.folder / FILE).stat().st_size
    log = (encoded.site.folder / f"results/logs/{encoded.folder.name}/index_archives.log").read_text()
    print("\n" + next(line for line in log.splitlines() if "bytes of index" in line))
    assert size < 40 * images

    data = data.model_copy(update={"archives": settings.Archives(**encoded.shaped.section["archives"])})  # type: ignore[arg-type]
    ours = min(_seconds_of_index(data, tmp_path) for _ in range(3))
    began = time.perf_counter()
    assert _read_with_tarfile(data) == images
    theirs = time.perf_counter() - began
    print(f"index {ours:.2f} s ({images / ours:,.0f} images/s), tarfile {theirs:.2f} s: {theirs / ours:.1f} times")
    assert theirs >= 10 * ours


def _seconds_of_index(data: settings.Data, folder: Path) -> float:
    began = time.perf_counter()
    listing = archives.listing(data)
    write_tables(folder / FILE, {split: found.table for split, found in listing.splits.items()})
    return time.perf_counter() - began


def _read_with_tarfile(data: settings.Data) -> int:
    count = 0
    with tarfile.open(data.archives.train) as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                count += sum(1 for image in inner if inner.extractfile(image).read())  # type: ignore[union-attr]
    with tarfile.open(str(data.archives.val)) as flat:
        return count + sum(1 for image in flat if flat.extractfile(image).read())  # type: ignore[union-attr]


def test_offsets_are_those_of_tarfile(encoded: Encoded) -> None:
    """Bytes read by offset are the member's: the last class, and the validation images."""
    reader = ImageReader(encoded.folder / "index.json", "train", settings.Archives(**encoded.shaped.section["archives"]))  # type: ignore[arg-type]
    table = read_table(encoded.folder / FILE, "train")
    rows = np.flatnonzero(table.label == 999)
    with tarfile.open(reader.path) as outer, tarfile.open(fileobj=outer.extractfile("n15075141.tar")) as inner:
        for row in rows.tolist():
            assert inner.extractfile(reader.names[row]).read() == reader.read(row)  # type: ignore[union-attr]
