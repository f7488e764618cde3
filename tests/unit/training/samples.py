"""A store of random latents and networks that take milliseconds, for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from drifting_core import config as settings
from drifting_core.artifacts import LatentContract, LatentManifest, records
from drifting_core.data.latents import LatentStore, write_shard
from drifting_core.models.mae import LatentEncoder
from drifting_core.training.generator import DriftTraining
from drifting_core.training.mae import encoder_architecture
from drifting_core.training.parallel import ALONE, Ranks

CPU = torch.device("cpu")


class Never:
    """Nobody asks the training to stop."""

    reason = ""
    needs = 0.0

    def __bool__(self) -> bool:
        return False


NEVER: Any = Never()
CONTRACT = LatentContract(
    tokenizer_sha256="t", scaling_factor=1.0, posterior="sample", views=["image", "mirror"], dtype="float16",
    precision="float32", pre_encode_transforms=["none"],
)  # fmt: skip


def write_store(folder: Path) -> LatentStore:
    """60 random latents (4, 16, 16) of 10 classes."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(60, 2, 4, 16, 16)).astype(np.float16)
    labels = np.arange(60) % 10
    write_shard(folder / "shard_0.h5", [latents], labels, [f"i{i}" for i in range(60)], CONTRACT, 16)
    LatentManifest(
        configuration="c", code="1", files=records(folder, ["shard_0.h5"]), split="train", rows=60, shape=[4, 16, 16],
        num_classes=10, shards=["shard_0.h5"], shard_rows=[60], rejects=[], contract=CONTRACT,
    ).write(folder / "manifest.json")  # fmt: skip
    return LatentStore(folder / "manifest.json")


def small_configuration(demo_values: dict[str, Any]) -> settings.Configuration:
    """The demo with networks and batches that take milliseconds."""
    demo_values["encoder"].update(base_width=8, norm_groups=2)
    demo_values["encoder"]["training"].update(steps=8, batch=6, finetune_steps=4, finetune_ramp_steps=2)
    demo_values["generator"].update(hidden_size=32, depth=1, num_heads=2, cond_dim=16)
    demo_values["objective"].update(
        classes_per_step=4, generated_per_class=3, positives_per_class=4, unconditional_per_class=2,
        bank={"per_class": 5, "unconditional": 12, "pushes_per_step": 6},
    )  # fmt: skip
    demo_values["training"].update(warmup_steps=2)
    return settings.load(demo_values)


def drift_training(
    small: settings.Configuration, store: LatentStore, *, ranks: Ranks = ALONE, on: torch.device = CPU, **training: Any
) -> DriftTraining:
    """The generator's training with an untrained encoder; `training` changes the recipe."""
    encoder = LatentEncoder(**encoder_architecture(small.encoder, 4))
    encoder.reset_parameters(1)
    recipe = small.training.model_copy(update=training)
    network = encoder.eval().requires_grad_(False)
    return DriftTraining(small.generator, small.objective, recipe, store, network, on, ranks)
