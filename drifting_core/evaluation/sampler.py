"""Generated latents: sample i's noise, style and label are functions of (seed, i), so any division gives the same.

The compute batch is part of the evaluation contract: batches begin at multiples of it and the last one is padded with
the samples that would follow, because the bits of a matrix product depend on its shape. Batches are what ranks share out
and what a journal keeps; once all are there, whichever rank made them, one process puts the file together in order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core.artifacts import LATENTS, Recommendation, Samples, hashes, publish, records
from drifting_core.artifacts.provenance import code_version
from drifting_core.config import Precision, Sampling
from drifting_core.data.index import labels_of
from drifting_core.data.journal import Journal, Record, read_records
from drifting_core.faults import Fault, Stopped
from drifting_core.jobs.job import Progress, StopRequest
from drifting_core.models.exports import WEIGHTS, load_generator, read_export
from drifting_core.models.generator import Generator, sample_inputs

log = logging.getLogger(__name__)

_CANARY_PER_CLASS = 5  # so that diversity within classes has pairs


@dataclass(frozen=True)
class SampleSet:
    """What is to be sampled, from what, and how; `manifest` is where.

    A `canary` takes any count: its label plan is "spaced", several samples of each of as many evenly spaced classes as
    there are samples for. `index`: of the data, for the label plan "validation".
    """

    manifest: Path
    export: Path
    how: Sampling
    alpha: float
    seed: int
    count: int
    configuration: str
    recommendation: Path | None = None
    index: Path | None = None
    canary: bool = False

    @property
    def label_plan(self) -> Literal["balanced", "validation", "spaced"]:
        return "spaced" if self.canary else self.how.label_plan

    def labels(self, classes: int) -> Tensor:
        """Class of each sample, int64 (count,). Raises Fault when the plan cannot have this count."""
        if self.label_plan == "validation":
            return self._validation_labels(classes)
        if self.count % classes and not self.canary:
            raise Fault(
                f"{self.count} samples of {classes} classes: ask for a multiple of {classes}, which the balanced "
                "label plan needs"
            )
        drawn = max(1, min(classes, self.count // _CANARY_PER_CLASS)) if self.canary else classes
        return balanced_labels(torch.arange(self.count), classes, drawn)

    def _validation_labels(self, classes: int) -> Tensor:
        if self.index is None:
            raise Fault("evaluation.sampling.label_plan: validation takes the labels of the data's index: give --index")
        held = labels_of(self.index, "val")
        if self.count > len(held):
            raise Fault(
                f"{self.count} samples, but evaluation.sampling.label_plan: validation has labels for the {len(held)} "
                "validation images only; ask for fewer (evaluation.selection.samples, evaluation.report.samples, or n_N in "
                "the name), or set label_plan to balanced"
            )
        if int(held.max()) >= classes:
            raise Fault(
                f"{self.index}: has {int(held.max()) + 1} classes, {self.export} knows {classes}; give its own index"
            )
        return torch.from_numpy(held[: self.count])


def balanced_labels(rows: Tensor, classes: int, drawn: int | None = None) -> Tensor:
    """The balanced label plan: sample i is of class i % classes, so n samples are n / classes of each class.

    `drawn`: of so many evenly spaced classes only, for the label plan "spaced".
    """
    drawn = drawn or classes
    return rows % drawn * classes // drawn


def generate(
    generator: Generator,
    *,
    seed: int,
    alpha: float,
    first: int,
    last: int,
    compute_batch: int,
    device: torch.device,
    precision: Precision = "float32",
    labels: Tensor | None = None,
) -> Iterator[Tensor]:
    """Latents (<= compute_batch, C, H, W), float32 on the CPU, of samples first .. last in order.

    One network evaluation each, activations in `precision`, `labels` of the whole set (by default balanced). `first` is a
    multiple of compute_batch. Raises Fault naming samples with NaN or Inf.
    """
    classes = generator.class_embedding.num_embeddings
    if first % compute_batch:
        raise ValueError(f"generate: first ({first}) is a multiple of the compute batch ({compute_batch})")
    for start in range(first, last, compute_batch):
        rows = torch.arange(start, start + compute_batch, device=device)
        # Padding has any label.
        chosen = balanced_labels(rows, classes) if labels is None else labels.to(device)[rows % len(labels)]
        inputs = sample_inputs(generator, seed, rows, chosen)
        strength = torch.full((compute_batch,), alpha, dtype=torch.float32, device=device)
        bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
        with torch.inference_mode(), bfloat16:
            latents = generator(inputs.noise, inputs.labels, strength, inputs.style)
        yield checked(latents[: last - start].float().cpu(), start)


def checked(latents: Tensor, start: int) -> Tensor:
    """`latents` of samples start, start + 1, ... Raises Fault naming those with NaN or Inf."""
    broken = (~torch.isfinite(latents).flatten(1).all(dim=1)).nonzero().flatten()
    if len(broken):
        names = ", ".join(str(start + int(i)) for i in broken[:10])
        raise Fault(
            f"samples {names}{', …' if len(broken) > 10 else ''}: {len(broken)} of {len(latents)} latents hold NaN or "
            "Inf; the export has diverged: look at its run's metrics.jsonl and evaluate an earlier step"
        )
    return latents


def write_batches(
    wanted: SampleSet, device: torch.device, stop: StopRequest | None = None, *, rank: int = 0, size: int = 1
) -> None:
    """Sample what no journal holds yet of this rank's batches: those with the number `rank` modulo `size`.

    Latents are kept as float16, which halves what 50,000 take (400 MB) and rounds at 5e-4 relative, below a step of an
    8-bit pixel. Each rank adds to a journal of its own, and reads those of all, however many ranks wrote them.

    Raises Stopped when `stop` says so, and Fault for samples that are not finite or a count that the label plan cannot have.
    """
    record, labels = _planned(wanted)
    work, batch = _identity(record), record.compute_batch
    with Journal(_journal(wanted.manifest, rank), work) as journal:
        mine, done = (
            range(rank, _batches(record), size),
            {kept.description["batch"] for kept in _kept(wanted.manifest, work)},
        )
        left = [number for number in mine if number not in done]
        if not left:
            return
        if len(left) < len(mine):
            log.info("going on with %d of %d batches", len(left), len(mine))
        generator = load_generator(wanted.export)[0].to(device)
        label = f"step {record.step}, alpha {record.alpha:g}, seed {record.seed}"
        progress = Progress(label, len(mine) * batch, (len(mine) - len(left)) * batch, unit="samples")
        for number in left:
            if stop:
                raise Stopped(f"finished batches are kept ({stop.reason})")
            began, first = time.monotonic(), number * batch
            [latents] = generate(
                generator, seed=record.seed, alpha=record.alpha, first=first, last=min(first + batch, record.samples),
                compute_batch=batch, device=device, precision=wanted.how.precision, labels=labels,
            )  # fmt: skip
            stored = checked(latents.to(torch.float16), first)  # beyond 65504 float16 has Inf only
            journal.append({"batch": number, "shape": list(stored.shape)}, stored.numpy())
            progress.advance(batch)
            if stop is not None:
                stop.needs = 1.5 * (time.monotonic() - began)


def assemble(wanted: SampleSet) -> None:
    """Publish the latents of all ranks' journals in order, then their manifest; the journals go.

    Latents that were pruned come back under the manifest that they had, whatever version of the code makes them again, so
    that nothing after them is out of date. Raises Fault when a batch is in none of the journals.
    """
    record, labels = _planned(wanted)
    found = {kept.description["batch"]: kept for kept in _kept(wanted.manifest, _identity(record))}
    missing = [number for number in range(_batches(record)) if number not in found]
    if missing:
        raise Fault(
            f"{wanted.manifest}: {len(missing)} of {_batches(record)} batches were not sampled (first: {missing[0]}); call "
            "again"
        )
    parts = [found[number].array("float16", found[number].description["shape"]) for number in sorted(found)]
    with publish(wanted.manifest.parent / LATENTS) as scratch:
        latents = torch.from_numpy(np.concatenate(parts))
        safetensors.torch.save_file({"latents": latents, "labels": labels}, scratch)
    files = records(wanted.manifest.parent, [LATENTS])
    made, pruned = record.model_copy(update={"files": files}), wanted.manifest.with_name(Samples.pruned)
    if pruned.is_file() and _same(made, Samples.read(pruned)):
        pruned.replace(wanted.manifest)
    else:
        made.write(wanted.manifest)
        if pruned.is_file():
            log.warning("%s: not the latents that were pruned, bit for bit (another device?); evaluate them again", pruned)
            pruned.unlink()
    for journal in _journals(wanted.manifest):
        journal.unlink()


def _same(made: Samples, before: Samples) -> bool:
    return made.model_copy(update={"code": before.code}) == before


def _planned(wanted: SampleSet) -> tuple[Samples, Tensor]:
    """The manifest, but for the file that is not there yet, and the labels."""
    export = read_export(wanted.export, "generator")
    classes = int(export.architecture["num_classes"])
    labels = wanted.labels(classes)
    sources = {"export": wanted.export, "recommendation": wanted.recommendation, "index": wanted.index}
    record = Samples(
        configuration=wanted.configuration,
        code=code_version(),
        inputs=hashes({role: path for role, path in sources.items() if path}),
        step=export.step,
        alpha=wanted.alpha,
        seed=wanted.seed,
        samples=wanted.count,
        classes=classes,
        compute_batch=wanted.how.compute_batch,
        label_plan=wanted.label_plan,
        precision=wanted.how.precision,
        export_sha256=export.files[WEIGHTS].sha256,
        tokenizer_sha256=export.latents.tokenizer_sha256,
    )
    return record, labels


def _identity(record: Samples) -> dict[str, Any]:
    """What a journal belongs to: all that the manifest says, but who made it."""
    return record.model_dump(mode="json", exclude={"code", "files"})


def _batches(record: Samples) -> int:
    return -(-record.samples // record.compute_batch)


def _journal(manifest: Path, rank: int) -> Path:
    return manifest.with_name(f".samples_{rank}.journal")


def _journals(manifest: Path) -> list[Path]:
    return sorted(manifest.parent.glob(".samples_*.journal"))


def _kept(manifest: Path, work: dict[str, Any]) -> Iterator[Record]:
    """The batches that are whole, in whichever journal."""
    for journal in _journals(manifest):
        yield from read_records(journal, work)


def read_samples(manifest: Path) -> tuple[Samples, Tensor, NDArray[np.int64]]:
    """Manifest, latents (N, C, H, W) float16, labels (N,). Raises Fault when the file is not the manifest's."""
    samples = Samples.read(manifest)
    samples.verify(manifest.parent)
    tensors = safetensors.torch.load_file(manifest.parent / LATENTS)
    return samples, tensors["latents"], tensors["labels"].numpy()


def recommended_export(recommendation: Path, exports: list[Path]) -> tuple[Path, float]:
    """The export's metadata.json and the alpha that the recommendation names, for the claim.

    Raises Fault when that step is not among `exports`.
    """
    choice = Recommendation.read(recommendation).recommended
    for path in exports:
        if path.parent.name == f"step_{choice.step}":
            return path, choice.alpha
    raise Fault(
        f"{recommendation}: names step {choice.step}, but the exports given are "
        f"{[path.parent.name for path in exports]}; give the export of that step"
    )
