"""Warm starts: step 0 has an export's EMA weights, where the export fits; a state that began elsewhere is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drifting_core import config as settings
from drifting_core.data.latents import LatentStore
from drifting_core.faults import Fault
from drifting_core.models.exports import AUTOENCODER, WEIGHTS, read_weights, write_export
from drifting_core.models.generator import Generator
from drifting_core.models.mae import MaskedAutoencoder
from drifting_core.models.warm_start import WarmStart
from drifting_core.training import generator as drifting
from drifting_core.training import mae
from drifting_core.training.loop import MetricsFile, train
from drifting_core.training.state import StateFolder
from tests.unit.training.samples import CONTRACT, CPU, NEVER


def export_encoder(folder: Path, encoder: settings.Encoder, whole: bool = True, classes: int = 10, **contract: Any) -> Path:
    """An encoder of seed 7, with or without its decoder and classifier."""
    architecture = mae.encoder_architecture(encoder, 4)
    module = MaskedAutoencoder(**architecture, num_classes=classes, mask_patch_size=encoder.mask_patch_size)
    module.reset_parameters(7)
    write_export(
        folder / "metadata.json", "encoder", module.encoder.state_dict(), architecture, step=3, ema_decay=0.9,
        latents=CONTRACT.model_copy(update=contract), configuration="0", inputs={},
        autoencoder=module.state_dict() if whole else None,
    )  # fmt: skip
    return folder / "metadata.json"


def training(small: settings.Configuration, store: LatentStore, start: Path | None) -> mae.MaskedTraining:
    warm_start = WarmStart(start, "encoder") if start else None
    return mae.MaskedTraining(small.encoder, store, mae.StoredLatents(store), CPU, warm_start=warm_start)


def begun(trainee: Any) -> dict[str, Tensor]:
    trainee.begin()
    return {name: tensor.clone() for name, tensor in trainee.tensors().items()}


def run(trainee: Any, folder: Path, until: int, start: Path | None) -> dict[str, Tensor]:
    began = {"init_from": WarmStart(start, "encoder").sha256} if start else {}
    train(
        trainee, StateFolder(folder / "state", "c", inputs=began), MetricsFile(folder / "metrics.jsonl"), until=until,
        commit_every=9, log_every=9, stop=NEVER, label="test",
    )  # fmt: skip
    return {name: tensor.clone() for name, tensor in trainee.tensors().items()}


def test_weights_and_ema_begin_as_the_export_has_them(tmp_path: Path, small: Any, store: LatentStore) -> None:
    start = export_encoder(tmp_path, small.encoder)
    tensors, exported = (
        begun(training(small, store, start)),
        read_weights(start, WarmStart(start, "encoder").export, AUTOENCODER),
    )
    seeded = begun(training(small, store, None))
    assert {name.removeprefix("ema.") for name in tensors if name.startswith("ema.")} == exported.keys()
    for name, tensor in exported.items():
        assert torch.equal(tensors[f"weights.{name}"], tensor)
        assert torch.equal(tensors[f"ema.{name}"], tensor)
        assert not tensors[f"first.{name}"].any()
    assert not torch.equal(tensors["weights.encoder.conv1.weight"], seeded["weights.encoder.conv1.weight"])


def test_without_an_autoencoder_the_rest_begins_from_the_seed_and_says_so(
    tmp_path: Path, small: Any, store: LatentStore, caplog: pytest.LogCaptureFixture
) -> None:
    start = export_encoder(tmp_path, small.encoder, whole=False)
    tensors, seeded = begun(training(small, store, start)), begun(training(small, store, None))
    assert "decoder and classifier from the seed" in caplog.text
    exported = read_weights(start, WarmStart(start, "encoder").export, WEIGHTS)
    for name in (name for name in tensors if name.startswith("weights.")):
        inner = name.removeprefix("weights.encoder.")
        assert torch.equal(tensors[name], exported[inner] if inner in exported else seeded[name]), name


def test_the_generator_begins_from_an_export(tmp_path: Path, small: Any, store: LatentStore) -> None:
    architecture = drifting.architecture(small.generator, store, "float32")
    module = Generator(**architecture)
    module.reset_parameters(7)
    write_export(
        tmp_path / "metadata.json", "generator", module.state_dict(), architecture, step=3, ema_decay=0.9,
        latents=CONTRACT, configuration="0", inputs={},
    )  # fmt: skip
    start = WarmStart(tmp_path / "metadata.json", "generator")
    encoder = MaskedAutoencoder(**mae.architecture(small.encoder, store)).encoder
    trainee = drifting.DriftTraining(small.generator, small.objective, small.training, store, encoder, CPU, warm_start=start)
    tensors = begun(trainee)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensors[f"weights.{name}"], tensor)
        assert torch.equal(tensors[f"ema.{name}"], tensor)
    assert int(tensors["position"]) > 0, "the bank is filled as well"


def test_an_export_that_does_not_fit_is_refused_with_every_difference(
    tmp_path: Path, small: Any, store: LatentStore
) -> None:
    other = small.encoder.model_copy(update={"base_width": 16, "norm_groups": 4})
    start = export_encoder(tmp_path, other, scaling_factor=2.0)
    with pytest.raises(Fault) as caught:
        training(small, store, start).begin()
    for said in (
        f"{start}: a training of the encoder that the configuration describes cannot start from this export",
        "base_width: here 8, in the export 16",
        "norm_groups: here 2, in the export 4",
        "latents.scaling_factor: here 1.0, in the export 2.0",
    ):
        assert said in str(caught.value)


def test_a_classifier_of_other_classes_is_refused(tmp_path: Path, small: Any, store: LatentStore) -> None:
    start = export_encoder(tmp_path, small.encoder, classes=20)
    with pytest.raises(Fault, match=r"classifier.bias: here \[10\], in the export \[20\]"):
        training(small, store, start).begin()


def test_a_changed_file_and_another_network_are_refused(tmp_path: Path, small: Any, store: LatentStore) -> None:
    start = export_encoder(tmp_path, small.encoder)
    with pytest.raises(Fault, match="holds the weights of a encoder, expected those of a generator"):
        WarmStart(start, "generator")
    content = bytearray((tmp_path / AUTOENCODER).read_bytes())
    content[-1] ^= 1
    (tmp_path / AUTOENCODER).write_bytes(content)
    with pytest.raises(Fault, match="it was changed"):
        training(small, store, start).begin()


def test_a_resumed_run_does_not_begin_again(tmp_path: Path, small: Any, store: LatentStore) -> None:
    """The export's file may even be gone: a committed state needs its hash only."""
    start = export_encoder(tmp_path / "export", small.encoder)
    whole = run(training(small, store, start), tmp_path / "whole", 4, start)
    run(training(small, store, start), tmp_path / "parts", 2, start)
    (start.parent / AUTOENCODER).unlink()
    parts = run(training(small, store, start), tmp_path / "parts", 4, start)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_state_that_began_elsewhere_is_refused(tmp_path: Path, small: Any, store: LatentStore) -> None:
    start = export_encoder(tmp_path / "export", small.encoder)
    run(training(small, store, None), tmp_path, 2, None)
    with pytest.raises(Fault, match="began from the seed, this training begins from"):
        run(training(small, store, start), tmp_path, 4, start)
