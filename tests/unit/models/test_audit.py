"""The encoder's audit: its measures against their definitions, and every way in which an export is not what was said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from drifting_core import config as settings
from drifting_core.artifacts import EncoderAudit, Export
from drifting_core.artifacts.identity import operations
from drifting_core.data import draws
from drifting_core.data.latents import LatentStore
from drifting_core.faults import Fault
from drifting_core.models import auditing
from drifting_core.models.exports import AUTOENCODER, WEIGHTS, load_encoder, write_export
from drifting_core.models.mae import MaskedAutoencoder
from drifting_core.training import mae
from tests.unit.models.test_warm_start import export_encoder
from tests.unit.training.samples import CPU, small_configuration


@pytest.fixture
def encoder(demo_values: dict[str, Any]) -> settings.Encoder:
    return small_configuration(demo_values).encoder


def audit(metadata: Path, encoder: settings.Encoder, store: LatentStore) -> EncoderAudit:
    output = metadata.parent / "audit.json"
    auditing.audit_encoder(output, encoder, metadata, store.path, store.path, device=CPU, configuration="c")
    return EncoderAudit.read(output)


def test_what_is_there_is_written_down(tmp_path: Path, encoder: settings.Encoder, store: LatentStore) -> None:
    metadata = export_encoder(tmp_path / "mae-01234567" / "export", encoder)
    made, network = audit(metadata, encoder, store), load_encoder(metadata)[0]
    features = network.features(store.gather(torch.tensor([0]), torch.tensor([0])))
    assert (made.encoder, made.step, made.base_width, made.norm_groups) == ("mae-01234567", 3, 8, 2)
    assert made.blocks == list(encoder.blocks)
    assert made.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert made.feature_entries == len(features) + 1
    assert made.feature_vectors == sum(entry.shape[1] for entry in features.values()) + 1
    assert made.files == Export.read(metadata).files
    assert set(made.files) == {WEIGHTS, AUTOENCODER}
    assert made.inputs.keys() == {"encoder", "latents_train", "latents_val"}


def test_feature_counts_are_those_of_the_protocol() -> None:
    """Protocol 2.4: 86 entries and 6734 vectors per image at blocks 3-4-6-3 on 32 x 32."""
    with torch.device("meta"):
        network = MaskedAutoencoder(base_width=64).encoder
    network = network.to_empty(device="cpu")
    network.reset_parameters(0)
    entries = auditing._entries(network, (4, 32, 32))
    assert (len(entries), sum(entries)) == (86, 6734)


def test_measures_are_their_definitions(
    tmp_path: Path, encoder: settings.Encoder, store: LatentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image by image, from the autoencoder's own forward pass; the batch does not matter."""
    metadata = export_encoder(tmp_path, encoder)
    first = audit(metadata, encoder, store)
    monkeypatch.setattr(auditing, "_BATCH", 7)
    held_out = audit(metadata, encoder, store).held_out
    assert held_out.reconstruction_error == pytest.approx(first.held_out.reconstruction_error, rel=1e-5)
    module = MaskedAutoencoder(**mae.architecture(encoder, store), mask_patch_size=encoder.mask_patch_size)
    module.reset_parameters(7)
    latents, labels = store.gather(torch.arange(60), torch.zeros(60, dtype=torch.int64)), store.labels
    grid = module.mask_grid(16, 16)
    uniforms = draws.uniform(draws.key(0, "audit", "mask"), (60, *grid))
    with torch.no_grad():
        output = module(latents, labels, module.random_mask(uniforms, encoder.mask_ratio), 0.0)
        unmasked = module(latents, labels, torch.zeros(60, 1, 8, 8), 1.0)
        pooled = module.encoder(latents)["layer4"].mean(dim=(2, 3))
    assert held_out.reconstruction_error == pytest.approx(float(output.reconstruction.mean()), rel=1e-5)
    logits = module.classifier(pooled)
    assert torch.allclose(unmasked.classification, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    assert held_out.head_accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    means = torch.stack([pooled[labels == label].mean(0) for label in range(10)])
    nearest = (pooled[:, None] - means).square().sum(2).argmin(1)
    assert held_out.nearest_mean_accuracy == pytest.approx(float((nearest == labels).double().mean()))
    assert held_out.nearest_mean_accuracy > 0.2, "six images of a class make up their own mean"
    assert (held_out.images, held_out.training_images) == (60, 60)


def test_it_is_a_pure_function(tmp_path: Path, encoder: settings.Encoder, store: LatentStore) -> None:
    metadata = export_encoder(tmp_path, encoder)
    audit(metadata, encoder, store)
    first = (tmp_path / "audit.json").read_bytes()
    torch.manual_seed(99)
    audit(metadata, encoder, store)
    assert (tmp_path / "audit.json").read_bytes() == first


@hypothesis(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.integers(1, 9))
def test_class_means_are_of_some_images_of_each_class(labels: list[int], most: int) -> None:
    of = torch.tensor(labels)
    rows = auditing.some_of_each_class(of, most)
    assert len(rows.unique()) == len(rows)
    found, counts = of[rows].unique(return_counts=True)
    assert found.tolist() == sorted(set(labels))
    assert counts.tolist() == [min(most, labels.count(label)) for label in found.tolist()]


def test_without_an_autoencoder_the_nearest_mean_is_left(
    tmp_path: Path, encoder: settings.Encoder, store: LatentStore
) -> None:
    held_out = audit(export_encoder(tmp_path, encoder, whole=False), encoder, store).held_out
    assert held_out.reconstruction_error is None
    assert held_out.head_accuracy is None
    assert 0 <= held_out.nearest_mean_accuracy <= 1


def test_a_head_of_other_classes_has_no_accuracy(tmp_path: Path, encoder: settings.Encoder, store: LatentStore) -> None:
    held_out = audit(export_encoder(tmp_path, encoder, classes=20), encoder, store).held_out
    assert held_out.head_accuracy is None
    assert held_out.reconstruction_error is not None


def test_everything_that_differs_is_said_at_once(tmp_path: Path, encoder: settings.Encoder, store: LatentStore) -> None:
    metadata = export_encoder(tmp_path, encoder.model_copy(update={"base_width": 16}), scaling_factor=2.0)
    changed = Export.read(metadata)
    changed.model_copy(update={"parameters": 7}).write(metadata)
    (tmp_path / WEIGHTS).write_bytes(b"short")
    (tmp_path / AUTOENCODER).unlink()
    with pytest.raises(Fault) as caught:
        audit(metadata, encoder.model_copy(update={"norm_groups": 3}), store)
    for said in (
        "encoder.base_width: 8, the export has 16",
        "encoder.norm_groups: 3, the export has 2",
        "latents.scaling_factor: the export knows 2.0, the stored ones have 1.0",
        "model.safetensors: 5 bytes",
        "autoencoder.safetensors: missing",
        "parameters: 7, an encoder of its architecture has",
    ):
        assert said in str(caught.value)
    assert not (tmp_path / "audit.json").exists()


def test_an_autoencoder_around_another_encoder_is_refused(
    tmp_path: Path, encoder: settings.Encoder, store: LatentStore
) -> None:
    metadata = export_encoder(tmp_path, encoder)
    architecture = mae.architecture(encoder, store)
    one, other = MaskedAutoencoder(**architecture), MaskedAutoencoder(**architecture)
    one.reset_parameters(1)
    other.reset_parameters(2)
    export = Export.read(metadata)
    write_export(
        metadata, "encoder", one.encoder.state_dict(), export.architecture, step=3, ema_decay=0.9, latents=export.latents,
        configuration="0", inputs={}, autoencoder=other.state_dict(),
    )  # fmt: skip
    with pytest.raises(Fault, match=r"its conv1.weight is not that of model.safetensors"):
        audit(metadata, encoder, store)


def test_the_generator_refuses_another_encoder_and_another_audit(
    tmp_path: Path, encoder: settings.Encoder, store: LatentStore
) -> None:
    right, wide = tmp_path / "right", encoder.model_copy(update={"base_width": 16})
    metadata, other = export_encoder(right, encoder), export_encoder(tmp_path / "wide", wide)
    audit(metadata, encoder, store)
    audit(other, wide, store)
    auditing.require_audited(metadata, right / "audit.json", encoder)
    with pytest.raises(Fault, match="is the audit of another export"):
        auditing.require_audited(metadata, other.parent / "audit.json", encoder)
    with pytest.raises(Fault, match="encoder.base_width: 8, the export has 16"):
        auditing.require_audited(other, other.parent / "audit.json", encoder)


def test_the_training_script_refuses_before_any_state(
    tmp_path: Path, demo_values: dict[str, Any], store: LatentStore, root: Path
) -> None:
    """An export of width 16 where the configuration says 8: exit 1 and one message, nothing in the run's folder."""
    small = small_configuration(demo_values)
    wide = small.encoder.model_copy(update={"base_width": 16})
    metadata = export_encoder(tmp_path / "wide", wide)
    audit(metadata, wide, store)
    run = tmp_path / "run"
    command = [
        sys.executable, str(root / "workflow_scripts/train_generator.py"), "--config", json.dumps(small.stage_slice("run")),
        "--operations", json.dumps(operations(small)), "--until", "2", "--latents", str(store.path), "--verification",
        str(tmp_path / "verify_train.json"), "--encoder", str(metadata), "--audit", str(metadata.parent / "audit.json"),
        "--output", str(run / "exports/step_2/metadata.json"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines() == [
        f"error: {metadata}: not the audited encoder that the configuration describes:",
        "  encoder.base_width: 8, the export has 16",
        "set these keys to what it has, or make the export again",
    ]
    assert [path.name for path in run.iterdir()] == [".lease"]


def test_the_table_has_a_row_for_each_encoder(tmp_path: Path, encoder: settings.Encoder, store: LatentStore) -> None:
    paths = []
    for name, whole in (("one-01234567", True), ("two-01234567", False)):
        metadata = export_encoder(tmp_path / name / "export", encoder, whole=whole)
        audit(metadata, encoder, store)
        paths.append(metadata.parent / "audit.json")
    header, one, two, held_out = auditing.table(paths).splitlines()
    assert header.split("  ")[0] == "encoder"
    assert one.split()[:2] == ["one-01234567", "8"]
    assert two.split()[2:4] == ["-", "-"]
    assert held_out == "measured on 60 held-out images"
