"""From a job's files to a trained network: what train_encoder, export_encoder and train_generator do."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from drifting_core.artifacts import EncoderTrained, LatentVerification, hashes
from drifting_core.data.latents import LatentStore, Residency
from drifting_core.devices import device
from drifting_core.faults import Fault
from drifting_core.jobs import StopRequest
from drifting_core.models.exports import load_encoder, write_export
from drifting_core.provenance import code_version
from drifting_core.training import generator as drifting
from drifting_core.training import mae, records
from drifting_core.training.events import metrics_of
from drifting_core.training.loop import train
from drifting_core.training.run_page import write_page
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
    encoder, folder = parts["encoder"], output.parent
    metrics = metrics_of(folder, encoder.tensorboard)
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
    state = StateFolder(folder / "state", configuration)
    steps = encoder.training.steps
    page = functools.partial(
        write_page, folder, "A latent-MAE, whose encoder gives the features of the drift.", {"encoder": encoder},
        configuration=configuration, horizon=steps, made_from={"latents": latents}, contract=store.contract,
    )  # fmt: skip
    records.write_surroundings(folder)
    page()
    train(
        trainee, state, metrics, until=steps, commit_every=encoder.commit_every, log_every=encoder.log_every, stop=stop,
        label="latent-MAE",
    )  # fmt: skip
    records.write_encoder_summary(folder, encoder, encoder.training, store, steps)
    EncoderTrained(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"latents": latents, "verification": verification, **dict(zip(_CROPS, crops, strict=False))}),
        files=state.record(steps),
        step=steps,
    ).write(output)
    page()


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
    training, run = parts["training"], output.parent.parent.parent
    metrics = metrics_of(run, training.tensorboard)
    on = device(training.resources.gpus, threads)
    store = _verified_store(latents, verification, parts["data"].latents.residency, on)
    network, export = load_encoder(encoder)
    store.require_contract(export.latents, f"the encoder {encoder}")
    trainee = drifting.DriftTraining(parts["generator"], parts["objective"], training, store, network, on)
    page = functools.partial(
        write_page, run, "A one-step generator, trained by drifting (arXiv 2602.04770).",
        {name: parts[name] for name in ("generator", "objective", "training")}, configuration=configuration,
        horizon=training.steps, made_from={"latents": latents, "encoder": encoder}, contract=store.contract,
    )  # fmt: skip
    records.write_surroundings(run)
    records.write_latent_summary(run, store)
    page()
    train(
        trainee, StateFolder(run / "state", configuration), metrics, until=until, commit_every=training.commit_every,
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
    )
    page()


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
