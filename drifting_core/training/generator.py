"""Training of the drifting generator (paper algorithm 1 and A.9; protocol 4.2).

A step: push real samples into the bank, pick labels among them, draw alpha per label, gather positives and unconditional
samples, look at them and at generated samples through the frozen encoder, sum the drift loss over its feature entries.
"""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from drifting_core import config
from drifting_core.data import draws
from drifting_core.data.latents import LatentStore
from drifting_core.data.stream import SampleStream
from drifting_core.drift.bank import SampleBank
from drifting_core.drift.guidance import sample_alpha, unconditional_weight
from drifting_core.drift.objective import DriftObjective, EntryLoss, total
from drifting_core.models.generator import Generator
from drifting_core.models.mae import LatentEncoder
from drifting_core.models.warm_start import WarmStart
from drifting_core.training.loop import NotFinite, Optimisation, Work
from drifting_core.training.parallel import ALONE, Ranks, gradients_later


class Batch(NamedTuple):
    """What a rank's share of a step is made of; samples are label-major: all of the first label, then of the second."""

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
        ranks: Ranks = ALONE,
        work: Work | None = None,
        warm_start: WarmStart | None = None,
    ) -> None:
        """On several `ranks` each computes its share of the labels; the numbers are those of one. `work`: of a step."""
        self.objective, self.recipe, self.store, self.device = objective, training, store, device
        self.ranks, self.mine = ranks, ranks.share(objective.classes_per_step, "objective.classes_per_step")
        self.work = work or Work(objective.classes_per_step * objective.generated_per_class)
        self.data_seconds = 0.0
        self._seen: dict[str, Tensor] = {}
        self.encoder = encoder.to(device) if objective.encoder_features else None
        self.architecture, self.warm_start = architecture(generator, store, training.precision), warm_start
        with torch.device(device):
            self.model = Generator(**self.architecture)
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
        """Fill the bank, so that early positives are not copies of a few images (protocol 1.8); take the warm start."""
        if self.warm_start:
            self.optimisation.start_from(self.warm_start.weights(self.model, self.architecture, self.store.contract))
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
        began = time.perf_counter()
        flat = codes.flatten()
        found = self.store.gather_stored(flat // self.store.views, flat % self.store.views).to(self.device)
        self.data_seconds += time.perf_counter() - began
        return found.to(self._format)

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

        mine, each = self.mine, want.generated_per_class
        first = step * n_labels * each
        samples = torch.arange(first + mine.start * each, first + mine.stop * each, device=self.device)
        seed, model = self.recipe.seed, self.model
        return Batch(
            labels=labels[mine].to(self.device),
            alpha=alpha[mine].to(self.device, self._format),
            positives=self._gather(positives[mine]),
            unconditional=self._gather(unconditional[mine]),
            noise=draws.normal_rows(draws.key(seed, "noise"), samples, self.store.shape, dtype=self._format),
            style=draws.integers_rows(draws.key(seed, "style"), model.style_entries, samples, model.style_tables),
        )

    # --- the step ----------------------------------------------------------------------------------------------------

    def advance(self, step: int) -> dict[str, Any]:
        batch = self.batch(step)
        self._seen = batch._asdict()
        results = self._backward(batch)
        loss = float(total(results))
        if not math.isfinite(loss):
            entries = {name: [part.tolist() for part in entry] for name, entry in results.items()}
            broken = ", ".join(name for name, entry in results.items() if not torch.isfinite(entry.loss))
            raise NotFinite(
                f"the loss is not finite in the entries {broken}; the weights were not updated",
                {"loss, scale, force norms": entries, **self.optimisation.norms()},
            )
        update = self.optimisation.apply(step)
        return {"loss": loss, **update, **_summary(results, self.objective.temperatures)}

    def _backward(self, batch: Batch) -> dict[str, EntryLoss]:
        """The gradient of the loss, added to the parameters, and the loss, both over all ranks.

        The normalisers belong to the whole batch. Where it does not fit at once, its features are computed without
        gradients first, and each part again with: one more forward pass, the same numbers.
        """
        parts = _slices(len(batch.labels), self.recipe.micro_batches)
        with torch.no_grad():
            positives = _collected(lambda part: self._features(_of(batch.positives, batch, part)), parts)
            unconditional = _collected(lambda part: self._features(_of(batch.unconditional, batch, part)), parts)
        if len(parts) == 1:
            generated = self._features(self._generate(self.network, batch, parts[0]))
        else:
            with torch.no_grad():
                generated = _collected(lambda part: self._features(self._generate(self.model, batch, part)), parts)
        objective = DriftObjective(
            generated, positives, unconditional, self._weights(batch.alpha), self.objective.temperatures,
            group=self.ranks.group, compiled=self.recipe.compile_objective,
        )  # fmt: skip
        for part in parts:
            with gradients_later(self.network, later=part is not parts[-1]):
                features = generated if len(parts) == 1 else self._features(self._generate(self.network, batch, part))
                gradients = objective.gradients(part)
                torch.autograd.backward(list(features.values()), [gradients[name] for name in features])
        return objective.results()

    @functools.cached_property
    def network(self) -> nn.Module:
        """The model as it is called in a pass with gradients; made late, when weights and their type have settled."""
        return self.ranks.replicate(self.model)

    @property
    def _format(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _generate(self, network: nn.Module, batch: Batch, labels: slice) -> Tensor:
        """The generated latents of some labels."""
        repeats = self.objective.generated_per_class
        named, alpha = (of[labels].repeat_interleave(repeats) for of in (batch.labels, batch.alpha))
        with self._autocast():
            return network(_of(batch.noise, batch, labels), named, alpha, _of(batch.style, batch, labels))

    def _features(self, latents: Tensor) -> dict[str, Tensor]:
        """Entries of the objective: the raw latent and, unless it is switched off, the encoder's."""
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
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

    # --- the state ---------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        bank = {f"bank.{name}": tensor for name, tensor in self.bank.tensors().items()}
        return {**self.optimisation.tensors(), **bank, "position": self.position}

    def evidence(self) -> dict[str, Tensor]:
        return self._seen

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.optimisation.load(tensors)
        self.bank.load({name.removeprefix("bank."): tensors[name] for name in tensors if name.startswith("bank.")})
        self.position.copy_(tensors["position"])


def architecture(generator: config.Generator, store: LatentStore, precision: str) -> dict[str, Any]:
    """Keyword arguments of Generator that the configuration and the data decide."""
    channels, size, _ = store.shape
    bfloat16 = precision == "bfloat16" and not generator.attention_fp32
    return {
        **generator.model_dump(exclude={"source"}),
        "rotary_precision": "bfloat16" if bfloat16 else "float32",
        "input_size": size,
        "channels": channels,
        "num_classes": store.num_classes,
    }


def _slices(labels: int, parts: int) -> list[slice]:
    """At most `parts` equal slices of the labels (a rank with few labels has as many as labels)."""
    size = -(-labels // parts)
    return [slice(start, min(start + size, labels)) for start in range(0, labels, size)]


def _of(samples: Tensor, batch: Batch, labels: slice) -> Tensor:
    """The samples of some labels."""
    each = len(samples) // len(batch.labels)
    return samples[labels.start * each : labels.stop * each]


def _collected(features: Callable[[slice], dict[str, Tensor]], parts: Sequence[slice]) -> dict[str, Tensor]:
    """The features of all parts, in tensors made once: parts and whole never lie in memory both."""
    whole: dict[str, Tensor] = {}
    for part in parts:
        for name, entry in features(part).items():
            each = len(entry) // (part.stop - part.start)
            if len(parts) == 1:
                whole[name] = entry
                continue
            if name not in whole:
                whole[name] = entry.new_empty(parts[-1].stop * each, *entry.shape[1:])
            whole[name][part.start * each : part.stop * each] = entry
    return whole


def _summary(results: Mapping[str, EntryLoss], temperatures: tuple[float, ...]) -> dict[str, Any]:
    """Mean scale and force norm per feature group (stem, stage, latent) and temperature: the loss itself says nothing."""
    groups: dict[str, list[EntryLoss]] = defaultdict(list)
    for name, entry in results.items():
        groups[name.split("_")[0]].append(entry)
    lines = {}
    for group, entries in groups.items():
        norms = torch.stack([entry.force_norm for entry in entries]).mean(dim=0).tolist()
        lines[group] = {
            "scale": float(torch.stack([entry.scale for entry in entries]).mean()),
            "force_norm": {str(t): norm for t, norm in zip(temperatures, norms, strict=True)},
        }
    return {"features": lines}
