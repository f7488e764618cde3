"""The training loop, and the optimisation that encoder and generator share (protocol 2.2 and 4.1).

A loop reads in order: resume or begin, step, log, commit, stop when asked. What a step is, a `Trainee` says.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from drifting_core.artifacts import publish, publish_text
from drifting_core.faults import Fault, Stopped
from drifting_core.jobs.devices import memory_megabytes
from drifting_core.jobs.job import Progress, StopRequest
from drifting_core.training.parallel import ALONE, Ranks, own_part, part_like, whole_of
from drifting_core.training.state import StateFolder

log = logging.getLogger(__name__)


class Work(NamedTuple):
    """What a step of all ranks amounts to, for the metrics' rates."""

    images: int
    flops: float = 0.0  # of the model: no recomputation
    peak: float | None = None  # floating-point operations a second of all devices, where they are known


class Trainee(Protocol):
    """Something that can be trained step by step and put into tensors."""

    work: Work
    data_seconds: float  # spent so far on waiting for samples

    def begin(self) -> None:
        """Prepare step 0 (where there is no state to load)."""

    def advance(self, step: int) -> dict[str, Any]:
        """Make update number `step` (from 0) and return what is worth a line of metrics.jsonl. Raises NotFinite."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo `tensors`."""

    def evidence(self) -> dict[str, Tensor]:
        """What the last step saw on this rank, for whoever looks into a number that is not finite."""


class NotFinite(Fault):
    """A loss, gradient or feature is NaN or infinite; nothing was updated. `report`: numbers that help to see where."""

    def __init__(self, message: str, report: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.report = report


def train(
    trainee: Trainee,
    state: StateFolder,
    metrics: Sink,
    *,
    until: int,
    commit_every: int,
    log_every: int,
    stop: StopRequest,
    label: str,
    ranks: Ranks = ALONE,
) -> None:
    """Bring `trainee` to `until` updates, from the newest committed state.

    Raises Stopped after committing when `stop` asks for it on any rank, and Fault when the training is past `until`, a
    state cannot be written, or a number is not finite (then what is needed to look is left beside the states).
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
    progress, clock = Progress(label, until, step), Clock(trainee)
    try:
        while step < until:
            if ranks.any(bool(stop)):
                state.commit(step, trainee.tensors())
                state.wait()
                raise Stopped(f"{stop.reason or 'another rank was asked'}; committed at step {step} of {until}")
            line = trainee.advance(step)
            step += 1
            clock.tick(stop, state.seconds)
            if step % log_every == 0 or step == 1:
                metrics.append({"step": step, **line, "time": clock.read()})
            progress.advance(note=f"loss {line['loss']:.4g}")
            state.check()
            if step % commit_every == 0:
                state.commit(step, trainee.tensors())
        state.commit(step, trainee.tensors())
    except NotFinite as fault:
        raise Fault(
            f"step {step}: {fault}; lower the learning rate, or look into "
            f"{_leave(trainee, fault, state.folder, step, ranks)} first"
        ) from fault
    finally:
        state.wait()


def _leave(trainee: Trainee, fault: NotFinite, folder: Path, step: int, ranks: Ranks) -> Path:
    """Leave what the failed step saw and the weights that it began with beside the states; returns where."""
    left = folder / f"not_finite_{step:08d}"
    with publish(left / f"rank_{ranks.rank}.safetensors") as scratch:
        seen = {f"seen.{name}": tensor for name, tensor in trainee.evidence().items()}
        seen |= {name: own_part(t) for name, t in trainee.tensors().items() if name.startswith("weights.")}
        safetensors.torch.save_file({name: t.detach().cpu().contiguous() for name, t in seen.items()}, scratch)
    if ranks.rank == 0:
        publish_text(left / "report.json", json.dumps({"step": step, "what": str(fault), **fault.report}, indent=1) + "\n")
    return left


class Clock:
    """Where the time of the steps between two lines of the metrics went."""

    def __init__(self, trainee: Trainee) -> None:
        self.trainee = trainee
        self._steps, self._longest = 0, 0.0
        self._began = self._last = time.perf_counter()
        self._data = trainee.data_seconds

    def tick(self, stop: StopRequest, writing: float) -> None:
        """Another step is done; a deadline must leave time for one more, and for `writing` a state, with some to spare."""
        now = time.perf_counter()
        self._longest, self._last = max(self._longest, now - self._last), now
        self._steps += 1
        stop.needs = 1.5 * (self._longest + writing)

    def read(self) -> dict[str, Any]:
        """Seconds since the last reading, rates over them, peak memory; and begin anew."""
        now, work = time.perf_counter(), self.trainee.work
        seconds = max(now - self._began, 1e-9)
        read = {
            "seconds": round(seconds, 3),
            "images_per_second": round(work.images * self._steps / seconds, 2),
            "data_seconds": round(self.trainee.data_seconds - self._data, 3),
            "memory_mb": round(memory_megabytes()),
            "utilisation": round(work.flops * self._steps / seconds / work.peak, 4) if work.peak else None,
        }
        self._began, self._steps, self._data = now, 0, self.trainee.data_seconds
        return read


class Sink(Protocol):
    """Where lines of metrics go."""

    def truncate(self, step: int) -> None:
        """Forget what was appended after `step`."""

    def append(self, values: dict[str, Any]) -> None:
        """Add the line of one step."""


class NoMetrics:
    """Nowhere: of all ranks but the first."""

    def truncate(self, step: int) -> None:
        """Nothing to forget."""

    def append(self, values: dict[str, Any]) -> None:
        """Not said twice."""


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
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a state that outlives the machine has its lines
        except OSError as error:
            raise Fault(f"{self.path}: cannot be written ({error}); make room and call the same command again") from error


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
        """Clip the gradients, update weights and EMA, clear the gradients. Raises NotFinite on such a gradient."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = whole_of(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        if not torch.isfinite(norm):
            raise NotFinite(f"the gradient is not finite ({float(norm)}); the weights were not updated", self.norms())
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
            for into in (self.parameters[name], self.ema[name]):
                own_part(into).copy_(part_like(tensor, into))

    def norms(self) -> dict[str, dict[str, float]]:
        """Length of each weight and of its gradient, for a look at numbers that are not finite; every rank must call."""
        return {
            kind: {name: float(whole_of(torch.linalg.vector_norm(t))) for name, t in tensors.items() if t is not None}
            for kind, tensors in (
                ("weights", {name: parameter.detach() for name, parameter in self.parameters.items()}),
                ("gradients", {name: parameter.grad for name, parameter in self.parameters.items()}),
            )
        }

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

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            moments = _no_moments(parameter)
            averages = {"ema": self.ema[name], "first": moments["exp_avg"], "second": moments["exp_avg_sq"]}
            for kind, into in {"weights": parameter.detach(), **averages}.items():
                own_part(into).copy_(part_like(tensors[f"{kind}.{name}"], into))
            moments["step"].copy_(tensors[f"updates.{name}"])
            self.adamw.state[parameter] = moments


def _no_moments(parameter: Tensor) -> dict[str, Tensor]:
    return {
        "exp_avg": torch.zeros_like(parameter.detach()),
        "exp_avg_sq": torch.zeros_like(parameter.detach()),
        "step": torch.zeros(()),
    }
