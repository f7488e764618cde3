"""From a job's files to a trained network: what train_encoder, export_encoder and train_generator do."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from drifting_core import config
from drifting_core.artifacts import EncoderTrained, LatentVerification, hashes
from drifting_core.artifacts.provenance import code_version
from drifting_core.costs import estimates
from drifting_core.data.latents import LatentStore, Residency
from drifting_core.faults import Fault
from drifting_core.jobs.devices import device, peak_flops, place
from drifting_core.jobs.job import StopRequest
from drifting_core.models.auditing import require_audited
from drifting_core.models.exports import load_encoder, write_export
from drifting_core.models.warm_start import WarmStart
from drifting_core.training import generator as drifting
from drifting_core.training import mae, records
from drifting_core.training.events import metrics_of
from drifting_core.training.loop import NoMetrics, Sink, Work, train
from drifting_core.training.parallel import Ranks, joined
from drifting_core.training.run_page import write_page
from drifting_core.training.state import StateFolder, Stored

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
    init_from: Path | None,
    output: Path,
    threads: int,
    stop: StopRequest,
) -> None:
    """Bring the latent-MAE to its last step; `output` then stands for its final state."""
    encoder, folder, steps = parts["encoder"], output.parent, parts["encoder"].recipe.steps
    warm_start = WarmStart(init_from, "encoder") if init_from else None
    with _on_devices(encoder.resources, threads) as (on, ranks):
        metrics = _metrics(folder, encoder.tensorboard, ranks)
        store = _verified_store(latents, verification, parts["data"].latents.residency, on)
        source = _source(parts, store, tokenizer, index, crops, on, threads)
        peak = peak_flops(on, encoder.recipe.precision, ranks.size)
        work = Work(encoder.recipe.batch, 2 * estimates.encoder_step_macs(estimates.of_sections(parts)), peak)
        trainee = mae.MaskedTraining(encoder, store, source, on, ranks, work, warm_start)
        state = StateFolder(folder / "state", configuration, ranks, inputs=_began_from(warm_start))
        page = functools.partial(
            write_page, folder, "A latent-MAE, whose encoder gives the features of the drift.", {"encoder": encoder},
            configuration=configuration, horizon=steps, made_from={"latents": latents}, contract=store.contract,
        )  # fmt: skip
        if ranks.rank == 0:
            records.write_surroundings(folder)
            page()
        train(
            trainee, state, metrics, until=steps, commit_every=encoder.commit_every, log_every=encoder.log_every,
            stop=stop, label="latent-MAE", ranks=ranks,
        )  # fmt: skip
        if ranks.rank == 0:
            records.write_encoder_summary(folder, encoder, encoder.recipe, store, steps)
            read = {"latents": latents, "verification": verification, **dict(zip(_CROPS, crops, strict=False))}
            EncoderTrained(
                configuration=configuration,
                code=code_version(),
                inputs=hashes(read | ({"init_from": init_from} if init_from else {})),
                files=state.record(steps),
                step=steps,
            ).write(output)
            page()


def export_encoder(parts: Mapping[str, Any], *, configuration: str, trained: Path, latents: Path, output: Path) -> None:
    """Write the encoder's EMA weights where later stages look for them, and the whole autoencoder's."""
    record = EncoderTrained.read(trained)
    record.verify(trained.parent)
    encoder, store = parts["encoder"], LatentStore(latents)
    autoencoder = mae.autoencoder_weights(Stored((trained.parent / next(iter(record.files))).parent))
    write_export(
        output,
        "encoder",
        mae.encoder_weights(autoencoder),
        mae.encoder_architecture(encoder, store.shape[0]),
        step=record.step,
        ema_decay=encoder.recipe.ema,
        latents=store.contract,
        configuration=configuration,
        inputs=hashes({"trained": trained, "latents": latents}),
        autoencoder=autoencoder,
    )


def train_generator(
    parts: Mapping[str, Any],
    *,
    configuration: str,
    until: int,
    latents: Path,
    verification: Path,
    encoder: Path,
    audit: Path,
    init_from: Path | None,
    output: Path,
    threads: int,
    stop: StopRequest,
) -> None:
    """Bring the generator to `until` steps and export its EMA weights."""
    training, objective, run = parts["training"], parts["objective"], output.parent.parent.parent
    require_audited(encoder, audit, parts["encoder"])
    warm_start = WarmStart(init_from, "generator") if init_from else None
    with _on_devices(training.resources, threads) as (on, ranks):
        metrics = _metrics(run, training.tensorboard, ranks)
        store = _verified_store(latents, verification, parts["data"].latents.residency, on)
        network, export = load_encoder(encoder)
        store.require_contract(export.latents, f"the encoder {encoder}")
        peak = peak_flops(on, training.precision, ranks.size)
        images = objective.classes_per_step * objective.generated_per_class
        work = Work(images, 2 * estimates.step_macs(estimates.of_sections(parts), recomputed=False), peak)
        trainee = drifting.DriftTraining(
            parts["generator"], objective, training, store, network, on, ranks, work, warm_start
        )  # fmt: skip
        began_from = _began_from(warm_start)
        state = StateFolder(run / "state", configuration, ranks, inputs=began_from, exports=run / "exports")
        page = functools.partial(
            write_page, run, "A one-step generator, trained by drifting (arXiv 2602.04770).",
            {name: parts[name] for name in ("generator", "objective", "training")}, configuration=configuration,
            horizon=training.steps, made_from={"latents": latents, "encoder": encoder}, contract=store.contract,
        )  # fmt: skip
        if ranks.rank == 0:
            records.write_surroundings(run)
            records.write_latent_summary(run, store)
            page()
        train(
            trainee, state, metrics, until=until, commit_every=training.commit_every, log_every=training.log_every,
            stop=stop, label="generator", ranks=ranks,
        )  # fmt: skip
        if ranks.rank == 0:
            read = {"latents": latents, "verification": verification, "encoder": encoder, "audit": audit}
            write_export(
                output,
                "generator",
                trainee.optimisation.ema,
                trainee.architecture,
                step=until,
                ema_decay=training.ema,
                latents=store.contract,
                configuration=configuration,
                inputs=hashes(read | ({"init_from": init_from} if init_from else {})),
                raw=trainee.optimisation.parameters if training.export_raw else None,
            )
            page()


@contextmanager
def _on_devices(resources: config.Resources, threads: int) -> Iterator[tuple[torch.device, Ranks]]:
    """This process's device, and the ranks of its job, joined."""
    here = place(resources.processes)
    on = device(resources.gpus, threads, here.local_rank if here else 0)
    with joined(here, on) as ranks:
        yield on, ranks


def _metrics(folder: Path, tensorboard: bool, ranks: Ranks) -> Sink:
    """Of several ranks the first writes the numbers."""
    return metrics_of(folder, tensorboard) if ranks.rank == 0 else NoMetrics()


def _source(
    parts: Mapping[str, Any],
    store: LatentStore,
    tokenizer: Path,
    index: Path,
    crops: Sequence[Path],
    on: torch.device,
    threads: int,
) -> mae.Source:
    """What the encoder is trained on: the stored latents, stored crops, or crops encoded in the loop."""
    encoder, data = parts["encoder"], parts["data"]
    if encoder.augmentation == "online":
        from drifting_core.training.crops import OnlineCrops  # brings the tokenizer's library, which takes seconds

        return OnlineCrops(
            data, encoder, index=index, tokenizer=tokenizer, rejects=store.manifest.rejects, device=on, threads=threads
        )
    if encoder.augmentation == "views":
        of_crops, crops_verification = crops
        stored = _verified_store(of_crops, crops_verification, data.latents.residency, on)
        # Crops differ from the centre crops in what was encoded, and in nothing else.
        seen = {"views": store.contract.views, "pre_encode_transforms": store.contract.pre_encode_transforms}
        store.require_contract(stored.contract.model_copy(update=seen), str(stored.path))
        return mae.StoredLatents(stored)
    return mae.StoredLatents(store)


def _began_from(warm_start: WarmStart | None) -> dict[str, str]:
    return {"init_from": warm_start.sha256} if warm_start else {}


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
