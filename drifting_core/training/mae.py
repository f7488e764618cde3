"""Training of the latent-MAE (protocol 2.2 and 2.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drifting_core import config
from drifting_core.data import draws
from drifting_core.data.latents import LatentStore
from drifting_core.data.stream import SampleStream
from drifting_core.models.mae import MaskedAutoencoder
from drifting_core.training.loop import Optimisation

Crops = Callable[[Tensor, int], Tensor]  # (rows (B,), step) -> latents (B, C, H, W) of freshly cropped images


class MaskedTraining:
    """One latent-MAE as a Trainee: masked reconstruction, and the classifier's cross-entropy in the last steps."""

    def __init__(
        self, encoder: config.Encoder, store: LatentStore, device: torch.device, crops: Crops | None = None
    ) -> None:
        self.encoder, self.recipe, self.store, self.device, self.crops = (
            encoder, encoder.training, store, device, crops,
        )  # fmt: skip
        with torch.device(device):
            self.model = MaskedAutoencoder(**architecture(encoder, store), mask_patch_size=encoder.mask_patch_size)
        self.model.reset_parameters(self.recipe.seed)
        self.optimisation = Optimisation(
            self.model,
            learning_rate=self.recipe.learning_rate,
            warmup_steps=self.recipe.warmup_steps,
            weight_decay=self.recipe.weight_decay,
            clip=self.recipe.clip,
            ema=self.recipe.ema,
        )
        self.stream = SampleStream(self.recipe.seed, len(store), store.views)

    def begin(self) -> None:
        """Nothing beyond the initial weights."""

    def classifier_weight(self, step: int) -> float:
        """lambda: 0, then from 0 up to its value over the ramp, in the last `finetune_steps`."""
        into = step - (self.recipe.steps - self.recipe.finetune_steps)
        if self.recipe.finetune_steps == 0 or into < 0:
            return 0.0
        if into >= self.recipe.finetune_ramp_steps:
            return self.recipe.finetune_weight
        return self.recipe.finetune_weight * into / self.recipe.finetune_ramp_steps

    def advance(self, step: int) -> dict[str, Any]:
        rows, views = self.stream.take(step * self.recipe.batch, self.recipe.batch)
        latents = self.crops(rows, step) if self.crops else self.store.gather(rows, views)
        latents = latents.to(self.device)
        labels = self.store.labels[rows].to(self.device)
        grid = self.model.mask_grid(*latents.shape[2:])
        uniforms = draws.uniform(draws.key(self.recipe.seed, "mask", step), (len(rows), *grid), device=self.device)
        mask = self.model.random_mask(uniforms, self.encoder.mask_ratio)
        weight = self.classifier_weight(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            output = self.model(latents, labels, mask, weight)
        loss = output.loss.mean()
        loss.backward()
        return {
            "loss": float(loss),
            "reconstruction": float(output.reconstruction.mean()),
            "classification": float(output.classification.mean()),
            "classifier_weight": weight,
            **self.optimisation.apply(step),
        }

    def tensors(self) -> dict[str, Tensor]:
        return self.optimisation.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.optimisation.load(tensors)


def architecture(encoder: config.Encoder, store: LatentStore) -> dict[str, Any]:
    """Keyword arguments of MaskedAutoencoder that the configuration and the data decide."""
    return {**encoder_architecture(encoder, store.shape[0]), "num_classes": store.num_classes}


def encoder_architecture(encoder: config.Encoder, channels: int) -> dict[str, Any]:
    """Keyword arguments of LatentEncoder."""
    return {
        "in_channels": channels,
        "base_width": encoder.base_width,
        "blocks": list(encoder.blocks),
        "input_patch_size": encoder.input_patch_size,
        "norm_groups": encoder.norm_groups,
    }


def encoder_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's EMA weights out of a committed state of MaskedTraining."""
    prefix = "ema.encoder."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
