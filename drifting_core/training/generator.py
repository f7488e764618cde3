"""Training of the drifting generator (paper algorithm 1 and A.9; protocol 4.2).

A step: push real samples into the bank, pick labels among them, draw alpha per label, gather positives and unconditional
samples, look at them and at generated samples through the frozen encoder, sum the drift loss over its feature entries.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drifting_core import config
from drifting_core.data import draws
from drifting_core.data.latents import LatentStore
from drifting_core.data.stream import SampleStream
from drifting_core.drift.bank import SampleBank
from drifting_core.drift.guidance import sample_alpha, unconditional_weight
from drifting_core.drift.loss import DriftLoss, drift_loss
from drifting_core.models.generator import Generator
from drifting_core.models.mae import LatentEncoder
from drifting_core.training.loop import Optimisation

Features = dict[str, Tensor]  # entry -> (samples, tokens, width)


class Batch(NamedTuple):
    """What a step is made of; samples are label-major: all of the first label, then of the second."""

    labels: Tensor  # (N_c,)
    alpha: Tensor  # (N_c,)
    positives: Tensor  # (N_c * N_pos, C, H, W)
    unconditional: Tensor  # (N_c * N_unc, C, H, W)
    noise: Tensor  # (N_c * N_neg, C, H, W)
    style: Tensor  # (N_c * N_neg, style tables)


class DriftTraining:
    """One generator as a Trainee."""

    def __init__(
        self,
        generator: config.Generator,
        objective: config.Objective,
        training: config.Training,
        store: LatentStore,
        encoder: LatentEncoder,
        device: torch.device,
    ) -> None:
        self.objective, self.recipe, self.store, self.device = objective, training, store, device
        self.encoder = encoder.to(device) if objective.encoder_features else None
        with torch.device(device):
            self.model = Generator(**architecture(generator, store))
        self.model.reset_parameters(training.seed)
        self.optimisation = Optimisation(
            self.model,
            learning_rate=training.learning_rate,
            warmup_steps=training.warmup_steps,
            weight_decay=training.weight_decay,
            clip=training.clip,
            ema=training.ema,
        )
        self.stream = SampleStream(training.seed, len(store), store.views)
        bank = objective.bank
        self.bank = SampleBank(store.num_classes, bank.per_class, bank.unconditional)
        self.position = torch.zeros((), dtype=torch.int64)  # samples of the stream pushed so far

    # --- the batch ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Fill the bank, so that early positives are not copies of a few images (protocol 1.8)."""
        block = self.store.num_classes * self.objective.bank.per_class
        enough = min(self.objective.positives_per_class, self.objective.bank.per_class)
        while self.bank.fewest() < enough and int(self.position) < len(self.store) + block:
            self._push(block)

    def _push(self, count: int) -> Tensor:
        """Push the next `count` samples of the stream; returns their labels."""
        rows, views = self.stream.take(int(self.position), count)
        labels = self.store.labels[rows]
        self.bank.push(rows * self.store.views + views, labels)
        self.position += count
        return labels

    def _uniform(self, purpose: str, step: int, *shape: int) -> Tensor:
        return draws.uniform(draws.key(self.recipe.seed, purpose, step), shape)

    def _gather(self, codes: Tensor) -> Tensor:
        flat = codes.flatten()
        return self.store.gather(flat // self.store.views, flat % self.store.views).to(self.device)

    def batch(self, step: int) -> Batch:
        """Everything that update number `step` sees, as a function of (seed, step) and the bank."""
        want, bank = self.objective, self.objective.bank
        n_labels = want.classes_per_step
        pushed = self._push(bank.pushes_per_step)
        chosen = torch.argsort(self._uniform("labels", step, len(pushed)), stable=True)[:n_labels]
        labels = pushed[chosen]
        law = want.alpha
        alpha = sample_alpha(
            self._uniform("alpha", step, n_labels),
            low=law.low, high=law.high, power=law.power, point_mass=law.point_mass,
        )  # fmt: skip
        uniforms = self._uniform("positives", step, n_labels, bank.per_class)
        positives = self.bank.positives(labels, want.positives_per_class, uniforms)
        uniforms = self._uniform("unconditional", step, n_labels, bank.unconditional)
        unconditional = self.bank.unconditional(want.unconditional_per_class, uniforms)

        size = n_labels * want.generated_per_class
        samples = torch.arange(step * size, (step + 1) * size, device=self.device)
        seed, model = self.recipe.seed, self.model
        return Batch(
            labels=labels.to(self.device),
            alpha=alpha.to(self.device, torch.float32),
            positives=self._gather(positives),
            unconditional=self._gather(unconditional),
            noise=draws.normal_rows(draws.key(seed, "noise"), samples, self.store.shape),
            style=draws.integers_rows(draws.key(seed, "style"), model.style_entries, samples, model.style_tables),
        )

    # --- the step ----------------------------------------------------------------------------------------------------

    def advance(self, step: int) -> dict[str, Any]:
        batch = self.batch(step)
        with torch.no_grad():
            positives, unconditional = self._features(batch.positives), self._features(batch.unconditional)
        weights = self._weights(batch.alpha)
        parts = self.recipe.micro_batches
        if parts == 1:
            generated = self._features(self._generate(batch, slice(None)))
            losses = self._losses(generated, positives, unconditional, weights)
            total = _total(losses)
            total.backward()
        else:
            # The normalisers belong to the whole batch: features first without gradients, the loss on all of them, then
            # each part again with its share of the features' gradient. One more forward pass, the same numbers.
            slices = _slices(len(batch.noise), parts)
            with torch.no_grad():
                each = [self._features(self._generate(batch, part)) for part in slices]
            generated = {name: torch.cat([features[name] for features in each]).requires_grad_() for name in each[0]}
            losses = self._losses(generated, positives, unconditional, weights)
            total = _total(losses)
            total.backward()
            for part in slices:
                again = self._features(self._generate(batch, part))
                shares = [_gradient(generated[name])[part] for name in again]
                torch.autograd.backward(list(again.values()), shares)
        return {
            "loss": float(total.detach()),
            **self.optimisation.apply(step),
            **_summary(losses, self.objective.temperatures),
        }

    def _generate(self, batch: Batch, part: slice) -> Tensor:
        repeats = self.objective.generated_per_class
        labels, alpha = batch.labels.repeat_interleave(repeats)[part], batch.alpha.repeat_interleave(repeats)[part]
        with self._autocast():
            return self.model(batch.noise[part], labels, alpha, batch.style[part])

    def _features(self, latents: Tensor) -> Features:
        """Entries of the objective: the raw latent and, unless it is switched off, the encoder's."""
        latents = latents.float()
        entries = {"global": latents.flatten(1)[:, None]}
        if self.encoder is not None:
            with self._autocast():
                entries |= self.encoder.features(latents)
        return entries

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    def _weights(self, alpha: Tensor) -> Tensor:
        """(N_c, N_unc): the weight of each unconditional sample."""
        want = self.objective
        if want.unconditional_per_class == 0:
            return alpha.new_empty(len(alpha), 0)
        weight = unconditional_weight(alpha, want.generated_per_class, want.unconditional_per_class)
        return weight[:, None].expand(-1, want.unconditional_per_class)

    def _losses(
        self, generated: Features, positives: Features, unconditional: Features, weights: Tensor
    ) -> dict[str, DriftLoss]:
        n_labels = len(weights)
        return {
            name: drift_loss(
                _problems(generated[name], n_labels),
                _problems(positives[name], n_labels),
                _problems(unconditional[name], n_labels),
                weight_negatives=weights.repeat_interleave(generated[name].shape[1], 0),
                temperatures=self.objective.temperatures,
            )
            for name in generated
        }

    # --- the state ---------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        bank = {f"bank.{name}": tensor for name, tensor in self.bank.tensors().items()}
        return {**self.optimisation.tensors(), **bank, "position": self.position}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.optimisation.load(tensors)
        self.bank.load({name.removeprefix("bank."): t for name, t in tensors.items() if name.startswith("bank.")})
        self.position.copy_(tensors["position"])


def architecture(generator: config.Generator, store: LatentStore) -> dict[str, Any]:
    """Keyword arguments of Generator that the configuration and the data decide."""
    channels, size, _ = store.shape
    return {
        **generator.model_dump(),
        "input_size": size,
        "channels": channels,
        "num_classes": store.num_classes,
    }


def _problems(entry: Tensor, n_labels: int) -> Tensor:
    """(labels * samples, tokens, width) -> (labels * tokens, samples, width): each label and token is its own problem."""
    samples, tokens, width = entry.shape
    per_label = samples // n_labels
    return entry.reshape(n_labels, per_label, tokens, width).transpose(1, 2).reshape(-1, per_label, width)


def _gradient(entry: Tensor) -> Tensor:
    assert entry.grad is not None
    return entry.grad


def _total(losses: dict[str, DriftLoss]) -> Tensor:
    """Sum over entries of the mean over labels and tokens (protocol 1.4)."""
    return torch.stack([entry.loss.mean() for entry in losses.values()]).sum()


def _slices(length: int, parts: int) -> list[slice]:
    size = length // parts
    return [slice(start, start + size) for start in range(0, length, size)]


def _summary(losses: dict[str, DriftLoss], temperatures: tuple[float, ...]) -> dict[str, Any]:
    """Mean scale and force norm per feature group (stem, stage, latent) and temperature: the loss itself says nothing."""
    groups: dict[str, list[DriftLoss]] = defaultdict(list)
    for name, entry in losses.items():
        groups[name.split("_")[0]].append(entry)
    lines = {}
    for group, entries in groups.items():
        norms = torch.stack([entry.force_norm for entry in entries]).mean(dim=0).tolist()
        lines[group] = {
            "scale": float(torch.stack([entry.scale for entry in entries]).mean()),
            "force_norm": {str(t): norm for t, norm in zip(temperatures, norms, strict=True)},
        }
    return {"features": lines}
