"""Training of the latent-MAE (protocol 2.2 and 2.3)."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from drifting_core import config
from drifting_core.data import draws
from drifting_core.data.latents import LatentStore
from drifting_core.data.stream import SampleStream
from drifting_core.models.mae import MaskedAutoencoder
from drifting_core.models.warm_start import WarmStart
from drifting_core.training.loop import NotFinite, Optimisation, Work
from drifting_core.training.parallel import ALONE, Ranks, gradients_later


class Source(Protocol):
    """Where latents come from: the store, or crops encoded in the loop (training/crops.py)."""

    labels: Tensor
    views: int

    def __len__(self) -> int: ...

    def latents(self, rows: Tensor, views: Tensor, step: int, first: int) -> Tensor:
        """(B, C, H, W) of these rows and views, which are the places first, first + 1, ... of this step's batch.

        float16 or float32, on any device.
        """

    def expect(self, rows: Tensor, step: int, first: int) -> None:
        """These will be asked for next: what can be prepared beside the device's work may begin."""


class StoredLatents:
    """The latents as they are stored: no augmentation beyond the mirror."""

    def __init__(self, store: LatentStore) -> None:
        self.store, self.labels, self.views = store, store.labels, store.views

    def __len__(self) -> int:
        return len(self.store)

    def latents(self, rows: Tensor, views: Tensor, step: int, first: int) -> Tensor:
        return self.store.gather_stored(rows, views)

    def expect(self, rows: Tensor, step: int, first: int) -> None:
        """Nothing to prepare: rows are gathered at memory speed."""


class MaskedTraining:
    """One latent-MAE as a Trainee: masked reconstruction, and the classifier's cross-entropy in the last steps."""

    def __init__(
        self,
        encoder: config.Encoder,
        store: LatentStore,
        source: Source,
        device: torch.device,
        ranks: Ranks = ALONE,
        work: Work | None = None,
        warm_start: WarmStart | None = None,
    ) -> None:
        """On several `ranks` each computes its share of the batch; the numbers are those of one. `work`: of a step."""
        self.encoder, self.recipe = encoder, encoder.recipe
        self.source, self.device, self.ranks = source, device, ranks
        self.mine = ranks.share(self.recipe.batch, "encoder.training.batch")
        self.work = work or Work(self.recipe.batch)
        self.data_seconds = 0.0
        self._seen: dict[str, Tensor] = {}
        self.architecture, self.contract, self.warm_start = architecture(encoder, store), store.contract, warm_start
        with torch.device(device):
            self.model = MaskedAutoencoder(**self.architecture, mask_patch_size=encoder.mask_patch_size)
        self.model.reset_parameters(self.recipe.seed)
        if encoder.parallel == "fsdp":
            ranks.shard(self.model)
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

    @functools.cached_property
    def network(self) -> nn.Module:
        """The model as it is called in a forward pass; made late, when weights and their type have settled."""
        return self.ranks.replicate(self.model)

    def advance(self, step: int) -> dict[str, Any]:
        latents, labels, mask = self._batch(step)
        weight = self.classifier_weight(step)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        parts = list(zip(*(each.chunk(self.encoder.micro_batches) for each in (latents, labels, mask)), strict=True))
        for place, part in enumerate(parts, start=1):
            with gradients_later(self.network, later=place < len(parts)):
                with self._autocast():
                    output = self.network(*part, weight)
                (output.loss.sum() / self.recipe.batch).backward()
            sums += torch.stack([each.detach().sum().double() for each in output[:3]]) / self.recipe.batch
        loss, reconstruction, classification = self.ranks.sum(sums).tolist()
        numbers = {"loss": loss, "reconstruction": reconstruction, "classification": classification}
        if not math.isfinite(loss):
            raise NotFinite(f"the loss is not finite ({numbers}); the weights were not updated", self.optimisation.norms())
        return {**numbers, "classifier_weight": weight, **self.optimisation.apply(step)}

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, C, H, W), labels (B,) and mask (B, 1, h, w) of this rank's share of the step."""
        began = time.perf_counter()
        batch, mine = self.recipe.batch, self.mine
        rows, views = (drawn[mine] for drawn in self.stream.take(step * batch, batch))
        latents = self.source.latents(rows, views, step, mine.start).to(self.device).to(self._format)
        labels = self.source.labels[rows].to(self.device)
        self.source.expect(self.stream.take((step + 1) * batch, batch)[0][mine], step + 1, mine.start)
        self.data_seconds += time.perf_counter() - began
        grid = self.model.mask_grid(*latents.shape[2:])
        uniforms = draws.uniform(draws.key(self.recipe.seed, "mask", step), (batch, *grid), device=self.device)
        mask = self.model.random_mask(uniforms[mine], self.encoder.mask_ratio).to(self._format)
        self._seen = {"latents": latents, "labels": labels, "mask": mask}
        return latents, labels, mask

    @property
    def _format(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    def evidence(self) -> dict[str, Tensor]:
        return self._seen

    def tensors(self) -> dict[str, Tensor]:
        return self.optimisation.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
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


def autoencoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The EMA weights of encoder, decoder and classifier out of a committed state of MaskedTraining."""
    return _below("ema.", state)


def encoder_weights(autoencoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's among them."""
    return _below("encoder.", autoencoder)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
