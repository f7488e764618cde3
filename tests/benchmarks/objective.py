"""Time and peak memory of the objective, forward and backward, beside the literal formula and the floor.

`make benchmark` prints the table of docs/performance.md: one raw entry of the ablation preset (64 labels x 1,024 tokens,
64 generated + 64 positive + 16 unconditional vectors of 256 numbers) at 1, 8 and 64 labels, inputs in bfloat16. Each case
runs in a process of its own. Peaks are of working memory, beyond the inputs; the floor is the gradient and one chunk.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from drifting_core import config as settings
from drifting_core.drift.loss import TEMPERATURES, drift_loss
from drifting_core.drift.objective import _CHUNK_BYTES, DriftObjective
from tests.benchmarks import step as whole_step

GENERATED, POSITIVE, UNCONDITIONAL, WIDTH, TOKENS = 64, 64, 16, 256, 1024
TARGETS = GENERATED + POSITIVE + UNCONDITIONAL
LABELS = (1, 8, 64)
KINDS = ("generated", "unconditional", "positive")
MB = 1e6

Inputs = dict[str, Tensor]  # generated, unconditional, positive: (labels, count, tokens, width); weights (labels, N)
Step = Callable[[Inputs], Tensor]  # forward and backward; the gradient, (labels, count, tokens, width)


def inputs(labels: int, device: str, *, tokens: int = TOKENS, dtype: torch.dtype = torch.bfloat16) -> Inputs:
    """Features as the encoder gives them, random and well apart from each other."""
    rng = torch.Generator(device).manual_seed(0)

    def normal(count: int, mean: float) -> Tensor:
        made = torch.empty(labels, count, tokens, WIDTH, dtype=dtype, device=device)
        for part in made.flatten(0, 1).split(16):
            part.copy_(torch.randn(part.shape, generator=rng, device=device).add_(mean))
        return made

    means = {"generated": (GENERATED, 0.0), "unconditional": (UNCONDITIONAL, 0.1), "positive": (POSITIVE, 0.3)}
    made = {name: normal(*how) for name, how in means.items()}
    return made | {"weights": torch.rand(labels, UNCONDITIONAL, generator=rng, device=device)}


def training(data: Inputs, *, compiled: bool = False) -> Tensor:
    """What a training step does: scalars, then the gradient in the features' own layout."""
    generated, unconditional, positive = ({"raw": data[name].flatten(0, 1)} for name in KINDS)
    objective = DriftObjective(generated, positive, unconditional, data["weights"], TEMPERATURES, compiled=compiled)
    return objective.gradients()["raw"].view(data["generated"].shape)


def by_loss(form: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Step:
    """Forward and backward of a loss of problems (B, count, width)."""

    def step(data: Inputs) -> Tensor:
        gen, negatives, positives = (data[name].transpose(1, 2).flatten(0, 1) for name in KINDS)
        weights = data["weights"].repeat_interleave(data["generated"].shape[2], dim=0)
        gen.requires_grad_()
        form(gen, negatives, positives, weights).mean().backward()
        assert gen.grad is not None
        labels, _, tokens, _ = data["generated"].shape
        return gen.grad.unflatten(0, (labels, tokens)).transpose(1, 2)

    return step


def literal(gen: Tensor, negatives: Tensor, positives: Tensor, weights: Tensor) -> Tensor:
    """The formula as protocol 1.4 writes it, line by line, autograd through what is not stopped; (B,)."""
    g = gen.float()
    fixed = g.detach()
    y = torch.cat([fixed, negatives.float(), positives.float()], dim=1)
    w = torch.cat([torch.ones_like(fixed[..., 0]), weights, torch.ones_like(positives[..., 0].float())], dim=1)
    squared = fixed.square().sum(2)[:, :, None] + y.square().sum(2)[:, None] - 2 * fixed @ y.mT
    d = squared.clamp(min=1e-8).sqrt()
    s = (d * w[:, None]).mean() / w.mean()
    a = (s / WIDTH**0.5).clamp(min=1e-3)
    far = torch.nn.functional.pad(100.0 * torch.eye(GENERATED, device=d.device), (0, TARGETS - GENERATED))
    logits = -(d / s.clamp(min=1e-3) + far)
    total = torch.zeros_like(fixed)
    for tau in TEMPERATURES:
        affinity = ((logits / tau).softmax(2) * (logits / tau).softmax(1)).clamp(min=1e-6).sqrt() * w[:, None]
        repel, attract = affinity.split([TARGETS - POSITIVE, POSITIVE], dim=2)
        coefficients = torch.cat([-repel * attract.sum(2, True), attract * repel.sum(2, True)], dim=2)
        force = coefficients @ (y / a) - coefficients.sum(2, True) * (fixed / a)
        total = total + force / force.square().mean().clamp(min=1e-8).sqrt()
    return (g / a - (fixed / a + total)).square().mean(dim=(1, 2))


def one_chunk(gen: Tensor, negatives: Tensor, positives: Tensor, weights: Tensor) -> Tensor:
    return drift_loss(gen, positives, negatives, weight_negatives=weights).loss


METHODS: dict[str, Step] = {
    "training": training,
    "training, compiled": functools.partial(training, compiled=True),
    "one chunk": by_loss(one_chunk),
    "literal": by_loss(literal),
}


def chunk_bytes(problems: int) -> int:
    """float32 bytes of some problems while they are computed: targets, six (G, K) matrices, a force."""
    return problems * 4 * (TARGETS * WIDTH + 6 * GENERATED * TARGETS + GENERATED * WIDTH)


def chunk(device: str) -> int:
    """Problems in memory at once, as training takes them."""
    return _CHUNK_BYTES[device] // chunk_bytes(1)


# --- one case, in a process of its own --------------------------------------------------------------------------------


def measure(device: str, labels: int, method: str, threads: int) -> dict[str, float]:
    """Seconds and peak bytes beyond the inputs of one forward and backward."""
    torch.set_num_threads(threads)
    # On a CPU, memory that was freed would hide a later peak: warm up on as little as shows every operation.
    METHODS[method](inputs(1, device, tokens=4))
    data = inputs(labels, device)
    before = resident(device)
    reset_peak(device)
    began = time.perf_counter()
    gradient = METHODS[method](data)
    synchronise(device)
    seconds = time.perf_counter() - began
    found = peak(device)
    assert gradient.shape == data["generated"].shape
    return {"seconds": seconds, "peak": found - before}


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def resident(device: str) -> float:
    synchronise(device)
    return torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM begins again at what is resident


def peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def alone(device: str, labels: int, method: str, threads: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    case = json.dumps([device, labels, method, threads])
    done = subprocess.run([sys.executable, "-m", __spec__.name, "--case", case], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{method} of {labels} labels on {device}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


# --- the table --------------------------------------------------------------------------------------------------------


def available(device: str) -> float:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available


def rows(device: str, threads: int) -> list[str]:
    """A row per size and method; what would not fit is said, with the bytes that it would take."""
    lines = []
    for method in METHODS:
        per_label = 0.0  # peak bytes, from the size before
        for labels in LABELS:
            problems = labels * TOKENS
            given = problems * 2 * TARGETS * WIDTH
            name = f"| {method} | {problems:,} | {given / MB:,.0f} |"
            if (given + per_label * labels) * 1.1 > available(device):
                lines.append(f"{name} not run | {per_label * labels / MB:,.0f} (extrapolated) | |")
                continue
            found = alone(device, labels, method, threads)
            per_label = found["peak"] / labels
            floor = problems * 2 * GENERATED * WIDTH + chunk_bytes(min(chunk(device), problems))
            lines.append(f"{name} {found['seconds']:.2f} | {found['peak'] / MB:,.0f} | {floor / MB:,.0f} |")
            print(lines[-1], file=sys.stderr)
    return lines


def agreement(device: str) -> dict[str, float]:
    """Largest difference of the gradients on 256 problems, in units of the largest entry: float32 inputs."""
    data = inputs(1, device, tokens=256, dtype=torch.float32)
    gradients = {name: step(data) for name, step in METHODS.items()}
    largest = gradients["one chunk"].abs().max()
    return {name: float((g - gradients["one chunk"]).abs().max() / largest) for name, g in gradients.items()}


def table(device: str, threads: int) -> str:
    named = torch.cuda.get_device_name() if device == "cuda" else f"{threads} CPU threads"
    difference = agreement(device)
    return "\n".join(
        [
            f"{named}, torch {torch.__version__}, chunks of {chunk(device)} problems",
            "",
            "| form | problems B | inputs, MB | forward and backward, s | peak beyond inputs, MB | floor, MB |",
            "|---|---|---|---|---|---|",
            *rows(device, threads),
            "",
            "Largest difference of the gradients in units of their largest entry (float32 inputs, 256 problems): training's "
            f"chunks against one chunk {difference['training']:.1e}, literal against one chunk {difference['literal']:.1e}.",
        ]
    )


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1, help="CPU threads")
    made.add_argument("--case", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.case:
        case: list[Any] = json.loads(arguments.case)
        print(json.dumps(measure(*case)))
        return
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    print("\n\n".join(table(device, arguments.threads) for device in devices))
    if len(devices) == 1:
        print("\nGPU rows, the objective and whole steps of the ablation preset: open (no CUDA device here)")
        return
    ablation = settings.load_file(Path("config/ablation.yaml"))
    for micro_batches in (1, ablation.training.micro_batches):
        how = ablation.training.model_copy(update={"micro_batches": micro_batches})
        print(
            "\n"
            + whole_step.report(
                ablation.model_copy(update={"training": how}),
                steps=5,
                gpus=1,
                threads=arguments.threads,
                state_megabytes=0.0,
            )
        )


if __name__ == "__main__":
    main()
