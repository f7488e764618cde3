"""Generated latents: sample i's noise, style and label are functions of (seed, i), so any division gives the same.

The compute batch is part of the evaluation contract: batches begin at multiples of it and the last one is padded with
the samples that would follow, because the bits of a matrix product depend on its shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core.artifacts import Recommendation, Samples, hashes, publish, records
from drifting_core.config import Precision, Sampling
from drifting_core.data import draws
from drifting_core.faults import Fault
from drifting_core.jobs import Progress
from drifting_core.models.exports import WEIGHTS, load_generator
from drifting_core.models.generator import Generator
from drifting_core.provenance import code_version

LATENTS = "latents.safetensors"
_CANARY_PER_CLASS = 5  # so that diversity within classes has pairs


class Inputs(NamedTuple):
    """What the generator is given: noise (B, C, H, W) float32, labels (B,) int64, style (B, tables) int64."""

    noise: Tensor
    labels: Tensor
    style: Tensor


def balanced_labels(rows: Tensor, classes: int, drawn: int | None = None) -> Tensor:
    """The balanced label plan: sample i is of class i % classes, so n samples are n / classes of each class.

    `drawn`: of so many evenly spaced classes only, for the label plan "spaced".
    """
    drawn = drawn or classes
    return rows % drawn * classes // drawn


def sample_inputs(generator: Generator, seed: int, rows: Tensor, labels: Tensor | None = None) -> Inputs:
    """Inputs of the samples with these indices; alpha and step do not enter: equal seeds give equal noise.

    `labels` (B,): instead of those of the balanced plan.
    """
    shape = (generator.channels, generator.input_size, generator.input_size)
    return Inputs(
        draws.normal_rows(draws.key(seed, "sample", "noise"), rows, shape),
        balanced_labels(rows, generator.class_embedding.num_embeddings) if labels is None else labels,
        draws.integers_rows(draws.key(seed, "sample", "style"), generator.style_entries, rows, generator.style_tables),
    )


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
    drawn: int | None = None,
) -> Iterator[Tensor]:
    """Latents (<= compute_batch, C, H, W), float32 on the CPU, of samples first .. last in order.

    One network evaluation each, activations in `precision`, labels of `drawn` classes (by default all). `first` is a
    multiple of compute_batch. Raises Fault naming samples with NaN or Inf.
    """
    classes = generator.class_embedding.num_embeddings
    if first % compute_batch:
        raise ValueError(f"generate: first ({first}) is a multiple of the compute batch ({compute_batch})")
    for start in range(first, last, compute_batch):
        rows = torch.arange(start, start + compute_batch, device=device)
        inputs = sample_inputs(generator, seed, rows, balanced_labels(rows, classes, drawn))
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


def write_samples(
    manifest: Path,
    export_path: Path,
    how: Sampling,
    *,
    alpha: float,
    seed: int,
    count: int,
    device: torch.device,
    configuration: str,
    recommendation: Path | None = None,
    canary: bool = False,
) -> None:
    """Sample `count` latents of an export, publish them as float16 and then their manifest.

    float16 halves what 50,000 latents take (400 MB) and rounds at 5e-4 relative, below a step of an 8-bit pixel.
    Raises Fault when count is no multiple of the number of classes (the plan would not be balanced). A `canary` takes any
    count: its label plan is "spaced", several samples of each of as many evenly spaced classes as there are samples for.
    """
    generator, export = load_generator(export_path)
    generator.to(device)
    classes = generator.class_embedding.num_embeddings
    drawn = max(1, min(classes, count // _CANARY_PER_CLASS)) if canary else classes
    if count % classes and not canary:
        raise Fault(f"{count} samples of {classes} classes: the balanced label plan needs a multiple of {classes}")
    progress = Progress(f"step {export.step}, alpha {alpha:g}, seed {seed}", count, unit="samples")
    parts: list[Tensor] = []
    done = 0
    for batch in generate(
        generator,
        seed=seed,
        alpha=alpha,
        first=0,
        last=count,
        compute_batch=how.compute_batch,
        device=device,
        precision=how.precision,
        drawn=drawn,
    ):
        stored = batch.to(torch.float16)
        parts.append(checked(stored, done))  # beyond 65504 float16 has Inf only
        done += len(batch)
        progress.advance(len(batch))
    labels = balanced_labels(torch.arange(count), classes, drawn)
    with publish(manifest.parent / LATENTS) as scratch:
        safetensors.torch.save_file({"latents": torch.cat(parts), "labels": labels}, scratch)
    sources = {"export": export_path} | ({"recommendation": recommendation} if recommendation else {})
    Samples(
        configuration=configuration,
        code=code_version(),
        inputs=hashes(sources),
        files=records(manifest.parent, [LATENTS]),
        step=export.step,
        alpha=alpha,
        seed=seed,
        samples=count,
        classes=classes,
        compute_batch=how.compute_batch,
        label_plan="spaced" if canary else how.label_plan,
        precision=how.precision,
        export_sha256=export.files[WEIGHTS].sha256,
        tokenizer_sha256=export.latents.tokenizer_sha256,
    ).write(manifest)


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
