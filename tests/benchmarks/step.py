"""Whole generator steps on random latents and an untrained encoder: rate, where the time goes, what a commit costs.

    python -m tests.benchmarks.step --configfile config/ablation.yaml --micro-batches 8

Multiply-adds are those of drifting_core/costs/estimates.py. "Model" utilisation counts what one pass needs; "hardware"
utilisation counts the second forward pass of micro-batches, too. On a CPU the peak is what one large matrix product
reaches here.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from drifting_core import config as settings
from drifting_core.costs import estimates
from drifting_core.drift.objective import DriftObjective
from drifting_core.evaluation.rates import drift_training, random_store, seconds_of_step
from drifting_core.jobs.devices import device, peak_flops
from drifting_core.training import generator
from drifting_core.training.generator import DriftTraining
from drifting_core.training.state import StateFolder

COMMIT_EVERY_SECONDS = 600


class Parts:
    """Seconds of a step's parts, each waited for on its device: what is nested in another is taken from that."""

    def __init__(self, on: torch.device) -> None:
        self.on, self.seconds = on, defaultdict[str, float](float)
        self._inner = [0.0]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            self._wait()
            began = time.perf_counter()
            self._inner.append(0.0)
            result = function(*arguments, **more)
            self._wait()
            took = time.perf_counter() - began
            self.seconds[name] += took - self._inner.pop()
            self._inner[-1] += took
            return result

        return call

    def _wait(self) -> None:
        if self.on.type == "cuda":
            torch.cuda.synchronize()


def parts_of(made: DriftTraining, steps: int, on: torch.device) -> dict[str, float]:
    """Seconds a step by part. The backward pass goes through encoder and generator at once."""
    parts = Parts(on)
    made.batch = parts.timed("data", made.batch)  # type: ignore[method-assign]
    made._generate = parts.timed("generator, forward", made._generate)  # type: ignore[method-assign]
    made._features = parts.timed("encoder, forward", made._features)  # type: ignore[method-assign]
    made.optimisation.apply = parts.timed("optimiser and EMA", made.optimisation.apply)  # type: ignore[method-assign]

    class Timed(DriftObjective):
        __init__ = parts.timed("objective", DriftObjective.__init__)
        gradients = parts.timed("objective", DriftObjective.gradients)
        results = parts.timed("objective", DriftObjective.results)

    backward, generator.DriftObjective = torch.autograd.backward, Timed  # type: ignore[misc]
    torch.autograd.backward = parts.timed("backward", backward)
    try:
        step = parts.timed("the rest", made.advance)
        for number in range(steps):
            step(number)
    finally:
        torch.autograd.backward, generator.DriftObjective = backward, DriftObjective  # type: ignore[misc]
    return {name: seconds / steps for name, seconds in parts.seconds.items()}


def state_cost(made: DriftTraining, extra_megabytes: float, folder: Path, step_seconds: float) -> str:
    """What a commit adds to the steps during which it is written, against a commit every ten minutes."""
    tensors = {**made.tensors(), "extra": torch.zeros(int(extra_megabytes * 1e6 / 4), device=made.device)}
    states, megabytes = StateFolder(folder, "0"), sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    states.commit(0, tensors)  # makes the host copies
    states.wait()
    began, count = time.perf_counter(), 0
    states.commit(1, tensors)
    copied = time.perf_counter() - began
    while states._writing is not None and not states._writing.done():
        made.advance(count)
        count += 1
    added = max(0.0, time.perf_counter() - began - count * step_seconds)
    states.wait()
    share = added / COMMIT_EVERY_SECONDS
    return (
        f"  state of {megabytes:,.0f} MB: {copied:.3f} s to host memory, {states.seconds:.2f} s to disk ({count} steps)\n"
        f"  it adds {added:.2f} s, {share:.2%} of the time at a commit every {COMMIT_EVERY_SECONDS // 60} minutes"
    )


def matrix_peak() -> float:
    """Floating-point operations a second of a large float32 product on the CPU, the best of five."""
    a, b, best = torch.randn(2048, 2048), torch.randn(2048, 2048), 0.0
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    return best


def report(config: settings.Configuration, steps: int, gpus: int, threads: int, state_megabytes: float) -> str:
    on = device(gpus, threads)
    with tempfile.TemporaryDirectory() as folder:
        made = drift_training(config, random_store(config, Path(folder)), on)
        seconds = seconds_of_step(made, on, steps)
        cost = state_cost(made, state_megabytes, Path(folder) / "state", seconds)
        parts = parts_of(made, steps, on)
    whole = config.model_copy(update={"training": config.training.model_copy(update={"micro_batches": 1})})
    model, hardware = (2 * estimates.step_macs(each) / seconds / 1e12 for each in (whole, config))
    name = torch.cuda.get_device_name() if gpus else f"{threads} CPU threads"
    peak = (peak_flops(on, config.training.precision, 1) or 0) / 1e12 if gpus else matrix_peak() / 1e12
    objective = config.objective
    lines = [
        f"{name}, torch {torch.__version__}, {config.name}, {config.training.micro_batches} micro-batch(es)",
        f"  {seconds:.3f} s a step, {objective.classes_per_step * objective.generated_per_class / seconds:.1f} images/s",
        f"  {model:.3f} TFLOP/s of the model, {hardware:.3f} with recomputation counted",
    ]
    if peak:
        floor = 2 * estimates.step_macs(whole) / peak / 1e12
        lines.append(
            f"  floor {floor:.3f} s at {peak:.3g} TFLOP/s: model {model / peak:.1%}, hardware {hardware / peak:.1%}"
        )
    lines += [f"  {part:<20}{took:8.4f} s {took / sum(parts.values()):6.1%}" for part, took in parts.items()]
    lines.append(cost)
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
    made.add_argument("--state-megabytes", type=float, default=0.0, help="beside the state's own, to see a larger one")
    arguments = made.parse_args()
    config = settings.load_file(arguments.configfile)
    how = {"compile_objective": arguments.compile}
    if arguments.micro_batches:
        how["micro_batches"] = arguments.micro_batches
    config = config.model_copy(update={"training": config.training.model_copy(update=how)})
    gpus = 1 if torch.cuda.is_available() else 0
    print(report(config, arguments.steps, gpus, arguments.threads, arguments.state_megabytes))


if __name__ == "__main__":
    main()
