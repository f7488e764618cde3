"""A folder of one's own images, as config/own_images.yaml describes one: to verified latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from drifting_core import config as settings
from drifting_core.artifacts import LatentManifest, LatentVerification
from drifting_core.data.photos import NAMES, photos
from tests.imagenet_shaped import FACTOR, write_tokenizer
from tests.workflow.conftest import ROOT, Site

pytestmark = pytest.mark.workflow
PER_CLASS = 8


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Photos as PNG files in folders named by their class, and a configuration that was made for others."""
    made = Site(tmp_path_factory.mktemp("own").resolve())
    for name, of_class in zip(NAMES, photos("train"), strict=True):
        (made.folder / f"my_images/{name}").mkdir(parents=True)
        for number, photo in enumerate(of_class[:PER_CLASS]):
            Image.fromarray(photo).save(made.folder / f"my_images/{name}/{number}.png")
    write_tokenizer(made.folder / "vae")
    return made


def configure(site: Site, expected: dict[str, object]) -> str:
    """Write config.yaml and return the folder of its data below results/."""
    own = yaml.safe_load((ROOT / "config/own_images.yaml").read_text())["data"]
    data = {
        "name": own["name"], "source": own["source"], "archives": {"train": "my_images"}, "hold_out": 4, "image_size": 32,
        "expected": expected, "latents": {"compute_batch": 16, "chunk_rows": 16},
    }  # fmt: skip
    tokenizer = {"source": "folder", "folder": "vae", "factor": FACTOR, "channels": 4}
    path = site.configure(**{"data": data, "tokenizer": tokenizer})
    return f"results/data/{settings.load_file(path).key('data')}"


def test_wrong_counts_are_said_and_what_is_printed_makes_them_right(site: Site) -> None:
    example = yaml.safe_load((ROOT / "config/own_images.yaml").read_text())["data"]["expected"]
    refused = site.snakemake(f"{configure(site, example)}/index.json")
    assert refused.returncode != 0
    assert "found 60 images, data.expected.train_images is 9000" in refused.stdout
    assert "Traceback" not in refused.stdout

    described = site.run("describe_images.py", "--configfile", "config.yaml")
    assert described.returncode == 0, described.stderr
    expected = yaml.safe_load(described.stdout)["expected"]
    assert expected == {
        "classes": 10, "train_images": 60, "val_images": 20, "train_per_class": [6, 6], "val_per_class": [2, 2],
    }  # fmt: skip
    folder = configure(site, expected)
    done = site.snakemake(f"{folder}/verify_train.json", f"{folder}/verify_val.json")
    assert done.returncode == 0, done.stdout
    assert LatentVerification.read(site.folder / folder / "verify_train.json").total_items_manifest == 60
    manifest = LatentManifest.read(site.folder / folder / "latents/val/manifest.json")
    assert (manifest.rows, manifest.num_classes) == (20, 10)


def test_a_file_that_is_no_image_is_named(site: Site) -> None:
    path = site.folder / "my_images/cat/3.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    expected = {"classes": 10, "train_images": 60, "val_images": 20, "train_per_class": [6, 6], "val_per_class": [2, 2]}
    folder = configure(site, {**expected, "val_per_class": [1, 2]})  # another contract: another folder
    done = site.snakemake(f"{folder}/verify_val.json")
    path.write_bytes(whole)
    assert done.returncode != 0
    assert "1 unreadable image(s), data.max_rejects is 0" in done.stdout
    assert "cat/3.png" in done.stdout
    assert Path(site.folder / folder / "index.json").is_file()
