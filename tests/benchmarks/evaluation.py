"""What an evaluation costs: the Fréchet distance beside its peers, images a second and where they go, the neighbour search.

`make benchmark-evaluation` prints the tables of docs/performance.md (about 5 minutes on 2 cores). Weights are random, which
changes no time. With a GPU B/2, SD-VAE and Inception run at full size; without one their time follows from operation counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import h5py
import numpy as np
import psutil
import scipy.linalg
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from drifting_core import config as settings
from drifting_core.costs import estimates
from drifting_core.evaluation import sampler, search, statistics, uncertainty
from drifting_core.evaluation.contract import to_uint8
from drifting_core.evaluation.networks.classifier import SmallClassifier
from drifting_core.evaluation.networks.inception import InceptionV3
from drifting_core.evaluation.rates import SD_VAE
from drifting_core.evaluation.reference import cache_blocks
from drifting_core.models.generator import Generator
from drifting_core.models.tokenizer_making import small_autoencoder
from drifting_core.training.generator import architecture

DIMENSIONS = 2048
CLAIM, TRAINING_IMAGES = 50_000, 1_281_167
GPUS = (1, 8)


def timed(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Least seconds of so many calls, and the last result."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds), result


# --- Fréchet distance -----------------------------------------------------------------------------------------------


def features(rows: int, seed: int) -> np.ndarray:
    """Correlated and skewed, as Inception's: non-negative, with a spectrum that falls by four decades."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, DIMENSIONS)) * np.logspace(0, -2, DIMENSIONS)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(DIMENSIONS, DIMENSIONS)))[0]
    return np.abs(mixed @ rotation + 0.02 * seed).astype(np.float32)


def frechet_table(rows: int) -> str:
    first, second = features(rows, 1), features(rows, 2)
    moments_seconds, a = timed(lambda: statistics.moments_of(first))
    b = statistics.moments_of(second)
    root = statistics.covariance_root(a.covariance)
    given = (a.mean, a.covariance, b.mean, b.covariance)

    def peer(trace: float) -> float:
        shift = a.mean - b.mean
        return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace)

    def torch_fidelity() -> float:
        return peer(np.sqrt(np.linalg.eigvals(a.covariance @ b.covariance).astype("complex128")).real.sum())

    methods: dict[str, Callable[[], float]] = {
        "ours: `eigh` of both, singular values of the product of the roots": lambda: statistics.frechet(*given).distance,
        "ours for each resample: the reference factored before, `eigvalsh`": lambda: statistics.quick_frechet(a, root, b),
        "torch-fidelity: `np.linalg.eigvals(s1 @ s2)`": torch_fidelity,
        "`scipy.linalg.sqrtm(s1 @ s2)`": lambda: peer(np.trace(scipy.linalg.sqrtm(a.covariance @ b.covariance).real)),
    }
    found = {name: timed(work, 1 if "scipy" in name else 2) for name, work in methods.items()}
    ours, expected = next(iter(found.values()))[0], found["`scipy.linalg.sqrtm(s1 @ s2)`"][1]
    lines = [
        f"Fréchet distance of {rows:,} x {DIMENSIONS:,} features each side (moments: {moments_seconds:.2f} s a side).", "",
        "| | s | ours is the faster by | distance, relative to scipy's |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, (seconds, distance) in found.items():
        lines.append(f"| {name} | {seconds:.1f} | {seconds / ours:.2g} | {distance / expected - 1:+.1e} |")
    return "\n".join(lines)


# --- images a second ------------------------------------------------------------------------------------------------


class Networks(NamedTuple):
    """What makes latents, pixels and features."""

    generator: Generator
    decode: Callable[[Tensor], Tensor]
    network: torch.nn.Module


def networks(config: settings.Configuration, on: torch.device, scratch: Path) -> Networks:
    """Those of a preset, with random weights."""
    tokenizer, data = config.tokenizer, config.data
    shape = (tokenizer.channels, config.latent_size, config.latent_size)
    store = SimpleNamespace(shape=shape, num_classes=data.expected.classes)
    generator = Generator(**architecture(config.generator, cast(Any, store), "float32"))
    generator.reset_parameters(0)
    vae = small_autoencoder(tokenizer) if tokenizer.training else AutoencoderKL(**SD_VAE)
    vae.eval().to(on)
    if config.evaluation.network.classifier:
        network: torch.nn.Module = SmallClassifier(
            width=config.evaluation.network.classifier.width, classes=data.expected.classes
        ).eval()
    else:
        network = InceptionV3.untrained()
    return Networks(generator.eval().to(on), lambda z: (vae.decode(z).sample / 2 + 0.5).clamp(0, 1), network.to(on))


def parts(config: settings.Configuration, count: int, on: torch.device, scratch: Path) -> dict[str, float]:
    """Seconds an image by part, over `count` images after one batch that is not counted."""
    made, evaluation = networks(config, on, scratch), config.evaluation
    spent = {"sampling": 0.0, "decoding": 0.0, "bytes and feature network": 0.0}

    def sample(images: int) -> list[Tensor]:
        batch = evaluation.sampling.compute_batch
        return list(
            sampler.generate(made.generator, seed=0, alpha=1.0, first=0, last=images, compute_batch=batch, device=on)
        )

    size, rule = evaluation.contract.compute_batch, evaluation.contract.uint8
    with torch.inference_mode():
        sample(evaluation.sampling.compute_batch)
        spent["sampling"], latents = timed(lambda: torch.cat(sample(count)))
        for number, some in enumerate((latents[:size], *latents.split(size))):
            decoding, images = timed(lambda some=some: made.decode(some.to(on)))
            seeing, _ = timed(lambda images=images: made.network(to_uint8(images, rule)).features.cpu())
            if number:
                spent["decoding"] += decoding
                spent["bytes and feature network"] += seeing
    return {name: seconds / count for name, seconds in spent.items()}


def parts_table(config: settings.Configuration, count: int, on: torch.device, scratch: Path) -> str:
    found = parts(config, count, on, scratch)
    whole = sum(found.values())
    device = torch.cuda.get_device_name() if on.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    lines = [
        f"{config.name} at its own sizes, {count:,} images, {device}.",
        "",
        "| part | images/s | of the time |",
        "|---|---|---|",
    ]
    lines += [f"| {part} | {1 / seconds:.4g} | {100 * seconds / whole:.0f}% |" for part, seconds in found.items()]
    lines += [f"| all | {1 / whole:.4g} | {CLAIM:,} images: {CLAIM * whole / 60:.3g} min |"]
    if on.type == "cuda":
        lines += ["", _by_gpus(CLAIM * whole, "measured on one, divided")]
    return "\n".join(lines)


def computed(config: settings.Configuration) -> str:
    """Hours of the claim's images at the plan's assumed rate, from operation counts."""
    rates = estimates.read_rates()
    macs = {
        "generator": estimates.generator_macs(config),
        "decode": rates["tokenizer_gmac"]["decode"]["value"] * 1e9,
        "features": rates["inception_gmac"]["value"] * 1e9,
    }
    known = rates["effective_tflops"]
    shares = ", ".join(f"{part} {value / 1e9:.3g} GMAC at {known[part]['value']} TFLOP/s" for part, value in macs.items())
    return f"{config.name} at full size: no GPU here, computed from rates of config/rates.yaml: {shares}. " + _by_gpus(
        CLAIM * 3600 * estimates.hours_of(macs, rates), "computed, not measured"
    )


def _by_gpus(seconds: float, how: str) -> str:
    said = ", ".join(f"{seconds / gpus / 60:.2g} min on {gpus}" for gpus in GPUS)
    return f"{CLAIM:,} images on GPUs ({how}): {said}."


def numbers_table(count: int) -> str:
    """Seconds of the numbers themselves at Inception's width, beside the pass over the images."""
    first, second = features(count, 1), features(count, 2)
    reference, manifold = statistics.moments_of(first), first[: min(count, 10_000)]
    logits = np.random.default_rng(0).normal(size=(count, 1008)).astype(np.float32)
    work: dict[str, Callable[[], Any]] = {
        "bootstrap, each resample": lambda: uncertainty.bootstrap_error(reference, second, resamples=2, seed=0),
        "extrapolation, each size": lambda: uncertainty.extrapolate(reference, second, sizes=3, seed=0),
        "IS": lambda: statistics.inception_score(logits),
        "kernel distance, each subset of 1,000": lambda: statistics.kernel_distance(
            manifold, second, subsets=2, subset_size=min(1000, count)
        ),
        "precision and recall": lambda: statistics.precision_recall(manifold, second),
    }
    calls = {"bootstrap, each resample": 2, "extrapolation, each size": 3, "kernel distance, each subset of 1,000": 2}
    lines = [f"Numbers of {count:,} images, {DIMENSIONS:,} features.", "", "| | s |", "|---|---|"]
    lines += [f"| {name} | {timed(call)[0] / calls.get(name, 1):.2g} |" for name, call in work.items()]
    return "\n".join(lines)


# --- neighbours -----------------------------------------------------------------------------------------------------


def neighbour_rate(queries: int, known: int, on: torch.device, scratch: Path) -> str:
    rng = np.random.default_rng(0)
    path = scratch / "cache.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=rng.normal(size=(known, DIMENSIONS)).astype("f4"), chunks=(256, DIMENSIONS))
        file["labels"], file["rows"] = np.arange(known) % 1000, np.arange(known)
    wanted = rng.normal(size=(queries, DIMENSIONS)).astype(np.float32)
    labels = np.arange(queries) % 1000
    seconds, _ = timed(lambda: search.nearest(wanted, labels, cache_blocks(path), 10, on, "the benchmark"), 2)
    rate, pairs = queries * known / seconds, CLAIM * TRAINING_IMAGES
    device = torch.cuda.get_device_name() if on.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return (
        f"Neighbour search, {queries:,} x {known:,} x {DIMENSIONS:,}, any and same class, {device}: {seconds:.2f} s, "
        f"{rate / 1e6:.3g} million pairs/s ({2 * DIMENSIONS * rate / 1e9:.3g} GFLOP/s). {CLAIM:,} x {TRAINING_IMAGES:,} at "
        f"that rate: {pairs / rate / 3600:.3g} h; a preset's 1,000: {1000 * TRAINING_IMAGES / rate / 60:.3g} min."
    )


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    made.add_argument("--rows", type=int, default=5000, help="generated images of the distances and numbers")
    made.add_argument("--images", type=int, default=500, help="images of the pass at demo size")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    cpu, presets = torch.device("cpu"), Path(__file__).resolve().parents[2] / "config"
    print(f"{arguments.threads} CPU threads, torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(parts_table(settings.load_file(presets / "demo.yaml"), arguments.images, cpu, folder), "\n", flush=True)
        full = settings.load_file(presets / "ablation.yaml")
        if torch.cuda.is_available():
            print(parts_table(full, 1024, torch.device("cuda"), folder), "\n", flush=True)
        else:
            print(computed(full), "\n", flush=True)
        for on in (cpu, *([torch.device("cuda")] if torch.cuda.is_available() else [])):
            print(neighbour_rate(8192, 32_768, on, folder), "\n", flush=True)
        print(numbers_table(arguments.rows), "\n", flush=True)
        print(frechet_table(arguments.rows))


if __name__ == "__main__":
    main()
