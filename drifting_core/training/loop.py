"""The training loop, and the optimisation that encoder and generator share (protocol 2.2 and 4.1).

A loop reads in order: resume or begin, step, log, commit, stop when asked. What a step is, a `Trainee` says.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from drifting_core.artifacts import publish_text
from drifting_core.faults import Fault, Stopped
from drifting_core.jobs import Progress, StopRequest
from drifting_core.training.state import StateFolder

log = logging.getLogger(__name__)


class Trainee(Protocol):
    """Something that can be trained step by step and put into tensors."""

    def begin(self) -> None:
        """Prepare step 0 (where there is no state to load)."""

    def advance(self, step: int) -> dict[str, Any]:
        """Make update number `step` (from 0) and return what is worth a line of metrics.jsonl."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`."""


def train(
    trainee: Trainee,
    state: StateFolder,
    metrics: MetricsFile,
    *,
    until: int,
    commit_every: int,
    log_every: int,
    stop: StopRequest,
    label: str,
) -> None:
    """Bring `trainee` to `until` updates, from the newest committed state.

    Raises Stopped after committing when `stop` asks for it, and Fault when the training is past `until` or a number is
    not finite (the last committed state stays).
    """
    resumed = state.resume(until)
    step = 0
    if resumed is None:
        trainee.begin()
    else:
        step, tensors = resumed
        trainee.load(tensors)
        log.info("%s: continuing at step %d", label, step)
    metrics.truncate(step)
    progress = Progress(label, until, step)
    began = time.perf_counter()
    while step < until:
        if stop:
            state.commit(step, trainee.tensors())
            raise Stopped(f"{stop.reason}; committed at step {step} of {until}")
        line = trainee.advance(step)
        step += 1
        if step % log_every == 0 or step == 1:
            now = time.perf_counter()
            metrics.append({"step": step, **line, "seconds": round(now - began, 3)})
            began = now
        progress.advance(note=f"loss {line['loss']:.4g}")
        if step % commit_every == 0:
            state.commit(step, trainee.tensors())
    state.commit(step, trainee.tensors())


class MetricsFile:
    """metrics.jsonl: one line per logged step, append-only; a resumed training leaves no duplicates."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def truncate(self, step: int) -> None:
        """Forget lines after `step`, and a last line that a killed writer left incomplete."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                break
            if values["step"] <= step:
                kept.append(line + "\n")
        publish_text(self.path, "".join(kept))

    def append(self, values: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


class Optimisation:
    """AdamW (0.9, 0.95, eps 1e-8) with a linear warm-up from 1e-6, global-norm clip, and an EMA of the weights.

    Decay acts on all parameters; the EMA starts as a copy and is updated after every step (protocol 4.1).
    """

    WARMUP_FROM = 1e-6

    def __init__(
        self, model: nn.Module, *, learning_rate: float, warmup_steps: int, weight_decay: float, clip: float, ema: float
    ) -> None:
        self.model, self.clip, self.decay = model, clip, ema
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.parameters = dict(model.named_parameters())
        self.adamw = torch.optim.AdamW(
            self.parameters.values(), betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay, foreach=True
        )
        self.ema = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def rate(self, step: int) -> float:
        """Learning rate of update number `step`, from 0."""
        if step >= self.warmup_steps:
            return self.learning_rate
        return self.WARMUP_FROM + (self.learning_rate - self.WARMUP_FROM) * step / self.warmup_steps

    def apply(self, step: int) -> dict[str, float]:
        """Clip the gradients, update weights and EMA, clear the gradients. Raises Fault on a gradient that is not finite."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if not torch.isfinite(norm):
            raise Fault(f"step {step}: the gradient is not finite ({float(norm)}); the weights were not updated")
        if norm > self.clip:
            torch._foreach_mul_(gradients, float(self.clip / norm))
        for group in self.adamw.param_groups:
            group["lr"] = self.rate(step)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        weights = [parameter.detach() for parameter in self.parameters.values()]
        torch._foreach_lerp_(list(self.ema.values()), weights, 1 - self.decay)
        return {"gradient_norm": float(norm), "learning_rate": self.rate(step)}

    @torch.no_grad()
    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Begin, weights and EMA, from these by parameter name; those that are not named stay."""
        for name, tensor in weights.items():
            self.parameters[name].copy_(tensor)
            self.ema[name].copy_(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, EMA and both moments, for the state."""
        flat: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            moments = self.adamw.state.get(parameter) or _no_moments(parameter)
            flat[f"weights.{name}"] = parameter.detach()
            flat[f"ema.{name}"] = self.ema[name]
            flat[f"first.{name}"], flat[f"second.{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
            flat[f"updates.{name}"] = moments["step"]
        return flat

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weights.{name}"])
            self.ema[name].copy_(tensors[f"ema.{name}"])
            self.adamw.state[parameter] = {
                "exp_avg": tensors[f"first.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"second.{name}"].to(parameter.device),
                "step": tensors[f"updates.{name}"],
            }


def _no_moments(parameter: Tensor) -> dict[str, Tensor]:
    return {
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
        "step": torch.zeros(()),
    }
