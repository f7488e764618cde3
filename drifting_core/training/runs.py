"""From a job's files to a trained network: what train_encoder, export_encoder and train_generator do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from drifting_core.artifacts import EncoderTrained, LatentVerification, hashes, publish_text
from drifting_core.data.latents import LatentStore, Residency
from drifting_core.devices import device
from drifting_core.faults import Fault
from drifting_core.jobs import StopRequest
from drifting_core.models.exports import load_encoder, write_export
from drifting_core.provenance import code_version, environment
from drifting_core.training import generator as drifting
from drifting_core.training import mae
from drifting_core.training.loop import MetricsFile, train
from drifting_core.training.state import StateFolder

log = logging.getLogger(__name__)

_CROPS = ("crops", "crops_verification")  # roles of what an encoder with augmentation: views also reads


def train_encoder(
    parts: Mapping[str, Any],
    *,
    configuration: str,
    latents: Path,
    verification: Path,
    tokenizer: Path,
    index: Path,
    crops: Sequence[Path],
    output: Path,
    threads: int,
    stop: StopRequest,
) -> None:
    """Bring the latent-MAE to its last step; `output` then stands for its final state."""
    encoder = parts["encoder"]
    on = device(encoder.resources.gpus, threads)
    store = _verified_store(latents, verification, parts["data"].latents.residency, on)
    source: mae.Source = mae.StoredLatents(store)
    if encoder.augmentation == "online":
        from drifting_core.training.crops import OnlineCrops  # brings the tokenizer's library, which takes seconds

        source = OnlineCrops(
            parts["data"],
            encoder,
            index=index,
            tokenizer=tokenizer,
            rejects=store.manifest.rejects,
            device=on,
            threads=threads,
        )
    if encoder.augmentation == "views":
        of_crops, crops_verification = crops
        stored = _verified_store(of_crops, crops_verification, parts["data"].latents.residency, on)
        # Crops differ from the centre crops in what was encoded, and in nothing else.
        seen = {"views": store.contract.views, "pre_encode_transforms": store.contract.pre_encode_transforms}
        store.require_contract(stored.contract.model_copy(update=seen), str(stored.path))
        source = mae.StoredLatents(stored)
    trainee = mae.MaskedTraining(encoder, store, source, on)
    state = StateFolder(output.parent / "state", configuration)
    _write_snapshot(output.parent)
    steps = encoder.training.steps
    train(
        trainee, state, MetricsFile(output.parent / "metrics.jsonl"), until=steps, commit_every=encoder.commit_every,
        log_every=encoder.log_every, stop=stop, label="latent-MAE",
    )  # fmt: skip
    EncoderTrained(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"latents": latents, "verification": verification, **dict(zip(_CROPS, crops, strict=False))}),
        files=state.record(steps),
        step=steps,
    ).write(output)


def export_encoder(parts: Mapping[str, Any], *, configuration: str, trained: Path, latents: Path, output: Path) -> None:
    """Write the encoder's EMA weights where later stages look for them."""
    record = EncoderTrained.read(trained)
    record.verify(trained.parent)
    [name] = record.files
    encoder, store = parts["encoder"], LatentStore(latents)
    write_export(
        output,
        "encoder",
        mae.encoder_weights(safetensors.torch.load_file(trained.parent / name)),
        mae.encoder_architecture(encoder, store.shape[0]),
        step=record.step,
        ema_decay=encoder.training.ema,
        latents=store.contract,
        configuration=configuration,
        inputs=hashes({"trained": trained, "latents": latents}),
    )


def train_generator(
    parts: Mapping[str, Any],
    *,
    configuration: str,
    until: int,
    latents: Path,
    verification: Path,
    encoder: Path,
    output: Path,
    threads: int,
    stop: StopRequest,
) -> None:
    """Bring the generator to `until` steps and export its EMA weights."""
    training = parts["training"]
    on = device(training.resources.gpus, threads)
    store = _verified_store(latents, verification, parts["data"].latents.residency, on)
    network, export = load_encoder(encoder)
    store.require_contract(export.latents, f"the encoder {encoder}")
    trainee = drifting.DriftTraining(parts["generator"], parts["objective"], training, store, network, on)
    run = output.parent.parent.parent
    _write_snapshot(run)
    state = StateFolder(run / "state", configuration, exports=run / "exports")
    train(
        trainee, state, MetricsFile(run / "metrics.jsonl"), until=until, commit_every=training.commit_every,
        log_every=training.log_every, stop=stop, label="generator",
    )  # fmt: skip
    write_export(
        output,
        "generator",
        trainee.optimisation.ema,
        drifting.architecture(parts["generator"], store, training.precision),
        step=until,
        ema_decay=training.ema,
        latents=store.contract,
        configuration=configuration,
        inputs=hashes({"latents": latents, "verification": verification, "encoder": encoder}),
        raw=trainee.optimisation.parameters if training.export_raw else None,
    )


def _verified_store(latents: Path, verification: Path, residency: Residency, on: torch.device) -> LatentStore:
    """The training latents, if the verification is of these very ones. Raises Fault."""
    checked = LatentVerification.read(verification)
    if checked.inputs.get("latents") != hashes({"latents": latents})["latents"]:
        raise Fault(f"{verification}: verifies other latents than {latents}; make the verification again")
    if residency == "gpu" and on.type != "cuda":
        raise Fault(f"data.latents.residency: gpu, but this job computes on the {on.type}; set it to ram or mmap")
    for left in checked.not_looked_at:
        log.warning("%s: %s verification did not look at %s", verification, checked.scope, left)
    return LatentStore(latents, residency, on)


def _write_snapshot(folder: Path) -> None:
    """env_snapshot.json: where this training last ran, with which packages. No artifact refers to it."""
    publish_text(folder / "env_snapshot.json", environment().model_dump_json(indent=1) + "\n")
