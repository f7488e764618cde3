"""Exports: the averaged weights are what stages read; raw ones lie beside them on request, listed and hashed."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from drifting_core.artifacts import Export, LatentContract
from drifting_core.faults import Fault
from drifting_core.models.exports import RAW, load_generator, read_weights, write_export
from drifting_core.models.generator import Generator

ARCHITECTURE = {
    "input_size": 8, "channels": 4, "patch_size": 4, "hidden_size": 16, "depth": 1, "num_heads": 2, "cond_dim": 8,
    "num_classes": 3, "in_context_tokens": 1, "style_tables": 2, "style_entries": 4,
}  # fmt: skip
CONTRACT = LatentContract(
    tokenizer_sha256="b" * 64, scaling_factor=1.0, posterior="mean", views=["image"], dtype="float16", precision="float32",
    pre_encode_transforms=[],
)  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    made = Generator(**ARCHITECTURE)
    made.reset_parameters(0)
    return dict(made.named_parameters())


def write(folder, weights, raw=None):
    write_export(
        folder / "metadata.json", "generator", weights, ARCHITECTURE, step=1, ema_decay=0.9, latents=CONTRACT,
        configuration="0" * 64, inputs={}, raw=raw,
    )  # fmt: skip
    return folder / "metadata.json"


def test_raw_weights_are_listed_and_the_averaged_ones_are_read(weights, tmp_path):
    raw = {name: parameter + 1 for name, parameter in weights.items()}
    metadata = write(tmp_path, weights, raw)
    assert set(Export.read(metadata).files) == {"model.safetensors", "raw.safetensors"}
    network, _ = load_generator(metadata)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.named_parameters())
    stored = safetensors.torch.load_file(tmp_path / "raw.safetensors")
    assert stored.keys() == raw.keys()
    assert all(torch.equal(stored[name], raw[name]) for name in raw)


def test_the_same_job_leaves_the_same_bytes_and_raw_changes_nothing_else(weights, tmp_path):
    one, two, plain = (write(tmp_path / name, weights, raw) for name, raw in (("1", weights), ("2", weights), ("3", None)))
    assert one.read_bytes() == two.read_bytes()
    assert set(Export.read(plain).files) == {"model.safetensors"}
    assert Export.read(plain).files["model.safetensors"] == Export.read(one).files["model.safetensors"]


def test_a_changed_raw_file_is_said(weights, tmp_path):
    metadata = write(tmp_path, weights, weights)
    content = bytearray((tmp_path / "raw.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "raw.safetensors").write_bytes(content)
    with pytest.raises(Fault, match=r"raw\.safetensors: .* was changed"):
        read_weights(metadata, Export.read(metadata), RAW)
