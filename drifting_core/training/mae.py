"""Training of the latent-MAE (protocol 2.2 and 2.3)."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from drifting_core import config
from drifting_core.data import draws
from drifting_core.data.latents import LatentStore
from drifting_core.data.stream import SampleStream
from drifting_core.models.mae import MaskedAutoencoder
from drifting_core.models.warm_start import WarmStart
from drifting_core.training.loop import Optimisation


class Source(Protocol):
    """Where latents come from: the store, or crops encoded in the loop (training/crops.py)."""

    labels: Tensor
    views: int

    def __len__(self) -> int: ...

    def latents(self, rows: Tensor, views: Tensor, step: int) -> Tensor:
        """(B, C, H, W) of these rows and views, for this step; float16 or float32, on any device."""


class StoredLatents:
    """The latents as they are stored: no augmentation beyond the mirror."""

    def __init__(self, store: LatentStore) -> None:
        self.store, self.labels, self.views = store, store.labels, store.views

    def __len__(self) -> int:
        return len(self.store)

    def latents(self, rows: Tensor, views: Tensor, step: int) -> Tensor:
        return self.store.gather_stored(rows, views)


class MaskedTraining:
    """One latent-MAE as a Trainee: masked reconstruction, and the classifier's cross-entropy in the last steps."""

    def __init__(
        self,
        encoder: config.Encoder,
        store: LatentStore,
        source: Source,
        device: torch.device,
        warm_start: WarmStart | None = None,
    ) -> None:
        self.encoder, self.recipe = encoder, encoder.recipe
        self.source, self.device = source, device
        self.architecture, self.contract, self.warm_start = architecture(encoder, store), store.contract, warm_start
        with torch.device(device):
            self.model = MaskedAutoencoder(**self.architecture, mask_patch_size=encoder.mask_patch_size)
        self.model.reset_parameters(self.recipe.seed)
        self.optimisation = Optimisation(
            self.model,
            learning_rate=self.recipe.learning_rate,
            warmup_steps=self.recipe.warmup_steps,
            weight_decay=self.recipe.weight_decay,
            clip=self.recipe.clip,
            ema=self.recipe.ema,
        )
        self.stream = SampleStream(self.recipe.seed, len(source), source.views)

    def begin(self) -> None:
        """The initial weights: the seed's, or those of the warm start."""
        if self.warm_start:
            self.optimisation.start_from(self.warm_start.weights(self.model, self.architecture, self.contract))

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
        latents = self.source.latents(rows, views, step).to(self.device).to(torch.float32)
        labels = self.source.labels[rows].to(self.device)
        grid = self.model.mask_grid(*latents.shape[2:])
        uniforms = draws.uniform(draws.key(self.recipe.seed, "mask", step), (len(rows), *grid), device=self.device)
        mask = self.model.random_mask(uniforms, self.encoder.mask_ratio)
        weight = self.classifier_weight(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            output = self.model(latents, labels, mask, weight)
        loss = output.loss.mean()
        loss.backward()
        return {
            "loss": float(loss.detach()),
            "reconstruction": float(output.reconstruction.detach().mean()),
            "classification": float(output.classification.detach().mean()),
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


def autoencoder_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The EMA weights of encoder, decoder and classifier out of a committed state of MaskedTraining."""
    return _below("ema.", state)


def encoder_weights(autoencoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's among them."""
    return _below("encoder.", autoencoder)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
