"""The tokenizer: loading, refusing, training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from drifting_core import config
from drifting_core.artifacts import TokenizerManifest
from drifting_core.data.photos import photos
from drifting_core.faults import Fault
from drifting_core.models import tokenizer_making as making
from drifting_core.models.tokenizer import CONFIG, WEIGHTS, Tokenizer, normalised
from drifting_core.sources.fetching import write_fetched

HASH = "0" * 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def section(**changed: Any) -> config.Tokenizer:
    training = {
        "channels": [8, 8], "norm_groups": 4, "steps": 4, "batch": 4, "learning_rate": 2e-3, **changed.pop("training", {}),
    }  # fmt: skip
    return config.Tokenizer.model_validate({"source": "trained", "factor": 2, "training": training, **changed})


@pytest.fixture(scope="module")
def some_photos() -> torch.Tensor:
    return torch.from_numpy(photos("train")[:, :3].reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    making.small_autoencoder(section()).save_pretrained(tmp_path / "given", safe_serialization=True)
    return tmp_path / "given"


def train(output: Path, images: torch.Tensor, **training: Any) -> TokenizerManifest:
    return making.train(section(training=training), images, images[:8], output, HASH, {})


def test_shapes_ranges_and_scale(folder: Path, some_photos: torch.Tensor) -> None:
    tokenizer = Tokenizer(folder)
    mean, std = tokenizer.encode_moments(some_photos[:3])
    assert mean.shape == std.shape == (3, 4, 16, 16)
    assert mean.dtype == std.dtype == torch.float32
    assert (tokenizer.factor, tokenizer.channels) == (2, 4)
    images = tokenizer.decode(torch.randn(3, 4, 16, 16) * 50)
    assert images.shape == (3, 3, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1


def test_bytes_and_floats_are_the_same_images(folder: Path, some_photos: torch.Tensor) -> None:
    tokenizer = Tokenizer(folder)
    by_bytes, _ = tokenizer.encode_moments(some_photos[:2])
    by_floats, _ = tokenizer.encode_moments(some_photos[:2].float() / 127.5 - 1)
    assert torch.equal(by_bytes, by_floats)
    assert normalised(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_bfloat16_is_near_float32_and_still_returns_float32(folder: Path, some_photos: torch.Tensor) -> None:
    exact, _ = Tokenizer(folder).encode_moments(some_photos[:2])
    rough, _ = Tokenizer(folder, precision="bfloat16").encode_moments(some_photos[:2])
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max() + 0.05


def test_training_is_reproducible_and_learns(tmp_path: Path, some_photos: torch.Tensor) -> None:
    before = torch.get_rng_state()
    first = train(tmp_path / "a" / "manifest.json", some_photos)
    assert torch.equal(torch.get_rng_state(), before)
    train(tmp_path / "b" / "manifest.json", some_photos)
    for name in ("manifest.json", f"vae/{CONFIG}", f"vae/{WEIGHTS}"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    longer = train(tmp_path / "c" / "manifest.json", some_photos, steps=40)
    assert first.psnr_db is not None
    assert longer.psnr_db is not None
    assert longer.psnr_db > first.psnr_db + 1
    assert longer.weights_sha256 != first.weights_sha256


def test_scaled_posterior_samples_have_standard_deviation_one(tmp_path: Path, some_photos: torch.Tensor) -> None:
    train(tmp_path / "manifest.json", some_photos)
    tokenizer = Tokenizer.of(tmp_path / "manifest.json")
    mean, std = tokenizer.encode_moments(some_photos)
    torch.manual_seed(1)
    scaled = (mean + std * torch.randn_like(mean)) * tokenizer.scaling_factor
    assert abs(scaled.std().item() - 1) < 0.01


def test_posterior_variances_start_small(some_photos: torch.Tensor) -> None:
    torch.manual_seed(0)
    std = making.small_autoencoder(section()).encode(normalised(some_photos[:4])).latent_dist.std
    assert 0.02 < std.mean().item() < 0.12  # exp(-6 / 2) = 0.05


def test_a_folder_is_adopted_whole(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "taken" / "manifest.json"
    given = config.Tokenizer.model_validate({"source": "folder", "folder": str(folder), "factor": 2})
    made = making.obtain(given, None, None, output, HASH, torch.device("cpu"))
    assert made == TokenizerManifest.read(output)
    assert set(made.files) == {f"vae/{CONFIG}", f"vae/{WEIGHTS}"}
    assert Tokenizer.of(output).sha256 == made.weights_sha256
    assert str(tmp_path) not in output.read_text()


def _nothing(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _another_class(folder: Path) -> None:
    (folder / CONFIG).write_text(json.dumps({"_class_name": "UNet2DModel"}))


def _no_json(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


def _cut_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def _one_tensor_less(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["decoder.conv_out.weight"]
    save_file(tensors, folder / WEIGHTS)


def _other_widths(folder: Path) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, "block_out_channels": [8, 16]}))


@pytest.mark.parametrize(
    "damage", [_nothing, _no_weights, _another_class, _no_json, _cut_weights, _one_tensor_less, _other_widths]
)
def test_a_folder_that_is_no_tokenizer_is_refused(folder: Path, tmp_path: Path, damage: Any) -> None:
    damage(folder)
    given = config.Tokenizer.model_validate({"source": "folder", "folder": str(folder), "factor": 2})
    with pytest.raises(Fault, match=rf"{folder}: not a tokenizer: .*tokenizer.folder"):
        making.obtain(given, None, None, tmp_path / "taken" / "manifest.json", HASH, torch.device("cpu"))
    assert not (tmp_path / "taken" / "manifest.json").exists()


def test_a_tokenizer_of_another_factor_is_refused(folder: Path, tmp_path: Path) -> None:
    given = config.Tokenizer.model_validate({"source": "folder", "folder": str(folder), "factor": 8})
    with pytest.raises(Fault, match="tokenizer.factor: 8, but the tokenizer from folder given has 2"):
        making.obtain(given, None, None, tmp_path / "manifest.json", HASH, torch.device("cpu"))
    with pytest.raises(Fault, match=r"tokenizer.training.channels: 2 resolutions make a factor of 2"):
        making.small_autoencoder(section(factor=4))


def test_changed_weights_are_noticed_through_the_manifest(tmp_path: Path, some_photos: torch.Tensor) -> None:
    train(tmp_path / "manifest.json", some_photos, steps=1)
    weights = tmp_path / "vae" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(Fault, match="it was changed"):
        Tokenizer.of(tmp_path / "manifest.json")


def test_a_published_tokenizer_is_taken_from_where_it_was_fetched(folder: Path, tmp_path: Path) -> None:
    """No job but the fetch asks the hub: the tokenizer is adopted from its folder, checked against its manifest."""
    hub = config.HubTokenizer(id="somebody/vae", revision="31f26fdeee1355a5c34592e401dd41e45d25a493")
    given = config.Tokenizer(source="hub", hub=hub, factor=2)
    assert given.download is not None
    fetched = tmp_path / "sources" / given.download.key
    shutil.copytree(folder, fetched)
    with pytest.raises(Fault, match="give --fetched"):
        making.obtain(given, None, None, tmp_path / "taken/manifest.json", HASH, torch.device("cpu"))
    write_fetched(given.download, fetched / "manifest.json", HASH)
    made = making.obtain(
        given, None, None, tmp_path / "taken/manifest.json", HASH, torch.device("cpu"), fetched=fetched / "manifest.json"
    )
    assert made.source == "somebody/vae at 31f26fdeee1355a5c34592e401dd41e45d25a493"
    assert set(made.inputs) == {"fetched"}
    (fetched / WEIGHTS).write_bytes(b"other")
    with pytest.raises(Fault, match="its manifest says"):
        making.obtain(
            given, None, None, tmp_path / "again/manifest.json", HASH, torch.device("cpu"), fetched=fetched / "manifest.json"
        )


def test_training_that_diverges_stops(tmp_path: Path, some_photos: torch.Tensor) -> None:
    with pytest.raises(Fault, match=r"lower tokenizer.training.learning_rate"):
        train(tmp_path / "manifest.json", some_photos, learning_rate=1e6, steps=30)


def test_a_lost_colour_costs_more_than_as_large_an_error_of_brightness() -> None:
    """Without this, reconstructed grass was brown."""
    grey = torch.zeros(1, 3, 4, 4)
    green = grey + torch.tensor([-0.1, 0.1, -0.1])[:, None, None]
    assert making._restoration_error(green, grey) > 2 * making._restoration_error(grey + 0.1, grey)
