"""Images a second and model FLOP utilisation of whole generator steps, on random latents and an untrained encoder.

    python -m tests.benchmarks.step --configfile config/ablation.yaml --micro-batches 8

Multiply-adds are those of drifting_core/plan.py. "Model" utilisation counts what one pass needs; "hardware" utilisation
counts the second forward pass of micro-batches, too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from drifting_core import config as settings
from drifting_core import plan
from drifting_core.artifacts import LatentContract, LatentManifest, records
from drifting_core.data.latents import LatentStore, write_shard
from drifting_core.devices import device
from drifting_core.models.mae import LatentEncoder
from drifting_core.training.generator import DriftTraining
from drifting_core.training.mae import encoder_architecture

IMAGES_PER_CLASS = 4
# Dense bfloat16 products as the makers state them, in 10^12 floating-point operations a second.
PEAKS = {"H100": 989, "H200": 989, "A100": 312}


def random_store(config: settings.Configuration, folder: Path) -> LatentStore:
    """A few random latents of every class."""
    classes = config.data.expected.classes
    shape = (config.tokenizer.channels, config.latent_size, config.latent_size)
    labels = np.arange(IMAGES_PER_CLASS * classes) % classes
    latents = np.random.default_rng(0).standard_normal((len(labels), 2, *shape), dtype=np.float32).astype(np.float16)
    contract = LatentContract(
        tokenizer_sha256="0", scaling_factor=1.0, posterior="sample", views=["image", "mirror"], dtype="float16",
        precision="float32", pre_encode_transforms=[],
    )  # fmt: skip
    write_shard(folder / "shard_0.h5", [latents], labels, [str(i) for i in range(len(labels))], contract, 16)
    LatentManifest(
        configuration="0", code="0", files=records(folder, ["shard_0.h5"]), split="train", rows=len(labels),
        shape=list(shape), num_classes=classes, shards=["shard_0.h5"], shard_rows=[len(labels)], rejects=[],
        contract=contract,
    ).write(folder / "manifest.json")  # fmt: skip
    return LatentStore(folder / "manifest.json")


def trainee(config: settings.Configuration, store: LatentStore, on: torch.device) -> DriftTraining:
    encoder = LatentEncoder(**encoder_architecture(config.encoder, config.tokenizer.channels))
    encoder.reset_parameters(0)
    made = DriftTraining(
        config.generator, config.objective, config.training, store, encoder.eval().requires_grad_(False), on
    )
    made.begin()
    return made


def seconds_of(made: DriftTraining, steps: int, on: torch.device) -> float:
    """Seconds of a step, after two that are not counted."""
    began = 0.0
    for step in range(steps + 2):
        if step == 2:
            began = time.perf_counter()
        made.advance(step)  # ends with the gradient norm on the host
    if on.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def report(config: settings.Configuration, steps: int, gpus: int, threads: int) -> str:
    on = device(gpus, threads)
    with tempfile.TemporaryDirectory() as folder:
        seconds = seconds_of(trainee(config, random_store(config, Path(folder)), on), steps, on)
    whole = config.model_copy(update={"training": config.training.model_copy(update={"micro_batches": 1})})
    model, hardware = (2 * plan.step_macs(each) / seconds / 1e12 for each in (whole, config))
    name = torch.cuda.get_device_name() if gpus else f"{threads} CPU threads"
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    objective = config.objective
    lines = [
        f"{name}, torch {torch.__version__}, {config.name}, {config.training.micro_batches} micro-batch(es)",
        f"  {seconds:.3f} s a step, {objective.classes_per_step * objective.generated_per_class / seconds:.1f} images/s",
        f"  {model:.2f} TFLOP/s of the model, {hardware:.2f} with recomputation counted",
    ]
    if peak:
        lines.append(f"  utilisation of {peak} TFLOP/s: model {model / peak:.1%}, hardware {hardware / peak:.1%}")
    if gpus:
        lines.append(f"  peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    return "\n".join(lines)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--configfile", type=Path, default=Path("config/ablation.yaml"), help="preset")
    made.add_argument("--micro-batches", type=int, help="instead of the preset's")
    made.add_argument("--compile", action="store_true", help="training.compile_objective")
    made.add_argument("--steps", type=int, default=5, help="steps that are timed")
    made.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = made.parse_args()
    config = settings.load_file(arguments.configfile)
    how = {"compile_objective": arguments.compile}
    if arguments.micro_batches:
        how["micro_batches"] = arguments.micro_batches
    config = config.model_copy(update={"training": config.training.model_copy(update=how)})
    print(report(config, arguments.steps, 1 if torch.cuda.is_available() else 0, arguments.threads))


if __name__ == "__main__":
    main()
