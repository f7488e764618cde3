"""Exports of a sample set hold the bytes that its evaluation sees, whatever the format."""

from __future__ import annotations

import io
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from drifting_core import config
from drifting_core.artifacts import LATENTS, ImageExport, Samples, TokenizerManifest, hashes, records, sha256_file
from drifting_core.config import Contract
from drifting_core.evaluation import exporting
from drifting_core.evaluation.evaluate import look_at
from drifting_core.faults import Fault
from drifting_core.models.tokenizer import CONFIG, WEIGHTS, Tokenizer
from drifting_core.models.tokenizer_making import small_autoencoder
from tests.unit.evaluation.samples import MADE, write_index

CPU = torch.device("cpu")
LABELS = np.array([2, 0, 1, 1, 2, 0, 2, 0, 1, 2, 0])  # of a plan in which sample i is of no class that i says
HOW = Contract(compute_batch=4)  # 11 images: the last batch is padded


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Samples, tokenizer and index, as jobs leave them."""
    folder = tmp_path_factory.mktemp("exporting")
    training = {"channels": [8, 8], "norm_groups": 4, "steps": 1, "batch": 1, "learning_rate": 1e-3}
    torch.manual_seed(0)
    vae = small_autoencoder(config.Tokenizer.model_validate({"source": "trained", "factor": 2, "training": training}))
    vae.save_pretrained(folder / "tokenizer/vae", safe_serialization=True)
    sha256 = sha256_file(folder / "tokenizer/vae" / WEIGHTS)
    TokenizerManifest(
        **MADE, files=records(folder / "tokenizer", [f"vae/{CONFIG}", f"vae/{WEIGHTS}"]), source="test", folder="vae",
        weights_sha256=sha256, scaling_factor=1.0, channels=4, factor=2,
    ).write(folder / "tokenizer/manifest.json")  # fmt: skip
    latents = 3 * torch.randn(len(LABELS), 4, 8, 8).half()
    (folder / "samples").mkdir()
    safetensors.torch.save_file({"latents": latents, "labels": torch.from_numpy(LABELS)}, folder / "samples" / LATENTS)
    Samples(
        **MADE, files=records(folder / "samples", [LATENTS]), step=7, alpha=1.5, seed=1, samples=len(LABELS), classes=3,
        compute_batch=4, label_plan="validation", export_sha256="e" * 64, tokenizer_sha256=sha256,
    ).write(folder / "samples/manifest.json")  # fmt: skip
    index = write_index(folder / "data", LABELS)
    return SimpleNamespace(
        samples=folder / "samples/manifest.json", tokenizer=folder / "tokenizer/manifest.json", index=index, latents=latents
    )


@pytest.fixture(scope="module")
def seen(site):
    """uint8 (N, H, W, 3): what an evaluation's feature network is given."""

    def network(images):
        return SimpleNamespace(features=images, logits_unbiased=images, logits=images)

    batches = look_at(site.latents, HOW.uint8, HOW.compute_batch, Tokenizer.of(site.tokenizer), network, CPU)
    made = torch.cat([batch.features for batch in batches]).permute(0, 2, 3, 1).numpy()
    assert made.shape == (11, 16, 16, 3)
    assert made.std() > 10
    return made


def export(site, folder, form, index=True, how=HOW):
    output = folder / f"{form}.done"
    exporting.export_images(
        output, form, how, samples_path=site.samples, tokenizer_path=site.tokenizer,
        index_path=site.index if index else None, device=CPU, threads=2, configuration="0" * 64,
    )  # fmt: skip
    record = ImageExport.read(output)
    record.verify(folder)
    assert (record.format, record.uint8, record.compute_batch) == (form, how.uint8, how.compute_batch)
    assert record.tokenizer_sha256 == sha256_file(site.tokenizer.parent / "vae" / WEIGHTS)
    assert record.inputs["samples"] == hashes({"samples": site.samples})["samples"]
    assert not list(folder.glob(".*.tmp*"))
    return record


def names(suffix):
    return [f"n{label}/{sample:06d}.{suffix}" for sample, label in enumerate(LABELS)]


def test_the_folder_of_pngs_holds_the_bytes_that_the_evaluation_sees(site, seen, tmp_path):
    record = export(site, tmp_path, "png")
    assert (record.folder, record.images, record.classes, record.files) == ("png", 11, 3, {})
    found = sorted(path.relative_to(tmp_path / "png").as_posix() for path in tmp_path.glob("png/*/*"))
    assert found == sorted(names("png"))
    for name, image in zip(names("png"), seen, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / name)), image)


def test_jpegs_are_made_of_them_and_say_their_quality(site, seen, tmp_path):
    assert export(site, tmp_path, "jpeg").jpeg_quality == 95
    for name, image in zip(names("jpeg"), seen, strict=True):
        wanted = io.BytesIO()
        Image.fromarray(image).save(wanted, "jpeg", quality=95)
        assert (tmp_path / "jpeg" / name).read_bytes() == wanted.getvalue()


def test_the_tar_holds_the_files_of_the_folder(site, seen, tmp_path):
    export(site, tmp_path, "png")
    assert list(export(site, tmp_path, "tar").files) == ["images.tar"]
    with tarfile.open(tmp_path / "images.tar", "r:") as archive:
        assert archive.getnames() == names("png")
        for member in archive:
            assert archive.extractfile(member).read() == (tmp_path / "png" / member.name).read_bytes()
    first = (tmp_path / "images.tar").read_bytes()
    export(site, tmp_path, "tar")
    assert (tmp_path / "images.tar").read_bytes() == first


def test_the_npz_is_adms_and_numpy_reads_it_without_pickle(site, seen, tmp_path):
    export(site, tmp_path, "npz")
    with np.load(tmp_path / "images.npz", allow_pickle=False) as held:
        assert held.files == ["arr_0", "arr_1"]
        assert held["arr_0"].dtype == np.uint8
        assert np.array_equal(held["arr_0"], seen)
        assert np.array_equal(held["arr_1"], LABELS)
    np.savez(tmp_path / "numpy.npz", seen, LABELS)
    assert (tmp_path / "images.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_the_sheet_shows_the_first_samples_of_each_class_by_name(site, seen, tmp_path):
    record = export(site, tmp_path, "sheet")
    assert (record.images, record.classes) == (9, 3)  # class 1 has three samples
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    rows = [np.concatenate([seen[i] for i in np.flatnonzero(label == LABELS)[:3]], axis=1) for label in range(3)]
    assert np.array_equal(sheet[:, -48:], np.concatenate(rows))
    for label in range(3):
        assert sheet[16 * label : 16 * (label + 1), :-48].min() < 128, "no name"


def test_without_an_index_classes_go_by_number(site, tmp_path):
    export(site, tmp_path, "png", index=False)
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == ["0000", "0001", "0002"]


def test_another_uint8_rule_gives_other_bytes(site, tmp_path):
    export(site, tmp_path, "npz", how=HOW.model_copy(update={"uint8": "round"}))
    rounded = np.load(tmp_path / "images.npz")["arr_0"]
    export(site, tmp_path, "npz")
    assert not np.array_equal(rounded, np.load(tmp_path / "images.npz")["arr_0"])


def test_what_was_begun_has_no_name_and_is_begun_anew(site, tmp_path, monkeypatch):
    original = exporting._compressed
    left = iter(range(6))

    def dies(image, form):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(image, form)

    monkeypatch.setattr(exporting, "_compressed", dies)
    for form, name in (("png", "png"), ("tar", "images.tar")):
        with pytest.raises(KeyboardInterrupt):
            exporting.export_images(
                tmp_path / f"{form}.done", form, HOW, samples_path=site.samples, tokenizer_path=site.tokenizer,
                index_path=site.index, device=CPU, threads=1, configuration="0" * 64,
            )  # fmt: skip
        assert not (tmp_path / name).exists()
        assert not (tmp_path / f"{form}.done").exists()
    monkeypatch.setattr(exporting, "_compressed", original)
    (tmp_path / ".png.tmp/n1/left.png").write_bytes(b"of the attempt before")
    export(site, tmp_path, "png")
    assert len(list(tmp_path.glob("png/*/*"))) == 11


@pytest.mark.parametrize("form", ["png", "tar", "npz"])
def test_a_full_disk_is_a_clear_message(site, small_disk, form):
    (small_disk / "filler").write_bytes(bytes(197_000))
    with pytest.raises(Fault, match=rf"{form}.done: its images cannot be written: .*No space left"):
        export(site, small_disk, form)
    assert not (small_disk / f"{form}.done").exists()


def test_parts_that_do_not_belong_together_are_refused(site, tmp_path):
    other = write_index(tmp_path / "other", np.array([0, 1]))
    with pytest.raises(Fault, match=r"has 2 classes, .* 3; give its own index"):
        export(SimpleNamespace(**vars(site) | {"index": other}), tmp_path, "png")
    samples = Samples.read(site.samples).model_copy(update={"tokenizer_sha256": "a" * 64, "files": {}})
    moved = site.samples.with_name("other.json")
    samples.write(moved)
    with pytest.raises(Fault, match="decode with the tokenizer that the generator was trained on"):
        export(SimpleNamespace(**vars(site) | {"samples": moved}), tmp_path, "png")
